"""The Numba backend: the contract of `refbn.backends._contract`, compiled at first use, every result rounded once.

A channel at a time is packed into contiguous binary64 scratch and goes through `_numba_kernels.channel`, which runs the
pass's program of `_numba_passes` in arithmetic that knows its own error. What it does not decide (an exact tie or
zero that its pairs of binary64 numbers cannot prove, for the most part) is computed once more by the oracle, whole
channels at a time.

The kernels need the IEEE 754 arithmetic that Python starts with. Where a thread rounds otherwise or flushes
subnormal numbers to zero, every pass raises `BackendError` (C23): the oracle converts between formats with the same
machine arithmetic, so nothing could take over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _validate, exact
from refbn._formats import format_of, load
from refbn.backends import _numba_kernels as kernels
from refbn.backends import exact as oracle
from refbn.backends._numba_passes import PLANS, Plan, as_row

__all__ = [
    "Frozen",
    "Trained",
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
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Trained:
    """The state of `forward`.

    Attributes
    ----------
    eps : float
        ε.
    count : int
        m.
    pivot : ndarray, shape (G,)
        Of each group a number p near its mean.
    sums : ndarray, shape (G, 2, 4)
        Σ (x − p) and Σ (x − p)², as rows of balls.
    """

    eps: float
    count: int
    pivot: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frozen:
    """The state of `inference`.

    Attributes
    ----------
    eps : float
        ε.
    mean, var : ndarray
        The statistics in binary64, infinities as NaN.
    """

    eps: float
    mean: npt.NDArray[np.float64]
    var: npt.NDArray[np.float64]


def forward(
    x: Array, gamma: Array, beta: Array, eps: float, *, y: Array, mean: Array, var: Array, invstd: Array
) -> Trained:
    """Normalise with the statistics of x; see the contract."""
    inputs, outputs = {"x": x, "gamma": gamma, "beta": beta}, {"y": y, "mean": mean, "var": var, "invstd": invstd}
    undecided, statistics = _run(PLANS["forward"], eps, inputs, outputs)
    if undecided:
        _ask("forward", undecided, outputs, **_chosen(inputs, undecided), eps=eps)
    pivot = np.ldexp(statistics[:, 0, 0], statistics[:, 0, 3].astype(np.int64))
    return Trained(eps, prod(x.shape[1:]), pivot, statistics[:, 1:])


def backward(state: Trained, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array) -> None:
    """Pull dy back through `forward`; see the contract."""
    inputs = {"x": x, "gamma": gamma, "dy": dy}
    _train("backward", state, inputs, {"dx": dx, "dgamma": dgamma, "dbeta": dbeta})


def jvp(
    state: Trained, x: Array, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array, *, y_dot: Array
) -> None:
    """Push a tangent forward through `forward`; see the contract."""
    inputs = {"x": x, "gamma": gamma, "x_dot": x_dot, "gamma_dot": gamma_dot, "beta_dot": beta_dot}
    _train("jvp", state, inputs, {"y_dot": y_dot})


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
    """Pull (ddx, ddgamma, ddbeta) back through `backward`; see the contract."""
    inputs = {"x": x, "gamma": gamma, "dy": dy, "ddx": ddx, "ddgamma": ddgamma, "ddbeta": ddbeta}
    _train("double_backward", state, inputs, {"ddy": ddy, "dx": dx, "dgamma": dgamma})


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
    """Push a tangent through `backward` at fixed dy; see the contract."""
    inputs = {"x": x, "gamma": gamma, "dy": dy, "x_dot": x_dot, "gamma_dot": gamma_dot}
    _train("hvp", state, inputs, {"dx": dx, "dgamma": dgamma, "dbeta": dbeta})


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
    """Blend the batch statistics into running ones; see the contract."""
    weight = momentum if weighs_new else 1 - momentum
    scale = state.count * (state.count - unbiased)
    weights = [weight.numerator, weight.denominator - weight.numerator, weight.denominator, scale]
    kept = np.empty((len(state.pivot), 6, 4))
    kept[:, :2] = state.sums
    kept[:, 2:] = [as_row(number) for number in weights]
    old = {"running_mean": running_mean, "running_var": running_var}
    outputs = {"out_mean": out_mean, "out_var": out_var}
    plan = PLANS["running_update"]
    undecided, _ = _run(plan, state.eps, {**old, "pivot": state.pivot}, outputs, kept, state.count)
    if undecided:
        given = _chosen({**old, "x": x}, undecided)
        given |= {"momentum": momentum, "weighs_new": weighs_new, "unbiased": unbiased}
        _ask("running_update", undecided, outputs, _statistics(given["x"], state.eps), **given)


def inference(
    x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float, *, y: Array, invstd: Array
) -> Frozen:
    """Normalise with given statistics; see the contract."""
    inputs = {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta}
    outputs = {"y": y, "invstd": invstd}
    undecided, _ = _run(PLANS["inference"], eps, inputs, outputs)
    if undecided:
        _ask("inference", undecided, outputs, **_chosen(inputs, undecided), eps=eps)
    return Frozen(eps, load(mean), load(var))


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
    """Pull dy back through `inference`; see the contract."""
    outputs = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta, "dmean": dmean, "dvar": dvar}
    _freeze("inference_backward", state, {"x": x, "gamma": gamma, "dy": dy}, outputs)


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
    """Push a tangent forward through `inference`; see the contract."""
    inputs = {"x": x, "gamma": gamma, "x_dot": x_dot, "mean_dot": mean_dot, "var_dot": var_dot}
    inputs |= {"gamma_dot": gamma_dot, "beta_dot": beta_dot}
    _freeze("inference_jvp", state, inputs, {"y_dot": y_dot})


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
    """Pull (ddx, ddmean, ddvar, ddgamma, ddbeta) back through `inference_backward`; see the contract."""
    inputs = {"x": x, "gamma": gamma, "dy": dy, "ddx": ddx, "ddmean": ddmean, "ddvar": ddvar}
    inputs |= {"ddgamma": ddgamma, "ddbeta": ddbeta}
    outputs = {"ddy": ddy, "dx": dx, "dgamma": dgamma, "dmean": dmean, "dvar": dvar}
    _freeze("inference_double_backward", state, inputs, outputs)


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
    """Push a tangent through `inference_backward` at fixed dy; see the contract."""
    inputs = {"x": x, "gamma": gamma, "dy": dy, "x_dot": x_dot, "mean_dot": mean_dot, "var_dot": var_dot}
    outputs = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta, "dmean": dmean, "dvar": dvar}
    _freeze("inference_hvp", state, {**inputs, "gamma_dot": gamma_dot}, outputs)


# ---- between the contract and the kernels ----------------------------------------------------------------------------

_PROBE = np.array([2.0**-1074, 2.0**-1022, 2.0**60, 0.5, 1.0, 2.0**-53, 2.0**-52])


def _train(name: str, state: Trained, inputs: Arrays, outputs: Arrays) -> None:
    """Run a derivative pass of `forward`."""
    undecided, _ = _run(PLANS[name], state.eps, {**inputs, "pivot": state.pivot}, outputs, state.sums[:, 1:])
    if undecided:
        given = _chosen(inputs, undecided)
        _ask(name, undecided, outputs, _statistics(given["x"], state.eps), **given)


def _freeze(name: str, state: Frozen, inputs: Arrays, outputs: Arrays) -> None:
    """Run a derivative pass of `inference`."""
    statistics = {"mean": state.mean, "var": state.var}
    undecided, _ = _run(PLANS[name], state.eps, {**inputs, **statistics}, outputs)
    if not prod(inputs["x"].shape[1:]):
        for output in outputs.values():
            output[...] = 0.0  # (R6): an empty sum has no factor that could make it NaN
    elif undecided:
        zeros, nothing = np.zeros(len(undecided)), np.empty((len(undecided), 0))
        ignored = {"y": nothing, "invstd": np.empty_like(zeros)}
        frozen = oracle.inference(
            nothing, **_chosen(statistics, undecided), gamma=zeros, beta=zeros, eps=state.eps, **ignored
        )
        _ask(name, undecided, outputs, frozen, **_chosen(inputs, undecided))


def _chosen(arrays: Arrays, groups: Sequence[int]) -> dict[str, Any]:
    return {key: array[groups] for key, array in arrays.items()}


def _statistics(x: Array, eps: float) -> oracle.Trained:
    """Return what the exact backend's `forward` returns, without its outputs."""
    values = load(x).reshape(len(x), -1)
    bad = np.isnan(values)
    moments = exact.moments(np.where(bad, 0.0, values))
    degenerate = moments.var.is_zero() & (eps == 0)
    epsilons = [Fraction(1) if none else Fraction(eps) for none in degenerate]
    return oracle.Trained(epsilons, moments, values.shape[1], np.asarray(bad.any(axis=1)), degenerate)


def _ask(name: str, groups: Sequence[int], outputs: Arrays, *state: object, **given: Any) -> None:
    """Let the oracle write some groups of all outputs; the rest is what its pass takes, of those groups."""
    answers = {key: np.empty_like(output[groups]) for key, output in outputs.items()}
    function: Callable[..., object] = getattr(oracle, name)
    function(*state, **given, **answers)
    for key, answer in answers.items():
        outputs[key][groups] = answer


def _run(
    plan: Plan, eps: float, inputs: Arrays, outputs: Arrays, kept: Array | None = None, count: int = 0
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Apply a pass to every group.

    Parameters
    ----------
    plan : Plan
        The pass.
    eps : float
        ε.
    inputs, outputs : mapping of str to ndarray
        Tensors and vectors, by the plan's names.
    kept : ndarray, shape (G, n, 4), optional
        The balls that the plan wants.
    count : int
        m, where there is no tensor.

    Returns
    -------
    undecided : list of int
        The groups that need the oracle.
    statistics : ndarray, shape (G, n, 4)
        The plan's statistics.
    """
    _validate.backend_arithmetic(name, kernels.is_ieee(_PROBE))
    tensors = [inputs[key] for key in plan.tensors]
    groups = len(next(iter(outputs.values())))
    shape = tensors[0].shape[1:] if tensors else ()
    m = prod(shape) if tensors else count
    results = [outputs[key] for key in plan.outputs]
    tensor_results, vector_results = results[: len(plan.combinations)], results[len(plan.combinations) :]
    forms = [format_of(result.dtype) for result in results]
    formats = np.array([(form.precision, form.emin, form.emax, form.max) for form in forms])
    numbers = np.empty((groups, len(plan.numbers)))
    for column, key in enumerate(plan.numbers):
        numbers[:, column] = load(inputs[key])
    registers = plan.template.copy()
    registers[0], registers[1] = as_row(m), as_row(eps)
    tiles = -(-m // kernels.LANES) if tensors else 0
    data = np.empty((len(tensors), tiles * kernels.LANES))
    out = np.empty((len(tensor_results), tiles * kernels.LANES))
    rounded = np.empty((groups, len(vector_results)))
    statistics = np.empty((groups, len(plan.statistics), 4))
    undecided = []
    with np.errstate(invalid="ignore"):  # a signalling NaN complains when it is converted
        for group in range(groups):
            for buffer, tensor in zip(data, tensors, strict=True):
                buffer[:m].reshape(shape)[...] = tensor[group]
            if kept is not None:
                registers[plan.first_kept : plan.first_kept + kept.shape[1]] = kept[group]
            decided = kernels.channel(
                m,
                numbers[group],
                plan.first_number,
                plan.pivot_registers,
                plan.first_sum,
                plan.pairs,
                plan.program,
                plan.combinations,
                plan.vectors,
                formats,
                registers,
                data,
                out,
                rounded[group],
            )
            if plan.statistics:
                statistics[group] = registers[plan.statistics]
            if not decided:
                undecided.append(group)
                continue
            for buffer, tensor in zip(out, tensor_results, strict=True):
                tensor[group] = buffer[:m].reshape(shape)
    for column, vector in enumerate(vector_results):
        vector[...] = rounded[:, column]
    return undecided, statistics
