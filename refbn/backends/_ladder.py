"""How every output of a normalization is rounded once: rungs of enclosures, and exact numbers at the end.

1. `_Core`. The native core's batch norm on the groups, with gamma 1 and in binary64, returns x̂, r·P u, K(u, g), …
   rounded once: an enclosure with a radius of half a unit. The affine phase, equations (N1) to (N7) of
   `refbn.reference.normalize`, is added in plain binary64 with its own rounding errors. That decides all but a few of
   the results of narrow formats. It needs γ·dy to be a binary64 number, as it is for factors of 53 bits together.
2. `_Balls`. The oracle's program over pairs of binary64: `refbn.exact.balls`.
3. The oracle's program over a + b·√N, for whole groups, decides what is left: ties, exact zeros, cancellation, extreme
   exponents.

What both ends of an enclosure round to is the correctly rounded result. A tensor's element moves on with its group, a
sum over groups moves on with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refbn import backends
from refbn._formats import BINARY64, Format, format_of, load
from refbn._geometry import Geometry
from refbn.backends._contract import Array, Backend
from refbn.exact import program
from refbn.exact.arrays import vectors
from refbn.exact.balls import Ball, Rough
from refbn.exact.derive import Derivatives, derivatives
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all
from refbn.exact.sums import round_sum

__all__ = ["BLOCK", "TENSORS", "Ladder", "Question", "Rows", "State", "pivoted"]

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

BLOCK = 1 << 13  # elements that are enclosed at once: their temporaries stay in the cache
TENSORS = ("value", "x")
_VECTORS = ("gamma", "beta")
_STATISTICS = ("mean", "var", "invstd")


# ---- the question ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What `Normalization.forward` leaves to the derivative passes.

    Attributes
    ----------
    eps : float
        ε.
    degenerate : ndarray of bool, shape (G,)
        Groups where q is 0.
    r, d : ndarray, shape (G,)
        The correction; 1 and 0 where there is none.
    """

    eps: float
    degenerate: Bools
    r: Doubles
    d: Doubles

    def numbers(self, block: slice | Indices) -> dict[str, Doubles]:
        """Return what the program takes of each group beside x: eps (1 where q is 0), r and d, finite ones."""
        eps = np.where(self.degenerate[block], 1.0, self.eps)
        return {"eps": eps, "r": np.nan_to_num(self.r[block]), "d": np.nan_to_num(self.d[block])}


_LIKE_X = ("x", "dy", "x_dot")


class Rows:
    """The inputs as finite binary64 arrays (G, m), and where they were not finite.

    Attributes
    ----------
    bad : dict of str to ndarray of bool
        Of shape (G, m), or (G, 1) for what a group has one of.
    precision : dict of str to int
        Of the formats that they came in.
    """

    def __init__(self, geometry: Geometry, state: State | None = None, **arrays: Array) -> None:
        self.geometry = geometry
        self.precision: dict[str, int] = {}
        self.bad: dict[str, Bools] = {}
        self._values: dict[str, Doubles] = {}
        canonical = arrays["x"].shape
        for name, array in arrays.items():
            tensor = array if array.shape == canonical and name in _LIKE_X else geometry.spread(array)
            self.precision[name] = format_of(array.dtype).precision
            values = load(geometry.rows(tensor))
            self.bad[name] = np.isnan(values)
            self._values[name] = np.where(self.bad[name], 0.0, values)
        if state is not None:
            self.group(root=state.degenerate, r=np.isnan(state.r), d=np.isnan(state.d))

    def __getitem__(self, name: str) -> Doubles:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def group(self, **bad: Bools) -> None:
        """Take in what a group has one of."""
        self.bad |= {name: where[:, None] for name, where in bad.items()}

    def degenerate(self, eps: float) -> Bools:
        """Tell, of shape (G,), where q = var + eps is 0."""
        x = self["x"]
        return np.asarray((x == x[:, :1]).all(axis=1) & (eps == 0))

    def write(self, out: Array, values: Doubles, whole: str, elements: str = "") -> None:
        """Write rounded values: of a tensor (G, m), of a vector (A,).

        NaN is what contains something that is no number: ``whole`` names the inputs of which all of the group's
        elements are contained, ``elements`` those of which only the element itself is.
        """
        bad: Bools = np.zeros((self.geometry.groups, self.geometry.count), bool)
        for name in whole.split():
            bad |= self.bad[name].any(axis=1, keepdims=True)
        for name in elements.split():
            bad |= self.bad[name]
        if values.ndim == 1:
            bad = np.asarray(self.geometry.by_affine(bad).any(axis=1))
        values[bad] = np.nan
        out[...] = values.astype(out.dtype).reshape(out.shape)


@dataclass(frozen=True)
class Question:
    """A pass and its inputs.

    Attributes
    ----------
    geometry, state, rows
        The split of the axes, what forward found, the inputs.
    order : int
        How many times to differentiate along the directions, 0 or 1.
    wanted : tuple of str
        The inputs to take the gradient to.
    """

    geometry: Geometry
    state: State
    rows: Rows
    order: int
    wanted: tuple[str, ...]

    @cached_property
    def directions(self) -> dict[str, Doubles]:
        """What the inputs move with; those that stand still are left out."""
        names = {name: f"{name}_dot" for name in ("x", "gamma", "beta")}
        return {name: self.rows[dot] for name, dot in names.items() if dot in self.rows and self.rows[dot].any()}


# ---- the ladder ------------------------------------------------------------------------------------------------------


class Ladder:
    """Answers a question in some formats.

    Parameters
    ----------
    question : Question
        What is asked.
    forms : mapping of str to Format
        By key of `refbn.backends.normalization.Outputs`, the formats.
    """

    def __init__(self, question: Question, forms: Mapping[str, Format]) -> None:
        geometry = question.geometry
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(TENSORS, (geometry.groups, geometry.count))
        shapes |= dict.fromkeys(_VECTORS, (prod(geometry.affine_shape),))
        shapes |= dict.fromkeys(_STATISTICS, (geometry.groups,))
        self.question = question
        self.forms = forms
        self.values: dict[str, Doubles] = {key: np.zeros(shapes[key]) for key in forms}
        self.sure: dict[str, Bools] = {key: np.zeros(shapes[key], bool) for key in forms}
        self._exact: dict[int, Derivatives[Exact]] = {}

    def climb(self, *, enclose: bool) -> dict[str, Doubles]:
        """Return the correctly rounded values; without ``enclose``, by exact numbers alone."""
        if self.question.geometry.groups and enclose:
            for rung in (_Core.of(self.question), _Balls(self.question)):
                if rung is not None:
                    self._try(rung, [key for key, form in self.forms.items() if rung.precision > form.precision])
        if self.question.geometry.groups:
            self._decide()
        return self.values

    def _try(self, rung: _Rung, keys: Sequence[str]) -> None:
        """Ask a rung for what is still open."""
        geometry = self.question.geometry
        keys = [key for key in keys if not self.sure[key].all()]
        sums: dict[str, list[Ball]] = {key: [] for key in keys if key in _VECTORS}
        for block in self._blocks(keys, rung.block):
            for key, ball in rung.enclose(block, keys).items():
                if key in sums:
                    if ball is not None:
                        sums[key].append(ball.mapped(geometry.by_affine).sum())
                    continue
                rounded, sure = (np.zeros(1), np.ones(1, bool)) if ball is None else ball.round(self.forms[key])
                one_each = key in _STATISTICS
                self.values[key][block] = rounded[:, 0] if one_each else rounded
                self.sure[key][block] = sure[:, 0] if one_each else sure
        for key, parts in sums.items():
            if not parts:  # a structural zero, in one block as in all
                self.sure[key][...] = True
                continue
            rounded, sure = self._joined(parts).round(self.forms[key])
            self.values[key][...], self.sure[key][...] = rounded[:, 0], sure[:, 0]

    def _blocks(self, keys: Sequence[str], size: int) -> Iterator[Indices]:
        """Split the groups that are open into blocks; for a sum, all of them by whole indices of the first axis."""
        geometry = self.question.geometry
        together, groups = 1, np.arange(geometry.groups)
        if any(key in _VECTORS for key in keys):
            together = max(geometry.groups // geometry.group_shape[0], 1)
        else:
            closed = [self.sure[key] if key in _STATISTICS else self.sure[key].all(axis=1) for key in keys]
            groups = np.flatnonzero(~np.logical_and.reduce(closed)) if closed else groups[:0]
        step = together * max(size // max(together * geometry.count, 1), 1)
        for start in range(0, len(groups), step):
            yield groups[start : start + step]

    def _joined(self, parts: Sequence[Ball]) -> Ball:
        """Join the blocks' parts of a vector: side by side where gamma lies on the first group axis, else their sum."""
        geometry = self.question.geometry
        if geometry.group_axes[0] in geometry.affine_axes:
            return Ball.joined(parts, axis=0)
        return Ball.joined(parts, axis=1).sum()

    # ---- exact numbers -------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Decide exactly what is still open."""
        for key, sure in self.sure.items():
            if key in _VECTORS:
                self._decide_sums(key, np.flatnonzero(~sure).tolist())
                continue
            for group in np.flatnonzero(~(sure if key in _STATISTICS else sure.all(axis=1))).tolist():
                if key in _STATISTICS:
                    number: Exact | None = self._exact_statistic(key, group)
                else:
                    found = self._exactly(group)
                    number = found.value if key == "value" else found.gradient[key]
                rounded = np.zeros(1) if number is None else round_all(number, self.forms[key])
                self.values[key][group] = rounded[0] if key in _STATISTICS else rounded

    def _decide_sums(self, key: str, pending: list[int]) -> None:
        if not pending:
            return
        for index, scaled in zip(pending, self.question.geometry.scaled(pending), strict=True):
            terms: list[Exact] = []
            for group, places in scaled.items():
                if key == "beta":  # backward's dβ is a sum of dy
                    (vector,) = vectors(self.question.rows["dy"][group : group + 1], "dy")
                else:
                    found = self._exactly(group).gradient[key]
                    if found is None:
                        continue
                    vector = found
                terms.append(vector.taken(places).sum())
            self.values[key][index] = round_sum(terms, self.forms[key])

    def _exactly(self, group: int) -> Derivatives[Exact]:
        found = self._exact.get(group)
        if found is None:
            question, row = self.question, slice(group, group + 1)

            def read(values: Doubles) -> Exact:
                return vectors(values[row], "values")[0]

            found = self._exact[group] = _differentiate(
                question,
                read(question.rows["x"]),
                {name: read(question.rows[name]) for name in ("gamma", "beta", "dy") if name in question.rows},
                {name: read(along) for name, along in question.directions.items() if along[group].any()},
                {name: Exact.number(Fraction(values[0])) for name, values in question.state.numbers(row).items()},
            )
        return found

    def _exact_statistic(self, name: str, group: int) -> Exact:
        row = slice(group, group + 1)
        (x,) = vectors(self.question.rows["x"][row], "x")
        eps = Exact.number(Fraction(self.question.state.numbers(row)["eps"][0]))
        number: Exact = _statistics(x, eps, Exact.number(0))[name]
        return number


class _Rung(Protocol):
    """Encloses results.

    Attributes
    ----------
    precision : int
        That of a format must be smaller for the rung to have a chance.
    block : int
        How many elements it takes at once.
    """

    precision: int
    block: int

    def enclose(self, block: Indices, keys: Sequence[str]) -> dict[str, Ball | None]:
        """Return the results of some groups by key; None is a structural zero. Of vectors, the terms (groups, m)."""


# ---- first rung: the native core -------------------------------------------------------------------------------------


class _Core:
    """Batch norm's core, and the affine phase in plain binary64."""

    precision = BINARY64.precision
    block = 1 << 16

    def __init__(self, question: Question, kernels: Backend) -> None:
        self.question = question
        self.kernels = kernels

    @classmethod
    def of(cls, question: Question) -> _Core | None:
        """Return the rung, None where the core is not there or γ·dy may be no binary64 number."""
        if "native" not in backends.available():
            return None
        bits = [question.rows.precision.get(name, 0) for name in ("gamma", "gamma_dot", "dy")]
        if max(bits[:2]) + bits[2] > BINARY64.precision:
            return None
        return cls(question, backends.load("native"))

    def enclose(self, block: Indices, keys: Sequence[str]) -> dict[str, Ball | None]:
        question, state, rows = self.question, self.question.state, self.question.rows
        x = rows["x"][block]
        groups, m = x.shape
        ones, zeros = np.ones(groups), np.zeros(groups)
        statistics = {name: np.empty(groups) for name in _STATISTICS}
        xhat = np.empty_like(x)
        core = self.kernels.forward(x, ones, zeros, state.eps, y=xhat, **statistics)
        found: dict[str, Ball | None] = {
            name: Rough.rounded(values[:, None], None) for name, values in statistics.items()
        }
        numbers = state.numbers(block)
        rho, delta = (Rough.exactly(numbers[name][:, None], None) for name in ("r", "d"))

        def exactly(name: str) -> Rough:
            return Rough.exactly(rows[name][block], m)

        def moved(u: Doubles) -> Rough:
            """Return ρ·r·P u."""
            result = np.empty_like(x)
            self.kernels.jvp(core, x, ones, u, zeros, zeros, y_dot=result)
            return rho * Rough.rounded(result, m)

        z = rho * Rough.rounded(xhat, m) + delta
        along = {name: values[block] for name, values in question.directions.items()}
        slope = moved(along["x"]) if "x" in along else None
        if "value" in keys and not question.order:
            found["value"] = exactly("gamma") * z + exactly("beta")  # (N1)
        elif "value" in keys:
            terms = [] if slope is None else [exactly("gamma") * slope]
            terms += [Rough.exactly(along["gamma"], m) * z] if "gamma" in along else []
            terms += [Rough.exactly(along["beta"], m)] if "beta" in along else []
            found["value"] = _plus(terms)  # (N2)
        if "x" in keys:
            terms = []
            upstream = rows["gamma"][block] * rows["dy"][block] if question.wanted else zeros
            if not question.order:
                terms.append(moved(upstream))  # (N3); P is symmetric
            if "x" in along:
                bent = np.empty_like(x)
                nothing = {"dgamma": np.empty(groups), "dbeta": np.empty(groups)}
                self.kernels.hvp(core, x, ones, upstream, along["x"], zeros, dx=bent, **nothing)
                terms.append(rho * Rough.rounded(bent, m))
            if "gamma" in along:
                terms.append(moved(along["gamma"] * rows["dy"][block]))
            found["x"] = _plus(terms)  # (N6)
        if "gamma" in keys:
            factor = slope if question.order else z
            found["gamma"] = None if factor is None else exactly("dy") * factor  # (N4, N7)
        if "beta" in keys:
            found["beta"] = exactly("dy")  # (N5)
        return {key: found[key] for key in keys}


def _plus(terms: Sequence[Rough]) -> Rough | None:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total


# ---- second rung: balls ----------------------------------------------------------------------------------------------


class _Balls:
    """The oracle's program over pairs of binary64."""

    precision = 2 * BINARY64.precision
    block = BLOCK

    def __init__(self, question: Question) -> None:
        self.question = question

    def enclose(self, block: Indices, keys: Sequence[str]) -> dict[str, Ball | None]:
        question, rows = self.question, self.question.rows
        pivots, x = pivoted(rows["x"][block])
        numbers = {name: Ball.numbers(values) for name, values in question.state.numbers(block).items()}
        results: dict[str, Ball | None] = {}
        if any(key in _STATISTICS for key in keys):
            results |= _statistics(x, numbers["eps"], Ball.numbers(pivots))
        if any(key not in _STATISTICS for key in keys):
            found = _differentiate(
                question,
                x,
                {name: Ball.vectors(rows[name][block]) for name in ("gamma", "beta", "dy") if name in rows},
                {name: Ball.vectors(along[block]) for name, along in question.directions.items()},
                numbers,
            )
            results |= {"value": found.value, **found.gradient}
        return {key: results[key] for key in keys}


# ---- the program, over any kind of number ---------------------------------------------------------------------------


def _differentiate(
    question: Question, x: Any, vectors: Mapping[str, Any], along: Mapping[str, Any], numbers: Mapping[str, Any]
) -> Derivatives[Any]:
    """Run the oracle's program over one kind of number."""
    inputs: dict[str, Any] = {"x": x, "gamma": vectors["gamma"], "eps": numbers["eps"]}
    # Only y itself contains beta, so a derivative may take any.
    inputs["beta"] = vectors["beta"] if "beta" in vectors else vectors["gamma"]
    definition: Any = program.batch_norm
    if question.geometry.corrected:
        definition = program.batch_renorm
        inputs |= {"r": numbers["r"], "d": numbers["d"]}
    return derivatives(
        definition,
        inputs,
        order=question.order,
        directions=along,
        cotangent=vectors.get("dy"),
        wanted=question.wanted,
    )


def _statistics(x: Any, eps: Any, pivot: Any) -> dict[str, Any]:
    """Return the statistics of the vector x + pivot, over one kind of number."""
    mean, _, var = program.moments(x)
    return {"mean": pivot + mean, "var": var, "invstd": program.invstd(var, eps)}


def pivoted(values: Doubles) -> tuple[Doubles, Ball]:
    """Return each group's first element, and x without it: exactly a pair, and without a common offset."""
    return values[:, 0], Ball.differences(values, values[:, :1])
