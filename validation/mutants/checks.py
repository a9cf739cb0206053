"""The frameworks' own checks on mutants: which fail at the usual point, which only at the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

from validation.mutants import jax_checks, torch_checks
from validation.mutants.custom import POINTS, Custom, Frozen, Training
from validation.mutants.generate import Mutant
from validation.mutants.textbook import build, called

__all__ = ["TOOLS", "inspect", "reach"]

_MODULES: dict[str, ModuleType] = {name: module for module in (torch_checks, jax_checks) for name in module.CHECKS}
TOOLS = tuple(_MODULES)
# An order includes the ones below it, with the same random directions.
_INCLUDES = {"check_grads rev 2": "check_grads rev 1", "check_grads fwd 2": "check_grads fwd 1"}
_KINDS: tuple[Callable[..., Custom], ...] = (Training, Frozen)


def _run(tool: str, custom: Custom, where: str) -> str:
    return str(_MODULES[tool].check(tool, custom, where))


@cache
def reach() -> dict[tuple[str, int], frozenset[str]]:
    """Return for each tool, with training (0) and frozen statistics (1), which functions of the textbook it runs.

    Raises
    ------
    AssertionError
        If a tool does not pass the textbook itself.
    """
    found = {}
    for tool in TOOLS:
        for kind, make in enumerate(_KINDS):
            for where, (eps, _) in POINTS.items():
                failure = _run(tool, make(build(), eps), where)
                assert not failure, f"{tool} on the textbook, {make.__name__}, {where}: {failure}"
            eps, _ = POINTS["usual"]
            found[tool, kind] = called(lambda t=tool, m=make, e=eps: _run(t, m(build(), e), "usual"))
    return found


def inspect(mutant: Mutant, tools: Sequence[str] = TOOLS) -> dict[str, str]:
    """Return for each tool where it fails first, ``"usual"`` or ``"chosen"``.

    ``"passed"`` means that it fails nowhere, ``"unreached"`` that it never runs the mutated function.
    """
    book = build(mutant.source)
    answers: dict[str, str] = {}
    for tool in tools:
        kinds = [make for kind, make in enumerate(_KINDS) if mutant.function in reach()[tool, kind]]
        below = answers.get(_INCLUDES.get(tool, ""), "")
        if not kinds:
            answers[tool] = "unreached"
        elif below == "usual":
            answers[tool] = below
        else:
            places = [w for w, (eps, _) in POINTS.items() if any(_run(tool, make(book, eps), w) for make in kinds)]
            answers[tool] = places[0] if places else "passed"
    return answers
