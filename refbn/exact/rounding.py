"""Correct rounding of exact numbers a + b·√N: to nearest, ties to even, in any of the four formats.

No case is left undecided. With A, B, D integers, D > 0, the floor of (A + B·√N)·2^j/D is the floor of an integer
quotient, because B·√N = ±√(B²N) and the integer square root is exact; whether that floor is the number itself is
decided too: √N is irrational, so only a number with B = 0 can be equal to a rational one. A floor with enough bits and
that one bit of knowledge determine the rounding, ties included. `round_number` does this and nothing else.

For vectors, `round_all` first encloses each element between two integers of about 128 significant bits times a
common power of two, and accepts what both ends round to. What they disagree on (ties, representable values,
cancellation, exact zeros, subnormals) goes to the exact decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf, isqrt, lcm, ldexp
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, Format, round_to
from refbn.exact.numbers import Exact

__all__ = ["round_all", "round_number", "round_pairs"]

Doubles = npt.NDArray[np.float64]

_GUARD = 128  # significant bits of an enclosure, beyond those that its elements' integers need
_WIDEST = 1000  # bits that an enclosure may have, so that its ends convert to binary64


def round_number(a: Fraction | int, b: Fraction | int, radicand: int, fmt: Format) -> float:
    """Round a + b·√N to a format.

    Parameters
    ----------
    a, b : Fraction or int
        The coordinates.
    radicand : int
        N >= 0.
    fmt : Format
        The format.

    Returns
    -------
    float
        The rounded value; binary64 holds the numbers of all four formats. Exactly zero gives +0, a nonzero number
        that rounds to zero keeps its sign, and one beyond the range becomes infinite as rounding to nearest says.
    """
    root = isqrt(radicand)
    if root * root == radicand:
        a, b = a + b * root, 0
    return _Form(Fraction(a), Fraction(b), radicand).round(1, 1, fmt)


def round_all(value: Exact, fmt: Format) -> Doubles:
    """Round a number or every element of a vector.

    Returns
    -------
    ndarray of binary64, shape (m,), or (1,) for a number
    """
    us, vs = _integers(value)
    form = _Form(*_scales(value), value.radicand)
    out = np.zeros(len(us))
    if value.is_zero() or not us:
        return out
    pending: Any = range(len(us))
    enclosure = _enclose(form, us, vs) if len(us) > 8 else None
    if enclosure is not None:
        middles, radius, exponent = enclosure
        low = np.array([float(t - radius) for t in middles])
        high = np.array([float(t + radius) for t in middles])
        # Both ends were rounded to 53 bits. That, and scaling them where the result is normal, keeps their order
        # and the order of their roundings to binary64; for a narrower format they first go one number outwards.
        with np.errstate(over="ignore", under="ignore"):
            low, high = np.ldexp(low, exponent), np.ldexp(high, exponent)
        if fmt is not BINARY64:
            low, high = np.nextafter(low, -inf), np.nextafter(high, inf)
        rounded = [round_to(end, fmt.dtype).astype(np.float64) for end in (low, high)]
        normal = (np.abs(low) > 2.0**BINARY64.emin) & (np.abs(high) > 2.0**BINARY64.emin)
        sure = (rounded[0] == rounded[1]) & normal & (np.signbit(low) == np.signbit(high))
        out[sure] = rounded[0][sure]
        pending = np.flatnonzero(~sure).tolist()
    for i in pending:
        out[i] = form.round(us[i], vs[i], fmt)
    return out


def round_pairs(value: Exact) -> tuple[Doubles, Doubles]:
    """Write numbers as sums of two binary64 numbers, for measuring errors.

    Returns
    -------
    hi, lo : ndarray of binary64
        hi is the value rounded, lo is value − hi rounded; lo is 0 where hi is infinite.
    """
    hi = round_all(value, BINARY64)
    lo = np.zeros_like(hi)
    us, vs = _integers(value)
    form = _Form(*_scales(value), value.radicand)
    enclosure = _enclose(form, us, vs) if us else None
    for i, head in enumerate(hi.tolist()):
        if abs(head) == inf or (head == 0.0 and us[i] == 0 and vs[i] == 0):
            continue
        if enclosure is not None:
            middles, radius, exponent = enclosure
            numerator, denominator = head.as_integer_ratio()
            shift = -exponent - denominator.bit_length() + 1
            if shift >= 0:
                rest = middles[i] - (numerator << shift)
                tail = float(rest - radius)
                if tail == float(rest + radius) and (abs(rest) - radius).bit_length() - 1 + exponent > BINARY64.emin:
                    lo[i] = ldexp(tail, exponent)
                    continue
        lo[i] = form.round(us[i], vs[i], BINARY64, minus=Fraction(head))
    return hi, lo


@dataclass(slots=True)
class _Form:
    """The numbers (j·u + k·v·√N)·2^e/D for integers u, v, with a = j·2^e/D and b = k·2^e/D."""

    a: Fraction
    b: Fraction
    radicand: int
    j: int = 0
    k: int = 0
    denominator: int = 1
    exponent: int = 0

    def __post_init__(self) -> None:
        common = lcm(self.a.denominator, self.b.denominator)
        self.j = self.a.numerator * (common // self.a.denominator)
        self.k = self.b.numerator * (common // self.b.denominator)
        below = _trailing_zeros(common)
        above = min((_trailing_zeros(n) for n in (self.j, self.k) if n), default=0)
        self.j >>= above
        self.k >>= above
        self.denominator = common >> below
        self.exponent = above - below

    def round(self, u: int, v: int, fmt: Format, minus: Fraction | None = None) -> float:
        """Round the number, less a dyadic rational if one is given, by the exact decision."""
        a, b, d, e = self.j * u, self.k * v, self.denominator, self.exponent
        if minus:
            # minus = n·2^f; bring both to the smaller power of two.
            f = 1 - minus.denominator.bit_length()
            a, b, n = a << max(e - f, 0), b << max(e - f, 0), minus.numerator << max(f - e, 0)
            e = min(e, f)
            a -= n * d
        negative = _sign(a, b, self.radicand) < 0
        if negative:
            a, b = -a, -b
        if not a and not b:
            return 0.0
        magnitude = _round_positive(a, b * b * self.radicand, b < 0, d, e, fmt)
        return -magnitude if negative else magnitude


def _round_positive(a: int, square: int, minus: bool, d: int, e: int, fmt: Format) -> float:
    """Round (a ± √square)·2^e/d > 0, with √square irrational or 0."""
    p, smallest = fmt.precision, fmt.emin - fmt.precision + 1

    def floor(shift: int) -> int:
        """Return the floor of the number times 2^shift."""
        up = max(shift + e, 0)
        root = isqrt(square << 2 * up)
        if minus:
            root = -root - 1  # the floor of −√square, which is no integer
        return ((a << up) + root) // (d << max(-shift - e, 0))

    # Enough bits are p and two more, or all down to half the smallest subnormal number.
    deepest = 1 - smallest
    size = max(a.bit_length(), (square.bit_length() + 1) // 2) - d.bit_length() + e
    shift = min(p + 4 - size, deepest)
    t = floor(shift)
    while t.bit_length() < p + 2 and shift < deepest:
        shift = min(shift + max(p + 4 - t.bit_length(), 64 if not t else 0), deepest)
        t = floor(shift)
    drop = max(t.bit_length() - p, 1)  # 1 leaves a multiple of the smallest subnormal number
    kept, rest, half = t >> drop, t & ((1 << drop) - 1), 1 << (drop - 1)
    if rest >= half:
        tie = rest == half and not square and (a << max(shift + e, 0)) == t * (d << max(-shift - e, 0))
        kept += kept & 1 if tie else 1
    exponent = drop - shift
    if kept.bit_length() - 1 + exponent > fmt.emax:
        return inf
    return ldexp(float(kept), exponent)


def _enclose(form: _Form, us: list[int], vs: list[int]) -> tuple[list[int], int, int] | None:
    """Return t, r, e such that the i-th number lies between (t_i − r)·2^e and (t_i + r)·2^e; None if too wide."""
    reach_u = max(map(int.bit_length, us)) if form.j else 0
    reach_v = max(map(int.bit_length, vs)) if form.k else 0
    size = max(
        form.j.bit_length() + reach_u if form.j else 0,
        form.k.bit_length() + (form.radicand.bit_length() + 1) // 2 + reach_v if form.k else 0,
    )
    # j·2^shift/D and k·√N·2^shift/D are replaced by integers. Each is less than 1 off, so an element is less than
    # |u| + |v| off.
    wide = _GUARD + max(reach_u, reach_v)
    if wide > _WIDEST:
        return None
    shift = wide + form.denominator.bit_length() - size
    up, down = max(shift, 0), form.denominator << max(-shift, 0)
    j = (form.j << up) // down
    radius = 0 if j * down == form.j << up else 1 << reach_u
    if not form.k:
        return [j * u for u in us], radius, form.exponent - shift
    k = isqrt(form.k * form.k * form.radicand << 2 * up) // down * (1 if form.k > 0 else -1)
    radius += 1 << reach_v
    if not form.j:
        return [k * v for v in vs], radius, form.exponent - shift
    return [j * u + k * v for u, v in zip(us, vs, strict=True)], radius, form.exponent - shift


def _integers(value: Exact) -> tuple[list[int], list[int]]:
    """Return the integers of both parts, written out."""
    m = 1 if value.length is None else value.length
    a, b = ([0] * m if part is None else [1] * m if part.ints is None else part.ints for part in (value.a, value.b))
    return a, b


def _scales(value: Exact) -> tuple[Fraction, Fraction]:
    a, b = (Fraction(0) if part is None else part.scale for part in (value.a, value.b))
    return a, b


def _sign(a: int, b: int, radicand: int) -> int:
    """Return the sign of a + b·√N."""
    sa, sb = (a > 0) - (a < 0), (b > 0) - (b < 0)
    if sa * sb >= 0:
        return sa or sb
    return sa if a * a > b * b * radicand else sb


def _trailing_zeros(n: int) -> int:
    return (n & -n).bit_length() - 1
