"""The script with which a worker's process begins: ``PYTHON …/refbn/audit/remote/start.py``.

refbn need not be installed in that interpreter. `refbn` becomes a package without contents of its own, whose modules
are found in the folder where this file lies: no folder joins `sys.path`, so that neither our NumPy nor anything else
that is installed beside refbn can be met, and no module is loaded that the adapter does not import (a layering test
holds which ones may be). A refbn that is installed there is not used.

Standard output belongs to the messages. What a framework prints goes to standard error, and its standard input is
empty.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Load the worker, and let it answer until there is no more to ask."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder and os.path.abspath(folder) != here]
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    _no_core_dumps()
    if sys.version_info < (3, 10):  # noqa: UP036  # the interpreter is whatever the user names
        sys.exit(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, expected 3.10 or newer")
    _find_refbn_in(os.path.dirname(os.path.dirname(here)))
    try:
        from refbn.audit.remote.worker import serve
    except ImportError as error:
        sys.exit(f"{error}: a worker needs NumPy")
    serve(requests, replies)


def _find_refbn_in(folder: str) -> None:
    from importlib.machinery import PathFinder
    from types import ModuleType

    class Finder:
        """Before all other finders: an editable install has one that would find its own checkout."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            return PathFinder.find_spec(name, path, target) if name.startswith("refbn.") else None

    package = ModuleType("refbn")
    package.__path__ = [folder]
    sys.modules["refbn"] = package
    sys.meta_path.insert(0, Finder)


def _no_core_dumps() -> None:
    """A framework that crashes is a finding; its memory need not be kept."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    main()
