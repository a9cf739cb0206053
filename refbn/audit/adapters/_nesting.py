"""How the audit's compositions are nested, and written down, for frameworks that have derivatives of their own.

A framework brings three functions: its gradient of a scalar function, its derivative of any function along the
direction, and the inner product of a gradient with the direction. `nest` puts them together, outermost mode first as in
`Operation.composition`. `script` writes the same in the framework's own words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refbn.audit.adapters._protocol import OPERATIONS, STATE, Operation

__all__ = ["Language", "asked_for", "nest", "point_of", "script"]

Function = Callable[..., Any]
"""Of the point (x, gamma, beta, …): y, f or L, or their gradients as a tuple."""


def nest(composition: str, loss: Function, reverse: Function, forward: Function, along: Function) -> Any:
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
    composed = loss(scalar)
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
    if asked in STATE:
        return ("gamma", "beta", "running_mean", "running_var")
    names = point_of(asked, moves_statistics=True)
    if operation.startswith("vjp"):
        return (*names, "dy")
    if not asked.composition:
        return names
    return (*names, *(f"{name}_dot" for name in names), *(() if operation.startswith("jvp") else ("w",)))


# ---- scripts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Language:
    """How a framework writes what a script needs.

    Attributes
    ----------
    wide, total : str
        Expressions for ``{}`` in binary64, and for its sum.
    grad, jvp : tuple of str
        The lines that define ``grad(function)`` and ``jvp(function)``, the derivative along ``direction``.
    """

    wide: str
    total: str
    grad: tuple[str, ...]
    jvp: tuple[str, ...]


def script(
    operation: str, language: Language, head: Sequence[str], point: tuple[str, ...], call: str = "{}(*point)"
) -> str:
    """Return the lines that ask for an operation without state, but for ``forward``.

    Parameters
    ----------
    operation : str
        Its name.
    language : Language
        The framework's.
    head : sequence of str
        The lines that define ``tensor(a)``, its inverse ``array(t)`` and ``batch_norm`` as a function of the point.
    point : tuple of str
        The names of what batch norm is a function of.
    call : str
        How a function ``{}`` is called at the point.
    """
    asked = OPERATIONS[operation]
    modes = asked.composition.split("-")
    lines = [*head, "", f"point = {', '.join(f'tensor({name})' for name in point)}"]
    if asked.composition and not operation.startswith("vjp") and asked.composition != "rev":
        lines.append(f"direction = {', '.join(f'tensor({name}_dot)' for name in point)}")
    for mode, definition in (("rev", language.grad), ("fwd", language.jvp)):
        if mode in modes:
            lines += ["", "", *definition]

    def product(a: str, b: str) -> str:
        return language.total.format(f"{language.wide.format(a)} * {language.wide.format(b)}")

    if operation == "inference":
        expression = "batch_norm"
    elif operation.startswith("vjp"):
        lines += ["", "", "def loss(*p):", f"    return {product('batch_norm(*p)', 'tensor(dy)')}"]
        expression = "grad(loss)"
    elif operation.startswith("jvp"):
        expression = "jvp(batch_norm)"
    else:
        if modes.count("rev") > 1:
            inner = product("g", "d")
            lines += ["", "", "def along(gradient):", "    def value(*p):"]
            lines += ["        pairs = zip(gradient(*p), direction)"]
            lines += [f"        return sum({inner} for g, d in pairs)", "", "    return value"]
        f = f"{language.wide.format('tensor(w)')} * (y * y / 2 + y * y * y / 6)"
        lines += ["", "", "def loss(*p):", f"    y = {language.wide.format('batch_norm(*p)')}"]
        lines += [f"    return {language.total.format(f) if 'rev' in modes else f}"]
        expression = nest(
            asked.composition,
            lambda _: "loss",
            lambda function: f"grad({function})",
            lambda function: f"jvp({function})",
            lambda gradient: f"along({gradient})",
        )
    lines += ["", "", f"found = {call.format(expression)}"]
    if "rev" in modes:
        names = ", ".join(f'"d{name}"' for name in point)
        lines.append(f"answer = {{name: array(g) for name, g in zip([{names}], found)}}")
    else:
        lines.append(f'answer = {{"{asked.outputs[0]}": array(found)}}')
    return "\n".join(lines)
