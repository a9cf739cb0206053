"""The work on mutants in parts that two processes share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

from validation.mutants import judge
from validation.mutants.generate import Mutant, mutants
from validation.mutants.operators import RECIPES

__all__ = ["LETTERS", "Row", "Task", "audits", "checked", "checks", "judged", "work"]

_CHUNK = 20
LETTERS = {"usual": "u", "chosen": "c", "passed": "p", "unreached": "-"}

Row = dict[str, Any]
Task = tuple[str, tuple[str, ...]]


def judged(
    chosen: Sequence[Mutant], depths: Iterable[str] = ("quick", "full", "dense"), loud: bool = False
) -> list[Row]:
    """Return what the audits say of mutants, deeper only where a mutant has not been found."""
    rows = {m.id: {"id": m.id} | ({"crashes": why} if (why := judge.crashes(m)) else {}) for m in chosen}
    alive = [m for m in chosen if "crashes" not in rows[m.id]]
    quick = set(judge.cases("quick"))
    for depth in depths:
        cases = {
            "quick": lambda: judge.cases("quick"),
            "full": lambda: [c for c in judge.cases("full") if c not in quick],
            "dense": judge.dense,
        }[depth]()
        started = time.monotonic()

        def say(done: int, left: int, depth: str = depth, count: int = len(cases), started: float = started) -> None:
            if loud and done % 100 == 0:
                seconds = time.monotonic() - started
                where = chosen[0].function
                print(f"{depth} ({where} …): {done} of {count} cases, {left} mutants left, {seconds:.0f} s", flush=True)

        for name, outcome in judge.hunt(alive, cases, say).items():
            rows[name][depth] = {k: v for k, v in dataclasses.asdict(outcome).items() if v not in ("", None)}
        alive = [m for m in alive if "verdict" not in rows[m.id][depth]]
    return list(rows.values())


def checked(chosen: Sequence[Mutant]) -> list[Row]:
    """Return what the frameworks' checks say of mutants, a letter for each tool."""
    import torch  # here, for the other commands need neither

    from validation.mutants.checks import TOOLS, inspect

    torch.set_num_threads(1)
    rows = []
    for mutant in chosen:
        answers = inspect(mutant)
        rows.append({"id": mutant.id, "tools": "".join(LETTERS[answers[tool]] for tool in TOOLS)})
    return rows


def work(task: Task) -> list[Row]:
    """Do one part."""
    kind, names = task
    chosen = [m for m in mutants() if m.id in set(names)]
    return judged(chosen, loud=True) if kind == "audit" else checked(chosen)


def audits(chosen: Sequence[Mutant]) -> list[Task]:
    """Return the audits' part, by the operations that reach a function, so that no truth is needed thrice."""

    def group(mutant: Mutant) -> int:
        if mutant.function in judge.reach()["forward"]:
            return 0
        return 1 if any(mutant.function in judge.reach()[op] for op in ("inference", "rev_fwd_eval")) else 2

    groups = [tuple(m.id for m in chosen if group(m) == number) for number in range(3)]
    return [("audit", part) for part in groups if part]


def checks(chosen: Sequence[Mutant], every: int) -> list[Task]:
    """Return the part of the frameworks' checks: every so many mutants, and each of batch norm's own mistakes."""
    own = {recipe.operator for recipe in RECIPES}
    place = {m.id: number for number, m in enumerate(mutants())}
    names = [m.id for m in chosen if place[m.id] % every == 0 or m.operator in own]
    return [("checks", tuple(names[i : i + _CHUNK])) for i in range(0, len(names), _CHUNK)]
