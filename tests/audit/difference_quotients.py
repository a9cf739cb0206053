"""An independent truth for small cases: difference quotients of the forward definition, in 120 decimal digits.

No derivative formula and nothing of refbn is used. The step 1e-25 leaves a truncation error of about 1e-48 and, in
a third difference of a first one, a rounding error of about 1e-18, both relative.
"""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np

from refbn.audit.adapters._protocol import OPERATIONS, Inputs

DIGITS, STEP = 120, "1e-25"
# Central stencils: (offset in steps, weight), for the derivative of each order.
STENCILS = {
    0: ((0, 1),),
    1: ((-1, "-0.5"), (1, "0.5")),
    2: ((-1, 1), (0, -2), (1, 1)),
    3: ((-2, "-0.5"), (-1, 1), (1, -1), (2, "0.5")),
}
VECTORS = ("gamma", "beta", "mean", "var")


def draw(shape, dtype="float64", param=None, seed=0, steps=2, momentum=0.1, eps=1e-5):
    """Inputs with every array of its own; var and running_var are positive."""
    rng = np.random.default_rng([seed, *shape])
    param = dtype if param is None else param

    def tensor():
        return rng.standard_normal(shape).astype(dtype)

    def vector():
        return rng.standard_normal(shape[1]).astype(param)

    def positive():
        return rng.uniform(0.5, 2.0, shape[1]).astype(param)

    return Inputs(
        x=tensor(), dy=tensor(), w=tensor(), x_dot=tensor(), gamma=vector(), beta=vector(), gamma_dot=vector(),
        beta_dot=vector(), mean=vector(), var=positive(), mean_dot=vector(), var_dot=vector(),
        running_mean=vector(), running_var=positive(), eps=eps, momentum=momentum,
        batches=tuple(tensor() for _ in range(steps)),
    )  # fmt: skip


def truth(operation: str, inputs: Inputs, moves_statistics: bool = True) -> dict[str, np.ndarray]:
    """Every output of a composed operation, of vjp or of jvp, as binary64."""
    with mpmath.workdps(DIGITS):
        channels = [_channel(operation, inputs, c, moves_statistics) for c in range(inputs.x.shape[1])]
    shape = inputs.x.shape

    def tensor(rows):
        return np.moveaxis(np.array(rows, float).reshape(shape[1], shape[0], *shape[2:]), 0, 1)

    return {
        name: tensor([c[name] for c in channels])
        if name in ("dx", "y_dot", "value", "y")
        else np.array([c[name] for c in channels], float)
        for name in channels[0]
    }


@cache
def known(operation: str, shape: tuple[int, ...], moves_statistics: bool = True) -> dict[str, np.ndarray]:
    """The truth for ``draw(shape)``; several test modules ask for the same."""
    return truth(operation, draw(shape), moves_statistics)


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error, relative to the largest magnitude."""
    assert got.shape == expected.shape
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def allowance(inputs: Inputs) -> float:
    """What well-conditioned data (offset about 0, variance about 1) cost a competent implementation.

    Every output is made of at most 16 sums of m terms with errors of at most m·u each, for each of up to three
    nested derivatives; and each intermediate result may be rounded to the case's dtype.
    """
    count = inputs.x.size // inputs.x.shape[1]
    return 48 * count * 2.0**-53 if inputs.x.dtype == np.float64 else 48 * count * float(np.finfo(inputs.x.dtype).eps)


def _channel(operation, inputs, c, moves_statistics):
    asked = OPERATIONS[operation]
    step, eps = mpmath.mpf(STEP), mpmath.mpf(inputs.eps)

    def exact(tensor):
        return np.array([mpmath.mpf(float(v)) for v in np.moveaxis(tensor, 1, 0)[c].ravel()], object)

    names = ("gamma", "beta", *(VECTORS[2:] if asked.frozen else ()))
    m = inputs.x.size // inputs.x.shape[1]
    place = {name: m + i for i, name in enumerate(names)}
    point = np.concatenate([exact(inputs.x), [mpmath.mpf(float(getattr(inputs, n)[c])) for n in names]])
    direction = [
        mpmath.mpf(float(getattr(inputs, f"{n}_dot")[c])) if moves_statistics or n not in VECTORS[2:] else mpmath.mpf(0)
        for n in names
    ]
    direction = np.concatenate([exact(inputs.x_dot), direction])
    dy, w = exact(inputs.dy), exact(inputs.w)

    def y(at):
        x = at[:m]
        mean = at[place["mean"]] if asked.frozen else x.sum() / m
        d = x - mean
        var = at[place["var"]] if asked.frozen else (d * d).sum() / m
        return at[place["gamma"]] * d / mpmath.sqrt(var + eps) + at[place["beta"]]

    def f(at):
        return w * (y(at) ** 2 / 2 + y(at) ** 3 / 6)

    def along(function, order):
        return lambda at: (
            sum(mpmath.mpf(weight) * function(at + k * step * direction) for k, weight in STENCILS[order]) / step**order
        )

    modes = asked.composition.split("-") if asked.composition else []
    if not modes:
        return {"y": y(point)}
    if operation.startswith("jvp"):
        return {"y_dot": along(y, 1)(point)}
    if "rev" not in modes:
        return {"value": along(f, len(modes))(point)}
    scalar = (lambda at: (dy * y(at)).sum()) if operation.startswith("vjp") else (lambda at: f(at).sum())
    moved = along(scalar, len(modes) - 1)
    gradient = []
    for j in range(len(point)):
        unit = np.array([step if i == j else mpmath.mpf(0) for i in range(len(point))], object)
        gradient.append((moved(point + unit) - moved(point - unit)) / (2 * step))
    kept = names if moves_statistics else names[:2]
    return {"dx": gradient[:m]} | {f"d{name}": gradient[place[name]] for name in kept}


def running(inputs):
    """Running mean and variance after all batches, in PyTorch's convention, straight from its definition."""
    mean, var = inputs.running_mean, inputs.running_var
    for step, batch in enumerate(inputs.batches, 1):
        weight = 1 / step if inputs.momentum is None else inputs.momentum
        x = np.moveaxis(batch, 1, 0).reshape(mean.size, -1)
        mean = mean + weight * (x.mean(axis=1) - mean)
        var = var + weight * (x.var(axis=1, ddof=1) - var)
    return mean, var
