"""Batch norm's relatives round correctly: ``python -m validation.normalizations``.

Every output of every pass of layer, group and instance norm and batch renormalization by the backend `enclosure`, bit
for bit as the oracle rounds it, in all formats, on groups of all families of `validation.cases`: ordinary data, ties,
zeros, offsets, outliers, extreme exponents. And batch norm itself by the same route, bit for bit as the native core
(or whatever backend comes first) returns it: balls share no derivative formula with that, since they differentiate the
forward definition.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import refbn
from refbn import _geometry, backends
from refbn._formats import FORMATS, Format, round_to
from refbn._types import Array, Forward
from refbn.backends.normalization import Normalization
from validation import cases, report
from validation.correct_rounding import differ

__all__ = ["NORMS", "Findings", "check", "check_batch_norm", "draw", "main", "outputs"]

R, D = np.array([1.5, 0.25, 3.0, 1.0]), np.array([0.125, -2.0, 5.0, 0.0])
"""A correction for four channels, in every format a number."""

NORMS: dict[str, Callable[..., Forward]] = {
    "layer": lambda x, *affine, **options: refbn.layer_norm(x, *affine, axes=(1, 2), **options),
    "layer of one axis": refbn.layer_norm,
    "layer of the first axis": lambda x, *affine, **options: refbn.layer_norm(x, *affine, axes=0, **options),
    "group": lambda x, *affine, **options: refbn.group_norm(x, 2, *affine, **options),
    "group, channels last": lambda x, *a, **options: refbn.group_norm(x, 3, *a, channel_axis=2, **options),
    "group, channels first": lambda x, *a, **options: refbn.group_norm(x, 1, *a, channel_axis=0, **options),
    "instance": refbn.instance_norm,
    "instance, channels first": lambda x, *a, **options: refbn.instance_norm(x, *a, channel_axis=0, **options),
    "batch renorm": lambda x, *affine, **options: refbn.batch_renorm(x, R, D, *affine, **options),
}
SHAPES = ((2, 4, 3), (3, 4, 6), (1, 4, 3), (5, 4, 3), (2, 4, 9))
"""Four channels, and features in threes: what all of `NORMS` can split."""


def geometry_of(norm: str, shape: tuple[int, ...]) -> _geometry.Geometry:
    """Return how a norm splits the axes of a shape."""
    return NORMS[norm](np.zeros(shape)).saved.geometry


def draw(geometry: _geometry.Geometry, form: Format, seed: int, family: str | None = None) -> dict[str, Array]:
    """Draw the inputs of all passes, each group of another family, or all of one."""
    rng = np.random.default_rng((FORMATS.index(form), seed, *geometry.shape, *geometry.group_axes))
    names = rng.permutation(list(cases.FAMILIES)) if family is None else [family]
    drawn = [
        cases.fill(rng, geometry.count, cases.FAMILIES[str(names[g % len(names)])][0], form)[1]
        for g in range(geometry.groups)
    ]
    inputs = {
        name: np.ascontiguousarray(geometry.ungrouped(np.stack([one[name] for one in drawn])))
        for name in ("x", "dy", "x_dot")
    }
    for name in ("gamma", "beta", "gamma_dot", "beta_dot"):
        values = rng.standard_normal(geometry.affine_shape)
        inputs[name] = round_to(np.round(values) if seed % 3 == 0 else values, form.dtype)
    return inputs


def outputs(fwd: Forward, inputs: dict[str, Array]) -> dict[str, Array]:
    """Return every output of every pass after a forward."""
    along = (inputs["x_dot"], inputs["gamma_dot"], inputs["beta_dot"])
    results: dict[str, Any] = {
        "forward": fwd,
        "backward": refbn.backward(fwd.saved, inputs["dy"]),
        "double_backward": refbn.double_backward(fwd.saved, inputs["dy"], *along),
        "hvp": refbn.hvp(fwd.saved, inputs["dy"], *along),
    }
    found = {"jvp y_dot": refbn.jvp(fwd.saved, *along)}
    for name, record in results.items():
        found |= {f"{name} {key}": a for key, a in vars(record).items() if isinstance(a, np.ndarray)}
    return found


@dataclass
class Findings:
    """Counts by (norm, format), and a line for each kind of mismatch."""

    compared: Counter[tuple[str, str]] = field(default_factory=Counter)
    different: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.compared.update(other.compared)
        self.different.update(other.different)
        self.lines += other.lines
        return self

    def compare(self, norm: str, form: Format, what: str, got: dict[str, Array], expected: dict[str, Array]) -> None:
        """Count the bits that differ, the sign of a zero among them."""
        for name, array in expected.items():
            wrong = int(differ(got[name], array).sum())
            self.compared[norm, form.short] += array.size
            self.different[norm, form.short] += wrong
            if wrong:
                self.lines.append(f"{norm} {form.short} {what}: {name}, {wrong} of {array.size}")


def check(norm: str, form: Format, shape: tuple[int, ...], seed: int, family: str | None = None) -> Findings:
    """Compare the enclosures' results with the oracle's."""
    inputs = draw(geometry_of(norm, shape), form, seed, family)
    eps = 0.0 if seed % 2 else 1e-5
    found = Findings()
    got, expected = (
        outputs(NORMS[norm](inputs["x"], inputs["gamma"], inputs["beta"], eps=eps, backend=backend), inputs)
        for backend in ("enclosure", "exact")
    )
    found.compare(norm, form, f"{shape} seed={seed} family={family}", got, expected)
    return found


def check_batch_norm(form: Format, shape: tuple[int, ...], seed: int) -> Findings:
    """Compare batch norm by this route with the first backend."""
    geometry = _geometry.batch_norm(shape, 1)
    inputs = draw(geometry, form, seed)
    if seed % 5 == 4:
        inputs["x"].flat[0], inputs["dy"].flat[-1] = np.inf, np.nan
    eps = 0.0 if seed % 2 else 1e-5
    found = Findings()
    got, expected = (
        _contract(kernels, inputs, canonical, eps)
        for kernels, canonical in (
            (Normalization("enclosure", geometry), lambda *tensors: [np.moveaxis(t, 1, 0) for t in tensors]),
            (backends.load(backends.first()), geometry.canonical),
        )
    )
    found.compare("batch", form, f"{shape} seed={seed}", got, expected)
    return found


def _contract(kernels: Any, inputs: dict[str, Array], canonical: Callable[..., Any], eps: float) -> dict[str, Array]:
    """Run the contract's training passes and return what they wrote."""
    x = inputs["x"]
    tensors = {key: np.zeros(x.shape, x.dtype) for key in ("y", "dx", "y_dot", "ddy", "second dx", "hvp dx")}
    names = ("mean", "var", "invstd", "dgamma", "dbeta", "second dgamma", "hvp dgamma", "hvp dbeta")
    out = {key: np.zeros(x.shape[1], x.dtype) for key in names}
    x, dy, u, y, dx, y_dot, ddy, second, moved = canonical(x, inputs["dy"], inputs["x_dot"], *tensors.values())
    gamma, beta, gamma_dot, beta_dot = (inputs[key] for key in ("gamma", "beta", "gamma_dot", "beta_dot"))
    state = kernels.forward(x, gamma, beta, eps, y=y, **{key: out[key] for key in ("mean", "var", "invstd")})
    kernels.backward(state, x, gamma, dy, dx=dx, dgamma=out["dgamma"], dbeta=out["dbeta"])
    kernels.jvp(state, x, gamma, u, gamma_dot, beta_dot, y_dot=y_dot)
    kernels.double_backward(
        state, x, gamma, dy, u, gamma_dot, beta_dot, ddy=ddy, dx=second, dgamma=out["second dgamma"]
    )
    kernels.hvp(state, x, gamma, dy, u, gamma_dot, dx=moved, dgamma=out["hvp dgamma"], dbeta=out["hvp dbeta"])
    return tensors | out


def _tasks(seeds: int) -> Iterator[tuple[str, Format, tuple[int, ...], int]]:
    for seed in range(seeds):
        for form in FORMATS:
            for shape in SHAPES:
                yield from ((norm, form, shape, seed) for norm in ("batch", *NORMS))


def _work(task: tuple[str, Format, tuple[int, ...], int]) -> Findings:
    norm, form, shape, seed = task
    return check_batch_norm(form, shape, seed) if norm == "batch" else check(norm, form, shape, seed)


def main() -> int:
    """Compare, print, write the result; return 1 if a bit differs."""
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="problems of each norm, format and shape")
    arguments = parser.parse_args()
    start = time.perf_counter()
    found = Findings()
    for part in report.spread(_work, list(_tasks(arguments.seeds)), label="problems"):
        found += part
    report.show(
        "Outputs against the oracle; batch norm against the first backend",
        ("norm", "format", "compared", "different"),
        ((*key, count, found.different[key]) for key, count in sorted(found.compared.items())),
    )
    for line in found.lines[:20]:
        print(line)
    report.write(
        "normalizations",
        arguments,
        {
            "versions": report.versions(),
            "seconds": round(time.perf_counter() - start, 1),
            "seeds": arguments.seeds,
            "shapes": SHAPES,
            "batch norm against": backends.first(),
            "total": sum(found.compared.values()),
            "outputs": {
                f"{norm}: {form}": {"compared": count, "different": found.different[norm, form]}
                for (norm, form), count in sorted(found.compared.items())
            },
            "lines": found.lines,
        },
    )
    return 1 if found.lines else 0


if __name__ == "__main__":
    sys.exit(main())
