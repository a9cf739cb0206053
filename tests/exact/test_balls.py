"""Balls against rational arithmetic: each operation encloses what it computes, and rounds only what it is sure of."""

import math
from fractions import Fraction

import numpy as np
import pytest

from refbn._formats import FORMATS, round_to
from refbn.exact.balls import Ball
from refbn.exact.rounding import round_number

RNG = np.random.default_rng(20)
SIZES = {
    "ordinary": (-8, 8),
    "wide": (-300, 300),
    "tiny": (-1070, -900),
    "subnormal": (-1074, -1020),
    "huge": (900, 1010),
}


def numbers(kind, count=60):
    low, high = SIZES[kind]
    values = np.ldexp(RNG.choice([-1.0, 1.0], count) * (1 + RNG.random(count)), RNG.integers(low, high, count))
    values[::7] = np.trunc(values[::7]) + (np.abs(values[::7]) < 1)
    return values


def balls(kind):
    """Return balls with all three parts, and a rational number in each."""
    hi = numbers(kind)
    lo = np.where(np.isfinite(hi), np.spacing(hi) * RNG.uniform(-0.5, 0.5, hi.size), 0.0)
    hi, lo = hi + lo, lo - ((hi + lo) - hi)
    radius = np.abs(hi) * 2.0**-100 * RNG.integers(0, 2, hi.size)
    inside = [
        Fraction(h) + Fraction(w) + Fraction(r) * Fraction(float(t))
        for h, w, r, t in zip(hi, lo, radius, RNG.uniform(-1, 1, hi.size), strict=True)
    ]
    return Ball(hi[:, None], lo[:, None], radius[:, None], None), inside


def assert_enclosed(ball, exact, at_least):
    """Every finite ball holds its number; at least so many are finite."""
    finite = 0
    shape = np.broadcast_shapes(ball.hi.shape, (len(exact), 1))
    hi, lo, radius = (np.broadcast_to(part, shape)[:, 0] for part in (ball.hi, ball.lo, ball.radius))
    for h, w, r, value in zip(hi.tolist(), lo.tolist(), radius.tolist(), exact, strict=True):
        if math.isfinite(h) and math.isfinite(w) and math.isfinite(r):
            assert abs(Fraction(h) + Fraction(w) - value) <= Fraction(r)
            assert h == h + w
            finite += 1
    assert finite >= at_least


@pytest.mark.parametrize("kind", SIZES)
def test_sums_and_differences(kind):
    (a, exact_a), (b, exact_b) = balls(kind), balls(kind)
    with np.errstate(all="ignore"):
        assert_enclosed(a + b, [x + y for x, y in zip(exact_a, exact_b, strict=True)], 60)
        assert_enclosed(a - b, [x - y for x, y in zip(exact_a, exact_b, strict=True)], 60)
        assert_enclosed(a + Fraction(1, 3), [x + Fraction(1, 3) for x in exact_a], 60)


@pytest.mark.parametrize("kind", SIZES)
def test_products(kind):
    (a, exact_a), (b, exact_b) = balls(kind), balls(kind)
    with np.errstate(all="ignore"):
        assert_enclosed(a * b, [x * y for x, y in zip(exact_a, exact_b, strict=True)], 0 if kind == "huge" else 50)
        assert_enclosed(a * Fraction(3, 7), [x * Fraction(3, 7) for x in exact_a], 0 if kind == "huge" else 60)


@pytest.mark.parametrize("kind", ["ordinary", "wide"])
def test_quotients_and_roots(kind):
    (a, exact_a), (b, exact_b) = balls(kind), balls(kind)
    squares = b * b
    with np.errstate(all="ignore"):
        assert_enclosed(a / b, [x / y for x, y in zip(exact_a, exact_b, strict=True)], 60)
        root = squares.sqrt()
    exact = [abs(y) for y in exact_b]
    assert_enclosed(root, exact, 60)
    assert (root.radius < np.abs(root.hi) * 2.0**-95).all()


def test_the_sum_of_a_vector_of_any_length():
    for count in (1, 2, 3, 5, 8, 13, 100):
        values = numbers("ordinary", 2 * count).reshape(2, count)
        exact = [sum(map(Fraction, row), Fraction(0)) for row in values.tolist()]
        assert_enclosed(Ball.vectors(values).sum(), exact, 2)
        assert_enclosed(Ball.vectors(values).mean(), [total / count for total in exact], 2)


def test_differences_are_exact():
    values = numbers("wide", 30).reshape(3, 10)
    ball = Ball.differences(values, values[:, :1])
    for row, hi, lo in zip(values.tolist(), ball.hi.tolist(), ball.lo.tolist(), strict=True):
        for value, h, w in zip(row, hi, lo, strict=True):
            assert Fraction(h) + Fraction(w) == Fraction(value) - Fraction(row[0])
    assert not ball.radius.any()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_rounding_is_right_where_it_is_sure(form):
    sure_ones = 0
    for kind in SIZES:
        ball, exact = balls(kind)
        values, sure = ball.round(form)
        for value, agreed, x in zip(values[:, 0].tolist(), sure[:, 0].tolist(), exact, strict=True):
            if agreed:
                expected = round_number(x, 0, 0, form)
                assert value == expected and math.copysign(1, value) == math.copysign(1, expected)
                sure_ones += 1
    assert sure_ones > 200


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_rounding_is_not_sure_near_a_midpoint_and_at_a_possible_zero(form):
    one = round_to(np.ones(1), form.dtype)
    step = float(np.nextafter(one, one + one)[0]) - 1.0
    tie = Ball(np.array([[1.0]]), np.array([[step / 2]]), np.array([[2.0**-120]]), None)
    if form.precision < 53:
        tie = Ball(np.array([[1.0 + step / 2]]), np.zeros((1, 1)), np.array([[2.0**-120]]), None)
    around_zero = Ball(np.zeros((1, 1)), np.zeros((1, 1)), np.array([[2.0**-200]]), None)
    assert not tie.round(form)[1].any()
    if form.emin < -200:
        assert not around_zero.round(form)[1].any()


def test_exact_zeros_are_positive():
    ball = -Ball.numbers(np.zeros(3))
    values, sure = ball.round(FORMATS[-1])
    assert sure.all() and not np.signbit(values).any()


def test_what_leaves_the_range_is_not_sure():
    with np.errstate(all="ignore"):
        huge = Ball.numbers(np.array([2.0**1000])) * Ball.numbers(np.array([2.0**1000]))
        by_zero = Ball.numbers(np.ones(1)) / Ball.numbers(np.zeros(1))
        root = (-Ball.numbers(np.ones(1))).sqrt()
        for ball in (huge, by_zero, root):
            assert not ball.round(FORMATS[-1])[1].any()
