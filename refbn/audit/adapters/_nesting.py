"""How the audit's compositions are nested, and written down, for frameworks that have derivatives of their own.

A framework brings three functions: its gradient of a scalar function, its derivative of any function along the
direction, and the inner product of a gradient with the direction. `nest` puts them together, outermost mode first as in
`Operation.composition`. `script` writes the same in the framework's own words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refbn.audit.adapters._protocol import OPERATIONS, Inputs, Operation

__all__ = ["Language", "asked_for", "nest", "script"]

Function = Callable[..., Any]
"""Of the point (x, gamma, beta, …): y, f or L, or their gradients as a tuple."""


def nest(composition: str, loss: Function, reverse: Function, forward: Function, along: Function) -> Function:
    """Return a composition of derivatives as a function of the point.

    Parameters
    ----------
    composition : str
        As in `Operation.composition`; not empty.
    loss : function
        Of ``total``: L if it is true, f if not.
    reverse, forward : function
        From a function to its gradient (of a scalar one), and to its derivative along the direction.
    along : function
        From a gradient to its inner product with the direction.
    """
    modes = composition.split("-")
    scalar = "rev" in modes  # what `composed` returns at this place of the nesting: a number, or a gradient
    composed: Function = loss(scalar)
    for mode in reversed(modes):
        if mode == "fwd":
            composed = forward(composed)
        else:
            composed = reverse(composed if scalar else along(composed))
            scalar = False
    return composed


def point_of(asked: Operation, moves_statistics: bool) -> tuple[str, ...]:
    """Return the names of what a batch norm is a function of."""
    return ("x", "gamma", "beta", "mean", "var") if asked.frozen and moves_statistics else ("x", "gamma", "beta")


def asked_for(operation: str) -> tuple[str, ...]:
    """Return the names of the inputs that an operation reads, `Inputs.batches` left out."""
    asked = OPERATIONS[operation]
    if operation in ("running", "train_eval_train"):
        return ("gamma", "beta", "running_mean", "running_var")
    names = ("x", "gamma", "beta", "mean", "var") if asked.frozen else ("x", "gamma", "beta")
    if operation.startswith("vjp"):
        return (*names, "dy")
    if not asked.composition:
        return names
    return (*names, *(f"{name}_dot" for name in names), *(() if operation.startswith("jvp") else ("w",)))


# ---- scripts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Language:
    """How a framework writes what a script needs, beside batch norm itself.

    Attributes
    ----------
    tensor : str
        An expression for the array ``{0}`` as a tensor, channels where ``batch_norm`` wants them.
    array : str
        An expression for the tensor ``{0}`` as an array of the audit's shape and x's dtype.
    loss : tuple of str
        The body of ``f(*point)``; ``weights`` is w as a tensor.
    total : str
        An expression for the sum of ``{0}``.
    grad, jvp : tuple of str
        Definitions of ``grad(function)`` and ``jvp(function)``; ``direction`` is a tuple of tensors.
    """

    tensor: str
    array: str
    loss: tuple[str, ...]
    total: str
    grad: tuple[str, ...]
    jvp: tuple[str, ...]


def script(operation: str, head: list[str], language: Language, point: tuple[str, ...]) -> str:
    """Return the lines that ask for an operation that keeps no state.

    Parameters
    ----------
    operation : str
        Its name.
    head : list of str
        Imports and the definition of ``batch_norm``, a function of the point.
    language : Language
        The framework's.
    point : tuple of str
        The names of what batch norm is a function of.
    """
    asked = OPERATIONS[operation]
    tensor, total = language.tensor.format, language.total.format
    lines = [*head, "", f"point = ({', '.join(tensor(name) for name in point)})"]
    gradients = [f"d{name}" for name in point]
    if operation == "inference":
        return "\n".join([*lines, f'answer = {{"y": {language.array.format("batch_norm(*point)")}}}'])
    modes = asked.composition.split("-")
    if operation.startswith("vjp"):
        lines += [f"cotangent = {tensor('dy')}", "", *language.grad, ""]
        inner = total("batch_norm(*point) * cotangent")
        lines += [f"found = grad(lambda *point: {inner})(*point)"]
    elif operation.startswith("jvp"):
        lines += [f"direction = ({', '.join(tensor(f'{name}_dot') for name in point)})", "", *language.jvp, ""]
        return "\n".join([*lines, f'answer = {{"y_dot": {language.array.format("jvp(batch_norm)(*point)")}}}'])
    else:
        lines += [f"weights = {tensor('w')}"]
        if len(modes) > 1 or "fwd" in modes:
            lines += [f"direction = ({', '.join(tensor(f'{name}_dot') for name in point)})"]
        lines += ["", "", "def f(*point):", *(f"    {line}" for line in language.loss), ""]
        lines += [*(["", *language.grad, ""] if "rev" in modes else []), *(["", *language.jvp, ""] if "fwd" in modes else [])]
        if modes.count("rev") > 1 or asked.composition == "rev-fwd":
            pass
        expression = nest(
            asked.composition,
            lambda scalar: f"lambda *point: {total('f(*point)')}" if scalar else "f",
            lambda function: f"grad({function})",
            lambda function: f"jvp({function})",
            lambda gradient: f"along({gradient})",
        )
        if "along(" in expression:
            lines += [
                "",
                "def along(gradient):",
                f"    return lambda *point: sum({total('g * d')} for g, d in zip(gradient(*point), direction))",
                "",
            ]
        lines += ["", f"found = {expression}(*point)"]
        if "rev" not in modes:
            return "\n".join([*lines, f'answer = {{"value": {language.array.format("found")}}}'])
    lines += [f"answer = {{name: {language.array.format('g')} for name, g in zip({gradients}, found)}}"]
    return "\n".join(lines)
