"""The stated error bounds against the oracle: ``python -m validation.bounds``.

On the cases of `validation.enclosures`, each result of each backend is compared with the oracle's exact value. The
textbook is asked for binary64, its own arithmetic, so nothing is rounded after it. Native and numba write the case's
format, and their arithmetic (u, depth) is what they state themselves; the final rounding to that format may
add half the wider of the two gaps beside the result. What remains of the error, over the bound, is the *fraction*: it
must not exceed 1, and it tells how much of the bound was ever needed. 0 means that the results were never farther
off than one rounding explains.

Where a bound's preconditions do not hold (something overflows or vanishes on the way) it is infinite, nothing is
claimed, and the channel counts as *outside*. Where v + ε = 0, every result must be NaN (invstd: infinity).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import backends
from refbn._formats import BINARY64, FORMATS, Format
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
    """Counts by (format, backend, operation, output, count), the largest fraction by the first four, violations."""

    counts: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)
    largest: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.counts.update(other.counts)
        for key, value in other.largest.items():
            self.largest[key] = max(value, self.largest.get(key, 0.0))
        self.violations += other.violations
        return self


def fractions(result: Array, exact: tuple[Array, Array], bound: Array, *, rounded: bool) -> npt.NDArray[np.float64]:
    """Return how much of the bound each error uses, after the final rounding's share (if `rounded`) is taken off.

    An infinite result stands for the number that would follow the largest one.
    """
    form = next(form for form in FORMATS if form.dtype == result.dtype)
    value = result.astype(np.float64)
    overflow = np.isinf(value)
    with np.errstate(over="ignore", invalid="ignore"):
        infinity = np.array(np.inf, result.dtype)
        neighbours = np.nextafter(result, infinity), np.nextafter(result, -infinity)
        gap = np.maximum(*(abs(n.astype(np.float64) - value) for n in neighbours))
    halves = 0.5 * np.where(np.isfinite(gap), gap, 2.0 ** (form.emax - form.precision + 1)) if rounded else 0.0
    answer = np.zeros(value.shape)
    columns = np.broadcast_arrays(value, exact[0], exact[1], bound, halves, overflow)
    # Any shortcut in binary64 would blur errors far below an ulp: subtract exactly, element by element.
    for place, (computed, hi, lo, limit, half, infinite) in enumerate(
        zip(*(column.ravel().tolist() for column in columns), strict=True)
    ):
        if infinite:
            threshold = Fraction(2) ** (form.emax + 1) - Fraction(2) ** (form.emax - form.precision)
            reached = (Fraction(hi) + Fraction(lo)) * (1 if computed > 0 else -1)
            error = max(threshold - reached, Fraction(0))
        else:
            error = max(abs(Fraction(computed) - Fraction(hi) - Fraction(lo)) - Fraction(half), Fraction(0))
        if error:
            answer.flat[place] = float(error / Fraction(limit)) if limit else np.inf
    return answer


def _arithmetic(backend: str, form: Format) -> dict[str, Any]:
    """Return u and depth as the backend states them; the textbook's are the bounds' defaults."""
    if backend == "reference":
        return {}
    module: Any = backends.load(backend)
    u, depth = module.arithmetic((form,))
    return {"u": u, "depth": depth}


def check_batch(batch: Batch, names: Sequence[str]) -> Findings:
    """Compare some backends with the oracle on a batch."""
    found = Findings()
    exact = exact_all(batch)
    for backend in names:
        textbook = backend == "reference"
        results = run_all(backend, batch, BINARY64.dtype if textbook else None)
        bounds = bound_all(batch, **_arithmetic(backend, batch.format))
        for operation, outputs in OPERATIONS.items():
            for output in outputs:
                result, pair = results[operation][output], exact[operation][output]
                bound = bounds[operation][output]
                key = (batch.format.short, backend, operation, output)
                no_value = np.isnan(pair[0])
                wanted = np.isposinf(result) if output == "invstd" else np.isnan(result.astype(np.float64))
                wrong = no_value & ~wanted
                outside = ~no_value & ~np.isfinite(bound)
                inside = ~no_value & np.isfinite(bound)
                wrong |= inside & np.isnan(result.astype(np.float64))
                used = np.zeros(result.shape)
                ask = inside & ~wrong
                used[ask] = fractions(result[ask], (pair[0][ask], pair[1][ask]), bound[ask], rounded=not textbook)
                wrong |= used > 1.0
                for count, where in (("outside", outside), ("no value", no_value & wanted), ("violations", wrong)):
                    found.counts[(*key, count)] += int(where.sum())
                found.counts[(*key, "values")] += result.size
                found.largest[key] = max(float(used.max(initial=0.0)), found.largest.get(key, 0.0))
                for place in np.argwhere(wrong)[:3]:
                    channel = batch.channels[place[0]]
                    where_in = f"{output}{list(map(int, place[1:]))}"
                    text = f"{result[tuple(place)]!r}, exact {pair[0][tuple(place)]!r}, {used[tuple(place)]:.3g} bounds"
                    found.violations.append(f"{channel}: {backend} {operation} {where_in} = {text}")
    return found


def check(task: tuple[str, int, range, tuple[str, ...]]) -> Findings:
    """Compare backends on the cases of one format: (short name, seed, indices, backends)."""
    short, seed, indices, names = task
    form = next(form for form in FORMATS if form.short == short)
    found = Findings()
    for batch in batches(form, seed, indices):
        found += check_batch(batch, names)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, print a table, write the result; 1 if a bound is violated."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", type=int, default=11_000, help=CASES_HELP)
    parser.add_argument("--seed", type=int, default=0)
    bounded = [name for name in backends.available() if name != "exact"]
    parser.add_argument("--backends", nargs="+", default=bounded, help="whom to compare with the oracle")
    arguments = parser.parse_args(argv)
    tasks = [
        (form.short, arguments.seed, range(start, min(start + _CHUNK, arguments.cases)), tuple(arguments.backends))
        for start in range(0, arguments.cases, _CHUNK)
        for form in FORMATS
    ]
    found = Findings()
    for part in report.spread(check, tasks, label=f"chunks of {_CHUNK} channels"):
        found += part
    report.show(
        "Largest fraction of the stated bound that an error ever used",
        ("operation", "output", *(f"{b} {form.short}" for b in arguments.backends for form in FORMATS)),
        (
            (
                operation,
                output,
                *(found.largest[f.short, b, operation, output] for b in arguments.backends for f in FORMATS),
            )
            for operation, outputs in OPERATIONS.items()
            for output in outputs
        ),
    )
    totals = [
        (
            form.short,
            backend,
            *(
                sum(n for key, n in found.counts.items() if key[:2] == (form.short, backend) and key[4] == count)
                for count in COUNTS
            ),
        )
        for backend in arguments.backends
        for form in FORMATS
    ]
    report.show("What was compared", ("format", "backend", *COUNTS), totals)
    for line in found.violations[:20]:
        print(line)
    report.write(
        "bounds",
        arguments,
        {
            "versions": report.versions(*(("numba",) if "numba" in arguments.backends else ())),
            "seed": arguments.seed,
            "cases": arguments.cases,
            "counts": COUNTS,
            "formats": {
                form.short: {
                    backend: {
                        "arithmetic": _arithmetic(backend, form) or "binary64, as bounds states it",
                        "outputs": {
                            f"{operation} {output}": {
                                "largest fraction": found.largest[form.short, backend, operation, output],
                                **{c: found.counts[form.short, backend, operation, output, c] for c in COUNTS},
                            }
                            for operation, outputs in OPERATIONS.items()
                            for output in outputs
                        },
                    }
                    for backend in arguments.backends
                }
                for form in FORMATS
            },
            "violations": found.violations[:100],
        },
    )
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
