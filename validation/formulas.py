"""Every pass written out twice by hand, over any numbers: what the oracle is compared with.

The oracle derives its derivatives from the forward pass alone. Here they are closed formulas, in two arrangements
that meet only in the definition of batch norm:

* `projector_route`: the design's formulas, through P u = u − mean(u) − x̂·mean(x̂u) and the kernel K(u, g).
* `statistics_route`: the chain rule through the statistics. L = ⟨dy, y⟩ is a function of (x, μ, v, γ), its first
  and second partial derivatives are those of frozen statistics, and μ(x), v(x) are put in last. The variance
  comes from raw moments about the first element, the root from 1/√q.

Nothing here imports refbn. A number needs +, −, ×, and ÷ by numbers of its kind and by ints; the root is a parameter.
`Surd` is the smallest number with a root that is exact: a + b√q over FLINT's rationals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flint import fmpq

__all__ = ["OPERATIONS", "Inputs", "Surd", "Values", "has_value", "projector_route", "statistics_route", "surd_root"]

Number = Any
Vector = list[Any]
Values = dict[str, dict[str, "Vector | None"]]
"""By operation and output; a scalar output is a list of one number, and None says NaN (rule R2, q = 0)."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "forward": ("y", "mean", "var", "invstd"),
    "backward": ("dx", "dgamma", "dbeta"),
    "jvp": ("y_dot",),
    "double_backward": ("ddy", "dx", "dgamma"),
    "hvp": ("dx", "dgamma", "dbeta"),
    "inference": ("y", "invstd"),
    "inference_backward": ("dx", "dgamma", "dbeta", "dmean", "dvar"),
    "inference_jvp": ("y_dot",),
    "inference_double_backward": ("ddy", "dx", "dgamma", "dmean", "dvar"),
    "inference_hvp": ("dx", "dgamma", "dbeta", "dmean", "dvar"),
}
"""The passes and their outputs, as the backends' contract has them."""


def has_value(output: str) -> bool:
    """Tell whether an output exists at q = v + ε = 0: whether its formula contains neither x̂ nor 1/√q (rule R2)."""
    return output in ("mean", "var", "dbeta")


@dataclass(frozen=True)
class Inputs:
    """One channel in some kind of number; directions double as cotangents of backward's results."""

    x: Vector
    dy: Vector
    x_dot: Vector
    gamma: Number
    beta: Number
    gamma_dot: Number
    beta_dot: Number
    mean: Number
    var: Number
    mean_dot: Number
    var_dot: Number
    eps: Number
    zero: Number
    inverse_root: Callable[[Number], Number]
    """q ↦ 1/√q"""
    degenerate: bool
    """Whether the channel's own v + ε is 0, decided exactly by the caller."""
    frozen_degenerate: bool
    """Whether the given var + ε is 0."""


def _total(values: Sequence[Number], zero: Number) -> Number:
    return sum(values, zero)


def _dot(a: Sequence[Number], b: Sequence[Number], zero: Number) -> Number:
    return sum((p * q for p, q in zip(a, b, strict=True)), zero)


def projector_route(c: Inputs) -> Values:
    """Evaluate all passes through P and K, and frozen statistics through x̂ and r."""
    return {**_projector_training(c), **_projector_frozen(c)}


def _projector_training(c: Inputs) -> Values:
    zero, m = c.zero, len(c.x)

    def mean(values: Sequence[Number]) -> Number:
        return _total(values, zero) / m

    mu = mean(c.x)
    d = [xi - mu for xi in c.x]
    v = mean([di * di for di in d])
    dbeta = _total(c.dy, zero)
    if c.degenerate:
        return _degenerate(False, mu, v, dbeta, zero)
    r = c.inverse_root(v + c.eps)
    xhat = [di * r for di in d]

    def project(u: Vector, along: Number) -> Vector:
        mean_u = mean(u)
        return [ui - mean_u - xi * along for ui, xi in zip(u, xhat, strict=True)]

    g, u = c.dy, c.x_dot
    xg = mean([a * b for a, b in zip(xhat, g, strict=True)])
    xu = mean([a * b for a, b in zip(xhat, u, strict=True)])
    pg = project(g, xg)
    pu = project(u, xu)
    ug = mean([a * b for a, b in zip(u, pg, strict=True)])
    scale = c.gamma * r
    kernel = [-scale * r * (xg * a + xu * b + xi * ug) for a, b, xi in zip(pu, pg, xhat, strict=True)]
    y_dot = [scale * a + c.gamma_dot * xi + c.beta_dot for a, xi in zip(pu, xhat, strict=True)]
    second_dx = [k + c.gamma_dot * r * b for k, b in zip(kernel, pg, strict=True)]
    second_dgamma = r * ug * m
    return {
        "forward": {"y": [c.gamma * xi + c.beta for xi in xhat], "mean": [mu], "var": [v], "invstd": [r]},
        "backward": {"dx": [scale * b for b in pg], "dgamma": [_dot(g, xhat, zero)], "dbeta": [dbeta]},
        "jvp": {"y_dot": y_dot},
        "double_backward": {"ddy": y_dot, "dx": second_dx, "dgamma": [second_dgamma]},
        "hvp": {"dx": second_dx, "dgamma": [second_dgamma], "dbeta": [zero]},
    }


def _projector_frozen(c: Inputs) -> Values:
    zero = c.zero
    dbeta = _total(c.dy, zero)
    if c.frozen_degenerate:
        return _degenerate(True, None, None, dbeta, zero)
    r = c.inverse_root(c.var + c.eps)
    xhat = [(xi - c.mean) * r for xi in c.x]
    r_dot = -(r * r * r) * c.var_dot / 2
    xhat_dot = [r * (u - c.mean_dot) - r * r * c.var_dot / 2 * xi for u, xi in zip(c.x_dot, xhat, strict=True)]
    y_dot = [c.gamma * a + c.gamma_dot * xi + c.beta_dot for a, xi in zip(xhat_dot, xhat, strict=True)]
    scale = c.gamma * r
    scale_dot = c.gamma_dot * r + c.gamma * r_dot
    along = _dot(c.dy, xhat, zero)
    along_dot = _dot(c.dy, xhat_dot, zero)
    first: dict[str, Vector | None] = {
        "dx": [scale * g for g in c.dy],
        "dgamma": [along],
        "dbeta": [dbeta],
        "dmean": [-scale * dbeta],
        "dvar": [-scale * r * along / 2],
    }
    second: dict[str, Vector | None] = {
        "dx": [scale_dot * g for g in c.dy],
        "dgamma": [along_dot],
        "dmean": [-scale_dot * dbeta],
        "dvar": [-((scale_dot * r + scale * r_dot) * along + scale * r * along_dot) / 2],
    }
    return {
        "inference": {"y": [c.gamma * xi + c.beta for xi in xhat], "invstd": [r]},
        "inference_backward": first,
        "inference_jvp": {"y_dot": y_dot},
        "inference_double_backward": {"ddy": y_dot, **second},
        "inference_hvp": {**second, "dbeta": [zero]},
    }


def _degenerate(frozen: bool, mu: Number, v: Number, dbeta: Number, zero: Number) -> Values:
    """Return the passes' values at q = 0."""
    known = {"mean": mu, "var": v}
    return {
        operation: {
            output: [known.get(output, zero if operation.endswith("hvp") else dbeta)] if has_value(output) else None
            for output in outputs
        }
        for operation, outputs in OPERATIONS.items()
        if operation.startswith("inference") == frozen
    }


@dataclass(frozen=True)
class _Partials:
    """Derivatives of L = Σ dy·(γ·d·w + β), d = x − μ, w = q^(−1/2), to x, μ, v, γ: gradient and Hessian × direction."""

    x: Vector
    mu: Number
    v: Number
    gamma: Number
    x_second: Vector
    mu_second: Number
    v_second: Number
    gamma_second: Number
    y: Vector
    y_dot: Vector
    w: Number


def _partials(c: Inputs, mu: Number, q: Number, mu_dot: Number, v_dot: Number) -> _Partials:
    w = c.inverse_root(q)
    w1 = -w / (q * 2)
    w2 = 3 * w / (q * q * 4)
    d = [xi - mu for xi in c.x]
    gamma, gamma_dot = c.gamma, c.gamma_dot
    g0 = _total(c.dy, c.zero)
    g1 = _dot(c.dy, d, c.zero)
    gu = _dot(c.dy, c.x_dot, c.zero)
    slope = gamma * w1 * v_dot + w * gamma_dot
    return _Partials(
        x=[gamma * w * g for g in c.dy],
        mu=-gamma * w * g0,
        v=gamma * w1 * g1,
        gamma=w * g1,
        x_second=[slope * g for g in c.dy],
        mu_second=-slope * g0,
        v_second=gamma * w1 * (gu - g0 * mu_dot) + gamma * w2 * g1 * v_dot + w1 * g1 * gamma_dot,
        gamma_second=w * (gu - g0 * mu_dot) + w1 * g1 * v_dot,
        y=[gamma * di * w + c.beta for di in d],
        y_dot=[gamma * w * (u - mu_dot) + slope * di + c.beta_dot for u, di in zip(c.x_dot, d, strict=True)],
        w=w,
    )


def statistics_route(c: Inputs) -> Values:
    """Evaluate all passes by partial derivatives and the chain rule through μ and v."""
    return {**_statistics_training(c), **_statistics_frozen(c)}


def _statistics_training(c: Inputs) -> Values:
    zero, m = c.zero, len(c.x)
    first = c.x[0]
    shifted = [xi - first for xi in c.x]
    centre = _total(shifted, zero) / m
    mu = first + centre
    v = _dot(shifted, shifted, zero) / m - centre * centre
    dbeta = _total(c.dy, zero)
    if c.degenerate:
        return _degenerate(False, mu, v, dbeta, zero)
    d = [si - centre for si in shifted]
    mu_dot = _total(c.x_dot, zero) / m
    v_dot = 2 * _dot(d, c.x_dot, zero) / m
    p = _partials(c, mu, v + c.eps, mu_dot, v_dot)
    dx = [a + p.mu / m + p.v * 2 * di / m for a, di in zip(p.x, d, strict=True)]
    second_dx = [
        a + p.mu_second / m + (p.v_second * di + p.v * (u - mu_dot)) * 2 / m
        for a, di, u in zip(p.x_second, d, c.x_dot, strict=True)
    ]
    return {
        "forward": {"y": p.y, "mean": [mu], "var": [v], "invstd": [p.w]},
        "backward": {"dx": dx, "dgamma": [p.gamma], "dbeta": [dbeta]},
        "jvp": {"y_dot": p.y_dot},
        "double_backward": {"ddy": p.y_dot, "dx": second_dx, "dgamma": [p.gamma_second]},
        "hvp": {"dx": second_dx, "dgamma": [p.gamma_second], "dbeta": [zero]},
    }


def _statistics_frozen(c: Inputs) -> Values:
    dbeta = _total(c.dy, c.zero)
    if c.frozen_degenerate:
        return _degenerate(True, None, None, dbeta, c.zero)
    p = _partials(c, c.mean, c.var + c.eps, c.mean_dot, c.var_dot)
    first: dict[str, Vector | None] = {"dx": p.x, "dgamma": [p.gamma], "dbeta": [dbeta], "dmean": [p.mu], "dvar": [p.v]}
    second: dict[str, Vector | None] = {
        "dx": p.x_second,
        "dgamma": [p.gamma_second],
        "dmean": [p.mu_second],
        "dvar": [p.v_second],
    }
    return {
        "inference": {"y": p.y, "invstd": [p.w]},
        "inference_backward": first,
        "inference_jvp": {"y_dot": p.y_dot},
        "inference_double_backward": {"ddy": p.y_dot, **second},
        "inference_hvp": {**second, "dbeta": [c.zero]},
    }


class Surd:
    """a + b√q with rational a and b, for one q that is no square."""

    __slots__ = ("a", "b", "q")

    def __init__(self, a: Any, b: Any, q: Any) -> None:
        self.a, self.b, self.q = a, b, q

    def _lift(self, other: Any) -> Surd:
        return other if isinstance(other, Surd) else Surd(fmpq(other), fmpq(0), self.q)

    def __add__(self, other: Any) -> Surd:
        o = self._lift(other)
        return Surd(self.a + o.a, self.b + o.b, self.q)

    def __sub__(self, other: Any) -> Surd:
        o = self._lift(other)
        return Surd(self.a - o.a, self.b - o.b, self.q)

    def __mul__(self, other: Any) -> Surd:
        o = self._lift(other)
        return Surd(self.a * o.a + self.b * o.b * self.q, self.a * o.b + self.b * o.a, self.q)

    def __truediv__(self, other: Any) -> Surd:
        o = self._lift(other)
        norm = o.a * o.a - o.b * o.b * self.q
        return self * Surd(o.a / norm, -o.b / norm, self.q)

    def __neg__(self) -> Surd:
        return Surd(-self.a, -self.b, self.q)

    def __rsub__(self, other: Any) -> Surd:
        return self._lift(other) - self

    __radd__ = __add__
    __rmul__ = __mul__


def surd_root(q: Any) -> Any:
    """1/√q of a positive rational: rational if it can be, else a `Surd`."""
    numerator, denominator = q.p.isqrt(), q.q.isqrt()
    if numerator * numerator == q.p and denominator * denominator == q.q:
        return fmpq(denominator, numerator)
    return Surd(fmpq(0), 1 / q, q)
