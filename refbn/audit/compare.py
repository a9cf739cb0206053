"""One output against the truth: three numbers and a verdict.

The three numbers are the largest error of an output

* ``max_ulp``: in units in the last place (ulp) of the exact value of the element,
* ``max_scaled_ulp``: in ulps of the largest exact magnitude in the element's channel,
* ``bound_ratio``: relative to the bound of `refbn.audit.budget`, which a competent implementation keeps,

each in the format in which the output is due (or came, if that is an input's narrower one), each at most `CAP`: near
an exact zero the first one has no scale but the smallest subnormal number and says nothing.

The verdicts, best first (`VERDICTS`):

``exact``        every element is the correctly rounded exact value
``accurate``     every error is within the bound
``dialect``      another named convention explains the result: it is exact or accurate under that one
``unsupported``  the framework does not offer what was asked
``lossy``        beyond the bound, yet the right function (see below)
``nonfinite``    NaN or infinity where a number is due
``raises``       the framework refuses where a result is due
``wrong``        another function, no correct digits, a number where none exists, or a wrong shape

**Lossy or wrong.** Let p be the precision of the case's dtype, E the largest error in a channel, T the largest exact
magnitude there and M the largest *size*: the same formula with every term replaced by its absolute value, on centred
data (so that an offset does not inflate it). The output is lossy when in each channel

    E ≤ 2^(−p/3) · max(T, 2^(−p/3)·M)

and wrong otherwise. A third of the digits is far less than a competent implementation keeps, and far more than one of
another function shares with the truth by chance. M comes in where the exact terms cancel, as in the gradient for a
constant dy, whose exact value is 0: there no error is small relative to T, and two thirds of the digits of the
terms must have cancelled. So a one-pass variance of data with the offset 100 in binary32 is lossy, one with the
offset 4096, where no digit is left, is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refbn._formats import FORMATS, Format, format_of, round_to
from refbn.audit.truth import Expected

__all__ = ["CAP", "VERDICTS", "Comparison", "Verdict", "compare", "compare_runs", "same_bits", "scaled_limit", "worst"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

Verdict = Literal["exact", "accurate", "dialect", "unsupported", "lossy", "nonfinite", "raises", "wrong"]
VERDICTS: tuple[Verdict, ...] = (
    "exact",
    "accurate",
    "dialect",
    "unsupported",
    "lossy",
    "nonfinite",
    "raises",
    "wrong",
)

CAP = 1e30
"""The largest of the three numbers that is told; beyond it, they only say how small the truth is."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict of several; "unsupported" counts only where there is no other.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = set(verdicts)
    return max(found - {"unsupported"} or found, key=VERDICTS.index)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` says about one output.

    Attributes
    ----------
    verdict : str
        One of `VERDICTS`.
    max_ulp, max_scaled_ulp, bound_ratio : float or None
        The three numbers, over the elements where both the result and the truth are finite; None if there are none.
    worst : tuple of int or None
        Where the error is largest relative to the bound, or where the result is not finite by mistake.
    note : str
        One clause for the report, or nothing.
    """

    verdict: Verdict
    max_ulp: float | None = None
    max_scaled_ulp: float | None = None
    bound_ratio: float | None = None
    worst: tuple[int, ...] | None = None
    note: str = ""


def compare(got: Array, expected: Expected) -> Comparison:
    """Compare one output with its truth."""
    if got.shape != expected.full_shape:
        return Comparison("wrong", note=f"shape {got.shape}, expected {expected.full_shape}")
    if got.dtype.name not in {f.name for f in FORMATS}:
        return Comparison("wrong", note=f"dtype {got.dtype}, expected a binary floating-point format")
    came = format_of(got.dtype)
    form = expected.output_format(came)
    extremes = _fold(got, expected)
    if extremes.size == 0:
        return Comparison("exact")

    measured = _measure(extremes, expected, form)
    poisoned = expected.free & ~np.isfinite(extremes)
    if expected.stays and poisoned.any():
        return Comparison("nonfinite", *measured.numbers, _index(poisoned), note="NaN would stay from here on")
    if came.precision >= form.precision and bool(np.all(_agree(extremes, expected.rounded(came)) | expected.free)):
        return Comparison("exact", *measured.numbers, measured.where)
    finite_due = ~expected.nonfinite & ~expected.free
    # A number where none exists, judged first: NaN must not be swallowed.
    invented = expected.nonfinite & ~expected.free & np.isfinite(extremes)
    if invented.any():
        return Comparison("wrong", *measured.numbers, _index(invented), note="a number where no finite value exists")
    limit = expected.limit(form)
    with np.errstate(over="ignore", invalid="ignore"):
        may_overflow = np.abs(expected.high) + limit >= form.max
    lost = finite_due & ~np.isfinite(extremes) & ~(np.isinf(extremes) & may_overflow)
    if lost.any():
        count = int(lost.any(axis=0).sum())
        note = f"{count} of {expected.high.size} elements are not finite"
        return Comparison("nonfinite", *measured.numbers, _index(lost), note=note)
    if measured.within_bound:
        return Comparison("accurate", *measured.numbers, measured.where)
    return Comparison("lossy" if measured.lossy else "wrong", *measured.numbers, measured.where)


def scaled_limit(expected: Expected) -> float:
    """Return the largest bound of an error, in ulps of the largest exact magnitude in the element's channel.

    An output whose ``max_scaled_ulp`` is larger has an error beyond its bound; elements with smaller bounds may have
    one already below it.
    """
    magnitude = np.minimum(np.abs(expected.high), expected.form.max)
    by_channel = np.broadcast_to(expected.channel_max(magnitude), magnitude.shape)
    return _cap(_divide(expected.limit(expected.form), _ulp(by_channel, expected.form)))


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same values bit by bit; NaNs count as equal whatever their payload."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all((np.where(nan, 0, a) == np.where(nan, 0, b)) & (nan | (np.signbit(a) == np.signbit(b)))))


def compare_runs(first: Array, second: Array, expected: Expected, what: str) -> Comparison:
    """Compare two runs that should agree bit by bit; the truth only sets the scale and the bound.

    Equal bits are ``exact``. Otherwise the difference is judged as an error is, with twice the bound, since each run
    may use up one.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return Comparison("wrong", note=f"{what}: {first.dtype}{first.shape} became {second.dtype}{second.shape}")
    if same_bits(first, second):
        return Comparison("exact", 0.0, 0.0, 0.0)
    if first.shape != expected.full_shape:
        return Comparison("wrong", note=f"{what}: bits differ; shape {first.shape}, expected {expected.full_shape}")
    form = expected.output_format(format_of(first.dtype))
    with np.errstate(invalid="ignore"):
        difference = second.astype(np.float64) - first.astype(np.float64)
    lost = np.isfinite(first) != np.isfinite(second)
    if lost.any():
        return Comparison("nonfinite", note=f"{what}: finite in one run only")
    difference = np.where(np.isfinite(difference), difference, 0.0)
    measured = _judge(np.abs(_fold(difference, expected)), expected, form, 2.0)
    verdict: Verdict = "accurate" if measured.within_bound else "lossy" if measured.lossy else "wrong"
    return Comparison(verdict, *measured.numbers, measured.where, note=f"{what}: bits differ")


# ---- measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    numbers: tuple[float | None, float | None, float | None]
    where: tuple[int, ...] | None
    within_bound: bool
    lossy: bool


def _fold(values: Array, expected: Expected) -> Doubles:
    """Return the smallest and the largest value that stand at one place of the period, stacked.

    A case that is repeated along the batch has one truth for all repetitions; NaN, if there is one, comes out.
    """
    if values.shape == expected.high.shape:
        return values.astype(np.float64)[None]
    tiles = values.reshape(-1, *expected.high.shape)
    return np.stack([tiles.min(axis=0), tiles.max(axis=0)]).astype(np.float64)


def _agree(extremes: Doubles, rounded: Doubles) -> npt.NDArray[np.bool_]:
    """Equal, or both not finite: an infinite input leaves infinity or NaN, and either is right.

    A rounded truth that is infinite is a finite one that overflows, and asks for that infinity.
    """
    return np.asarray((extremes == rounded) | (~np.isfinite(extremes) & np.isnan(rounded)))


def _measure(extremes: Doubles, expected: Expected, form: Format) -> _Measured:
    rounded = expected.rounded(form)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs((extremes - expected.high) - expected.low)
    # A truth that overflows asks for that infinity, or for a wider result that would be rounded to it; another number
    # in its place is infinitely far off. An infinity in place of a number is not measured: it is within the bound, or
    # `compare` reports it as such.
    error = np.where(np.isfinite(extremes), np.where(np.isinf(rounded), np.inf, error), np.nan)
    error = np.where(np.isinf(rounded) & (round_to(extremes, form.dtype) == rounded), 0.0, error)
    return _judge(error, expected, form, 1.0)


def _judge(errors: Doubles, expected: Expected, form: Format, allowance: float) -> _Measured:
    """Turn errors (leading axis: repetitions; NaN: not measured) into the three numbers and the two decisions."""
    asked = ~expected.nonfinite & ~expected.free
    counted = asked & ~np.isnan(errors)
    if not counted.any():
        return _Measured((None, None, None), None, True, True)
    error = np.where(counted, errors, 0.0).max(axis=0)
    magnitude = np.where(asked, np.minimum(np.abs(expected.high), form.max), 0.0)
    by_channel = np.broadcast_to(expected.channel_max(magnitude), error.shape)
    ratios = _divide(error, allowance * expected.limit(form))
    worst_place = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    numbers = (
        _cap(_divide(error, _ulp(magnitude, form))),
        _cap(_divide(error, _ulp(by_channel, form))),
        _cap(ratios),
    )
    keep = 2.0 ** (-expected.form.precision / 3)
    size = expected.channel_max(np.where(np.isfinite(expected.size), expected.size, 0.0))
    lossy = bool(np.all(error <= allowance * keep * np.maximum(by_channel, keep * size)))
    return _Measured(numbers, tuple(int(i) for i in worst_place), bool(np.all(ratios <= 1.0)), lossy)


def _ulp(magnitude: Doubles, form: Format) -> Doubles:
    _, exponent = np.frexp(magnitude)
    exponent = np.where(magnitude == 0, form.emin, np.clip(exponent - 1, form.emin, form.emax))
    return np.asarray(np.ldexp(1.0, exponent - form.precision + 1))


def _divide(error: Doubles, scale: Doubles) -> Doubles:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = error / scale
    return np.where(error == 0, 0.0, ratio)


def _cap(values: Doubles) -> float:
    return float(min(values.max(), CAP))


def _index(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    place = np.argwhere(mask.any(axis=0))
    return tuple(int(i) for i in place[0])
