"""The backends, in the order in which they are tried.

==========  ================================================  =================================================
name        what                                              accuracy
==========  ================================================  =================================================
native      C core, compiled with the package                 correctly rounded
numba       the same passes, compiled at first use            correctly rounded
reference   the NumPy textbook                                bounded, `refbn.reference.bounds`
exact       the oracle                                        correctly rounded
==========  ================================================  =================================================
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from refbn.backends._contract import Backend

__all__ = ["TABLE", "available", "first", "load"]

TABLE: dict[str, str] = {
    "native": "refbn.backends.native",
    "numba": "refbn.backends.numba",
    "reference": "refbn.backends.reference",
    "exact": "refbn.backends.exact",
}


@cache
def load(name: str) -> Backend:
    """Import a backend.

    Raises
    ------
    KeyError
        If the table has no such name.
    ImportError
        If what the backend needs is not installed, or was not built.
    """
    return cast(Backend, importlib.import_module(TABLE[name]))


@cache
def first() -> str:
    """Return the name of the first backend that can be imported here."""
    return next(name for name in TABLE if _importable(name))


def available() -> tuple[str, ...]:
    """Return the names of all backends that can be imported here, in table order."""
    return tuple(name for name in TABLE if _importable(name))


def _importable(name: str) -> bool:
    try:
        load(name)
    except ImportError:
        return False
    return True
