"""What ``import refbn`` costs over importing NumPy, and what it loads: ``python -m validation.import_time``.

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

__all__ = ["LIMIT_MS", "Cost", "added_modules", "foreign", "main", "measure"]

LIMIT_MS = 30.0
"""What the import may cost over NumPy's."""

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
    _run("refbn")  # reads the files once, so that none comes from the disk later
    times: dict[str, list[list[float]]] = {"numpy": [], "refbn": []}
    for _ in range(runs):
        for package, found in times.items():
            found.append(_run(package)[0])
    medians = {
        package: [statistics.median(clock) for clock in zip(*found, strict=True)] for package, found in times.items()
    }
    return {
        clock: Cost(medians["numpy"][place], medians["refbn"][place])
        for place, clock in enumerate(("wall", "processor"))
    }


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
    report.show(
        f"Import: medians in ms (limit {LIMIT_MS:g} over NumPy)",
        ("clock", "numpy", "refbn with NumPy", "over NumPy"),
        ((clock, cost.numpy, cost.refbn, cost.over) for clock, cost in costs.items()),
    )
    print("modules beyond NumPy's:", ", ".join(added))
    print("of these, optional packages:", ", ".join(foreign(added)) or "none")
    report.write(
        "import-time",
        arguments,
        {
            "versions": report.versions(),
            "milliseconds": {clock: {**asdict(cost), "over": cost.over} for clock, cost in costs.items()},
            "limit": LIMIT_MS,
            "modules": added,
        },
    )
    return 1 if costs["wall"].over > LIMIT_MS or foreign(added) else 0


if __name__ == "__main__":
    sys.exit(main())
