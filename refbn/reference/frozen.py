"""Batch norm with frozen statistics ("inference"): mean and var are inputs of their own.

Nothing couples the elements of a channel here, and so nothing is blocked: what training removes by P, frozen
statistics hand to dmean and dvar.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column, total

__all__ = [
    "Frozen",
    "Inference",
    "InferenceBackward",
    "InferenceDoubleBackward",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
]


class Frozen(NamedTuple):
    """What the derivative passes want to know of x, mean and var.

    Attributes
    ----------
    invstd : ndarray, shape (G,)
        r = 1/√(v+ε).
    xhat : ndarray, shape (G, m)
        x̂ = (x − μ)·r; its mean need not be 0, nor its mean square below 1.
    """

    invstd: Array
    xhat: Array


class Inference(NamedTuple):
    """Result of `inference`.

    Attributes
    ----------
    y : ndarray, shape (G, m)
        The output.
    stats : Frozen
        For the derivative passes.
    """

    y: Array
    stats: Frozen


class InferenceBackward(NamedTuple):
    """Result of `inference_backward` and `inference_hvp`.

    Attributes
    ----------
    dx : ndarray, shape (G, m)
        To x.
    dgamma, dbeta, dmean, dvar : ndarray, shape (G,)
        To γ, β, μ and v.
    """

    dx: Array
    dgamma: Array
    dbeta: Array
    dmean: Array
    dvar: Array


class InferenceDoubleBackward(NamedTuple):
    """Result of `inference_double_backward`.

    Attributes
    ----------
    ddy : ndarray, shape (G, m)
        To dy.
    dx : ndarray, shape (G, m)
        To x.
    dgamma, dmean, dvar : ndarray, shape (G,)
        To γ, μ and v. The gradient to β is zero: `inference_backward` does not contain it.
    """

    ddy: Array
    dx: Array
    dgamma: Array
    dmean: Array
    dvar: Array


def inference(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float) -> Inference:
    """Normalize each channel of x with given statistics.

    Parameters
    ----------
    x : ndarray, shape (G, m)
        The input.
    mean, var : ndarray, shape (G,)
        μ and v.
    gamma, beta : ndarray, shape (G,)
        Scale and shift.
    eps : float
        ε ≥ 0.

    Returns
    -------
    Inference
        y, stats.

    Notes
    -----
    With r = (v + ε)^(−1/2) and x̂ = (x − μ)·r::

        (I1)  y = γ·x̂ + β = γ·(x − μ)·r + β

    If v + ε = 0 then r = +inf is reported, and every output that contains it is NaN.
    """
    with np.errstate(all="ignore"):
        invstd = 1.0 / np.sqrt(var + eps)
        xhat = (x - column(mean)) * _usable(invstd)
        return Inference(column(gamma) * xhat + column(beta), Frozen(invstd, xhat))  # (I1)


def inference_jvp(
    stats: Frozen,
    gamma: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
    beta_dot: Array,
) -> Array:
    """Return ẏ, the velocity of y when all five inputs move (forward mode).

    Parameters
    ----------
    stats : Frozen
        Of x, mean and var.
    gamma : ndarray, shape (G,)
        The scale.
    x_dot : ndarray, shape (G, m)
        ẋ.
    mean_dot, var_dot, gamma_dot, beta_dot : ndarray, shape (G,)
        μ̇, v̇, γ̇ and β̇.

    Returns
    -------
    ndarray, shape (G, m)
        ẏ.

    Notes
    -----
    Push a tangent forward. ṙ = −½·r³·v̇ as in (J3), and (x − μ)·r = x̂::

        (I2)  (x̂)˙ = r·(ẋ − μ̇) − ½·r²·x̂·v̇
        (I3)  ẏ = γ·(x̂)˙ + γ̇·x̂ + β̇
    """
    with np.errstate(all="ignore"):
        xhat_dot = _xhat_dot(stats, x_dot, mean_dot, var_dot)
        return np.asarray(
            column(gamma) * xhat_dot + column(gamma_dot) * stats.xhat + column(beta_dot)  # (I3)
        )


def inference_backward(stats: Frozen, gamma: Array, dy: Array) -> InferenceBackward:
    """Return the gradients to all five inputs of a loss whose gradient to y is dy (reverse mode).

    Parameters
    ----------
    stats : Frozen
        Of x, mean and var.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The gradient to y.

    Returns
    -------
    InferenceBackward
        dx, dgamma, dbeta, dmean, dvar.

    Notes
    -----
    1. *Push a tangent forward*: (I2) and (I3).
    2. *Substitute* them into ⟨dy, ẏ⟩ = ⟨dx, ẋ⟩ + dμ·μ̇ + dv·v̇ + dγ·γ̇ + dβ·β̇.
    3. *Rearrange*: ⟨dy, ẏ⟩ = ⟨γ·r·dy, ẋ⟩ − γ·r·Σdy·μ̇ − ½·γ·r²·Σ dy·x̂·v̇ + Σ dy·x̂·γ̇ + Σ dy·β̇.
    4. *Read off the adjoint*::

        (I4)  dx = γ·r·dy
        (I5)  dμ = −γ·r·Σ dy
        (I6)  dv = −½·γ·r²·Σ dy·x̂
        (I7)  dγ = Σ dy·x̂
        (I8)  dβ = Σ dy
    """
    with np.errstate(all="ignore"):
        r, gamma = _usable(stats.invstd), column(gamma)
        sum_dy, sum_dy_xhat = total(dy), total(dy * stats.xhat)
        return InferenceBackward(
            dx=gamma * (r * dy),  # (I4)
            dgamma=sum_dy_xhat[:, 0],  # (I7)
            dbeta=sum_dy[:, 0],  # (I8)
            dmean=(-(gamma * (r * sum_dy)))[:, 0],  # (I5)
            dvar=(-0.5 * (gamma * (r * (r * sum_dy_xhat))))[:, 0],  # (I6)
        )


def inference_hvp(
    stats: Frozen,
    gamma: Array,
    dy: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
) -> InferenceBackward:
    """Return the velocity of `inference_backward`'s results when x, μ, v and γ move.

    Parameters
    ----------
    stats : Frozen
        Of x, mean and var.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The cotangent of y, held fixed.
    x_dot : ndarray, shape (G, m)
        ẋ.
    mean_dot, var_dot, gamma_dot : ndarray, shape (G,)
        μ̇, v̇ and γ̇.

    Returns
    -------
    InferenceBackward
        The velocities of dx, dgamma, dbeta (zero), dmean and dvar.

    Notes
    -----
    Push the tangent through (I4) to (I8). The factor γ·r of (I4) and (I5) moves by γ̇·r + γ·ṙ, with
    ṙ = −½·r³·v̇::

        (I9)  (dx)˙ = r·(γ̇ − ½·γ·r²·v̇)·dy
        (I10)  (dμ)˙ = −r·(γ̇ − ½·γ·r²·v̇)·Σ dy

    In (I7) x̂ moves by (I2), and (I8) does not move::

        (I11)  (dγ)˙ = Σ dy·(x̂)˙ = r·Σ dy·(ẋ − μ̇) − ½·r²·v̇·Σ dy·x̂,   (dβ)˙ = 0

    In (I6) there is γ·r², which moves by γ̇·r² − γ·r⁴·v̇, and the sum, which moves by (I11)::

        (I12)  (dv)˙ = −½·r²·[ (γ̇ − γ·r²·v̇)·Σ dy·x̂ + γ·Σ dy·(x̂)˙ ]

    So among (x, γ, μ, v), all second derivatives of ⟨dy, y⟩ are zero but these: x–γ, x–v, γ–μ, γ–v, μ–v and v–v.
    """
    with np.errstate(all="ignore"):
        r, gamma = _usable(stats.invstd), column(gamma)
        gamma_dot, rr_var_dot = column(gamma_dot), r * (r * column(var_dot))
        factor = r * (gamma_dot - 0.5 * (gamma * rr_var_dot))
        sum_dy_xhat = total(dy * stats.xhat)
        sum_dy_xhat_dot = total(dy * _xhat_dot(stats, x_dot, mean_dot, var_dot))
        bracket = (gamma_dot - gamma * rr_var_dot) * sum_dy_xhat + gamma * sum_dy_xhat_dot
        return InferenceBackward(
            dx=factor * dy,  # (I9)
            dgamma=sum_dy_xhat_dot[:, 0],  # (I11)
            dbeta=np.zeros_like(stats.invstd),  # (I11)
            dmean=(-(factor * total(dy)))[:, 0],  # (I10)
            dvar=(-0.5 * (r * (r * bracket)))[:, 0],  # (I12)
        )


def inference_double_backward(
    stats: Frozen,
    gamma: Array,
    dy: Array,
    ddx: Array,
    ddmean: Array,
    ddvar: Array,
    ddgamma: Array,
    ddbeta: Array,
) -> InferenceDoubleBackward:
    """Return the gradients of a loss that depends on `inference_backward`'s results (reverse over reverse).

    Parameters
    ----------
    stats : Frozen
        Of x, mean and var.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The cotangent of y that `inference_backward` was given.
    ddx : ndarray, shape (G, m)
        The gradient to its dx.
    ddmean, ddvar, ddgamma, ddbeta : ndarray, shape (G,)
        The gradients to its dmean, dvar, dgamma and dbeta.

    Returns
    -------
    InferenceDoubleBackward
        ddy, dx, dgamma, dmean, dvar.

    Notes
    -----
    1. *Push a tangent forward* through `inference_backward`: if dy moves by z, the results move by
       `inference_backward` of z; if the rest moves, by (I9) to (I12).
    2. *Substitute* into ⟨ddx, (dx)˙⟩ + ddμ·(dμ)˙ + ddv·(dv)˙ + ddγ·(dγ)˙ + ddβ·(dβ)˙ = ⟨ddy, z⟩ + ⟨dx, ẋ⟩ + ….
    3. *Rearrange.* The part with z is ⟨z, ẏ⟩ for a tangent (ddx, ddμ, ddv, ddγ, ddβ), by the very identity that
       defined the gradients. In the rest the matrix of second derivatives of ⟨dy, y⟩ changes sides; it is symmetric.
    4. *Read off the adjoint*::

        (I13)  ddy = γ·[r·(ddx − ddμ) − ½·r²·x̂·ddv] + ddγ·x̂ + ddβ
        (I14)  dx, dγ, dμ, dv = (I9), (I11), (I10), (I12)  along  ẋ = ddx, μ̇ = ddμ, v̇ = ddv, γ̇ = ddγ
    """
    with np.errstate(all="ignore"):
        second = inference_hvp(stats, gamma, dy, ddx, ddmean, ddvar, ddgamma)  # (I14)
        return InferenceDoubleBackward(
            ddy=inference_jvp(stats, gamma, ddx, ddmean, ddvar, ddgamma, ddbeta),  # (I13)
            dx=second.dx,
            dgamma=second.dgamma,
            dmean=second.dmean,
            dvar=second.dvar,
        )


def _usable(invstd: Array) -> Array:
    """Return r as a column, with NaN for the infinite r of v + ε = 0: no output may contain it."""
    return column(invstd + (invstd - invstd))


def _xhat_dot(stats: Frozen, x_dot: Array, mean_dot: Array, var_dot: Array) -> Array:
    r = _usable(stats.invstd)
    return np.asarray(
        r * (x_dot - column(mean_dot)) - 0.5 * (stats.xhat * (r * (r * column(var_dot))))  # (I2)
    )
