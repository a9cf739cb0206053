"""The passes against identities that hold exactly, and against the closed formulas evaluated in exact numbers."""

from fractions import Fraction
from itertools import pairwise
from math import comb, factorial, prod

import numpy as np
import pytest

from refbn import exact
from refbn._errors import DomainError, DtypeError, ShapeError
from refbn._formats import FORMATS, round_to
from refbn.exact import Exact, ExactArray, Moments

CASES = [(m, dtype, kind) for m, dtype in ((1, "f64"), (2, "f32"), (3, "f16"), (7, "bf16"), (12, "f64")) for kind in
         ("normal", "offset", "wide", "eps0")]  # fmt: skip
DTYPES = {fmt.short: fmt.dtype for fmt in FORMATS}


class Data:
    """One case's inputs, two groups of m elements."""

    def __init__(self, m, dtype, kind):
        rng = np.random.default_rng([m, len(kind)])
        dtype = DTYPES[dtype]

        def draw(*shape):
            return round_to(rng.standard_normal(shape), dtype)

        self.m = m
        self.x = draw(2, m)
        self.eps = Fraction(1, 3) if kind == "normal" else 1e-5
        if kind == "offset":
            self.x = round_to(self.x.astype(float) + 100, dtype)
        elif kind == "wide":
            self.x = round_to(self.x.astype(float) * 2.0 ** rng.integers(-9, 9, self.x.shape), dtype)
        elif kind == "eps0" and m > 1:
            self.eps = 0
        self.dy, self.x_dot, self.u_dot = draw(2, m), draw(2, m), draw(2, m)
        self.gamma, self.beta, self.gamma_dot, self.beta_dot, self.v_dot = (draw(2) for _ in range(5))
        self.mean, self.mean_dot, self.var_dot = draw(2), draw(2), draw(2)
        self.var = np.abs(draw(2))

    @property
    def direction(self):
        return {"x_dot": self.x_dot, "gamma_dot": self.gamma_dot, "beta_dot": self.beta_dot}

    @property
    def frozen(self):
        return (self.x, self.mean, self.var, self.gamma, self.eps)

    @property
    def frozen_direction(self):
        return {**self.direction, "mean_dot": self.mean_dot, "var_dot": self.var_dot}


@pytest.fixture(params=CASES, ids=lambda c: f"{c[2]}-{c[0]}-{c[1]}")
def data(request):
    return Data(*request.param)


def rows(array):
    return list(array) if isinstance(array, ExactArray) else list(map(exact_row, array))


def exact_row(row):
    if np.ndim(row) == 0:
        return Exact.number(Fraction(float(row)))
    values = [Fraction(float(v)) for v in row]
    scale = prod({v.denominator for v in values})
    return Exact.vector([int(v * scale) for v in values], Fraction(1, scale))


def dot(u, v):
    """Return the inner product per group, of tensors or of vectors."""
    return [(a * b) if a.length is None else (a * b).sum() for a, b in zip(rows(u), rows(v), strict=True)]


def add(*terms):
    return [sum(column[1:], column[0]) for column in zip(*terms, strict=True)]


def dd(direction):
    return {f"dd{name.removesuffix('_dot')}": values for name, values in direction.items()}


class Formulas:
    """The closed formulas of one group, over exact numbers; what refbn.exact must never contain."""

    def __init__(self, x, gamma, eps):
        self.gamma = gamma
        d = x - x.mean()
        self.q = (d * d).mean() + Fraction(eps)
        self.r = 1 / self.q.sqrt()
        self.xhat = d * self.r

    def p(self, u):
        return u - u.mean() - self.xhat * (self.xhat * u).mean()

    def k(self, u, g):
        xg, xu, upg = (self.xhat * g).mean(), (self.xhat * u).mean(), (u * self.p(g)).mean()
        return (self.p(u) * xg + self.p(g) * xu + self.xhat * upg) * -self.gamma * self.r * self.r


def formulas(data):
    for g in range(2):
        x, dy, x_dot = (exact_row(a[g]) for a in (data.x, data.dy, data.x_dot))
        gamma, gamma_dot, beta_dot = (exact_row(a[g]) for a in (data.gamma, data.gamma_dot, data.beta_dot))
        yield Formulas(x, gamma, data.eps), dy, x_dot, gamma_dot, beta_dot


def test_forward(data):
    out = exact.forward(data.x, data.gamma, data.beta, data.eps)
    for g, (f, *_) in enumerate(formulas(data)):
        x, beta = exact_row(data.x[g]), exact_row(data.beta[g])
        assert list(out.y)[g] == f.xhat * f.gamma + beta
        assert list(out.mean)[g] == x.sum() / data.m
        assert list(out.var)[g] == (x * x).mean() - x.mean() * x.mean()
        assert list(out.invstd)[g] == f.r
    assert rows(exact.moments(data.x).var) == rows(out.var)


def test_first_order_against_the_formulas(data):
    out = exact.backward(data.x, data.gamma, data.eps, data.dy)
    y_dot = rows(exact.jvp(data.x, data.gamma, data.eps, **data.direction))
    for g, (f, dy, x_dot, gamma_dot, beta_dot) in enumerate(formulas(data)):
        assert list(out.dx)[g] == f.p(dy) * f.gamma * f.r
        assert list(out.dgamma)[g] == (dy * f.xhat).sum()
        assert list(out.dbeta)[g] == dy.sum()
        assert y_dot[g] == f.p(x_dot) * f.gamma * f.r + f.xhat * gamma_dot + beta_dot


def test_second_order_against_the_formulas(data):
    second = exact.double_backward(data.x, data.gamma, data.eps, data.dy, **dd(data.direction))
    h = exact.hvp(data.x, data.gamma, data.eps, data.dy, **data.direction)
    for g, (f, dy, x_dot, gamma_dot, beta_dot) in enumerate(formulas(data)):
        ddy = f.p(x_dot) * f.gamma * f.r + f.xhat * gamma_dot + beta_dot
        dx = f.k(x_dot, dy) + f.p(dy) * gamma_dot * f.r
        dgamma = (x_dot * f.p(dy)).sum() * f.r
        assert [list(a)[g] for a in second] == [ddy, dx, dgamma]
        assert [list(a)[g] for a in h] == [dx, dgamma, 0]


def test_frozen_first_order_against_the_formulas(data):
    out = exact.inference(data.x, data.mean, data.var, data.gamma, data.beta, data.eps)
    back = exact.inference_backward(*data.frozen, data.dy)
    for g in range(2):
        x, dy, mean, var, gamma, beta = (
            exact_row(a[g]) for a in (data.x, data.dy, data.mean, data.var, data.gamma, data.beta)
        )
        r = 1 / (var + Fraction(data.eps)).sqrt()
        assert list(out.invstd)[g] == r
        assert list(out.y)[g] == (x - mean) * r * gamma + beta
        assert [list(a)[g] for a in back] == [
            dy * gamma * r,
            (dy * (x - mean)).sum() * r,
            dy.sum(),
            dy.sum() * -gamma * r,
            (dy * (x - mean)).sum() * gamma * r * r * r * Fraction(-1, 2),
        ]


def test_blindness(data):
    out = exact.backward(data.x, data.gamma, data.eps, data.dy)
    kappa_identity = dot(out.dx, exact.forward(data.x, eps=data.eps).y)  # y is x̂ here
    assert all(row.sum().is_zero() for row in out.dx)
    for g, (f, dy, *_) in enumerate(formulas(data)):
        kappa = 1 / f.q * Fraction(data.eps)
        assert kappa_identity[g] == (dy * f.xhat).sum() * f.gamma * f.r * kappa
    constant = np.full_like(data.dy, 0.3)
    blind = exact.backward(data.x, data.gamma, data.eps, constant)
    assert blind.dx.is_zero().all()
    assert blind.dgamma.is_zero().all()
    assert not blind.dbeta.is_zero().any()


@pytest.mark.parametrize("frozen", [False, True])
def test_adjoint_identity(data, frozen):
    if frozen:
        direction = data.frozen_direction
        y_dot = exact.inference_jvp(*data.frozen, **direction)
        back = exact.inference_backward(*data.frozen, data.dy)
    else:
        direction = data.direction
        y_dot = exact.jvp(data.x, data.gamma, data.eps, **direction)
        back = exact.backward(data.x, data.gamma, data.eps, data.dy)
    pushed = dot(data.dy, y_dot)
    pulled = add(*(dot(values, getattr(back, f"d{name[:-4]}")) for name, values in direction.items()))
    assert pushed == pulled


@pytest.mark.parametrize("frozen", [False, True])
def test_hessian_is_symmetric(data, frozen):
    u = data.frozen_direction if frozen else data.direction
    v = {name: data.u_dot if name == "x_dot" else data.v_dot for name in u}

    def hvp(direction):
        if frozen:
            return exact.inference_hvp(*data.frozen, data.dy, **direction)
        return exact.hvp(data.x, data.gamma, data.eps, data.dy, **direction)

    def pair(direction, h):
        return add(*(dot(values, getattr(h, f"d{name[:-4]}")) for name, values in direction.items()))

    assert pair(v, hvp(u)) == pair(u, hvp(v))


def test_double_backward_is_jvp_and_hvp(data):
    second = exact.double_backward(data.x, data.gamma, data.eps, data.dy, **dd(data.direction))
    h = exact.hvp(data.x, data.gamma, data.eps, data.dy, **data.direction)
    assert rows(second.ddy) == rows(exact.jvp(data.x, data.gamma, data.eps, **data.direction))
    assert (rows(second.dx), rows(second.dgamma)) == (rows(h.dx), rows(h.dgamma))
    frozen = exact.inference_double_backward(*data.frozen, data.dy, **dd(data.frozen_direction))
    h = exact.inference_hvp(*data.frozen, data.dy, **data.frozen_direction)
    assert rows(frozen.ddy) == rows(exact.inference_jvp(*data.frozen, **data.frozen_direction))
    for name in ("dx", "dgamma", "dmean", "dvar"):
        assert rows(getattr(frozen, name)) == rows(getattr(h, name))
    assert h.dbeta.is_zero().all()


def test_double_backward_is_the_adjoint_of_the_derivative_of_backward(data):
    """<ddx, backward along (dy_dot, hvp direction)> in both directions, beyond the symmetric case."""
    second = exact.double_backward(data.x, data.gamma, data.eps, data.dy, **dd(data.direction))
    moved = exact.backward(data.x, data.gamma, data.eps, data.u_dot)
    h = exact.hvp(data.x, data.gamma, data.eps, data.dy, x_dot=data.u_dot, gamma_dot=data.v_dot)
    left = add(
        *(dot(getattr(data, f"{name}_dot"), getattr(part, f"d{name}")) for part in (moved, h) for name in
          ("x", "gamma", "beta"))
    )  # fmt: skip
    right = add(dot(second.ddy, data.u_dot), dot(second.dx, data.u_dot), dot(second.dgamma, data.v_dot))
    assert left == right


def test_training_is_the_chain_rule_through_the_statistics(data):
    """Backward is frozen backward plus what flows through mean and var."""
    mean, var = (list(a) for a in exact.moments(data.x))
    frozen = exact.inference_backward(data.x, as_objects(mean), as_objects(var), data.gamma, data.eps, data.dy)
    back = exact.backward(data.x, data.gamma, data.eps, data.dy)
    for g, row in enumerate(back.dx):
        d = exact_row(data.x[g]) - mean[g]
        through_mean, through_var = list(frozen.dmean)[g] / data.m, d * list(frozen.dvar)[g] * 2 / data.m
        assert row == list(frozen.dx)[g] + through_mean + through_var


def as_objects(numbers):
    array = np.empty(len(numbers), object)
    array[:] = [n.parts()[0] for n in numbers]
    return array


def test_taylor_order_one_is_jvp(data):
    y, y_dot = exact.taylor([data.x, data.x_dot], [data.gamma, data.gamma_dot], [data.beta, data.beta_dot], data.eps)
    assert rows(y) == rows(exact.forward(data.x, data.gamma, data.beta, data.eps).y)
    assert rows(y_dot) == rows(exact.jvp(data.x, data.gamma, data.eps, **data.direction))


def test_taylor_defaults_and_short_series(data):
    zeros, zero = np.zeros_like(data.x), np.zeros_like(data.gamma)
    short = exact.taylor([data.x, data.x_dot, data.u_dot], eps=data.eps)
    full = exact.taylor([data.x, data.x_dot, data.u_dot], [zero + 1, zero, zero], [zero, zero, zero], data.eps)
    longer = exact.taylor([data.x, data.x_dot, data.u_dot, zeros], eps=data.eps)
    assert [rows(y) for y in short] == [rows(y) for y in full] == [rows(y) for y in longer[:3]]
    assert not longer[3].is_zero().all() or data.m < 3


def test_taylor_is_consistent_under_a_change_of_the_variable(data):
    """t → 2t multiplies the k-th coefficient by 2^k."""
    y = exact.taylor([data.x, data.x_dot, data.u_dot, data.dy], eps=data.eps)
    scaled = [(2**k * a.astype(float)) for k, a in enumerate((data.x, data.x_dot, data.u_dot, data.dy))]
    for k, (u, v) in enumerate(zip(y, exact.taylor(scaled, eps=data.eps), strict=True)):
        assert [row * 2**k for row in u] == rows(v)


def derivative_of_cubic(w, y):
    """Return the k-th derivatives of w·(y²/2 + y³/6), from Taylor coefficients of y, by multiplying them out."""
    count = len(y)
    square = [sum((y[i] * y[k - i] for i in range(1, k + 1)), y[0] * y[k]) for k in range(count)]
    cube = [sum((square[i] * y[k - i] for i in range(1, k + 1)), square[0] * y[k]) for k in range(count)]
    return [
        (s * Fraction(1, 2) + c * Fraction(1, 6)) * w * factorial(k)
        for k, (s, c) in enumerate(zip(square, cube, strict=True))
    ]


@pytest.mark.parametrize("frozen", [False, True])
def test_composed(data, frozen):
    statistics = {"mean": data.mean, "var": data.var} if frozen else {}
    direction = data.frozen_direction if frozen else data.direction
    out = [
        exact.composed(data.x, data.gamma, data.beta, data.eps, data.dy, **direction, order=k, **statistics)
        for k in range(4)
    ]
    if not frozen:
        series = exact.taylor(
            [data.x, data.x_dot, data.x * 0, data.x * 0],
            [data.gamma, data.gamma_dot],
            [data.beta, data.beta_dot],
            data.eps,
        )
        for g, ys in enumerate(zip(*series, strict=True)):
            expected = derivative_of_cubic(exact_row(data.dy[g]), ys)
            assert [list(answer["value"])[g] for answer in out] == expected
    # d/dt of Σf, of order k+1, is <direction, the k-th derivative of the gradient>.
    for lower, higher in pairwise(out):
        pairing = add(*(dot(values, lower[f"d{name[:-4]}"]) for name, values in direction.items()))
        assert pairing == [row.sum() for row in higher["value"]]


def test_composed_gradient_is_backward_of_the_loss(data):
    out = exact.composed(data.x, data.gamma, data.beta, data.eps, data.dy)
    for g, y in enumerate(exact.forward(data.x, data.gamma, data.beta, data.eps).y):
        f = Formulas(exact_row(data.x[g]), exact_row(data.gamma[g]), data.eps)
        dy = exact_row(data.dy[g]) * (y + y * y * Fraction(1, 2))
        assert list(out["dx"])[g] == f.p(dy) * f.gamma * f.r
        assert list(out["dgamma"])[g] == (dy * f.xhat).sum()
        assert list(out["dbeta"])[g] == dy.sum()


def test_third_derivative_is_symmetric(data):
    """T(u, u) at u + v and u − v gives T(u, v); <v, T(u, u)> must be <u, T(u, v)>."""
    u, v = data.x_dot.astype(float), data.u_dot.astype(float)

    def third(x_dot):
        return exact.composed(data.x, data.gamma, data.beta, data.eps, data.dy, x_dot=x_dot, order=2, wanted=["dx"])[
            "dx"
        ]

    objects = [np.vectorize(Fraction, otypes=[object])(a) for a in (u + 0.0, v + 0.0)]
    plus, minus = third(objects[0] + objects[1]), third(objects[0] - objects[1])
    mixed = [(a - b) * Fraction(1, 4) for a, b in zip(plus, minus, strict=True)]
    left = dot(v, third(u))
    right = [(exact_row(a) * b).sum() for a, b in zip(u, mixed, strict=True)]
    assert left == right


def test_composed_computes_only_what_is_wanted(data, monkeypatch):
    arguments = (data.x, data.gamma, data.beta, data.eps, data.dy, data.x_dot)
    everything = exact.composed(*arguments, order=2)
    assert list(everything) == ["value", "dx", "dgamma", "dbeta"]
    part = exact.composed(*arguments, order=2, wanted=("dgamma",))
    assert list(part) == ["dgamma"]
    assert rows(part["dgamma"]) == rows(everything["dgamma"])

    def no_reverse_sweep(*_):
        raise AssertionError

    monkeypatch.setattr("refbn.exact.derive.gradient", no_reverse_sweep)
    value = exact.composed(*arguments, order=2, wanted=("value",))
    assert rows(value["value"]) == rows(everything["value"])


def test_shift_scale_and_permutation(data):
    order = np.random.default_rng(1).permutation(data.m)
    x = np.vectorize(Fraction, otypes=[object])(data.x.astype(float))
    y = exact.forward(x, data.gamma, data.beta, data.eps).y
    shifted = exact.forward(x + Fraction(7, 3), data.gamma, data.beta, data.eps).y
    scaled = exact.forward(x * 6, data.gamma, data.beta, Fraction(data.eps) * 36).y
    permuted = exact.forward(x[:, order], data.gamma, data.beta, data.eps).y
    assert rows(y) == rows(shifted) == rows(scaled)
    for row, other in zip(y, permuted, strict=True):
        assert [row.element(int(i)) for i in order] == [other.element(i) for i in range(data.m)]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
def test_running_update(unbiased, weighs_new):
    x = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    statistics = exact.moments(x)
    out = exact.running_update(
        statistics, 3, Fraction(1, 10), weighs_new, unbiased, np.array([1.0, 2.0]), np.array([3.0, 4.0])
    )
    assert isinstance(out, Moments)
    new = Fraction(1, 10) if weighs_new else Fraction(9, 10)
    var = Fraction(14, 3) * (Fraction(3, 2) if unbiased else 1)
    assert [n.parts()[0] for n in out.mean] == [(1 - new) * 1 + new * 3, (1 - new) * 2]
    assert [n.parts()[0] for n in out.var] == [(1 - new) * 3 + new * var, (1 - new) * 4]


def test_extreme_exponents():
    x = np.array([[1e300, -1e300, 1e-300, 0.0], [5e-324, 0.0, 1e-310, -1e-320]])
    out = exact.forward(x, eps=1e-300)
    y = out.y.round("float64")
    assert np.allclose(y[0], [2**0.5, -(2**0.5), 0, 0], rtol=1e-15, atol=0)
    assert np.signbit(y[0]).tolist() == [False, True, False, True]  # of y[0, 2:], about 1e-600
    assert np.allclose(y[1], (x[1] - x[1].mean()) * 1e150, rtol=1e-3, atol=0)
    assert np.array_equal(out.var.round("float64"), [np.inf, 0.0])
    assert not out.var.is_zero().any()
    back = exact.backward(x, None, 1e-300, x[::-1])
    assert all(row.sum().is_zero() for row in back.dx)


def test_m_is_one_and_no_groups():
    out = exact.forward([[3.0]], [2.0], [5.0])
    assert (out.y.round("float64"), out.var.is_zero()) == ([[5.0]], [True])
    assert exact.backward([[3.0]], [2.0], 1e-5, [[4.0]]).dx.is_zero().all()
    assert exact.forward(np.empty((0, 3))).y.round("float32").shape == (0, 3)


def test_frozen_statistics_take_empty_groups():
    empty = np.empty((2, 0))
    assert exact.inference(empty, [1.0, 2.0], [1.0, 2.0]).y.round("float16").shape == (2, 0)
    back = exact.inference_backward(empty, [1.0, 2.0], [1.0, 2.0], [1.0, 1.0], 1e-5, empty)
    assert all(part.is_zero().all() for part in back)


@pytest.mark.parametrize(
    ("error", "argument", "call"),
    [
        (DomainError, "x", lambda: exact.forward([[1.0, np.nan]])),
        (DomainError, "x", lambda: exact.forward(np.array([[1.0, np.inf]], np.float16))),
        (DomainError, "x", lambda: exact.forward(np.array([[1.0, np.inf]], object))),
        (DomainError, "x", lambda: exact.forward(np.empty((2, 0)))),
        (DomainError, "gamma", lambda: exact.backward([[1.0, 2.0]], [np.inf], 0.1, [[1.0, 1.0]])),
        (DomainError, "dy", lambda: exact.backward([[1.0, 2.0]], None, 0.1, [[1.0, np.nan]])),
        (DomainError, "eps", lambda: exact.forward([[1.0, 2.0]], eps=np.nan)),
        (DomainError, "eps", lambda: exact.forward([[1.0, 2.0], [3.0, 3.0]], eps=0)),
        (DomainError, "eps", lambda: exact.inference([[1.0]], 0.0, -1.0, eps=0.5)),
        (DomainError, "eps", lambda: exact.taylor([[[1.0, 1.0]], [[1.0, 2.0]]], eps=0)),
        (DomainError, "x", lambda: exact.running_update(exact.moments([[1.0]]), 1, 1, True, True, 0.0, 0.0)),
        (ShapeError, "x", lambda: exact.forward([1.0, 2.0])),
        (ShapeError, "dy", lambda: exact.backward([[1.0, 2.0]], None, 0.1, [[1.0]])),
        (ShapeError, "gamma", lambda: exact.forward([[1.0, 2.0]], [1.0, 2.0])),
        (ShapeError, "ddx", lambda: exact.double_backward([[1.0, 2.0]], None, 0.1, [[1.0, 1.0]], [[1.0]])),
        (ShapeError, "x_series", lambda: exact.taylor([])),
        (DtypeError, "x", lambda: exact.forward(np.array([[1j]]))),
    ],
)
def test_errors(error, argument, call):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.argument == argument


def test_zero_variance_is_named_with_its_group():
    with pytest.raises(DomainError, match="group 1"):
        exact.forward([[1.0, 2.0], [3.0, 3.0]], eps=0)


def test_binomial_third_derivative_of_a_product_rule():
    """γ(t)·x̂(t): Leibniz's rule joins the derivatives with γ at rest and those of x̂ alone."""
    x, x_dot = np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 0.0, -1.0]])
    xhat = exact.taylor([x, x_dot, x * 0, x * 0])
    both = exact.taylor([x, x_dot, x * 0, x * 0], [[2.0], [3.0], [5.0], [7.0]])
    derivative = [[row * factorial(k) for row in c] for k, c in enumerate(xhat)]
    gamma = [2, 3, 2 * 5, 6 * 7]
    expected = [derivative[0][0] * gamma[3] * comb(3, 3)]
    expected += [derivative[k][0] * gamma[3 - k] * comb(3, k) for k in (1, 2, 3)]
    assert next(iter(both[3])) * 6 == sum(expected[1:], expected[0])
