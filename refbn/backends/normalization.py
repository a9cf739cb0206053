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

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _validate, reference
from refbn._formats import BINARY64, format_of, load, round_to
from refbn._geometry import Geometry
from refbn._types import Saved
from refbn.backends._contract import Array
from refbn.backends._ladder import BLOCK, TENSORS, Ladder, Question, Rows, State, pivoted
from refbn.exact import program
from refbn.exact.arrays import vectors
from refbn.exact.balls import Ball, is_ieee
from refbn.exact.derive import derivatives
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all
from refbn.reference._sum import total

__all__ = ["Normalization", "State", "correction", "split_gradient"]

Doubles = npt.NDArray[np.float64]


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
        rows = Rows(self.geometry, x=x, gamma=gamma, beta=beta)
        groups = self.geometry.groups
        degenerate = rows.degenerate(eps)
        r, d = (np.ones(groups), np.zeros(groups)) if correction is None else map(load, correction)
        state = State(eps, degenerate, r.reshape(-1), d.reshape(-1))
        rows.group(root=degenerate, r=np.isnan(state.r), d=np.isnan(state.d))
        statistics = {"mean": mean, "var": var, "invstd": invstd}
        results = _pass(self, state, rows, 0, (), value=y, **statistics)
        rows.write(y, results["value"], "x root r d", "gamma beta")
        results["invstd"][degenerate] = np.inf
        for name, out in statistics.items():
            results[name][rows.bad["x"].any(axis=1)] = np.nan
            out[...] = results[name].reshape(out.shape)
        return state

    def backward(
        self, state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        """See `Backend.backward`."""
        rows = Rows(self.geometry, state, x=x, gamma=gamma, dy=dy)
        results = _pass(self, state, rows, 0, ("x", "gamma", "beta"), x=dx, gamma=dgamma, beta=dbeta)
        rows.write(dx, results["x"], "x gamma dy root r")
        rows.write(dgamma, results["gamma"], "x root r d", "dy")
        rows.write(dbeta, results["beta"], "", "dy")

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
        rows = Rows(self.geometry, state, x=x, gamma=gamma, x_dot=x_dot, gamma_dot=gamma_dot, beta_dot=beta_dot)
        results = _pass(self, state, rows, 1, (), value=y_dot)
        rows.write(y_dot, results["value"], "x x_dot root r d", "gamma gamma_dot beta_dot")

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
        rows = Rows(
            self.geometry, state, x=x, gamma=gamma, dy=dy, x_dot=ddx, gamma_dot=ddgamma, beta_dot=ddbeta
        )  # a direction is what double backward calls ddx, …
        results = _pass(self, state, rows, 1, ("x", "gamma"), value=ddy, x=dx, gamma=dgamma)
        rows.write(ddy, results["value"], "x x_dot root r d", "gamma gamma_dot beta_dot")
        rows.write(dx, results["x"], "x gamma dy x_dot gamma_dot root r")
        rows.write(dgamma, results["gamma"], "x x_dot root r", "dy")

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
        rows = Rows(self.geometry, state, x=x, gamma=gamma, dy=dy, x_dot=x_dot, gamma_dot=gamma_dot)
        results = _pass(self, state, rows, 1, ("x", "gamma"), x=dx, gamma=dgamma)
        rows.write(dx, results["x"], "x gamma dy x_dot gamma_dot root r")
        rows.write(dgamma, results["gamma"], "x x_dot root r", "dy")
        dbeta[...] = 0


# ---- what goes in and comes out -------------------------------------------------------------------------------------


Outputs = Mapping[str, Array]
"""What is asked for, by key, and the arrays that it is for.

``value`` is y or its derivative along the directions, ``x``, ``gamma`` and ``beta`` the gradients to these (in a second
order pass, their derivatives), ``mean``, ``var`` and ``invstd`` the statistics.
"""


def _pass(
    bound: Normalization, state: State, rows: Rows, order: int, wanted: tuple[str, ...], **outputs: Array
) -> dict[str, Doubles]:
    """Return the values of the outputs, rounded to their formats: (G, m) of tensors, (A,) or (G,) of vectors."""
    _validate.backend_arithmetic(bound.name, is_ieee())
    question = Question(bound.geometry, state, rows, order, wanted)
    if bound.name == "reference":
        return _textbook(question, outputs)
    forms = {key: format_of(out.dtype) for key, out in outputs.items()}
    with np.errstate(all="ignore"):
        return Ladder(question, forms).climb(enclose=bound.name == "enclosure")


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
        pivots, balls = pivoted(values)
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


def split_gradient(saved: Saved, dy: Array, name: str) -> tuple[Doubles, Doubles, Doubles]:
    """Return P g, g − P g and g for the gradient g = γ·dy that reaches x̂, in binary64, by one of the backends."""
    _validate.backend_arithmetic(name, is_ieee())
    geometry = saved.geometry
    rows = Rows(geometry, x=geometry.grouped(saved.x), dy=geometry.grouped(dy), gamma=saved.gamma)
    everything = np.zeros((3, geometry.groups, geometry.count))
    with np.errstate(all="ignore"):
        everything[2] = rows["gamma"] * rows["dy"]
    if not geometry.groups or saved.frozen:
        everything[0] = everything[2]
        for name in ("gamma", "dy"):
            everything[:, rows.bad[name]] = np.nan
    else:
        degenerate = rows.degenerate(saved.eps)
        if name == "reference":
            with np.errstate(all="ignore"):
                everything[0] = reference.project(reference.statistics(rows["x"], saved.eps), everything[2])
                everything[1] = everything[2] - everything[0]
        else:
            _split(rows, np.where(degenerate, 1.0, saved.eps), everything, enclose=name == "enclosure")
        rows.group(root=degenerate)
        for name in ("x", "gamma", "dy", "root"):
            everything[:, rows.bad[name].any(axis=1)] = np.nan
    passed, blocked, g = (np.ascontiguousarray(geometry.ungrouped(a)) for a in everything)
    return passed, blocked, g


def _split(rows: Rows, eps: Doubles, everything: Doubles, *, enclose: bool) -> None:
    """Fill in P g, g − P g and g."""
    groups, count = rows["x"].shape
    step = max(BLOCK // max(count, 1), 1)
    for start in range(0, groups, step):
        block = slice(start, start + step)
        with np.errstate(all="ignore"):
            _, x = pivoted(rows["x"][block])
            gamma, dy = (Ball.vectors(rows[name][block]) for name in ("gamma", "dy"))
            parts = _split_of(x, gamma * dy, Ball.numbers(eps[block]))
            rounded = [part.round(BINARY64) for part in parts]
        sure = np.full(rows["x"][block].shape, enclose)
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


def _textbook(question: Question, outputs: Outputs) -> dict[str, Doubles]:
    """Run `refbn.reference.normalization`, in binary64."""
    rows, state, geometry = question.rows, question.state, question.geometry
    if not geometry.groups:
        return {key: np.zeros((0, geometry.count) if key in TENSORS else out.size) for key, out in outputs.items()}
    with np.errstate(all="ignore"):
        stats = reference.statistics(rows["x"], state.eps)
        affine = reference.Affine(rows["gamma"], state.r[:, None], state.d[:, None])
        zeros = np.zeros(rows["x"].shape)
        x_dot, gamma_dot, beta_dot = (question.directions.get(name, zeros) for name in ("x", "gamma", "beta"))
        found: dict[str, Array] = stats._asdict()
        if question.order:
            found["value"] = reference.normalize_jvp(stats, affine, x_dot, gamma_dot, beta_dot)
        elif "beta" in rows:
            found["value"] = reference.normalize(stats, affine, rows["beta"])
        if question.wanted:
            dy = rows["dy"]
            if question.order:
                terms = reference.normalize_hvp(stats, affine, dy, x_dot, gamma_dot)
            else:
                terms = reference.normalize_backward(stats, affine, dy)
            found |= {"x": terms.x} | {
                key: total(geometry.by_affine(getattr(terms, key)))[:, 0] for key in ("gamma", "beta")
            }
    return {key: round_to(found[key] + 0.0, out.dtype).astype(np.float64) for key, out in outputs.items()}
