"""The generic route over a number type that offers the protocol of `refbn.exact.program` and nothing else."""

from fractions import Fraction

import numpy as np
import pytest

from refbn import exact
from refbn.exact import Exact, derivatives, program

POINT = {"x": [1.0, 2.5, -0.5, 4.0], "gamma": 1.5, "beta": -0.25}
DIRECTION = {"x": [0.5, -1.0, 2.0, 0.25], "gamma": 0.75, "beta": 0.5}
W = [1.0, -2.0, 0.5, 3.0]
EPS = Fraction(1, 8)


class Strict:
    """Floating-point numbers that refuse whatever the protocol does not name."""

    def __init__(self, value):
        self.value = np.asarray(value, float)
        self.length = None if self.value.ndim == 0 else len(self.value)

    def _operand(self, other, vector=True):
        assert type(other) in (Strict, int, Fraction), type(other)
        if isinstance(other, Strict):
            assert vector or other.length is None, "a vector as a divisor"
            assert None in (self.length, other.length) or self.length == other.length
            return other.value
        return float(other)

    def __add__(self, other):
        return Strict(self.value + self._operand(other))

    def __sub__(self, other):
        return Strict(self.value - self._operand(other))

    def __mul__(self, other):
        return Strict(self.value * self._operand(other))

    def __truediv__(self, other):
        return Strict(self.value / self._operand(other, vector=False))

    def __neg__(self):
        return Strict(-self.value)

    def sum(self):
        assert self.length is not None
        return Strict(self.value.sum())

    def mean(self):
        assert self.length is not None
        return Strict(self.value.mean())

    def sqrt(self):
        assert self.length is None
        return Strict(np.sqrt(self.value))

    def spread(self, length):
        assert self.length is None
        return Strict(np.full(length, self.value))


def at(number, *names):
    """Return a number type's point and direction."""
    return ({k: number(d[k]) for k in names} for d in (POINT, DIRECTION))


def as_exact(value):
    if isinstance(value, list):
        return Exact.vector([int(v * 4) for v in value], Fraction(1, 4))
    return Exact.number(Fraction(value))


def composed(**inputs):
    return program.cubic(program.batch_norm(**inputs))


@pytest.mark.parametrize("order", range(6))
def test_any_type_with_the_protocol_will_do(order):
    answers = []
    for number in (Strict, as_exact):
        point, direction = at(number, "x", "gamma", "beta")
        answers.append(
            derivatives(
                composed,
                {**point, "eps": EPS},
                order=order,
                directions=direction,
                cotangent=number(W),
                wanted=("x", "gamma", "beta"),
            )
        )
    floats, exacts = answers
    for got, want in ((floats.value, exacts.value), *((floats.gradient[k], exacts.gradient[k]) for k in POINT)):
        assert got.length == want.length
        rounded = exact.ExactArray([want], want.length).round("float64")
        assert np.allclose(got.value, rounded.reshape(got.value.shape), rtol=1e-9, atol=1e-9 * abs(rounded).max())


def test_frozen_statistics_over_the_strict_type():
    names = {"x": [1.0, 2.0], "mean": 0.5, "var": 2.0, "gamma": 3.0, "beta": 1.0}
    out = derivatives(
        program.frozen,
        {**{k: Strict(v) for k, v in names.items()}, "eps": Fraction(1, 4)},
        order=1,
        directions={"var": Strict(1.0), "x": None},
        cotangent=Strict([1.0, -1.0]),
        wanted=tuple(names),
    )
    assert np.allclose(out.value.value, -0.5 * 3 * np.array([0.5, 1.5]) / 1.5**3)
    assert np.allclose(out.gradient["x"].value, np.array([-0.5, 0.5]) * 3 / 1.5**3)
    assert out.gradient["beta"] is None
    assert np.allclose(out.gradient["mean"].value, 0)


def test_eps_may_be_a_variable():
    """d/dε of y at γ = 1, β = 0 is −x̂/(2q); of an independent input ε the gradient is there too."""
    x = as_exact(POINT["x"])
    out = derivatives(
        program.batch_norm,
        {"x": x, "gamma": Exact.number(1), "beta": Exact.number(0), "eps": Exact.number(EPS)},
        order=1,
        directions={"eps": Exact.number(1)},
        cotangent=as_exact(W),
        wanted=("eps",),
    )
    _, d, var = program.moments(x)
    q = var + EPS
    assert out.value == program.standardize(d, var, EPS) / q * Fraction(-1, 2)
    # <W, y''> for y'' = 3/4·x̂/q²
    assert out.gradient["eps"] == (program.standardize(d, var, EPS) * as_exact(W)).sum() / q / q * Fraction(3, 4)


def test_structural_zeros_are_none():
    point, _ = at(as_exact, "x", "gamma", "beta")
    out = derivatives(program.batch_norm, {**point, "eps": EPS}, order=1, cotangent=as_exact(W), wanted=("x", "beta"))
    assert out.value is None
    assert out.gradient == {"x": None, "beta": None}
    assert derivatives(program.batch_norm, {**point, "eps": EPS}).gradient == {}


def test_order_zero_is_the_value():
    point, _ = at(as_exact, "x", "gamma", "beta")
    assert derivatives(program.batch_norm, {**point, "eps": EPS}).value == program.batch_norm(**point, eps=EPS)
