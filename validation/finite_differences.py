"""The textbook's derivatives against finite differences of the pass below: ``python -m validation.finite_differences``.

First-order passes (jvp, backward) are compared with differences of the forward, second-order ones (hvp, double
backward) with differences of backward, the second Taylor coefficient with differences of jvp; with frozen statistics
mean and var are inputs like any other. Two methods, each with an error estimate of its own:

* *complex step*: Im f(z + ih·d)/h. Nothing is subtracted, and at h = 1e-30 the truncation error is far below
  rounding. What rounding does is seen from several h.
* *Richardson*: central differences at h, h/2, h/4 …, extrapolated to h = 0. Of the tableau that entry is taken
  which differs least from its neighbours; that difference, and the error that f itself may have over h, are the
  estimate.

The textbook may be off as well, by what `refbn.reference.bounds` states. The error over the sum of both,
"error/allowed", must not exceed 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import reference
from validation import report

__all__ = ["Row", "compare", "complex_step", "main", "richardson"]

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]
"""From points (n, k) to values (n, j), row by row."""

UNIT = 2.0**-53
SIZES = (2, 3, 5, 16)
"""Numbers of elements."""
_STEPS = (1e-30, 3e-31, 7e-32, 1.1e-31)
_FIRST_STEP = 2.0**-4
_LEVELS = 7


@dataclass(frozen=True)
class Row:
    """The worst component of one output; `allowed` is the method's estimate and the textbook's bound."""

    statistics: str
    operation: str
    output: str
    method: str
    error: float
    estimate: float
    allowed: float

    @property
    def ratio(self) -> float:
        """The error over what is allowed; both are 0 where nothing depends on the input."""
        return self.error / self.allowed if self.error else 0.0


@dataclass(frozen=True)
class _Check:
    """What to differentiate, and what the textbook says the result is, each with its error bound."""

    operation: str
    output: str
    function: Function
    noise: Array
    directions: Array
    expected: Array
    bound: Array


def complex_step(function: Function, noise: Array, point: Array, directions: Array) -> tuple[Array, Array]:
    """Return derivatives at a point along each direction, and estimates of their errors, both (n, j)."""
    del noise  # the real part's; nothing of it gets into the imaginary one
    z = np.broadcast_to(point, directions.shape)
    found = np.stack([function(z + 1j * h * directions).imag / h for h in _STEPS])
    spread = np.ptp(found, axis=0).max() + 4 * UNIT * np.abs(found).max()
    return found[0], np.full(found.shape[1:], 4 * spread)


def richardson(function: Function, noise: Array, point: Array, directions: Array) -> tuple[Array, Array]:
    """Return what `complex_step` does, from real arguments alone; `noise` bounds the error of each value."""
    z = np.broadcast_to(point, directions.shape)
    best: Array | None = None
    error: Array = np.empty(0)
    previous: list[Array] = []
    for level in range(_LEVELS):
        h = _FIRST_STEP * 2.0**-level
        row = [(function(z + h * directions) - function(z - h * directions)) / (2 * h)]
        for order, left in enumerate(previous, 1):
            row.append(row[-1] + (row[-1] - left) / (4.0**order - 1))
            change = np.maximum(abs(row[-1] - row[-2]), abs(row[-1] - left)) + 2 * noise / h
            if best is None:
                best, error = row[-1], change
            else:
                better = change < error
                best, error = np.where(better, row[-1], best), np.where(better, change, error)
        previous = row
    assert best is not None
    return best, error


METHODS = {"complex step": complex_step, "Richardson": richardson}


class _Program:
    """The textbook's passes as functions of rows z = (x, γ, β), or (x, γ, β, μ, v) with frozen statistics."""

    def __init__(self, m: int, eps: float, frozen: bool) -> None:
        self.m, self.eps, self.frozen = m, eps, frozen
        self.name = "frozen" if frozen else "training"
        self.outputs = ("dx", "dgamma", "dbeta", "dmean", "dvar") if frozen else ("dx", "dgamma", "dbeta")
        self._prefix = "inference_" if frozen else ""

    def _split(self, z: Array) -> tuple[Array, ...]:
        """Return x and the scalars, with the statistics before the parameters as the textbook has them."""
        x, (gamma, beta, *statistics) = z[:, : self.m], z[:, self.m :].T
        return x, *statistics, gamma, beta

    def _call(self, room: Any, operation: str, z: Array, *arguments: Array) -> Any:
        """Call a derivative pass of the textbook (room: `reference`) or its bound (`reference.bounds`)."""
        gamma = self._split(z)[-2]
        return getattr(room, self._prefix + operation)(self._forward(reference, z).stats, gamma, *arguments)

    def _forward(self, room: Any, z: Array) -> Any:
        return getattr(room, "inference" if self.frozen else "forward")(*self._split(z), self.eps)

    def value(self, z: Array) -> Array:
        return np.asarray(self._forward(reference, z).y)

    def value_bound(self, z: Array) -> Array:
        return np.asarray(self._forward(reference.bounds, z)["y"])

    def gradient(self, z: Array, dy: Array) -> Array:
        return self._row(self._call(reference, "backward", z, dy)._asdict())

    def gradient_bound(self, z: Array, dy: Array) -> Array:
        return self._row(self._call(reference.bounds, "backward", z, dy))

    def jvp(self, z: Array, direction: Array) -> Array:
        return np.asarray(self._call(reference, "jvp", z, *self._split(direction)))

    def jvp_bound(self, z: Array, direction: Array) -> Array:
        return np.asarray(self._call(reference.bounds, "jvp", z, *self._split(direction))["y_dot"])

    def hvp(self, z: Array, dy: Array, direction: Array) -> tuple[Array, Array]:
        """Return the result and its bound."""
        arguments = (z, dy, *self._split(direction)[:-1])
        return (
            self._row(self._call(reference, "hvp", *arguments)._asdict()),
            self._row(self._call(reference.bounds, "hvp", *arguments)),
        )

    def double_backward(self, z: Array, dy: Array, dd: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the results by name, and their bounds."""
        arguments = (z, dy, *self._split(dd))
        return (
            self._call(reference, "double_backward", *arguments)._asdict(),
            self._call(reference.bounds, "double_backward", *arguments),
        )

    def taylor(self, z: Array, direction: Array) -> Array:
        """The second Taylor coefficient of y along a line, in training."""
        series = [self._split(part) for part in (z, direction, np.zeros_like(z))]
        xs, gammas, betas = (np.stack(part) for part in zip(*series, strict=True))
        return np.asarray(reference.taylor(xs, gammas, betas, self.eps)[2])

    def _row(self, results: Mapping[str, Array]) -> Array:
        """Join results to rows of the shape of z."""
        return np.column_stack([results[name] for name in self.outputs])


def _problems(seed: int, sizes: Sequence[int]) -> Iterator[tuple[_Program, Array, Array, Array]]:
    """Yield programs with a point, a dy and a direction, of sizes and scales where differences can work."""
    rng = np.random.default_rng(seed)
    for m in sizes:
        for eps in (0.0, 1e-5, 0.3):
            for scale in (1.0, 2.0**-9, 2.0**9):
                if scale != 1.0 and eps == 1e-5:
                    eps *= scale * scale
                x = scale * (rng.standard_normal(m) + 0.25 * np.arange(m) + 3.0 * rng.standard_normal())
                gamma, beta = rng.uniform(0.5, 2.0) * rng.choice((-1, 1)), rng.standard_normal()
                dy = rng.standard_normal(m)
                # Statistics near those of x, but their own; every direction is of the size of what it moves.
                mean, var = x.mean() + scale * rng.standard_normal(), x.var() * rng.uniform(0.5, 2.0)
                sigma = np.sqrt(x.var() + eps)
                x_dot = sigma * rng.uniform(-1, 1, m)
                directions = (
                    *x_dot,
                    *rng.uniform(-1, 1, 2),
                    sigma * rng.uniform(-1, 1),
                    0.5 * var * rng.uniform(-1, 1),
                )
                z = np.array((*x, gamma, beta, mean, var))
                for program, size in ((_Program(m, eps, False), m + 2), (_Program(m, eps, True), m + 4)):
                    yield program, z[:size], dy, np.array(directions[:size])


def compare(seed: int = 0, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Return the worst component of every pass, output and method, over all problems."""
    worst: dict[tuple[str, str, str, str], Row] = {}
    for program, z, dy, direction in _problems(seed, sizes):
        for check in _checks(program, z, dy, direction):
            point = z if check.directions.shape[1] == z.size else dy
            for method, derive in METHODS.items():
                found, estimate = derive(check.function, check.noise, point, check.directions)
                error = abs(found - check.expected)
                allowed = estimate + check.bound
                ratio = np.divide(error, allowed, out=np.zeros_like(error), where=error > 0)
                place = np.unravel_index(np.argmax(ratio), error.shape)
                key = (program.name, check.operation, check.output, method)
                row = Row(*key, float(error[place]), float(estimate[place]), float(allowed[place]))
                if key not in worst or row.ratio > worst[key].ratio:
                    worst[key] = row
    return list(worst.values())


def _checks(program: _Program, z: Array, dy: Array, direction: Array) -> Iterator[_Check]:
    m = dy.size
    one, dy_row, along = z[None], dy[None], direction[None]

    def rows(row: Array, count: int) -> Array:
        return np.broadcast_to(row, (count, row.shape[-1]))

    def gradient(points: Array) -> Array:
        return program.gradient(points, rows(dy_row, len(points)))

    def velocity(points: Array) -> Array:
        return program.jvp(points, rows(along, len(points)))

    def loss(points: Array) -> Array:
        """⟨dy, y⟩, whose gradient is backward."""
        return _pair(program.value(points), dy)

    def second_loss(points: Array) -> Array:
        """⟨dd, backward⟩, whose gradient is double backward."""
        return _pair(gradient(points), direction)

    def second_loss_of_dy(cotangents: Array) -> Array:
        return _pair(program.gradient(rows(one, len(cotangents)), cotangents), direction)

    value_bound, gradient_bound = program.value_bound(one), program.gradient_bound(one, dy_row)
    jvp_bound = program.jvp_bound(one, along)
    loss_bound, second_loss_bound = _pair(value_bound, abs(dy)), _pair(gradient_bound, abs(direction))

    yield _Check("jvp", "y_dot", program.value, value_bound, along, program.jvp(one, along), jvp_bound)
    if not program.frozen:
        # No bound is stated for Taylor mode: take a multiple of that of the order below.
        y_2 = program.taylor(one, along)
        yield _Check("taylor", "y_2", velocity, jvp_bound, along, 2 * y_2, 4 * jvp_bound)

    first = program.gradient(one, dy_row)[0]
    hvp, hvp_bound = program.hvp(one, dy_row, along)
    second, second_bound = program.double_backward(one, dy_row, along)
    yield _Check(
        "double_backward",
        "ddy",
        second_loss_of_dy,
        second_loss_bound,
        np.eye(m),
        second["ddy"].T,
        second_bound["ddy"].T,
    )
    # A step along a single input is as long as the whole direction is in inputs of its kind.
    kinds = ["dx"] * m + list(program.outputs[1:])
    for name in program.outputs:
        pick = np.array([kind == name for kind in kinds])
        length = abs(direction[pick]).max()
        basis = length * np.eye(z.size)[pick]
        column = length * first[pick][:, None], length * gradient_bound[0][pick][:, None]
        yield _Check("backward", name, loss, loss_bound, basis, *column)
        picked = _picked(gradient, pick)
        yield _Check("hvp", name, picked, gradient_bound[:, pick], along, hvp[:, pick], hvp_bound[:, pick])
        if name == "dbeta":  # backward does not contain beta
            column = np.zeros((1, 1)), np.zeros((1, 1))
        else:
            column = length * second[name].reshape(-1, 1), length * second_bound[name].reshape(-1, 1)
        yield _Check("double_backward", name, second_loss, second_loss_bound, basis, *column)


def _picked(function: Function, pick: Array) -> Function:
    return lambda points: function(points)[:, pick]


def _pair(rows: Array, weights: Array) -> Array:
    return np.asarray((rows * weights).sum(axis=1, keepdims=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if an error exceeds what is allowed."""
    parser = report.parser(__doc__, results=False)
    parser.add_argument("--seed", type=int, default=0)
    rows = compare(parser.parse_args(argv).seed)
    report.show(
        "The textbook against finite differences: worst component over all problems",
        ("statistics", "pass", "output", "method", "error", "estimate", "error/allowed"),
        ((r.statistics, r.operation, r.output, r.method, r.error, r.estimate, r.ratio) for r in rows),
    )
    return 1 if any(not row.ratio <= 1 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
