"""`assert_accurate`: results against exact values, by the bound of a competent implementation, and what it says then.

What is exact may be told in several ways, each a row of `assert_accurate`'s table. All become the audit's `Expected`
values, so the comparison and the bound are the audit's (`refbn.audit.compare`, `refbn.audit.budget`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _validate
from refbn._errors import DomainError, ShapeError
from refbn._formats import Format, format_of
from refbn._geometry import batch_norm
from refbn._types import Forward
from refbn.audit import cases as audit_cases
from refbn.audit import truth as audit_truth
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs
from refbn.audit.cases import Case, parse
from refbn.audit.compare import Comparison, Verdict, compare
from refbn.audit.truth import Conventions, Expected
from refbn.dialects import Dialect
from refbn.exact.arrays import numbers, vectors
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_pairs
from refbn.testing.hexfloat import to_hex
from refbn.testing.pattern import pattern

__all__ = ["PASSED", "TRACE", "Truth", "assert_accurate", "describe", "make_inputs", "truth"]

Doubles = npt.NDArray[np.float64]

PASSED: tuple[Verdict, ...] = ("exact", "accurate", "dialect", "unsupported")
"""The verdicts that are within the bound, or about another question."""


TRACE = "trace  "
"""Begins the line that says what an error looks like."""


@dataclass(frozen=True, eq=False)
class Truth(Mapping[str, Expected]):
    """The exact values of one operation on given inputs: a mapping from the outputs' names.

    Attributes
    ----------
    case : Case
        The operation, shape, formats and ε; of a case of the audit, its descriptor.
    inputs : Inputs
        What the operation is run on.
    given : bool
        Whether the inputs were handed in, so that the descriptor does not repeat them.
    outputs : dict
        The exact values.
    """

    case: Case
    inputs: Inputs
    given: bool
    outputs: dict[str, Expected]

    def __getitem__(self, name: str) -> Expected:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


def truth(operation: str, *, eps: float = 1e-5, dialect: str | Dialect = "torch", **arrays: Any) -> Truth:
    """Return the exact outputs of an operation on your own arrays, with their bounds, for `assert_accurate`.

    Parameters
    ----------
    operation : str
        As in the audit: ``"forward"``, ``"vjp"`` (backward), ``"jvp"``, ``"inference"``, ``"vjp_eval"``, ``"rev_rev"``
        and so on (`refbn.audit.adapters._protocol.OPERATIONS`).
    eps : float
        ε.
    dialect : str or Dialect
        Whose conventions hold for running statistics and for how ε is stored.
    **arrays
        Of the names of `Inputs`, channels on axis 1: x, always; gamma and beta, by default ones and zeros; dy, x_dot,
        gamma_dot, …, mean and var as the operation needs them, directions by default zeros; for ``"running"`` also
        ``momentum``, and ``x`` is the one training batch.

    Returns
    -------
    Truth

    Raises
    ------
    DomainError
        If the operation is unknown, or an array that it needs is missing.
    """
    if operation not in OPERATIONS:
        raise DomainError(f"operation: {operation!r}, expected one of {', '.join(OPERATIONS)}", argument="operation")
    momentum = arrays.pop("momentum", 0.1)
    op = OPERATIONS[operation]
    needed = ["x", *(("mean", "var") if op.frozen else ())]
    needed += ["dy"] if operation.startswith("vjp") else []
    needed += ["x_dot"] if "fwd" in op.composition or op.composition.count("rev") > 1 else []
    needed += ["w"] if op.composition and not operation.startswith(("vjp", "jvp")) else []
    needed += ["running_mean", "running_var"] if operation == "running" else []
    fields = [f.name for f in dataclasses.fields(Inputs) if f.name not in ("eps", "momentum", "batches")]
    if missing := [name for name in needed if arrays.get(name) is None]:
        raise DomainError(f"{missing[0]}: missing, {operation} needs {', '.join(needed)}", argument=missing[0])
    if unknown := [name for name in arrays if name not in fields]:
        raise DomainError(f"{unknown[0]}: expected one of {', '.join(fields)}", argument=unknown[0])
    if operation == "train_eval_train":
        raise DomainError("operation: train_eval_train sees two batches; ask for its parts", argument="operation")
    found: dict[str, Any] = {name: _validate.array(value, name) for name, value in arrays.items() if value is not None}
    x = found["x"]
    if x.ndim < 2:
        raise ShapeError(f"x: {x.ndim} axes, expected at least 2", argument="x")
    channels = x.shape[1:2]
    param = next((found[name].dtype for name in ("gamma", "beta", "mean", "running_mean") if name in found), x.dtype)
    for name in fields:
        tensor = name in ("x", "dy", "w", "x_dot")
        shape = x.shape if tensor else channels
        if name not in found:
            value = 1.0 if name in ("gamma", "var", "running_var") else 0.0
            found[name] = np.full(shape, value).astype(x.dtype if tensor else param)
        elif found[name].shape != shape:
            raise ShapeError(f"{name}: shape {found[name].shape}, expected {shape}", argument=name)
    inputs = Inputs(**found, eps=eps, momentum=momentum, batches=(x,))
    case = Case(
        "types",
        operation,
        format_of(x.dtype).short,
        x.shape,
        param=format_of(param).short,
        eps=float(eps),
        momentum=momentum,
    )
    conventions = Conventions.of(_validate.dialect(dialect), True)
    return Truth(case, inputs, True, audit_truth.expect_from(case, inputs, conventions))


def make_inputs(case: Case | str) -> Inputs:
    """Return the inputs of a case of the audit, as NumPy arrays with the channels on axis 1.

    Parameters
    ----------
    case : Case or str
        The case, or its descriptor, as it stands in the id of a test.
    """
    return audit_cases.make_inputs(parse(case) if isinstance(case, str) else case)


def assert_accurate(
    actual: Any,
    exact: Any,
    *,
    bound: Any = None,
    ulps: float | None = None,
    output: str | None = None,
    channel_axis: int = 1,
    dialect: str | Dialect = "torch",
    lossy_ok: bool = False,
) -> None:
    """Assert that results are as accurate as a competent implementation in the same format makes them.

    Parameters
    ----------
    actual : array, mapping or object
        One output; or several by name, as a mapping or as attributes (a result of refbn, say). Arrays of any kind that
        `refbn.forward` takes. Names that the exact side does not have are refused; not all that it has need be there.
    exact
        ====================================  =============================================================
        `Truth`, from `truth`                 the exact results of your own inputs, with the audit's bound
        `Case`, or its descriptor             those of a case of the audit, whose inputs `make_inputs` gives
        result of `refbn.forward`             those of its inputs (of whatever backend): y, mean, var, invstd
        array, mapping, another result        exact values themselves, floats or Fractions; ``bound`` or ``ulps``
                                              must be given
        ====================================  =============================================================
    bound : float or array, optional
        With plain exact values: the largest error that is allowed.
    ulps : float, optional
        The same in ulps of the exact value, in the actual array's format; correct rounding is 0.5.
    output : str, optional
        Which output a single array is; by default the operation's first.
    channel_axis : int
        Where the actual tensors have the channels; the exact ones have them on axis 1 unless they are plain values,
        which lie as the actual ones do.
    dialect : str or Dialect
        With a case: whose conventions hold.
    lossy_ok : bool
        Let pass what is the right function with too few digits.

    Raises
    ------
    AssertionError
        If an output is off. The message names the worst element, the numbers there, the errors and the bound, what the
        error looks like, and the case.
    DomainError, DtypeError
        If the arguments do not go together.
    """
    __tracebackhide__ = True
    known = _known(exact, dialect)
    if known is None:
        if (bound is None) == (ulps is None):
            raise DomainError(
                "exact: plain values tell no bound, expected bound or ulps, and not both; or see refbn.testing.truth",
                argument="bound",
            )
        expected: Mapping[str, Any] = _by_name(exact, "exact", output or "output")
    else:
        if bound is not None or ulps is not None:
            raise DomainError("bound: the exact side has its own, expected neither bound nor ulps", argument="bound")
        expected = known
    results = _by_name(actual, "actual", output or next(iter(expected)))
    if strange := [name for name in results if name not in expected]:
        raise DomainError(f"actual: {strange[0]!r}, expected some of {', '.join(expected)}", argument="actual")
    if not results:
        raise DomainError(f"actual: no result, expected some of {', '.join(expected)}", argument="actual")
    paragraphs = []
    for name, array in results.items():
        if known is None:
            values = expected[name]
            array, plain = _moved(array, channel_axis), _plain(values, array, bound, ulps, channel_axis)
            told, about = plain, None
        else:
            array, told, about = _moved(array, channel_axis), known[name], known
        comparison = compare(array, told)
        if comparison.verdict not in (*PASSED, "lossy") or (comparison.verdict == "lossy" and not lossy_ok):
            paragraphs.append(describe(name, array, told, comparison, about))
    if paragraphs:
        raise AssertionError("\n".join(["not accurate", *paragraphs, *(context(known) if known else ())]))


def describe(name: str, got: Array, expected: Expected, comparison: Comparison, about: Truth | None = None) -> str:
    """Write what one comparison found: a line for each of place, got, exact, error and bound, and one for the pattern.

    The last line begins with `TRACE`, if the error has a pattern.
    """
    at = comparison.worst
    title = f"{name} is {comparison.verdict}" + (f": {comparison.note}" if comparison.note else "")
    lines = []
    if got.shape == expected.full_shape and got.size and got.dtype.kind != "O":
        form = expected.output_format(format_of(got.dtype))
        period = np.asarray(got[: len(expected.high)].astype(np.float64))
        allowed = expected.limit(form)
        with np.errstate(invalid="ignore"):
            off = ~(np.abs((period - expected.high) - expected.low) <= allowed)
        off &= ~(~np.isfinite(period) & expected.nonfinite) & ~expected.free
        if period.shape == expected.high.shape and off.any():
            title += f" ({int(off.sum())} of {off.size} elements are off{_channels(off)})"
        if at is not None:
            exact = float(expected.rounded(form)[at])
            lines += [
                f"at     {name}[{', '.join(map(str, at))}]",
                f"got    {_number(float(period[at]))}",
                f"exact  {_number(exact)}, correctly rounded to {form.name}",
                f"error  {_errors(comparison, off=float(abs(period[at] - expected.high[at] - expected.low[at])))}",
                f"bound  {allowed[at]:.3g}",
            ]
        if about is not None and about.case.norm == "batch" and off.any():
            text = pattern(about.case, about.inputs, name, period, expected.high, allowed)
            lines += [f"{TRACE}{text}"] if text else []
    return "\n    ".join([title, *lines])


# ---- what the message is made of -------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{to_hex(value)} = {value!r}"


def _errors(comparison: Comparison, off: float) -> str:
    """Say how large the error is, by each of the three numbers."""
    ulp, scaled, ratio = comparison.max_ulp, comparison.max_scaled_ulp, comparison.bound_ratio
    if ulp is None or scaled is None or ratio is None:
        return f"{off:.3g}"
    return (
        f"{off:.3g} here; at most {ulp:.3g} ulp, {scaled:.3g} scaled ulp (of the channel's largest value), "
        f"{ratio:.3g} times the bound"
    )


def _channels(off: npt.NDArray[np.bool_]) -> str:
    if off.ndim < 2:
        return ""
    axes = tuple(axis for axis in range(off.ndim) if axis != 1)
    hit = np.flatnonzero(off.any(axis=axes)).tolist()
    if len(hit) == off.shape[1]:
        return ", in every channel"
    return f", in channel{'s' if len(hit) > 1 else ''} {', '.join(map(str, hit[:8]))}{', …' if len(hit) > 8 else ''}"


def context(known: Truth) -> list[str]:
    """Return the last lines of a message: what was asked, and of what."""
    case = known.case
    asked = f"{case.operation}: {case.op.meaning}; m = {case.count}, eps = {case.eps!r}"
    if known.given:
        return [asked, f"inputs: your own, {case.format.name} {case.shape}, parameters {case.param_format.name}"]
    return [asked, f"case {case}", f"inputs: refbn.testing.make_inputs({str(case)!r})"]


# ---- the exact side --------------------------------------------------------------------------------------------------


def _known(exact: Any, dialect: str | Dialect) -> Truth | None:
    """Return what has a bound of its own, None for plain values."""
    if isinstance(exact, str):
        exact = parse(exact)
    if isinstance(exact, Case):
        conventions = Conventions.of(_validate.dialect(dialect), True)
        return Truth(exact, make_inputs(exact), False, audit_truth.expect(exact, conventions))
    if isinstance(exact, Truth):
        return exact
    if isinstance(exact, Forward):
        saved = exact.saved
        (axis,) = saved.geometry.affine_axes
        arrays: dict[str, Any] = {"x": np.moveaxis(saved.x, axis, 1), "gamma": saved.gamma, "beta": saved.beta}
        if saved.frozen:
            arrays |= {"mean": saved.mean, "var": saved.var}
        return truth("inference" if saved.frozen else "forward", eps=saved.eps, **arrays)
    return None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Plain(Expected):
    """Exact values whose bound is told."""

    allowed: Doubles

    def limit(self, form: Format) -> Doubles:
        """Return the bound, as it was told."""
        return self.allowed


def _plain(values: Any, actual: Any, bound: Any, ulps: float | None, channel_axis: int) -> Expected:
    fractions = isinstance(values, np.ndarray) and values.dtype.kind == "O"
    exact = values if fractions else _validate.array(_attached(values), "exact")
    exact = np.moveaxis(exact, channel_axis, 1) if exact.ndim > 1 else np.atleast_1d(exact)
    form = format_of(_moved(actual, channel_axis).dtype)
    missing = np.zeros(exact.shape, bool) if exact.dtype == object else ~np.isfinite(exact.astype(np.float64))
    known = np.where(missing, 0, exact)
    rows: list[Exact]
    if exact.ndim == 1:
        rows = numbers(known, "exact", len(known))
    else:
        rows = vectors(np.moveaxis(known, 1, 0).reshape(exact.shape[1], -1), "exact")
    pairs = [round_pairs(row) for row in rows]

    def assemble(parts: list[Doubles]) -> Doubles:
        stacked = np.stack([np.atleast_1d(part) for part in parts])
        if exact.ndim == 1:
            return stacked[:, 0]
        return np.moveaxis(stacked.reshape(exact.shape[1], exact.shape[0], *exact.shape[2:]), 0, 1)

    high, low = assemble([h for h, _ in pairs]), assemble([s for _, s in pairs])
    if bound is None:
        _, exponent = np.frexp(high)
        exponent = np.where(high == 0, form.emin, np.clip(exponent - 1, form.emin, form.emax))
        allowed = np.asarray(ulps) * np.ldexp(1.0, exponent - form.precision + 1)
    else:
        told = np.asarray(_validate.array(bound, "bound") if np.ndim(bound) else bound, np.float64)
        told = np.moveaxis(told, channel_axis, 1) if told.ndim > 1 else told
        allowed = np.broadcast_to(told, high.shape)
    return _Plain(
        name="mean" if exact.ndim == 1 else "y",
        form=form,
        param_form=form,
        geometry=batch_norm(exact.shape, 1),
        full_shape=exact.shape,
        exact=tuple(rows),
        factor=1,
        high=high,
        low=low,
        bound=np.zeros(high.shape),
        size=np.abs(high),
        nonfinite=missing,
        free=np.zeros(high.shape, bool),
        no_rounding=False,
        allowed=np.asarray(allowed, np.float64),
    )


# ---- the actual side -------------------------------------------------------------------------------------------------

_NAMES = (*dict.fromkeys(name for op in OPERATIONS.values() for name in op.outputs), "ddy")


def _by_name(value: Any, argument: str, single: str) -> dict[str, Any]:
    """Return outputs by name; those that are None are left out."""
    if isinstance(value, Mapping):
        return {name: array for name, array in value.items() if array is not None}
    if not hasattr(value, "dtype") and not isinstance(value, (float, int)):
        found = {name: array for name in _NAMES if (array := getattr(value, name, None)) is not None}
        if not found:
            kind = type(value).__name__
            raise DomainError(f"{argument}: {kind}, expected an array, a mapping or a result", argument=argument)
        return found
    return {single: value}


def _moved(value: Any, channel_axis: int) -> Array:
    """Return an output as an ndarray, channels on axis 1."""
    array = _validate.array(_attached(value), "actual")
    return np.moveaxis(array, channel_axis, 1) if array.ndim > 1 else np.atleast_1d(array)


def _attached(value: Any) -> Any:
    """Return what gives its memory: a tensor that autograd watches does not; a Python number has none."""
    if hasattr(value, "detach"):
        return value.detach()
    return np.asarray(value, np.float64) if isinstance(value, (float, int)) else value
