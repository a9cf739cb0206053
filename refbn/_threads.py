"""How many threads a pass may use: one number for the process, and one for the current thread or task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from refbn import _validate

__all__ = ["get_num_threads", "num_threads", "set_num_threads"]

_VARIABLE = "REFBN_NUM_THREADS"
_process = 0  # what set_num_threads was told; 0: nothing yet
_default = 0  # what holds until then; 0: not looked up yet
_local = ContextVar("refbn_num_threads", default=0)  # 0: the process's number holds


def get_num_threads() -> int:
    """Return how many threads a pass may use when it is called from here.

    It is the number of the innermost `num_threads` block; outside of such blocks that of the last `set_num_threads`; at
    first that of the environment variable ``REFBN_NUM_THREADS``, which is read when the number is first needed; and
    without it (or if it is empty) the number of cores that this process may run on.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    RefbnError
        C22, for the environment variable.
    """
    return _local.get() or _process or _default or _first()


def set_num_threads(n: int) -> None:
    """Let passes use up to ``n`` threads from now on, in the whole process.

    The results do not depend on it: every output is rounded once from its exact value. A `num_threads` block keeps its
    own number.

    Parameters
    ----------
    n : int
        1 to 1024. 1 computes on the calling thread.

    Raises
    ------
    RefbnError
        C22.

    Examples
    --------
    >>> import refbn
    >>> before = refbn.get_num_threads()
    >>> refbn.set_num_threads(2)
    >>> refbn.get_num_threads()
    2
    >>> refbn.set_num_threads(before)
    """
    global _process
    _process = _validate.threads(n)


def num_threads(n: int) -> AbstractContextManager[None]:
    """Let passes use up to ``n`` threads within a ``with`` block, for the current thread or asyncio task only.

    Parameters
    ----------
    n : int
        1 to 1024. 1 computes on the calling thread.

    Returns
    -------
    context manager
        For one ``with`` statement. When the block ends, also by an exception, the number is what it was before.

    Raises
    ------
    RefbnError
        C22, at once.

    Examples
    --------
    >>> import refbn
    >>> with refbn.num_threads(1):
    ...     refbn.get_num_threads()
    1
    """
    return _block(_validate.threads(n))


@contextmanager
def _block(n: int) -> Iterator[None]:
    before = _local.get()
    _local.set(n)
    try:
        yield
    finally:
        _local.set(before)  # not ContextVar.reset, which fails where a generator is closed in another context


def _first() -> int:
    """Look up the default, and keep it."""
    global _default
    text = os.environ.get(_VARIABLE, "")
    _default = _validate.threads_variable(text, _VARIABLE) if text else min(_cores(), _validate.THREAD_LIMIT)
    return _default


def _cores() -> int:
    """Return how many cores this process may run on, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    count = getattr(os, "process_cpu_count", os.cpu_count)  # the former from Python 3.13 on
    return count() or 1
