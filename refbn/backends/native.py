"""The native backend: the C core in ``_ext/``, bound to the contract of `refbn.backends._contract`.

Importing this module raises `ImportError` where the core was not built. A call in which any array is binary64
computes in double-double, every other one in binary64; `arithmetic` says what the error bounds of
`refbn.reference.bounds` need to know of either. The proof stands at the head of ``_ext/kernels.c``.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn._native as _native
from refbn._formats import BINARY64, Format

__all__ = [
    "arithmetic",
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
]

name = "native"

Array = npt.NDArray[Any]
State = npt.NDArray[np.float64]

_core = _native.builds[0]
_DEPTH = 24  # h in the head of _ext/kernels.c


def arithmetic(formats: Iterable[Format]) -> tuple[float, int]:
    """Return what the error bound needs to know of a call.

    Parameters
    ----------
    formats : iterable of Format
        The formats of all tensors and vectors of the call, outputs included; for `running_update` those of the
        `forward` whose state it gets, since that is where its statistics were computed.

    Returns
    -------
    u : float
        The unit roundoff of the arithmetic.
    depth : int
        h: how many additions a summand of a mean passes through at most, whatever m is.
    """
    return (2.0**-103 if BINARY64 in formats else BINARY64.unit_roundoff), _DEPTH


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> State:
    """Normalise with the statistics of x; see the contract."""
    state: State = _core.forward(x, gamma, beta, eps, y, mean, var, invstd)
    return state


def backward(state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """Pull dy back through `forward`; see the contract."""
    _core.backward(state, x, gamma, dy, dx, dgamma, dbeta)


def jvp(state: State, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array) -> None:
    """Push a tangent forward through `forward`; see the contract."""
    _core.jvp(state, x, gamma, x_dot, gamma_dot, beta_dot, y_dot)


def double_backward(
    state: State,
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
    """Pull (ddx, ddgamma, ddbeta) back through `backward`; see the contract."""
    _core.double_backward(state, x, gamma, dy, ddx, ddgamma, ddbeta, ddy, dx, dgamma)


def hvp(
    state: State,
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
    """Push a tangent through `backward` at fixed dy; see the contract."""
    _core.hvp(state, x, gamma, dy, x_dot, gamma_dot, dx, dgamma, dbeta)


def running_update(
    state: State,
    momentum: Fraction,
    weighs_new: bool,
    unbiased: bool,
    running_mean: Array,
    running_var: Array,
    *,
    out_mean: Array,
    out_var: Array,
) -> None:
    """Blend the batch statistics into running ones; see the contract."""
    new, old = (momentum, 1 - momentum) if weighs_new else (1 - momentum, momentum)
    _core.running_update(state, _pair(new), _pair(old), unbiased, running_mean, running_var, out_mean, out_var)


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> State:
    """Normalise with given statistics; see the contract."""
    state: State = _core.inference(x, mean, var, gamma, beta, eps, y, invstd)
    return state


def inference_backward(
    state: State,
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
    """Pull dy back through `inference`; see the contract."""
    _core.inference_backward(state, x, gamma, dy, dx, dgamma, dbeta, dmean, dvar)


def inference_jvp(
    state: State,
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
    """Push a tangent forward through `inference`; see the contract."""
    _core.inference_jvp(state, x, gamma, x_dot, mean_dot, var_dot, gamma_dot, beta_dot, y_dot)


def inference_double_backward(
    state: State,
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
    """Pull (ddx, ddmean, ddvar, ddgamma, ddbeta) back through `inference_backward`; see the contract."""
    _core.inference_double_backward(
        state, x, gamma, dy, ddx, ddmean, ddvar, ddgamma, ddbeta, ddy, dx, dgamma, dmean, dvar
    )


def inference_hvp(
    state: State,
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
    """Push a tangent through `inference_backward` at fixed dy; see the contract."""
    _core.inference_hvp(state, x, gamma, dy, x_dot, mean_dot, var_dot, gamma_dot, dx, dgamma, dbeta, dmean, dvar)


def _pair(weight: Fraction) -> tuple[float, float]:
    """Return a weight as hi + lo, to about 106 bits."""
    hi = float(weight)
    return hi, float(weight - Fraction(hi))
