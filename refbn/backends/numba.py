"""The Numba backend: the contract of `refbn.backends._contract`, compiled at first use.

A channel at a time is packed into contiguous binary64 scratch, goes through one jitted pass of
`refbn.backends._numba_kernels`, and is rounded once into its place. The scratch is a few vectors of one channel's
length. Calls that touch binary64 compute in pairs of binary64 numbers, all others in binary64; the error bound is
proved at the head of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, Format, format_of, load, round_to
from refbn.backends import _numba_kernels as kernels

__all__ = [
    "State",
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

name = "numba"

Array = npt.NDArray[Any]
Kernel = Callable[[kernels.Channel], None]


@dataclass(frozen=True, slots=True)
class State:
    """The statistics of one call.

    Attributes
    ----------
    numbers : ndarray, shape (G, 4, 3)
        Of each group the shift (the mean rounded to binary64), what the mean is more than that, var and invstd; each
        as (hi, lo, exponent), which stands for (hi + lo)·2^exponent.
    count : int
        m.
    """

    numbers: npt.NDArray[np.float64]
    count: int


def arithmetic(formats: Iterable[Format]) -> tuple[float, int]:
    """Return what the error bound needs to know of a call.

    Parameters
    ----------
    formats : iterable of Format
        The formats of all tensors and vectors of the call, outputs included.

    Returns
    -------
    u : float
        The unit roundoff of the arithmetic.
    depth : int
        The number of additions, each with a relative error of at most u, that one summand of a mean passes through
        at most.
    """
    return (2.0**-102, 64) if BINARY64 in formats else (2.0**-53, 1)


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> State:
    """Normalise with the statistics of x; see the contract."""
    state = _new_state(x)
    _run(kernels.forward, state, (gamma, beta), (x,), (y,), (mean, var, invstd), eps)
    return state


def backward(state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """Pull dy back through `forward`; see the contract."""
    _run(kernels.backward, state, (gamma,), (x, dy), (dx,), (dgamma, dbeta))


def jvp(state: State, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array) -> None:
    """Push a tangent forward through `forward`; see the contract."""
    _run(kernels.jvp, state, (gamma, gamma_dot, beta_dot), (x, x_dot), (y_dot,))


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
    _run(kernels.double_backward, state, (gamma, ddgamma, ddbeta), (x, dy, ddx), (dx, ddy), (dgamma,))


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
    _run(kernels.hvp, state, (gamma, gamma_dot), (x, dy, x_dot), (dx,), (dgamma, dbeta))


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
    weight = momentum if weighs_new else 1 - momentum
    factor = Fraction(state.count, state.count - 1) if unbiased else Fraction(1)
    sums = np.empty((2, len(state.numbers), 3))
    kernels.running_update(
        state.numbers,
        np.array([_number(weight), _number(1 - weight)]),
        np.array([_number(factor)]),
        np.array([load(running_mean), load(running_var)]),
        sums,
    )
    _store_vector(sums[0], out_mean)
    _store_vector(sums[1], out_var)


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> State:
    """Normalise with given statistics; see the contract."""
    state = _new_state(x)
    _run(kernels.inference, state, (mean, var, gamma, beta), (x,), (y,), (invstd,), eps)
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
    _run(kernels.inference_backward, state, (gamma,), (x, dy), (dx,), (dgamma, dbeta, dmean, dvar))


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
    parameters = (gamma, mean_dot, var_dot, gamma_dot, beta_dot)
    _run(kernels.inference_jvp, state, parameters, (x, x_dot), (y_dot,))


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
    parameters = (gamma, ddmean, ddvar, ddgamma, ddbeta)
    sums = (dgamma, dmean, dvar)
    _run(kernels.inference_double_backward, state, parameters, (x, dy, ddx), (dx, ddy), sums)


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
    parameters = (gamma, mean_dot, var_dot, gamma_dot)
    _run(kernels.inference_hvp, state, parameters, (x, dy, x_dot), (dx,), (dgamma, dmean, dvar, dbeta))


# ---- between the contract and a kernel -------------------------------------------------------------------------------


def _new_state(x: Array) -> State:
    return State(np.zeros((len(x), 4, 3)), int(np.prod(x.shape[1:], dtype=np.int64)))


def _run(
    kernel: Kernel,
    state: State,
    parameters: Sequence[Array],
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    sums: Sequence[Array] = (),
    *constants: float,
) -> None:
    """Apply a kernel to every group: pack its elements, compute, store its tensors, and at last all sums."""
    wide = any(format_of(array.dtype) is BINARY64 for array in (*parameters, *inputs, *outputs, *sums))
    groups, *shape = inputs[0].shape
    scalars = np.empty((groups, len(parameters) + len(constants)))
    for column, parameter in enumerate(parameters):
        scalars[:, column] = load(parameter)
    scalars[:, len(parameters) :] = constants
    packed = np.empty((len(inputs), state.count))
    pairs = np.empty((len(outputs), 2, state.count))
    numbers = np.empty((groups, len(sums), 3))
    for group in range(groups):
        for buffer, tensor in zip(packed, inputs, strict=True):
            buffer.reshape(shape)[...] = tensor[group]
        kernel(kernels.Channel(wide, state.numbers[group], scalars[group], packed, pairs, numbers[group]))
        for (hi, lo), tensor in zip(pairs, outputs, strict=True):
            if wide and format_of(tensor.dtype) is not BINARY64:
                kernels.finish(hi, lo)
            tensor[group] = round_to(hi, tensor.dtype).reshape(shape)
    if state.count == 0 and kernel is not kernels.inference:
        numbers[...] = 0.0  # (R6): an empty sum has no factor that could make it NaN
    for column, vector in enumerate(sums):
        _store_vector(numbers[:, column], vector)


def _store_vector(numbers: npt.NDArray[np.float64], vector: Array) -> None:
    """Round Numbers (G, 3) into a vector."""
    rounded = np.empty(len(numbers))
    kernels.finish_numbers(np.ascontiguousarray(numbers), format_of(vector.dtype) is not BINARY64, rounded)
    vector[...] = round_to(rounded, vector.dtype)


def _number(value: Fraction) -> tuple[float, float, float]:
    """Return a fraction of ordinary size as (hi, lo, exponent), to about 106 bits."""
    hi = float(value)
    return hi, float(value - Fraction(hi)), 0.0
