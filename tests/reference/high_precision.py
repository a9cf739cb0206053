"""The textbook beside ball arithmetic with 500 bits: hard channels, true answers, errors over stated bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import flint
import numpy as np
import numpy.typing as npt

from refbn import reference
from refbn.reference import bounds
from validation.formulas import OPERATIONS, Inputs, Values, statistics_route

Array = npt.NDArray[np.float64]
BITS = 500
TENSORS = {"x", "dy", "x_dot"}


@dataclass
class Case:
    """Channels that share m and eps; the directions serve as cotangents ddx, … too."""

    eps: float
    operands: dict[str, Array]

    @property
    def groups(self) -> int:
        return len(self.operands["x"])

    @property
    def m(self) -> int:
        return self.operands["x"].shape[1]


def channels(m: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield x of one channel each, from harmless to hostile."""
    normal = rng.standard_normal(m)
    outlier = np.zeros(m)
    outlier[0] = 1.0
    one_ulp = np.where(np.arange(m) == m - 1, np.nextafter(1.0, 2.0), 1.0)
    yield normal
    yield from (normal + offset for offset in (1e2, 1e8, -1e15))
    yield np.exp(3 * normal)
    yield normal * 1e-3 + 1e12 * outlier
    yield normal * 1e-3 + 1e12 * outlier[::-1]
    yield 1e7 * one_ulp
    yield np.where(np.arange(m) % 2 == 0, 0.1, np.nextafter(0.1, 1.0))
    yield np.full(m, 0.1)
    yield 1e150 * (normal + 3.0)
    yield 1e-150 * (normal + 3.0)
    yield 10.0 ** rng.uniform(-12, 12, m) * np.sign(normal)


def cotangents(x: Array, rng: np.random.Generator) -> Array:
    """Return a dy for each channel: random, offset, constant, an outlier, along x̂."""
    normal = rng.standard_normal(x.shape)
    kinds: list[Callable[[Array, Array], Array]] = [
        lambda u, _: u,
        lambda u, _: u + 1e9,
        lambda u, _: np.full_like(u, u[0]),
        lambda u, _: np.where(np.arange(u.size) == 0, 1e15, u),
        lambda _, column: (column - column.mean()) / max(np.abs(column - column.mean()).max(), 1e-300),
    ]
    chosen = rng.integers(len(kinds), size=len(x))
    return np.stack([kinds[k](u, column) for k, u, column in zip(chosen, normal, x, strict=True)])


def case(m: int, eps: float, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    x = np.stack(list(channels(m, rng)))
    groups = len(x)
    vectors = {name: rng.standard_normal(groups) for name in ("gamma", "beta", "gamma_dot", "beta_dot")}
    with np.errstate(over="ignore"):
        spread = np.where(np.abs(x[:, 0]) > 1e100, 1.0, x[:, 0])
    frozen = {
        "mean": spread + rng.standard_normal(groups),
        "var": 10.0 ** rng.uniform(-6, 6, groups),
        "mean_dot": rng.standard_normal(groups),
        "var_dot": rng.standard_normal(groups),
    }
    vectors["gamma"][::7] = 0.0
    return Case(eps, {"x": x, "dy": cotangents(x, rng), "x_dot": cotangents(x, rng), **vectors, **frozen})


def ball(number: float) -> flint.arb:
    return flint.arb(float(number))


def truth(c: Case) -> list[Values]:
    """Enclose every output, by the route that goes through the partial derivatives to the statistics."""
    with flint.ctx.workprec(BITS):
        results = []
        for g in range(c.groups):
            numbers = {
                name: [ball(e) for e in a[g]] if name in TENSORS else ball(a[g]) for name, a in c.operands.items()
            }
            x = c.operands["x"][g]
            results.append(
                statistics_route(
                    Inputs(
                        **numbers,
                        eps=ball(c.eps),
                        zero=ball(0),
                        inverse_root=lambda q: q.rsqrt(),
                        degenerate=c.eps == 0 and bool((x == x[0]).all()),
                        frozen_degenerate=False,
                    )
                )
            )
        return results


def computed(c: Case) -> tuple[dict[str, dict[str, Array]], dict[str, dict[str, Array]]]:
    """Return all outputs of the textbook, and their bounds."""
    a = c.operands
    parameters, statistics = (a["gamma_dot"], a["beta_dot"]), (a["mean_dot"], a["var_dot"])
    training, frozen = (a["x_dot"], *parameters), (a["x_dot"], *statistics, *parameters)
    first = (a["x"], a["gamma"], a["beta"], c.eps)
    given = (a["x"], a["mean"], a["var"], a["gamma"], a["beta"], c.eps)
    forward, inference = reference.forward(*first), reference.inference(*given)
    s, f, gamma, dy = forward.stats, inference.stats, a["gamma"], a["dy"]
    arguments = {
        "backward": (s, gamma, dy),
        "jvp": (s, gamma, *training),
        "double_backward": (s, gamma, dy, *training),
        "hvp": (s, gamma, dy, *training[:-1]),
        "inference_backward": (f, gamma, dy),
        "inference_jvp": (f, gamma, *frozen),
        "inference_double_backward": (f, gamma, dy, *frozen),
        "inference_hvp": (f, gamma, dy, *frozen[:-1]),
    }
    values = {"forward": {"y": forward.y, **s._asdict()}, "inference": {"y": inference.y, **f._asdict()}}
    limits = {"forward": bounds.forward(*first), "inference": bounds.inference(*given)}
    for name, operands in arguments.items():
        result = getattr(reference, name)(*operands)
        values[name] = result._asdict() if isinstance(result, tuple) else {"y_dot": result}
        limits[name] = getattr(bounds, name)(*operands)
    return values, limits


def fractions(c: Case) -> Iterator[tuple[str, int, float]]:
    """Yield (output, channel, largest error / bound) for every output of every pass; NaN where nothing is claimed."""
    values, limits = computed(c)
    enclosures = truth(c)
    with flint.ctx.workprec(BITS):
        for operation, outputs in OPERATIONS.items():
            for output in outputs:
                for g, channel in enumerate(enclosures):
                    expected = channel[operation][output]
                    limit = np.ravel(limits[operation][output][g])
                    if expected is None or not np.isfinite(limit).all():
                        yield f"{operation}.{output}", g, np.nan
                        continue
                    errors = [
                        abs(ball(v) - e) for v, e in zip(np.ravel(values[operation][output][g]), expected, strict=True)
                    ]
                    yield f"{operation}.{output}", g, max(map(_fraction, errors, limit))


def _fraction(error: flint.arb, limit: float) -> float:
    if limit == 0:
        return 0.0 if error == 0 else np.inf
    return float((error / ball(limit)).abs_upper())
