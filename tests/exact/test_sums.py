"""Sums over fields, decided exactly."""

from fractions import Fraction
from math import inf, isqrt

import mpmath
import numpy as np
import pytest

from refbn._formats import BINARY16, BINARY32, BINARY64
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all, round_number
from refbn.exact.sums import Sum, pairs, round_sum, rounded


def term(a, b, n):
    """Return a + b·√n."""
    return Exact.number(Fraction(a)) + Exact.number(Fraction(n)).sqrt() * Fraction(b)


@pytest.mark.parametrize("form", [BINARY16, BINARY32, BINARY64], ids=lambda form: form.name)
def test_against_high_precision(form):
    rng = np.random.default_rng(3)
    with mpmath.workdps(80):
        for _ in range(200):
            terms = [tuple(int(k) for k in rng.integers([-9, -9, 1], [10, 10, 50])) for _ in range(rng.integers(1, 7))]
            value = sum((mpmath.mpf(a) + b * mpmath.sqrt(n) for a, b, n in terms), mpmath.mpf(0))
            nearest = Fraction(int(mpmath.nint(value * mpmath.mpf(2) ** 200)), 2**200)
            if abs(value) < mpmath.mpf(2) ** -190:
                nearest = Fraction(0)
            assert round_sum([term(*t) for t in terms], form) == round_number(nearest, 0, 0, form)


def test_roots_of_one_field_cancel():
    terms = [term(0, 1, 2), term(0, 1, 8), term(0, -3, 2), term(Fraction(1, 3), 0, 1)]
    assert round_sum(terms, BINARY64) == 1 / 3
    assert round_sum(terms[:3], BINARY64) == 0.0
    assert round_sum([], BINARY64) == 0.0
    assert round_sum([*terms[:3], term(1, 0, 1), term(2.0**-53, 0, 1)], BINARY64) == 1.0  # a tie, to even


def test_almost_a_tie_with_two_roots():
    # √2 + √3 − c, with c so near that more than the first 256 bits are needed, either side of a midpoint.
    bits = 600
    c = Fraction(isqrt(2 << 2 * bits) + isqrt(3 << 2 * bits), 1 << bits)
    tie = Fraction(1) + Fraction(1, 2**24)
    above = [term(0, 1, 2), term(0, 1, 3), term(tie - c, 0, 1)]
    below = [term(0, -1, 2), term(0, -1, 3), term(tie + c, 0, 1)]
    assert round_sum(above, BINARY32) == 1.0 + 2.0**-23
    assert round_sum(below, BINARY32) == 1.0


def test_tiny_and_huge_sums():
    tiny = [term(0, Fraction(1, 2**1100), 2), term(0, Fraction(1, 2**1100), 3)]
    assert round_sum(tiny, BINARY64) == 0.0
    huge = [term(0, 2**1100, 2), term(0, 2**1100, 3)]
    assert round_sum(huge, BINARY64) == float("inf")


def test_numbers_vectors_and_sums_are_rounded_alike():
    vector = Exact.vector([1, 2, 3], Fraction(1, 3))
    assert np.array_equal(rounded(vector, BINARY32), round_all(vector, BINARY32))
    root = Exact.number(2).sqrt()
    (high,), (low,) = pairs(Sum((Exact.number(2).sqrt(), Exact.number(3).sqrt())))
    assert (
        high
        == round_sum([root, Exact.number(3).sqrt()], BINARY64)
        == rounded(Sum((root, Exact.number(3).sqrt())), BINARY64)[0]
    )
    known = sum(isqrt(n << 400) for n in (2, 3))  # √2 + √3 in units of 2^-200, at most 2 too small
    assert abs((Fraction(high) + Fraction(low)) * 2**200 - known) <= Fraction(2) ** (200 - 106)
    for one, other in zip(pairs(Sum((root,))), pairs(root), strict=True):
        assert np.array_equal(one, other)
    assert pairs(Sum(())) == (np.zeros(1), np.zeros(1))
    (high,), (low,) = pairs(Sum((Exact.number(Fraction(2) ** 1030), root)))
    assert high == inf and low == 0
