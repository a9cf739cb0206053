"""Hypothesis strategies for batch-norm inputs.

They vary what changes the arithmetic: sizes from one element up, memory layouts, the format, offset over standard
deviation, constant channels, few distinct values (ties), outliers, wide exponents, ε = 0.

`problems` draws arrays, for properties of your own. `cases` draws cases of the audit by their descriptors, which shrink
to a line that can be kept; `inputs` draws their inputs::

    @given(refbn.testing.strategies.cases(operations=["vjp"], dtypes=["f32"]))
    def test_backward(case):
        i = refbn.testing.make_inputs(case)
        refbn.testing.assert_accurate(my_backward(i.x, i.gamma, i.beta, i.eps, i.dy), case)

Importing this module registers `Problem`, `Case` and `Inputs`, so that ``st.from_type`` and ``st.builds`` know them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refbn._errors import DomainError
from refbn._formats import FORMATS, Format, round_to
from refbn._types import Array
from refbn.audit.adapters._protocol import OPERATIONS, Inputs
from refbn.audit.cases import DATA, Case, make_inputs
from refbn.audit.cases import LAYOUTS as CASE_LAYOUTS

__all__ = ["LAYOUTS", "Problem", "cases", "in_layout", "inputs", "problems", "tensors"]

LAYOUTS = ("contiguous", "channels_last", "sliced", "reversed", "transposed")
_KINDS = ("normal", "offset", "constant", "few_values", "outlier", "wide")


@dataclass(frozen=True)
class Problem:
    """One batch-norm problem; channels lie on axis 1.

    Attributes
    ----------
    x, dy, ddx : ndarray, shape (N, C, …)
        Input, output cotangent, direction.
    gamma, beta, ddgamma, ddbeta, mean, var : ndarray, shape (C,)
        Parameters, their directions, and statistics for inference.
    eps : float
        ε.
    """

    x: Array
    dy: Array
    ddx: Array
    gamma: Array
    beta: Array
    ddgamma: Array
    ddbeta: Array
    mean: Array
    var: Array
    eps: float

    def converted(self, array: Callable[[Array], Any]) -> Problem:
        """Return the same with all arrays made by a function from ndarrays, such as ``torch.from_numpy``."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "eps"}
        return Problem(**{name: array(value) for name, value in fields.items()}, eps=self.eps)


def in_layout(array: Array, layout: str) -> Array:
    """Return equal values in memory of the given layout, one of `LAYOUTS`."""
    if layout == "contiguous":
        return np.ascontiguousarray(array)
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if layout == "transposed":
        return np.asfortranarray(array)
    step = {"sliced": 2, "reversed": -1}[layout]
    wide = np.zeros(tuple(n * abs(step) for n in array.shape), array.dtype)
    view = wide[(slice(None, None, step),) * array.ndim]
    view[...] = array
    return view


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], fmt: Format, kinds: Sequence[str] = _KINDS) -> Array:
    """Draw a tensor whose channels (axis 1) are each of one of the kinds."""
    # bytes, since integers lean towards 0 and would repeat the values
    rng = np.random.default_rng(list(draw(st.binary(min_size=8, max_size=8))))
    values = rng.standard_normal(shape)
    channels = np.moveaxis(values, 1, 0)
    for c in range(shape[1]):
        kind = draw(st.sampled_from(kinds))
        scale = 2.0 ** draw(st.integers(-8, 4))
        if kind == "offset":
            channels[c] += 10.0 ** draw(st.integers(1, 3 if fmt.precision <= 11 else 6))
        elif kind == "constant":
            channels[c] = rng.standard_normal()
        elif kind == "few_values":
            channels[c] = rng.integers(-2, 3, channels[c].shape)
        elif kind == "outlier":
            channels[c].flat[draw(st.integers(0, max(channels[c].size - 1, 0)))] *= 2.0**7
        elif kind == "wide":
            channels[c] *= 2.0 ** rng.integers(-6, 7, channels[c].shape)
        channels[c] *= scale
    return round_to(values, fmt.dtype)


@st.composite
def problems(
    draw: st.DrawFn,
    formats: Sequence[Format] = FORMATS,
    layouts: Sequence[str] = LAYOUTS,
    max_side: int = 5,
) -> Problem:
    """Draw a whole problem: shapes of 2 to 5 axes, parameters of x's format or a wider one."""
    fmt = draw(st.sampled_from(formats))
    wider = [f for f in formats if f.precision >= fmt.precision and f.emax >= fmt.emax]
    parameter_format = draw(st.sampled_from(wider))
    spatial = draw(st.lists(st.integers(1, max_side), max_size=3))
    shape = (draw(st.integers(1, max_side)), draw(st.integers(1, 4)), *spatial)
    layout = st.sampled_from(layouts)

    def tensor() -> Any:
        return in_layout(draw(tensors(shape, fmt)), draw(layout))

    def vector(kinds: Sequence[str] = ("normal", "few_values")) -> Array:
        return np.ascontiguousarray(draw(tensors((1, shape[1]), parameter_format, kinds))[0])

    return Problem(
        x=tensor(),
        dy=tensor(),
        ddx=tensor(),
        gamma=vector(),
        beta=vector(),
        ddgamma=vector(),
        ddbeta=vector(),
        mean=vector(),
        var=np.abs(vector(("normal",))),
        eps=draw(st.sampled_from((0.0, 1e-12, 1e-5, 1e-3, 1.0))),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    operations: Sequence[str] = tuple(OPERATIONS),
    dtypes: Sequence[str] = tuple(f.short for f in FORMATS),
    layouts: Sequence[str] = tuple(CASE_LAYOUTS),
    max_side: int = 5,
    empty: bool = False,
) -> Case:
    """Draw a case of the audit. It shrinks to few samples of plain data in a plain layout.

    Parameters
    ----------
    operations, dtypes, layouts : sequence of str
        What to choose from.
    max_side : int
        The largest size of an axis; the batch may be three times as large.
    empty : bool
        Whether batches without a sample are drawn.
    """
    formats = {name: f for f in FORMATS for name in (f.short, f.name)}
    if unknown := [name for name in dtypes if name not in formats]:
        raise DomainError(f"dtypes: {unknown[0]!r}, expected some of {', '.join(formats)}", argument="dtypes")
    fmt = formats[draw(st.sampled_from(dtypes))]
    wide = [f.short for f in FORMATS if f.precision >= fmt.precision and f.emax >= fmt.emax]
    wide = [name for name in wide if name in {formats[d].short for d in dtypes}] or [fmt.short]
    shape = (
        draw(st.integers(0 if empty else 1, 3 * max_side)),
        draw(st.integers(1, 4)),
        *draw(st.lists(st.integers(1, max_side), max_size=3)),
    )
    # Powers of two: descriptors stay short, and x² stays within the format.
    reach = fmt.emax // 4
    return Case(
        "composition",
        draw(st.sampled_from(operations)),
        fmt.short,
        shape,
        param=draw(st.sampled_from(wide)),
        data=draw(st.sampled_from(tuple(DATA))),
        offset=draw(st.sampled_from((0.0, 1.0, -16.0, 2.0 ** (fmt.precision // 2)))),
        scale=2.0 ** draw(st.sampled_from((0, 1, -3, reach, -reach))),
        dy=draw(st.sampled_from(("normal", "constant", "like-x"))),
        layout=draw(st.sampled_from(layouts)),
        eps=draw(st.sampled_from((1e-5, 1e-3, 0.5, 1e-12))),
        momentum=draw(st.sampled_from((0.1, 0.5, 0.0, 1.0))),
        steps=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**16)),
    )


def inputs(**options: Any) -> st.SearchStrategy[Inputs]:
    """Draw the inputs of a case; the options are those of `cases`."""
    return cases(**options).map(make_inputs)


st.register_type_strategy(Problem, problems())
st.register_type_strategy(Case, cases())
st.register_type_strategy(Inputs, inputs())
