"""The oracle as a backend: `refbn.exact` on canonical arrays, every output rounded once from its exact value.

What is exact needs no case distinction; what is not a number does. A value that is not finite is replaced by 0, and an
eps that makes q = var + eps vanish by one that does not, before the oracle sees them; afterwards every output whose
formula contains such an input becomes NaN (rules R1 and R2). The names in the calls of `write` below are those
formulas' inputs, as the contract lists them; ``"root"`` stands for x̂ or invstd.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import exact
from refbn._formats import load
from refbn.exact import ExactArray

__all__ = [
    "backward",
    "double_backward",
    "forward",
    "hvp",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
    "jvp",
    "name",
    "running_update",
    "taylor",
]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

name = "exact"


@dataclass(frozen=True, slots=True)
class Trained:
    """The state of `forward`.

    Attributes
    ----------
    eps : list of Fraction
        Per group: eps, or 1 where q is 0.
    moments : exact.Moments
        The exact statistics.
    count : int
        m.
    nan, degenerate : ndarray of bool
        Groups whose x is not finite; groups where q is 0.
    """

    eps: list[Fraction]
    moments: exact.Moments
    count: int
    nan: Bools
    degenerate: Bools


@dataclass(frozen=True, slots=True)
class Frozen:
    """The state of `inference`.

    Attributes
    ----------
    eps : list of Fraction
        Per group: eps, or what makes q positive.
    mean, var : ndarray
        The statistics in binary64, infinities as NaN.
    degenerate : ndarray of bool
        Groups where q is not positive.
    """

    eps: list[Fraction]
    mean: Array
    var: Array
    degenerate: Bools


# ---- training: statistics are functions of x ------------------------------------------------------------------------


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> Trained:
    """Compute y and the batch statistics."""
    inputs = _Inputs(x=x, gamma=gamma, beta=beta)
    moments = exact.moments(inputs["x"])
    inputs.root = moments.var.is_zero() & (eps == 0)
    epsilons = [Fraction(1) if bad else Fraction(eps) for bad in inputs.root]
    state = Trained(epsilons, moments, inputs.count, np.asarray(inputs.bad["x"].any(axis=1)), inputs.root)
    result = exact.forward(inputs["x"], inputs["gamma"], inputs["beta"], epsilons)
    inputs.write(y, result.y, "x gamma beta root")
    inputs.write(mean, result.mean, "x")
    inputs.write(var, result.var, "x")
    invstd[...] = _invstd(result.invstd.round(invstd.dtype), nan=state.nan, infinite=inputs.root)
    return state


def backward(state: Trained, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """Compute the gradient of <dy, y>."""
    inputs = _Inputs(root=state.degenerate, x=x, gamma=gamma, dy=dy)
    result = exact.backward(inputs["x"], inputs["gamma"], state.eps, inputs["dy"])
    inputs.write(dx, result.dx, "x gamma dy root")
    inputs.write(dgamma, result.dgamma, "x dy root")
    inputs.write(dbeta, result.dbeta, "dy")


def jvp(
    state: Trained, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array
) -> None:
    """Compute the derivative of y along a direction."""
    inputs = _Inputs(root=state.degenerate, x=x, gamma=gamma, x_dot=x_dot, gamma_dot=gamma_dot, beta_dot=beta_dot)
    result = exact.jvp(eps=state.eps, **inputs.clean)
    inputs.write(y_dot, result, "x gamma x_dot gamma_dot beta_dot root")


def double_backward(
    state: Trained,
    x: Array,
    gamma: Array,
    dy: Array,
    ddx: Array,
    ddgamma: Array,
    ddbeta: Array,
    *,
    ddy: Array,
    dx: Array,
    dgamma: Array,
) -> None:
    """Compute the vjp of `backward`."""
    inputs = _Inputs(root=state.degenerate, x=x, gamma=gamma, dy=dy, ddx=ddx, ddgamma=ddgamma, ddbeta=ddbeta)
    result = exact.double_backward(eps=state.eps, **inputs.clean)
    inputs.write(ddy, result.ddy, "x gamma ddx ddgamma ddbeta root")
    inputs.write(dx, result.dx, "x gamma dy ddx ddgamma root")
    inputs.write(dgamma, result.dgamma, "x dy ddx root")


def hvp(
    state: Trained,
    x: Array,
    gamma: Array,
    dy: Array,
    x_dot: Array,
    gamma_dot: Array,
    *,
    dx: Array,
    dgamma: Array,
    dbeta: Array,
) -> None:
    """Compute the derivative of `backward` along a direction, dy held fixed."""
    inputs = _Inputs(root=state.degenerate, x=x, gamma=gamma, dy=dy, x_dot=x_dot, gamma_dot=gamma_dot)
    result = exact.hvp(eps=state.eps, **inputs.clean)
    inputs.write(dx, result.dx, "x gamma dy x_dot gamma_dot root")
    inputs.write(dgamma, result.dgamma, "x dy x_dot root")
    inputs.write(dbeta, result.dbeta, "")


def running_update(
    state: Trained,
    x: Array,
    momentum: Fraction,
    weighs_new: bool,
    unbiased: bool,
    running_mean: Array,
    running_var: Array,
    *,
    out_mean: Array,
    out_var: Array,
) -> None:
    """Blend the batch statistics into running ones."""
    inputs = _Inputs(running_mean=running_mean, running_var=running_var)
    inputs.bad["x"] = state.nan
    result = exact.running_update(
        state.moments, state.count, momentum, weighs_new, unbiased, inputs["running_mean"], inputs["running_var"]
    )
    inputs.write(out_mean, result.mean, "x running_mean")
    inputs.write(out_var, result.var, "x running_var")


def taylor(
    x: tuple[Array, ...], gamma: tuple[Array, ...], beta: tuple[Array, ...], eps: float, *, y: tuple[Array, ...]
) -> None:
    """Compute truncated Taylor coefficients of y."""
    orders = range(len(x))
    inputs = _Inputs()
    for k in orders:
        for key, array in (("x", x[k]), ("gamma", gamma[k]), ("beta", beta[k])):
            inputs.read(f"{key}{k}", array)
    inputs.root = exact.moments(inputs["x0"]).var.is_zero() & (eps == 0)
    results = exact.taylor(
        [inputs[f"x{k}"] for k in orders],
        [inputs[f"gamma{k}"] for k in orders],
        [inputs[f"beta{k}"] for k in orders],
        [Fraction(1) if bad else Fraction(eps) for bad in inputs.root],
    )
    formula = "root"
    for k, result in enumerate(results):
        formula += f" x{k} gamma{k} beta{k}"
        inputs.write(y[k], result, formula)


# ---- frozen statistics: mean and var are independent inputs ---------------------------------------------------------


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> Frozen:
    """Compute y from given statistics."""
    inputs = _Inputs(elementwise=True, x=x, mean=mean, var=var, gamma=gamma, beta=beta)
    # A sum of two binary64 numbers has the sign of the exact sum.
    q = inputs["var"] + eps
    inputs.root = q <= 0
    epsilons = [
        1 - Fraction(v) if bad else Fraction(eps) for v, bad in zip(inputs["var"].tolist(), inputs.root, strict=True)
    ]
    result = exact.inference(eps=epsilons, **inputs.clean)
    inputs.write(y, result.y, "x mean var gamma beta root")
    nan = inputs.bad["var"] | (q < 0)
    invstd[...] = _invstd(result.invstd.round(invstd.dtype), nan=nan, infinite=inputs.root)
    return Frozen(epsilons, load(mean), load(var), inputs.root)


def inference_backward(
    state: Frozen,
    x: Array,
    gamma: Array,
    dy: Array,
    *,
    dx: Array,
    dgamma: Array,
    dbeta: Array,
    dmean: Array,
    dvar: Array,
) -> None:
    """Compute the gradient of <dy, y>."""
    inputs = _frozen_inputs(state, x=x, gamma=gamma, dy=dy)
    result = exact.inference_backward(eps=state.eps, **inputs.clean)
    inputs.write(dx, result.dx, "var gamma dy root")
    inputs.write(dgamma, result.dgamma, "x mean var dy root")
    inputs.write(dbeta, result.dbeta, "dy")
    inputs.write(dmean, result.dmean, "var gamma dy root")
    inputs.write(dvar, result.dvar, "x mean var gamma dy root")


def inference_jvp(
    state: Frozen,
    x: Array,
    gamma: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
    beta_dot: Array,
    *,
    y_dot: Array,
) -> None:
    """Compute the derivative of y along a direction."""
    inputs = _frozen_inputs(
        state,
        x=x,
        gamma=gamma,
        x_dot=x_dot,
        mean_dot=mean_dot,
        var_dot=var_dot,
        gamma_dot=gamma_dot,
        beta_dot=beta_dot,
    )
    result = exact.inference_jvp(eps=state.eps, **inputs.clean)
    inputs.write(y_dot, result, "x mean var gamma x_dot mean_dot var_dot gamma_dot beta_dot root")


def inference_double_backward(
    state: Frozen,
    x: Array,
    gamma: Array,
    dy: Array,
    ddx: Array,
    ddmean: Array,
    ddvar: Array,
    ddgamma: Array,
    ddbeta: Array,
    *,
    ddy: Array,
    dx: Array,
    dgamma: Array,
    dmean: Array,
    dvar: Array,
) -> None:
    """Compute the vjp of `inference_backward`."""
    inputs = _frozen_inputs(
        state, x=x, gamma=gamma, dy=dy, ddx=ddx, ddmean=ddmean, ddvar=ddvar, ddgamma=ddgamma, ddbeta=ddbeta
    )
    result = exact.inference_double_backward(eps=state.eps, **inputs.clean)
    inputs.write(ddy, result.ddy, "x mean var gamma ddx ddmean ddvar ddgamma ddbeta root")
    inputs.write(dx, result.dx, "var gamma dy ddvar ddgamma root")
    inputs.write(dgamma, result.dgamma, "x mean var dy ddx ddmean ddvar root")
    inputs.write(dmean, result.dmean, "var gamma dy ddvar ddgamma root")
    inputs.write(dvar, result.dvar, "x mean var gamma dy ddx ddmean ddvar ddgamma root")


def inference_hvp(
    state: Frozen,
    x: Array,
    gamma: Array,
    dy: Array,
    x_dot: Array,
    mean_dot: Array,
    var_dot: Array,
    gamma_dot: Array,
    *,
    dx: Array,
    dgamma: Array,
    dbeta: Array,
    dmean: Array,
    dvar: Array,
) -> None:
    """Compute the derivative of `inference_backward` along a direction, dy held fixed."""
    inputs = _frozen_inputs(
        state, x=x, gamma=gamma, dy=dy, x_dot=x_dot, mean_dot=mean_dot, var_dot=var_dot, gamma_dot=gamma_dot
    )
    result = exact.inference_hvp(eps=state.eps, **inputs.clean)
    inputs.write(dx, result.dx, "var gamma dy var_dot gamma_dot root")
    inputs.write(dgamma, result.dgamma, "x mean var dy x_dot mean_dot var_dot root")
    inputs.write(dbeta, result.dbeta, "")
    inputs.write(dmean, result.dmean, "var gamma dy var_dot gamma_dot root")
    inputs.write(dvar, result.dvar, "x mean var gamma dy x_dot mean_dot var_dot gamma_dot root")


# ---- what is no number ----------------------------------------------------------------------------------------------


class _Inputs:
    """Canonical views as finite binary64 arrays of shape (G, m) or (G,), and where they were not finite.

    Parameters
    ----------
    elementwise : bool
        Whether the elements of a group stay apart (frozen statistics): an element of a tensor result then contains
        the same element of the tensors only.
    root : ndarray of bool, optional
        Groups where q is not positive.
    **arrays : ndarray
        The views by name.

    Attributes
    ----------
    clean, bad : dict of str to ndarray
        The values with 0 for what is not finite, and where that is.
    count : int
        m.
    """

    def __init__(self, *, elementwise: bool = False, root: Bools | None = None, **arrays: Array) -> None:
        self.elementwise = elementwise
        self.clean: dict[str, Array] = {}
        self.bad: dict[str, Bools] = {}
        self.count = 0
        for key, array in arrays.items():
            self.read(key, array)
        if root is not None:
            self.root = root

    def read(self, key: str, array: Array) -> None:
        """Take one more view in."""
        values = load(array)
        if values.ndim > 1:
            self.count = prod(values.shape[1:])
            values = values.reshape(values.shape[0], self.count)
        self.bad[key] = np.isnan(values)
        self.clean[key] = np.where(self.bad[key], 0.0, values)

    def __getitem__(self, key: str) -> Array:
        return self.clean[key]

    @property
    def root(self) -> Bools:
        """Groups where q is not positive."""
        return self.bad["root"]

    @root.setter
    def root(self, groups: Bools) -> None:
        self.bad["root"] = groups

    def write(self, out: Array, result: ExactArray, formula: str) -> None:
        """Round into the output, and make NaN of what contains something that is no number."""
        values = result.round(out.dtype)
        for key in formula.split():
            bad = self.bad[key]
            if values.ndim == 2 and bad.ndim == 2 and self.elementwise:
                values[bad] = np.nan
            elif values.ndim == 2 or self.count or "dy" not in self.bad:
                values[bad.any(axis=1) if bad.ndim == 2 else bad] = np.nan
            # else: a vector out of a pass with dy, of no elements; an empty sum contains nothing (rule R6)
        out[...] = values.reshape(out.shape)


def _frozen_inputs(state: Frozen, **arrays: Array) -> _Inputs:
    return _Inputs(elementwise=True, root=state.degenerate, mean=state.mean, var=state.var, **arrays)


def _invstd(values: Array, *, nan: Bools, infinite: Bools) -> Array:
    values[infinite] = np.inf
    values[nan] = np.nan
    return values
