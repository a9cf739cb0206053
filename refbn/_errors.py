"""The exception family: each error is a `RefbnError` and the built-in that a caller would catch.

Every error raised for a bad argument carries the argument's name and the label ``C1`` … ``Cn`` of the
constraint that it breaks. The constraints stand in one table, `refbn._validate.CONSTRAINTS`.
"""

from __future__ import annotations

__all__ = [
    "AxisError",
    "BackendError",
    "DomainError",
    "DtypeError",
    "LayoutError",
    "RefbnError",
    "SavedError",
    "ShapeError",
]


class RefbnError(Exception):
    """Base class of everything that refbn raises on purpose.

    Attributes
    ----------
    argument : str or None
        The name of the offending argument.
    label : str or None
        The label of the broken constraint, such as ``"C3"``.
    """

    def __init__(self, message: str, *, argument: str | None = None, label: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.label = label


class ShapeError(RefbnError, ValueError):
    """An array has the wrong shape, rank or number of elements."""


class AxisError(RefbnError, ValueError, IndexError):
    """An axis does not exist."""


class DtypeError(RefbnError, TypeError):
    """An argument is of the wrong type, or an array of a dtype that is not a supported float format."""


class DomainError(RefbnError, ValueError):
    """A number lies outside the domain on which the function is defined."""


class LayoutError(RefbnError, ValueError):
    """An output cannot be written: read-only, self-overlapping, or sharing memory with another array."""


class SavedError(RefbnError, TypeError):
    """A `Saved` was expected, or the one given does not offer what the call needs."""


class BackendError(RefbnError, RuntimeError):
    """A backend is unknown, not available here, or does not offer the pass."""
