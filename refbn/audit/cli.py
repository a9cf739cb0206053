"""The command line: ``refbn audit [FRAMEWORK…]``.

Exit status: 0 when nothing is worse than lossy, 1 when something is wrong (wrong, nonfinite, or raises where a result
is due) and not listed as known, 2 on bad use.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from refbn._errors import RefbnError
from refbn._formats import FORMATS
from refbn.audit import adapters
from refbn.audit.adapters._protocol import OPERATIONS, Adapter
from refbn.audit.cases import FAMILIES, parse

if TYPE_CHECKING:
    from refbn.audit.families import Depth
    from refbn.audit.runner import Progress

__all__ = ["main"]

_NEEDED = ("rich", "jsonschema", "ml_dtypes", "packaging")


class BadUse(Exception):
    """What the user asked for cannot be done; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    if options.command is None:
        parser.print_help()
        return 2
    try:
        status: int = options.command(options)
    except (BadUse, RefbnError) as error:
        print(f"refbn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `refbn audit --list | head`
        sys.stderr.close()
        return 0
    return status


# ---- arguments -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refbn", description="The ground truth for batch normalization.")
    parser.add_argument("--version", action="version", version=f"refbn {_version()}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_audit(commands)
    return parser


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser(
        "audit",
        help="compare a framework's batch norm with the exact truth",
        description="Compare the batch norm of installed frameworks with the exact truth, operation by operation.",
        epilog="Exit status: 0 when nothing is worse than lossy, 1 when something is wrong, 2 on bad use.",
    )
    audit.add_argument(
        "framework",
        nargs="*",
        metavar="FRAMEWORK",
        help=f"{', '.join(adapters.ADAPTERS)}, zoo or zoo-MISTAKE (our own classic mistakes); default: all that "
        "are installed, without the zoo",
    )
    audit.add_argument("--quick", action="store_true", help="fewer cases, in less than a minute")
    audit.add_argument("--json", metavar="FILE", type=Path, help="also write every finding to FILE")
    audit.add_argument("--case", metavar="DESCRIPTOR", help="run one case and print everything about it")
    audit.add_argument(
        "--reproduce", metavar="ID", help="print a script that shows a finding without refbn: its id, or a descriptor"
    )
    audit.add_argument(
        "--known", metavar="FILE", type=Path, help="accepted deviations, beside those that come with refbn"
    )
    audit.add_argument("--no-diagnosis", action="store_true", help="look for no reasons and no smallest cases")
    audit.add_argument("--list", action="store_true", help="print the descriptors of the chosen cases and stop")
    for option, words in (
        ("family", FAMILIES),
        ("operation", tuple(OPERATIONS)),
        ("dtype", tuple(name for f in FORMATS for name in (f.short, f.name))),
    ):
        audit.add_argument(
            f"--{option}",
            action="append",
            choices=words,
            metavar=option[0].upper(),
            help=f"only this {option}, may be repeated: {', '.join(words)}",
        )
    audit.set_defaults(command=_audit)


def _version() -> str:
    try:
        return metadata.version("refbn")
    except metadata.PackageNotFoundError:
        return "(not installed)"


# ---- the audit -----------------------------------------------------------------------------------------------------


def _audit(options: argparse.Namespace) -> int:
    _require(*_NEEDED)
    from refbn.audit import diagnosis, known, runner

    depth: Depth = "quick" if options.quick else "full"
    cases = (
        [parse(options.case)]
        if options.case
        else runner.select(depth, options.family or FAMILIES, options.operation, options.dtype)
    )
    if not cases:
        raise BadUse("audit: no case has this combination of --family, --operation and --dtype")
    if options.list:
        print(*cases, sep="\n")
        return 0
    accepted = known.shipped() + (known.read(options.known) if options.known else ())
    if options.reproduce:
        owner = options.framework or [options.reproduce.partition("/")[0]]
        print(*(diagnosis.reproduce(adapter, options.reproduce) for adapter in _adapters(owner)), sep="\n", end="")
        return 0
    chosen = _adapters(options.framework)
    if options.json is not None:
        _check_writable(options.json)

    from rich.console import Console

    from refbn.audit import detail, report

    console = Console(highlight=False)
    mistakes = all(adapter.name.startswith("zoo-") for adapter in chosen)  # they are their own explanation
    reasons = None if options.no_diagnosis or mistakes else diagnosis.Diagnosis(8.0 if options.quick else 120.0)
    if options.case:
        findings = [f for adapter in chosen for f in detail.print_case(adapter, cases[0], console, reasons)]
        findings = known.mark(findings, accepted)
    else:
        with _progress() as progress:
            findings = known.mark(runner.run_cases(chosen, cases, progress, reasons), accepted)
        if options.framework and set(options.framework) == {"zoo"}:
            report.print_kill_table(runner.kill_table(findings), console)
        else:
            report.print_report(findings, console)
    gone = known.gone(findings, accepted)
    for deviation in gone:
        console.print(f"known deviation that no longer shows: {deviation}", markup=False, soft_wrap=True)
    if options.json is not None:
        document = report.as_json(findings, chosen, "case" if options.case else depth, len(cases), _version(), gone)
        try:
            report.write_json(options.json, document)
        except OSError as error:
            raise BadUse(f"audit: --json {options.json}: {error.strerror}") from error
    return int(any(f.verdict in runner.FAILURES and not f.known for f in findings))


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BadUse(f"audit needs {', '.join(missing)}: pip install 'refbn[audit]'")


def _adapters(names: Sequence[str]) -> list[Adapter]:
    """Return the adapters to run: those named, which must be installed, or all that are."""
    chosen = [adapter for name in dict.fromkeys(names or adapters.BY_DEFAULT) for adapter in adapters.load(name)]
    installed = [adapter for adapter in chosen if adapter.version() is not None]
    if names and len(installed) < len(chosen):
        missing = next(adapter.name for adapter in chosen if adapter not in installed)
        extra = missing.removeprefix("refbn-")
        raise BadUse(f"audit: {missing} is not installed here: pip install 'refbn[{extra}]'")
    if not installed:
        raise BadUse("audit: no framework is installed: pip install 'refbn[torch]', for one")
    return installed


def _check_writable(path: Path) -> None:
    """Find out before a long run, not after it."""
    if path.is_dir():
        raise BadUse(f"audit: --json {path}: is a directory, expected a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BadUse(f"audit: --json {path}: cannot write to {path.parent}: {error.strerror}") from error


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Yield a callback that draws a progress bar on standard error, or None where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    description = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True), markup=False)
    with Progress(
        description,
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        expand=True,
    ) as bar:
        task = bar.add_task("audit", total=None)

        def show(case: str, done: int, total: int) -> None:
            bar.update(task, description=case, completed=done, total=total)

        yield show
