"""Which adapters an audit runs, and where: in this process, in one of its own, or in another interpreter.

A framework that is named runs in the first interpreter that has it, this one before those given, or in the one that it
is tied to (``tensorflow@PYTHON``). Without a name, every framework of the table runs in every interpreter that has it,
but the same version only once; a second version is called ``name@version``. What is installed nowhere is listed: it is
no result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from types import TracebackType

from refbn._errors import RefbnError
from refbn.audit import adapters
from refbn.audit.adapters._protocol import Adapter
from refbn.audit.remote.interpreter import TIMEOUT, Interpreter

__all__ = ["Chosen", "NotInstalledError", "choose"]


class NotInstalledError(RefbnError, RuntimeError):
    """A framework that was asked for is not installed where it was looked for."""


@dataclass
class Chosen:
    """The adapters of one run; a context manager that ends their processes.

    Attributes
    ----------
    adapters : list of Adapter
        In the order in which they were asked for, or of the table.
    missing : list of str
        The frameworks of the table that are installed nowhere.
    """

    adapters: list[Adapter] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _interpreters: list[Interpreter] = field(default_factory=list)

    def __enter__(self) -> Chosen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for interpreter in self._interpreters:
            interpreter.close()


def choose(names: Sequence[str] = (), pythons: Sequence[str] = (), timeout: float = TIMEOUT) -> Chosen:
    """Return the adapters to run.

    Parameters
    ----------
    names : sequence of str
        Frameworks as `adapters.load` knows them, each perhaps with ``@PYTHON``; none means the whole table.
    pythons : sequence of str
        Other interpreters.
    timeout : float
        Seconds for one case in a process of its own.

    Raises
    ------
    DomainError
        If there is no such framework.
    InterpreterError
        If an interpreter cannot run adapters.
    NotInstalledError
        If a framework that was named is not installed where it should run, or if none is installed.
    """
    chosen = Chosen()
    try:
        _fill(chosen, names, pythons, timeout)
    except BaseException:
        chosen.__exit__(None, None, None)
        raise
    return chosen


def _fill(chosen: Chosen, names: Sequence[str], pythons: Sequence[str], timeout: float) -> None:
    asked = [(name, python) for name, _, python in (n.partition("@") for n in dict.fromkeys(names))]
    local = {name: adapters.load(name) for name in dict(asked) or adapters.BY_DEFAULT}
    for name, python in asked:
        if python and adapters.is_ours(name):
            raise NotInstalledError(f"audit: {name} runs in this interpreter alone, not in {python}")

    others: dict[str, Interpreter] = {}
    for python in dict.fromkeys((*pythons, *(python for _, python in asked if python))):
        others[python] = Interpreter(python, timeout)
        chosen._interpreters.append(others[python])

    own = _OwnProcesses(chosen, timeout)
    for name, tied in asked or [(name, "") for name in local]:
        places = [] if adapters.is_ours(name) else [tied] if tied else list(dict.fromkeys(pythons))
        here = [] if tied else [own.adapter(name, a) for a in local[name] if a.version() is not None]
        there = [others[python].adapter(*adapters.ADAPTERS[name]) for python in places]
        found = [*here, *(adapter for adapter in there if adapter.version() is not None)]
        if asked and not found:
            where = " or ".join([*([] if tied else ["here"]), *(f"in {python}" for python in places)])
            raise NotInstalledError(f"audit: {name} is not installed {where}{_advice(name)}")
        if not found:
            chosen.missing.append(name)
        if not asked:
            found = _first_of_each_version(found)
        elif name != "zoo":
            found = found[:1]
        for adapter in found:
            _make_unique(adapter, {a.name for a in chosen.adapters})
            chosen.adapters.append(adapter)
    for interpreter in chosen._interpreters:
        interpreter.rest()
    if not chosen.adapters:
        raise NotInstalledError("audit: no framework is installed: pip install 'refbn[torch]', for one")


class _OwnProcesses:
    """Adapters of this interpreter that need variables which are not set in this process."""

    def __init__(self, chosen: Chosen, timeout: float) -> None:
        self._chosen, self._timeout = chosen, timeout
        self._interpreter: Interpreter | None = None

    def adapter(self, name: str, adapter: Adapter) -> Adapter:
        """Return the adapter itself if it can run in this process, else its proxy."""
        if all(os.environ.get(variable) == value for variable, value in adapter.environment.items()):
            return adapter
        if self._interpreter is None:
            self._interpreter = Interpreter(sys.executable, self._timeout)
            self._chosen._interpreters.append(self._interpreter)
        return self._interpreter.adapter(*adapters.ADAPTERS[name])


def _first_of_each_version(found: Sequence[Adapter]) -> list[Adapter]:
    first: dict[str | None, Adapter] = {}
    for adapter in found:
        first.setdefault(adapter.version(), adapter)
    return list(first.values())


def _advice(name: str) -> str:
    """Return how to install a framework, if one of refbn's extras does it."""
    try:
        extras = metadata.metadata("refbn").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return ""
    fitting = [extra for extra in extras if f"{name.removeprefix('refbn-')}-".startswith(f"{extra}-")]
    return f": pip install 'refbn[{max(fitting, key=len)}]'" if fitting else ""


def _make_unique(adapter: Adapter, taken: set[str]) -> None:
    """Add the version to the name of a framework that is audited twice; a number too, if that does not suffice."""
    plain, versioned, count = adapter.name, f"{adapter.name}@{adapter.version()}", 1
    while adapter.name in taken:
        adapter.name = versioned if count == 1 and plain == adapter.name else f"{versioned}#{count}"
        count += 1
