from fractions import Fraction
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbn._errors import DomainError
from refbn.exact import Exact

fractions = st.fractions(min_value=-50, max_value=50, max_denominator=60)


def surd(a, b, n):
    return Exact.number(a) + Exact.number(n).sqrt() * b


@st.composite
def fields(draw, count):
    """Draw numbers of one field Q(√n); n may be a square, and then the field is Q."""
    n = draw(st.integers(1, 40))
    return [surd(draw(fractions), draw(fractions), n) for _ in range(count)]


@st.composite
def vector_pairs(draw):
    n, m = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    return tuple(draw(vectors(n, m)) for _ in range(2))


@st.composite
def vectors(draw, n, m):
    root = Exact.number(n).sqrt()
    ints = st.lists(st.integers(-9, 9), min_size=m, max_size=m)
    scales = st.sampled_from([Fraction(0), Fraction(1), Fraction(1, 3), Fraction(-8, 5)])
    rational = Exact.vector(draw(ints), draw(scales))
    return rational + draw(st.sampled_from([Exact.vector(draw(ints), draw(scales)), Exact.number(2)])) * root


def elements(v):
    return [v.element(i) for i in range(v.length)]


@settings(deadline=None)
@given(fields(3))
def test_field_axioms(numbers):
    u, v, w = numbers
    assert u + v == v + u
    assert u * v == v * u
    assert (u + v) + w == u + (v + w)
    assert (u * v) * w == u * (v * w)
    assert u * (v + w) == u * v + u * w
    assert u - v == -(v - u)
    assert (u - u).is_zero()
    assert u + 0 == u
    assert u * 1 == u
    if not u.is_zero():
        assert u / u == 1
        assert (v / u) * u == v
        assert 1 / u * v == v / u
    assert (u * v).is_zero() == (u.is_zero() or v.is_zero())


@settings(deadline=None)
@given(fields(2))
def test_order_is_that_of_the_real_numbers(numbers):
    u, v = numbers
    assert u.sign() == -(-u).sign()
    assert (u * v).sign() == u.sign() * v.sign()
    assert (u * u).sign() == (not u.is_zero())
    if u.sign() == v.sign():
        assert (u + v).sign() == u.sign()


@settings(deadline=None)
@given(vector_pairs())
def test_vectors_are_elementwise(pair):
    u, v = pair
    c = u.element(0)
    for left, right, operate in (
        (u, v, lambda a, b: a + b),
        (u, v, lambda a, b: a - b),
        (u, v, lambda a, b: a * b),
    ):
        assert elements(operate(left, right)) == [
            operate(a, b) for a, b in zip(elements(left), elements(right), strict=True)
        ]
        assert elements(operate(left, c)) == [operate(a, c) for a in elements(left)]
        assert elements(operate(c, left)) == [operate(c, a) for a in elements(left)]
    assert elements(u * u) == [a * a for a in elements(u)]
    assert u.sum() == sum(elements(u), Exact.zeros(None))
    assert u.mean() * u.length == u.sum()
    assert elements(c.spread(3)) == [c] * 3
    if not c.is_zero():
        assert (u / c) * c == u


@given(st.fractions(min_value=0, max_value=10**30))
def test_root_of_a_rational_squares_to_it(q):
    root = Exact.number(q).sqrt()
    assert root * root == q
    assert root.sign() == (q > 0)


@pytest.mark.parametrize("exponent", [-2148, -1, 0, 3, 2046])
def test_root_leaves_no_powers_of_four_in_the_radicand(exponent):
    _, _, radicand = Exact.number(Fraction(7) * Fraction(2) ** exponent).sqrt().parts()
    assert radicand == (14 if exponent % 2 else 7)


@given(st.fractions(min_value=0, max_value=1000))
def test_perfect_squares_stay_rational(r):
    root = Exact.number(r * r).sqrt()
    assert root.radicand == 0
    assert root == r


@settings(deadline=None)
@given(fractions, fractions, fractions, st.integers(2, 30), st.integers(1, 9))
def test_one_field_written_with_two_radicands(a, b, c, n, k):
    u, v, w = surd(a, b, n), surd(a, b / k, n * k * k), surd(c, b / k, n * k * k)
    assert u == v
    assert (u - v).is_zero()
    assert u * w == v * w
    assert u + w == w + u == v + w
    assert (u == w) == (a == c)


def test_parts_give_the_coordinates():
    v = Exact.vector([1, 2, 3], Fraction(1, 2)) + surd(1, Fraction(2, 3), 5)
    assert v.parts(1) == (Fraction(2), Fraction(2, 3), 5)
    assert surd(4, 0, 5).parts() == (4, 0, 0)
    assert Exact.zeros(3).parts(2) == (0, 0, 0)


def test_cancelled_elements_are_structurally_zero():
    root = Exact.number(3).sqrt()
    v = Exact.vector([1, -2, 5]) * root
    assert not v.is_zero()
    assert (v - Exact.vector([2, -4, 10], Fraction(1, 2)) * root).is_zero()
    assert (Exact.vector([1, 0]) * Exact.vector([0, 7])).is_zero()


def test_sign_of_a_near_cancellation():
    n, scale = 7, 10**60
    below = isqrt(n * scale * scale)
    assert surd(-below, scale, n).sign() == 1
    assert surd(-below - 1, scale, n).sign() == -1


@pytest.mark.parametrize(
    "operation",
    [
        lambda: Exact.number(1) / Exact.zeros(None),
        lambda: Exact.number(1) / 0,
        lambda: 1 / Exact.zeros(None),
        lambda: Exact.number(-1).sqrt(),
        lambda: surd(1, 1, 2).sqrt(),
        lambda: surd(0, 1, 2) + surd(0, 1, 3),
        lambda: Exact.zeros(0).mean(),
    ],
)
def test_undefined_operations_raise_domain_error(operation):
    with pytest.raises(DomainError):
        operation()


@pytest.mark.parametrize(
    "operation",
    [
        lambda: Exact.number(1) / Exact.vector([1, 2]),
        lambda: Exact.vector([1, 2]) + Exact.vector([1, 2, 3]),
        lambda: Exact.number(1) + 0.5,
        lambda: Exact.number(1) * "2",
        lambda: Exact.number(1) - 0.5,
        lambda: Exact.number(1) / 0.5,
        lambda: Exact.number(1).sum(),
        lambda: Exact.vector([1]).spread(2),
        lambda: Exact.vector([1]).sign(),
        lambda: Exact.vector([1]).parts(),
        lambda: Exact.number(1).parts(0),
    ],
)
def test_misuse_raises_type_error(operation):
    with pytest.raises(TypeError):
        operation()


def test_index_out_of_range():
    with pytest.raises(IndexError):
        Exact.zeros(2).element(2)
    with pytest.raises(IndexError):
        Exact.number(1).spread(2).element(-3)


def test_equality_sees_field_and_length():
    assert Exact.number(1) != Exact.vector([1])
    assert surd(1, 1, 2) != surd(1, 1, 3)
    assert Exact.number(1) != "1"


def test_repr_names_the_value():
    assert repr(surd(1, Fraction(1, 2), 3)) == "Exact(1 + 1/2·√3)"
    assert repr(Exact.number(2)) == "Exact(2)"
    assert "3" in repr(Exact.zeros(3))
