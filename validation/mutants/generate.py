"""All mutants of the textbook, in a fixed order."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from validation.mutants import textbook
from validation.mutants.operators import OPERATORS, RECIPES, Change, Scope

__all__ = ["Mutant", "mutants", "original"]

_LABEL = re.compile(r"# \(?([A-Z]\d+)")


@dataclass(frozen=True)
class Mutant:
    """One wrong textbook.

    Attributes
    ----------
    id : str
        Function, equation (or ``L`` and the line within the function), operator, and a number.
    function, module : str
        Which one, and where it stands in `refbn.reference`.
    line : int
        In that file.
    label : str
        The equation, as the code cites it; empty if it cites none.
    operator : str
        What was done.
    before, after : str
        The expression, and the mutated one.
    source : str
        The mutated function.
    """

    id: str
    function: str
    module: str
    line: int
    label: str
    operator: str
    before: str
    after: str
    source: str


@cache
def mutants() -> tuple[Mutant, ...]:
    """Return all mutants; no two have the same function, and none has the textbook's own."""
    found: list[Mutant] = []
    for function, (module, definition) in textbook.definitions().items():
        seen = {ast.unparse(_bare(definition))}
        numbers: Counter[str] = Counter()
        for node, change, source in _changes(definition):
            if source in seen:
                continue
            seen.add(source)
            line, label = _place(module, definition, node)
            place = label or f"L{node.lineno - definition.lineno}"
            stem = f"{function}.{place}.{change.operator}"
            numbers[stem] += 1
            before, after = _brief(ast.unparse(node)), _brief(change.after)
            found.append(
                Mutant(f"{stem}.{numbers[stem]}", function, module, line, label, change.operator, before, after, source)
            )
    return tuple(found)


def original(function: str) -> str:
    """Return a function as it is, in the form that mutants' sources have."""
    return ast.unparse(_bare(textbook.definitions()[function][1]))


def _brief(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "…"


def _bare(definition: ast.FunctionDef) -> ast.FunctionDef:
    """Return a copy without docstring and annotations: its text is compared and compiled."""
    bare = copy.deepcopy(definition)
    if ast.get_docstring(bare) is not None:
        bare.body = bare.body[1:]
    bare.returns = None
    for argument in bare.args.args:
        argument.annotation = None
    return bare


def _changes(definition: ast.FunctionDef) -> Iterator[tuple[ast.expr, Change, str]]:
    """Yield each expression of a function with each change of it and the whole function after it."""
    bare = _bare(definition)
    for parent, field, index, node, statement in _expressions(bare):
        scope = Scope(textbook.shapes().get((definition.name, statement.lineno), {}))
        changes = [change for operator in OPERATORS.values() for change in operator(node, scope)]
        changes += [
            Change(recipe.operator, recipe.after, recipe.after)
            for recipe in RECIPES
            if recipe.function == definition.name and recipe.before == ast.unparse(node)
        ]
        if _is_value(parent, field, node, scope):
            changes.append(Change("lower-precision", f"float32({ast.unparse(node)})", f"_narrow({ast.unparse(node)})"))
        for change in changes:
            replaced = ast.parse(change.code, mode="eval").body
            _put(parent, field, index, replaced)
            yield node, change, ast.unparse(bare)
            _put(parent, field, index, node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.expr) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


_Place = tuple[ast.AST, str, int | None, ast.expr, ast.stmt]


def _expressions(definition: ast.FunctionDef) -> Iterator[_Place]:
    for statement in definition.body:
        yield from _inside(statement, statement)


def _inside(parent: ast.AST, statement: ast.stmt) -> Iterator[_Place]:
    """Yield what may be mutated below a node, outermost first; no subscripts, axes, targets or context managers."""
    for field, value in ast.iter_fields(parent):
        if field in ("slice", "targets", "target", "items", "func", "annotation", "generators"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.stmt):
                yield from _inside(child, child)
            elif isinstance(child, ast.keyword):
                if child.arg not in ("axis", "keepdims", "initial"):
                    yield from _inside(child, statement)
            elif isinstance(child, ast.expr):
                yield parent, field, index, child, statement
                yield from _inside(child, statement)


def _is_value(parent: ast.AST, field: str, node: ast.expr, scope: Scope) -> bool:
    """Whether an expression is one that is stored: the right side of an assignment, a result, a result's field."""
    if isinstance(node, (ast.Tuple, ast.Name, ast.Constant, ast.IfExp, ast.Attribute, ast.List)):
        return False
    if isinstance(parent, ast.keyword):
        return True
    if isinstance(parent, ast.Assign):
        return not isinstance(parent.targets[0], ast.Tuple) and not ast.unparse(node).startswith(("exponent", "hvp"))
    return isinstance(parent, ast.Return) and not (isinstance(node, ast.Call) and ast.unparse(node.func)[0].isupper())


@cache
def _lines(module: str) -> list[str]:
    return inspect.getsource(import_module(f"refbn.reference.{module}")).splitlines()


def _place(module: str, definition: ast.FunctionDef, node: ast.expr) -> tuple[int, str]:
    """Return the line in the file, and the equation that is cited there or next within the function."""
    last = definition.end_lineno or definition.lineno
    for text in _lines(module)[node.lineno - 1 : last]:
        if cited := _LABEL.search(text):
            return node.lineno, cited[1]
    return node.lineno, ""
