"""What the audit says of mutants: case by case, so that each truth is computed once for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import DATA, Case, make_inputs
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.families import Depth, all_cases
from refbn.audit.runner import FAILURES, Finding, run_case
from validation.mutants.adapter import Mutated
from validation.mutants.generate import Mutant
from validation.mutants.textbook import called

__all__ = ["LARGEST", "Outcome", "cases", "crashes", "dense", "hunt", "reach"]

LARGEST = 2**16
"""Cases with more elements are left out: a hundred mutants take minutes on each, and no mutant lives that long."""

_SMALL = Case("composition", "forward", "f64", (5, 3), steps=2)
_FOUND = FAILURES | {"lossy", "dialect"}
_STATEFUL = ("running", "train_eval_train")
_DIALECTS = ("torch", "keras")  # the momentum weighs the new value, or the old one; m − 1, or m


@dataclass(frozen=True)
class Outcome:
    """The worst that some cases say of one mutant.

    Attributes
    ----------
    verdict : str
        ``"wrong"``, ``"nonfinite"`` or ``"raises"`` for a result that fails an audit, ``"lossy"`` for one beyond the
        bound, ``"dialect"`` for another named convention; empty if it was not found.
    case, dialect, output, note : str
        Where it was found first with this verdict, and what the audit said; dialects matter for running statistics.
    ratio : float or None
        The error, relative to the bound of a competent implementation.
    asked : int
        How many cases it took, or how many there were.
    """

    verdict: Verdict | Literal[""] = ""
    case: str = ""
    dialect: str = ""
    output: str = ""
    note: str = ""
    ratio: float | None = None
    asked: int = 0


@cache
def reach() -> dict[str, frozenset[str]]:
    """Return for each operation which of the textbook's functions it calls, from a run of the control."""
    control = Mutated(None)
    found = {}
    for operation in sorted(control.operations):
        inputs = make_inputs(replace(_SMALL, operation=operation))
        found[operation] = called(lambda operation=operation, inputs=inputs: control.run(operation, inputs))
    return found


def crashes(mutant: Mutant) -> str:
    """Return what a mutant raises on an ordinary input, or nothing: such a one is no function at all."""
    adapter = Mutated(mutant)
    for operation, functions in reach().items():
        if mutant.function in functions:
            try:
                with np.errstate(all="ignore"):
                    adapter.run(operation, make_inputs(replace(_SMALL, operation=operation)))
            except Exception as error:  # whatever it is
                return f"{operation}: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return ""


def cases(depth: Depth) -> list[Case]:
    """Return an audit's cases, the cheap ones first."""
    return sorted((c for c in all_cases(depth) if _elements(c) <= LARGEST), key=_elements)


def _elements(case: Case) -> int:
    return math.prod(case.shape) * case.repeat


def hunt(
    mutants: Sequence[Mutant], cases: Iterable[Case], progress: Callable[[int, int], None] | None = None
) -> dict[str, Outcome]:
    """Ask mutants, until each has failed, the cases that reach its function; return the outcomes by id."""
    adapters = {(m.id, dialect): Mutated(m, dialect) for m in mutants for dialect in _DIALECTS}
    controls = {dialect: Mutated(None, dialect) for dialect in _DIALECTS}
    outcomes = {m.id: Outcome() for m in mutants}
    asked = dict.fromkeys(outcomes, 0)
    pending = list(mutants)
    for done, case in enumerate(cases):
        if progress is not None:
            progress(done, len(pending))
        concerned = [m for m in pending if m.function in reach().get(case.operation, ())]
        for dialect in _DIALECTS if case.operation in _STATEFUL else _DIALECTS[:1]:
            usual = {(f.output, f.verdict) for f in run_case(controls[dialect], case)} if concerned else set()
            for mutant in concerned:
                asked[mutant.id] += 1
                for finding in run_case(adapters[mutant.id, dialect], case):
                    if finding.verdict in _FOUND and (finding.output, finding.verdict) not in usual:
                        outcomes[mutant.id] = _worse(outcomes[mutant.id], finding, dialect, asked[mutant.id])
        pending = [m for m in pending if outcomes[m.id].verdict not in FAILURES]
    return {name: o if o.verdict else replace(o, asked=asked[name]) for name, o in outcomes.items()}


def _worse(outcome: Outcome, finding: Finding, dialect: str, asked: int) -> Outcome:
    if outcome.verdict and VERDICTS.index(finding.verdict) <= VERDICTS.index(outcome.verdict):
        return outcome
    return Outcome(finding.verdict, finding.case, dialect, finding.output, finding.note, finding.bound_ratio, asked)


def dense(count: int = 20, seed: int = 2026) -> list[Case]:
    """Return all operations on random inputs that no family of the audit has: shapes, scales, ε and data by chance."""
    rng = np.random.default_rng(seed)

    def one(*choices: object) -> object:
        return choices[int(rng.integers(len(choices)))]

    found = []
    for number in range(count):
        shape = one((5, 2), (4, 3), (3, 2, 2), (2, 3), (7, 1), (2, 2, 2, 2), (12, 2), (1, 2), (1, 1, 9))
        scale = 10.0 ** rng.uniform(-3, 3) if rng.random() < 0.8 else 10.0 ** rng.uniform(-150, 150)
        dtype = one("f64", "f64", "f64", "f32")
        if dtype == "f32":
            scale = 10.0 ** (math.log10(scale) / 5)
        fields = {
            "data": one(*DATA, "normal", "normal", "normal"),
            "offset": float(one(0.0, 0.0, 0.5, -3.0, 40.0, 3e3)) * scale,  # type: ignore[arg-type]
            "scale": scale,
            "dy": one("normal", "normal", "normal", "constant", "like-x"),
            "eps": float(one(1e-5, 1e-3, 0.1, 1.0, 30.0)) * float(one(1.0, 1.0, scale**2)),  # type: ignore[arg-type]
            "momentum": one(0.1, 0.25, 0.9, 1.0, 0.0, None),
            "steps": one(1, 2, 3),
            "seed": 1000 + number,
        }
        if 1e-4 < scale < 1e4 and rng.random() < 0.3:  # else statistics overflow the parameters' format
            fields["param"] = one("f32", "f64")
        found += [Case("composition", operation, dtype, shape, **fields) for operation in OPERATIONS]  # type: ignore[arg-type]
    return found
