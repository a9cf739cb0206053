"""What ``import refbn`` costs over importing NumPy, and what it loads: ``python -m validation.import_time``.

And what its pytest plugin costs, over importing pytest, a run that does not use it.

Each measurement is a fresh interpreter away from the checkout, so that the installed package is measured (an editable
install adds the cost of looking for changes in the C core). The two kinds take turns, so that a slow spell of the
machine meets both. Shown is the difference of the medians, by the clock on the wall, which the limit is about, and in
processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from validation import report

__all__ = ["LIMIT_MS", "PLUGIN_LIMIT_MS", "Cost", "added_modules", "foreign", "main", "measure", "plugin_cost"]

LIMIT_MS = 30.0
"""What the import may cost over NumPy's."""
PLUGIN_LIMIT_MS = 2.0
"""What the plugin's import may cost over pytest's, in processor time."""

_CLOCKS = ("wall", "processor")
_PROGRAM = """
import json, sys, time
wall, processor = time.perf_counter(), time.process_time()
import {package}
took = [time.perf_counter() - wall, time.process_time() - processor]
print(json.dumps([took, sorted(sys.modules)]))
"""


@dataclass(frozen=True)
class Cost:
    """Medians in milliseconds of one clock; `refbn` includes NumPy."""

    numpy: float
    refbn: float

    @property
    def over(self) -> float:
        """What refbn costs over NumPy."""
        return self.refbn - self.numpy


def _run(package: str) -> tuple[list[float], set[str]]:
    program = [sys.executable, "-c", _PROGRAM.format(package=package)]
    done = subprocess.run(program, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return [1000.0 * s for s in seconds], set(modules)


def measure(runs: int = 15) -> dict[str, Cost]:
    """Return the medians over some runs of each kind, by the ``wall`` and the ``processor`` clock."""
    numpy, own = _medians("numpy", "refbn", runs)
    return {clock: Cost(numpy[place], own[place]) for place, clock in enumerate(_CLOCKS)}


def plugin_cost(runs: int = 15) -> dict[str, float]:
    """Return what importing the plugin's first half costs after pytest, as pytest does in every run, by both clocks."""
    without, with_it = _medians("pytest", "pytest, _refbn_pytest", runs)
    return {clock: with_it[place] - without[place] for place, clock in enumerate(_CLOCKS)}


def _medians(first: str, second: str, runs: int) -> list[list[float]]:
    """Return the medians of both clocks for two kinds of import, which take turns."""
    for packages in (first, second):
        _run(packages)  # reads the files once, so that none comes from the disk later
    times: list[tuple[list[float], list[float]]] = [(_run(first)[0], _run(second)[0]) for _ in range(runs)]
    return [[statistics.median(clock) for clock in zip(*kind, strict=True)] for kind in zip(*times, strict=True)]


def added_modules() -> list[str]:
    """Return the modules that refbn loads and NumPy does not."""
    return sorted(_run("refbn")[1] - _run("numpy")[1])


def foreign(modules: Sequence[str]) -> list[str]:
    """Return those that are neither refbn's, nor NumPy's, nor the standard library's."""
    known = {"refbn", "numpy", *sys.stdlib_module_names}
    return [name for name in modules if name.partition(".")[0] not in known]


def main(argv: Sequence[str] | None = None) -> int:
    """Print and write the result; 1 if the import is too slow or loads something optional."""
    parser = report.parser(__doc__)
    parser.add_argument("--runs", type=int, default=25, help="fresh interpreters of each kind, at least 15")
    arguments = parser.parse_args(argv)
    costs, added = measure(max(arguments.runs, 15)), added_modules()
    plugin = plugin_cost(max(arguments.runs, 15))
    report.show(
        f"Import: medians in ms (limit {LIMIT_MS:g} over NumPy)",
        ("clock", "numpy", "refbn with NumPy", "over NumPy"),
        ((clock, cost.numpy, cost.refbn, cost.over) for clock, cost in costs.items()),
    )
    print(f"pytest plugin, unused: {plugin['wall']:.2f} ms, {plugin['processor']:.2f} ms of processor time")
    print("modules beyond NumPy's:", ", ".join(added))
    print("of these, optional packages:", ", ".join(foreign(added)) or "none")
    report.write(
        "import-time",
        arguments,
        {
            "versions": report.versions(),
            "milliseconds": {clock: {**asdict(cost), "over": cost.over} for clock, cost in costs.items()},
            "limit": LIMIT_MS,
            "plugin": {**plugin, "limit": PLUGIN_LIMIT_MS},
            "modules": added,
        },
    )
    dear = costs["wall"].over > LIMIT_MS or plugin["processor"] > PLUGIN_LIMIT_MS
    return 1 if dear or foreign(added) else 0


if __name__ == "__main__":
    sys.exit(main())
