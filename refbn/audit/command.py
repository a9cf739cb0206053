"""``refbn audit [FRAMEWORK…]``.

Exit status: 0 when nothing is worse than lossy, 1 when something is wrong (wrong, nonfinite, or raises where a result
is due) and not listed as known, 2 on bad use.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import refbn
from refbn._errors import RefbnError
from refbn._formats import FORMATS
from refbn.audit import adapters
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES, parse
from refbn.audit.remote.interpreter import TIMEOUT

if TYPE_CHECKING:
    from refbn.audit.cases import Case
    from refbn.audit.families import Depth
    from refbn.audit.known import Deviation
    from refbn.audit.report.run import Run
    from refbn.audit.runner import Progress
    from refbn.audit.selection import Chosen

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What a subcommand is added to. It sets ``command``, a function from the options to the exit status."""

__all__ = ["BadUse", "add_command"]

_NEEDED = ("rich", "jsonschema", "ml_dtypes", "packaging")
_FILES = {
    "json": "every finding, from which all other forms can be made again (compressed, if FILE ends in .gz)",
    "junit": "JUnit XML, for continuous integration",
    "markdown": "Markdown",
    "html": "one self-contained page",
}


class BadUse(RefbnError, ValueError):
    """What the user asked for cannot be done; the message says why."""


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
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
        help=f"{', '.join(adapters.ADAPTERS)}, zoo or zoo-MISTAKE (our own classic mistakes); FRAMEWORK@PYTHON runs "
        "it in that interpreter; default: all that are installed, without the zoo",
    )
    audit.add_argument("--all", action="store_true", help="every framework that is installed in any interpreter")
    audit.add_argument(
        "--python",
        metavar="PATH",
        action="append",
        default=[],
        help="another interpreter to look for frameworks in, may be repeated; it needs NumPy and the framework alone",
    )
    audit.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=TIMEOUT,
        help="how long one case may take in a process of its own (default: %(default)g)",
    )
    audit.add_argument(
        "--jobs",
        metavar="NUMBER",
        type=_count,
        help="how many processes share the cases (default: one for each core that may be used)",
    )
    audit.add_argument("--quick", action="store_true", help="fewer cases, in less than a minute")
    audit.add_argument(
        "--every-case",
        action="store_true",
        help="with --quick: all its cases also of frameworks that compile for each shape, which takes some minutes",
    )
    for form, meaning in _FILES.items():
        audit.add_argument(f"--{form}", metavar="FILE", type=Path, help=f"also write {meaning}")
    audit.add_argument(
        "--from-json",
        metavar="FILE",
        type=Path,
        action="append",
        help="run nothing, render a run saved with --json; given several times, those of several frameworks as one",
    )
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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


# ---- the audit -----------------------------------------------------------------------------------------------------


def _audit(options: argparse.Namespace) -> int:
    _require(*_NEEDED)
    if options.html:
        _require("jinja2")
    if options.from_json:
        return _render(options)
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
    if options.all and options.framework:
        raise BadUse("audit: --all and the name of a framework exclude each other")
    if options.every_case and not options.quick:
        raise BadUse("audit: --every-case says something of --quick alone; a full audit asks every case")
    _check_files(options)

    from refbn.audit import selection

    if options.reproduce:
        owner = options.framework or [options.reproduce.partition("/")[0]]
        with selection.choose(owner, options.python, options.timeout) as chosen:
            for adapter in chosen.adapters:
                print(diagnosis.reproduce(adapter, options.reproduce), end="")
        return 0
    accepted = known.shipped() + (known.read(options.known) if options.known else ())
    with selection.choose(options.framework, options.python, options.timeout) as chosen:
        return _run(options, chosen, cases, depth, accepted)


def _run(
    options: argparse.Namespace, chosen: Chosen, cases: Sequence[Case], depth: Depth, accepted: Sequence[Deviation]
) -> int:
    from rich.console import Console

    from refbn.audit import detail, diagnosis, groups, jobs, known, runner
    from refbn.audit.report import terminal
    from refbn.audit.report.run import make_run, scripts

    console = Console(highlight=False)
    mistakes = all(adapter.name.startswith("zoo-") for adapter in chosen.adapters)  # they are their own explanation
    seconds = None if options.no_diagnosis or mistakes else 8.0 if options.quick else 120.0
    reasons = None if seconds is None else diagnosis.Diagnosis(seconds)
    several = min(options.jobs or jobs.available(), len(groups.groups_of(cases)) // jobs.GROUPS)
    plans = {}
    if options.quick and not options.every_case and not options.case:
        plans = {adapter.name: groups.plan(adapter, cases) for adapter in chosen.adapters}
    asked, not_asked = groups.everything(plans, cases)
    if options.case:
        findings = [f for adapter in chosen.adapters for f in detail.print_case(adapter, cases[0], console, reasons)]
    else:
        with _progress() as progress:
            if several > 1:
                which = options.framework, options.python, options.timeout
                names = [adapter.name for adapter in chosen.adapters]
                findings = jobs.run_jobs(*which, names, asked, several, progress, seconds, not_asked)
            else:
                findings = runner.run_cases(chosen.adapters, asked, progress, reasons, not_asked)
    findings = known.mark(findings, accepted)
    wanted = any(getattr(options, name) for name in _FILES if name != "junit")
    run = make_run(
        findings,
        chosen.adapters,
        "case" if options.case else depth,
        len(cases),
        refbn.__version__,
        missing=chosen.missing,
        scripts=scripts(findings, chosen.adapters) if wanted else {},
        gone=known.gone(findings, accepted, {name for name, plan in plans.items() if plan.left_out}),
        plans=plans,
    )
    if options.framework and set(options.framework) == {"zoo"} and not options.case:
        terminal.print_kill_table(runner.kill_table(findings), console)
    elif not options.case:
        terminal.print_report(run, console)
    terminal.print_gone(run, console)
    return _write(options, run)


def _render(options: argparse.Namespace) -> int:
    """Render a run that was saved, or several."""
    given = [name for name in ("case", "list", "all", "python") if getattr(options, name)]
    if options.framework or given:
        raise BadUse(f"audit: --from-json renders a run as it was saved, without {given[0] if given else 'frameworks'}")
    _check_files(options)

    from rich.console import Console

    from refbn.audit.report import document, terminal
    from refbn.audit.report.run import merge, part

    run = merge([document.read(path) for path in options.from_json])
    chosen = {name: getattr(options, name) for name in ("family", "operation", "dtype") if getattr(options, name)}
    if chosen:
        run = part(run, **chosen)
    console = Console(highlight=False)
    terminal.print_report(run, console)
    terminal.print_gone(run, console)
    return _write(options, run)


def _write(options: argparse.Namespace, run: Run) -> int:
    """Write the files that were asked for, and return the exit status."""
    from refbn.audit.report import document, junit, markdown
    from refbn.audit.report.run import fails

    for name in _FILES:
        path = getattr(options, name)
        if path is None:
            continue
        try:
            if name == "json":
                document.write_json(path, document.as_document(run))
            elif name == "html":
                from refbn.audit.report import page

                document.write_text(path, page.page(run))
            else:
                document.write_text(path, junit.junit(run) if name == "junit" else markdown.markdown(run))
        except OSError as error:
            raise BadUse(f"audit: --{name} {path}: {error.strerror}") from error
    return int(any(map(fails, run.findings)))


def _require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BadUse(f"audit needs {', '.join(missing)}: pip install 'refbn[audit]'")


def _check_files(options: argparse.Namespace) -> None:
    """Find out before a long run whether its files can be written, not after it."""
    for name in _FILES:
        path = getattr(options, name)
        if path is None:
            continue
        if path.is_dir():
            raise BadUse(f"audit: --{name} {path}: is a directory, expected a file")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise BadUse(f"audit: --{name} {path}: cannot write to {path.parent}: {error.strerror}") from error


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
