"""The four binary floating-point formats that refbn reads and writes.

A `Format` is described as IEEE 754 does: precision *p* (significand bits, the hidden one included) and
exponent range *emin* … *emax*; its finite values are ±M·2^(e−p+1) with 0 ≤ M < 2^p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BFLOAT16",
    "BINARY16",
    "BINARY32",
    "BINARY64",
    "FORMATS",
    "Array",
    "Format",
    "format_of",
    "load",
    "round_to",
]


Array = npt.NDArray[Any]
"""An ndarray of any of the formats."""


@dataclass(frozen=True)
class Format:
    """One binary interchange format.

    Attributes
    ----------
    name : str
        The dtype's NumPy name (``"bfloat16"`` comes from ``ml_dtypes``).
    short : str
        The name in case descriptors: ``f16``, ``bf16``, ``f32``, ``f64``.
    precision, emin, emax : int
        p, and the exponents of the smallest and the largest normal number.
    """

    name: str
    short: str
    precision: int
    emin: int
    emax: int

    @property
    def unit_roundoff(self) -> float:
        """u = 2^(−p): the largest relative error of one rounding to nearest of a normal number."""
        return 2.0**-self.precision

    @property
    def tiny(self) -> float:
        """The smallest positive (subnormal) number, 2^(emin−p+1)."""
        return 2.0 ** (self.emin - self.precision + 1)

    @property
    def max(self) -> float:
        """The largest finite number."""
        return (2.0 - 2.0 ** (1 - self.precision)) * 2.0**self.emax

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; bfloat16 needs the package ``ml_dtypes``."""
        if self.name == "bfloat16":
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return dtype
        return np.dtype(self.name)


BINARY16 = Format("float16", "f16", 11, -14, 15)
BFLOAT16 = Format("bfloat16", "bf16", 8, -126, 127)
BINARY32 = Format("float32", "f32", 24, -126, 127)
BINARY64 = Format("float64", "f64", 53, -1022, 1023)
FORMATS = (BINARY16, BFLOAT16, BINARY32, BINARY64)

_BY_NAME = {f.name: f for f in FORMATS}
_BY_DTYPE: dict[np.dtype[Any], Format] = {}  # what has been asked for: a dtype takes microseconds to tell its name


def format_of(dtype: npt.DTypeLike) -> Format:
    """Return the `Format` of a dtype.

    Raises
    ------
    KeyError
        If the dtype is not one of the four (integers, complex, longdouble, object, float8, …).
    """
    dtype = np.dtype(dtype)
    found = _BY_DTYPE.get(dtype)
    if found is None:
        found = _BY_DTYPE[dtype] = _BY_NAME[dtype.name]
    return found


def load(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the values as binary64, exactly; infinities become NaN.

    An infinity is no real number, so nothing computed from one has an exact value: by the contract's rule R1
    it behaves as NaN from here on. ``a + (a − a)`` does that without a branch.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN complains already when it is converted
        a = array.astype(np.float64)
        return np.asarray(a + (a - a))


def round_to(values: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Round binary64 values once, to nearest even, to any of the four formats.

    ``ml_dtypes`` converts binary64 to bfloat16 through binary32, which rounds twice. Rounding to odd in the
    first step makes the second one right: binary32 keeps 16 bits more than bfloat16, and 2 suffice [1]_.

    References
    ----------
    .. [1] S. Boldo and G. Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using
       rounding to odd", IEEE Transactions on Computers 57 (2008), section 3.
    """
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        if dtype.name != "bfloat16":
            return values.astype(dtype)
        nearest = np.atleast_1d(values.astype(np.float32))
        exact = np.atleast_1d(values)
        inexact = np.isfinite(nearest) & (nearest.astype(np.float64) != exact)
        toward_zero = np.where(
            np.abs(nearest.astype(np.float64)) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest
        )
        odd = toward_zero.view(np.uint32) | inexact.astype(np.uint32)
        rounded: npt.NDArray[Any] = odd.view(np.float32).astype(dtype).reshape(values.shape)
        return rounded
