"""Numbers with a proved bound of their error: pairs of binary64 with a radius, whole blocks of groups at a time.

A `Ball` is hi + lo ± radius. It speaks the number protocol of `refbn.exact.program`, so the forward definition, the
series and the tape enclose every result of every pass, and nothing is bounded by hand. What both ends of an enclosure
round to is the correctly rounded result; what they disagree on goes to `Exact`.

**Assumptions.** Binary64 arithmetic that rounds to nearest, ties to even, with subnormal numbers. u = 2^−53.

**Error bounds.** Each operation works on the pairs alone, adds the bound of its own error to what the operands'
radii become, and rounds the radius upwards: a radius is a sum or product of a few numbers that are not negative,
so its own rounding errors are below 8·u of it, and `_UP` = 1 + 2^−48 covers them.

A1. *Sum*: AccurateDWPlusDW of [1]_ has a relative error below 3u²/(1 − 4u). 4u² of the result covers it, since the
    result is the exact sum up to that error. Additions do not underflow.
A2. *Product*: DWTimesDW1 of [1]_ (with Dekker's product, no FMA) has a relative error below 7u². 8u² of the result
    covers it. If a product is tiny then Dekker's partial products underflow, each by less than 2^−1074;
    there are fewer than 16 of them, and `_TINY` = 2^−1068 covers them where the product is below 2^−900 and no factor
    is zero. Radii are multiplied out: |a·b − A·B| ≤ |a|·β + |b|·α + α·β for balls a ± α, b ± β.
A3. *Inverse*: y = 1/b in binary64 has the residual e = 1 − b·y, which is computed as a ball. 1/b = y/(1 − e), and of
    the series y·(1 + e + e² + …) what follows e² is at most y·|e|³/(1 − |e|), below 2·y·|e|³ for |e| ≤ 1/2.
A4. *Root*: with w ≈ 1/√q and e = 1 − q·w², √q = q·w·(1 − e)^(−1/2) = q·w·(1 + e/2 + 3e²/8 + …); the coefficients
    decrease, so what follows e² is at most q·w·|e|³ for |e| ≤ 1/2 (5/16 of the geometric series).

An operation beyond the range (Dekker's splitting overflows from 2^996 on), a division by a ball around zero and a root
of one leave an infinite radius or NaN. `Ball.round` is not sure of such a result.

References
----------
.. [1] M. Joldes, J.-M. Muller, V. Popescu, "Tight and rigorous error bounds for basic building blocks of double-word
   arithmetic", ACM Transactions on Mathematical Software 44 (2017), algorithms 6 and 10.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import inf, nextafter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, Format, round_to

__all__ = ["Ball", "is_ieee"]

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Pair: TypeAlias = "tuple[Doubles, Doubles]"

_U2 = 2.0**-106  # u²
_UP = 1 + 2.0**-48
_TINY, _SMALL = 2.0**-1068, 2.0**-900
_SPLITTER = 2.0**27 + 1
_ZERO = np.zeros((1, 1))


class Ball:
    """A number or a vector for each group of a block, enclosed.

    Parameters
    ----------
    hi, lo : ndarray
        The centre hi + lo, with hi = hi + lo in binary64. Of a shape that broadcasts to (groups, 1) for numbers and to
        (groups, m) for vectors.
    radius : ndarray
        Bound of the distance from the centre, of such a shape.
    length : int or None
        m for a vector, None for a number.
    """

    __slots__ = ("hi", "length", "lo", "radius")

    def __init__(self, hi: Doubles, lo: Doubles, radius: Doubles, length: int | None) -> None:
        self.hi = hi
        self.lo = lo
        self.radius = radius
        self.length = length

    @classmethod
    def numbers(cls, values: Doubles) -> Ball:
        """Return a number per group, exactly; values of shape (groups,)."""
        return cls(values[:, None], _ZERO, _ZERO, None)

    @classmethod
    def vectors(cls, values: Doubles) -> Ball:
        """Return a vector per group, exactly; values of shape (groups, m)."""
        return cls(values, _ZERO, _ZERO, values.shape[1])

    @classmethod
    def differences(cls, values: Doubles, pivots: Doubles) -> Ball:
        """Return the vectors of values − pivots, exactly; pivots of shape (groups, 1)."""
        hi, lo = _two_sum(values, -pivots)
        return cls(hi, lo, _ZERO, values.shape[1])

    # ---- ring operations -------------------------------------------------------------------------------------

    def __add__(self, other: Ball | int | Fraction) -> Ball:
        b = self._operand(other)
        hi, lo = _add(self.hi, self.lo, b.hi, b.lo)
        radius = (self.radius + b.radius + 4 * _U2 * np.abs(hi)) * _UP  # A1
        return Ball(hi, lo, radius, self._joined(b))

    def __neg__(self) -> Ball:
        return Ball(-self.hi, self.lo if self.lo is _ZERO else -self.lo, self.radius, self.length)

    def __sub__(self, other: Ball | int | Fraction) -> Ball:
        return self + -self._operand(other)

    def __mul__(self, other: Ball | int | Fraction) -> Ball:
        b = self._operand(other)
        hi, lo = _multiply(self.hi, self.lo, b.hi, b.lo)
        size = np.abs(hi)
        own = 8 * _U2 * size  # A2
        if (size < _SMALL).any():
            own += np.where((size < _SMALL) & (self.hi != 0) & (b.hi != 0), _TINY, 0.0)
        spread = np.abs(self.hi) * b.radius + (np.abs(b.hi) + b.radius) * self.radius
        return Ball(hi, lo, (own + spread) * _UP, self._joined(b))

    def __truediv__(self, other: Ball | int | Fraction) -> Ball:
        return self * self._operand(other)._inverse()

    def _inverse(self) -> Ball:
        y = Ball(1 / self.hi, _ZERO, _ZERO, self.length)
        e = -(self * y) + 1
        return y * (e + e * e) + y.widened(2 * np.abs(y.hi), e)  # A3

    # ---- what batch norm needs besides -------------------------------------------------------------------------

    def sqrt(self) -> Ball:
        """Return the square root of a number."""
        w = Ball(1 / np.sqrt(self.hi), _ZERO, _ZERO, self.length)
        e = -(self * (w * w)) + 1
        first = self * w
        return first * (e * Fraction(1, 2) + e * e * Fraction(3, 8)) + first.widened(np.abs(first.hi), e)  # A4

    def widened(self, factor: Doubles, e: Ball) -> Ball:
        """Return the ball with factor·|e|³ added to the radius; with an infinite one where |e| may exceed 1/2."""
        size = np.abs(e.hi) + e.radius
        more = np.where(size <= 0.5, factor * (size * size * size), inf)
        return Ball(self.hi, self.lo, (self.radius * _UP + more) * _UP, self.length)

    def sum(self) -> Ball:
        """Return the sum of a vector's elements, added in a balanced tree."""
        hi, lo, radius = self.hi, *(np.broadcast_to(part, self.hi.shape) for part in (self.lo, self.radius))
        while (m := hi.shape[1]) > 1:
            half = (m + 1) // 2
            left = Ball(hi[:, : m - half], lo[:, : m - half], radius[:, : m - half], None)
            added = left + Ball(hi[:, half:], lo[:, half:], radius[:, half:], None)
            if m % 2:
                middle = slice(half - 1, half)
                hi, lo, radius = (
                    np.concatenate((done, rest[:, middle]), axis=1)
                    for done, rest in ((added.hi, hi), (added.lo, lo), (added.radius, radius))
                )
            else:
                hi, lo, radius = added.hi, added.lo, added.radius
        return Ball(hi, lo, radius, None)

    def mean(self) -> Ball:
        """Return the mean of a vector's elements."""
        assert self.length is not None, "the mean of a number"
        return self.sum() / self.length

    def spread(self, length: int) -> Ball:
        """Return the vector that repeats a number."""
        shape = (self.hi.shape[0], length)
        return Ball(np.broadcast_to(self.hi, shape), self.lo, self.radius, length)

    # ---- rounding ----------------------------------------------------------------------------------------------

    def round(self, form: Format) -> tuple[Doubles, Bools]:
        """Round both ends.

        Returns
        -------
        values : ndarray of binary64
            The rounded numbers, where the ends agree.
        sure : ndarray of bool
            Where they do. An end is moved outwards by each conversion that is not exact, and addition of hi rounds
            once, so the exact number lies between two that round alike, and rounding is monotonic.
        """
        exact = self.radius == 0
        low = np.where(exact, self.lo, np.nextafter(self.lo - self.radius, -inf))
        high = np.where(exact, self.lo, np.nextafter(self.lo + self.radius, inf))
        low, high = self.hi + low, self.hi + high
        if form is not BINARY64:
            whole = exact & (self.lo == 0)  # then hi is the number itself
            low = np.where(whole, low, np.nextafter(low, -inf))
            high = np.where(whole, high, np.nextafter(high, inf))
            low, high = (round_to(end, form.dtype).astype(np.float64) for end in (low, high))
        sure = (low == high) & (np.signbit(low) == np.signbit(high)) & np.isfinite(self.hi)
        nothing = exact & (self.hi == 0)
        return np.where(nothing, 0.0, low), sure | nothing

    # ---- operands ----------------------------------------------------------------------------------------------

    def _operand(self, other: Ball | int | Fraction) -> Ball:
        return other if isinstance(other, Ball) else _constant(Fraction(other))

    def _joined(self, other: Ball) -> int | None:
        return other.length if self.length is None else self.length


def is_ieee() -> bool:
    """Tell whether this thread's arithmetic fulfils the assumptions; a library may have left other modes."""
    one, small = np.ones(1), np.full(1, 2.0**-1074)
    nearest = one + 2.0**-53 == one and one + 3 * 2.0**-54 > one and -one - 3 * 2.0**-54 < -one
    return bool(nearest and small * one != 0 and small * 2.0**52 * 0.5 != 0)


@cache
def _constant(value: Fraction) -> Ball:
    """Enclose a rational number."""
    try:
        hi = float(value)
    except OverflowError:
        return Ball(_ZERO, _ZERO, np.full((1, 1), inf), None)
    rest = value - Fraction(hi)
    lo = float(rest)
    missing = abs(rest - Fraction(lo))
    radius = nextafter(float(missing), inf) if missing else 0.0
    return Ball(np.full((1, 1), hi), np.full((1, 1), lo), np.full((1, 1), radius), None)


def _two_sum(a: Doubles, b: Doubles) -> Pair:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _fast_two_sum(a: Doubles, b: Doubles) -> Pair:
    """For |a| ≥ |b|."""
    s = a + b
    return s, b - (s - a)


def _split(a: Doubles) -> Pair:
    c = _SPLITTER * a
    hi = c - (c - a)
    return hi, a - hi


def _two_product(a: Doubles, b: Doubles) -> Pair:
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _add(ah: Doubles, al: Doubles, bh: Doubles, bl: Doubles) -> Pair:
    sh, sl = _two_sum(ah, bh)
    if al is _ZERO and bl is _ZERO:
        return sh, sl
    th, tl = _two_sum(al, bl)
    vh, vl = _fast_two_sum(sh, sl + th)
    return _fast_two_sum(vh, tl + vl)


def _multiply(ah: Doubles, al: Doubles, bh: Doubles, bl: Doubles) -> Pair:
    ch, cl = _two_product(ah, bh)
    if al is _ZERO and bl is _ZERO:
        return ch, cl
    return _fast_two_sum(ch, cl + (ah * bl + al * bh))
