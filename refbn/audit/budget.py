"""The error budget: what a competent implementation may lose, derived from the oracle's own program.

A `Running` number is what such an implementation computes, together with a bound of its error. It fulfils the number
protocol of `refbn.exact.program`, so the forward definition, the series and the tape that give the truth also
give the bound of every operation and composition; nothing is bounded by hand.

**The model.** A competent implementation

B1. subtracts the mean before it squares (two passes);
B2. computes in a *working format*: the case's own, or binary32 for binary16 and bfloat16. Each operation on
    elements adds u times its result, u the unit roundoff of that format, and half its smallest subnormal number
    where the result can underflow;
B3. adds up in binary64 for the narrower formats, each partial sum with the error 2^−53 times the sum of magnitudes,
    and rounds the sum to the working format; binary64 sums are pairwise (log₂ m + 2 additions on each path);
B4. stores an output with one rounding; in a composition y and the cotangents that meet it are stored too, which
    matters for the half types alone;
B5. does not let an intermediate result overflow where the output does not (data far from 1 are scaled by a
    power of two first);
B6. rounds running statistics to the parameters' format after each batch.

Errors are propagated with absolute values throughout, so the conditioning is that of the data: with an offset of 4096
standard deviations the rounded mean alone costs 4096·u. Quotients and roots are taken to first order; products
keep the product of both errors, since the square of a small d is where it counts.

**The safety factor.** The bound is `SAFETY` times the propagated error plus the rounding of the output (B4). The model
fixes one order of operations, and other competent ones have more roundings on a path: a formula that uses
invstd instead of a division, that multiplies γ·invstd first, Welford updates, one more affine product. None of the
derivative passes that the textbook knows has more than four times the roundings of the tape's path to the same
output. Less would call such choices lossy, more would hide a formula with a digit too few.

**The size** that each number carries too is the same formula with every term replaced by its absolute value. The
comparison uses it where the exact terms cancel; see `refbn.audit.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from refbn._formats import BINARY32, BINARY64, Format

__all__ = ["SAFETY", "Model", "Running"]

Doubles = npt.NDArray[np.float64]

SAFETY = 4.0
"""The one factor of the bound; see above."""


@dataclass(frozen=True, slots=True)
class Model:
    """The arithmetic of a competent implementation (B2, B3).

    Attributes
    ----------
    u, eta : float
        Unit roundoff of the working format, and half its smallest subnormal number.
    accumulation : float
        The relative error of a sum, as a multiple of the sum of magnitudes.
    """

    u: float
    eta: float
    accumulation: float

    @classmethod
    def of(cls, form: Format, count: int) -> Model:
        """Return the model for a format and m elements a channel."""
        working = BINARY32 if form.precision < BINARY32.precision else form
        if working is BINARY64:
            accumulation = (max(count - 1, 0).bit_length() + 2) * BINARY64.unit_roundoff
        else:
            accumulation = count * BINARY64.unit_roundoff
        return cls(working.unit_roundoff, working.tiny / 2, accumulation)


class Running:
    """One number or vector per channel, as computed, with a bound of its error and its size.

    Parameters
    ----------
    model : Model
        The arithmetic; numbers that meet share it.
    value, error, size : ndarray
        Of shape (channels, 1) for a number and (channels, m) for a vector.
    length : int or None
        m, or None for a number.
    """

    __slots__ = ("error", "length", "model", "size", "value")

    def __init__(self, model: Model, value: Doubles, error: Doubles, size: Doubles, length: int | None) -> None:
        self.model = model
        self.value = value
        self.error = error
        self.size = size
        self.length = length

    @classmethod
    def given(cls, model: Model, values: Doubles) -> Running:
        """Return numbers that are known exactly: of shape (channels,), or vectors of shape (channels, m)."""
        length = None if values.ndim == 1 else values.shape[1]
        columns = values[:, None] if values.ndim == 1 else values
        return cls(model, columns, np.zeros_like(columns), np.abs(columns), length)

    # ---- ring operations -------------------------------------------------------------------------------------

    def __add__(self, other: Running | int | Fraction) -> Running:
        b = self._operand(other)
        value = self.value + b.value
        return self._result(value, self.error + b.error, self.size + b.size, b)

    def __sub__(self, other: Running | int | Fraction) -> Running:
        return self + -self._operand(other)

    def __neg__(self) -> Running:
        return Running(self.model, -self.value, self.error, self.size, self.length)

    def __mul__(self, other: Running | int | Fraction) -> Running:
        b = self._operand(other)
        value = self.value * b.value
        error = np.abs(self.value) * b.error + np.abs(b.value) * self.error + self.error * b.error
        if _is_power_of_two(other):
            return Running(self.model, value, error, self.size * b.size, self.length)
        return self._result(value, error + self.model.eta, self.size * b.size, b)

    def __truediv__(self, other: Running | int | Fraction) -> Running:
        b = self._operand(other)
        divisor = np.abs(b.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.value / b.value
            error = (self.error + np.abs(value) * b.error) / divisor
            return self._result(value, error + self.model.eta, self.size / divisor, b)

    # ---- what batch norm needs besides -------------------------------------------------------------------------

    def sum(self) -> Running:
        """Return the sum of a vector (B3)."""
        value = _total(self.value)
        error = _total(self.error) + self.model.accumulation * _total(np.abs(self.value))
        size = _total(self.size)
        return Running(self.model, value, error + self.model.u * np.abs(value), size, None)

    def mean(self) -> Running:
        """Return the mean of a vector: NaN if there is no element."""
        assert self.length is not None
        return self.sum() / (self.length or Fraction(0))

    def sqrt(self) -> Running:
        """Return the root of a number."""
        value = np.sqrt(self.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(self.error == 0, 0.0, self.error / (2.0 * value))
        return Running(self.model, value, error + self.model.u * value, value, None)

    def spread(self, length: int) -> Running:
        """Return the vector that repeats a number."""
        shape = (len(self.value), length)
        value, error, size = (np.broadcast_to(a, shape) for a in (self.value, self.error, self.size))
        return Running(self.model, value, error, size, length)

    def stored(self, unit_roundoff: float) -> Running:
        """Return the number after a rounding to the format that it is kept in (B4, B6)."""
        error = self.error + unit_roundoff * np.abs(self.value)
        return Running(self.model, self.value, error, self.size, self.length)

    # ---- helpers ---------------------------------------------------------------------------------------------

    def _operand(self, other: Running | int | Fraction) -> Running:
        if isinstance(other, Running):
            return other
        value = np.full((1, 1), _nearest(other))
        off = 0.0 if _is_short(other) else self.model.u
        return Running(self.model, value, off * np.abs(value), np.abs(value), None)

    def _result(self, value: Doubles, error: Doubles, size: Doubles, other: Running) -> Running:
        length = other.length if self.length is None else self.length
        return Running(self.model, value, error + self.model.u * np.abs(value), size, length)


def _total(values: Doubles) -> Doubles:
    """Return the sum of each row, added up from left to right: the same bits on every machine."""
    if values.shape[1] == 0:
        return np.zeros((len(values), 1))
    return np.asarray(np.add.accumulate(values, axis=1)[:, -1:])


def _nearest(constant: int | Fraction) -> float:
    return float(constant)


def _is_short(constant: int | Fraction) -> bool:
    """Whether a constant is a number of every working format: a small integer over a power of two."""
    fraction = Fraction(constant)
    return abs(fraction.numerator) < 2**24 and fraction.denominator & (fraction.denominator - 1) == 0


def _is_power_of_two(constant: object) -> bool:
    if not isinstance(constant, (int, Fraction)):
        return False
    fraction = Fraction(constant)
    top, bottom = abs(fraction.numerator), fraction.denominator
    return top != 0 and top & (top - 1) == 0 and bottom & (bottom - 1) == 0
