"""The command line: ``python -m validation.benchmarks``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from validation import benchmarks, report
from validation.benchmarks import cases, machine, summary, worker

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 if two contenders do not compute the same."""
    options = _options(argv)
    about = machine.describe()
    load = machine.Load()
    libraries: list[dict[str, Any]] = []
    total = len(options.threads) * len(options.passes) * len(cases.cases(options.shapes, options.dtypes))
    records = list(report.progress(_records(options, libraries), total, "cases and passes"))
    others = load.others()
    rows = [summary.row(record) for record in records]
    found = summary.means(rows)

    medians = "Medians in ms, and refbn's over the others' (below 1: refbn is faster; ?: within the noise)"
    report.show(medians, *summary.rows_table(records))
    report.show("Geometric means of the ratios", *summary.means_table(found))
    for record in records:
        where = f"{record['pass']} {record['dtype']} {record['shape']} channels {record['layout']}"
        if record["skipped"]:
            print(f"left out: {where}: {record['skipped']}")
        if not record["agree"]:
            print(f"results differ: {where}: {record['differences']}")
    if others is not None and others > machine.QUIET:
        print(f"note: other work took {others:.0%} of the processor; measure again on a quiet machine")
    if options.history:
        _follow(options, str(about["processor"]), others, found)
    report.write(
        "benchmarks",
        options,
        {
            "machine": about,
            "other work": others,
            "processes": libraries,
            "seed": options.seed,
            "geometric means": found,
            "records": [{**one, **record} for record, one in zip(records, rows, strict=True)],
        },
    )
    return 0 if all(record["agree"] for record in records) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = report.parser(benchmarks.__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small shapes, unless --shapes says otherwise")
    parser.add_argument("--passes", nargs="+", choices=cases.PASSES, default=list(cases.PASSES))
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="SHAPE",
        help="like 64x256, or 32x64x7x7 (both memory orders), or 32x64x7x7:last (channels last); several by default",
    )
    parser.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, default=["float32", "float64"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rivals", nargs="*", choices=worker.RIVALS, default=list(worker.RIVALS))
    parser.add_argument("--rounds", type=int, default=9, help="at least; quick passes get up to three times as many")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs and of the order of the turns")
    parser.add_argument("--history", type=Path, help="file that gets a line with the geometric means")
    options = parser.parse_args(argv)
    options.shapes = options.shapes or list(cases.QUICK if options.quick else cases.SHAPES)
    try:
        cases.cases(options.shapes, options.dtypes)
    except ValueError as error:
        parser.error(str(error))
    if options.rounds < 2 or min(options.threads) < 1:
        parser.error("at least two rounds and one thread")
    return options


def _records(options: argparse.Namespace, libraries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the records of one process after another; what each says of its libraries goes to ``libraries``."""
    wanted = {key: getattr(options, key) for key in ("shapes", "dtypes", "passes", "rivals", "rounds", "seed")}
    for threads in options.threads:
        records = worker.launch({**wanted, "threads": threads})
        libraries.append(next(records))
        yield from records


def _follow(options: argparse.Namespace, processor: str, others: float | None, found: list[dict[str, Any]]) -> None:
    """Append to the history, and show what has changed."""
    entry = {
        "date": options.date,
        "commit": machine.commit(),
        "processor": processor,
        "shapes": options.shapes,
        "other work": others,
        "means": summary.flat(found),
    }
    previous = summary.last(options.history)
    summary.append(options.history, entry)
    if previous is None:
        print("the history begins")
        return
    for key in ("processor", "shapes"):
        if previous[key] != entry[key]:
            print(f"note: the previous entry has other {key}: {previous[key]}")
    report.show(
        f"Geometric means since {previous['date']} ({previous['commit']})",
        ("mean", "before", "now", "now/before"),
        summary.changes(previous, entry),
    )


if __name__ == "__main__":
    sys.exit(main())
