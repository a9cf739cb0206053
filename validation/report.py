"""What all scripts share: tables, progress, dated JSON results, and a pool of two processes."""

from __future__ import annotations

import argparse
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

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import refbn

__all__ = ["RESULTS", "parser", "show", "spread", "versions", "write"]

RESULTS = Path(__file__).parent / "results"

_console = Console(width=None if sys.stdout.isatty() else 160)
_Task = TypeVar("_Task")
_Part = TypeVar("_Part")


def parser(description: str | None, *, results: bool = True) -> argparse.ArgumentParser:
    """Return a command-line parser; ``results`` adds ``--date`` and ``--output`` of the JSON file."""
    made = argparse.ArgumentParser(
        description=(description or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if results:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        made.add_argument("--date", default=today, help="goes into the result's name")
        made.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    return made


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: text to the left, numbers to the right."""
    rows = [tuple(row) for row in rows]
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        numeric = any(isinstance(row[place], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, refbn, NumPy and further packages."""
    found = {"python": platform.python_version(), "refbn": refbn.__version__}
    return found | {name: importlib.metadata.version(name) for name in ("numpy", *packages)}


def write(name: str, arguments: argparse.Namespace, result: dict[str, Any]) -> Path:
    """Write ``DATE-NAME.json`` and say so."""
    path: Path = arguments.output / f"{arguments.date}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"script": name, "date": arguments.date, **result}, indent=1) + "\n", encoding="utf-8")
    _console.print(f"written: {path.name}")
    return path


def spread(
    work: Callable[[_Task], _Part], tasks: Sequence[_Task], *, processes: int | None = None, label: str = "cases"
) -> Iterator[_Part]:
    """Yield ``work(task)`` as the tasks finish, in several processes; show a progress bar, or a line for each tenth."""
    count = processes or min(os.cpu_count() or 1, 2)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as progress:
        bar = progress.add_task(label, total=len(tasks))
        for done, part in enumerate(_finished(work, tasks, count), 1):
            yield part
            progress.advance(bar)
            if not _console.is_terminal and done * 10 // len(tasks) > (done - 1) * 10 // len(tasks):
                print(f"{label}: {done} of {len(tasks)}", flush=True)


def _finished(work: Callable[[_Task], _Part], tasks: Sequence[_Task], processes: int) -> Iterator[_Part]:
    if processes == 1:
        yield from map(work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(work, tasks)
