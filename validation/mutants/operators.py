"""The mutation operators: each turns an expression of the textbook into wrong ones.

An operator is a function from an expression and its scope to `Change` objects. `OPERATORS` is the table that generation
walks through; `RECIPES` are mistakes of batch norm's own that no general operator makes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["OPERATORS", "RECIPES", "Change", "Operator", "Recipe", "Scope"]


class Change(NamedTuple):
    """One mutation of one expression.

    Attributes
    ----------
    operator : str
        The operator's name.
    after : str
        The mutated expression, as one reads it.
    code : str
        The same as it is run: where a term is dropped, the rest keeps the shape of the whole.
    """

    operator: str
    after: str
    code: str


@dataclass(frozen=True)
class Scope:
    """What an operator may know of the place: the shapes of named arrays; three channels of five elements."""

    arrays: Mapping[str, tuple[int, ...]]

    def twins(self, name: str) -> list[str]:
        """Return the arrays of the same shape that were named just before and just after."""
        if name not in self.arrays:
            return []
        alike = [n for n, s in self.arrays.items() if s == self.arrays[name]]
        place = alike.index(name)
        return [*alike[max(place - 1, 0) : place], *alike[place + 1 : place + 2]]


Operator = Callable[[ast.expr, Scope], Iterator[Change]]


def _text(node: ast.expr) -> str:
    """Return the source of an operand, in parentheses unless it is an atom."""
    text = ast.unparse(node)
    return text if isinstance(node, (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript)) else f"({text})"


def _plain(operator: str, code: str) -> Change:
    return Change(operator, code, code)


def _left(operator: str, kept: ast.expr, dropped: ast.expr, sign: str = "") -> Change:
    return Change(operator, sign + ast.unparse(kept), f"_like({sign}{_text(kept)}, {_text(dropped)})")


# ---- terms, signs, factors ---------------------------------------------------------------------------------------


def terms(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """``a + b``: drop a term, flip a sign."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, (ast.Add, ast.Sub)):
        return
    a, b, minus = node.left, node.right, isinstance(node.op, ast.Sub)
    yield _left("drop-term", b, a, "-" if minus else "")
    yield _left("drop-term", a, b)
    yield _plain("flip-sign", f"{_text(a)} {'+' if minus else '-'} {_text(b)}")


def negation(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """``-a``: without the sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield _plain("flip-sign", ast.unparse(node.operand))


def factors(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """``a * b``: drop a factor, square it, divide by it; ``a / b``: multiply, drop the divisor."""
    if not isinstance(node, ast.BinOp):
        return
    a, b = node.left, node.right
    if isinstance(node.op, ast.Mult):
        yield _left("drop-factor", b, a)
        yield _left("drop-factor", a, b)
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, ast.Constant):
                yield _plain("wrong-power", f"{_text(one)} * {_text(one)} * {_text(other)}")
        yield _plain("divide-for-multiply", f"{_text(a)} / {_text(b)}")
    elif isinstance(node.op, ast.Div):
        yield _left("drop-factor", a, b)
        yield _plain("wrong-power", f"{_text(a)} / {_text(b)} / {_text(b)}")
        yield _plain("multiply-for-divide", f"{_text(a)} * {_text(b)}")


def powers(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """``a ** b``: without the exponent, with the opposite one."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        yield _left("wrong-power", node.left, node.right)
        yield _plain("wrong-power", f"{_text(node.left)} ** -{_text(node.right)}")


def constants(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """A number: twice, half; an integer: one more, one less."""
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, float):
        yield _plain("wrong-constant", repr(2 * node.value))
        yield _plain("wrong-constant", repr(node.value / 2))
    elif isinstance(node.value, int) and not isinstance(node.value, bool):
        yield _plain("wrong-constant", repr(node.value + 1))
        yield _plain("wrong-constant", repr(node.value - 1))


# ---- means, sums, roots ------------------------------------------------------------------------------------------


def _call(node: ast.expr, *names: str) -> str:
    if isinstance(node, ast.Call) and not node.keywords and (name := ast.unparse(node.func)) in names:
        return name
    return ""


def reductions(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """A mean over another number of elements, over all channels, without the last element; a sum for a mean."""
    if not isinstance(node, ast.Call) or not (name := _call(node, "mean", "total")):
        return
    u = ast.unparse(node.args[0])
    size = f"np.shape({u})[-1]"
    if name == "mean":
        yield _plain("sum-for-mean", f"total({u})")
        yield Change("divide-by-m-minus-1", f"total({u}) / (m - 1)", f"total({u}) / np.float64({size} - 1)")
        yield Change("divide-by-m-plus-1", f"total({u}) / (m + 1)", f"total({u}) / ({size} + 1)")
    else:
        yield _plain("mean-for-sum", f"mean({u})")
    over = "np.mean" if name == "mean" else "np.sum"
    yield Change("reduce-over-channels", f"{over}({u})", f"_like({over}({u}), {name}({u}))")
    yield Change("last-element-forgotten", f"{name}({u}[:, :-1])", f"{name}(({u})[..., :-1])")


def roots(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """No root."""
    if isinstance(node, ast.Call) and _call(node, "np.sqrt"):
        yield _plain("drop-root", ast.unparse(node.args[0]))


def extremes(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """The smaller for the larger, one of them, the other branch, no clipping, no magnitude."""
    if not isinstance(node, ast.Call):
        return
    first, *rest = (ast.unparse(a) for a in node.args) if node.args else ("",)
    match ast.unparse(node.func):
        case "np.maximum":
            yield _plain("wrong-extreme", f"np.minimum({first}, {rest[0]})")
            yield _plain("wrong-extreme", first)
            yield _plain("wrong-extreme", rest[0])
        case "np.max":
            yield _plain("wrong-extreme", ast.unparse(node).replace("np.max(", "np.min(").replace("0.0", "np.inf"))
        case "np.where":
            yield _plain("wrong-branch", rest[0])
            yield _plain("wrong-branch", rest[1])
        case "np.clip":
            yield _plain("no-clip", first)
        case "np.abs":
            yield _plain("no-magnitude", first)


# ---- statistics taken for constants, and the projector -----------------------------------------------------------


def projector(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """P without what makes it: mean, variance or both held constant; P twice; C forgotten."""
    if isinstance(node, ast.Call) and _call(node, "project"):
        stats, u = (ast.unparse(a) for a in node.args)
        yield _plain("detach-statistics", u)
        yield _plain("detach-variance", f"center({u})[0]")
        yield Change(
            "detach-mean",
            f"{u} - {stats}.xhat * mean({stats}.xhat * {u})",
            f"({u}) - {stats}.xhat * mean({stats}.xhat * ({u}))",
        )
        yield _plain("project-twice", f"project({stats}, project({stats}, {u}))")
        yield _plain("flip-sign", f"-project({stats}, {u})")
    if isinstance(node, ast.Call) and _call(node, "center"):
        u = ast.unparse(node.args[0])
        yield _plain("drop-centering", f"({u}, mean({u}))")


# ---- the wrong operand -------------------------------------------------------------------------------------------

_FIELDS = {"mean": "vector", "var": "vector", "invstd": "vector", "kappa": "vector"}


def operands(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """Another array of the same shape: u for g, x̂ for dy, γ for r, the variance for invstd."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        for other in scope.twins(node.id):
            yield _plain("wrong-operand", other)
        if node.id in ("new", "old"):
            yield _plain("wrong-operand", "old" if node.id == "new" else "new")
    if isinstance(node, ast.Attribute) and node.attr in _FIELDS and isinstance(node.value, ast.Name):
        yield from (_plain("wrong-operand", f"{node.value.id}.{name}") for name in _FIELDS if name != node.attr)


def branches(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """``a if c else b``: always a, always b, the wrong one."""
    if isinstance(node, ast.IfExp):
        test, a, b = ast.unparse(node.test), ast.unparse(node.body), ast.unparse(node.orelse)
        yield _plain("wrong-branch", a)
        yield _plain("wrong-branch", b)
        yield _plain("wrong-branch", f"{b} if {test} else {a}")


_TENSORS = frozenset({"dx", "ddy", "y", "xhat"})


def outputs(node: ast.expr, scope: Scope) -> Iterator[Change]:
    """A result: one field scaled or negated, or two of them swapped."""
    if not isinstance(node, ast.Call) or not node.keywords or not ast.unparse(node.func)[0].isupper():
        return
    given = {k.arg or "": ast.unparse(k.value) for k in node.keywords}
    head = ast.unparse(node.func)

    def written(changed: dict[str, str]) -> str:
        return f"{head}({', '.join(f'{name}={value}' for name, value in changed.items())})"

    names = list(given)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if (a in _TENSORS) == (b in _TENSORS):
                code = written(given | {a: given[b], b: given[a]})
                yield Change("swap-outputs", f"{a} and {b} swapped", code)
        yield Change("flip-sign", f"{a}=-{_brief(given[a])}", written(given | {a: f"-({given[a]})"}))
        yield Change("zero-output", f"{a}=0", written(given | {a: f"0.0 * ({given[a]})"}))


def _brief(text: str) -> str:
    return f"({text})" if len(text) < 40 else "(…)"


OPERATORS: dict[str, Operator] = {
    "terms": terms,
    "negation": negation,
    "factors": factors,
    "powers": powers,
    "constants": constants,
    "reductions": reductions,
    "roots": roots,
    "extremes": extremes,
    "projector": projector,
    "operands": operands,
    "branches": branches,
    "outputs": outputs,
}
"""In the order in which they are applied to each expression."""


class Recipe(NamedTuple):
    """A mistake of batch norm's own: in a function, one expression becomes another."""

    operator: str
    function: str
    before: str
    after: str


RECIPES = (
    Recipe("one-pass-variance", "statistics", "mean(d * d)", "mean((x * 2.0 ** -j) ** 2) - mean(x * 2.0 ** -j) ** 2"),
    Recipe("eps-outside-root", "statistics", "np.sqrt(q)", "(np.sqrt(q - eps_scaled) + eps * 2.0 ** -n)"),
    Recipe("eps-as-floor", "statistics", "v * 4.0 ** (j - n) + eps_scaled",
           "np.maximum(v * 4.0 ** (j - n), eps_scaled)"),
    Recipe("eps-outside-root", "inference", "np.sqrt(var + eps)", "(np.sqrt(var) + eps)"),
    Recipe("eps-as-floor", "inference", "var + eps", "np.maximum(var, eps)"),
    Recipe("inference-as-training", "inference", "x - column(mean)", "x - np.mean(x, axis=-1, keepdims=True)"),
    Recipe("inference-as-training", "inference", "var + eps", "np.var(x, axis=-1) + eps"),
    Recipe("invstd-for-variance", "inference", "Frozen(invstd, xhat)", "Frozen(1.0 / np.sqrt(invstd + eps), xhat)"),
    Recipe("eps-forgotten", "columns", "column(stats.invstd)", "column(1.0 / np.sqrt(stats.var))"),
    Recipe("xhat-of-unit-variance", "project", "mean(stats.xhat * centered)",
           "mean(stats.xhat * centered) / mean(stats.xhat ** 2)"),
    Recipe("training-formula", "inference_backward", "gamma * (r * dy)",
           "gamma * (r * (dy - mean(dy) - stats.xhat * mean(stats.xhat * dy)))"),
    Recipe("training-formula", "inference_jvp", "column(gamma) * xhat_dot",
           "column(gamma) * (xhat_dot - mean(xhat_dot))"),
    Recipe("training-formula", "inference_hvp", "factor * dy", "factor * (dy - mean(dy))"),
    Recipe("gamma-gradient-without-invstd", "backward", "total(center(dy)[0] * xhat)[:, 0]",
           "total(center(dy)[0] * xhat / r)[:, 0]"),
    Recipe("gamma-gradient-without-invstd", "inference_backward", "sum_dy_xhat[:, 0]", "(sum_dy_xhat / r)[:, 0]"),
    Recipe("first-element-for-mean", "center", "first + mean(u - first)", "first"),
    Recipe("unbiased-normalization", "statistics", "mean(d * d)", "total(d * d) / np.float64(np.shape(d)[-1] - 1)"),
    Recipe("corrected-twice", "running_update", "unbiased_var(stats.var, m)",
           "unbiased_var(unbiased_var(stats.var, m), m)"),
    Recipe("standard-deviation-for-variance", "running_update", "unbiased_var(stats.var, m)",
           "np.sqrt(unbiased_var(stats.var, m))"),
    Recipe("constant-statistics-in-jvp", "double_backward", "second.dx",
           "column(ddgamma) * (column(stats.invstd) * project(stats, dy)) - column(gamma * stats.invstd ** 2)"
           " * (dy * mean(stats.xhat * center(ddx)[0]) + center(ddx)[0] * mean(stats.xhat * dy))"),
)  # fmt: skip
