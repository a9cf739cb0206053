"""Every jitted function of the Numba backend: a ball arithmetic, sums, and the sweep that decides every element.

Purpose
    One channel of one pass, on contiguous binary64 buffers that `refbn.backends.numba` has packed; `channel` is
    the only entry. It knows no formula: `refbn.backends._numba_passes` hands it each pass as a *program*, a table
    of operations on registers. Every result is the exact one rounded once, or the channel is reported as undecided.

Assumptions
    Rounding to nearest even and subnormal numbers (`is_ieee` tells whether they are there); no contraction of
    a·b + c, no fast-math (Numba asks LLVM for neither unless told to). ``tests/backends/test_numba.py`` checks the
    error-free transformations that depend on it.

Structure
    * Tensors enter as t = z − p with a *pivot* p near the data, by an error-free difference t_hi + t_lo. So a constant
      tensor is exactly zero from here on.
    * SUMS: Σ t_a and Σ t_a·t_b, as balls.
    * SOLVE: the pass's program, in balls: for each vector result one ball, for each tensor result the numbers F, D, B,
      A_0, A_k of ``F·(A_0 + Σ A_k·t_k)/D + B``.
    * COMBINE: that, element by element: first in plain binary64 if the output is narrow, then in pairs of binary64
      numbers, last in balls. An element goes on until the two ends of its error interval round to the same number.

Error bounds
    Let w = 2⁻⁵³. `two_sum` and `two_product` are exact: the first always, the second while factors and product lie
    within 2^±900 or are zero.

    *Balls.* `Ball` (hi, lo, err, exponent) says |value·2^−exponent − (hi + lo)| ≤ err, with ½ ≤ |hi| < 1, so that
    no operation overflows or underflows. An operation splits its result into binary64 terms by error-free
    transformations; the two leading ones are kept, and the magnitudes of all others go into err. This needs no
    constant and no lemma, and it leaves err = 0 exactly when nothing was dropped: ties and zeros of short numbers are
    decided here. Quotient and root are approximated by any hi + lo and their error comes from the residual, computed in
    balls: |a/b − c| = |a − c·b|/|b| and |√q − c| = |q − c²|/(√q + c) ≤ |q − c²|/c. Whatever is computed *with* errors
    is a sum of at most 12 rounded non-negative terms; `ball` multiplies it by 1 + 32·w, and replaces it by 2⁻⁹⁰⁰ if it
    is smaller but not 0, so that products of errors do not vanish.

    *Sums.* A tensor is *near* if all non-zero t_hi, t_lo lie within 2^±`COMFORT`; for others (and for what is not
    finite) sums are taken in balls. A lane accumulates (hi, lo, err): two exact additions each, of which err
    collects the remainders' magnitudes. Of products of pairs, 8·w²·|t_a·t_b| goes into err as well: four roundings of
    cross products and their sum (4·w²), and t_lo·t_lo (w²), to first order. err is a sum of m rounded non-negative
    terms, and a factor 1 + 2⁻¹⁰ covers that for m < 2⁴⁰.

    *Elements.* Let a_k = F·A_k/D and c = F·A_0/D + B be balls with centres k_hi + k_lo and errors δ_k, and
    M = Σ|k_hi·t_hi| + |c_hi|.

    - Plain: c_hi + Σ k_hi·t_hi. The coefficient is off by |k_lo| + δ_k, t by w·|t_hi|; the product is rounded once, a
      term passes through at most three additions, and the ends of the interval are rounded once: the error is less than
      Σ (|k_lo| + δ_k + 6.2·w·|k_hi|)·|t_hi| + |c_lo| + δ_c + 4.2·w·|c_hi|. The code takes 8 for both numbers.
    - Pairs: the product k·t errs by 8·w²·|k·t| (as above, and the sum with the product's own error: 3·w²). Adding it
      to (hi, lo) rounds lo + e and f + (lo + e), at most w²·(3·|hi| + 7·|k·t|); three terms of at most M give
      38·w²·M. With the rounding of lo ± E, w²·M, the code's 64·w²·M is more.
    - All coefficients lie within 2^±`REACH` and the tensors are near, else this rung is left out. Then no product
      underflows but those with lo, by 2⁻¹⁰⁷⁴, and E ≥ 64·w²·2^−(REACH + COMFORT) if a product is not zero at all.
    - A factor 1 + 2⁻⁴⁰ covers the roundings of the bound itself.

    Both roundings, to binary64 and to narrower formats, are monotonic; so where both ends give one result, it is
    what everything in between rounds to. A zero is accepted only where the ends do not differ in sign.

All jitted functions stand in this one file: Numba invalidates a cached function when the file that defines it has
changed, but not when a function that it calls has.

Test: ``pytest tests/backends/test_numba.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Function = TypeVar("Function", bound=Callable[..., Any])

LANES = 64
W = 2.0**-53

COMFORT = 300
"""Tensors whose non-zero elements lie in 2^±COMFORT are near: their products neither overflow nor underflow."""

REACH = 300
"""Coefficients in 2^±REACH are applied to near tensors as pairs of binary64 numbers."""

FLOOR = 2.0**-900
"""The smallest error of a ball that is not 0, and a bound on what shifting a pair may lose."""

SHORTEST = 2.0**-400
"""A smaller lo becomes part of the error, so that products of lows are exact."""

ADD, SUBTRACT, MULTIPLY, DIVIDE, ROOT, OVER_ROOT = range(6)
"""The operations of a program. OVER_ROOT is a/√b for a > 0, and infinite where b is 0 (rule R2)."""

FACTOR, DIVISOR, OFFSET, CONSTANT, TERMS = range(5)
"""The columns of a combination: registers of F, D, B, A_0, and of the A_k from `TERMS` on; negative for no term."""


def jit(function: Function) -> Function:
    """Compile at the first call, release the GIL, and keep the machine code on disk where that is possible."""
    try:
        compiled: Function = numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # no folder that Numba could write to
        compiled = numba.njit(function, nogil=True, error_model="numpy")
    return compiled


@jit
def is_ieee(probe: Floats) -> bool:
    """Tell whether this thread rounds to nearest even and keeps subnormal numbers.

    ``probe`` holds 2^−1074, 2^−1022, 2^60, ½, 1, 2^−53 and 2^−52: from memory, lest the compiler computes.
    """
    reads_subnormal = probe[0] * probe[2] > 0.0
    writes_subnormal = probe[1] * probe[3] > 0.0
    nearest = probe[4] + probe[5] == probe[4]  # not upwards
    odd = probe[4] + probe[6]
    even = odd + probe[5] == probe[4] + (probe[6] + probe[6])  # not downwards, nor towards zero
    return bool(reads_subnormal and writes_subnormal and nearest and even)


# ---- error-free transformations --------------------------------------------------------------------------------------


@jit
def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return s = RN(a + b) and a + b − s, exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jit
def split(a: float) -> tuple[float, float]:
    """Return two numbers of at most 26 bits whose sum is a (Veltkamp)."""
    t = 134217729.0 * a  # 2²⁷ + 1
    hi = t - (t - a)
    return hi, a - hi


@jit
def two_product(a: float, b: float) -> tuple[float, float]:
    """Return p = RN(a·b) and a·b − p, exactly (Dekker)."""
    p = a * b
    a_hi, a_lo = split(a)
    b_hi, b_lo = split(b)
    return p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo


# ---- balls -----------------------------------------------------------------------------------------------------------


class Ball(NamedTuple):
    """A number within err·2^exponent of (hi + lo)·2^exponent.

    hi = RN(hi + lo) and ½ ≤ |hi| < 1, or both are 0. Exact numbers have err = 0. hi is NaN for what is no number, and
    infinite as OVER_ROOT says. An err that is infinite or NaN says nothing about the value.
    """

    hi: float
    lo: float
    err: float
    exponent: int


@jit
def ball(hi: float, lo: float, err: float, exponent: int) -> Ball:
    """Normalise (hi + lo ± err)·2^exponent."""
    hi, lo = two_sum(hi, lo)
    if hi - hi != 0.0:
        return Ball(np.nan, 0.0, 0.0, 0)
    if hi != 0.0:
        hi, shift = math.frexp(hi)
        lo = math.ldexp(lo, -shift)
        err = math.ldexp(err, -shift)
        exponent += shift
        if abs(lo) < SHORTEST:
            err += abs(lo)
            lo = 0.0
    elif err == 0.0:
        exponent = 0
    if err != 0.0:
        err *= 1.0 + 32.0 * W
        if err < FLOOR:
            err = FLOOR
    return Ball(hi, lo, err, exponent)


@jit
def exactly(value: float) -> Ball:
    """Return a binary64 number, as it is; NaN for infinities (rule R1)."""
    return ball(value, 0.0, 0.0, 0)


@jit
def unknown() -> Ball:
    """Return a ball that holds every number."""
    return Ball(0.5, 0.0, np.inf, 0)


@jit
def negative(a: Ball) -> Ball:
    """Return −a, and +0 for 0."""
    return Ball(0.0 - a.hi, 0.0 - a.lo, a.err, a.exponent)


@jit
def size(a: Ball) -> float:
    """Return a bound on |a|, rounded down by less than 4·w, 0 for an exact zero only."""
    if a.hi == 0.0 and a.err == 0.0:
        return 0.0
    return math.ldexp(abs(a.hi) + a.err, a.exponent) + FLOOR


@jit
def add(a: Ball, b: Ball) -> Ball:
    """Return a + b."""
    if a.hi != a.hi or (b.hi == 0.0 and b.err == 0.0):
        return a
    if b.hi != b.hi or (a.hi == 0.0 and a.err == 0.0):
        return b
    if a.exponent < b.exponent:
        a, b = b, a
    shift = b.exponent - a.exponent
    if shift < -450:
        return ball(a.hi, a.lo, a.err + math.ldexp(1.5 + b.err, max(shift, -800)), a.exponent)
    err = a.err
    if b.err != 0.0:
        err += math.ldexp(b.err, shift) + FLOOR
    s, e = two_sum(a.hi, math.ldexp(b.hi, shift))
    t, f = two_sum(a.lo, math.ldexp(b.lo, shift))
    c, r = two_sum(e, t)
    hi, x = two_sum(s, c)
    y, dropped = two_sum(r, f)
    lo, rest = two_sum(x, y)
    return ball(hi, lo, err + (abs(dropped) + abs(rest)), a.exponent)


@jit
def subtract(a: Ball, b: Ball) -> Ball:
    """Return a − b."""
    return add(a, negative(b))


@jit
def multiply(a: Ball, b: Ball) -> Ball:
    """Return a·b."""
    p, e = two_product(a.hi, b.hi)
    q, f = two_product(a.hi, b.lo)
    r, g = two_product(a.lo, b.hi)
    z, h = two_product(a.lo, b.lo)
    q, x = two_sum(q, r)
    e, y = two_sum(e, q)
    e, u = two_sum(e, z)
    p, e = two_sum(p, e)
    dropped = (abs(f) + abs(g) + abs(h)) + (abs(x) + abs(y) + abs(u))
    return ball(p, e, dropped + (abs(a.hi) * b.err + abs(b.hi) * a.err) + a.err * b.err, a.exponent + b.exponent)


@jit
def divide(a: Ball, b: Ball) -> Ball:
    """Return a/b; NaN if b is 0."""
    if a.hi != a.hi:
        return a
    if b.hi != b.hi:
        return b
    if b.hi == 0.0 and b.err == 0.0:
        return Ball(np.nan, 0.0, 0.0, 0)
    if not (abs(b.hi) >= 0.5 and b.err < 0.125):
        return unknown()
    numerator, denominator = Ball(a.hi, a.lo, 0.0, 0), Ball(b.hi, b.lo, 0.0, 0)
    hi = a.hi / b.hi
    residual = subtract(numerator, multiply(exactly(hi), denominator))
    hi, lo = two_sum(hi, math.ldexp(residual.hi, residual.exponent) / b.hi)
    residual = subtract(numerator, multiply(ball(hi, lo, 0.0, 0), denominator))
    err = (size(residual) + a.err + abs(hi) * b.err) / (abs(b.hi) - b.err)
    return ball(hi, lo, err, a.exponent - b.exponent)


@jit
def root(q: Ball) -> Ball:
    """Return √q; NaN unless q > 0 (rule R2: what contains 1/√0 is no number)."""
    if q.hi != q.hi or (q.err == 0.0 and not q.hi > 0.0) or q.hi + q.err < 0.0:
        return Ball(np.nan, 0.0, 0.0, 0)
    if not (q.hi > 0.0 and q.err < 0.125):
        return unknown()
    odd = q.exponent & 1
    square = Ball(q.hi, q.lo, 0.0, odd)
    hi = math.sqrt(math.ldexp(q.hi, odd))
    residual = subtract(square, multiply(exactly(hi), exactly(hi)))
    hi, lo = two_sum(hi, math.ldexp(residual.hi, residual.exponent) / (2.0 * hi))
    near = ball(hi, lo, 0.0, 0)
    err = (size(subtract(square, multiply(near, near))) + math.ldexp(q.err, odd)) / hi
    return ball(hi, lo, err, (q.exponent - odd) >> 1)


@jit
def read(row: Floats, place: int) -> Ball:
    """Fetch a ball from an array of (hi, lo, err, exponent)."""
    return Ball(row[place, 0], row[place, 1], row[place, 2], int(row[place, 3]))


@jit
def write(row: Floats, place: int, a: Ball) -> None:
    """Keep a ball in an array of (hi, lo, err, exponent)."""
    row[place, 0] = a.hi
    row[place, 1] = a.lo
    row[place, 2] = a.err
    row[place, 3] = a.exponent


@jit
def solve(program: Ints, registers: Floats) -> None:
    """Run a program: rows of (operation, result, first operand, second operand)."""
    for step in range(program.shape[0]):
        operation = program[step, 0]
        a, b = read(registers, program[step, 2]), read(registers, program[step, 3])
        if operation in (ADD, SUBTRACT):
            c = add(a, b if operation == ADD else negative(b))
        elif operation == MULTIPLY:
            c = multiply(a, b)
        else:
            divisor = b
            if operation in (ROOT, OVER_ROOT):
                divisor = root(b)
            if operation == ROOT:
                c = divisor
            elif operation == OVER_ROOT and b.hi == 0.0 and b.err == 0.0:
                c = Ball(np.inf, 0.0, 0.0, 0)
            else:
                c = divide(a, divisor)
        write(registers, program[step, 1], c)


# ---- rounding --------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A format: precision, smallest and largest normal exponent, largest number."""

    precision: int
    emin: int
    emax: int
    largest: float


@jit
def target(formats: Floats, place: int) -> Target:
    """Fetch a format from an array of (precision, emin, emax, largest)."""
    return Target(int(formats[place, 0]), int(formats[place, 1]), int(formats[place, 2]), formats[place, 3])


@jit
def nearest(hi: float, lo: float, exponent: int, form: Target) -> float:
    """Round (hi + lo)·2^exponent to a format, to nearest even, for hi = RN(hi + lo) ≠ 0."""
    sign = math.copysign(1.0, hi)
    hi, lo = abs(hi), lo * sign
    mantissa, shift = math.frexp(hi)
    if mantissa == 0.5 and lo < 0.0:
        shift -= 1  # below a power of two, numbers are twice as dense
    if exponent + shift > form.emax + 1:
        return sign * np.inf
    if exponent + shift < form.emin - form.precision:
        return sign * 0.0
    # The quantum is 2^last. Round hi + lo, taken as multiples of it, to an integer.
    last = max(exponent + shift - form.precision, form.emin - form.precision + 1)
    hi, lo = math.ldexp(hi, exponent - last), math.ldexp(lo, exponent - last)
    integer = float(math.floor(hi))
    above = ((hi - integer) - 0.5) + lo  # its sign is exact
    if above > 0.0 or (above == 0.0 and integer % 2.0 == 1.0):
        integer += 1.0
    result = math.ldexp(integer, last)
    return sign * (result if result <= form.largest else np.inf)


@jit
def round_ball(a: Ball, form: Target) -> tuple[float, bool]:
    """Return what all of a ball rounds to, and whether there is such a number."""
    if a.hi - a.hi != 0.0:
        return a.hi, True
    if a.err == 0.0:
        if a.hi == 0.0:
            return 0.0, True
        return nearest(a.hi, a.lo, a.exponent, form), True
    if not a.err < 0.125 or a.hi == 0.0:
        return 0.0, False
    reach = a.err * (1.0 + 32.0 * W) + 2.0 * W * abs(a.lo)
    below_hi, below_lo = two_sum(a.hi, a.lo - reach)
    above_hi, above_lo = two_sum(a.hi, a.lo + reach)
    below = nearest(below_hi, below_lo, a.exponent, form)
    return below, below == nearest(above_hi, above_lo, a.exponent, form)


# ---- sums ------------------------------------------------------------------------------------------------------------
#
# Loops run over tiles of LANES elements, and what a loop writes is one array in parts, so that LLVM knows trip counts
# and distances and vectorises. Tensors are padded with their pivot to whole tiles, that is with t = 0.

FAR, INFINITE = 1, 2
"""What a tensor may be: with exponents far from 0, with elements that are no number."""


@jit
def choose_pivot(data: Floats) -> float:
    """Return a number among the data, near their mean by a sample, and with few digits where the sample allows.

    Few digits keep differences and products of short data exact, and so their zeros and ties decidable.
    """
    first = data[0]
    low, high, total, count = first, first, 0.0, 0
    for i in range(0, data.size, max(data.size // 16, 1)):
        low = min(low, data[i])
        high = max(high, data[i])
        total += data[i]
        count += 1
    if low == high:
        return first if first - first == 0.0 else 0.0
    grid = math.ldexp(1.0, math.frexp(high - low)[1] - 5)
    pivot = first
    if grid > 2.0**-900:
        pivot = float(np.rint(total / count / grid)) * grid
    return pivot if pivot - pivot == 0.0 else 0.0


@jit
def fold(lanes: Floats) -> Ball:
    """Return the sum of all lanes: sums, their low parts, and errors."""
    half = LANES // 2
    while half:
        for j in range(half):
            s, e = two_sum(lanes[j], lanes[j + half])
            t, f = two_sum(lanes[LANES + j], lanes[LANES + j + half])
            t, g = two_sum(t, e)
            lanes[j] = s
            lanes[LANES + j] = t
            lanes[2 * LANES + j] += lanes[2 * LANES + j + half] + (abs(f) + abs(g))
        half //= 2
    return ball(lanes[0], lanes[LANES], lanes[2 * LANES] * (1.0 + 2.0**-10), 0)


@jit
def add_tile(lanes: Floats, data: Floats, pivot: float) -> None:
    """Add z − p to the lanes, and keep the smallest and largest magnitudes but 0."""
    for j in range(LANES):
        hi, lo = two_sum(data[j], -pivot)
        s, e = two_sum(lanes[j], hi)
        r, f = two_sum(lanes[LANES + j], e)
        r, g = two_sum(r, lo)
        lanes[j] = s
        lanes[LANES + j] = r
        lanes[2 * LANES + j] += abs(f) + abs(g)
        hi = abs(hi)
        lo = abs(lo)
        lanes[4 * LANES + j] = hi if hi > lanes[4 * LANES + j] else lanes[4 * LANES + j]
        hi = hi if hi != 0.0 else np.inf
        lo = lo if lo != 0.0 else np.inf
        hi = lo if lo < hi else hi
        lanes[3 * LANES + j] = hi if hi < lanes[3 * LANES + j] else lanes[3 * LANES + j]


@jit
def total_of(data: Floats, m: int, pivot: float) -> tuple[Ball, int]:
    """Pad the data with the pivot; return Σ (z − p) and what the tensor is (`FAR`, `INFINITE`)."""
    data[m:] = pivot
    lanes = np.zeros(5 * LANES)
    lanes[3 * LANES : 4 * LANES] = np.inf
    for start in range(0, data.size, LANES):
        add_tile(lanes, data[start : start + LANES], pivot)
    smallest, largest = lanes[3 * LANES : 4 * LANES].min(), lanes[4 * LANES :].max()
    total = fold(lanes)
    # Where anything was not finite, neither is the sum.
    if total.hi == total.hi and largest <= 2.0**COMFORT and smallest >= 2.0**-COMFORT:
        return total, 0
    total = exactly(0.0)
    for i in range(m):
        total = add(total, element(data, pivot, i))
        if total.hi != total.hi:
            return total, FAR | INFINITE
    return total, FAR


@jit
def element(data: Floats, pivot: float, i: int) -> Ball:
    """Return z_i − p."""
    return subtract(exactly(data[i]), exactly(pivot))


@jit
def product_tile(lanes: Floats, a: Floats, a_pivot: float, b: Floats, b_pivot: float) -> None:
    """Add products of pairs to the lanes."""
    for j in range(LANES):
        a_hi, a_lo = two_sum(a[j], -a_pivot)
        b_hi, b_lo = two_sum(b[j], -b_pivot)
        p, q = two_product(a_hi, b_hi)
        cross = a_hi * b_lo + a_lo * b_hi
        s, e = two_sum(lanes[j], p)
        r, f = two_sum(lanes[LANES + j], e)
        r, g = two_sum(r, q)
        r, h = two_sum(r, cross)
        lanes[j] = s
        lanes[LANES + j] = r
        lost = abs(p) if a_lo != 0.0 or b_lo != 0.0 else 0.0
        lanes[2 * LANES + j] += (abs(f) + abs(g)) + (abs(h) + 8.0 * W * W * lost)


@jit
def dot(a: Floats, a_pivot: float, b: Floats, b_pivot: float) -> Ball:
    """Return Σ (a − p)(b − q) of near tensors."""
    lanes = np.zeros(3 * LANES)
    for start in range(0, a.size, LANES):
        product_tile(lanes, a[start : start + LANES], a_pivot, b[start : start + LANES], b_pivot)
    return fold(lanes)


@jit
def far_dot(a: Floats, a_pivot: float, b: Floats, b_pivot: float, m: int) -> Ball:
    """Return Σ (a − p)(b − q) of any tensors."""
    total = exactly(0.0)
    for i in range(m):
        total = add(total, multiply(element(a, a_pivot, i), element(b, b_pivot, i)))
        if total.hi != total.hi:
            break
    return total


# ---- combinations ----------------------------------------------------------------------------------------------------


@jit
def add_plain(sums: Floats, k_hi: float, weight: float, data: Floats, pivot: float) -> None:
    """Add k·t to sums, and weight·|t| to their errors."""
    for j in range(LANES):
        t = data[j] - pivot
        sums[j] += k_hi * t
        sums[2 * LANES + j] += weight * abs(t)


@jit
def add_pairs(sums: Floats, k_hi: float, k_lo: float, weight: float, data: Floats, pivot: float) -> None:
    """Add k·t to sums of pairs, and weight·|t| to their errors."""
    for j in range(LANES):
        t_hi, t_lo = two_sum(data[j], -pivot)
        p, e = two_product(k_hi, t_hi)
        e += k_hi * t_lo + k_lo * t_hi
        s, f = two_sum(sums[j], p)
        s, f = two_sum(s, f + (sums[LANES + j] + e))
        sums[j] = s
        sums[LANES + j] = f
        sums[2 * LANES + j] += weight * abs(t_hi)


@jit
def decide_binary64(sums: Floats, out: Floats, sure: Bools) -> int:
    """Round pairs to binary64, where their errors allow; return how many are left."""
    left = 0
    for j in range(LANES):
        hi, lo, err = sums[j], sums[LANES + j], sums[2 * LANES + j]
        below = hi + (lo - err)
        above = hi + (lo + err)
        fine = below == above and (below != 0.0 or err == 0.0)
        out[j] = below + 0.0  # (R4): not −0
        sure[j] = fine
        left += not fine
    return left


@jit
def narrowed(value: float, form: Target, magic: float, smallest: float) -> float:
    """Round a number to a narrow format, to nearest even."""
    # A sum with 1.5·2^(e + 53 − p) has its last bit where the format has it.
    own = float(np.int64(np.float64(value).view(np.int64) & 0x7FF0000000000000).view(np.float64))
    power = own if own > smallest else smallest
    result = (value + power * magic) - power * magic
    return result if abs(result) <= form.largest else math.copysign(np.inf, value)


@jit
def decide_narrow(sums: Floats, form: Target, out: Floats, sure: Bools) -> int:
    """Round pairs to a narrow format, where their errors allow; return how many are left."""
    magic, smallest = math.ldexp(1.5, 53 - form.precision), math.ldexp(1.0, form.emin)
    left = 0
    for j in range(LANES):
        reach = (sums[2 * LANES + j] + abs(sums[LANES + j])) + 2.0 * W * abs(sums[j])
        low = sums[j] - reach
        high = sums[j] + reach
        below = narrowed(low, form, magic, smallest)
        above = narrowed(high, form, magic, smallest)
        fine = below == above and (low >= 0.0 or high < 0.0)
        out[j] = math.copysign(below, low + 0.0)
        sure[j] = fine
        left += not fine
    return left


@jit
def is_applicable(a: Ball, reach: int) -> bool:
    """Return whether a coefficient can be applied as a pair of binary64 numbers."""
    if a.hi == 0.0 and a.err == 0.0:
        return True
    return 2.0**-reach <= math.ldexp(abs(a.hi) + a.err, a.exponent) <= 2.0**reach


@jit
def as_row(a: Ball) -> tuple[float, float, float, float]:
    """Return hi, lo, and the errors per unit of the two fast rungs."""
    hi, lo, err = math.ldexp(a.hi, a.exponent), math.ldexp(a.lo, a.exponent), math.ldexp(a.err, a.exponent)
    more = 1.0 + 2.0**-40
    return hi, lo, (8.0 * W * abs(hi) + (abs(lo) + err)) * more, (64.0 * W * W * abs(hi) + err) * more


@jit
def combine(
    combination: Ints,
    registers: Floats,
    m: int,
    data: Floats,
    pivots: Floats,
    kinds: Ints,
    form: Target,
    out: Floats,
) -> bool:
    """Write F·(A_0 + Σ A_k·t_k)/D + B, rounded once; return whether every element is decided."""
    count = data.shape[0]
    factor, divisor = read(registers, combination[FACTOR]), read(registers, combination[DIVISOR])
    offset, constant = read(registers, combination[OFFSET]), read(registers, combination[CONSTANT])
    scale = divide(factor, divisor)
    centre = add(multiply(scale, constant), offset)
    near = is_applicable(centre, REACH + COMFORT)
    finite = centre.hi == centre.hi
    rows = np.zeros((count, 4))
    for k in range(count):
        if combination[TERMS + k] < 0:
            continue
        a = multiply(scale, read(registers, combination[TERMS + k]))
        finite = finite and a.hi == a.hi
        used = a.hi != 0.0 or a.err != 0.0 or kinds[k] & INFINITE != 0
        near = near and (not used or (kinds[k] == 0 and is_applicable(a, REACH)))
        rows[k, 0], rows[k, 1], rows[k, 2], rows[k, 3] = as_row(a)
    if not finite:
        out[:m] = np.nan
        return True
    c_hi, c_lo, c_plain, c_pairs = as_row(centre)
    sums = np.empty(3 * LANES)
    sure = np.zeros(LANES, np.bool_)
    for start in range(0, m, LANES):
        stop = start + LANES
        into = out[start:stop]
        left = LANES
        if near and form.precision < 53:
            sums[:LANES] = c_hi
            sums[LANES : 2 * LANES] = 0.0
            sums[2 * LANES :] = c_plain
            for k in range(count):
                if rows[k, 2] != 0.0:
                    add_plain(sums, rows[k, 0], rows[k, 2], data[k, start:stop], pivots[k])
            left = decide_narrow(sums, form, into, sure)
        if near and left:
            sums[:LANES] = c_hi
            sums[LANES : 2 * LANES] = c_lo
            sums[2 * LANES :] = c_pairs
            for k in range(count):
                if rows[k, 2] != 0.0:
                    add_pairs(sums, rows[k, 0], rows[k, 1], rows[k, 3], data[k, start:stop], pivots[k])
            if form.precision < 53:
                left = decide_narrow(sums, form, into, sure)
            else:
                left = decide_binary64(sums, into, sure)
        if left == 0:
            continue
        for j in range(min(LANES, m - start)):
            if not sure[j]:
                total = constant
                for k in range(count):
                    if combination[TERMS + k] >= 0:
                        term = element(data[k], pivots[k], start + j)
                        total = add(total, multiply(read(registers, combination[TERMS + k]), term))
                into[j], fine = round_ball(add(divide(multiply(factor, total), divisor), offset), form)
                if not fine:
                    return False
    return True


@jit
def channel(
    m: int,
    numbers: Floats,
    first_number: int,
    pivot_registers: Ints,
    first_sum: int,
    pairs: Ints,
    program: Ints,
    combinations: Ints,
    vectors: Ints,
    formats: Floats,
    registers: Floats,
    data: Floats,
    out: Floats,
    rounded: Floats,
) -> bool:
    """Compute one channel of a pass, and return whether every result is decided.

    Parameters
    ----------
    m : int
        The number of elements.
    numbers : (n,)
        The channel's numbers; they go to the registers from ``first_number`` on.
    pivot_registers : (k,)
        Where each tensor's pivot stands; if negative, the complement of where to put the one that is chosen here.
    first_sum, pairs : int, (p, 2)
        The registers from ``first_sum`` on take the sums of the k tensors, then the dot products of the pairs.
    program, combinations, vectors : (s, 4), (o, 4 + k), (v,)
        As `solve` and `combine` want them; the registers of vector results.
    formats : (o + v, 4)
        Of every result, as `target` wants them.
    registers : (r, 4)
        Balls.
    data, out : (k, M), (o, M)
        The tensors and the tensor results; m of M elements count, and M is a multiple of `LANES`.
    rounded : (v,)
        The vector results.
    """
    for place in range(numbers.size):
        write(registers, first_number + place, exactly(numbers[place]))
    count = data.shape[0]
    pivots = np.zeros(count)
    kinds = np.zeros(count, np.int64)
    for k in range(count):
        place = pivot_registers[k]
        if place < 0:
            pivots[k] = choose_pivot(data[k, :m])
            write(registers, ~place, exactly(pivots[k]))
        else:
            pivot = read(registers, place)
            pivots[k] = math.ldexp(pivot.hi, pivot.exponent)
        total, kinds[k] = total_of(data[k], m, pivots[k])
        write(registers, first_sum + k, total)
    for pair in range(pairs.shape[0]):
        a, b = pairs[pair, 0], pairs[pair, 1]
        if kinds[a] | kinds[b]:
            product = far_dot(data[a], pivots[a], data[b], pivots[b], m)
        else:
            product = dot(data[a], pivots[a], data[b], pivots[b])
        write(registers, first_sum + count + pair, product)
    solve(program, registers)
    decided = True
    for place in range(vectors.size):
        rounded[place], fine = round_ball(
            read(registers, vectors[place]), target(formats, combinations.shape[0] + place)
        )
        decided = decided and fine
    for place in range(combinations.shape[0]):
        form = target(formats, place)
        decided = decided and combine(combinations[place], registers, m, data, pivots, kinds, form, out[place])
    return decided
