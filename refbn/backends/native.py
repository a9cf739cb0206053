"""The native backend: the C core in ``_ext/``, bound to the contract of `refbn.backends._contract`.

Importing this module raises `ImportError` where the core was not built. Every output is the exact real result
rounded once; how, and why that is certain, stands at the head of ``_ext/kernels.c``. `counting` tells how much work it
was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from math import inf, nextafter
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn._native as _native
from refbn._threads import get_num_threads

__all__ = [
    "backward",
    "counting",
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
_counts: ContextVar[npt.NDArray[np.int64] | None] = ContextVar("counts", default=None)


@contextmanager
def counting() -> Iterator[npt.NDArray[np.int64]]:
    """Count, in this thread or task, how many results each rung of the ladder decides.

    Yields
    ------
    ndarray of int64, shape (2, 4)
        Row 0 counts elements, row 1 vector results; the columns are plain binary64, double-double, scaled
        double-double and exact integers.
    """
    counts = np.zeros((2, 4), np.int64)
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> State:
    """Normalise with the statistics of x; see the contract."""
    state: State = _core.forward(x, gamma, beta, eps, y, mean, var, invstd, get_num_threads(), _counts.get())
    return state


def backward(state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """Pull dy back through `forward`; see the contract."""
    _core.backward(state, x, gamma, dy, dx, dgamma, dbeta, get_num_threads(), _counts.get())


def jvp(state: State, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array) -> None:
    """Push a tangent forward through `forward`; see the contract."""
    _core.jvp(state, x, gamma, x_dot, gamma_dot, beta_dot, y_dot, get_num_threads(), _counts.get())


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
    _core.double_backward(state, x, gamma, dy, ddx, ddgamma, ddbeta, ddy, dx, dgamma, get_num_threads(), _counts.get())


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
    _core.hvp(state, x, gamma, dy, x_dot, gamma_dot, dx, dgamma, dbeta, get_num_threads(), _counts.get())


def running_update(
    state: State,
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
    """Blend the batch statistics into running ones; see the contract."""
    new, old = (momentum, 1 - momentum) if weighs_new else (1 - momentum, momentum)
    as_float = float(momentum)  # a binary64 number may have a denominator beyond binary64
    quotient = (as_float, 1.0) if momentum == as_float else (float(momentum.numerator), float(momentum.denominator))
    _core.running_update(
        state, x, quotient, weighs_new, _enclosure(new), _enclosure(old), unbiased,
        running_mean, running_var, out_mean, out_var, get_num_threads(), _counts.get(),
    )  # fmt: skip


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> State:
    """Normalise with given statistics; see the contract."""
    state: State = _core.inference(x, mean, var, gamma, beta, eps, y, invstd, get_num_threads(), _counts.get())
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
    _core.inference_backward(state, x, gamma, dy, dx, dgamma, dbeta, dmean, dvar, get_num_threads(), _counts.get())


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
    _core.inference_jvp(
        state, x, gamma, x_dot, mean_dot, var_dot, gamma_dot, beta_dot, y_dot, get_num_threads(), _counts.get()
    )


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
        state,
        x,
        gamma,
        dy,
        ddx,
        ddmean,
        ddvar,
        ddgamma,
        ddbeta,
        ddy,
        dx,
        dgamma,
        dmean,
        dvar,
        get_num_threads(),
        _counts.get(),
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
    _core.inference_hvp(
        state,
        x,
        gamma,
        dy,
        x_dot,
        mean_dot,
        var_dot,
        gamma_dot,
        dx,
        dgamma,
        dbeta,
        dmean,
        dvar,
        get_num_threads(),
        _counts.get(),
    )


def _enclosure(weight: Fraction) -> tuple[float, float, float]:
    """Return a weight as hi + lo, and a bound of what is missing."""
    hi = float(weight)
    lo = float(weight - Fraction(hi))
    missing = abs(weight - Fraction(hi) - Fraction(lo))
    return hi, lo, nextafter(float(missing), inf) if missing else 0.0
