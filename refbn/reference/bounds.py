"""How far the numbers may be off: a proved error bound for every output of every pass.

**Theorem.** Let a pass be evaluated in floating-point arithmetic with unit roundoff u, where a summand passes through
h additions at most, and let w = (h + 8)·u. Then each output, before it is rounded to a narrower format, differs
from the exact value by at most ::

    K · w · (the output's majorant)

The *majorant* of a formula is the formula with each term replaced by its absolute value, each difference by a
sum, C z by |z| + mean(|z|), and the x̂ of training by 1 + |x̂|. K is an integer that depends on the output alone:

==========================  ============================================================
pass                        K
==========================  ============================================================
forward                     y 8, mean 3, var 2, invstd 2
jvp                         y_dot 27
backward                    dx 25, dgamma 13, dbeta 1
hvp                         dx 45, dgamma 31, dbeta 0
double_backward             ddy 27, dx 45, dgamma 31
running_update              mean 6, var 6
inference                   y 5, invstd 1
inference_jvp               y_dot 12
inference_backward          dx 3, dgamma 5, dbeta 1, dmean 4, dvar 10
inference_hvp               dx 9, dgamma 11, dbeta 0, dmean 10, dvar 17
inference_double_backward   ddy 12, dx 9, dgamma 11, dmean 10, dvar 17
==========================  ============================================================

The bounds do not grow with offset/std, nor with m but for the logarithm in h.

**When it holds.** (a) u ≤ 2^(−20), w ≤ 2^(−14), and (h + 2)·u·(m + 1) ≤ 1/40; in binary64 that is every m up to 2^40.
(b) Nothing overflows or vanishes on the way. To check that, take for every factor of the pass's formulas (r
twice where it stands squared) the largest magnitude a in the channel. Then ∏ max(a, 1)·m² ≤ 2^1000 and
∏ max(1/a, 1)·m² ≤ 2^900 must hold, where factors that are 0 do not count. With frozen statistics, where elements do not
meet in a mean and a majorant can be as small as one of them, the second product takes the smallest magnitude that is
not 0 instead. A channel that breaks (b), or in which something is infinite or NaN, gets the bound +inf: nothing is
claimed. Underflow then is no matter: it costs at most 2^(−1075) for each operation, times factors that stand in the
majorant as well, and the others multiply to at least 2^(−900). x enters through x̂ and r alone, since `statistics`
scales it (S7).

**Proof.** *Rules.* Say that a computed ã has the count K and the majorant A ≥ |a| if |ã − a| ≤ K·w·A. Inputs have
K = 0. To first order in u, with u ≤ w/8 for each rounding:

* product: K₁ + K₂ + 1 and A₁·A₂, for (K₁ + K₂)·w from the factors and u from the rounding. Times ±2^k: unchanged.
* sum or difference: max(K₁, K₂) + 1 and A₁ + A₂.
* Σ: K + 1 and ΣA, since a summand is rounded at most h times; mean: K + 1 and mean(A), since h + 1 times.

What is of higher order fits into the 7/8·w, at least, that these steps leave: it is at most K₁·K₂·w² with
K ≤ 45 and w ≤ 2^(−14), that is 1/8·w. For Σ and mean, (1+u)^(h+1) − 1 ≤ (h + 2)·u leaves 6·u likewise.

*Lemma 1: the first mean.* Let z be x or another input tensor, c one of its elements, t the computed mean(z − c),
μ̃ = fl(c + t), δ = μ̃ − mean(z) and α = mean(|C z|). Then |δ| ≤ 1.05·α. For t differs from mean(z − c) by at most
e = (h + 2)·u·mean(|z − c|), and mean(|z − c|) ≤ α + |c − mean(z)| ≤ (1 + m)·α, so e ≤ α/40 by (a). And μ̃ is a
number *nearest* to c + t, so no element of z is nearer: |μ̃ − (c + t)| ≤ min |z_i − (c + t)| ≤ min |C z| + e ≤ α + e.
Together |δ| ≤ α + 2·e. ∎ (An evaluation without the shift c may use whatever other reason it has for |δ| ≤ 1.05·α:
binary64 sums of binary32 data, or double-double sums of binary64 data, are far more precise than the data's own
spacing.)

*Lemma 2: centering twice.* The deviations fl(z_i − μ̃) are C z_i − δ + ε_i with |ε_i| ≤ u·(|C z_i| + 1.05·α). Their
mean, −δ + mean(ε), is computed with an error below (h + 1)·u·2.06·α. Subtracting it removes δ, whatever its size,
and leaves ε_i − mean(ε), the error of that mean, and the rounding of the result::

    |error of C z_i| ≤ (2.06·h + 5.2)·u·α + 2.01·u·|C z_i| ≤ w·(2.1·α + 0.3·|C z_i|)

As α ≤ 2·mean(|z|) and |C z_i| ≤ |z_i| + mean(|z|), that is the count 5 for the majorant |z| + mean(|z|). For d,
where α ≤ √v, it is 3 for √v + |d|; likewise 3 for the mean with α + |μ|, the last rounding included. ∎

*Lemma 3: var, invstd, x̂.* An error that is the same in all d_i is orthogonal to d, so it moves mean(d²) in second
order only. The others are below u·(2.01·|d_i| + 1.05·√v), which moves v by 2·mean(|d|·that) ≤ 6.2·u·v. Squaring and
averaging add (h + 2)·u, and (h + 8.2)·u with all that is of higher order is below 2·w: the count 2 for v
itself. Then q has the relative error 2·w + u, r half of that and 2·u more, 1.4·w: the count 2 for r.
x̂ = d·r has 3 + 2 + 1 = 6 for (√v + |d|)·r ≤ 1 + |x̂|. For frozen statistics q = v + ε is rounded once, so r has
2.5·u: the count 1. ∎

All else is counting by the rules along the lines of the pass, and that is what this module's code does: it runs
each formula on pairs (majorant, count). Majorants are themselves computed in binary64 from the textbook's x̂ and
r; a factor 1 + 2^(−10) makes up for that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from typing import Any, NamedTuple

import numpy as np

from refbn.reference import _sum, frozen
from refbn.reference._sum import Array, column
from refbn.reference.frozen import Frozen
from refbn.reference.statistics import Statistics, statistics

__all__ = [
    "backward",
    "counts",
    "double_backward",
    "forward",
    "hvp",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
    "jvp",
    "running_update",
]

_U = 2.0**-53
_OF_MAJORANT = 1.0 + 2.0**-10


@dataclass(frozen=True, slots=True)
class _Term:
    """A computed quantity: its majorant A, shape (G, m) or (G, 1), and its count K."""

    majorant: Array
    count: int = 0

    def __mul__(self, other: _Term) -> _Term:
        return _Term(self.majorant * other.majorant, self.count + other.count + 1)

    def __add__(self, other: _Term) -> _Term:
        return _Term(self.majorant + other.majorant, max(self.count, other.count) + 1)

    def halved(self) -> _Term:
        return _Term(0.5 * self.majorant, self.count)


class _Claim(NamedTuple):
    """What a pass claims: a term for each output, and the factors whose range decides where it claims it."""

    outputs: dict[str, _Term]
    factors: tuple[Array, ...]
    m: int
    frozen: bool = False


def _bound(claim: Callable[..., _Claim]) -> Callable[..., dict[str, Array]]:
    """Turn a claim into the bounds that it states."""

    @wraps(claim)
    def bound(*args: Any, u: float = _U, depth: int | None = None, **kwargs: Any) -> dict[str, Array]:
        with np.errstate(all="ignore"):
            outputs, factors, m, is_frozen = claim(*args, **kwargs)
            h = _sum.depth(m) if depth is None else depth
            w = (h + 8) * u
            claimed = _precise_enough(u, h, m) & _in_range(factors, m, is_frozen)
            bounds = {}
            for name, term in outputs.items():
                value = term.count * w * _OF_MAJORANT * term.majorant
                value = np.where(claimed & ~np.isnan(value), value, np.inf)
                bounds[name] = value if name in _TENSORS else value[:, 0]
            return bounds

    own = inspect.signature(bound, follow_wrapped=False).parameters
    parameters = [*inspect.signature(claim).parameters.values(), own["u"], own["depth"]]
    signature = inspect.Signature(parameters, return_annotation="dict[str, Array]")
    bound.__dict__.update(claim=claim, __signature__=signature)
    return bound


_TENSORS = frozenset({"y", "y_dot", "dx", "ddy"})


def _precise_enough(u: float, h: int, m: int) -> bool:
    """Return whether condition (a) holds."""
    return u <= 2.0**-20 and (h + 8) * u <= 2.0**-14 and (h + 2) * u * (m + 1) <= 1 / 40


def _in_range(factors: tuple[Array, ...], m: int, is_frozen: bool) -> Array:
    """Return where condition (b) holds, shape (G, 1)."""
    above = below = 2.0 * np.log2(max(m, 1))
    for factor in factors:
        size = np.abs(factor if factor.ndim == 2 else column(factor))
        largest = np.max(size, axis=1, keepdims=True, initial=0.0)
        smallest = np.min(size, axis=1, keepdims=True, initial=np.inf, where=size != 0) if is_frozen else largest
        above = above + np.maximum(np.log2(np.where(largest == 0, 1.0, largest)), 0.0)
        below = below + np.maximum(-np.log2(np.where(smallest == 0, 1.0, smallest)), 0.0)
    return np.asarray((above <= 1000) & (below <= 900))


# ---- the parts that formulas are made of ----------------------------------------------------------------------------


def _given(value: Array) -> _Term:
    value = np.abs(value)
    return _Term(value if value.ndim == 2 else column(value))


def _total(term: _Term) -> _Term:
    return _Term(_sum.total(term.majorant), term.count + 1)


def _mean(term: _Term) -> _Term:
    return _Term(_sum.mean(term.majorant), term.count + 1)


def _center(z: Array) -> _Term:
    """Lemma 2."""
    size = np.abs(z)
    return _Term(size + _sum.mean(size), 5)


def _batch_mean(stats: Statistics) -> _Term:
    """Lemma 2, for the mean itself; α = mean(|x̂|)/r, and 0 in a constant channel."""
    spread = _sum.mean(np.abs(stats.xhat)) / column(stats.invstd)
    return _Term(column(np.abs(stats.mean)) + np.where(_constant(stats), 0.0, spread), 3)


def _constant(stats: Statistics) -> Array:
    """Return where q = 0: there mean and var are exact, and nothing else exists."""
    return np.isinf(column(stats.invstd)) & np.isnan(stats.xhat[:, :1])


def _batch_var(var: Array) -> _Term:
    """Lemma 3."""
    return _Term(column(var), 2)


def _invstd(stats: Statistics) -> _Term:
    """Lemma 3."""
    return _Term(column(stats.invstd), 2)


def _xhat(stats: Statistics) -> _Term:
    """Lemma 3."""
    return _Term(1.0 + np.abs(stats.xhat), 6)


def _project(stats: Statistics, u: Array) -> _Term:
    return _center(u) + _xhat(stats) * _mean(_xhat(stats) * _center(u))  # (P1)


def _curvature(stats: Statistics, gamma: Array, u: Array, g: Array) -> _Term:
    r, xhat, project_u, project_g = _invstd(stats), _xhat(stats), _project(stats, u), _project(stats, g)
    bracket = (
        _mean(xhat * _center(g)) * project_u
        + _mean(xhat * _center(u)) * project_g
        + xhat * _mean(_center(u) * project_g)
    )
    return _given(gamma) * (r * (r * bracket))  # (K3)


# ---- training -----------------------------------------------------------------------------------------------------


@_bound
def forward(x: Array, gamma: Array, beta: Array, eps: float) -> _Claim:
    """Bound the errors of `refbn.reference.forward`: y, mean, var, invstd.

    Parameters
    ----------
    x, gamma, beta, eps
        As for `refbn.reference.forward`.
    u : float, keyword
        Unit roundoff of the arithmetic; 2^(−53) if left out.
    depth : int, keyword
        h; that of the textbook's sum, ⌈log₂ m⌉, if left out.

    Returns
    -------
    dict of ndarray
        For each output the largest possible |computed − exact|, in the output's shape.
    """
    stats = statistics(x, eps)
    outputs = {
        "y": _given(gamma) * _xhat(stats) + _given(beta),  # (F1)
        "mean": _batch_mean(stats),
        "var": _batch_var(stats.var),
        "invstd": _invstd(stats),
    }
    return _Claim(outputs, (np.where(_constant(stats), 0.0, column(stats.invstd)), gamma, beta), x.shape[1])


@_bound
def jvp(stats: Statistics, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array) -> _Claim:
    """Bound the error of `refbn.reference.jvp`: y_dot. Arguments as there, and u, depth as for `forward`."""
    along_x = _given(gamma) * (_invstd(stats) * _project(stats, x_dot))
    y_dot = along_x + _given(gamma_dot) * _xhat(stats) + _given(beta_dot)  # (J5)
    factors = (gamma, stats.invstd, x_dot, gamma_dot, beta_dot)
    return _Claim({"y_dot": y_dot}, factors, x_dot.shape[1])


@_bound
def backward(stats: Statistics, gamma: Array, dy: Array) -> _Claim:
    """Bound the errors of `refbn.reference.backward`: dx, dgamma, dbeta. Arguments as there, and u, depth."""
    outputs = {
        "dx": _given(gamma) * (_invstd(stats) * _project(stats, dy)),  # (B3)
        "dgamma": _total(_center(dy) * _xhat(stats)),  # (B4)
        "dbeta": _total(_given(dy)),  # (B5)
    }
    return _Claim(outputs, (gamma, stats.invstd, dy), dy.shape[1])


@_bound
def hvp(stats: Statistics, gamma: Array, dy: Array, x_dot: Array, gamma_dot: Array) -> _Claim:
    """Bound the errors of `refbn.reference.hvp`: dx, dgamma, dbeta. Arguments as there, and u, depth."""
    r, project_dy = _invstd(stats), _project(stats, dy)
    outputs = {
        "dx": _given(gamma_dot) * (r * project_dy) + _curvature(stats, gamma, x_dot, dy),  # (H1)
        "dgamma": r * _total(_center(x_dot) * project_dy),  # (H2)
        "dbeta": _zero(stats.invstd),  # (H3)
    }
    return _Claim(outputs, (gamma, stats.invstd, stats.invstd, dy, x_dot, gamma_dot), dy.shape[1])


@_bound
def double_backward(stats: Statistics, gamma: Array, dy: Array, ddx: Array, ddgamma: Array, ddbeta: Array) -> _Claim:
    """Bound the errors of `refbn.reference.double_backward`: ddy, dx, dgamma. Arguments as there, and u, depth."""
    along = _claim_of(jvp)(stats, gamma, ddx, ddgamma, ddbeta)
    second = _claim_of(hvp)(stats, gamma, dy, ddx, ddgamma)
    outputs = {
        "ddy": along.outputs["y_dot"],  # (D2)
        "dx": second.outputs["dx"],  # (D4)
        "dgamma": second.outputs["dgamma"],  # (D3)
    }
    return _Claim(outputs, (*second.factors, ddbeta), dy.shape[1])


@_bound
def running_update(
    stats: Statistics,
    m: int,
    momentum: Fraction,
    weighs_new: bool,
    unbiased: bool,
    running_mean: Array,
    running_var: Array,
) -> _Claim:
    """Bound the errors of `refbn.reference.running_update`: mean, var. Arguments as there, and u, depth."""
    new, old = (momentum, 1 - momentum) if weighs_new else (1 - momentum, momentum)
    like = np.ones_like(stats.var)
    weight_new, weight_old = (_Term(column(abs(float(w)) * like), 1) for w in (new, old))  # rounded once
    # m/(m−1) is one rounding more, and so is the product with it: 2·u, well below the count 1 of a product.
    var = _Term(column(stats.var * (m / (m - 1) if unbiased else 1.0)), 3)  # (S8)
    outputs = {
        "mean": weight_new * _batch_mean(stats) + weight_old * _given(running_mean),  # (S9)
        "var": weight_new * var + weight_old * _given(running_var),
    }
    weights = (float(new) * like, float(old) * like)
    r = np.where(_constant(stats), 0.0, column(stats.invstd))
    return _Claim(outputs, (r, stats.mean, stats.var, running_mean, running_var, *weights), m)


# ---- frozen statistics --------------------------------------------------------------------------------------------


def _frozen_invstd(stats: Frozen) -> _Term:
    """Lemma 3."""
    return _Term(column(stats.invstd), 1)


def _frozen_xhat(stats: Frozen) -> _Term:
    return _Term(np.abs(stats.xhat), 3)  # (x − μ: 1) times (r: 1)


def _frozen_xhat_dot(stats: Frozen, x_dot: Array, mean_dot: Array, var_dot: Array) -> _Term:
    r, xhat = _frozen_invstd(stats), _frozen_xhat(stats)
    return r * (_given(x_dot) + _given(mean_dot)) + (xhat * (r * (r * _given(var_dot)))).halved()  # (I2)


@_bound
def inference(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float) -> _Claim:
    """Bound the errors of `refbn.reference.inference`: y, invstd. Arguments as there, and u, depth."""
    stats = frozen.inference(x, mean, var, gamma, beta, eps).stats
    outputs = {
        "y": _given(gamma) * _frozen_xhat(stats) + _given(beta),  # (I1)
        "invstd": _frozen_invstd(stats),
    }
    return _Claim(outputs, (x - column(mean), stats.invstd, gamma, beta), x.shape[1], frozen=True)


@_bound
def inference_jvp(
    stats: Frozen,
    gamma: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
    beta_dot: Array,
) -> _Claim:
    """Bound the error of `refbn.reference.inference_jvp`: y_dot. Arguments as there, and u, depth."""
    xhat_dot = _frozen_xhat_dot(stats, x_dot, mean_dot, var_dot)
    y_dot = _given(gamma) * xhat_dot + _given(gamma_dot) * _frozen_xhat(stats) + _given(beta_dot)  # (I3)
    r, xhat = stats.invstd, stats.xhat
    factors = (gamma, xhat, r, r, x_dot, mean_dot, var_dot, gamma_dot, beta_dot)
    return _Claim({"y_dot": y_dot}, factors, x_dot.shape[1], frozen=True)


@_bound
def inference_backward(stats: Frozen, gamma: Array, dy: Array) -> _Claim:
    """Bound the errors of `refbn.reference.inference_backward`: dx, dgamma, dbeta, dmean, dvar.

    Arguments as there, and u, depth as for `forward`.
    """
    r, sum_dy, sum_dy_xhat = _frozen_invstd(stats), _total(_given(dy)), _total(_given(dy) * _frozen_xhat(stats))
    outputs = {
        "dx": _given(gamma) * (r * _given(dy)),  # (I4)
        "dgamma": sum_dy_xhat,  # (I7)
        "dbeta": sum_dy,  # (I8)
        "dmean": _given(gamma) * (r * sum_dy),  # (I5)
        "dvar": (_given(gamma) * (r * (r * sum_dy_xhat))).halved(),  # (I6)
    }
    return _Claim(outputs, (gamma, stats.xhat, stats.invstd, stats.invstd, dy), dy.shape[1], frozen=True)


@_bound
def inference_hvp(
    stats: Frozen,
    gamma: Array,
    dy: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
) -> _Claim:
    """Bound the errors of `refbn.reference.inference_hvp`: dx, dgamma, dbeta, dmean, dvar.

    Arguments as there, and u, depth as for `forward`.
    """
    r, rr_var_dot = _frozen_invstd(stats), _frozen_invstd(stats) * (_frozen_invstd(stats) * _given(var_dot))
    factor = r * (_given(gamma_dot) + (_given(gamma) * rr_var_dot).halved())
    sum_dy_xhat = _total(_given(dy) * _frozen_xhat(stats))
    sum_dy_xhat_dot = _total(_given(dy) * _frozen_xhat_dot(stats, x_dot, mean_dot, var_dot))
    bracket = (_given(gamma_dot) + _given(gamma) * rr_var_dot) * sum_dy_xhat + _given(gamma) * sum_dy_xhat_dot
    outputs = {
        "dx": factor * _given(dy),  # (I9)
        "dgamma": sum_dy_xhat_dot,  # (I11)
        "dbeta": _zero(stats.invstd),  # (I11)
        "dmean": factor * _total(_given(dy)),  # (I10)
        "dvar": (r * (r * bracket)).halved(),  # (I12)
    }
    r_four_times = (stats.invstd,) * 4
    factors = (gamma, stats.xhat, *r_four_times, dy, x_dot, mean_dot, var_dot, gamma_dot)
    return _Claim(outputs, factors, dy.shape[1], frozen=True)


@_bound
def inference_double_backward(
    stats: Frozen,
    gamma: Array,
    dy: Array,
    ddx: Array,
    ddmean: Array,
    ddvar: Array,
    ddgamma: Array,
    ddbeta: Array,
) -> _Claim:
    """Bound the errors of `refbn.reference.inference_double_backward`: ddy, dx, dgamma, dmean, dvar.

    Arguments as there, and u, depth as for `forward`.
    """
    along = _claim_of(inference_jvp)(stats, gamma, ddx, ddmean, ddvar, ddgamma, ddbeta)
    second = _claim_of(inference_hvp)(stats, gamma, dy, ddx, ddmean, ddvar, ddgamma)
    outputs = {name: term for name, term in second.outputs.items() if name != "dbeta"}  # (I14)
    outputs["ddy"] = along.outputs["y_dot"]  # (I13)
    return _Claim(outputs, (*second.factors, ddbeta), dy.shape[1], frozen=True)


# ---- the table -----------------------------------------------------------------------------------------------------


def counts() -> dict[str, dict[str, int]]:
    """Return K for each pass and output, counted by running the formulas (not read from the table above)."""
    v, t = np.ones(1), np.ones((1, 2))
    stats, frozen_stats = statistics(np.array([[0.0, 1.0]]), 1.0), Frozen(v, t)
    claims = {
        "forward": _claim_of(forward)(t, v, v, 1.0),
        "jvp": _claim_of(jvp)(stats, v, t, v, v),
        "backward": _claim_of(backward)(stats, v, t),
        "hvp": _claim_of(hvp)(stats, v, t, t, v),
        "double_backward": _claim_of(double_backward)(stats, v, t, t, v, v),
        "running_update": _claim_of(running_update)(stats, 2, Fraction(1, 2), True, True, v, v),
        "inference": _claim_of(inference)(t, v, v, v, v, 1.0),
        "inference_jvp": _claim_of(inference_jvp)(frozen_stats, v, t, v, v, v, v),
        "inference_backward": _claim_of(inference_backward)(frozen_stats, v, t),
        "inference_hvp": _claim_of(inference_hvp)(frozen_stats, v, t, t, v, v, v),
        "inference_double_backward": _claim_of(inference_double_backward)(frozen_stats, v, t, t, v, v, v, v),
    }
    return {name: {o: term.count for o, term in claim.outputs.items()} for name, claim in claims.items()}


def _claim_of(bound: Callable[..., dict[str, Array]]) -> Callable[..., _Claim]:
    claim: Callable[..., _Claim] = bound.__dict__["claim"]
    return claim


def _zero(like: Array) -> _Term:
    return _Term(np.zeros((*like.shape, 1)))
