"""What all scripts share: tables, progress, dated JSON results, and a pool of two processes."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import refbn

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ModuleNotFoundError:  # it is an extra: without it tables are plain text
    _console = None
else:
    _console = Console(width=None if sys.stdout.isatty() else 160)

__all__ = ["RESULTS", "parser", "plain", "progress", "show", "spread", "threads", "versions", "write"]

RESULTS = Path(__file__).parent / "results"

_Task = TypeVar("_Task")
_Part = TypeVar("_Part")


def parser(description: str | None, *, results: bool = True, add_help: bool = True) -> argparse.ArgumentParser:
    """Return a command-line parser; ``results`` adds ``--date`` and ``--output`` of the JSON file."""
    made = argparse.ArgumentParser(
        description=(description or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        add_help=add_help,  # not in a parent of subcommands
    )
    if results:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        made.add_argument("--date", default=today, help="goes into the result's name")
        made.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    return made


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: text to the left, numbers to the right."""
    rows = [tuple(row) for row in rows]
    if _console is None:
        print(plain(title, columns, rows))
        return
    table = Table(title=title, title_justify="left")
    for column, numeric in zip(columns, _numeric(columns, rows), strict=True):
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _console.print(table)


def plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return what `show` prints where rich is not installed."""
    cells = [[column.replace("\n", " ") for column in columns], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if numeric else "<" for numeric in _numeric(columns, rows)]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip() for line in cells)
    return "\n".join((title, *lines))


def _numeric(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[bool]:
    return [any(isinstance(row[place], (int, float)) for row in rows) for place in range(len(columns))]


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, refbn, NumPy and further packages."""
    found = {"python": platform.python_version(), "refbn": refbn.__version__}
    return found | {name: importlib.metadata.version(name) for name in ("numpy", *packages)}


def threads(count: int) -> contextlib.AbstractContextManager[Any]:
    """Limit refbn to some threads, where it has `num_threads`."""
    limit = getattr(refbn, "num_threads", None)
    return contextlib.nullcontext() if limit is None else limit(count)


def write(name: str, arguments: argparse.Namespace, result: dict[str, Any]) -> Path:
    """Write ``DATE-NAME.json`` and say so."""
    path: Path = arguments.output / f"{arguments.date}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"script": name, "date": arguments.date, **result}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.name}")
    return path


def spread(
    work: Callable[[_Task], _Part], tasks: Sequence[_Task], *, processes: int | None = None, label: str = "cases"
) -> Iterator[_Part]:
    """Yield ``work(task)`` as the tasks finish, in several processes; show a progress bar, or a line for each tenth."""
    count = processes or min(os.cpu_count() or 1, 2)
    yield from progress(_finished(work, tasks, count), len(tasks), label)


def progress(parts: Iterable[_Part], total: int, label: str) -> Iterator[_Part]:
    """Yield the parts; show a progress bar, or a line for each tenth."""
    if _console is not None and _console.is_terminal:
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_console) as shown:
            bar = shown.add_task(label, total=total)
            for part in parts:
                yield part
                shown.advance(bar)
        return
    for done, part in enumerate(parts, 1):
        yield part
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{label}: {done} of {total}", flush=True)


def _finished(work: Callable[[_Task], _Part], tasks: Sequence[_Task], processes: int) -> Iterator[_Part]:
    if processes == 1:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(work, tasks)
