import random
from bisect import bisect_left
from fractions import Fraction
from math import copysign, inf, isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS
from refbn.exact import Exact, round_number
from refbn.exact.rounding import round_all, round_pairs

BY_SHORT = {fmt.short: fmt for fmt in FORMATS}
each_format = pytest.mark.parametrize("fmt", FORMATS, ids=BY_SHORT)


def ladder(fmt):
    """Return every nonnegative finite number of a narrow format, as fractions in order, and 2^(emax+1)."""
    values = []
    for field in range((fmt.emax - fmt.emin + 1) * 2 ** (fmt.precision - 1) + 2 ** (fmt.precision - 1)):
        exponent, mantissa = divmod(field, 2 ** (fmt.precision - 1))
        significand = mantissa + (2 ** (fmt.precision - 1) if exponent else 0)
        values.append(significand * Fraction(2) ** (max(exponent, 1) - 1 + fmt.emin - fmt.precision + 1))
    assert values[-1] == Fraction(fmt.max)
    return [*values, Fraction(2) ** (fmt.emax + 1)]


LADDERS = {fmt.short: ladder(fmt) for fmt in (BINARY16, BFLOAT16)}


def sign(a, b, n):
    """Return the sign of a + b·√n by comparing squares."""
    b = b if n else 0
    sa, sb = (a > 0) - (a < 0), (b > 0) - (b < 0)
    if sa * sb >= 0:
        return sa or sb
    difference = a * a - b * b * n
    return sa if difference > 0 else sb if difference < 0 else 0


def brute(a, b, n, fmt):
    """Round by searching the ladder, with exact comparisons with the midpoints."""
    s = sign(a, b, n)
    if s == 0:
        return 0.0
    steps = LADDERS[fmt.short]
    magnitude = (s * a, s * b)
    low, high = 0, len(steps) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if sign(magnitude[0] - steps[middle], magnitude[1], n) >= 0:
            low = middle
        else:
            high = middle
    if sign(magnitude[0] - steps[-1], magnitude[1], n) >= 0:
        return copysign(inf, s)
    side = sign(magnitude[0] - (steps[low] + steps[high]) / 2, magnitude[1], n)
    chosen = high if side > 0 or (side == 0 and low % 2) else low
    return copysign(inf if chosen == len(steps) - 1 else float(steps[chosen]), s)


def same(u, v):
    return u == v and copysign(1, u) == copysign(1, v)


def assert_nearest(a, b, n, fmt, rounded):
    """Check a rounding to any format from its two neighbours alone."""
    s = sign(a, b, n)
    if s == 0:
        assert same(rounded, 0.0)
        return
    assert copysign(1, rounded) == s
    a, b, rounded = s * a, s * b, abs(rounded)
    beyond = Fraction(2) ** (fmt.emax + 1)
    value = beyond if rounded == inf else Fraction(rounded)
    smallest = Fraction(2) ** (fmt.emin - fmt.precision + 1)
    exponent = max(value.numerator.bit_length() - value.denominator.bit_length(), fmt.emin) if value else fmt.emin
    ulp = Fraction(2) ** (exponent - fmt.precision + 1)
    assert (value / ulp).denominator == 1, "not a number of the format"
    even = (value / ulp).numerator % 2 == 0
    down = max(ulp / 2 if value == Fraction(2) ** exponent else ulp, smallest)
    if rounded != inf:
        upper = sign(a - (value + ulp / 2), b, n)
        assert upper < 0 or (upper == 0 and even)
    if value:
        lower = sign(a - (value - down / 2), b, n)
        assert lower > 0 or (lower == 0 and even)


@pytest.mark.parametrize("fmt", [BINARY16, BFLOAT16], ids=lambda f: f.short)
def test_every_number_midpoint_and_its_surroundings(fmt):
    steps = LADDERS[fmt.short]
    if fmt is BFLOAT16:  # one in seven of 32640, and both ends
        chosen = sorted({*range(0, len(steps) - 1, 7), *range(300), *range(len(steps) - 300, len(steps) - 1)})
    else:
        chosen = range(len(steps) - 1)
    nudge = Fraction(1, 2**400)
    for i in chosen:
        low, high = steps[i], steps[i + 1]
        low_float, high_float = float(low), float(high) if i + 2 < len(steps) else inf
        middle = (low + high) / 2
        even = high_float if i % 2 else low_float
        assert round_number(low, 0, 0, fmt) == low_float
        assert round_number(middle, 0, 0, fmt) == even
        assert round_number(middle - nudge, 0, 0, fmt) == low_float
        assert round_number(-middle, -nudge, 2, fmt) == -high_float
        assert same(round_number(-middle, nudge, 2, fmt), -low_float)


@each_format
def test_limits(fmt):
    tiny, top = Fraction(2) ** (fmt.emin - fmt.precision + 1), Fraction(fmt.max)
    over = top + (Fraction(2) ** (fmt.emax + 1) - top) / 2
    nudge = Fraction(1, 2**1500)
    assert round_number(top, 0, 0, fmt) == fmt.max
    assert round_number(over, 0, 0, fmt) == inf
    assert round_number(over, -nudge, 3, fmt) == fmt.max
    assert round_number(-over, nudge, 3, fmt) == -fmt.max
    assert round_number(-over * 2**3000, 1, 3, fmt) == -inf
    assert round_number(tiny, 0, 0, fmt) == fmt.tiny
    assert same(round_number(tiny / 2, 0, 0, fmt), 0.0)
    assert same(round_number(-tiny / 2, 0, 0, fmt), -0.0)
    assert round_number(tiny / 2, nudge, 3, fmt) == fmt.tiny
    assert same(round_number(-tiny / 2, nudge, 3, fmt), -0.0)
    assert same(round_number(0, -(nudge**9), 3, fmt), -0.0)
    assert same(round_number(0, 0, 3, fmt), 0.0)
    assert round_number(tiny * 5 / 2, 0, 0, fmt) == 2 * fmt.tiny
    assert round_number(tiny * 7 / 2, 0, 0, fmt) == 4 * fmt.tiny


@each_format
def test_cancellation_next_to_midpoints(fmt):
    rng = random.Random(fmt.precision)
    half = 2 ** (fmt.precision - 1)
    for _ in range(150):
        n = rng.choice([2, 3, 5, 7, 12345678987654323, (1 << 61) - 1])
        exponent = rng.choice([fmt.emin, fmt.emin + 1, 0, fmt.emax])
        significand = rng.choice([rng.randrange(half, 2 * half), 2 * half - 1, half])
        if exponent == fmt.emin:
            significand -= rng.choice([0, half])
        ulp = Fraction(2) ** (exponent - fmt.precision + 1)
        middle = (significand + Fraction(1, 2)) * ulp
        # √n less its truncation is positive and tiny, so a + b·√n lies a little above the midpoint.
        b = Fraction(rng.randint(1, 1 << 20), rng.randint(1, 1 << 20))
        scale = rng.choice([1200, 1600])
        a = middle - b * Fraction(isqrt(n << 2 * scale), 1 << scale)
        above, below = round_number(a, b, n, fmt), round_number(2 * middle - a, -b, n, fmt)
        assert_nearest(a, b, n, fmt, above)
        assert_nearest(2 * middle - a, -b, n, fmt, below)
        assert below == significand * ulp
        assert above == (inf if below == fmt.max else (significand + 1) * ulp)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(FORMATS),
    st.fractions(min_value=-4, max_value=4, max_denominator=1 << 40),
    st.fractions(min_value=-4, max_value=4, max_denominator=1 << 40),
    st.integers(0, 1 << 70),
    st.integers(-1200, 1100),
)
def test_random_numbers_round_to_nearest(fmt, a, b, n, exponent):
    a, b = a * Fraction(2) ** exponent, b * Fraction(2) ** exponent
    assert_nearest(a, b, n, fmt, round_number(a, b, n, fmt))


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([BINARY16, BFLOAT16]),
    st.fractions(min_value=-(1 << 17), max_value=1 << 17, max_denominator=1 << 30),
    st.fractions(min_value=-9, max_value=9, max_denominator=1 << 30),
    st.integers(1, 40),
)
def test_narrow_formats_against_search(fmt, a, b, n):
    assert same(round_number(a, b, n, fmt), brute(a, b, n, fmt))


@pytest.mark.parametrize("root", [0, 1, 3, 2**40 + 1])
def test_perfect_squares_are_rational(root):
    tie = Fraction(1) + Fraction(1, 2**11)
    assert round_number(tie - root, 1, root * root, BINARY16) == 1.0
    assert same(round_number(-root, 1, root * root, BINARY64), 0.0)


def mixed_vectors():
    """Return vectors whose elements need every path: easy ones, ties, exact values, zeros, tiny and huge ones."""
    rng = random.Random(5)
    root = Exact.number(Fraction(10, 7)).sqrt()
    ordinary = Exact.vector([rng.randrange(-(2**60), 2**60) for _ in range(200)], Fraction(1, 2**55))
    few = Exact.vector([rng.choice([0, 1, -3, 2049, 4097, 2**24 + 1, 2**53 + 1]) for _ in range(200)])
    spread = Exact.vector([rng.randrange(-9, 9) << rng.randrange(0, 200) for _ in range(200)])
    extreme = Exact.vector([rng.randrange(-99, 99) << rng.randrange(0, 2200) for _ in range(200)], Fraction(1, 2**1150))
    yield from (ordinary, few, spread, extreme, ordinary * root, few * root, spread * root, extreme * root)
    yield ordinary + few * root
    yield ordinary * root * Fraction(-1, 2**1060) - few * Fraction(1, 2**1074)
    yield ordinary * root * Fraction(2) ** 1010
    yield spread * Fraction(1, 2**160) + spread * root * Fraction(2) ** 900
    yield few * root - Fraction(isqrt(10 << 400), isqrt(7 << 400))  # cancels where few is 1
    yield few + root * Fraction(1, 2**90)  # next to midpoints
    yield few * Fraction(1, 2**1075) + root * Fraction(1, 2**1200)  # the same, subnormal
    yield Exact.vector([3 * (2**53 + n) for n in range(20)], Fraction(1, 3))  # midpoints after an inexact scale
    yield (root + 1).spread(20)
    yield Exact.zeros(20)


@each_format
@pytest.mark.parametrize("index", range(18))
def test_vectors_round_like_their_elements(index, fmt):
    v = list(mixed_vectors())[index]
    rounded = round_all(v, fmt)
    for i, got in enumerate(rounded.tolist()):
        a, b, n = v.parts(i)
        assert same(got, round_number(a, b, n, fmt))


def test_the_fast_path_decides_nearly_everything(monkeypatch):
    rng = random.Random(3)
    v = Exact.vector([rng.randrange(-(2**50), 2**50) for _ in range(1000)]) * Exact.number(3).sqrt()
    expected = round_all(v, BINARY64)
    calls = []
    monkeypatch.setattr("refbn.exact.rounding._round_positive", lambda *_: calls.append(1) or 1.0)
    assert np.array_equal(round_all(v, BINARY64), expected)
    round_all(v, BINARY32)
    assert len(calls) <= 3


@pytest.mark.parametrize("index", range(18))
def test_pairs(index):
    v = list(mixed_vectors())[index]
    hi, lo = round_pairs(v)
    for i, (head, tail) in enumerate(zip(hi.tolist(), lo.tolist(), strict=True)):
        a, b, n = v.parts(i)
        assert same(head, round_number(a, b, n, BINARY64))
        expected = 0.0 if abs(head) == inf else round_number(a - Fraction(head), b, n, BINARY64)
        assert same(tail, expected)


def test_numbers_and_empty_vectors():
    half = Exact.number(Fraction(1, 2))
    assert round_all(half, BINARY16).tolist() == [0.5]
    assert round_all(Exact.zeros(0), BINARY16).shape == (0,)
    assert round_all(half.spread(0), BINARY16).shape == (0,)
    assert [part.shape for part in round_pairs(half.spread(0))] == [(0,), (0,)]


def test_ladders_agree_with_the_dtypes():
    for fmt in (BINARY16, BFLOAT16):
        bits = np.arange(len(LADDERS[fmt.short]) - 1, dtype=np.uint16)
        assert bits.view(fmt.dtype).astype(float).tolist() == [float(v) for v in LADDERS[fmt.short][:-1]]
        assert bisect_left(LADDERS[fmt.short], Fraction(1)) == int(np.array(1, fmt.dtype).view(np.uint16))


def test_binary64_agrees_with_the_square_root_of_the_processor():
    for n in range(2, 300):
        assert round_number(0, 1, n, BINARY64) == float(np.sqrt(float(n)))
