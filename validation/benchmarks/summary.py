"""Ratios of medians, their geometric means, and the history of these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refbn._formats import FORMATS
from validation.benchmarks.cases import Case

__all__ = [
    "RATIOS",
    "append",
    "changes",
    "flat",
    "geometric_mean",
    "last",
    "means",
    "means_table",
    "quickest",
    "ratio",
    "row",
    "rows_table",
    "slower",
]

RATIOS = {
    "refbn/PyTorch": ("refbn", "PyTorch"),
    "refbn/JAX": ("refbn", "JAX"),
    "refbn/copy": ("refbn", "copy"),
    "out=/PyTorch": ("refbn out=", "PyTorch out="),
    "out=/copyto": ("refbn out=", "copyto"),
}
"""A contender of refbn's over another one, or over a library's quickest (with ``out=``: of all its ways)."""

_GROUP = ("threads", "pass", "dtype", "size")

Record = Mapping[str, Any]
Timings = Mapping[str, Mapping[str, Any]]


def quickest(timings: Timings, name: str) -> str | None:
    """Return the contender of this name, or the one with the lowest median of a library; None without any.

    Ways that write to given arrays count if the name ends with "out=", as in "PyTorch out=": what allocates its
    results is compared with what does so too.
    """
    if name in timings:
        return name
    library = name.removesuffix(" out=")
    ways = [way for way, timing in timings.items() if timing["library"] == library]
    if library == name:
        ways = [way for way in ways if not way.endswith("out=")]
    return min(ways, key=lambda way: float(timings[way]["median"]), default=None)


def ratio(timings: Timings, over: str, under: str) -> float | None:
    """Return by what factor one takes longer than the other, None if one is missing."""
    theirs = quickest(timings, under)
    if over not in timings or theirs is None:
        return None
    return float(timings[over]["median"] / timings[theirs]["median"])


def slower(timings: Timings) -> list[str]:
    """Name the libraries that refbn is slower than, with a question mark if the middle halves of the times overlap."""
    found = []
    for library in ("PyTorch", "JAX"):
        way = quickest(timings, library)
        if way is not None and timings["refbn"]["median"] > timings[way]["median"]:
            found.append(library + ("?" if timings["refbn"]["q1"] <= timings[way]["q3"] else ""))
    return found


def row(record: Record) -> dict[str, Any]:
    """Return what a table and the means say of a record: the case, its ratios, and whom refbn is slower than."""
    case = Case(tuple(record["shape"]), record["layout"], record["dtype"])
    timings = record["timings"]
    return {
        **{key: record[key] for key in ("threads", "pass", "shape", "layout", "dtype")},
        "size": case.size,
        "ratios": {name: ratio(timings, *pair) for name, pair in RATIOS.items()},
        "slower": slower(timings),
    }


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of those that are there, None without any."""
    logarithms = [math.log(value) for value in values if value is not None]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def means(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the geometric means for each number of threads, pass, format and size of the cases."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for one in rows:
        groups.setdefault(tuple(one[key] for key in _GROUP), []).append(one)
    return [
        {
            **dict(zip(_GROUP, group, strict=True)),
            "cases": len(members),
            "ratios": {name: geometric_mean(one["ratios"][name] for one in members) for name in RATIOS},
            "slower": sum(any(who.startswith("PyTorch") for who in one["slower"]) for one in members),
        }
        for group, members in groups.items()
    ]


def flat(found: Sequence[Record]) -> dict[str, float | None]:
    """Return the means by names like ``1 threads, forward, float32, large: refbn/PyTorch``, to four digits."""
    return {
        ", ".join((f"{one['threads']} threads", one["pass"], one["dtype"], f"{one['size']}: {name}")): _short(value)
        for one in found
        for name, value in one["ratios"].items()
    }


def rows_table(records: Sequence[Record]) -> tuple[list[str], list[list[object]]]:
    """Return columns and rows, medians in milliseconds: one row for each record."""
    head = ["threads", "pass", "dtype", "shape", "refbn", "out=", "PyTorch", "JAX"]
    table: list[list[object]] = []
    for record in records:
        made, timings = row(record), record["timings"]
        shown = [quickest(timings, name) for name in ("refbn", "refbn out=", "PyTorch", "JAX")]
        short = next(form.short for form in FORMATS if form.name == record["dtype"])
        shape = "x".join(map(str, record["shape"])) + (":last" if record["layout"] == "last" else "")
        table.append(
            [
                *(record["threads"], record["pass"], short, shape),
                *(None if way is None else float(1000 * timings[way]["median"]) for way in shown),
                *made["ratios"].values(),
                " ".join(made["slower"]),
            ]
        )
    ratios = (name.removeprefix("refbn").replace("=/", "=\n/") for name in RATIOS)
    return [*head, *ratios, "slower than"], _dashed(table)


def means_table(found: Sequence[Record]) -> tuple[list[str], list[list[object]]]:
    """Return columns and rows of the geometric means."""
    table = [[*(one[key] for key in (*_GROUP, "cases")), *one["ratios"].values(), one["slower"]] for one in found]
    return [*_GROUP, "cases", *RATIOS, "slower than PyTorch"], _dashed(table)


def _dashed(table: Iterable[Iterable[object]]) -> list[list[object]]:
    return [["–" if value is None else value for value in line] for line in table]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def last(history: Path) -> dict[str, Any] | None:
    """Return the newest entry of a history, None if there is none."""
    lines = history.read_text(encoding="utf-8").split("\n") if history.exists() else []
    entries = [line for line in lines if line]
    return dict(json.loads(entries[-1])) if entries else None


def append(history: Path, entry: Record) -> None:
    """Add an entry, as one line."""
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def changes(previous: Record, current: Record) -> Iterator[tuple[str, float, float, float]]:
    """Yield (what, before, now, now/before) for each mean that both entries have."""
    for key, now in current["means"].items():
        before = previous["means"].get(key)
        if before is not None and now is not None:
            yield key, before, now, now / before
