"""The textbook as one flat namespace, in which a function can be replaced by a mutant of it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np

__all__ = ["FUNCTIONS", "Shapes", "build", "called", "definitions", "shapes"]

_MODULES = ("_sum", "statistics", "operator", "forward", "backward", "second_order", "taylor", "frozen")
_FILE = "<textbook>"
# No formula of a pass: the tree of additions (whose loops a mutant need not leave), shapes, and the spectrum, which no
# pass asks for.
_NOT_MUTATED = frozenset({"depth", "total", "column", "spectrum"})

Shapes = dict[tuple[str, int], dict[str, tuple[int, ...]]]
"""By function and line, the shapes of the arrays that have names there."""


@cache
def _trees() -> dict[str, ast.Module]:
    return {name: ast.parse(inspect.getsource(import_module(f"refbn.reference.{name}"))) for name in _MODULES}


@cache
def _code() -> CodeType:
    """Compile all modules as one, without their imports of each other."""
    body: list[ast.stmt] = [ast.ImportFrom("__future__", [ast.alias("annotations")], 0)]
    for tree in _trees().values():
        body += [s for s in tree.body if not (isinstance(s, ast.ImportFrom) and _is_own(s.module or ""))]
    return compile(ast.fix_missing_locations(ast.Module(body, [])), _FILE, "exec")


def _is_own(module: str) -> bool:
    return module == "__future__" or module.startswith("refbn.")


@cache
def definitions() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Return the functions that are mutated: by name, the module and the definition."""
    return {
        node.name: (module, node)
        for module, tree in _trees().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name not in _NOT_MUTATED
    }


FUNCTIONS = tuple(definitions())


def build(source: str = "") -> ModuleType:
    """Return the textbook; ``source``, a function's definition, takes the place of the one of that name."""
    made = ModuleType("textbook")
    exec(_code(), made.__dict__)
    if source:
        made.__dict__.update(_like=_like, _narrow=_narrow)
        exec(compile("from __future__ import annotations\n" + source, _FILE, "exec"), made.__dict__)
    return made


def _like(value: Any, *others: Any) -> Any:
    """Return what is left of an expression in the shape that the whole one had."""
    return np.broadcast_to(value, np.broadcast_shapes(*(np.shape(a) for a in (value, *others)))) + 0.0


def _narrow(value: Any) -> Any:
    """Round to binary32 on the way."""
    return np.asarray(value, np.float32).astype(np.float64)


# ---- looking at a run --------------------------------------------------------------------------------------------


def called(work: Callable[[], object]) -> frozenset[str]:
    """Return which of the textbook's functions are called while ``work`` runs."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename == _FILE:
            names.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return frozenset(names & set(FUNCTIONS))


@cache
def shapes() -> Shapes:
    """Run every pass once and note what has which shape where; three channels of five elements."""
    found: Shapes = {}

    def note(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != _FILE:
            return None
        if event == "line":
            local = frame.f_locals.items()
            arrays = {name: value.shape for name, value in local if isinstance(value, np.ndarray) and name != "_"}
            found.setdefault((frame.f_code.co_name, frame.f_lineno), arrays)
        return note

    passes = list(_every_pass(build()))
    before = sys.gettrace()
    sys.settrace(note)
    try:
        for work in passes:
            work()
    finally:
        sys.settrace(before)
    return found


def _every_pass(book: Any) -> Iterator[Callable[[], object]]:
    from fractions import Fraction

    rng = np.random.default_rng(0)
    x, dy, u = rng.standard_normal((3, 3, 5))
    gamma, beta, mean, gamma_dot, beta_dot, mean_dot, var_dot = rng.standard_normal((7, 3))
    var, eps = np.exp(mean), 1e-5
    stats, frozen = book.forward(x, gamma, beta, eps).stats, book.inference(x, mean, var, gamma, beta, eps).stats
    yield lambda: book.forward(x, gamma, beta, eps)
    yield lambda: book.jvp(stats, gamma, u, gamma_dot, beta_dot)
    yield lambda: book.backward(stats, gamma, dy)
    yield lambda: book.double_backward(stats, gamma, dy, u, gamma_dot, beta_dot)
    yield lambda: book.taylor(np.stack([x, u]), np.stack([gamma, gamma_dot]), np.stack([beta, beta_dot]), eps)
    yield lambda: book.running_update(stats, 5, Fraction(1, 8), True, True, mean, var)
    yield lambda: book.inference(x, mean, var, gamma, beta, eps)
    yield lambda: book.inference_jvp(frozen, gamma, u, mean_dot, var_dot, gamma_dot, beta_dot)
    yield lambda: book.inference_backward(frozen, gamma, dy)
    yield lambda: book.inference_double_backward(frozen, gamma, dy, u, mean_dot, var_dot, gamma_dot, beta_dot)
