"""One audit in several processes.

The cases are shared out in groups (`refbn.audit.groups`), so that whatever a framework compiles or traces is made
once. A job is a process with adapters of its own that takes group after group, asks all frameworks, compares, and
collects the evidence of a diagnosis; at the end it concludes on one framework after the other. The findings are those
of one process, in the same order: no case sees another one's answer.

Jobs start afresh (*spawn*): a framework's threads do not survive a fork. Since they share the cores, OpenMP's threads
are told to sleep while there is nothing to do (``OMP_WAIT_POLICY``, unless it is set); by default they spin, for longer
than most cases take.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

from refbn._errors import RefbnError
from refbn.audit.diagnosis import Diagnosis, Evidence
from refbn.audit.groups import groups_of
from refbn.audit.runner import Finding, NotAsked, look_at
from refbn.audit.selection import Chosen, choose

if TYPE_CHECKING:
    from refbn.audit.cases import Case
    from refbn.audit.runner import Progress

__all__ = ["GROUPS", "MOST", "JobError", "available", "run_jobs"]

MOST = 8
"""How many jobs there are without a word of the user; each one imports the frameworks."""
GROUPS = 24
"""For how many groups a job is worth its start."""


class JobError(RefbnError, RuntimeError):
    """A job ended before its time."""


def available() -> int:
    """Return the number of processor cores that this process may use, at most `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def run_jobs(
    names: Sequence[str],
    pythons: Sequence[str],
    timeout: float,
    adapters: Sequence[str],
    cases: Sequence[Case],
    jobs: int,
    progress: Progress | None = None,
    seconds: float | None = None,
    not_asked: NotAsked | None = None,
) -> list[Finding]:
    """Ask in several processes what `runner.run_cases` asks in one, and return the same findings.

    Parameters
    ----------
    names, pythons, timeout
        As for `selection.choose`, which each job calls.
    adapters : sequence of str
        The names of the adapters that have been chosen so.
    cases : sequence of Case
        What is asked.
    jobs : int
        How many processes.
    progress : callable, optional
        As for `run_cases`.
    seconds : float, optional
        As for `Diagnosis`; without it there is no diagnosis.
    not_asked : mapping, optional
        As for `run_cases`.

    Raises
    ------
    JobError
        If one of the processes ends.
    """
    answers: list[list[list[Finding]]] = [[] for _ in cases]
    evidence: dict[str, Evidence] = {}
    done = 0
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = names, pythons, timeout, seconds, not_asked or {}
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, given)
    try:
        asked = {pool.submit(_ask, [cases[p] for p in places]): places for places in groups_of(cases)}
        for future in as_completed(asked):
            places = asked[future]
            findings, found = future.result()
            evidence |= found
            for place, own in zip(places, findings, strict=True):
                answers[place] = own
            done += len(places)
            if progress is not None:
                progress(str(cases[places[0]]), done, len(cases))
        by_framework = [[f for answer in answers for f in answer[k]] for k in range(len(adapters))]
        if seconds is not None:
            concluding = [
                pool.submit(_conclude, name, own, {f.id: evidence[f.id] for f in own if f.id in evidence})
                for name, own in zip(adapters, by_framework, strict=True)
            ]
            by_framework = [future.result() for future in concluding]
    except BrokenProcessPool as error:
        raise JobError(
            "audit: a process ended that asked frameworks of this interpreter; --jobs 1 tells which one it is by its "
            "end, and FRAMEWORK@PYTHON asks it in a process of its own, where a crash is a finding"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [finding for own in by_framework for finding in own]


# ---- in a job --------------------------------------------------------------------------------------------------------

_chosen = Chosen()
_diagnosis: Diagnosis | None = None
_not_asked: NotAsked = {}


def _begin(
    names: Sequence[str], pythons: Sequence[str], timeout: float, seconds: float | None, not_asked: NotAsked
) -> None:
    global _chosen, _diagnosis, _not_asked
    threading.Thread(target=_end_with_the_audit, daemon=True).start()
    _chosen = choose(names, pythons, timeout)
    _diagnosis = None if seconds is None else Diagnosis(seconds)
    _not_asked = {name: frozenset(cases) for name, cases in not_asked.items()}


def _end_with_the_audit() -> None:
    """Wait for the end of the process that started this one: if it is killed, a job would wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ask(cases: Sequence[Case]) -> tuple[list[list[list[Finding]]], dict[str, Evidence]]:
    """Return for each case and each adapter what was found, and the evidence."""
    found = [
        [
            [] if case in _not_asked.get(adapter.name, ()) else look_at(adapter, case, _diagnosis)
            for adapter in _chosen.adapters
        ]
        for case in cases
    ]
    evidence = {} if _diagnosis is None else dict(_diagnosis.evidence)
    if _diagnosis is not None:
        _diagnosis.evidence.clear()
    return found, evidence


def _conclude(name: str, findings: Sequence[Finding], evidence: dict[str, Evidence]) -> list[Finding]:
    assert _diagnosis is not None
    (adapter,) = (a for a in _chosen.adapters if a.name == name)
    _diagnosis.evidence.update(evidence)
    return _diagnosis.conclude(findings, [adapter])
