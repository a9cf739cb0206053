"""The oracle against ball arithmetic and against 400 bits: ``python -m validation.enclosures``.

Every output of every pass of every case, as the oracle rounds it, is compared with two evaluations that share no code
with refbn and no arrangement with each other (`validation.formulas`), in python-flint's balls, whose radius bounds
the error rigorously. A result r is right if and only if the exact value lies between the midpoints of r and its
neighbours. So the balls are compared with these two midpoints, which stand for "the enclosure widened by half an ulp":

1. The projector route at `ENCLOSURE_BITS`: the ball lies inside (both its ends round to r), or it reaches over a
   midpoint (r is one of the candidates). Outside must never happen.
2. The statistics route at `DECISION_BITS`, which leaves almost nothing open. What it does leave is settled with more
   bits, or exactly, in FLINT's rationals with one square root: a value that is a midpoint itself must have gone to the
   even neighbour, and an exact zero must be +0.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import flint
import numpy as np
from flint import arb, fmpq

from refbn._formats import FORMATS, Format
from refbn._types import Array
from validation import report
from validation.cases import CASES_HELP, SCALARS, VECTORS, Batch, Channel, batches, parse, stack
from validation.formulas import OPERATIONS, Inputs, Surd, Values, projector_route, statistics_route, surd_root
from validation.passes import run_all

__all__ = [
    "DECISION_BITS",
    "ENCLOSURE_BITS",
    "FINDINGS",
    "Findings",
    "Neighbourhood",
    "check",
    "check_batch",
    "exact_inputs",
    "main",
]

ENCLOSURE_BITS = 160
DECISION_BITS = 400
_MORE_BITS = (2_000, 20_000, 200_000)
_CHUNK = 250

FINDINGS = {
    "cases": "channels, each with its own x, dy, directions, parameters and eps",
    "values": "single results compared",
    "pinned": f"the {ENCLOSURE_BITS}-bit ball lies inside: both its ends round to the result",
    "two": f"the {ENCLOSURE_BITS}-bit ball reaches over a midpoint, the result is one of the two candidates",
    "wide": f"the {ENCLOSURE_BITS}-bit ball is wider than the result's interval (mostly cancellation to zero), and "
    "meets it",
    "decided": f"agrees with the {DECISION_BITS}-bit evaluation",
    "later": f"agrees with an evaluation at {_MORE_BITS[0]} bits or more, or with an exact one",
    "tie": "the exact value is a midpoint and the result its even neighbour",
    "zero": "the exact value is 0 and the result +0",
    "no value": "v + eps = 0: no value exists and the result is NaN (invstd: infinity)",
    "wrong": "disagreements of any kind",
}


@dataclass
class Findings:
    """What was counted, by (format, operation, finding), and a line for each of the first disagreements."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.counts.update(other.counts)
        self.wrong += other.wrong
        return self


class Neighbourhood:
    """The real numbers that round to each of some results of one format."""

    def __init__(self, results: Array, form: Format) -> None:
        flat = results.reshape(-1)
        infinity = np.array(np.inf, flat.dtype)
        overflow = arb(2) ** (form.emax + 1)  # the number that would follow the largest one

        def numbers(values: Array) -> list[arb]:
            return [
                arb(v) if math.isfinite(v) else math.copysign(1, v) * overflow
                for v in values.astype(np.float64).tolist()
            ]

        self.results: list[float] = flat.astype(np.float64).tolist()
        with np.errstate(over="ignore"):
            below, above = np.nextafter(flat, -infinity), np.nextafter(flat, infinity)
        far = arb.pos_inf()
        # An infinite result is put where the next number would be; its far bound lies beyond any number.
        with flint.ctx.workprec(DECISION_BITS):
            centres = numbers(flat)
            self._below = [
                -far if r == -math.inf else c + b for r, c, b in zip(self.results, centres, numbers(below), strict=True)
            ]
            self._above = [
                far if r == math.inf else c + a for r, c, a in zip(self.results, centres, numbers(above), strict=True)
            ]
        self._bits = flat.view(np.dtype(f"u{flat.dtype.itemsize}"))

    def place(self, index: int, ball: arb) -> str:
        """Say whether the ball lies ``inside`` what rounds to the result, ``outside`` of it, or ``across`` a bound."""
        result = self.results[index]
        if math.isnan(result):
            return "outside"
        twice = ball * 2  # the bounds are twice the midpoints: sums of two neighbours, exact in a ball
        if twice < self._below[index] or twice > self._above[index]:
            return "outside"
        if not self._below[index] < twice < self._above[index]:
            return "across"
        if result != 0.0:
            return "inside"
        if math.copysign(1, result) < 0:
            return "inside" if ball < 0 else "outside" if ball >= 0 else "across"
        return "inside" if ball >= 0 else "outside" if ball < 0 else "across"

    def is_wide(self, index: int, ball: arb) -> bool:
        """Tell whether the ball could meet more than two intervals."""
        return not ball.rad() * 4 < self._above[index] - self._below[index]

    def holds(self, index: int, exact: fmpq) -> str:
        """Judge a rational value: ``zero``, ``tie``, ``later`` (plainly inside) or ``wrong``."""
        result = self.results[index]
        if exact == 0:
            return "zero" if result == 0.0 and math.copysign(1, result) > 0 else "wrong"
        bounds = [self._below[index], self._above[index]]
        below, above = (None if not bound.is_finite() else _rational(bound) for bound in bounds)
        if exact * 2 in (below, above):
            return "tie" if self._bits[index] & 1 == 0 and not math.isnan(result) else "wrong"
        inside = (below is None or below < exact * 2) and (above is None or exact * 2 < above)
        signed = result != 0.0 or (exact < 0) == (math.copysign(1, result) < 0)
        return "later" if inside and signed and not math.isnan(result) else "wrong"


def _rational(exact: arb) -> fmpq:
    mantissa, exponent = exact.man_exp()
    return fmpq(mantissa) * fmpq(2) ** int(exponent)


def _inputs(channel: Channel, convert: Callable[[float], Any], root: Callable[[Any], Any]) -> Inputs:
    arrays = {name: channel.arrays[name].astype(np.float64) for name in (*VECTORS, *SCALARS)}
    x = arrays["x"]
    return Inputs(
        **{name: [convert(value) for value in arrays[name].tolist()] for name in VECTORS},
        **{name: convert(float(arrays[name])) for name in SCALARS},
        eps=convert(channel.eps),
        zero=convert(0.0),
        inverse_root=root,
        degenerate=channel.eps == 0 and bool((x == x[0]).all()),
        frozen_degenerate=channel.eps == 0 and bool(arrays["var"] == 0),
    )


def exact_inputs(channel: Channel) -> Inputs:
    """Return a case in rationals and surds."""
    return _inputs(channel, lambda value: fmpq(*value.as_integer_ratio()), surd_root)


class _Truth:
    """All evaluations of one channel, each made when it is first asked for."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._at: dict[int, Values] = {}

    @cached_property
    def enclosures(self) -> Values:
        with flint.ctx.workprec(ENCLOSURE_BITS):
            return projector_route(_inputs(self._channel, arb, arb.rsqrt))

    def decisions(self, bits: int = DECISION_BITS) -> Values:
        if bits not in self._at:
            with flint.ctx.workprec(bits):
                self._at[bits] = statistics_route(_inputs(self._channel, arb, lambda q: 1 / q.sqrt()))
        return self._at[bits]

    @cached_property
    def exact(self) -> Values:
        return statistics_route(exact_inputs(self._channel))

    def judge(self, around: Neighbourhood, index: int, operation: str, output: str, element: int) -> tuple[str, ...]:
        """Return the findings for one value."""

        def value(values: Values) -> Any:
            vector = values[operation][output]
            return None if vector is None else vector[element]

        enclosure = value(self.enclosures)
        if enclosure is None:
            result = around.results[index]
            right = result == math.inf if output == "invstd" else math.isnan(result)
            return ("no value" if right else "wrong",)
        with flint.ctx.workprec(DECISION_BITS):  # the comparisons must not round either
            place = around.place(index, enclosure)
            if place == "outside":
                return ("wrong",)
            first = "pinned" if place == "inside" else "wide" if around.is_wide(index, enclosure) else "two"
            place = around.place(index, value(self.decisions()))
        if place != "across":
            return first, "decided" if place == "inside" else "wrong"
        exact = value(self.exact)
        if isinstance(exact, Surd) and exact.b == 0:
            exact = exact.a
        if isinstance(exact, fmpq):
            return first, around.holds(index, exact)
        for bits in _MORE_BITS:
            with flint.ctx.workprec(bits):
                place = around.place(index, value(self.decisions(bits)))
            if place != "across":
                return first, "later" if place == "inside" else "wrong"
        raise AssertionError(f"{self._channel}: {operation} {output}[{element}] open at {_MORE_BITS[-1]} bits")


def check_batch(
    batch: Batch, results: dict[str, dict[str, Array]], operations: Sequence[str] | None = None
) -> Findings:
    """Judge the results of a batch, as `run_all` returns them."""
    found = Findings()
    form = batch.format
    truths = [_Truth(channel) for channel in batch.channels]
    for operation in operations or OPERATIONS:
        found.counts[form.short, operation, "cases"] += len(truths)
        for output in OPERATIONS[operation]:
            array = results[operation][output].reshape(len(truths), -1)
            around = Neighbourhood(array, form)
            size = array.shape[1]
            for index in range(array.size):
                group, element = divmod(index, size)
                findings = truths[group].judge(around, index, operation, output, element)
                for finding in ("values", *findings):
                    found.counts[form.short, operation, finding] += 1
                if "wrong" in findings:
                    place = f"{operation} {output}[{element}] = {around.results[index]!r}"
                    found.wrong.append(f"{batch.channels[group]}: {place}")
    return found


def check(task: tuple[str, int, range, str]) -> Findings:
    """Judge a backend on the cases of one format: (short name, seed, indices, backend)."""
    short, seed, indices, backend = task
    form = next(form for form in FORMATS if form.short == short)
    found = Findings()
    for batch in batches(form, seed, indices):
        found += check_batch(batch, run_all(backend, batch))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, print a table, write the result; 1 if anything disagrees."""
    parser = report.parser(__doc__)
    parser.add_argument("--cases", type=int, default=11_000, help=CASES_HELP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="exact", help="another one shows how often it does not round correctly")
    parser.add_argument("--case", help="FORMAT:SEED:INDEX: judge this one only and write nothing")
    arguments = parser.parse_args(argv)
    if arguments.case:
        batch = stack([parse(arguments.case)])
        found = check_batch(batch, run_all(arguments.backend, batch))
    else:
        starts = range(0, arguments.cases, _CHUNK)
        tasks = [
            (form.short, arguments.seed, range(start, min(start + _CHUNK, arguments.cases)), arguments.backend)
            for start in starts
            for form in FORMATS
        ]
        found = Findings()
        for part in report.spread(check, tasks, label=f"chunks of {_CHUNK} channels"):
            found += part
    shorts = sorted({short for short, _, _ in found.counts})
    report.show(
        f"Backend {arguments.backend} against enclosures and {DECISION_BITS} bits",
        ("format", "operation", *FINDINGS),
        (
            (short, operation, *(found.counts[short, operation, finding] for finding in FINDINGS))
            for short in shorts
            for operation in OPERATIONS
        ),
    )
    for line in found.wrong[:20]:
        print(line)
    if not arguments.case:
        report.write(
            "enclosures" if arguments.backend == "exact" else f"enclosures-{arguments.backend}",
            arguments,
            {
                "versions": report.versions("python-flint"),
                "seed": arguments.seed,
                "cases": arguments.cases,
                "backend": arguments.backend,
                "bits": {"enclosure": ENCLOSURE_BITS, "decision": DECISION_BITS},
                "findings": FINDINGS,
                "counts": {
                    short: {
                        operation: {finding: found.counts[short, operation, finding] for finding in FINDINGS}
                        for operation in OPERATIONS
                    }
                    for short in shorts
                },
                "wrong": found.wrong[:100],
            },
        )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
