"""What a case's outputs must be: the exact values, how far off they may be, and where no number is due.

`evaluate` says which derivative of the forward program each operation asks for. It runs twice: over the oracle's exact
numbers, which gives the truth, and over `refbn.audit.budget.Running` numbers, which gives its bound.

**Where no real number is due.** An infinity or NaN in the inputs makes every output whose formula contains it
undefined (rule R1 of the backends' contract). Which ones these are follows from the program as well: in the second run
NaN spreads exactly as far. Either of infinity and NaN is then right, a number is not. A variance and ε that
are both zero (R2), the statistics of an empty batch, and the m − 1 variance of one element have no value that could be
asked for: any answer is *free* there, as long as other channels are not touched.

**Other norms.** A row is what one set of statistics runs over, a channel in batch norm. Where gamma is shared by
several rows, it is a vector of each, and its gradient is a sum over what each element scales: an exact number from
several fields (`refbn.exact.sums`).

**Empty batches.** Tensors are empty, gradients of parameters are empty sums and so zero, running statistics stay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY64, Format, load, round_to
from refbn._geometry import Geometry
from refbn.audit.adapters._protocol import Inputs
from refbn.audit.budget import SAFETY, Model, Running
from refbn.audit.cases import Case, make_inputs
from refbn.dialects import DIALECTS, Dialect, debiased_weight
from refbn.exact import program
from refbn.exact.derive import derivatives
from refbn.exact.numbers import Exact
from refbn.exact.program import Number
from refbn.exact.rounding import round_pairs
from refbn.exact.sums import Sum, pairs, rounded

__all__ = ["Conventions", "Expected", "alternatives", "evaluate", "expect", "expect_from", "has_samples"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T", bound=Number)

# Channels are the rows of all arrays here: tensors (C, m) and vectors (C,). In other norms the groups are, and what
# lies on gamma's axes is repeated to (G, m).
_TENSORS = ("x", "dy", "w", "x_dot")
_VECTORS = (
    "gamma",
    "beta",
    "gamma_dot",
    "beta_dot",
    "mean",
    "var",
    "mean_dot",
    "var_dot",
    "running_mean",
    "running_var",
)
# The power of x's unit in each quantity: BN(c·x; c²·ε) = BN(x; ε) gives the rest its unit.
_UNITS = {"x": 1, "x_dot": 1, "mean": 1, "mean_dot": 1, "running_mean": 1, "var": 2, "var_dot": 2, "running_var": 2}
_OUTPUT_UNITS = {
    "mean": 1,
    "var": 2,
    "invstd": -1,
    "dx": -1,
    "dmean": -1,
    "dvar": -2,
    "running_mean": 1,
    "running_var": 2,
}
_VECTOR_OUTPUTS = frozenset(
    ("mean", "var", "invstd", "dgamma", "dbeta", "dmean", "dvar", "running_mean", "running_var")
)
_SUMMED = frozenset(("dgamma", "dbeta", "dmean", "dvar"))
_STATISTICS = frozenset(("mean", "var", "invstd"))


def has_samples(name: str, norm: str) -> bool:
    """Whether an output's first axis is the samples'."""
    return name not in _VECTOR_OUTPUTS or (name in _STATISTICS and norm != "batch")


def _shape(case: Case, name: str) -> tuple[int, ...]:
    """Return an output's shape, of one repetition."""
    if name not in _VECTOR_OUTPUTS:
        return case.shape
    return case.geometry.group_shape if name in _STATISTICS else case.geometry.affine_shape


@dataclass(frozen=True, slots=True)
class Conventions:
    """What an adapter's truth depends on beside the case.

    Attributes
    ----------
    narrow_attributes : bool
        Whether ε and momentum are stored as binary32.
    weighs_new : bool
        Whether momentum is the weight of the new value.
    unbiased : bool
        Whether the running variance takes the batch's with m − 1.
    differentiates_statistics : bool
        Whether frozen statistics take part in derivatives.
    debiased : bool
        Whether the running statistics are divided by the sum of their weights.
    """

    narrow_attributes: bool
    weighs_new: bool
    unbiased: bool
    differentiates_statistics: bool
    debiased: bool = False

    @classmethod
    def of(cls, dialect: Dialect, differentiates_statistics: bool) -> Conventions:
        """Return those of a dialect."""
        return cls(
            narrow_attributes=dialect.attribute_format == "float32",
            weighs_new=dialect.momentum_weighs == "new",
            unbiased=dialect.unbiased_running_var,
            differentiates_statistics=differentiates_statistics,
            debiased=dialect.debiased,
        )

    def attribute(self, value: float) -> Fraction:
        """Return ε or momentum as it is stored."""
        return Fraction(float(np.float32(value)) if self.narrow_attributes else value)

    def weight(self, momentum: float | None, step: int) -> Fraction:
        """Return the weight of the new value in one update; ``None`` is the cumulative average."""
        if momentum is None:
            return Fraction(1, step)
        weight = self.attribute(momentum)
        if self.debiased:
            return debiased_weight(weight, step)
        return weight if self.weighs_new else 1 - weight

    def relevant(self, case: Case) -> Conventions:
        """Return the same conventions for everything that does not touch the case."""
        stateful = case.operation in ("running", "train_eval_train")
        return dataclasses.replace(
            self,
            weighs_new=self.weighs_new or not stateful,
            unbiased=self.unbiased or not stateful,
            debiased=self.debiased and stateful,
            differentiates_statistics=self.differentiates_statistics and case.op.frozen,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """The truth of one output, for one period of a repeated case.

    Attributes
    ----------
    name : str
        The output.
    form, param_form : Format
        The formats of the case's tensors and of its parameters.
    geometry : Geometry
        The split of one repetition's axes.
    full_shape : tuple of int
        The shape that the output must have, repetitions included.
    exact : tuple of Exact or Sum
        The exact values of one repetition, a vector or a number for each row; of a gradient that several rows add to, a
        number for each element.
    factor : int
        The power of two that they are to be multiplied by: the repetitions that a sum runs over.
    high, low : ndarray
        Their binary64 approximation high + low, in the output's shape.
    bound : ndarray
        What a competent implementation may be off before it stores the result.
    size : ndarray
        The size of the terms, see `refbn.audit.budget`.
    nonfinite, free : ndarray of bool
        Where infinity or NaN is due, and where anything is right.
    no_rounding : bool
        Whether no competent implementation rounds before it stores the result.
    stays : bool
        Whether the output is kept from call to call, so that even where anything is right it must be a number: NaN
        would never leave it.
    """

    name: str
    form: Format
    param_form: Format
    geometry: Geometry
    full_shape: tuple[int, ...]
    exact: tuple[Exact | Sum, ...]
    factor: int
    high: Doubles
    low: Doubles
    bound: Doubles
    size: Doubles
    nonfinite: Mask
    free: Mask
    no_rounding: bool
    stays: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether the output is a statistic or belongs to a parameter: one value for each channel in batch norm."""
        return self.name in _VECTOR_OUTPUTS

    def output_format(self, came: Format) -> Format:
        """Return the format to judge by: the one that the output should have, or a narrower one of an input's.

        A wider one is allowed, and is judged as if it had been rounded. One narrower than all inputs' is not.
        """
        due = self.param_form if self.is_vector else self.form
        narrowest = min(self.form, self.param_form, key=lambda f: f.precision)
        return came if narrowest.precision <= came.precision <= due.precision else due

    def rounded(self, form: Format) -> Doubles:
        """Return the exact values correctly rounded to a format, as binary64, NaN where infinity or NaN is due."""
        return _rounded(self, form)

    def limit(self, form: Format) -> Doubles:
        """Return the bound of the error, the rounding of the output included."""
        rounded = self.rounded(form)
        if self.no_rounding:
            return np.abs((rounded - self.high) - self.low)
        _, exponent = np.frexp(self.high)
        half_ulp = np.ldexp(0.5, np.clip(exponent - 1, form.emin, form.emax) - form.precision + 1)
        return np.asarray(SAFETY * self.bound + half_ulp)

    def channel_max(self, values: Doubles) -> Doubles:
        """Return the largest value of each channel, or group, ready to be broadcast against an output."""
        if self.is_vector or values.size == 0:
            return values
        rows = self.geometry.grouped(values)
        return self.geometry.ungrouped(np.broadcast_to(rows.max(axis=1, keepdims=True), rows.shape))


@lru_cache(maxsize=256)
def _rounded(expected: Expected, form: Format) -> Doubles:
    if expected.high.size == 0:
        return expected.high
    values = _assemble([rounded(row, form) for row in expected.exact], expected.high.shape, expected.geometry)
    if expected.factor > 1:  # a power of two: only the range needs a second look
        values = round_to(values * expected.factor, form.dtype).astype(np.float64)
    return np.where(expected.nonfinite | (expected.free & (not expected.stays)), np.nan, values)


def expect(case: Case, conventions: Conventions) -> dict[str, Expected]:
    """Return the truth of every output of a case's operation."""
    return _expect(dataclasses.replace(case, check=""), conventions.relevant(case))


def alternatives(case: Case, output: str, conventions: Conventions, far_off: bool) -> Iterator[tuple[str, Expected]]:
    """Yield the truth of an output under other named conventions, each with a phrase that names it.

    Parameters
    ----------
    case, output, conventions
        What was asked, and what the adapter declares.
    far_off : bool
        Whether the result is off by more than a convention about the last digits could explain.
    """
    if output in ("var", "invstd"):
        for name, expected in _statistics_by_name(case, expect(case, conventions)):
            if name != output:
                yield f"{name} in place of {output}", expected
    changes: list[dict[str, bool]] = []
    if output in ("running_mean", "running_var", "y_eval"):
        flips = [
            {"unbiased": not conventions.unbiased},
            {"weighs_new": not conventions.weighs_new},
            {"debiased": not conventions.debiased},
            {"narrow_attributes": not conventions.narrow_attributes},
        ]
        changes += flips + [{**a, **b} for i, a in enumerate(flips) for b in flips[i + 1 :]]
    elif not far_off:
        changes.append({"narrow_attributes": not conventions.narrow_attributes})
    for change in changes:
        other = dataclasses.replace(conventions, **change)
        if other.relevant(case) == conventions.relevant(case):
            continue
        yield f"{output} {_phrase(change)}", expect(case, other)[output]


def _phrase(change: Mapping[str, bool]) -> str:
    words = {
        ("unbiased", True): "with m − 1",
        ("unbiased", False): "with m",
        ("weighs_new", True): "with momentum weighing the new value",
        ("weighs_new", False): "with momentum weighing the old value",
        ("debiased", True): "debiased, so that the start has no weight",
        ("debiased", False): "with the weight that the start has in a plain average",
        ("narrow_attributes", True): "with attributes stored as binary32",
        ("narrow_attributes", False): "with attributes stored as binary64",
    }
    parts = []
    for field, value in change.items():
        sharing = [d.name for d in DIALECTS.values() if getattr(Conventions.of(d, False), field) is value]
        parts.append(f"{words[field, value]}: {', '.join(sharing)} dialect{'s' if len(sharing) > 1 else ''}")
    return "; ".join(parts)


# ---- the definition of each operation ------------------------------------------------------------------------------


def evaluate(
    operation: str,
    frozen: bool,
    composition: str,
    values: Mapping[str, T],
    eps: Fraction,
    one: T,
    differentiates_statistics: bool,
    stores: bool,
) -> dict[str, T | None]:
    """Return the outputs of one operation that keeps no state; None is a structural zero.

    Parameters
    ----------
    operation, frozen, composition
        As in `Operation`.
    values : mapping
        The inputs by name, numbers and vectors of any kind.
    eps : Fraction
        ε.
    one : T
        The number 1. With an error bound it stands for one rounding: multiplying by it rounds a value, and on the way
        back its cotangent.
    differentiates_statistics : bool
        Whether frozen mean and var move along their directions.
    stores : bool
        Whether y passes through ``one`` in compositions.
    """
    names = ("x", "gamma", "beta", "mean", "var") if frozen else ("x", "gamma", "beta")
    point = {name: values[name] for name in names}
    definition = program.frozen if frozen else program.batch_norm
    if composition == "":
        y = definition(**point, eps=eps)
        if frozen:
            return {"y": y}
        mean, _, var = program.moments(values["x"])
        return {"y": y, "mean": mean, "var": var, "invstd": program.invstd(var, eps)}
    given: dict[str, T | Fraction] = {**point, "eps": eps}
    if operation.startswith("vjp"):
        found = derivatives(definition, given, cotangent=values["dy"], wanted=names)
        return {f"d{name}": found.gradient[name] for name in names}
    directions = {name: values[f"{name}_dot"] for name in (names if differentiates_statistics else names[:3])}
    if operation.startswith("jvp"):
        return {"y_dot": derivatives(definition, given, order=1, directions=directions).value}

    def composed(w: T, one: T, **inputs: T) -> T:
        y = definition(**inputs)
        return program.cubic(y * one if stores else y) * w

    inputs: dict[str, T | Fraction] = {**given, "w": values["w"], "one": one}
    modes = composition.split("-")
    if "rev" not in modes:
        return {"value": derivatives(composed, inputs, order=len(modes), directions=directions).value}
    found = derivatives(composed, inputs, order=len(modes) - 1, directions=directions, cotangent=one, wanted=names)
    return {f"d{name}": found.gradient[name] for name in names}


def _updated(old: tuple[T, T], batch: T, count: int, weight: Fraction, unbiased: bool) -> tuple[T, T]:
    """Return the running mean and variance after one batch."""
    mean, _, var = program.moments(batch)
    if unbiased and count > 1:
        var = program.unbiased(var, count)
    return program.blend(old[0], mean, weight), program.blend(old[1], var, weight)


def _stateful(
    operation: str,
    values: Mapping[str, T],
    batches: list[T],
    count: int,
    eps: Fraction,
    momentum: float | None,
    conventions: Conventions,
    store: Callable[[T], T],
) -> dict[str, T | None]:
    """Return the outputs of an operation that keeps state; `store` keeps a number from one batch to the next."""
    running = values["running_mean"], values["running_var"]
    trained = batches if operation == "running" else batches[:1]
    for step, batch in enumerate(trained, start=1):
        mean, var = _updated(running, batch, count, conventions.weight(momentum, step), conventions.unbiased)
        running = store(mean), store(var)
    if operation == "running":
        return {"running_mean": running[0], "running_var": running[1]}
    gamma, beta = values["gamma"], values["beta"]
    y = program.batch_norm(batches[0], gamma, beta, eps)
    return {"y_train": y, "y_eval": program.frozen(batches[1], *running, gamma, beta, eps), "y_again": y}


# ---- both runs, and their results side by side ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """The inputs with channels (or groups) as rows, in binary64, infinities as NaN; and which of them are special."""

    values: dict[str, Doubles]
    batches: list[Doubles]
    tainted: Mask
    """Channels with an infinity or NaN in an input."""
    singular: Mask
    """Channels in which variance + ε is zero."""


def _rows(case: Case, inputs: Inputs, eps: Fraction) -> _Rows:
    geometry = case.geometry

    def tensor(array: Array) -> Doubles:
        return geometry.grouped(load(array[: case.shape[0]]))

    values = {name: tensor(getattr(inputs, name)) for name in _TENSORS}
    if geometry.channelwise:
        values |= {name: load(getattr(inputs, name)) for name in _VECTORS}
    else:
        values |= {n: geometry.rows(geometry.spread(load(getattr(inputs, n)))) for n in _VECTORS[:4]}
    batches = [tensor(batch) for batch in inputs.batches]
    tainted = np.zeros(geometry.groups, bool)
    for array in (*values.values(), *batches):
        tainted |= np.isnan(array).any(axis=tuple(range(1, array.ndim)))
    singular = np.zeros(geometry.groups, bool)
    if eps == 0:
        singular = values["var"] == 0 if case.op.frozen else (values["x"] == values["x"][:, :1]).all(axis=1)
    return _Rows(values, batches, tainted, singular)


@lru_cache(maxsize=64)
def _expect(case: Case, conventions: Conventions) -> dict[str, Expected]:
    return expect_from(case, make_inputs(case), conventions)


def expect_from(case: Case, inputs: Inputs, conventions: Conventions) -> dict[str, Expected]:
    """Return the truth for given inputs; they need not be the case's own, but of its shape, formats and ε."""
    eps = conventions.attribute(case.eps)
    rows = _rows(case, inputs, eps)
    if not case.op.frozen and 0 in case.shape:
        return _of_nothing(case, rows)
    exact = _exactly(case, rows, eps, conventions)
    measured = _running(case, rows, eps, conventions, centred=False)
    centred = _running(case, rows, eps, conventions, centred=True)
    found = {name: _side_by_side(case, rows, name, exact[name], measured[name], centred[name]) for name in exact}
    if "running_var" in found and case.count == 1 and conventions.unbiased:  # 0·∞: there is no such variance
        found["running_var"] = dataclasses.replace(found["running_var"], free=~rows.tainted, stays=True)
    return found


def _exactly(
    case: Case, rows: _Rows, eps: Fraction, conventions: Conventions
) -> dict[str, tuple[Exact, ...] | tuple[Sum, ...]]:
    """Run the definition over exact numbers, row by row.

    Values that are not finite stand as 0, and ε is 1 where it and a variance are both zero: what comes out is masked.
    """
    columns: dict[str, list[Exact]] = {}
    shared = not case.geometry.channelwise
    asked = {name: _exact_rows(rows.values[name]) for name in dict.fromkeys((*case.op.arrays, "x"))}
    asked_batches = [_exact_rows(batch) for batch in rows.batches]
    for channel in range(len(rows.values["x"])):
        values = {name: numbers[channel] for name, numbers in asked.items()}
        batches = [numbers[channel] for numbers in asked_batches]
        own_eps = Fraction(1) if rows.singular[channel] else eps
        found: dict[str, Exact | None]
        if case.op.composition == "" and case.operation not in ("forward", "inference"):
            found = _stateful(
                case.operation, values, batches, case.count, eps, case.momentum, conventions, lambda number: number
            )
        else:
            found = evaluate(
                case.operation,
                case.op.frozen,
                case.op.composition,
                values,
                own_eps,
                Exact.number(1),
                conventions.differentiates_statistics,
                False,
            )
        for name, number in found.items():
            number_due = name in _VECTOR_OUTPUTS and not (shared and name in _SUMMED)
            length = None if number_due else rows.values["x"].shape[1]
            columns.setdefault(name, []).append(Exact.zeros(length) if number is None else number)
    return {
        name: _sums(case.geometry, column) if shared and name in _SUMMED else tuple(column)
        for name, column in columns.items()
    }


def _sums(geometry: Geometry, rows: list[Exact]) -> tuple[Sum, ...]:
    """Return, for each element of gamma, the sum over what it scales."""
    return tuple(
        Sum(tuple(rows[group].taken(places).sum() for group, places in scaled.items())) for scaled in geometry.scaled()
    )


def _running(
    case: Case, rows: _Rows, eps: Fraction, conventions: Conventions, centred: bool
) -> dict[str, tuple[Doubles, Doubles, Doubles]]:
    """Run the definition over numbers with errors, all channels at once; return value, error and size.

    With ``centred`` the mean is subtracted from the data first: BN does not see it, and sizes must not.
    """
    model = Model.of(case.format, case.count)
    values, batches = dict(rows.values), list(rows.batches)
    values["x"] = np.where(rows.singular[:, None], 0.0, values["x"])
    if centred:
        shift = values["mean"] if case.op.frozen else _row_means(values["x"])
        values["x"] = values["x"] - shift[:, None]
        if "mean" in values:
            values["mean"] = values["mean"] - shift
        batches = [batch - _row_means(batch)[:, None] for batch in batches]
    # B5: data of another magnitude are scaled by a power of two, which changes no digit.
    exponent = 0
    if case.format is BINARY64 and (reach := _exponent(values["x"])) is not None and abs(reach) > 200:
        exponent = reach
        for name in _UNITS.keys() & values.keys():
            values[name] = np.ldexp(values[name], -exponent * _UNITS[name])
        batches = [np.ldexp(batch, -exponent) for batch in batches]
        eps = eps * Fraction(4) ** -exponent
    numbers = {name: Running.given(model, array) for name, array in values.items()}
    found: dict[str, Running | None]
    with np.errstate(all="ignore"):
        if case.op.composition == "" and case.operation not in ("forward", "inference"):
            found = _stateful(
                case.operation,
                numbers,
                [Running.given(model, batch) for batch in batches],
                case.count,
                eps,
                case.momentum,
                conventions,
                lambda number: number.stored(case.param_format.unit_roundoff),
            )
        else:
            one = Running.given(model, np.ones(len(rows.values["x"])))
            rounding_one = one.stored(case.format.unit_roundoff)
            stores = case.format.unit_roundoff > model.u
            found = evaluate(
                case.operation,
                case.op.frozen,
                case.op.composition,
                numbers,
                eps,
                rounding_one if stores else one,
                conventions.differentiates_statistics,
                stores,
            )
    shape = rows.values["x"].shape
    results = {}
    for name, number in found.items():
        if number is not None and name in _SUMMED and not case.geometry.channelwise:
            number = _running_sums(case, number)
        if number is None:
            zero = np.zeros((math.prod(_shape(case, name)), 1) if name in _VECTOR_OUTPUTS else shape)
            results[name] = (zero, zero, zero)
        else:
            back = exponent * _OUTPUT_UNITS.get(name, 0)
            with np.errstate(over="ignore", under="ignore"):
                results[name] = (
                    np.ldexp(number.value, back),
                    np.ldexp(number.error, back),
                    np.ldexp(number.size, back),
                )
    return results


def _running_sums(case: Case, rows: Running) -> Running:
    """Return, for each element of gamma, the sum over what it scales."""
    geometry = case.geometry
    whole = (geometry.groups, geometry.count)
    value, error, size = (
        geometry.by_affine(np.broadcast_to(part, whole)) for part in (rows.value, rows.error, rows.size)
    )
    count = value.shape[1]
    return Running(Model.of(case.format, count * case.repeat), value, error, size, count).sum()


def _side_by_side(
    case: Case,
    rows: _Rows,
    name: str,
    exact: tuple[Exact, ...] | tuple[Sum, ...],
    measured: tuple[Doubles, Doubles, Doubles],
    centred: tuple[Doubles, Doubles, Doubles],
) -> Expected:
    geometry, shape = case.geometry, _shape(case, name)
    summed = name in _SUMMED
    factor = case.repeat if summed else 1
    full_shape = (shape[0] * case.repeat, *shape[1:]) if has_samples(name, case.norm) else shape

    def assemble(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return _assemble(list(parts), shape, geometry)

    def of_rows(mask: Mask) -> Mask:
        """Return where an output contains a row that a mask has."""
        if summed and not geometry.channelwise:
            scaled = np.broadcast_to(mask[:, None], (geometry.groups, geometry.count))
            return assemble(np.asarray(geometry.by_affine(scaled).any(axis=1, keepdims=True)))
        return assemble(np.broadcast_to(mask[:, None], measured[0].shape))

    lost = assemble(np.isnan(measured[0]))
    tainted, singular = of_rows(rows.tainted), of_rows(rows.singular)
    both = [pairs(row) for row in exact]
    bound, size = (assemble(part) * factor for part in (measured[1], centred[2]))
    free = ~np.isfinite(assemble(measured[0])) & singular & ~tainted
    if case.operation == "forward" and name in ("mean", "var") and rows.singular.any():
        # The second run has seen zeros here. A mean may be an ulp or two off the constant, a variance that squared.
        means = np.abs(_row_means(rows.values["x"]))[:, None]
        slack = assemble(2 * Model.of(case.format, case.count).u * means)
        bound = np.where(singular, slack if name == "mean" else slack * slack, bound)
    return Expected(
        name=name,
        form=case.format,
        param_form=case.param_format,
        geometry=geometry,
        full_shape=full_shape,
        exact=exact,
        factor=factor,
        high=assemble(high for high, _ in both) * factor,
        low=assemble(low for _, low in both) * factor,
        bound=np.where(np.isnan(bound), np.inf, bound),
        size=size,
        nonfinite=lost & tainted,
        free=free,
        no_rounding=case.data == "integers"
        and name in ("mean", "var")
        and (case.offset, case.scale) == (0.0, 1.0)
        and case.count & (case.count - 1) == 0,
    )


def _of_nothing(case: Case, rows: _Rows) -> dict[str, Expected]:
    """The outputs of training on an empty batch, which has no statistics."""
    truths = {}
    for name in case.op.outputs:
        shape = _shape(case, name)
        value = rows.values[name] if name in rows.values and name.startswith("running") else np.zeros(shape)
        exact = tuple(_exact_rows(value.ravel()))
        truths[name] = Expected(
            name=name,
            form=case.format,
            param_form=case.param_format,
            geometry=case.geometry,
            full_shape=(shape[0] * case.repeat, *shape[1:]) if has_samples(name, case.norm) else shape,
            exact=exact,
            factor=1,
            high=value,
            low=np.zeros(shape),
            bound=np.zeros(shape),
            size=np.abs(value),
            nonfinite=np.zeros(shape, bool),
            free=np.full(shape, name in ("mean", "var", "invstd")),
            no_rounding=False,
        )
    return truths


def _statistics_by_name(case: Case, truth: Mapping[str, Expected]) -> Iterator[tuple[str, Expected]]:
    """Yield what frameworks hand out under the names var and invstd."""
    var = truth["var"]
    yield "var", var
    yield "invstd", truth["invstd"]
    if case.count > 1:
        factor = Fraction(case.count, case.count - 1)
        exact = tuple(program.unbiased(row, case.count) for row in var.exact if not isinstance(row, Sum))
        both = [round_pairs(row) for row in exact]
        yield (
            "the variance with m − 1",
            dataclasses.replace(
                var,
                exact=exact,
                high=_assemble([high for high, _ in both], var.high.shape, var.geometry),
                low=_assemble([low for _, low in both], var.high.shape, var.geometry),
                bound=(var.bound + Model.of(case.format, 1).u * np.abs(var.high)) * float(factor),
                no_rounding=False,
            ),
        )


# ---- helpers -------------------------------------------------------------------------------------------------------


def _exact_rows(array: Doubles) -> list[Exact]:
    """Return each row of a matrix as an exact vector, each value of a vector as an exact number.

    What is not finite becomes 0.
    """
    mantissas, exponents = np.frexp(np.where(np.isfinite(array), array, 0.0))
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    exponents = np.where(integers == 0, 0, exponents.astype(np.int64) - 53)
    if array.ndim == 1:
        return [Exact.number(i * Fraction(2) ** e) for i, e in zip(integers.tolist(), exponents.tolist(), strict=True)]
    lowest = exponents.min(axis=1, initial=0)
    shifts = (exponents - lowest[:, None]).tolist()
    return [
        Exact.vector([i << e for i, e in zip(row, shift, strict=True)], Fraction(2) ** low)
        for row, shift, low in zip(integers.tolist(), shifts, lowest.tolist(), strict=True)
    ]


def _assemble(parts: list[npt.NDArray[Any]], shape: tuple[int, ...], geometry: Geometry) -> npt.NDArray[Any]:
    """Return rows, or one value of each, or of each element of gamma, in an output's shape."""
    rows = np.stack([np.atleast_1d(part) for part in parts])
    return np.ascontiguousarray(geometry.ungrouped(rows)) if shape == geometry.shape else rows.reshape(shape)


def _row_means(rows: Doubles) -> Doubles:
    if rows.shape[1] == 0:
        return np.zeros(len(rows))
    first = np.where(np.isfinite(rows[:, :1]), rows[:, :1], 0.0)  # what makes the mean of a constant exact
    return np.asarray((first + (rows - first).mean(axis=1, keepdims=True))[:, 0])


def _exponent(rows: Doubles) -> int | None:
    """Return the exponent of the largest finite magnitude, None if there is none."""
    finite = np.abs(rows[np.isfinite(rows)])
    largest = finite.max(initial=0.0)
    return math.frexp(largest)[1] if largest else None
