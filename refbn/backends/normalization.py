"""The training passes for any split of the axes: layer, group and instance norm, and batch renormalization.

They are no new mathematics. Each group is standardized as in batch norm; gamma and beta are repeated to x's shape, and
their gradients are summed over what each of their elements scales. A `Normalization` is bound to a geometry and has the
passes of the contract (`refbn.backends._contract`) with two differences: tensors have all group axes in front and
then all reduced ones, unmerged, and vectors have the affine shape (statistics: the group shape).

=============  =========================================================  ==========================================
name           what                                                       accuracy
=============  =========================================================  ==========================================
enclosure      the oracle's program over `refbn.exact.balls`; what they   correctly rounded
               leave open, exactly
exact          the oracle's program over a + b·√N                         correctly rounded
reference      the textbook, `refbn.reference.normalization`              binary64
=============  =========================================================  ==========================================

**Answers at the edges** are those of the contract. Where gamma varies within a group, an element of y contains its own
gamma alone, while dx contains all of the group's; an element of dgamma contains all of x in every group that it
scales something of, and of dy what it scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _validate, reference
from refbn._formats import BINARY64, Format, format_of, load, round_to
from refbn._geometry import Geometry
from refbn._types import Saved
from refbn.backends._contract import Array
from refbn.exact import program
from refbn.exact.arrays import vectors
from refbn.exact.balls import Ball, is_ieee
from refbn.exact.derive import Derivatives, derivatives
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all
from refbn.exact.sums import round_sum
from refbn.reference._sum import total

__all__ = ["Normalization", "State", "correction", "split_gradient"]

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 1 << 13  # elements that are enclosed at once: their temporaries stay in the cache


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

    def numbers(self, block: slice) -> dict[str, Doubles]:
        """Return what the program takes of each group beside x: eps (1 where q is 0), r and d, finite ones."""
        eps = np.where(self.degenerate[block], 1.0, self.eps)
        return {"eps": eps, "r": np.nan_to_num(self.r[block]), "d": np.nan_to_num(self.d[block])}


class Normalization:
    """The training passes, bound to a geometry.

    Parameters
    ----------
    name : str
        One of `refbn.backends.NORMALIZATIONS`.
    geometry : Geometry
        The split of the axes.
    """

    def __init__(self, name: str, geometry: Geometry) -> None:
        self.name = name
        self.geometry = geometry

    # ---- the passes ----------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        eps: float,
        *,
        y: Array,
        mean: Array,
        var: Array,
        invstd: Array,
        correction: tuple[Array, Array] | None = None,
    ) -> State:
        """See `Backend.forward`; ``correction`` is (r, d) of batch renormalization, of the group shape."""
        rows = _Rows(self.geometry, x=x, gamma=gamma, beta=beta)
        groups = self.geometry.groups
        xs = rows["x"]
        degenerate = np.asarray((xs == xs[:, :1]).all(axis=1) & (eps == 0))
        r, d = (np.ones(groups), np.zeros(groups)) if correction is None else map(load, correction)
        state = State(eps, degenerate, r.reshape(-1), d.reshape(-1))
        rows.group(root=degenerate, r=np.isnan(state.r), d=np.isnan(state.d))
        results = _pass(self, state, rows)
        rows.write(y, results.tensor("value", y), "x root r d", "gamma beta")
        for name, out in (("mean", mean), ("var", var), ("invstd", invstd)):
            values = results.statistic(name, out)
            if name == "invstd":
                values[degenerate] = np.inf
            values[rows.bad["x"].any(axis=1)] = np.nan
            out[...] = values.reshape(out.shape)
        return state

    def backward(
        self, state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        """See `Backend.backward`."""
        rows = _Rows(self.geometry, state, x=x, gamma=gamma, dy=dy)
        results = _pass(self, state, rows, wanted=("x", "gamma", "beta"))
        rows.write(dx, results.tensor("x", dx), "x gamma dy root r")
        rows.write(dgamma, results.vector("gamma", dgamma), "x root r d", "dy")
        rows.write(dbeta, results.vector("beta", dbeta), "", "dy")

    def jvp(
        self,
        state: State,
        x: Array,
        gamma: Array,
        x_dot: Array,
        gamma_dot: Array,
        beta_dot: Array,
        *,
        y_dot: Array,
    ) -> None:
        """See `Backend.jvp`."""
        rows = _Rows(self.geometry, state, x=x, gamma=gamma, x_dot=x_dot, gamma_dot=gamma_dot, beta_dot=beta_dot)
        results = _pass(self, state, rows, order=1)
        rows.write(y_dot, results.tensor("value", y_dot), "x x_dot root r d", "gamma gamma_dot beta_dot")

    def double_backward(
        self,
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
        """See `Backend.double_backward`."""
        rows = _Rows(
            self.geometry, state, x=x, gamma=gamma, dy=dy, x_dot=ddx, gamma_dot=ddgamma, beta_dot=ddbeta
        )  # a direction is what double backward calls ddx, …
        results = _pass(self, state, rows, order=1, wanted=("x", "gamma"))
        rows.write(ddy, results.tensor("value", ddy), "x x_dot root r d", "gamma gamma_dot beta_dot")
        rows.write(dx, results.tensor("x", dx), "x gamma dy x_dot gamma_dot root r")
        rows.write(dgamma, results.vector("gamma", dgamma), "x x_dot root r", "dy")

    def hvp(
        self,
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
        """See `Backend.hvp`."""
        rows = _Rows(self.geometry, state, x=x, gamma=gamma, dy=dy, x_dot=x_dot, gamma_dot=gamma_dot)
        results = _pass(self, state, rows, order=1, wanted=("x", "gamma"))
        rows.write(dx, results.tensor("x", dx), "x gamma dy x_dot gamma_dot root r")
        rows.write(dgamma, results.vector("gamma", dgamma), "x x_dot root r", "dy")
        dbeta[...] = 0


# ---- what goes in and comes out -------------------------------------------------------------------------------------


class _Rows:
    """The inputs as finite binary64 arrays (G, m), and where they were not finite.

    Attributes
    ----------
    bad : dict of str to ndarray of bool
        Of shape (G, m), or (G, 1) for what a group has one of.
    """

    def __init__(self, geometry: Geometry, state: State | None = None, **arrays: Array) -> None:
        self.geometry = geometry
        self.bad: dict[str, Bools] = {}
        self._values: dict[str, Doubles] = {}
        canonical = arrays["x"].shape
        for name, array in arrays.items():
            tensor = array if array.shape == canonical and name in _TENSORS else geometry.spread(array)
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


_TENSORS = ("x", "dy", "x_dot")


class _Results:
    """What a pass computed, to be rounded once to the format of each output."""

    def tensor(self, key: str, out: Array) -> Doubles:
        """Return (G, m) of the derivative of y (``"value"``) or of the gradient to x."""
        raise NotImplementedError

    def vector(self, key: str, out: Array) -> Doubles:
        """Return (A,) of the gradient to gamma or beta."""
        raise NotImplementedError

    def statistic(self, name: str, out: Array) -> Doubles:
        """Return (G,) of mean, var or invstd."""
        raise NotImplementedError


def _pass(bound: Normalization, state: State, rows: _Rows, order: int = 0, wanted: tuple[str, ...] = ()) -> _Results:
    _validate.backend_arithmetic(bound.name, is_ieee())
    question = _Question(bound.geometry, state, rows, order, wanted)
    if bound.name == "reference":
        return _Textbook(question)
    return _Ladder(question, enclose=bound.name == "enclosure")


@dataclass(frozen=True)
class _Question:
    """A pass and its inputs."""

    geometry: Geometry
    state: State
    rows: _Rows
    order: int
    wanted: tuple[str, ...]

    @cached_property
    def directions(self) -> dict[str, Doubles]:
        """What the inputs move with; those that stand still are left out."""
        names = {name: f"{name}_dot" for name in ("x", "gamma", "beta")}
        return {name: self.rows[dot] for name, dot in names.items() if dot in self.rows and self.rows[dot].any()}


# ---- correctly rounded -----------------------------------------------------------------------------------------------


class _Ladder(_Results):
    """Enclosures first, and exact numbers for what they leave open."""

    def __init__(self, question: _Question, *, enclose: bool) -> None:
        self.question = question
        self.enclose = enclose
        self._exact: dict[int, Derivatives[Exact]] = {}
        self._balls: list[tuple[slice, Derivatives[Ball]]] = []
        if enclose:
            with np.errstate(all="ignore"):
                self._balls = [self._enclosed(block) for block in self._blocks()]

    def tensor(self, key: str, out: Array) -> Doubles:
        form = format_of(out.dtype)
        values = np.zeros((self.question.geometry.groups, self.question.geometry.count))
        sure = np.zeros(values.shape, bool)
        with np.errstate(all="ignore"):
            for block, found in self._balls:
                ball = found.value if key == "value" else found.gradient[key]
                values[block], sure[block] = (0.0, True) if ball is None else ball.round(form)
        for group in np.flatnonzero(~sure.all(axis=1)).tolist():
            exact = self._exactly(group)
            vector = exact.value if key == "value" else exact.gradient[key]
            values[group] = 0.0 if vector is None else round_all(vector, form)
        return values

    def vector(self, key: str, out: Array) -> Doubles:
        form, geometry = format_of(out.dtype), self.question.geometry
        values, sure = np.zeros(out.size), np.zeros(out.size, bool)
        if not geometry.groups:
            return values
        parts: list[Ball] = []
        with np.errstate(all="ignore"):
            for _, found in self._balls:
                terms = found.gradient[key]
                if terms is None:  # a structural zero in one block is one in all
                    return values
                shape = np.broadcast_shapes(terms.hi.shape, (1, geometry.count))
                hi, lo, radius = (
                    geometry.by_affine(np.broadcast_to(part, shape)) for part in (terms.hi, terms.lo, terms.radius)
                )
                parts.append(Ball(hi, lo, radius, geometry.count).sum())
            if parts:
                rounded, agreed = self._joined(parts).round(form)
                values, sure = rounded[:, 0].copy(), agreed[:, 0]
        pending = np.flatnonzero(~sure).tolist()
        if pending:
            self._decide(key, form, pending, values)
        return values

    def statistic(self, name: str, out: Array) -> Doubles:
        form = format_of(out.dtype)
        values, sure = np.zeros(out.size), np.zeros(out.size, bool)
        with np.errstate(all="ignore"):
            for block, statistics in self._statistics:
                values[block], sure[block] = (part[:, 0] for part in statistics[name].round(form))
        for group in np.flatnonzero(~sure).tolist():
            (x,) = vectors(self.question.rows["x"][group : group + 1], "x")
            eps = Exact.number(Fraction(self.question.state.numbers(slice(group, group + 1))["eps"][0]))
            values[group] = round_all(_statistics(x, eps, Exact.number(0))[name], form)[0]
        return values

    @cached_property
    def _statistics(self) -> list[tuple[slice, dict[str, Ball]]]:
        found: list[tuple[slice, dict[str, Ball]]] = []
        for block, _ in self._balls:
            pivots, x = _pivoted(self.question.rows["x"][block])
            eps = Ball.numbers(self.question.state.numbers(block)["eps"])
            found.append((block, _statistics(x, eps, Ball.numbers(pivots))))
        return found

    # ---- enclosures ----------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[slice]:
        """Split the groups into blocks of whole indices of the first group axis."""
        geometry = self.question.geometry
        one = max(geometry.groups // geometry.group_shape[0], 1) if geometry.groups else 1
        step = one * max(_BLOCK // max(one * geometry.count, 1), 1)
        for start in range(0, geometry.groups, step):
            yield slice(start, min(start + step, geometry.groups))

    def _enclosed(self, block: slice) -> tuple[slice, Derivatives[Ball]]:
        question = self.question
        _, x = _pivoted(question.rows["x"][block])
        found = _differentiate(
            question,
            x,
            {
                name: Ball.vectors(question.rows[name][block])
                for name in ("gamma", "beta", "dy")
                if name in question.rows
            },
            {name: Ball.vectors(along[block]) for name, along in question.directions.items()},
            {name: Ball.numbers(values) for name, values in question.state.numbers(block).items()},
        )
        return block, found

    def _joined(self, parts: Sequence[Ball]) -> Ball:
        """Join the blocks' parts of a vector: side by side where gamma lies on the first group axis, else their sum."""
        geometry = self.question.geometry
        apart = geometry.group_axes[0] in geometry.affine_axes
        hi, lo, radius = (
            np.concatenate([getattr(part, name) for part in parts], axis=0 if apart else 1)
            for name in ("hi", "lo", "radius")
        )
        joined = Ball(hi, lo, radius, None)
        return joined if apart else joined.sum()

    # ---- exact numbers -------------------------------------------------------------------------------------------

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

    def _decide(self, key: str, form: Format, pending: list[int], values: Doubles) -> None:
        """Round elements of gamma's or beta's gradient exactly."""
        geometry, rows = self.question.geometry, self.question.rows
        places = np.arange(geometry.groups * geometry.count).reshape(geometry.groups, geometry.count)
        scaled = geometry.by_affine(places)
        for index in pending:
            terms: list[Exact] = []
            group_of, element_of = np.divmod(scaled[index], geometry.count)
            for group in np.unique(group_of).tolist():
                if key == "beta":  # backward's dβ is a sum of dy
                    (vector,) = vectors(rows["dy"][group : group + 1], "dy")
                else:
                    found = self._exactly(group).gradient[key]
                    if found is None:
                        continue
                    vector = found
                terms.append(vector.taken(element_of[group_of == group].tolist()).sum())
            values[index] = round_sum(terms, form)


def _differentiate(
    question: _Question, x: Any, vectors: Mapping[str, Any], along: Mapping[str, Any], numbers: Mapping[str, Any]
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


def _pivoted(values: Doubles) -> tuple[Doubles, Ball]:
    """Return each group's first element, and x without it: exactly a pair, and without a common offset."""
    pivots = values[:, 0]
    return pivots, Ball.differences(values, values[:, :1])


# ---- beside the passes -----------------------------------------------------------------------------------------------


def correction(
    x: Array, running_mean: Array, running_var: Array, eps: float, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Return r and d of batch renormalization, correctly rounded, for a canonical x (G, …) and vectors (G,)."""
    form = format_of(dtype)
    values, mean, var = load(x.reshape(len(x), -1)), load(running_mean), load(running_var)
    bad = np.isnan(values).any(axis=1) | np.isnan(mean) | np.isnan(var) | (var + eps <= 0)
    values, mean, var = (np.where(bad[:, None] if a.ndim == 2 else bad, 1.0, a) for a in (values, mean, var))
    with np.errstate(all="ignore"):
        pivots, balls = _pivoted(values)
        given = [Ball.numbers(a) for a in (pivots, mean, var)]
        enclosed = program.correction(balls, given[0], given[1], given[2], Fraction(eps))
        rounded = [ball.round(form) for ball in enclosed]
    results = [np.array(numbers[:, 0]) for numbers, _ in rounded]
    sure = np.logical_and.reduce([agreed[:, 0] for _, agreed in rounded])
    for g in np.flatnonzero(~sure).tolist():
        (row,) = vectors(values[g : g + 1], "x")
        running = [Exact.number(Fraction(a[g])) for a in (mean, var)]
        exactly = program.correction(row, Exact.number(0), running[0], running[1], Fraction(eps))
        for result, number in zip(results, exactly, strict=True):
            result[g] = round_all(number, form)[0]
    for result in results:
        result[bad] = np.nan
    r, d = (result.astype(dtype) for result in results)
    return r, d


def split_gradient(saved: Saved, dy: Array) -> tuple[Doubles, Doubles, Doubles]:
    """Return P g, g − P g and g for the gradient g = γ·dy that reaches x̂, correctly rounded to binary64."""
    geometry = saved.geometry
    order = (*geometry.group_axes, *geometry.reduced_axes)
    x, upstream = (t.reshape(geometry.split).transpose(order) for t in (saved.x, dy))
    rows = _Rows(geometry, x=x, dy=upstream, gamma=saved.gamma)
    everything = np.zeros((3, geometry.groups, geometry.count))
    with np.errstate(all="ignore"):
        everything[2] = rows["gamma"] * rows["dy"]
    if saved.frozen:
        everything[0] = everything[2]
        for name in ("gamma", "dy"):
            everything[:, rows.bad[name]] = np.nan
    else:
        xs = rows["x"]
        degenerate = (xs == xs[:, :1]).all(axis=1) & (saved.eps == 0)
        _split(rows, np.where(degenerate, 1.0, saved.eps), everything)
        rows.group(root=np.asarray(degenerate))
        for name in ("x", "gamma", "dy", "root"):
            everything[:, rows.bad[name].any(axis=1)] = np.nan
    passed, blocked, g = (
        np.ascontiguousarray(a.reshape(x.shape).transpose(np.argsort(order)).reshape(geometry.shape))
        for a in everything
    )
    return passed, blocked, g


def _split(rows: _Rows, eps: Doubles, everything: Doubles) -> None:
    """Fill in P g, g − P g and g."""
    groups, count = rows["x"].shape
    step = max(_BLOCK // max(count, 1), 1)
    for start in range(0, groups, step):
        block = slice(start, start + step)
        with np.errstate(all="ignore"):
            _, x = _pivoted(rows["x"][block])
            gamma, dy = (Ball.vectors(rows[name][block]) for name in ("gamma", "dy"))
            parts = _split_of(x, gamma * dy, Ball.numbers(eps[block]))
            rounded = [part.round(BINARY64) for part in parts]
        sure = np.ones(rows["x"][block].shape, bool)
        for out, (values, agreed) in zip(everything, rounded, strict=True):
            out[block] = values
            sure &= agreed
        for g in (start + np.flatnonzero(~sure.all(axis=1))).tolist():
            vector, gammas, dys = (vectors(rows[name][g : g + 1], name)[0] for name in ("x", "gamma", "dy"))
            exactly = _split_of(vector, gammas * dys, Exact.number(Fraction(eps[g])))
            for out, number in zip(everything, exactly, strict=True):
                out[g] = round_all(number, BINARY64)


def _split_of(x: Any, g: Any, eps: Any) -> tuple[Any, Any, Any]:
    """Return P g, g − P g and g; P g is the derivative of x̂ along g, times √q."""

    def standardized(x: Any, eps: Any) -> Any:
        _, d, var = program.moments(x)
        return program.standardize(d, var, eps)

    _, _, var = program.moments(x)
    slope = derivatives(standardized, {"x": x, "eps": eps}, order=1, directions={"x": g}).value
    assert slope is not None, "x moves"
    passed = slope * (var + eps).sqrt()
    return passed, g - passed, g


# ---- the textbook ----------------------------------------------------------------------------------------------------


class _Textbook(_Results):
    """`refbn.reference.normalization`, in binary64."""

    def __init__(self, question: _Question) -> None:
        self.geometry = question.geometry
        rows, state = question.rows, question.state
        with np.errstate(all="ignore"):
            self.stats = reference.statistics(rows["x"], state.eps) if self.geometry.groups else None
            affine = reference.Affine(rows["gamma"], state.r[:, None], state.d[:, None])
            zeros = np.zeros(rows["x"].shape)
            x_dot, gamma_dot, beta_dot = (question.directions.get(name, zeros) for name in ("x", "gamma", "beta"))
            self.found: dict[str, Array] = {}
            if self.stats is None:
                self.found = dict.fromkeys(("value", "x", "gamma", "beta"), zeros)
            elif not question.order and not question.wanted:
                self.found["value"] = reference.normalize(self.stats, affine, rows["beta"])
            elif not question.order:
                self.found |= reference.normalize_backward(self.stats, affine, rows["dy"])._asdict()
            else:
                self.found["value"] = reference.normalize_jvp(self.stats, affine, x_dot, gamma_dot, beta_dot)
                if question.wanted:
                    second = reference.normalize_hvp(self.stats, affine, rows["dy"], x_dot, gamma_dot)
                    self.found |= second._asdict()

    def tensor(self, key: str, out: Array) -> Doubles:
        return _rounded(self.found[key], out)

    def vector(self, key: str, out: Array) -> Doubles:
        terms = self.geometry.by_affine(self.found[key])
        return _rounded(total(terms)[:, 0], out)

    def statistic(self, name: str, out: Array) -> Doubles:
        return _rounded(getattr(self.stats, name) if self.stats is not None else np.zeros(0), out)


def _rounded(values: Array, out: Array) -> Doubles:
    return round_to(values + 0.0, out.dtype).astype(np.float64)
