"""The textbook's stated error bounds against the oracle: ``python -m validation.bounds``.

The textbook is the one backend that is not correctly rounded (for the others: `validation.correct_rounding`). On the
cases of `validation.enclosures` it is asked for binary64, its own arithmetic, so nothing is rounded after it. Its error
against the oracle's exact value, over the bound, is the *fraction*: it must not exceed 1, and it tells how much of the
bound was ever needed.

Where a bound's preconditions do not hold (something overflows or vanishes on the way) it is infinite, nothing is
claimed, and the channel counts as *outside*. Where v + ε = 0, every result must be NaN (invstd: infinity).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, FORMATS
from refbn._types import Array
from validation import report
from validation.cases import CASES_HELP, Batch, batches
from validation.formulas import OPERATIONS
from validation.passes import bound_all, exact_all, run_all

__all__ = ["COUNTS", "Findings", "check", "fractions", "main"]

_CHUNK = 500

COUNTS = {
    "values": "single results compared",
    "outside": "results of channels that break the bound's preconditions: nothing is claimed",
    "no value": "v + eps = 0: the result is NaN (invstd: infinity)",
    "violations": "errors above the bound, or an answer where no value exists",
}


@dataclass
class Findings:
    """Counts by (format, operation, output, count), the largest fraction by the first three, violations."""

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    largest: dict[tuple[str, str, str], float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.counts.update(other.counts)
        for key, value in other.largest.items():
            self.largest[key] = max(value, self.largest.get(key, 0.0))
        self.violations += other.violations
        return self


def fractions(result: Array, exact: tuple[Array, Array], bound: Array) -> npt.NDArray[np.float64]:
    """Return how much of the bound each error uses; infinitely much where the result is infinite."""
    answer = np.zeros(result.shape)
    columns = np.broadcast_arrays(result, exact[0], exact[1], bound)
    # Any shortcut in binary64 would blur errors far below an ulp: subtract exactly, element by element.
    for place, (computed, hi, lo, limit) in enumerate(
        zip(*(column.ravel().tolist() for column in columns), strict=True)
    ):
        if np.isinf(computed):
            answer.flat[place] = np.inf
        elif error := abs(Fraction(computed) - Fraction(hi) - Fraction(lo)):
            answer.flat[place] = float(error / Fraction(limit)) if limit else np.inf
    return answer


def check_batch(batch: Batch) -> Findings:
    """Compare the textbook with the oracle on a batch."""
    found = Findings()
    exact, bounds = exact_all(batch), bound_all(batch)
    results = run_all("reference", batch, BINARY64.dtype)
    for operation, outputs in OPERATIONS.items():
        for output in outputs:
            result, pair = results[operation][output], exact[operation][output]
            bound = bounds[operation][output]
            key = (batch.format.short, operation, output)
            no_value = np.isnan(pair[0])
            wanted = np.isposinf(result) if output == "invstd" else np.isnan(result)
            wrong = no_value & ~wanted
            outside = ~no_value & ~np.isfinite(bound)
            inside = ~no_value & np.isfinite(bound)
            wrong |= inside & np.isnan(result)
            used = np.zeros(result.shape)
            ask = inside & ~wrong
            used[ask] = fractions(result[ask], (pair[0][ask], pair[1][ask]), bound[ask])
            wrong |= used > 1.0
            for count, where in (("outside", outside), ("no value", no_value & wanted), ("violations", wrong)):
                found.counts[(*key, count)] += int(where.sum())
            found.counts[(*key, "values")] += result.size
            found.largest[key] = max(float(used.max(initial=0.0)), found.largest.get(key, 0.0))
            for place in np.argwhere(wrong)[:3]:
                channel = batch.channels[place[0]]
                where_in = f"{output}{list(map(int, place[1:]))}"
                text = f"{result[tuple(place)]!r}, exact {pair[0][tuple(place)]!r}, {used[tuple(place)]:.3g} bounds"
                found.violations.append(f"{channel}: {operation} {where_in} = {text}")
    return found


def check(task: tuple[str, int, range]) -> Findings:
    """Compare on the cases of one format: (short name, seed, indices)."""
    short, seed, indices = task
    form = next(form for form in FORMATS if form.short == short)
    found = Findings()
    for batch in batches(form, seed, indices):
        found += check_batch(batch)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, print a table, write the result; 1 if a bound is violated."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", type=int, default=11_000, help=CASES_HELP)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tasks = [
        (form.short, arguments.seed, range(start, min(start + _CHUNK, arguments.cases)))
        for start in range(0, arguments.cases, _CHUNK)
        for form in FORMATS
    ]
    found = Findings()
    for part in report.spread(check, tasks, label=f"chunks of {_CHUNK} channels"):
        found += part
    report.show(
        "Largest fraction of the stated bound that an error ever used",
        ("operation", "output", *(form.short for form in FORMATS)),
        (
            (operation, output, *(found.largest[form.short, operation, output] for form in FORMATS))
            for operation, outputs in OPERATIONS.items()
            for output in outputs
        ),
    )
    totals = [
        (
            form.short,
            *(sum(n for key, n in found.counts.items() if key[::3] == (form.short, count)) for count in COUNTS),
        )
        for form in FORMATS
    ]
    report.show("What was compared", ("format", *COUNTS), totals)
    for line in found.violations[:20]:
        print(line)
    report.write(
        "bounds",
        arguments,
        {
            "versions": report.versions(),
            "seed": arguments.seed,
            "cases": arguments.cases,
            "counts": COUNTS,
            "formats": {
                form.short: {
                    f"{operation} {output}": {
                        "largest fraction": found.largest[form.short, operation, output],
                        **{count: found.counts[form.short, operation, output, count] for count in COUNTS},
                    }
                    for operation, outputs in OPERATIONS.items()
                    for output in outputs
                }
                for form in FORMATS
            },
            "violations": found.violations[:100],
        },
    )
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
