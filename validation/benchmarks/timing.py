"""Timing several contenders in turns."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from refbn._formats import Array

__all__ = ["SAMPLE_SECONDS", "Contender", "Timing", "measure", "summarise"]

SAMPLE_SECONDS = 1e-3
"""A sample lasts at least this long: shorter calls are repeated."""

_PAUSE_SECONDS = 1e-3
_WAKING_SECONDS = 5e-3  # longer calls get no untimed one before them
_BUDGET_SECONDS = 0.3  # while a pass has taken less, there are more rounds
_MOST_ROUNDS = 3  # times those asked for


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to compute a pass.

    Attributes
    ----------
    name, library : str
        The way, and whose it is; refbn's own are called "refbn" and "refbn out=".
    work : callable
        One call, finished when it returns.
    results : callable
        What ``work`` returned as arrays, with the names of refbn's results and tensors in x's shape.
    around : callable
        A context in which the calls are made; it is entered and left outside the timed region.
    """

    name: str
    library: str
    work: Callable[[], Any]
    results: Callable[[Any], Mapping[str, Array]]
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over the rounds, the least, and the quartiles."""

    median: float
    min: float
    q1: float
    q3: float
    rounds: int
    calls: int
    """Calls in a sample."""


def measure(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    warmups: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the contenders in turns, in an order that is drawn anew in each round.

    Parameters
    ----------
    contenders : sequence of Contender
        With different names; what compiles at its first call has been called.
    rounds : int
        How many at least; up to three times as many while the pass takes little time.
    warmups : int
        Rounds before that whose times are dropped.
    seed : int
        Of the orders.
    clock : callable
        Returns seconds.

    Returns
    -------
    dict of Timing
        By the contenders' names.
    """
    rng = np.random.default_rng(seed)
    once = {c.name: _once(c, clock) for c in contenders}
    calls = {name: max(1, math.ceil(SAMPLE_SECONDS / seconds)) for name, seconds in once.items()}
    wake = {name: seconds < _WAKING_SECONDS for name, seconds in once.items()}
    samples: dict[str, list[float]] = {c.name: [] for c in contenders}

    def turn() -> Iterator[tuple[str, float]]:
        for place in rng.permutation(len(contenders)):
            name = contenders[place].name
            yield name, _sample(contenders[place], calls[name], wake[name], clock)

    with _no_collection():
        for _ in range(warmups):
            for _dropped in turn():
                pass
        start = clock()
        done = 0
        while done < rounds or (done < _MOST_ROUNDS * rounds and clock() - start < _BUDGET_SECONDS):
            for name, seconds in turn():
                samples[name].append(seconds)
            done += 1
    return {name: summarise(found, calls[name]) for name, found in samples.items()}


def summarise(seconds: Sequence[float], calls: int = 1) -> Timing:
    """Return the statistics of at least two samples."""
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, min(seconds), q1, q3, len(seconds), calls)


def _once(contender: Contender, clock: Callable[[], float]) -> float:
    """Return the seconds of a call; of a second one if they are short, since the first may have been special."""
    with contender.around():
        for _ in range(2):
            start = clock()
            contender.work()
            seconds = clock() - start
            if seconds >= _WAKING_SECONDS:
                break
    return max(seconds, 1e-7)


def _sample(contender: Contender, calls: int, wake: bool, clock: Callable[[], float]) -> float:
    """Return the seconds of one call, averaged over a sample; ``wake`` asks for an untimed call before it."""
    work = contender.work
    repeated = range(calls)
    time.sleep(_PAUSE_SECONDS)
    with contender.around():
        if wake:
            work()
        start = clock()
        for _ in repeated:
            work()
        return (clock() - start) / calls


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now, and not within the block."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
