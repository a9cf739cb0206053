"""Correct rounding of sums over several groups, whose numbers lie in different fields.

Where gamma is shared by several groups (layer, group and instance norm), its gradient is Σ (a_g + b_g·√N_g): one root
for each group. Square roots of integers whose pairwise products are no squares are linearly independent over the
rationals [1]_. So after roots of one field have been gathered, such a sum is rational if and only if no root is left,
and then, or with a single root, `round_number` decides. With several roots left it is irrational: no tie and no zero,
so enclosing it more and more narrowly comes to an end.

References
----------
.. [1] A. S. Besicovitch, "On the linear independence of fractional powers of integers", Journal of the London
   Mathematical Society 15 (1940).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isqrt

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, Format
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all, round_number, round_pairs

__all__ = ["Sum", "pairs", "round_sum", "rounded"]

Doubles = npt.NDArray[np.float64]

_BITS = 256  # that the first enclosure keeps behind the leading bit of the largest term


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum of numbers, each of a field of its own."""

    terms: tuple[Exact, ...]


def rounded(value: Exact | Sum, form: Format) -> Doubles:
    """Round a number, every element of a vector, or a sum; see `refbn.exact.rounding.round_all`."""
    return np.array([round_sum(value.terms, form)]) if isinstance(value, Sum) else round_all(value, form)


def pairs(value: Exact | Sum) -> tuple[Doubles, Doubles]:
    """Write them as sums of two binary64 numbers; see `refbn.exact.rounding.round_pairs`."""
    if not isinstance(value, Sum):
        return round_pairs(value)
    high = round_sum(value.terms, BINARY64)
    rest = round_sum((*value.terms, Exact.number(-Fraction(high))), BINARY64) if isfinite(high) else 0.0
    return np.array([high]), np.array([rest])


def round_sum(terms: Sequence[Exact], form: Format) -> float:
    """Round a sum of numbers, to nearest, ties to even.

    Parameters
    ----------
    terms : sequence of Exact
        Numbers, each of a field of its own.
    form : Format
        The format.

    Returns
    -------
    float
        As `refbn.exact.rounding.round_number` gives it.
    """
    parts = [term.parts() for term in terms]
    rational = sum((a for a, _, _ in parts), Fraction(0))
    irrational = [(b, radicand) for _, b, radicand in parts if b]
    if len(irrational) > 1:
        rounded = _enclosed(rational, irrational, form, _BITS)
        if rounded is not None:
            return rounded
        irrational = _gathered(irrational)
    if not irrational:
        return round_number(rational, 0, 0, form)
    if len(irrational) == 1:
        return round_number(rational, *irrational[0], form)
    bits = _BITS
    while (rounded := _enclosed(rational, irrational, form, bits)) is None:
        bits *= 2
    return rounded


def _enclosed(rational: Fraction, roots: list[tuple[Fraction, int]], form: Format, bits: int) -> float | None:
    """Round both ends of an enclosure; None if they disagree."""
    size = max(_magnitude(b) + (radicand.bit_length() + 1) // 2 for b, radicand in roots)
    shift = bits - max(size, _magnitude(rational))
    low = high = _floor(rational, shift)
    high += 1
    for b, radicand in roots:
        # b·√N·2^shift = ±√(n²·N)/d·2^shift: its floor is at most 1 below it.
        n, d = abs(b.numerator), b.denominator
        up, down = max(shift, 0), max(-shift, 0)
        root = isqrt(n * n * radicand << 2 * up) // (d << down)
        low, high = (low + root, high + root + 1) if b > 0 else (low - root - 1, high - root)
    unit = Fraction(2) ** -shift
    if (low < 0) != (high < 0) or low == 0 or high == 0:
        return None
    ends = [round_number(end * unit, 0, 0, form) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else None


def _gathered(roots: list[tuple[Fraction, int]]) -> list[tuple[Fraction, int]]:
    """Add up what lies in one field; drop what cancels."""
    fields: list[tuple[Fraction, int]] = []
    for b, radicand in roots:
        for k, (c, other) in enumerate(fields):
            root = isqrt(radicand * other)
            if root * root == radicand * other:  # √N = √(N·M)/M·√M
                fields[k] = (c + b * Fraction(root, other), other)
                break
        else:
            fields.append((b, radicand))
    return [(c, radicand) for c, radicand in fields if c]


def _magnitude(value: Fraction) -> int:
    """Return an e with |value| < 2^e."""
    return value.numerator.bit_length() - value.denominator.bit_length() + 1 if value else 0


def _floor(value: Fraction, shift: int) -> int:
    return (value.numerator << max(shift, 0)) // (value.denominator << max(-shift, 0))
