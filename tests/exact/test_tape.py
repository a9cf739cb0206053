from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbn.exact import Exact, Series, Var, gradient


def leaf(values):
    return Var(Exact.vector(values) if isinstance(values, list) else Exact.number(values), wanted=True)


ONE = Exact.number(1)


def test_polynomial_of_numbers():
    x, y = leaf(3), leaf(Fraction(1, 2))
    f = x * x * y - y / x + x * 2 - 1
    assert f.value == Fraction(9, 2) - Fraction(1, 6) + 6 - 1
    dx, dy = gradient(f, ONE, [x, y])
    assert dx == 2 * 3 * Fraction(1, 2) + Fraction(1, 2) / 9 + 2
    assert dy == 9 - Fraction(1, 3)


def test_polynomial_of_a_vector():
    x = leaf([1, 2, 4])
    f = (x * x * x).sum() + x.mean() * 6
    (dx,) = gradient(f, ONE, [x])
    assert dx == Exact.vector([3 + 2, 12 + 2, 48 + 2])


def test_broadcasting_is_transposed_by_the_sum():
    x, c = leaf([1, 2, 4]), leaf(5)
    w = Exact.vector([1, 10, 100])
    for result, dx, dc in (
        (x + c, w, 111),
        (c + x, w, 111),
        (x - c, w, -111),
        (c - x, -w, 111),
        (x * c, w * 5, 1 + 20 + 400),
        (c * x, w * 5, 1 + 20 + 400),
        (x / c, w / 5, Fraction(-421, 25)),
        (c.spread(3) * x, w * 5, 421),
    ):
        assert gradient(result, w, [x, c]) == [dx, dc]


def test_a_number_as_cotangent_of_a_vector_is_repeated():
    x, c = leaf([1, 2, 4]), leaf(5)
    for result in (x + c, x - c, x * c, x / c, -x + c, (x + c) * (x - c), x * x + c.spread(3)):
        assert gradient(result, ONE, [x, c]) == gradient(result, Exact.vector([1, 1, 1]), [x, c])


def test_root():
    q = leaf(2)
    (dq,) = gradient(q.sqrt(), ONE, [q])
    assert dq * 2 * q.value.sqrt() == 1


def test_a_value_used_often_collects_all_cotangents():
    x = leaf(2)
    u = x * x
    v = u * u + u + (u - x) * u
    (dx,) = gradient(v, ONE, [x])  # 2x⁴ + x² − x³
    assert dx == 8 * 8 + 2 * 2 - 3 * 4


def test_what_the_output_does_not_depend_on():
    x, y = leaf(2), leaf([1, 2])
    assert gradient(x * 3, ONE, [x, y]) == [Exact.number(3), None]
    constant = Var(Exact.number(2))
    assert gradient(constant * constant, ONE, [x]) == [None]


def test_nothing_is_remembered_of_constants():
    x, w = leaf([1, 2]), Var(Exact.vector([3, 4]))
    assert [source for source, _ in (x * w).sources] == [x]
    assert not (w * w + 1).sum().wanted
    assert not (-w).sources


@pytest.mark.parametrize("m", [1, 3])
def test_leaf_as_output(m):
    x = leaf(list(range(m)))
    assert gradient(x, ONE, [x]) == [Exact.number(1).spread(m)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-6, 6), min_size=3, max_size=3), st.integers(1, 6), st.integers(-5, 5))
def test_tape_over_series_is_the_hessian(values, c, step):
    """f = c·Σx³ + (Σx)²·c² has a Hessian that can be written down."""
    direction = Exact.vector([step, 1, -2])
    x = Var(Series.along(Exact.vector(values), direction, 1), wanted=True)
    k = Var(Series.along(Exact.number(c), ONE, 1), wanted=True)
    total = x.sum()
    f = (x * x * x).sum() * k + total * total * k * k
    dx, dk = gradient(f, Series.along(ONE, None, 1), [x, k])
    v, s, ds = Exact.vector(values), sum(values), step - 1
    assert dx.coefficient(0) == v * v * 3 * c + 2 * s * c * c
    assert dx.coefficient(1) == v * direction * 6 * c + 2 * ds * c * c + v * v * 3 + 4 * s * c
    assert dk.coefficient(0) == (v * v * v).sum() + 2 * s * s * c
    assert dk.coefficient(1) == (v * v * direction * 3).sum() + 4 * s * ds * c + 2 * s * s


def test_a_tape_of_a_tape():
    x = Var(Var(Exact.number(3), wanted=True), wanted=True)
    (dx,) = gradient(x * x * x, Var(ONE), [x])
    (dxx,) = gradient(dx, ONE, [x.value])
    assert (dx.value, dxx) == (Exact.number(27), Exact.number(18))
