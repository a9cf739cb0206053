"""Every pass over arrays of shape (G, m), exactly: a loop over the groups, each run through `derivatives`.

Arguments are arrays of any of the four formats, or object arrays of ``Fraction`` and ``int``. Tensors have the shape
(G, m); vectors have the shape (G,) or are one number for all groups, eps among them. A direction or a cotangent of
a result that is None is zero, and costs nothing; gamma None is 1, beta None is 0.

Errors: `DomainError` for a value that is not finite, for statistics of no elements, and where q = var + eps is not
positive; `ShapeError` and `DtypeError` for other arguments. Results are `ExactArray`; nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from refbn._errors import DomainError, ShapeError
from refbn.exact import program
from refbn.exact.arrays import ArrayLike, ExactArray, numbers, rational, vectors
from refbn.exact.derive import Derivatives, derivatives
from refbn.exact.numbers import Exact
from refbn.exact.series import Series

__all__ = [
    "DoubleBackward",
    "Forward",
    "FrozenDoubleBackward",
    "FrozenGradients",
    "Gradients",
    "Inference",
    "Moments",
    "backward",
    "composed",
    "double_backward",
    "forward",
    "hvp",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
    "jvp",
    "moments",
    "running_update",
    "taylor",
]


class Forward(NamedTuple):
    """Results of `forward`."""

    y: ExactArray
    mean: ExactArray
    var: ExactArray
    invstd: ExactArray


class Moments(NamedTuple):
    """Results of `moments`."""

    mean: ExactArray
    var: ExactArray


class Inference(NamedTuple):
    """Results of `inference`."""

    y: ExactArray
    invstd: ExactArray


class Gradients(NamedTuple):
    """Results of `backward` and `hvp`."""

    dx: ExactArray
    dgamma: ExactArray
    dbeta: ExactArray


class FrozenGradients(NamedTuple):
    """Results of `inference_backward` and `inference_hvp`."""

    dx: ExactArray
    dgamma: ExactArray
    dbeta: ExactArray
    dmean: ExactArray
    dvar: ExactArray


class DoubleBackward(NamedTuple):
    """Results of `double_backward`."""

    ddy: ExactArray
    dx: ExactArray
    dgamma: ExactArray


class FrozenDoubleBackward(NamedTuple):
    """Results of `inference_double_backward`."""

    ddy: ExactArray
    dx: ExactArray
    dgamma: ExactArray
    dmean: ExactArray
    dvar: ExactArray


# ---- training: the statistics are those of x ------------------------------------------------------------------------


def forward(x: ArrayLike, gamma: ArrayLike = None, beta: ArrayLike = None, eps: ArrayLike = 1e-5) -> Forward:
    """Return y and the statistics of x: mean, biased var, invstd."""
    point = _trained(x, gamma, beta, eps)

    def run(epsilon: Fraction, x: Exact, gamma: Exact, beta: Exact) -> tuple[Exact, ...]:
        mean, d, var = program.moments(x)
        y = program.affine(program.standardize(d, var, epsilon), gamma, beta)
        return y, mean, var, program.invstd(var, epsilon)

    return Forward(*point.each(run, "y mean var invstd"))


def moments(x: ArrayLike) -> Moments:
    """Return mean and biased variance of each group."""
    point = _trained(x, None, None, 0)
    return Moments(*point.each(lambda _, x, gamma, beta: program.moments(x)[::2], "mean var"))


def backward(x: ArrayLike, gamma: ArrayLike, eps: ArrayLike, dy: ArrayLike) -> Gradients:
    """Return the gradient of <dy, y>."""
    return Gradients(**_trained(x, gamma, None, eps).differentiate(dy, wanted=_TRAINED)[1])


def jvp(
    x: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    x_dot: ArrayLike = None,
    gamma_dot: ArrayLike = None,
    beta_dot: ArrayLike = None,
) -> ExactArray:
    """Return the derivative of y along a direction."""
    directions = {"x_dot": x_dot, "gamma_dot": gamma_dot, "beta_dot": beta_dot}
    return _trained(x, gamma, None, eps).differentiate(None, 1, directions)[0]


def double_backward(
    x: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    dy: ArrayLike,
    ddx: ArrayLike = None,
    ddgamma: ArrayLike = None,
    ddbeta: ArrayLike = None,
) -> DoubleBackward:
    """Return the vjp of `backward` for cotangents ddx, ddgamma, ddbeta of its results."""
    directions = {"ddx": ddx, "ddgamma": ddgamma, "ddbeta": ddbeta}
    ddy, gradient = _trained(x, gamma, None, eps).differentiate(dy, 1, directions, ("x", "gamma"))
    return DoubleBackward(ddy, **gradient)


def hvp(
    x: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    dy: ArrayLike,
    x_dot: ArrayLike = None,
    gamma_dot: ArrayLike = None,
    beta_dot: ArrayLike = None,
) -> Gradients:
    """Return the derivative of `backward` along a direction, dy held fixed."""
    directions = {"x_dot": x_dot, "gamma_dot": gamma_dot, "beta_dot": beta_dot}
    return Gradients(**_trained(x, gamma, None, eps).differentiate(dy, 1, directions, _TRAINED)[1])


def running_update(
    statistics: Moments,
    m: int,
    momentum: Fraction,
    weighs_new: bool,
    unbiased: bool,
    running_mean: ArrayLike,
    running_var: ArrayLike,
) -> Moments:
    """Blend the statistics of m elements per group into running ones.

    ``momentum`` weighs the new value if ``weighs_new``, else the old one. ``unbiased`` needs m > 1.
    """
    if unbiased and m < 2:
        raise DomainError(f"the unbiased variance of {m} elements", argument="x")
    groups = statistics.mean.shape[0]
    weight = rational(momentum, "momentum")
    weight = weight if weighs_new else 1 - weight
    blended: list[ExactArray] = []
    for new, old, name in (
        (statistics.mean, running_mean, "running_mean"),
        (statistics.var, running_var, "running_var"),
    ):
        correct = unbiased and name == "running_var"
        blended.append(
            ExactArray(
                [
                    program.blend(before, program.unbiased(value, m) if correct else value, weight)
                    for before, value in zip(numbers(old, name, groups), new, strict=True)
                ],
                None,
            )
        )
    return Moments(*blended)


def taylor(
    x_series: Sequence[ArrayLike],
    gamma_series: Sequence[ArrayLike] | None = None,
    beta_series: Sequence[ArrayLike] | None = None,
    eps: ArrayLike = 1e-5,
) -> tuple[ExactArray, ...]:
    """Return the Taylor coefficients of y from those of x (K+1 tensors), gamma and beta (up to K+1 vectors each).

    Coefficients, not derivatives: the k-th derivative at 0 is k! times the k-th coefficient.
    """
    length = len(x_series)
    if not length:
        raise ShapeError("x_series: empty", argument="x_series")
    first = _trained(x_series[0], None, None, eps)
    groups, m = first.shape
    xs = [vectors(c, f"x_series[{k}]", first.shape) for k, c in enumerate(x_series)]
    parameters: list[list[list[Exact]]] = []
    for series, name, default in ((gamma_series, "gamma_series", 1), (beta_series, "beta_series", 0)):
        given: Sequence[ArrayLike] = [default] if series is None else series
        parameters.append([numbers(c, f"{name}[{k}]", groups) for k, c in enumerate(given)][:length])

    def along(coefficients: list[list[Exact]], g: int, size: int | None) -> Series[Exact]:
        present = [None if c[g].is_zero() and k else c[g] for k, c in enumerate(coefficients)]
        return Series([*present, *[None] * (length - len(present))], size)

    rows: list[list[Exact]] = []
    for g, epsilon in enumerate(first.eps):
        with _group(g):
            gamma, beta = (along(coefficients, g, None) for coefficients in parameters)
            y = program.batch_norm(along(xs, g, m), gamma, beta, epsilon)
        rows.append([_or_zero(y.coefficient(k), m) for k in range(length)])
    return tuple(ExactArray([row[k] for row in rows], m) for k in range(length))


# ---- frozen statistics: mean and var are inputs ---------------------------------------------------------------------


def inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike = None,
    beta: ArrayLike = None,
    eps: ArrayLike = 1e-5,
) -> Inference:
    """Return y from given statistics, and invstd."""
    point = _frozen(x, mean, var, gamma, beta, eps)

    def run(epsilon: Fraction, var: Exact, **rest: Exact) -> tuple[Exact, ...]:
        return program.frozen(var=var, eps=epsilon, **rest), program.invstd(var, epsilon)

    return Inference(*point.each(run, "y invstd"))


def inference_backward(
    x: ArrayLike, mean: ArrayLike, var: ArrayLike, gamma: ArrayLike, eps: ArrayLike, dy: ArrayLike
) -> FrozenGradients:
    """Return the gradient of <dy, y>."""
    return FrozenGradients(**_frozen(x, mean, var, gamma, None, eps).differentiate(dy, wanted=_FROZEN)[1])


def inference_jvp(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    x_dot: ArrayLike = None,
    mean_dot: ArrayLike = None,
    var_dot: ArrayLike = None,
    gamma_dot: ArrayLike = None,
    beta_dot: ArrayLike = None,
) -> ExactArray:
    """Return the derivative of y along a direction."""
    directions = {
        "x_dot": x_dot,
        "mean_dot": mean_dot,
        "var_dot": var_dot,
        "gamma_dot": gamma_dot,
        "beta_dot": beta_dot,
    }
    return _frozen(x, mean, var, gamma, None, eps).differentiate(None, 1, directions)[0]


def inference_double_backward(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    dy: ArrayLike,
    ddx: ArrayLike = None,
    ddmean: ArrayLike = None,
    ddvar: ArrayLike = None,
    ddgamma: ArrayLike = None,
    ddbeta: ArrayLike = None,
) -> FrozenDoubleBackward:
    """Return the vjp of `inference_backward` for cotangents ddx, ddmean, … of its results."""
    directions = {"ddx": ddx, "ddmean": ddmean, "ddvar": ddvar, "ddgamma": ddgamma, "ddbeta": ddbeta}
    wanted = ("x", "gamma", "mean", "var")
    ddy, gradient = _frozen(x, mean, var, gamma, None, eps).differentiate(dy, 1, directions, wanted)
    return FrozenDoubleBackward(ddy, **gradient)


def inference_hvp(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike,
    eps: ArrayLike,
    dy: ArrayLike,
    x_dot: ArrayLike = None,
    mean_dot: ArrayLike = None,
    var_dot: ArrayLike = None,
    gamma_dot: ArrayLike = None,
    beta_dot: ArrayLike = None,
) -> FrozenGradients:
    """Return the derivative of `inference_backward` along a direction, dy held fixed."""
    directions = {
        "x_dot": x_dot,
        "mean_dot": mean_dot,
        "var_dot": var_dot,
        "gamma_dot": gamma_dot,
        "beta_dot": beta_dot,
    }
    return FrozenGradients(**_frozen(x, mean, var, gamma, None, eps).differentiate(dy, 1, directions, _FROZEN)[1])


# ---- composed with a loss -------------------------------------------------------------------------------------------


def composed(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    eps: ArrayLike,
    w: ArrayLike,
    x_dot: ArrayLike = None,
    gamma_dot: ArrayLike = None,
    beta_dot: ArrayLike = None,
    order: int = 0,
    *,
    mean: ArrayLike = None,
    var: ArrayLike = None,
    mean_dot: ArrayLike = None,
    var_dot: ArrayLike = None,
    wanted: Sequence[str] | None = None,
) -> dict[str, ExactArray]:
    """Differentiate f(t) = w·(y²/2 + y³/6) along a line, y at the point + t·direction.

    Parameters
    ----------
    x, gamma, beta, eps
        The point.
    w
        The loss's weights, of x's shape.
    x_dot, gamma_dot, beta_dot
        The direction.
    order : int
        The order of the derivative in t, at t = 0.
    mean, var, mean_dot, var_dot
        Given for frozen statistics; otherwise the statistics are those of x.
    wanted : sequence of str, optional
        Some of the results' names; all by default. Only what they need is computed.

    Returns
    -------
    dict of str to ExactArray
        ``"value"``: the derivative of f, element by element. ``"dx"``, ``"dgamma"``, ``"dbeta"`` (``"dmean"``,
        ``"dvar"``): the derivative of the gradient of L = Σ f; order 0 is the gradient, order 1 the Hessian times the
        direction, order 2 the third derivative contracted with it twice.
    """
    directions = {"x_dot": x_dot, "gamma_dot": gamma_dot, "beta_dot": beta_dot}
    names: tuple[str, ...]
    if mean is None:
        point, names = _trained(x, gamma, beta, eps), _TRAINED
    else:
        point, names = _frozen(x, mean, var, gamma, beta, eps), _FROZEN
        directions |= {"mean_dot": mean_dot, "var_dot": var_dot}
    outputs = ("value", *(f"d{name}" for name in names)) if wanted is None else tuple(wanted)
    definition = point.definition
    point.definition = lambda **inputs: program.cubic(definition(**inputs))
    value, gradient = point.differentiate(w, order, directions, [name for name in names if f"d{name}" in outputs])
    if "value" in outputs:
        weights = vectors(w, "w", point.shape)
        gradient["value"] = ExactArray([f * weight for f, weight in zip(value, weights, strict=True)], point.shape[1])
    return {name: gradient[name] for name in outputs}


# ---- the loop over the groups ---------------------------------------------------------------------------------------

_TRAINED = ("x", "gamma", "beta")
_FROZEN = ("x", "gamma", "beta", "mean", "var")


@dataclass(slots=True)
class _Point:
    """A program and the exact inputs of each group."""

    definition: Callable[..., Any]
    shape: tuple[int, int]
    inputs: dict[str, list[Exact]]
    eps: list[Fraction]

    def each(self, run: Callable[..., tuple[Exact, ...]], names: str) -> list[ExactArray]:
        """Call ``run(eps, **inputs)`` per group and gather its results; those named y are vectors."""
        rows: list[tuple[Exact, ...]] = []
        for g, epsilon in enumerate(self.eps):
            with _group(g):
                rows.append(run(epsilon, **{name: values[g] for name, values in self.inputs.items()}))
        return [
            ExactArray([row[k] for row in rows], self.shape[1] if name == "y" else None)
            for k, name in enumerate(names.split())
        ]

    def differentiate(
        self,
        cotangent: ArrayLike,
        order: int = 0,
        directions: Mapping[str, ArrayLike] | None = None,
        wanted: Sequence[str] = (),
    ) -> tuple[ExactArray, dict[str, ExactArray]]:
        """Call `derivatives` per group; the gradient's keys are dx, dgamma, ….

        The keys of ``directions`` are the arguments' names, x_dot or ddx for x.
        """
        groups, m = self.shape
        along = {
            argument.removesuffix("_dot").removeprefix("dd"): self._read(values, argument)
            for argument, values in (directions or {}).items()
            if values is not None
        }
        cotangents = vectors(cotangent, "dy", self.shape) if wanted else [None] * groups
        found: list[Derivatives[Exact]] = []
        for g, epsilon in enumerate(self.eps):
            with _group(g):
                found.append(
                    derivatives(
                        self.definition,
                        {"eps": epsilon, **{name: values[g] for name, values in self.inputs.items()}},
                        order=order,
                        directions={name: None if values[g].is_zero() else values[g] for name, values in along.items()},
                        cotangent=cotangents[g],
                        wanted=wanted,
                    )
                )
        value = ExactArray([_or_zero(each.value, m) for each in found], m)
        lengths = {name: m if name == "x" else None for name in wanted}
        return value, {
            f"d{name}": ExactArray([_or_zero(each.gradient[name], length) for each in found], length)
            for name, length in lengths.items()
        }

    def _read(self, values: ArrayLike, argument: str) -> list[Exact]:
        if argument in ("x_dot", "ddx"):
            return vectors(values, argument, self.shape)
        return numbers(values, argument, self.shape[0])


def _trained(x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, eps: ArrayLike) -> _Point:
    xs, shape = _tensor(x)
    if not shape[1]:
        raise DomainError("x: statistics need at least one element per group", argument="x")
    groups = shape[0]
    inputs = {"x": xs, "gamma": numbers(gamma, "gamma", groups, 1), "beta": numbers(beta, "beta", groups)}
    return _Point(program.batch_norm, shape, inputs, _epsilons(eps, groups))


def _frozen(x: ArrayLike, mean: ArrayLike, var: ArrayLike, gamma: ArrayLike, beta: ArrayLike, eps: ArrayLike) -> _Point:
    xs, shape = _tensor(x)
    groups = shape[0]
    inputs = {
        "x": xs,
        "mean": numbers(mean, "mean", groups),
        "var": numbers(var, "var", groups),
        "gamma": numbers(gamma, "gamma", groups, 1),
        "beta": numbers(beta, "beta", groups),
    }
    return _Point(program.frozen, shape, inputs, _epsilons(eps, groups))


def _tensor(x: ArrayLike) -> tuple[list[Exact], tuple[int, int]]:
    xs = vectors(x, "x")
    groups, m = np.shape(x)
    return xs, (groups, m)


def _epsilons(eps: ArrayLike, groups: int) -> list[Fraction]:
    return [value.parts()[0] for value in numbers(eps, "eps", groups)]


def _or_zero(value: Exact | None, length: int | None) -> Exact:
    return Exact.zeros(length) if value is None else value


@contextmanager
def _group(g: int) -> Iterator[None]:
    """Say in which group an operation was undefined; there, var + eps is all that is divided by or rooted."""
    try:
        yield
    except DomainError as error:
        raise DomainError(f"group {g}: var + eps is not positive ({error})", argument="eps") from error
