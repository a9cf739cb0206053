"""Mutants of the textbook against the audit and against frameworks' own checks: run them, write the table, show one."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from refbn.audit.runner import FAILURES
from validation import report
from validation.mutants import judge, table
from validation.mutants.generate import mutants, original
from validation.mutants.work import LETTERS, Row, audits, checked, checks, judged, work

__all__ = ["main"]


def _run(options: argparse.Namespace) -> int:
    from validation.mutants.checks import TOOLS

    chosen = [m for m in mutants() if m.id.startswith(options.only)]
    rows: dict[str, Row] = {
        m.id: {"id": m.id, "line": m.line, "operator": m.operator, "before": m.before, "after": m.after} for m in chosen
    }
    for part in report.spread(work, audits(chosen), processes=options.processes, label="audits"):
        for row in part:
            rows[row["id"]] |= row
    different = [m for m in chosen if "crashes" not in rows[m.id] and table.found(rows[m.id], "dense")]
    parts = checks(different, options.checks_every)
    for part in report.spread(work, parts, processes=options.processes, label="parts of the frameworks' checks"):
        for row in part:
            rows[row["id"]] |= row
    result = {
        "versions": report.versions("torch", "jax"),
        "checks_every": options.checks_every,
        "largest_case": judge.LARGEST,
        "cases": {depth: len(judge.cases(depth)) for depth in ("quick", "full")} | {"dense": len(judge.dense())},
        "tools": TOOLS,
        "letters": {letter: word for word, letter in LETTERS.items()},
        "mutants": list(rows.values()),
    }
    report.write("mutants", options, result)
    score = table.Score(result)
    survivors = [row for row in score.different if table.found(row, "full") == ""]
    report.show(
        f"{len(rows)} mutants, {len(score.different)} of which change a result",
        table.SUMMARY,
        score.summary(),
    )
    for row in survivors:
        print(f"survives the full audit: {row['id']}: {row['dense']}")
    return 1 if survivors else 0


def _table(options: argparse.Namespace) -> int:
    text = table.render(json.loads(table.newest().read_text(encoding="utf-8")))
    options.docs.write_text(text, encoding="utf-8")
    print(f"written: {options.docs.name}")
    return 0


def _show(options: argparse.Namespace) -> int:
    found = [m for m in mutants() if m.id == options.id]
    if not found:
        print(f"no mutant {options.id!r}", file=sys.stderr)
        return 2
    mutant = found[0]
    before, after = original(mutant.function).splitlines(), mutant.source.splitlines()
    print("\n".join(difflib.unified_diff(before, after, f"{mutant.module}.py:{mutant.line}", mutant.id, lineterm="")))
    rows = judged(found) + ([] if options.no_checks else checked(found))
    for row in rows:
        for key, value in row.items():
            print(f"{key}: {value}")
    return 1 if any(table.found(row, "dense") in FAILURES for row in rows) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m validation.mutants", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", parents=[report.parser(None, add_help=False)], help="ask all tools all mutants")
    run.add_argument("--only", default="", help="begin of the mutants' ids, such as a function's name")
    run.add_argument("--checks-every", type=int, default=1, metavar="N", help="frameworks' checks on every Nth mutant")
    run.add_argument("--processes", type=int, default=None, help="2 unless there is only one core")
    run.set_defaults(command=_run)
    written = commands.add_parser("table", help="write docs/mutation.md from the newest result")
    written.add_argument("--docs", type=Path, default=table.DOCS)
    written.set_defaults(command=_table)
    show = commands.add_parser("show", help="one mutant: the change, and what everyone says of it, asked now")
    show.add_argument("id")
    show.add_argument("--no-checks", action="store_true", help="the audit alone")
    show.set_defaults(command=_show)
    options = parser.parse_args(arguments)
    return int(options.command(options))


if __name__ == "__main__":
    sys.exit(main())
