"""The oracle on a whole call at once: every output of every pass from one run a channel, rounded to any format.

`refbn.exact` answers pass by pass. Here its forward program runs once over series of order 1 under the tape, as in
`refbn.exact.derive`; the coefficients of order 0 are forward and backward, those of order 1 all second-order passes.
jvp's y_dot and double backward's ddy are one number, and so are the results of hvp and double backward: the
direction serves as cotangent. Each exact number is rounded to binary64 once, and from there to the narrower formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import exact
from refbn._formats import BINARY64, FORMATS, Format, load, round_to
from refbn._types import Array
from refbn.exact import ExactArray, program
from refbn.exact.arrays import numbers, vectors
from refbn.exact.numbers import Exact, Part
from refbn.exact.rounding import round_all
from refbn.exact.series import Series
from refbn.exact.tape import Var, gradient
from validation.calls import Call
from validation.formulas import OPERATIONS, has_value
from validation.passes import TENSORS, is_frozen

__all__ = ["OUTPUTS", "RUNNING", "VARIANTS", "Truth", "exact_name", "round_each"]

Doubles = npt.NDArray[np.float64]

RUNNING = "running_update"
VARIANTS = tuple((weighs_new, unbiased) for weighs_new in (True, False) for unbiased in (False, True))
OUTPUTS: dict[str, tuple[str, ...]] = OPERATIONS | {RUNNING: ("out_mean", "out_var")}
"""All passes and their outputs."""

_TRAINED = ("x", "gamma", "beta")
_FROZEN = (*_TRAINED, "mean", "var")


def exact_name(operation: str, output: str) -> str:
    """Return the name of the exact number behind an output: derivatives of second order end with ``_dot``."""
    if operation.removeprefix("inference_") in ("double_backward", "hvp"):
        return "y_dot" if output == "ddy" else f"{output}_dot"
    return output


def _run(
    definition: Callable[..., tuple[Any, dict[str, Any]]],
    inputs: Mapping[str, Exact],
    directions: Mapping[str, Exact],
    dy: Exact,
) -> dict[str, Exact]:
    """Return y, the gradient of <dy, y>, what else the program names, and the derivatives along the direction."""
    leaves = {
        key: Var(Series.along(value, None if directions[key].is_zero() else directions[key], 1), wanted=True)
        for key, value in inputs.items()
    }
    y, statistics = definition(**leaves)
    cotangents = gradient(y, Series.along(dy, None, 1), list(leaves.values()))
    found = {key: _coefficient(var.value, 0) for key, var in statistics.items()}
    for order, ending in enumerate(("", "_dot")):
        found[f"y{ending}"] = _coefficient(y.value, order)
        for key, cotangent in zip(leaves, cotangents, strict=True):
            length = inputs[key].length
            found[f"d{key}{ending}"] = Exact.zeros(length) if cotangent is None else _coefficient(cotangent, order)
    return found


def _coefficient(series: Series[Exact], order: int) -> Exact:
    value = series.coefficient(order)
    return Exact.zeros(series.length) if value is None else value


def _trained(x: Any, gamma: Any, beta: Any, eps: Fraction) -> tuple[Any, dict[str, Any]]:
    mean, d, var = program.moments(x)
    y = program.affine(program.standardize(d, var, eps), gamma, beta)
    return y, {"mean": mean, "var": var, "invstd": program.invstd(var, eps)}


def _frozen(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, eps: Fraction) -> tuple[Any, dict[str, Any]]:
    return program.frozen(x, mean, var, gamma, beta, eps), {"invstd": program.invstd(var, eps)}


class Truth:
    """The right answer to a call with finite numbers; each is computed when first asked for."""

    def __init__(self, call: Call) -> None:
        a = call.arrays
        self.call = call
        self.shape = call.shape
        groups = self.shape[0]
        x = load(a["x"])
        # Where q is 0 any other eps will do: what depends on it becomes NaN.
        self.degenerate = {
            False: np.asarray((x == x[:, :1]).all(axis=1) & (call.eps == 0)),
            True: np.asarray((load(a["var"]) == 0) & (call.eps == 0)),
        }
        read = {key: vectors(a[key], key) for key in ("x", "x_dot", "dy")}
        read |= {key: numbers(values, key, groups) for key, values in a.items() if values.ndim == 1}
        rows: dict[bool, list[dict[str, Exact]]] = {False: [], True: []}
        for frozen, definition, names in ((False, _trained, _TRAINED), (True, _frozen, _FROZEN)):
            for g in range(groups):
                eps = Fraction(1) if self.degenerate[frozen][g] else Fraction(call.eps)
                rows[frozen].append(
                    _run(
                        lambda eps=eps, definition=definition, **leaves: definition(**leaves, eps=eps),
                        {key: read[key][g] for key in names},
                        {key: read[f"{key}_dot"][g] for key in names},
                        read["dy"][g],
                    )
                )
        self._rows = rows
        self._rounded: dict[tuple[bool, str], dict[Format, Array]] = {}
        self._blended: dict[tuple[bool, ...], dict[str, dict[Format, Array]]] = {}

    def of(self, operation: str, output: str, form: Format) -> Array:
        """Return an output of a pass in a format: (G, m) or (G,)."""
        frozen = is_frozen(operation)
        key = exact_name(operation, output)
        if (frozen, key) not in self._rounded:
            shape = self.shape if output in TENSORS else self.shape[:1]
            values = round_each([row[key] for row in self._rows[frozen]], shape)
            if not has_value(output):
                for each in values.values():
                    each[self.degenerate[frozen]] = np.inf if output == "invstd" else np.nan
            self._rounded[frozen, key] = values
        return self._rounded[frozen, key][form]

    def running(self, variant: tuple[bool, ...], output: str, form: Format) -> Array:
        """Return an output of `running_update` in a format; the variant is one of `VARIANTS`."""
        if variant not in self._blended:
            new = exact.Moments(*(ExactArray([row[key] for row in self._rows[False]], None) for key in ("mean", "var")))
            old = (self.call.arrays["running_mean"], self.call.arrays["running_var"])
            blended = exact.running_update(new, self.shape[1], self.call.momentum, variant[0], variant[1], *old)
            self._blended[variant] = {
                f"out_{key}": round_each(list(getattr(blended, key)), self.shape[:1]) for key in ("mean", "var")
            }
        return self._blended[variant][output][form]


def round_each(rows: Sequence[Exact], shape: tuple[int, ...]) -> dict[Format, Array]:
    """Round numbers, or vectors, correctly to each format; much faster than one by one.

    A value lies strictly between the neighbours of its rounding to binary64. Where both round to one number of the
    narrower format, it does too. The rest (midpoints of that format) is left to the oracle.
    """
    double = np.array([round_all(row, BINARY64) for row in rows])
    found: dict[Format, Array] = {BINARY64: double.reshape(shape)}
    with np.errstate(over="ignore", under="ignore"):
        below, above = np.nextafter(double, -np.inf), np.nextafter(double, np.inf)
    for form in FORMATS:
        if form is BINARY64:
            continue
        bits = np.dtype(f"u{form.dtype.itemsize}")
        rounded = round_to(double, form.dtype)
        low, high = (round_to(ends, form.dtype).view(bits) for ends in (below, above))
        # A zero is exact, or has its sign already.
        midpoints = (low != high) & (double != 0.0)
        for g in np.flatnonzero(midpoints.any(axis=1)):
            places = np.flatnonzero(midpoints[g])
            rounded[g, places] = round_all(_pick(rows[int(g)], places.tolist()), form).astype(form.dtype)
        found[form] = rounded.reshape(shape)
    return found


def _pick(value: Exact, places: list[int]) -> Exact:
    """Return some elements of a vector."""
    if value.length is None:
        return value
    a, b = (
        part if part is None or part.ints is None else Part(part.scale, [part.ints[i] for i in places])
        for part in (value.a, value.b)
    )
    return Exact(a, b, value.radicand, len(places))
