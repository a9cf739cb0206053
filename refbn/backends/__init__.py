"""The backends, in the order in which they are tried.

==========  ================================================  =================================================
name        what                                              accuracy
==========  ================================================  =================================================
native      C core, compiled with the package                 correctly rounded
numba       the same passes, compiled at first use            correctly rounded
reference   the NumPy textbook                                bounded, `refbn.reference.bounds`
exact       the oracle                                        correctly rounded
==========  ================================================  =================================================

These are batch norm's. Layer, group and instance norm and batch renormalization, of any split of the axes, have
three of their own: `refbn.backends.normalization`.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from refbn._geometry import Geometry
from refbn.backends._contract import Backend

__all__ = ["NORMALIZATIONS", "TABLE", "available", "bound", "first", "load"]

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


NORMALIZATIONS = ("enclosure", "exact", "reference")
"""The backends of every split of the axes that is not batch norm's."""


def bound(name: str, geometry: Geometry) -> Backend:
    """Return the passes of a backend for a geometry."""
    return load(name) if geometry.channelwise else _normalization(name, geometry)


@cache
def _normalization(name: str, geometry: Geometry) -> Backend:
    from refbn.backends.normalization import Normalization  # not before it is wanted: it loads the oracle

    return cast(Backend, Normalization(name, geometry))


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
