import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64
from refbn.audit import truth
from refbn.audit.budget import SAFETY, Model, Running
from refbn.audit.cases import Case, make_inputs
from refbn.dialects import DIALECTS

CONVENTIONS = truth.Conventions.of(DIALECTS["torch"], True)
F32 = Model.of(BINARY32, 16)


def given(values, model=F32):
    return Running.given(model, np.asarray(values, np.float64))


def vectors(seed, m=16, channels=8):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(channels, m)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32) for _ in range(2)]


# ---- each operation: what binary32 arithmetic does stays within the propagated error, without the safety factor ----

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "square": lambda a, b: a * a,
    "product of differences": lambda a, b: (a - b) * (a + b),
    "times a third": lambda a, b: a * Fraction(1, 3),
    "over seven": lambda a, b: a / 7,
    "negative": lambda a, b: -a * b,
}


class Narrow:
    """The same operations in binary32, as a plain implementation does them."""

    def __init__(self, value):
        self.value = np.asarray(value, np.float32)

    def _other(self, other):
        return other.value if isinstance(other, Narrow) else np.float32(other)

    def __add__(self, other):
        return Narrow(self.value + self._other(other))

    def __sub__(self, other):
        return Narrow(self.value - self._other(other))

    def __mul__(self, other):
        return Narrow(self.value * self._other(other))

    def __truediv__(self, other):
        return Narrow(self.value / self._other(other))

    def __neg__(self):
        return Narrow(-self.value)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_the_propagated_error_covers_binary32(name, seed):
    operation = OPERATIONS[name]
    a, b = vectors(seed)
    came = operation(Narrow(a), Narrow(b)).value.astype(np.float64)
    due = operation(given(a), given(b))
    exact = (
        operation(*(np.asarray(v, np.longdouble) for v in (a, b))) if name != "times a third" else a.astype(float) / 3
    )
    error = np.abs(came - np.asarray(exact, np.float64))
    assert np.all(error <= due.error)
    assert np.all(due.error <= 8 * F32.u * due.size + 8 * F32.eta)


def test_what_does_not_round_costs_nothing():
    a = given(vectors(0)[0])
    for exact in (-a, a * 2, a * Fraction(1, 4)):
        assert np.all(exact.error == 0)
    assert np.all((a * 3).error > 0)


def test_a_sum_is_as_bad_as_its_accumulator_and_one_rounding():
    values = vectors(1, m=1000)[0].astype(np.float64)
    narrow, wide = (given(values, Model.of(form, 1000)).sum() for form in (BINARY32, BINARY64))
    magnitude = np.abs(values).sum(1, keepdims=True)
    assert np.all(narrow.error <= 2.0**-24 * np.abs(narrow.value) + 2.0**-43 * magnitude)
    assert np.all(wide.error <= 14 * 2.0**-53 * magnitude)
    assert narrow.length is None and narrow.value.shape == (8, 1)


def test_mean_root_quotient_and_spread():
    v = given([[1.0, 4.0, 10.0], [2.0, 2.0, 2.0]])
    mean = v.mean()
    assert mean.value.ravel().tolist() == [5.0, 2.0] and mean.length is None
    root = (mean * mean).sqrt()
    assert root.value.ravel().tolist() == [5.0, 2.0]
    assert np.all((root.error > 0) & (root.error < 5 * F32.u * root.value))
    quotient = v / root
    assert np.allclose(quotient.value[0], [0.2, 0.8, 2.0]) and quotient.length == 3
    assert mean.spread(3).value.shape == (2, 3) and mean.spread(3).length == 3


def test_an_error_in_the_mean_reaches_the_square_of_a_small_difference():
    d = given([[0.0, 0.0]])
    d = Running(F32, d.value, np.full((1, 2), 1e-4), d.size, 2)
    assert np.all((d * d).error >= 1e-8)


def test_the_mean_of_nothing_and_zero_over_zero_are_nan():
    with np.errstate(all="ignore"):
        assert np.isnan(given(np.zeros((2, 0))).mean().value).all()
        zero = given([[0.0]]).sum()
        assert np.isnan((given([[0.0]]) / zero.sqrt()).value).all()


@pytest.mark.parametrize("form", [BINARY16, BFLOAT16])
def test_half_types_compute_in_binary32_and_store_once(form):
    model = Model.of(form, 16)
    assert model.u == BINARY32.unit_roundoff
    one = Running.given(model, np.ones(2)).stored(form.unit_roundoff)
    y = Running.given(model, np.full((2, 3), 5.0)) * one
    assert np.all(y.error >= 5 * form.unit_roundoff) and np.all(y.error < 5.01 * form.unit_roundoff)


# ---- whole passes ------------------------------------------------------------------------------------------------


def competent_forward(inputs, axis):
    """Two passes, binary64 sums rounded to binary32, everything else binary32."""
    x, column = inputs.x, (1, -1, *(1 for _ in inputs.x.shape[2:]))
    mean = x.mean(axis, dtype=np.float64, keepdims=True).astype(np.float32)
    d = x - mean
    var = (d * d).mean(axis, dtype=np.float64, keepdims=True).astype(np.float32)
    invstd = np.float32(1) / np.sqrt(var + np.float32(inputs.eps))
    xhat = d * invstd
    return mean, d, invstd, xhat, xhat * inputs.gamma.reshape(column) + inputs.beta.reshape(column)


def competent_vjp(inputs, axis):
    column = (1, -1, *(1 for _ in inputs.x.shape[2:]))
    _, _, invstd, xhat, _ = competent_forward(inputs, axis)
    dy = inputs.dy
    dbeta = dy.sum(axis, dtype=np.float64, keepdims=True).astype(np.float32)
    dgamma = (dy * xhat).sum(axis, dtype=np.float64, keepdims=True).astype(np.float32)
    m = np.float32(dy.size // dy.shape[1])
    dx = inputs.gamma.reshape(column) * invstd * (dy - dbeta / m - xhat * (dgamma / m))
    return dx, dgamma.ravel(), dbeta.ravel()


CONDITIONS = [
    {},
    {"offset": 100.0},
    {"offset": 4096.0},
    {"offset": -1e6},
    {"scale": 1e-4},
    {"scale": 1e4},
    {"data": "skewed"},
    {"data": "constant", "offset": 1e3},
    {"data": "step"},
]


@pytest.mark.parametrize("fields", CONDITIONS, ids=str)
@pytest.mark.parametrize("shape", [(32, 4), (3, 5, 7), (2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_competent_implementation_keeps_the_bound(fields, shape, seed):
    axis = tuple(i for i in range(len(shape)) if i != 1)
    forward = Case("conditioning", "forward", "f32", shape, seed=seed, **fields)
    vjp = dataclasses.replace(forward, operation="vjp")
    inputs = make_inputs(forward)
    mean, _, invstd, _, y = competent_forward(inputs, axis)
    dx, dgamma, dbeta = competent_vjp(make_inputs(vjp), axis)
    expected = truth.expect(forward, CONVENTIONS) | truth.expect(vjp, CONVENTIONS)
    came = {"y": y, "mean": mean.ravel(), "invstd": invstd.ravel(), "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    for name, values in came.items():
        error = np.abs(values.astype(np.float64) - expected[name].high)
        assert np.all(error <= expected[name].limit(BINARY32)), name


def relative_limit(case, name, form):
    expected = truth.expect(case, CONVENTIONS)[name]
    return float((expected.limit(form) / np.abs(expected.high).max()).max())


def test_the_bound_has_digits_where_the_data_have_them():
    for dtype, form in (("f32", BINARY32), ("f64", BINARY64)):
        for operation, name in (("forward", "y"), ("vjp", "dx"), ("jvp", "y_dot")):
            case = Case("conditioning", operation, dtype, (32, 4))
            assert relative_limit(case, name, form) < 400 * form.unit_roundoff
        for operation in ("rev_rev", "fwd_rev", "rev_fwd", "rev_rev_rev"):
            case = Case("composition", operation, dtype, (6, 2))
            assert relative_limit(case, "dx", form) < 2e5 * form.unit_roundoff


def test_the_bound_grows_with_the_offset_as_the_data_lose_digits():
    limits = [
        relative_limit(Case("conditioning", "forward", "f32", (32, 4), offset=offset), "y", BINARY32)
        for offset in (0.0, 100.0, 4096.0, 1e6)
    ]
    assert limits[0] < limits[1] / 5 and limits[1] < limits[2] / 5 and limits[2] < limits[3] / 5
    assert limits[2] > SAFETY * 4096 * BINARY32.unit_roundoff / 10


def test_the_size_does_not_grow_with_the_offset():
    near, far = (
        truth.expect(Case("conditioning", "vjp", "f32", (32, 4), offset=offset), CONVENTIONS)["dx"].size.max()
        for offset in (0.0, 4096.0)
    )
    assert far < 1.01 * near


def test_extreme_binary64_data_keep_a_bound():
    for scale in (1e-150, 1e160):
        expected = truth.expect(Case("conditioning", "forward", "f64", (16, 3), scale=scale), CONVENTIONS)
        for name in ("y", "mean", "invstd"):
            limit = expected[name].limit(BINARY64)
            assert np.all(limit < 1e-12 * np.abs(expected[name].high).max()), (scale, name)


def test_running_statistics_pay_one_storage_rounding_a_step():
    def bound(steps):
        case = Case("state", "running", "f16", (8, 3), steps=steps, momentum=0.0)
        return truth.expect(case, CONVENTIONS)["running_mean"].bound

    assert np.all(bound(1) > 0) and np.all(bound(4) > 3 * bound(1))
