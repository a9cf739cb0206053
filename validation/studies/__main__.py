"""The command line: ``python -m validation.studies``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from validation import report, studies
from validation.studies import data, execution

__all__ = ["RESULTS", "main"]

RESULTS = report.RESULTS / "studies"
_SEEDS, _QUICK_SEEDS = 5, 2


def main(argv: Sequence[str] | None = None) -> int:
    """List, run or report; 1 if a study could not be run. A verdict is a result, whichever it is."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return options.act(parser, options)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "sklearn", "jinja2", "rich"):
            raise
        parser.error(f"{error.name} is missing: pip install 'refbn[studies]'")


def _parser() -> argparse.ArgumentParser:
    parser = report.parser(studies.__doc__, results=False)
    parser.prog = "python -m validation.studies"
    parser.set_defaults(act=_list)
    written = report.parser(None, add_help=False)
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--seeds", type=int, metavar="N", help="how many repetitions: seeds 0 … N−1 (5; quick: 2)")
    settings.add_argument("--quick", action="store_true", help="some ten seconds each; files get -quick in their names")
    settings.add_argument("--data", type=Path, metavar="PATH", help="CIFAR-10 or MNIST files (scikit-learn's digits)")
    commands = parser.add_subparsers(title="commands")
    commands.add_parser("list", help="what there is").set_defaults(act=_list)
    run = commands.add_parser("run", parents=[settings, written], help="run some and tell what they found")
    run.add_argument("ids", nargs="+", metavar="ID", type=_identity, help=f"one of {', '.join(studies.MODULES)}")
    run.set_defaults(act=_run)
    everything = commands.add_parser("all", parents=[settings, written], help="run all; print a table of verdicts")
    everything.add_argument("--processes", type=int, default=2, help="how many run at a time (2)")
    everything.set_defaults(act=_all)
    page = commands.add_parser("report", parents=[written], help="write a page of the newest results in the folder")
    page.add_argument("--quick", action="store_true", help="of quick runs")
    page.set_defaults(act=_report)
    for command in (run, everything, page):
        command.set_defaults(output=RESULTS)
    return parser


def _identity(text: str) -> str:
    if text.upper() not in studies.MODULES:
        raise argparse.ArgumentTypeError(f"no study {text!r}; there are {', '.join(studies.MODULES)}")
    return text.upper()


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Complete the settings, and refuse bad ones before anything is computed."""
    if options.seeds is None:
        options.seeds = _QUICK_SEEDS if options.quick else _SEEDS
    if options.seeds < 1:
        parser.error(f"--seeds: {options.seeds}, expected at least 1")
    if options.data is not None:
        try:
            data.recognize(options.data)
        except data.DataError as error:
            parser.error(f"--data: {error}")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: {options.output} is not a folder")


def _list(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    loaded = map(studies.load, studies.MODULES)
    rows = [(study.id, study.title, study.claim, study.source) for study in loaded]
    report.show("Studies", ("id", "title", "claim", "source"), rows)
    return 0


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    _check(parser, options)
    for identity in options.ids:
        study = studies.load(identity)
        print(f"\n{study.id}: {study.title}\nClaim: {study.claim} ({study.source})")
        with _shown() as shown:
            finding, seconds = execution.carry_out(study, options, shown)
        print(f"Found: {finding.verdict}: {finding.because}")
        rows = [(row.label, str(row), row.expected) for row in finding.numbers]
        report.show(f"{_repetitions(options.seeds)}, {seconds:.0f} s", ("measured", "mean ± spread", "expected"), rows)
        print(f"Figure: {finding.caption}")
    return 0


def _all(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    _check(parser, options)
    if options.processes < 1:
        parser.error(f"--processes: {options.processes}, expected at least 1")
    begun = time.perf_counter()
    settings = argparse.Namespace(**{key: value for key, value in vars(options).items() if key != "act"})
    work = functools.partial(execution.apart, settings)
    told = {
        one.id: one for one in report.spread(work, list(studies.MODULES), processes=options.processes, label="studies")
    }
    rows = [
        (identity, told[identity].verdict, told[identity].because, told[identity].seconds)
        for identity in studies.MODULES
    ]
    took = f"{_repetitions(options.seeds)} each, {time.perf_counter() - begun:.0f} s"
    report.show(f"Studies, {took}", ("id", "verdict", "because", "s"), rows)
    return 1 if any(one.verdict == "failed" for one in told.values()) else 0


def _report(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from validation.studies import report as page

    try:
        path = page.write(options.output, options.date, quick=options.quick)
    except page.NoResultsError as error:
        parser.error(str(error))
    print(f"written: {path.name}")
    return 0


def _repetitions(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


@contextlib.contextmanager
def _shown() -> Iterator[Any]:
    """Yield a progress display, or None where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        yield shown


if __name__ == "__main__":
    sys.exit(main())
