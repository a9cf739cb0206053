from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbn._errors import DomainError
from refbn.exact import Exact, Series

ORDER = 4
small = st.one_of(st.none(), st.fractions(min_value=-5, max_value=5, max_denominator=9))


def number(value):
    return None if value is None else Exact.number(value)


def coefficients(s):
    return [Exact.zeros(s.length) if s.coefficient(k) is None else s.coefficient(k) for k in range(s.order + 1)]


@st.composite
def series(draw, head=small):
    return Series([number(draw(head)), *(number(draw(small)) for _ in range(ORDER))], None)


@st.composite
def vector_series(draw):
    vectors = st.one_of(st.none(), st.lists(st.integers(-5, 5), min_size=3, max_size=3).map(Exact.vector))
    return Series([draw(vectors) for _ in range(ORDER + 1)], 3)


positive = st.fractions(min_value=Fraction(1, 9), max_value=5, max_denominator=9)


@settings(deadline=None, max_examples=50)
@given(series(), series(), vector_series())
def test_product_is_the_convolution(s, t, v):
    cs, ct, cv = coefficients(s), coefficients(t), coefficients(v)
    for left, right, product in ((cs, ct, s * t), (cs, cv, s * v), (cv, cs, v * s), (cs, cs, s * s), (cv, cv, v * v)):
        for k, c in enumerate(coefficients(product)):
            terms = [left[i] * right[k - i] for i in range(k + 1)]
            assert c == sum(terms[1:], terms[0])


@settings(deadline=None, max_examples=50)
@given(series(positive))
def test_root_times_itself(q):
    s = q.sqrt()
    assert coefficients(s * s) == coefficients(q)


@settings(deadline=None, max_examples=50)
@given(vector_series(), series(positive))
def test_quotient_times_divisor(v, q):
    s = q.sqrt()
    assert coefficients((v / s) * s) == coefficients(v)
    assert coefficients((v / q) * q) == coefficients(v)


@settings(deadline=None, max_examples=50)
@given(vector_series(), series())
def test_linear_operations_are_coefficientwise(v, s):
    cv, cs = coefficients(v), coefficients(s)
    assert coefficients(v + s) == [a + b for a, b in zip(cv, cs, strict=True)]
    assert coefficients(s - v) == [b - a for a, b in zip(cv, cs, strict=True)]
    assert coefficients(-v) == [-a for a in cv]
    assert coefficients(v.sum()) == [a.sum() for a in cv]
    assert coefficients(v.mean()) == [a.mean() for a in cv]
    assert coefficients(s.spread(3)) == [b.spread(3) for b in cs]
    assert coefficients((v + s).sum()) == [a.sum() + b * 3 for a, b in zip(cv, cs, strict=True)]
    assert coefficients(v * Fraction(2, 3)) == [a * Fraction(2, 3) for a in cv]
    assert coefficients(v / 7) == [a / 7 for a in cv]


def test_constants_touch_the_leading_coefficient_only():
    s = Series([Exact.number(2), None, Exact.number(5)], None)
    assert coefficients(s + 1) == [3, 0, 5]
    assert coefficients(s - Fraction(1, 2)) == [Fraction(3, 2), 0, 5]


def test_the_binomial_series():
    x = Series([Exact.number(1), Exact.number(1), *[None] * 5], None)
    expected = [1, Fraction(1, 2), Fraction(-1, 8), Fraction(1, 16), Fraction(-5, 128), Fraction(7, 256)]
    assert coefficients(x.sqrt())[:6] == expected
    reciprocal = Series([Exact.number(1), *[None] * 6], None) / x
    assert coefficients(reciprocal) == [1, -1, 1, -1, 1, -1, 1]


def test_zero_coefficients_cost_nothing():
    class Counted(Exact):
        products = 0

        def __mul__(self, other):
            Counted.products += 1
            return super().__mul__(other)

    one = Counted(Exact.number(1).a, None, 0, None)
    sparse = Series([one, None, None, None, one], None)
    assert (sparse * sparse).coefficients[1] is None
    assert Counted.products == 2  # 1·1 and 1·t⁴, the latter taken twice by a factor
    Counted.products = 0
    assert coefficients(sparse * Series([None, one, None, None, None], None)) == [0, 1, 0, 0, 0]
    assert Counted.products == 1


def test_along_truncates():
    x, x_dot = Exact.number(3), Exact.number(4)
    assert Series.along(x, x_dot, 0).coefficients == (x,)
    assert Series.along(x, x_dot, 2).coefficients == (x, x_dot, None)
    assert Series.along(x, None, 1).coefficients == (x, None)


def test_undefined_operations():
    zero_head = Series([None, Exact.number(1)], None)
    with pytest.raises(DomainError):
        zero_head.sqrt()
    with pytest.raises(DomainError):
        zero_head / zero_head
    with pytest.raises(DomainError):
        Series([Exact.zeros(None), Exact.number(1)], None).sqrt()
    with pytest.raises(TypeError):
        zero_head + 1
    with pytest.raises(TypeError):
        zero_head * Series([None], None)
    for operate in (lambda a: a + 0.5, lambda a: a - 0.5, lambda a: a * 0.5, lambda a: a / 0.5):
        with pytest.raises(TypeError):
            operate(Series([Exact.number(1)], None))
