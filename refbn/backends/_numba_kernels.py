"""Every jitted function of the Numba backend: an arithmetic, three sweeps, and the passes written in them.

Purpose
    One channel of one pass at a time, on contiguous binary64 buffers that `refbn.backends.numba` has packed.

Assumptions
    Rounding to nearest even; no contraction of a·b + c, no fast-math (Numba asks LLVM for neither unless told
    to). ``tests/backends/test_numba.py`` checks the error-free transformations that depend on it.

Structure
    * A *pair* (hi, lo) is the unevaluated sum of two binary64 numbers, hi = RN(hi + lo).
    * A `Number` is a pair and a power of two: no overflow, no underflow. All that is computed once per channel is
      computed in Numbers, whatever the formats.
    * A `Vector` is a buffer, its shift and its scale; there are three sweeps over it: `total`, `dot` and `combine`,
      because every output of every pass is an affine combination of at most three vectors whose
      coefficients are rational functions of totals and dot products. `dot` and `combine` exist in plain binary64 and
      in pairs (``wide``).

Error bound
    That of `refbn.reference.bounds`, with u and h as `refbn.backends.numba.arithmetic` returns them. Let w = 2⁻⁵³.

    *Wide* (u = 2⁻¹⁰² = 16·w², h = 64). An operation on pairs errs by at most 12·w² relative to its result, an addition
    by 3·w² relative to its operands' magnitudes, which is what the bound's rule for sums asks for (the functions say
    how much; see also [1]_). In a sum, a lane of `ROWS` = 32 summands keeps its low parts in one plain sum: row k adds
    two low parts, each at most w·S if S is the sum of magnitudes, with errors of at most w²·(k + 3)·S, all rows
    together 624·w²·S. The additions after that, log2(`LANES`) = 6 in the fold and at most 26 in the cascade of blocks
    if m ≤ 2³⁷, cost 96·w²·S. All that is less than h·u·S = 1024·w²·S.

    *Plain* (u = 2⁻⁵³, h = 1). What belongs to a channel is still computed in Numbers. A product in a sum is rounded
    three times, two differences and itself; the sum adds less than u to that. In an output each coefficient, difference
    and product is rounded once, and so is each of at most three additions. Every count in the bound is larger.

    *Centering.* A vector's shift c is its mean rounded to nearest, and the elements are binary64 numbers too, so
    |c − mean| ≤ |x_i − mean| for every i, whatever the offset (up to the error of the sum, which is far smaller).
    Hence |x_i − c| ≤ 2·|x_i − mean|, and correcting for what is left, mean(x − c), cancels nothing.

    *Range.* If a buffer's largest element lies outside 2^±`COMFORT`, or a coefficient outside
    2^±`COEFFICIENT_COMFORT`, sums and outputs are computed element by element in Numbers, from the data as they came;
    a sum is then a tree of depth ⌈log₂ m⌉. Only the mean is found from a scaled copy; what it loses is below 2⁻⁷⁰⁰
    times the largest element.

All jitted functions stand in this one file: Numba invalidates a cached function when the file that defines it has
changed, but not when a function that it calls has.

Test: ``pytest tests/backends/test_numba.py``.

References
----------
.. [1] M. Joldes, J.-M. Muller, V. Popescu, "Tight and rigorous error bounds for basic building blocks of double-word
   arithmetic", ACM Transactions on Mathematical Software 44 (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., Any])

LANES = 64
ROWS = 32

COMFORT = 350
"""Buffers whose largest element lies in 2^±COMFORT are left unscaled: their products neither overflow nor underflow."""

COEFFICIENT_COMFORT = 256
"""Coefficients in 2^±COEFFICIENT_COMFORT are applied to such buffers as binary64 pairs."""

# What a state remembers, in this order.
SHIFT, REST, VAR, INVSTD = range(4)


def jit(function: Function) -> Function:
    """Compile at the first call, release the GIL, and keep the machine code on disk where that is possible."""
    try:
        compiled: Function = numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # no folder that Numba could write to
        compiled = numba.njit(function, nogil=True, error_model="numpy")
    return compiled


# ---- pairs: error-free transformations and arithmetic with twice the precision ---------------------------------------


@jit
def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return s = RN(a + b) and a + b − s, exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@jit
def fast_two_sum(a: float, b: float) -> tuple[float, float]:
    """Return what `two_sum` does if a is 0, not smaller than b, or a multiple of b's last bit (Dekker)."""
    s = a + b
    return s, b - (s - a)


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


@jit
def pair_add(a_hi: float, a_lo: float, b_hi: float, b_lo: float) -> tuple[float, float]:
    """Return a + b to within 3 w²·(|a| + |b|)."""
    s, e = two_sum(a_hi, b_hi)
    return fast_two_sum(s, e + (a_lo + b_lo))


@jit
def pair_multiply(a_hi: float, a_lo: float, b_hi: float, b_lo: float) -> tuple[float, float]:
    """Return a·b to within 8 w²·|a·b|."""
    p, e = two_product(a_hi, b_hi)
    return fast_two_sum(p, e + (a_hi * b_lo + a_lo * b_hi))


@jit
def pair_divide(a_hi: float, a_lo: float, b_hi: float, b_lo: float) -> tuple[float, float]:
    """Return a/b to within 12 w²·|a/b|."""
    quotient = a_hi / b_hi
    p, e = two_product(quotient, b_hi)
    remainder = ((a_hi - p) - e) + (a_lo - quotient * b_lo)
    return fast_two_sum(quotient, remainder / b_hi)


@jit
def pair_root(a_hi: float, a_lo: float) -> tuple[float, float]:
    """Return √a to within 5 w²·√a, for a > 0."""
    root = math.sqrt(a_hi)
    p, e = two_product(root, root)
    return fast_two_sum(root, (((a_hi - p) - e) + a_lo) / (2.0 * root))


# ---- Numbers: pairs with an exponent of their own --------------------------------------------------------------------


class Number(NamedTuple):
    """(hi + lo)·2^exponent with ½ ≤ |hi| < 1; zero is (+0, 0, 0), and NaN has exponent 0."""

    hi: float
    lo: float
    exponent: int


ZERO = Number(0.0, 0.0, 0)
HALF = Number(0.5, 0.0, 0)


@jit
def number(hi: float, lo: float, exponent: int) -> Number:
    """Normalise a pair (hi, lo)·2^exponent."""
    if hi == 0.0:
        return Number(0.0, 0.0, 0)
    if hi - hi != 0.0:
        return Number(np.nan, np.nan, 0)
    mantissa, shift = math.frexp(hi)
    return Number(mantissa, math.ldexp(lo, -shift), exponent + shift)


@jit
def exactly(value: float) -> Number:
    """Return a binary64 number, as it is."""
    return number(value, 0.0, 0)


@jit
def add(a: Number, b: Number) -> Number:
    """Return a + b."""
    if a.hi == 0.0:
        return b
    if b.hi == 0.0:
        return a
    exponent = max(a.exponent, b.exponent)
    hi, lo = pair_add(
        math.ldexp(a.hi, a.exponent - exponent),
        math.ldexp(a.lo, a.exponent - exponent),
        math.ldexp(b.hi, b.exponent - exponent),
        math.ldexp(b.lo, b.exponent - exponent),
    )
    return number(hi, lo, exponent)


@jit
def negative(a: Number) -> Number:
    """Return −a, and +0 for 0."""
    return Number(0.0 - a.hi, 0.0 - a.lo, a.exponent)


@jit
def subtract(a: Number, b: Number) -> Number:
    """Return a − b."""
    return add(a, negative(b))


@jit
def multiply(a: Number, b: Number) -> Number:
    """Return a·b."""
    hi, lo = pair_multiply(a.hi, a.lo, b.hi, b.lo)
    return number(hi, lo, a.exponent + b.exponent)


@jit
def divide(a: Number, b: Number) -> Number:
    """Return a/b for b ≠ 0."""
    hi, lo = pair_divide(a.hi, a.lo, b.hi, b.lo)
    return number(hi, lo, a.exponent - b.exponent)


@jit
def scaled(a: Number, exponent: int) -> Number:
    """Return a·2^exponent."""
    return number(a.hi, a.lo, a.exponent + exponent)


@jit
def inverse_root(q: Number) -> Number:
    """Return 1/√q; NaN unless q > 0 (rule R2: what contains 1/√0 is no number)."""
    if not q.hi > 0.0:
        return Number(np.nan, np.nan, 0)
    odd = q.exponent & 1
    hi, lo = pair_root(math.ldexp(q.hi, odd), math.ldexp(q.lo, odd))
    hi, lo = pair_divide(1.0, 0.0, hi, lo)
    return number(hi, lo, -((q.exponent - odd) >> 1))


@jit
def read(row: Floats, place: int) -> Number:
    """Fetch a Number from an array of (hi, lo, exponent)."""
    return Number(row[place, 0], row[place, 1], int(row[place, 2]))


@jit
def write(row: Floats, place: int, a: Number) -> None:
    """Keep a Number in an array of (hi, lo, exponent)."""
    row[place, 0] = a.hi
    row[place, 1] = a.lo
    row[place, 2] = a.exponent


# ---- the last rounding -----------------------------------------------------------------------------------------------


@jit
def to_binary64(hi: float, lo: float, exponent: int, to_odd: bool) -> float:
    """Round (hi + lo)·2^exponent once: to nearest even, or to odd if a narrower format is still to come.

    Rounding to odd moves an inexact result to the neighbour with an odd last bit, so that a later rounding to a
    format of at most 51 bits sees on which side of a midpoint the value lay.
    """
    if hi - hi != 0.0:
        return hi
    if to_odd and lo != 0.0:
        mantissa, shift = math.frexp(hi)
        integer = int(math.ldexp(mantissa, 53))
        if integer & 1 == 0:
            # hi is even, so the odd neighbour is the next one in lo's direction; below a power of two neighbours are
            # twice as dense, and one more bit then makes the step right.
            step = 1.0 if abs(mantissa) > 0.5 or (hi > 0.0) == (lo > 0.0) else 0.5
            hi = math.ldexp(integer + math.copysign(step, lo), shift - 53)
        return math.ldexp(hi, exponent)
    result = math.ldexp(hi, exponent)
    if lo != 0.0 and abs(result) < 2.3e-308:
        # A subnormal result: hi was rounded a second time. That is wrong only where hi is a midpoint, which lo
        # then decides.
        half = math.ldexp(0.5, -1074 - exponent)
        if abs(hi - math.ldexp(result, -exponent)) == half:
            result = math.ldexp(hi + math.copysign(half / 2.0, lo), exponent)
    return result


@jit
def finish(hi: Floats, lo: Floats) -> None:
    """Round a vector of pairs to odd, in place (in hi)."""
    for i in range(hi.size):
        hi[i] = to_binary64(hi[i], lo[i], 0, True)


@jit
def finish_numbers(numbers: Floats, to_odd: bool, result: Floats) -> None:
    """Round an array of Numbers (n, 3) to binary64."""
    for i in range(result.size):
        result[i] = to_binary64(numbers[i, 0], numbers[i, 1], int(numbers[i, 2]), to_odd)


# ---- vectors ---------------------------------------------------------------------------------------------------------


class Vector(NamedTuple):
    """The vector (data − shift)·2^scale − rest; the sweeps see data − shift, `far_element` raw − point.

    raw and point are data·2^scale and shift·2^scale before small ones lost bits to the scaling.
    """

    data: Floats
    shift: float
    rest: Number
    scale: int
    raw: Floats
    point: Number


INFINITY_BITS = 0x7FF0000000000000


@jit
def largest(data: Floats, below: int) -> int:
    """Return the largest magnitude's bits without the sign, of those below a limit.

    Read as integers they are ordered as the magnitudes are, infinity and NaN at the end.
    """
    bits = data.view(np.int64)
    result = 0
    for i in range(bits.size):
        magnitude = int(bits[i]) & 0x7FFFFFFFFFFFFFFF
        result = max(result, magnitude if magnitude < below else 0)
    return result


@jit
def tame(data: Floats, at_least: Number) -> tuple[Floats, int]:
    """Return data that are fit for arithmetic, and the power of two that was taken out of them.

    Infinities become NaN in place (rule R1). If the largest number among the data and ``at_least`` is far from 1, a
    copy is scaled by a power of two.
    """
    top = largest(data, 0x7FFFFFFFFFFFFFFF)
    if top >= INFINITY_BITS:
        for i in range(data.size):
            data[i] += data[i] - data[i]
        top = largest(data, INFINITY_BITS)
    exponent = -2000
    if top > 0:
        exponent = (top >> 52) - 1022
    if at_least.hi != 0.0:
        exponent = max(exponent, at_least.exponent)
    if exponent > COMFORT:
        scale = exponent - COMFORT  # no further down, for the small elements' sake
    elif -2000 < exponent < -COMFORT:
        scale = max(exponent, -1022)  # 2^1022 is the largest factor, and makes the subnormals at least 2^−52
    else:
        return data, 0
    return data * math.ldexp(1.0, -scale), scale


@jit
def about(data: Floats, point: Number) -> Vector:
    """Return data − point for a point that is one binary64 number."""
    fit, scale = tame(data, point)
    return Vector(fit, math.ldexp(point.hi, point.exponent - scale), ZERO, scale, data, point)


@jit
def uncentred(data: Floats) -> Vector:
    """Return the data as a vector."""
    return about(data, ZERO)


@jit
def centred(data: Floats) -> Vector:
    """Return data − mean(data)."""
    fit, scale = tame(data, ZERO)
    mean = divide(block_sum(fit, 0.0, fit, 0.0, TOTAL), exactly(float(data.size)))
    shift = math.ldexp(mean.hi, mean.exponent)
    rest = divide(block_sum(fit, shift, fit, shift, TOTAL), exactly(float(data.size)))
    return Vector(fit, shift, scaled(rest, scale), scale, data, scaled(exactly(shift), scale))


@jit
def restored(data: Floats, state: Floats) -> Vector:
    """Return x − mean(x) with the mean that `forward` found."""
    vector = about(data, read(state, SHIFT))
    return Vector(vector.data, vector.shift, read(state, REST), vector.scale, vector.raw, vector.point)


# ---- the sweeps that read --------------------------------------------------------------------------------------------

TOTAL, PLAIN, WIDE = range(3)


@jit
def add_differences(hi: Floats, lo: Floats, a: Floats, a_shift: float) -> None:
    """Add a − shift to the lanes, exactly but for the low parts' sum."""
    for j in range(a.size):
        t, f = two_sum(a[j], -a_shift)
        s, e = two_sum(hi[j], t)
        hi[j] = s
        lo[j] += e + f


@jit
def add_products_plain(hi: Floats, lo: Floats, a: Floats, a_shift: float, b: Floats, b_shift: float) -> None:
    """Add (a − shift)(b − shift) to the lanes, each difference and product rounded to binary64."""
    for j in range(a.size):
        s, e = two_sum(hi[j], (a[j] - a_shift) * (b[j] - b_shift))
        hi[j] = s
        lo[j] += e


@jit
def add_products_wide(hi: Floats, lo: Floats, a: Floats, a_shift: float, b: Floats, b_shift: float) -> None:
    """Add (a − shift)(b − shift) to the lanes, in pairs."""
    for j in range(a.size):
        a_hi, a_lo = two_sum(a[j], -a_shift)
        b_hi, b_lo = two_sum(b[j], -b_shift)
        t, f = pair_multiply(a_hi, a_lo, b_hi, b_lo)
        s, e = two_sum(hi[j], t)
        hi[j] = s
        lo[j] += e + f


@jit
def block_sum(a: Floats, a_shift: float, b: Floats, b_shift: float, kind: int) -> Number:
    """Sum the differences of ``a`` (TOTAL) or the products (PLAIN, WIDE) as a pair.

    A block fills `LANES` lanes of `ROWS` elements each, which are then folded into one pair. Blocks' pairs are
    added like a binary counter: level k holds the sum of 2^k blocks.
    """
    hi = np.empty(LANES)
    lo = np.empty(LANES)
    levels_hi = np.zeros(64)
    levels_lo = np.zeros(64)
    blocks = 0
    for start in range(0, a.size, LANES * ROWS):
        stop = min(start + LANES * ROWS, a.size)
        hi[:] = 0.0
        lo[:] = 0.0
        for row in range(start, stop, LANES):
            end = min(row + LANES, stop)
            if kind == TOTAL:
                add_differences(hi, lo, a[row:end], a_shift)
            elif kind == PLAIN:
                add_products_plain(hi, lo, a[row:end], a_shift, b[row:end], b_shift)
            else:
                add_products_wide(hi, lo, a[row:end], a_shift, b[row:end], b_shift)
        for j in range(LANES):
            hi[j], lo[j] = two_sum(hi[j], lo[j])
        width = LANES
        while width > 1:
            width >>= 1
            for j in range(width):
                hi[j], lo[j] = pair_add(hi[j], lo[j], hi[width + j], lo[width + j])
        sum_hi, sum_lo = hi[0], lo[0]
        level = 0
        while blocks >> level & 1:
            sum_hi, sum_lo = pair_add(levels_hi[level], levels_lo[level], sum_hi, sum_lo)
            level += 1
        levels_hi[level] = sum_hi
        levels_lo[level] = sum_lo
        blocks += 1
    sum_hi = 0.0
    sum_lo = 0.0
    for level in range(64):
        if blocks >> level & 1:
            sum_hi, sum_lo = pair_add(levels_hi[level], levels_lo[level], sum_hi, sum_lo)
    return number(sum_hi, sum_lo, 0)


@jit
def far_element(a: Vector, i: int) -> Number:
    """Return raw_i − point as a Number."""
    return subtract(exactly(a.raw[i]), a.point)


@jit
def tree_sum(terms: Floats) -> Number:
    """Return the sum of an array of Numbers (n, 3), halving it in place."""
    n = terms.shape[0]
    if n == 0:
        return Number(0.0, 0.0, 0)
    while n > 1:
        half = (n + 1) // 2
        for i in range(n // 2):
            write(terms, i, add(read(terms, i), read(terms, i + half)))
        n = half
    return read(terms, 0)


@jit
def total(a: Vector) -> Number:
    """Return Σ a_i of a vector without rest."""
    if a.scale == 0:
        return block_sum(a.data, a.shift, a.data, a.shift, TOTAL)
    terms = np.empty((a.raw.size, 3))
    for i in range(a.raw.size):
        write(terms, i, far_element(a, i))
    return tree_sum(terms)


@jit
def dot(a: Vector, b: Vector, wide: bool) -> Number:
    """Return Σ a_i·b_i of vectors without rests."""
    if a.scale == 0 and b.scale == 0:
        return block_sum(a.data, a.shift, b.data, b.shift, WIDE if wide else PLAIN)
    terms = np.empty((a.raw.size, 3))
    for i in range(a.raw.size):
        write(terms, i, multiply(far_element(a, i), far_element(b, i)))
    return tree_sum(terms)


@jit
def covariance(a: Vector, b: Vector, wide: bool) -> Number:
    """Return mean(a·b) of two centred vectors: what is left of the shifts is subtracted once, not per element."""
    mean = divide(dot(a, b, wide), exactly(float(a.data.size)))
    return subtract(mean, multiply(a.rest, b.rest))


# ---- the sweep that writes -------------------------------------------------------------------------------------------


@jit
def accumulate(output: Floats, coefficient: Number, a: Vector, wide: bool) -> None:
    """Add coefficient·(a.data − a.shift) to the pairs in ``output``."""
    hi = output[0]
    lo = output[1]
    data = a.data
    k_hi = math.ldexp(coefficient.hi, coefficient.exponent)
    k_lo = math.ldexp(coefficient.lo, coefficient.exponent)
    if wide:
        for i in range(data.size):
            t, f = two_sum(data[i], -a.shift)
            t, f = pair_multiply(k_hi, k_lo, t, f)
            hi[i], lo[i] = pair_add(hi[i], lo[i], t, f)
    else:
        for i in range(data.size):
            hi[i] += k_hi * (data[i] - a.shift)


@jit
def keep_far(output: Floats, i: int, value: Number) -> None:
    """Put a Number into an output of pairs; what binary64 cannot hold as a pair is rounded here."""
    if -900 < value.exponent < 1000:
        output[0, i] = math.ldexp(value.hi, value.exponent)
        output[1, i] = math.ldexp(value.lo, value.exponent)
    else:
        output[0, i] = to_binary64(value.hi, value.lo, value.exponent, False)
        output[1, i] = 0.0


@jit
def combine(
    output: Floats,
    wide: bool,
    constant: Number,
    k_a: Number,
    a: Vector,
    k_b: Number | None = None,
    b: Vector | None = None,
    k_c: Number | None = None,
    c: Vector | None = None,
) -> None:
    """Write constant + k_a·a + k_b·b + k_c·c, element by element in Numbers if an exponent is far from 0."""
    far = is_far(k_a, a)
    constant = subtract(constant, multiply(k_a, a.rest))
    if k_b is not None and b is not None:
        far |= is_far(k_b, b)
        constant = subtract(constant, multiply(k_b, b.rest))
    if k_c is not None and c is not None:
        far |= is_far(k_c, c)
        constant = subtract(constant, multiply(k_c, c.rest))
    far |= abs(constant.exponent) > COEFFICIENT_COMFORT + COMFORT
    if far:
        for i in range(a.data.size):
            value = add(constant, multiply(k_a, far_element(a, i)))
            if k_b is not None and b is not None:
                value = add(value, multiply(k_b, far_element(b, i)))
            if k_c is not None and c is not None:
                value = add(value, multiply(k_c, far_element(c, i)))
            keep_far(output, i, value)
        return
    output[0] = math.ldexp(constant.hi, constant.exponent)
    output[1] = math.ldexp(constant.lo, constant.exponent) if wide else 0.0
    accumulate(output, k_a, a, wide)
    if k_b is not None and b is not None:
        accumulate(output, k_b, b, wide)
    if k_c is not None and c is not None:
        accumulate(output, k_c, c, wide)


@jit
def is_far(coefficient: Number, a: Vector) -> bool:
    """Return whether coefficient·a needs more than binary64's exponents."""
    return a.scale != 0 or abs(coefficient.exponent) > COEFFICIENT_COMFORT


# ---- the passes ------------------------------------------------------------------------------------------------------
#
# Labels such as (B3) are the equations of `refbn.reference`.


class Channel(NamedTuple):
    """One channel of one call, packed.

    wide: whether vectors are computed in pairs. state (4, 3): Numbers. parameters: the channel's scalars. inputs
    (n, m): its tensors. outputs (n, 2, m): its tensors as pairs.
    sums (n, 3): its scalar results, as Numbers.
    """

    wide: bool
    state: Floats
    parameters: Floats
    inputs: Floats
    outputs: Floats
    sums: Floats


@jit
def given(channel: Channel, place: int) -> Number:
    """Return a parameter of the channel."""
    return exactly(channel.parameters[place])


@jit
def forward(channel: Channel) -> None:
    """Parameters gamma, beta, eps; input x; output y; sums mean, var, invstd.

    The statistics are always wide, because they are kept for passes whose formats are not known yet.
    """
    gamma, beta = given(channel, 0), given(channel, 1)
    d = centred(channel.inputs[0])  # (S1, S2)
    var = covariance(d, d, True)  # (S3)
    invstd = standardize(channel, d.point, d.rest, var, channel.parameters[2])
    write(channel.sums, 0, add(d.point, d.rest))
    write(channel.sums, 1, var)
    combine(channel.outputs[0], channel.wide, beta, multiply(gamma, invstd), d)  # (S5, F1)


@jit
def standardize(channel: Channel, shift: Number, rest: Number, var: Number, eps: float) -> Number:
    """Keep the statistics, make invstd the last of the sums, and return it, as NaN if q = 0."""
    q = add(var, exactly(eps))
    invstd = inverse_root(q)  # (S4)
    write(channel.state, SHIFT, shift)
    write(channel.state, REST, rest)
    write(channel.state, VAR, var)
    write(channel.state, INVSTD, invstd)
    last = channel.sums.shape[0] - 1
    write(channel.sums, last, invstd)
    if q.hi == 0.0:
        channel.sums[last, 0] = np.inf  # (R2)
        channel.sums[last, 1] = 0.0
    return invstd


@jit
def backward(channel: Channel) -> None:
    """Parameter gamma; inputs x, dy; output dx; sums dgamma, dbeta."""
    gamma, r = given(channel, 0), read(channel.state, INVSTD)
    d = restored(channel.inputs[0], channel.state)
    g = centred(channel.inputs[1])
    count = exactly(float(g.data.size))
    mean_xg = multiply(r, covariance(d, g, channel.wide))
    write(channel.sums, 0, multiply(count, mean_xg))  # (B4)
    write(channel.sums, 1, sum_of_centred(g))  # (B5)
    k_g = multiply(gamma, r)
    k_d = negative(multiply(multiply(k_g, mean_xg), r))
    combine(channel.outputs[0], channel.wide, ZERO, k_g, g, k_d, d)  # (B3, P1)


@jit
def sum_of_centred(a: Vector) -> Number:
    """Return the sum that `centred` took the mean of."""
    mean = add(scaled(exactly(a.shift), a.scale), a.rest)
    return multiply(exactly(float(a.data.size)), mean)


@jit
def jvp(channel: Channel) -> None:
    """Parameters gamma, gamma_dot, beta_dot; inputs x, x_dot; output y_dot."""
    d = restored(channel.inputs[0], channel.state)
    u = centred(channel.inputs[1])
    tangent(channel, d, u, covariance(d, u, channel.wide), channel.outputs[0])  # (J5)


@jit
def tangent(channel: Channel, d: Vector, u: Vector, mean_du: Number, output: Floats) -> None:
    """Write γ·r·P u + γ̇·x̂ + β̇ for the parameters γ, γ̇, β̇."""
    gamma, gamma_dot, beta_dot = given(channel, 0), given(channel, 1), given(channel, 2)
    r = read(channel.state, INVSTD)
    k_u = multiply(gamma, r)
    k_d = multiply(r, subtract(gamma_dot, multiply(k_u, multiply(r, mean_du))))
    combine(output, channel.wide, beta_dot, k_u, u, k_d, d)


@jit
def double_backward(channel: Channel) -> None:
    """Parameters gamma, ddgamma, ddbeta; inputs x, dy, ddx; outputs dx, ddy; sum dgamma."""
    d = restored(channel.inputs[0], channel.state)
    g = centred(channel.inputs[1])
    u = centred(channel.inputs[2])
    mean_du = covariance(d, u, channel.wide)
    second_order(channel, d, g, u, mean_du)  # (D3, D5)
    tangent(channel, d, u, mean_du, channel.outputs[1])  # (D2)


@jit
def hvp(channel: Channel) -> None:
    """Parameters gamma, gamma_dot; inputs x, dy, x_dot; output dx; sums dgamma, dbeta."""
    d = restored(channel.inputs[0], channel.state)
    g = centred(channel.inputs[1])
    u = centred(channel.inputs[2])
    mean_du = covariance(d, u, channel.wide)
    second_order(channel, d, g, u, mean_du)  # (H1, H2)
    write(channel.sums, 1, ZERO)  # (H3)


@jit
def second_order(channel: Channel, d: Vector, g: Vector, u: Vector, mean_du: Number) -> None:
    """Write K(u, g) + γ̇·r·P g for the parameters γ, γ̇, and the first sum r·Σ u·P g."""
    gamma, gamma_dot = given(channel, 0), given(channel, 1)
    r = read(channel.state, INVSTD)
    mean_xu = multiply(r, mean_du)
    mean_xg = multiply(r, covariance(d, g, channel.wide))
    mean_upg = subtract(covariance(u, g, channel.wide), multiply(mean_xu, mean_xg))  # (P6)
    write(channel.sums, 0, multiply(exactly(float(d.data.size)), multiply(r, mean_upg)))
    gamma_r = multiply(gamma, r)
    # (D5): k_g·P g + k_u·P u + k_x·x̂; then P's own share of x̂, by (P1).
    k_g = multiply(r, subtract(gamma_dot, multiply(gamma_r, mean_xu)))
    k_u = negative(multiply(r, multiply(gamma_r, mean_xg)))
    k_x = negative(multiply(r, multiply(gamma_r, mean_upg)))
    k_x = subtract(subtract(k_x, multiply(k_g, mean_xg)), multiply(k_u, mean_xu))
    combine(channel.outputs[0], channel.wide, ZERO, k_g, g, k_u, u, multiply(k_x, r), d)


@jit
def inference(channel: Channel) -> None:
    """Parameters mean, var, gamma, beta, eps; input x; output y; sum invstd."""
    mean, var = given(channel, 0), given(channel, 1)
    gamma, beta = given(channel, 2), given(channel, 3)
    r = standardize(channel, mean, ZERO, var, channel.parameters[4])
    k_d = multiply(gamma, r)
    combine(channel.outputs[0], channel.wide, beta, k_d, about(channel.inputs[0], mean))  # (I1)


@jit
def inference_backward(channel: Channel) -> None:
    """Parameter gamma; inputs x, dy; output dx; sums dgamma, dbeta, dmean, dvar."""
    gamma, r = given(channel, 0), read(channel.state, INVSTD)
    d = about(channel.inputs[0], read(channel.state, SHIFT))
    g = uncentred(channel.inputs[1])
    gamma_r = multiply(gamma, r)
    sum_g = total(g)
    sum_xg = multiply(r, dot(d, g, channel.wide))
    half_r2 = multiply(HALF, multiply(r, r))
    write(channel.sums, 0, sum_xg)  # (I7)
    write(channel.sums, 1, sum_g)  # (I8)
    write(channel.sums, 2, negative(multiply(gamma_r, sum_g)))  # (I5)
    write(channel.sums, 3, negative(multiply(multiply(gamma, half_r2), sum_xg)))  # (I6)
    combine(channel.outputs[0], channel.wide, ZERO, gamma_r, g)  # (I4)


@jit
def inference_jvp(channel: Channel) -> None:
    """Parameters gamma, mean_dot, var_dot, gamma_dot, beta_dot; inputs x, x_dot; output y_dot."""
    d = about(channel.inputs[0], read(channel.state, SHIFT))
    u = about(channel.inputs[1], given(channel, 1))
    frozen_tangent(channel, d, u, channel.outputs[0])  # (I3)


@jit
def frozen_tangent(channel: Channel, d: Vector, u: Vector, output: Floats) -> None:
    """Write γ·x̂˙ + γ̇·x̂ + β̇ for u = ẋ − μ̇ and the parameters γ, μ̇, v̇, γ̇, β̇."""
    gamma, var_dot, gamma_dot = given(channel, 0), given(channel, 2), given(channel, 3)
    r = read(channel.state, INVSTD)
    k_u = multiply(gamma, r)  # (I2)
    half_r2 = multiply(HALF, multiply(r, r))
    k_d = multiply(r, subtract(gamma_dot, multiply(multiply(gamma, half_r2), var_dot)))
    combine(output, channel.wide, given(channel, 4), k_u, u, k_d, d)


@jit
def inference_double_backward(channel: Channel) -> None:
    """Parameters gamma, ddmean, ddvar, ddgamma, ddbeta; inputs x, dy, ddx.

    Outputs dx, ddy; sums dgamma, dmean, dvar.
    """
    d = about(channel.inputs[0], read(channel.state, SHIFT))
    u = about(channel.inputs[2], given(channel, 1))
    frozen_second_order(channel, d, u)  # (I14)
    frozen_tangent(channel, d, u, channel.outputs[1])  # (I13)


@jit
def inference_hvp(channel: Channel) -> None:
    """Parameters gamma, mean_dot, var_dot, gamma_dot; inputs x, dy, x_dot.

    Output dx; sums dgamma, dmean, dvar, dbeta.
    """
    d = about(channel.inputs[0], read(channel.state, SHIFT))
    u = about(channel.inputs[2], given(channel, 1))
    frozen_second_order(channel, d, u)
    write(channel.sums, 3, ZERO)  # (I11)


@jit
def frozen_second_order(channel: Channel, d: Vector, u: Vector) -> None:
    """Write dx˙ and the sums dγ˙, dμ˙, dv˙ for u = ẋ − μ̇ and the parameters γ, μ̇, v̇, γ̇."""
    gamma, var_dot, gamma_dot = given(channel, 0), given(channel, 2), given(channel, 3)
    r = read(channel.state, INVSTD)
    g = uncentred(channel.inputs[1])
    half_r2 = multiply(HALF, multiply(r, r))
    sum_xg = multiply(r, dot(d, g, channel.wide))
    # Σ dy·x̂˙ by (I2)
    sum_xdot_g = subtract(multiply(r, dot(u, g, channel.wide)), multiply(multiply(half_r2, var_dot), sum_xg))
    gamma_v = multiply(multiply(gamma, half_r2), var_dot)  # ½·γ·r²·v̇
    k_g = multiply(r, subtract(gamma_dot, gamma_v))
    bracket = add(multiply(subtract(subtract(gamma_dot, gamma_v), gamma_v), sum_xg), multiply(gamma, sum_xdot_g))
    write(channel.sums, 0, sum_xdot_g)  # (I11)
    write(channel.sums, 1, negative(multiply(k_g, total(g))))  # (I10)
    write(channel.sums, 2, negative(multiply(half_r2, bracket)))  # (I12)
    combine(channel.outputs[0], channel.wide, ZERO, k_g, g)  # (I9)


@jit
def running_update(states: Floats, weights: Floats, factor: Floats, running: Floats, sums: Floats) -> None:
    """Blend every channel's statistics.

    ``weights`` (2, 3) are those of the new and the old value, ``factor`` (1, 3) turns var into the batch variance;
    ``running`` (2, G) are the old mean and variance and ``sums`` (2, G, 3) the blends.
    """
    for group in range(states.shape[0]):
        state = states[group]
        mean = add(read(state, SHIFT), read(state, REST))  # (S1)
        var = multiply(read(factor, 0), read(state, VAR))  # (S8)
        write(sums[0], group, blend(weights, mean, running[0, group]))
        write(sums[1], group, blend(weights, var, running[1, group]))


@jit
def blend(weights: Floats, new: Number, old: float) -> Number:
    """Return w·new + (1 − w)·old."""
    return add(multiply(read(weights, 0), new), multiply(read(weights, 1), exactly(old)))  # (S9)
