"""The textbook as a backend: canonical views in, binary64 tensors (G, m) through `refbn.reference`, one rounding out.

It copies every operand and makes a dozen temporaries: it is for reading and for checking, not for speed. Its
accuracy is that of `refbn.reference.bounds`, so binary64 results are not correctly rounded.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refbn import reference
from refbn._formats import load, round_to
from refbn.backends._contract import Array
from refbn.reference import Frozen, Statistics

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

name = "reference"


def _load(*operands: Array) -> tuple[Array, ...]:
    """Return vectors as (G,) and tensors as (G, m), both in binary64, with NaN for infinities (R1)."""
    return tuple(load(a if a.ndim == 1 else a.reshape(a.shape[0], int(np.prod(a.shape[1:])))) for a in operands)


def _store(result: object, **outputs: Array) -> None:
    """Round the fields of a result once, each into the output of its name."""
    for field, out in outputs.items():
        _write(out, getattr(result, field))


def _write(out: Array, values: Array) -> None:
    """Round once; adding +0 turns a −0 into +0 (R4)."""
    out[...] = round_to(values + 0.0, out.dtype).reshape(out.shape)


# ---- training -----------------------------------------------------------------------------------------------------


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> Statistics:
    """See `Backend.forward`; the state is the textbook's `Statistics`."""
    x, gamma, beta = _load(x, gamma, beta)
    result = reference.forward(x, gamma, beta, eps)
    _store(result, y=y)
    _store(result.stats, mean=mean, var=var, invstd=invstd)
    return result.stats


def backward(state: Statistics, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """See `Backend.backward`."""
    result = reference.backward(state, *_load(gamma, dy))
    _store(result, dx=dx, dgamma=dgamma, dbeta=dbeta)


def jvp(
    state: Statistics, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array
) -> None:
    """See `Backend.jvp`."""
    _write(y_dot, reference.jvp(state, *_load(gamma, x_dot, gamma_dot, beta_dot)))


def double_backward(
    state: Statistics,
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
    """See `Backend.double_backward`."""
    result = reference.double_backward(state, *_load(gamma, dy, ddx, ddgamma, ddbeta))
    _store(result, ddy=ddy, dx=dx, dgamma=dgamma)


def hvp(
    state: Statistics,
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
    """See `Backend.hvp`."""
    result = reference.hvp(state, *_load(gamma, dy, x_dot, gamma_dot))
    _store(result, dx=dx, dgamma=dgamma, dbeta=dbeta)


def running_update(
    state: Statistics,
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
    """See `Backend.running_update`."""
    m = state.xhat.shape[1]
    old = _load(running_mean, running_var)
    result = reference.running_update(state, m, momentum, weighs_new, unbiased, *old)
    _store(result, mean=out_mean, var=out_var)


def taylor(
    x: tuple[Array, ...],
    gamma: tuple[Array, ...],
    beta: tuple[Array, ...],
    eps: float,
    *,
    y: tuple[Array, ...],
) -> None:
    """See `Backend.taylor`."""
    xs, gammas, betas = (np.stack(_load(*series)) for series in (x, gamma, beta))
    for out, values in zip(y, reference.taylor(xs, gammas, betas, eps), strict=True):
        _write(out, values)


# ---- frozen statistics --------------------------------------------------------------------------------------------


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> Frozen:
    """See `Backend.inference`; the state is the textbook's `Frozen`."""
    x, mean, var, gamma, beta = _load(x, mean, var, gamma, beta)
    result = reference.inference(x, mean, var, gamma, beta, eps)
    _store(result, y=y)
    _store(result.stats, invstd=invstd)
    return result.stats


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
    """See `Backend.inference_backward`."""
    result = reference.inference_backward(state, *_load(gamma, dy))
    _store(result, dx=dx, dgamma=dgamma, dbeta=dbeta, dmean=dmean, dvar=dvar)


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
    """See `Backend.inference_jvp`."""
    _write(y_dot, reference.inference_jvp(state, *_load(gamma, x_dot, mean_dot, var_dot, gamma_dot, beta_dot)))


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
    """See `Backend.inference_double_backward`."""
    result = reference.inference_double_backward(state, *_load(gamma, dy, ddx, ddmean, ddvar, ddgamma, ddbeta))
    _store(result, ddy=ddy, dx=dx, dgamma=dgamma, dmean=dmean, dvar=dvar)


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
    """See `Backend.inference_hvp`."""
    result = reference.inference_hvp(state, *_load(gamma, dy, x_dot, mean_dot, var_dot, gamma_dot))
    _store(result, dx=dx, dgamma=dgamma, dbeta=dbeta, dmean=dmean, dvar=dvar)
