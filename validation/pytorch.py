"""PyTorch against the textbook in binary64, pass by pass: ``python -m validation.pytorch``.

Two independent implementations that agree to rounding are evidence for both. PyTorch rounds in other places; on these
inputs, whose offsets are moderate, it should stay within the textbook's own bound (`refbn.reference.bounds`), so
that no difference is above two bounds: "difference/bound" must not exceed 2. PyTorch's batch norm has no gradients
for frozen mean and var; those are taken by autograd from the forward written out in five tensor operations.

The second table shows compositions of derivatives that PyTorch 2.13 gets wrong, beside the right ones: forward over
reverse and reverse over reverse are right, reverse over forward, forward over forward and the third order are not.
Nothing is asserted there; the figures say by how much.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

import refbn
from validation import report
from validation.cases import Batch
from validation.passes import bound_all

__all__ = ["ALLOWED", "Comparison", "compositions", "main", "passes"]

Array = npt.NDArray[Any]
Tensor = torch.Tensor

ALLOWED = 2.0
"""Two bounds: one for each side."""

EPS = 1e-3
SHAPE = (4, 3, 5, 2)


@dataclass(frozen=True)
class Comparison:
    """One result.

    Attributes
    ----------
    operation, output : str
        What was computed.
    difference : float
        The largest difference in a channel over the channel's largest value.
    fraction : float
        The largest difference over the textbook's bound; NaN if none is stated.
    """

    operation: str
    output: str
    difference: float
    fraction: float = math.nan


class _Problem:
    """Inputs as arrays and as tensors, and the function in PyTorch's words and written out."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        channels = SHAPE[1]
        self.x = rng.standard_normal(SHAPE) * np.array([1.0, 30.0, 0.02])[:, None, None] + rng.standard_normal(
            (channels, 1, 1)
        )
        self.dy, self.x_dot = rng.standard_normal((2, *SHAPE))
        self.vectors = dict(
            zip(("gamma", "beta", "gamma_dot", "beta_dot", "mean_dot"), rng.standard_normal((5, channels)), strict=True)
        )
        self.vectors["mean"] = self.x.mean((0, 2, 3)) + 0.1 * rng.standard_normal(channels)
        self.vectors["var"] = self.x.var((0, 2, 3)) * rng.uniform(0.5, 2.0, channels)
        self.vectors["var_dot"] = self.vectors["var"] * rng.uniform(-1, 1, channels)
        tensors = {name: _channels_first(getattr(self, name)) for name in ("x", "dy", "x_dot")}
        self.bounds = bound_all(Batch((), EPS, {**tensors, **self.vectors}))

    def __getattr__(self, name: str) -> Array:
        return np.asarray(self.vectors[name])

    def compare(self, operation: str, output: str, found: Tensor, expected: Array) -> Comparison:
        """Compare one result with the textbook's."""
        return _compare(operation, output, found, expected, self.bounds[operation][output])

    def tensors(self, *names: str) -> list[Tensor]:
        """Return fresh tensors with gradients wanted."""
        return [torch.tensor(getattr(self, name), requires_grad=True) for name in names]


def _training(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def _written_out(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean, var, gamma, beta = (v[None, :, None, None] for v in (mean, var, gamma, beta))
    return (x - mean) / torch.sqrt(var + EPS) * gamma + beta


def _along(function: Callable[..., Any], point: Sequence[Tensor], velocity: Sequence[Tensor]) -> Any:
    """Return the forward-mode derivative."""
    _, moved, *_ = torch.func.jvp(function, tuple(point), tuple(velocity))
    return moved


def passes(seed: int = 0) -> list[Comparison]:
    """Compare every pass."""
    problem = _Problem(seed)
    return [*_training_passes(problem), *_frozen_passes(problem)]


def _training_passes(p: _Problem) -> Iterator[Comparison]:
    compare = p.compare
    fwd = refbn.forward(p.x, p.gamma, p.beta, eps=EPS, backend="reference")
    inputs = ("x", "gamma", "beta")
    directions = ("x_dot", "gamma_dot", "beta_dot")

    leaves = p.tensors(*inputs)
    dy = torch.tensor(p.dy, requires_grad=True)
    y = _training(*leaves)
    yield compare("forward", "y", y, fwd.y)

    gradients = torch.autograd.grad(y, leaves, dy, create_graph=True)
    first = refbn.backward(fwd.saved, p.dy)
    for name, found in zip(("dx", "dgamma", "dbeta"), gradients, strict=True):
        yield compare("backward", name, found, getattr(first, name))

    velocities = p.tensors(*directions)
    y_dot = _along(_training, p.tensors(*inputs), velocities)
    yield compare("jvp", "y_dot", y_dot, refbn.jvp(fwd.saved, p.x_dot, p.gamma_dot, p.beta_dot))

    second = torch.autograd.grad(gradients, (dy, *leaves[:2]), velocities)
    expected = refbn.double_backward(fwd.saved, p.dy, p.x_dot, p.gamma_dot, p.beta_dot)
    for name, found in zip(("ddy", "dx", "dgamma"), second, strict=True):
        yield compare("double_backward", name, found, getattr(expected, name))

    gradient = torch.func.grad(lambda *z: (_training(*z) * dy.detach()).sum(), argnums=(0, 1, 2))
    moved = _along(gradient, p.tensors(*inputs), velocities)
    hvp = refbn.hvp(fwd.saved, p.dy, p.x_dot, p.gamma_dot, p.beta_dot)
    for name, found in zip(("dx", "dgamma"), moved[:2], strict=True):
        yield compare("hvp", name, found, getattr(hvp, name))


def _frozen_passes(p: _Problem) -> Iterator[Comparison]:
    compare = p.compare
    fwd = refbn.inference(p.x, p.mean, p.var, p.gamma, p.beta, eps=EPS, backend="reference")
    inputs = ("x", "mean", "var", "gamma", "beta")
    directions = ("x_dot", "mean_dot", "var_dot", "gamma_dot", "beta_dot")
    gradients_of = ("dx", "dmean", "dvar", "dgamma", "dbeta")

    x, gamma, beta = p.tensors("x", "gamma", "beta")
    mean, var = torch.tensor(p.mean), torch.tensor(p.var)
    dy = torch.tensor(p.dy, requires_grad=True)
    y = functional.batch_norm(x, mean, var, gamma, beta, training=False, eps=EPS)
    yield compare("inference", "y", y, fwd.y)
    first = refbn.backward(fwd.saved, p.dy)
    own = torch.autograd.grad(y, (x, gamma, beta), dy)
    for name, found in zip(("dx", "dgamma", "dbeta"), own, strict=True):
        yield compare("inference_backward", name, found, getattr(first, name))

    leaves = p.tensors(*inputs)
    gradients = torch.autograd.grad(_written_out(*leaves), leaves, dy, create_graph=True)
    for name in ("dmean", "dvar"):
        yield compare("inference_backward", name, gradients[gradients_of.index(name)], getattr(first, name))

    velocities = p.tensors(*directions)
    y_dot = _along(_written_out, p.tensors(*inputs), velocities)
    expected = refbn.jvp(fwd.saved, p.x_dot, p.gamma_dot, p.beta_dot, mean_dot=p.mean_dot, var_dot=p.var_dot)
    yield compare("inference_jvp", "y_dot", y_dot, expected)

    second = torch.autograd.grad(gradients, (dy, *leaves[:4]), velocities)
    answer = refbn.double_backward(
        fwd.saved, p.dy, p.x_dot, p.gamma_dot, p.beta_dot, ddmean=p.mean_dot, ddvar=p.var_dot
    )
    for name, found in zip(("ddy", *gradients_of[:4]), second, strict=True):
        yield compare("inference_double_backward", name, found, getattr(answer, name))

    gradient = torch.func.grad(lambda *z: (_written_out(*z) * dy.detach()).sum(), argnums=(0, 1, 2, 3))
    moved = _along(gradient, p.tensors(*inputs), velocities)
    hvp = refbn.hvp(fwd.saved, p.dy, p.x_dot, p.gamma_dot, p.beta_dot, mean_dot=p.mean_dot, var_dot=p.var_dot)
    for name, found in zip(gradients_of[:4], moved, strict=True):
        yield compare("inference_hvp", name, found, getattr(hvp, name))


def _channels_first(values: Array) -> Array:
    """Return a tensor as (G, m); leave a vector alone."""
    return np.asarray(np.moveaxis(values, 1, 0).reshape(SHAPE[1], -1) if values.ndim > 1 else values)


def _compare(operation: str, output: str, found: Tensor, expected: Array, bound: Array | None = None) -> Comparison:
    difference = abs(_channels_first(found.detach().numpy() - expected))
    largest = abs(_channels_first(expected)).reshape(SHAPE[1], -1).max(axis=1)
    relative = difference.reshape(SHAPE[1], -1).max(axis=1) / largest
    fraction = math.nan if bound is None else float((difference / bound).max())
    return Comparison(operation, output, float(relative.max()), fraction)


def compositions(seed: int = 0) -> list[Comparison]:
    """Compare derivatives of x alone, composed from PyTorch's modes."""
    p = _Problem(seed)
    gamma, beta, w, v = (torch.tensor(a) for a in (p.gamma, p.beta, p.dy, p.x_dot))
    x = torch.tensor(p.x)
    fwd = refbn.forward(p.x, p.gamma, p.beta, eps=EPS, backend="reference")
    hessian_v = refbn.hvp(fwd.saved, p.dy, p.x_dot).dx
    zero = np.zeros_like(p.x)
    curve = refbn.taylor([p.x, p.x_dot, zero, zero], [p.gamma], [p.beta], eps=EPS, backend="reference")

    def value(z: Tensor) -> Tensor:
        return _training(z, gamma, beta)

    def loss(z: Tensor) -> Tensor:
        return (value(z) * w).sum()

    def along(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda z: _along(function, [z], [v])

    gradient = torch.func.grad(loss)
    gradient_along = torch.func.grad(lambda z: (gradient(z) * v).sum())
    third = torch.func.grad(lambda z: (gradient_along(z) * v).sum())
    rows = (
        ("forward over reverse", "H v", along(gradient), hessian_v),
        ("reverse over reverse", "H v", gradient_along, hessian_v),
        ("reverse over forward", "H v", torch.func.grad(lambda z: (along(value)(z) * w).sum()), hessian_v),
        ("forward over forward", "second derivative of y", along(along(value)), 2 * curve[2]),
        (
            "reverse three times",
            "third derivative of the loss",
            lambda z: (third(z) * v).sum((0, 2, 3)),
            6 * (curve[3] * p.dy).sum((0, 2, 3)),
        ),
    )
    return [_compare(name, output, function(x), expected) for name, output, function, expected in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables, write the result; 1 if a pass of the first one differs by more than rounding."""
    parser = report.parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    compared, composed = passes(arguments.seed), compositions(arguments.seed)
    report.show(
        "PyTorch and the textbook, binary64: largest difference over the channel's largest value",
        ("pass", "output", "difference", "difference/bound"),
        ((row.operation, row.output, row.difference, row.fraction) for row in compared),
    )
    report.show(
        "Compositions of PyTorch's derivatives: the same, and nothing is asserted",
        ("composition", "result", "difference"),
        ((row.operation, row.output, row.difference) for row in composed),
    )
    report.write(
        "pytorch",
        arguments,
        {
            "versions": report.versions("torch"),
            "seed": arguments.seed,
            "eps": EPS,
            "shape": SHAPE,
            "passes": [asdict(row) for row in compared],
            "compositions": [
                {key: value for key, value in asdict(row).items() if key != "fraction"} for row in composed
            ],
        },
    )
    return 1 if any(not row.fraction <= ALLOWED for row in compared) else 0


if __name__ == "__main__":
    sys.exit(main())
