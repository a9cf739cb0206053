"""A symbolic proof for every numbered equation, and the register of labels that code and docstrings share.

``python -m validation.proofs`` proves all equations and prints a table.

**Method.** Tensors are vectors of m = 3 symbols (some proofs take 4). The only irrational function is s = √(v + ε).
Since x and s may be chosen freely (ε is then s² − v), s is a symbol as well, ε is never one, and all formulas
become polynomials in s and 1/s: expanding the difference of two of them proves or refutes that they are equal.
Derivatives come from SymPy's `diff` and the rule for s that follows from s² = v + ε, 2·s·ṡ = v̇: no derivative
formula of the textbook is presupposed. Two proofs differentiate √(v + ε) itself and so check that rule.

Most proofs also run the textbook's own code on the symbols. The code that computes an equation is proved with it.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sympy

from refbn import reference
from refbn.reference.frozen import Frozen
from refbn.reference.statistics import Statistics, center

__all__ = ["PROOFS", "Equation", "cited_labels", "defined_labels", "main"]

Tensor = Any  # an object array of SymPy expressions
PROOFS: dict[str, Callable[[], None]] = {}


# ---- the register of labels ---------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".pyx", ".pxd", ".c", ".h", ".inc"}
NOT_EQUATIONS = "CR"  # constraints C1 … and the contract's rules R1 …


class Equation(NamedTuple):
    """Where a label stands, and the rest of its line."""

    label: str
    where: str
    text: str


def _sources() -> Iterator[Path]:
    """Yield all sources but those of the audit, whose own rules have labels of their own."""
    for folder in ("refbn", "_ext"):
        files = (p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)
        yield from sorted(p for p in files if ROOT / "refbn" / "audit" not in p.parents)


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each docstring's lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or ast.get_docstring(node) is None:
            continue
        constant = node.body[0].value  # type: ignore[attr-defined]
        yield from enumerate(constant.value.splitlines(), constant.lineno)


def defined_labels() -> list[Equation]:
    """Return all definitions: ``(B3)  dx = …`` at the start of a docstring line of the textbook, two spaces after."""
    return [
        Equation(match[1], f"{path.relative_to(ROOT)}:{line}", match[2])
        for path in _sources()
        if path.suffix == ".py" and "reference" in path.parts
        for line, text in _docstrings(path)
        if (match := re.match(r"\s*\(([A-Z]\d+)\)\s\s+(\S.*)", text))
    ]


def cited_labels() -> list[Equation]:
    """Return all citations, ``(B3)`` or ``(P1, P2)``, in Python, C and Cython; definitions included."""
    return [
        Equation(label, f"{path.relative_to(ROOT)}:{line}", text.strip())
        for path in _sources()
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for group in re.findall(r"\(([A-Z]\d+(?:, ?[A-Z]\d+)*)\)", text)
        for label in re.split(r", ?", group)
        if label[0] not in NOT_EQUATIONS
    ]


# ---- symbols -------------------------------------------------------------------------------------------------------

M = 3
S = sympy.Symbol("s", positive=True)
GAMMA, GAMMA_DOT, BETA, BETA_DOT = sympy.symbols("gamma gamma_dot beta beta_dot")
MEAN, VAR, MEAN_DOT, VAR_DOT = sympy.symbols("mu v mu_dot v_dot")
HALF = sympy.Rational(1, 2)


def vector(name: str, m: int = M) -> Tensor:
    return np.array(sympy.symbols(f"{name}1:{m + 1}"), dtype=object)


def expanded(u: Tensor) -> Tensor:
    """Multiply out, which keeps what is built on u small."""
    return np.array([sympy.expand(a) for a in u], dtype=object)


def mean(u: Tensor) -> Any:
    return sympy.expand(u.sum() / len(u))


X, X_DOT, DY, DY_DOT, W = (vector(name) for name in ("x", "u", "g", "z", "w"))
MU = mean(X)
D = expanded(X - MU)
V = mean(D * D)
EPS = S**2 - V
KAPPA = sympy.expand(EPS / S**2)
R = 1 / S
XHAT = expanded(D * R)
Y = GAMMA * XHAT + BETA


def project(u: Tensor, xhat: Tensor = XHAT) -> Tensor:
    return expanded(u - mean(u) - xhat * mean(xhat * u))


def kernel(u: Tensor, g: Tensor) -> Tensor:
    bracket = mean(XHAT * g) * project(u) + mean(XHAT * u) * project(g) + XHAT * mean(u * project(g))
    return -GAMMA * R**2 * bracket


def stats() -> Statistics:
    """Return the textbook's statistics, made of symbols."""
    return Statistics(*(np.array([a]) for a in (MU, V, R)), XHAT[None, :], np.array([KAPPA]))


def batch(a: Any) -> Tensor:
    """Make a vector (1,) or a tensor (1, m) of it, as the textbook takes them."""
    return np.array([a], dtype=object) if not isinstance(a, np.ndarray) else a[None, :]


def equal(first: Any, *others: Any) -> None:
    """Assert that expressions (or tensors of them, also with a leading axis of one channel) are identical."""
    first = np.ravel(np.asarray(first, dtype=object))
    for other in others:
        for a, b in zip(first, np.ravel(np.asarray(other, dtype=object)), strict=True):
            difference = sympy.sympify(a - b)
            if sympy.expand(difference) != 0:  # a quotient whose denominator is not a power of s
                assert sympy.expand(sympy.numer(sympy.together(difference))) == 0, difference


def exactly(value: Any) -> Tensor:
    """Replace binary64 numbers in results of the textbook, such as ½, by rational ones."""
    return np.array([sympy.nsimplify(sympy.expand(a), rational=True) for a in np.ravel(value)])


def along(value: Any, *moves: tuple[Any, Any]) -> Any:
    """Differentiate along a tangent, given as pairs (symbols, velocities); s follows v + ε."""
    pairs = [
        (a, b) for symbols, velocities in moves for a, b in zip(np.ravel(symbols), np.ravel(velocities), strict=True)
    ]
    v_dot = sum(sympy.diff(V, a) * b for a, b in pairs)
    pairs.append((S, v_dot / (2 * S)))  # 2·s·ṡ = v̇, for ε is a constant
    derivative = np.vectorize(lambda f: sum(sympy.diff(f, a) * b for a, b in pairs), otypes=[object])
    return derivative(value) if isinstance(value, np.ndarray) else derivative(value).item()


MOVE_X = (X, X_DOT)
MOVE_GAMMA = (GAMMA, GAMMA_DOT)
MOVE_BETA = (BETA, BETA_DOT)
MOVE_DY = (DY, DY_DOT)


def proves(*labels: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(proof: Callable[[], None]) -> Callable[[], None]:
        PROOFS.update(dict.fromkeys(labels, proof))
        return proof

    return register


# ---- statistics ----------------------------------------------------------------------------------------------------


@proves("S1")
def mean_is_shifted_by_any_constant() -> None:
    c = sympy.Symbol("c")
    equal(MU, c + mean(X - c), center(X[None, :])[1])


@proves("S2")
def centering_is_idempotent() -> None:
    equal(D, D - mean(D), center(X[None, :])[0])


@proves("S3")
def variance_is_the_second_central_moment() -> None:
    equal(V, mean(X * X) - MU**2)


@proves("S4", "S5", "S6")
def moments_of_the_standardized_input() -> None:
    equal(V + EPS, S**2, 1 / R**2)
    equal(XHAT * S, D)
    equal(mean(XHAT), 0)
    equal(mean(XHAT**2), V / (V + EPS), 1 - KAPPA)


@proves("S7")
def statistics_scale() -> None:
    scale, eps = sympy.symbols("lambda epsilon", positive=True)
    scaled = scale * X
    d = scaled - mean(scaled)
    v = mean(d * d)
    equal(mean(scaled), scale * MU)
    equal(v, scale**2 * V)
    root = sympy.sqrt(v + scale**2 * eps)
    equal(root**2, scale**2 * (V + eps))  # both positive, so root = λ·s
    equal(d / (scale * S), XHAT)


@proves("S8")
def bessel_is_unbiased() -> None:
    mu, sigma = sympy.symbols("mu sigma")
    # Independent elements with mean μ and variance σ²: E[x_i·x_j] = μ², and E[x_i²] = μ² + σ².
    second_moments = {a * b: mu**2 + (sigma**2 if a == b else 0) for a in X for b in X}
    quadratic = sympy.Poly(V * sympy.Rational(M, M - 1), *X)
    expected = sum(
        c * second_moments[sympy.Mul(*(a**n for a, n in zip(X, powers, strict=True)))]
        for powers, c in quadratic.terms()
    )
    equal(expected, sigma**2)
    equal(exactly(reference.unbiased_var(batch(VAR), M)), VAR * sympy.Rational(M, M - 1))


@proves("S9")
def running_statistics_after_n_steps() -> None:
    new, w = sympy.symbols("new w")
    running = sympy.Integer(0)
    for n in range(1, 6):
        running = w * new + (1 - w) * running
        equal(running, (1 - (1 - w) ** n) * new)
    # The textbook's line, with a weight that binary64 holds.
    old = vector("o", 2)
    updated = reference.running_update(stats(), M, Fraction(1, 4), False, False, old[:1], old[1:])
    equal([sympy.nsimplify(u[0]) for u in updated], [(3 * MU + old[0]) / 4, (3 * V + old[1]) / 4])


# ---- P -------------------------------------------------------------------------------------------------------------


@proves("P1")
def forms_of_p() -> None:
    centered = X_DOT - mean(X_DOT)
    equal(project(X_DOT), centered - XHAT * mean(XHAT * centered), reference.project(stats(), batch(X_DOT)))


@proves("P2", "P3", "P4")
def eigenvectors_of_p() -> None:
    ones = np.array([sympy.Integer(1)] * M)
    orthogonal = np.cross(ones, XHAT)  # in three dimensions all that is orthogonal to 1 and x̂
    equal(project(ones), 0 * ones)
    equal(project(XHAT), KAPPA * XHAT)
    equal([mean(orthogonal), mean(XHAT * orthogonal)], [0, 0])
    equal(project(orthogonal), orthogonal)


@proves("P5")
def p_is_symmetric() -> None:
    equal((DY * project(X_DOT)).sum(), (project(DY) * X_DOT).sum())


@proves("P6")
def bilinear_form_of_p() -> None:
    means = mean(X_DOT * DY) - mean(X_DOT) * mean(DY) - mean(XHAT * X_DOT) * mean(XHAT * DY)
    centered = X_DOT - mean(X_DOT)
    equal(mean(X_DOT * project(DY)), mean(centered * project(DY)), means)


@proves("P7")
def square_of_p() -> None:
    equal(project(project(X_DOT)), project(X_DOT) - KAPPA * XHAT * mean(XHAT * X_DOT))


@proves("P8")
def standardization_is_the_gradient_of_s() -> None:
    eps = sympy.Symbol("epsilon", positive=True)
    root = sympy.sqrt(V + eps)
    xhat = D / root
    equal(xhat, [M * sympy.diff(root, a) for a in X])
    for i in range(M):
        for j in range(M):
            p = int(i == j) - sympy.Rational(1, M) - xhat[i] * xhat[j] / M
            equal(sympy.diff(xhat[i], X[j]), p / root, M * sympy.diff(root, X[i], X[j]))


def four() -> tuple[Tensor, Tensor, Tensor, Statistics]:
    """Return x̂ (of mean 0), g and u with m = 4, where 1/m is a binary64 number, and statistics with that x̂."""
    g, u, free = vector("g", 4), vector("u", 4), vector("x")
    xhat = np.append(free, -free.sum())
    return xhat, g, u, Statistics(batch(MU), batch(V), batch(R), xhat[None, :], batch(KAPPA))


@proves("P9")
def p_as_a_matrix() -> None:
    xhat, _, u, statistics = four()
    matrix = np.eye(4, dtype=int) - sympy.Rational(1, 4) - np.multiply.outer(xhat, xhat) / 4
    equal(matrix @ u, project(u, xhat))
    dense = reference.jacobian(statistics, batch(GAMMA))
    equal(exactly(dense.dy_dx), GAMMA * R * matrix)
    equal(dense.dy_dgamma, xhat)
    equal(exactly(dense.dy_dbeta), [1] * 4)


# ---- forward and its tangent -----------------------------------------------------------------------------------------


@proves("F1")
def forward_is_affine_in_xhat() -> None:
    equal(Y, GAMMA * D / S + BETA)
    equal([sympy.diff(y, GAMMA) for y in Y], XHAT)
    equal([sympy.diff(y, BETA) for y in Y], [1] * M)


@proves("J1")
def tangent_of_centering() -> None:
    equal(along(D, MOVE_X), X_DOT - mean(X_DOT))


@proves("J2")
def tangent_of_the_variance() -> None:
    equal(along(V, MOVE_X), 2 * mean(D * (X_DOT - mean(X_DOT))), 2 * mean(D * X_DOT))


@proves("J3")
def tangent_of_invstd() -> None:
    equal(along(R, MOVE_X), -HALF * R**3 * along(V, MOVE_X), -(R**2) * mean(XHAT * X_DOT))
    eps = sympy.Symbol("epsilon", positive=True)
    r = (V + eps) ** -HALF
    explicit = sum(sympy.diff(r, a) * b for a, b in zip(X, X_DOT, strict=True))
    equal(explicit, -HALF * r**3 * 2 * mean(D * X_DOT))


@proves("J4")
def tangent_of_xhat() -> None:
    equal(along(XHAT, MOVE_X), R * project(X_DOT))


@proves("J5")
def tangent_of_y() -> None:
    equal(
        along(Y, MOVE_X, MOVE_GAMMA, MOVE_BETA),
        GAMMA * R * project(X_DOT) + GAMMA_DOT * XHAT + BETA_DOT,
        reference.jvp(stats(), batch(GAMMA), batch(X_DOT), batch(GAMMA_DOT), batch(BETA_DOT)),
    )


# ---- backward ------------------------------------------------------------------------------------------------------


@proves("B1", "B2")
def adjoint_identity_of_backward() -> None:
    gradients = reference.backward(stats(), batch(GAMMA), batch(DY))
    y_dot = along(Y, MOVE_X, MOVE_GAMMA, MOVE_BETA)
    equal(
        (DY * y_dot).sum(),
        (gradients.dx[0] * X_DOT).sum() + gradients.dgamma[0] * GAMMA_DOT + gradients.dbeta[0] * BETA_DOT,
        (GAMMA * R * project(DY) * X_DOT).sum() + GAMMA_DOT * (DY * XHAT).sum() + BETA_DOT * DY.sum(),
    )


@proves("B3", "B4", "B5")
def gradients() -> None:
    loss = (DY * Y).sum()
    unit = np.eye(M, dtype=int)
    computed = reference.backward(stats(), batch(GAMMA), batch(DY))
    equal([along(loss, (X, e)) for e in unit], GAMMA * R * project(DY), computed.dx)
    equal(sympy.diff(loss, GAMMA), (DY * XHAT).sum(), ((DY - mean(DY)) * XHAT).sum(), computed.dgamma)
    equal(sympy.diff(loss, BETA), DY.sum(), computed.dbeta)


# ---- second order --------------------------------------------------------------------------------------------------


@proves("K1")
def tangent_of_p() -> None:
    equal(
        along(project(DY), MOVE_X),
        -R * (mean(XHAT * DY) * project(X_DOT) + XHAT * mean(X_DOT * project(DY))),
    )


@proves("K2", "K3")
def tangent_of_r_p() -> None:
    printed = kernel(X_DOT, DY)
    equal(printed, GAMMA * along(R * project(DY), MOVE_X))
    equal(printed, reference.curvature(stats(), batch(GAMMA), batch(X_DOT), batch(DY)))


@proves("K4")
def kernel_is_totally_symmetric() -> None:
    equal(kernel(X_DOT, DY), kernel(DY, X_DOT))
    equal((W * kernel(X_DOT, DY)).sum(), (X_DOT * kernel(DY, W)).sum(), (DY * kernel(W, X_DOT)).sum())


def _bracket(xhat: Tensor, g: Tensor, u: Tensor) -> Tensor:
    """Apply the bracket of (K5) to u."""
    pg = project(g, xhat)
    return mean(xhat * g) * project(u, xhat) + pg * mean(xhat * u) + xhat * mean(pg * u)


@proves("K5")
def kernel_as_a_matrix() -> None:
    equal(kernel(X_DOT, DY), -GAMMA * R**2 * _bracket(XHAT, DY, X_DOT))
    xhat, g, u, statistics = four()
    outer = np.multiply.outer(project(g, xhat), xhat) / 4
    p = np.eye(4, dtype=int) - sympy.Rational(1, 4) - np.multiply.outer(xhat, xhat) / 4
    matrix = mean(xhat * g) * p + outer + outer.T
    equal(matrix @ u, _bracket(xhat, g, u))
    dense = reference.hessian(statistics, batch(GAMMA), batch(g))
    equal(exactly(dense.dx_dx), -GAMMA * R**2 * matrix)
    equal(dense.dx_dgamma, R * project(g, xhat))


@proves("K6")
def eigenvalues_of_the_kernel() -> None:
    # x̂ = (a, −a, 0, 0) stands for any x̂ of mean 0 and g = (g1, g2, g3, −g1−g2−g3) for any g: rotate the
    # coordinates orthogonal to 1, and shift g, which nothing here sees.
    a, b, c, e = sympy.symbols("a b c e", positive=True)
    xhat = a * np.array([1, -1, 0, 0])
    g = np.array([b, c, e, -b - c - e], dtype=object)
    rest = mean(xhat**2)  # 1 − κ
    kappa = 1 - rest
    slope = mean(xhat * g)
    pg = project(g, xhat)
    along_xhat = kappa * slope / rest * xhat
    w = pg - along_xhat
    equal(mean(w * xhat), 0)
    norm_xhat, norm_w = mean(xhat**2), mean(w**2)
    # Entries of the bracket in the plane, as coefficients of x̂ and w.
    equal(_bracket(xhat, g, xhat), 3 * kappa * slope * xhat + norm_xhat * w)
    equal(_bracket(xhat, g, w), norm_w * xhat + slope * w)
    # In orthonormal coordinates both off-diagonal entries become √(norm_x̂·norm_w) = b.
    equal(norm_xhat * norm_w, (1 - kappa) * mean(w**2))
    ones = np.ones(4, dtype=int)
    equal(_bracket(xhat, g, ones), 0 * ones)
    orthogonal = np.array(
        [sympy.Matrix([list(ones), list(xhat), list(w)]).col_join(sympy.eye(4)[i, :]).det() for i in range(4)],
        dtype=object,
    )
    equal(_bracket(xhat, g, orthogonal), slope * orthogonal)
    k, diagonal, off = sympy.symbols("k A B")
    for sign in (1, -1):
        root = diagonal * (1 + 3 * k) / 2 + sign * sympy.sqrt(diagonal**2 * (1 - 3 * k) ** 2 / 4 + off**2)
        equal((3 * k * diagonal - root) * (diagonal - root), off**2)  # the characteristic polynomial


@proves("H1", "H2", "H3")
def hessian_vector_product() -> None:
    gradients = reference.backward(stats(), batch(GAMMA), batch(DY))
    moved = [along(np.ravel(a), MOVE_X, MOVE_GAMMA, MOVE_BETA) for a in gradients]
    computed = reference.hvp(stats(), batch(GAMMA), batch(DY), batch(X_DOT), batch(GAMMA_DOT))
    equal(moved[0], GAMMA_DOT * R * project(DY) + kernel(X_DOT, DY), computed.dx)
    equal(moved[1], R * (X_DOT * project(DY)).sum(), computed.dgamma)
    equal(moved[2], [0])
    assert not computed.dbeta.any()


@cache
def _double_backward() -> tuple[Any, Any, Any, reference.DoubleBackward]:
    ddx, (ddgamma, ddbeta) = vector("c"), sympy.symbols("ddgamma ddbeta")
    operands = (batch(a) for a in (GAMMA, DY, ddx, ddgamma, ddbeta))
    return ddx, ddgamma, ddbeta, reference.double_backward(stats(), *operands)


@proves("D1")
def adjoint_identity_of_double_backward() -> None:
    ddx, ddgamma, ddbeta, computed = _double_backward()
    loss = (ddx * GAMMA * R * project(DY)).sum() + ddgamma * (DY * XHAT).sum() + ddbeta * DY.sum()
    equal(
        along(loss, MOVE_X, MOVE_GAMMA, MOVE_BETA, MOVE_DY),
        (computed.ddy[0] * DY_DOT).sum() + (computed.dx[0] * X_DOT).sum() + computed.dgamma[0] * GAMMA_DOT,
    )


@proves("D2", "D3", "D4", "D5")
def gradients_of_backward() -> None:
    ddx, ddgamma, ddbeta, computed = _double_backward()
    equal(computed.ddy, GAMMA * R * project(ddx) + ddgamma * XHAT + ddbeta)
    equal(computed.dgamma, R * (ddx * project(DY)).sum())
    gathered = (
        R * (ddgamma - GAMMA * R * mean(XHAT * ddx)) * project(DY)
        - GAMMA * R**2 * mean(XHAT * DY) * project(ddx)
        - GAMMA * R**2 * mean(ddx * project(DY)) * XHAT
    )
    equal(computed.dx, kernel(ddx, DY) + ddgamma * R * project(DY), gathered)


# ---- frozen statistics -----------------------------------------------------------------------------------------------
# μ and v are symbols here, and ε is s² − v again.

FROZEN_XHAT = (X - MEAN) * R
FROZEN_XHAT_DOT = R * (X_DOT - MEAN_DOT) - HALF * R**2 * FROZEN_XHAT * VAR_DOT
FROZEN_Y = GAMMA * FROZEN_XHAT + BETA
TANGENT = (*zip(X, X_DOT, strict=True), (MEAN, MEAN_DOT), (VAR, VAR_DOT), (GAMMA, GAMMA_DOT), (BETA, BETA_DOT))


def frozen_stats() -> Frozen:
    return Frozen(batch(R), batch(FROZEN_XHAT))


def frozen_along(value: Any, tangent: tuple[tuple[Any, Any], ...] = TANGENT) -> Any:
    pairs = [*tangent, (S, dict(tangent).get(VAR, 0) / (2 * S))]  # 2·s·ṡ = v̇
    derivative = np.vectorize(lambda f: sum(sympy.diff(f, a) * b for a, b in pairs), otypes=[object])
    return derivative(value) if isinstance(value, np.ndarray) else derivative(value).item()


def frozen_gradients() -> dict[str, Any]:
    """Return the gradients of ⟨dy, y⟩, by `diff`."""
    loss = (DY * FROZEN_Y).sum()
    return {
        "dx": np.array([sympy.diff(loss, a) for a in X]),
        "dmean": sympy.diff(loss, MEAN),
        "dvar": frozen_along(loss, ((VAR, 1),)),
        "dgamma": sympy.diff(loss, GAMMA),
        "dbeta": sympy.diff(loss, BETA),
    }


@proves("I1")
def forward_with_frozen_statistics() -> None:
    equal(FROZEN_Y, GAMMA * (X - MEAN) * R + BETA)
    at_batch_statistics = [y.subs({MEAN: MU}) for y in FROZEN_Y]
    equal(at_batch_statistics, Y)


@proves("I2", "I3")
def tangent_with_frozen_statistics() -> None:
    equal(frozen_along(FROZEN_XHAT), FROZEN_XHAT_DOT)
    operands = (batch(a) for a in (GAMMA, X_DOT, MEAN_DOT, VAR_DOT, GAMMA_DOT, BETA_DOT))
    equal(
        frozen_along(FROZEN_Y),
        GAMMA * FROZEN_XHAT_DOT + GAMMA_DOT * FROZEN_XHAT + BETA_DOT,
        exactly(reference.inference_jvp(frozen_stats(), *operands)),
    )


@proves("I4", "I5", "I6", "I7", "I8")
def gradients_with_frozen_statistics() -> None:
    exact, computed = frozen_gradients(), reference.inference_backward(frozen_stats(), batch(GAMMA), batch(DY))
    printed = {
        "dx": GAMMA * R * DY,
        "dmean": -GAMMA * R * DY.sum(),
        "dvar": -HALF * GAMMA * R**2 * (DY * FROZEN_XHAT).sum(),
        "dgamma": (DY * FROZEN_XHAT).sum(),
        "dbeta": DY.sum(),
    }
    for name, formula in printed.items():
        equal(exact[name], formula, exactly(getattr(computed, name)))


@proves("I9", "I10", "I11", "I12")
def hessian_vector_product_with_frozen_statistics() -> None:
    moved = {name: frozen_along(gradient) for name, gradient in frozen_gradients().items()}
    operands = (batch(a) for a in (GAMMA, DY, X_DOT, MEAN_DOT, VAR_DOT, GAMMA_DOT))
    computed = reference.inference_hvp(frozen_stats(), *operands)
    sum_dy, sum_dy_xhat = DY.sum(), (DY * FROZEN_XHAT).sum()
    sum_dy_xhat_dot = (DY * FROZEN_XHAT_DOT).sum()
    factor = R * (GAMMA_DOT - HALF * GAMMA * R**2 * VAR_DOT)
    bracket = (GAMMA_DOT - GAMMA * R**2 * VAR_DOT) * sum_dy_xhat + GAMMA * sum_dy_xhat_dot
    printed = {
        "dx": factor * DY,
        "dmean": -factor * sum_dy,
        "dvar": -HALF * R**2 * bracket,
        "dgamma": sum_dy_xhat_dot,
        "dbeta": sympy.Integer(0),
    }
    for name, formula in printed.items():
        equal(moved[name], formula, exactly(getattr(computed, name)))
    equal(sum_dy_xhat_dot, R * (DY * (X_DOT - MEAN_DOT)).sum() - HALF * R**2 * VAR_DOT * sum_dy_xhat)


@proves("I13", "I14")
def gradients_of_backward_with_frozen_statistics() -> None:
    ddx, (ddmean, ddvar, ddgamma, ddbeta) = vector("c"), sympy.symbols("ddmean ddvar ddgamma ddbeta")
    operands = (batch(a) for a in (GAMMA, DY, ddx, ddmean, ddvar, ddgamma, ddbeta))
    computed = reference.inference_double_backward(frozen_stats(), *operands)
    first = frozen_gradients()
    loss = (ddx * first["dx"]).sum() + ddmean * first["dmean"] + ddvar * first["dvar"]
    loss = loss + ddgamma * first["dgamma"] + ddbeta * first["dbeta"]
    printed = GAMMA * (R * (ddx - ddmean) - HALF * R**2 * FROZEN_XHAT * ddvar) + ddgamma * FROZEN_XHAT + ddbeta
    equal([sympy.diff(loss, a) for a in DY], printed, exactly(computed.ddy))
    equal([sympy.diff(loss, a) for a in X], exactly(computed.dx))
    equal(sympy.diff(loss, GAMMA), exactly(computed.dgamma))
    equal(sympy.diff(loss, MEAN), exactly(computed.dmean))
    equal(frozen_along(loss, ((VAR, 1),)), exactly(computed.dvar))
    second = reference.inference_hvp(frozen_stats(), *map(batch, (GAMMA, DY, ddx, ddmean, ddvar, ddgamma)))
    for name in ("dx", "dgamma", "dmean", "dvar"):
        equal(getattr(computed, name), getattr(second, name))


# ---- Taylor series ---------------------------------------------------------------------------------------------------
# x(t) = x + u·t + g·t² + z·t³, and all is compared up to t³. A series is known by an equation that determines it: the
# root by its square (and the sign of s_0), the quotient by its product with the root.

T = sympy.Symbol("t")
ORDER = 3
X_SERIES = (X, X_DOT, DY, DY_DOT)


def polynomial(series: Any) -> Any:
    return sum(c * T**k for k, c in enumerate(series))


def coefficients(value: Any) -> list[Any]:
    return [sympy.expand(value).coeff(T, k) for k in range(ORDER + 1)]


@proves("T1", "T2")
def series_of_deviations_and_variance() -> None:
    curve = polynomial(X_SERIES)
    curve = curve - mean(curve)
    d = [center(x[None, :])[0][0] for x in X_SERIES]
    for i in range(M):
        equal([c[i] for c in d], coefficients(curve[i]))
    v = [sum(mean(d[i] * d[k - i]) for i in range(k + 1)) for k in range(ORDER + 1)]
    equal(v, coefficients(mean(curve * curve)))


@proves("T3")
def series_of_the_root() -> None:
    v = sympy.symbols(f"v0:{ORDER + 1}")
    eps = S**2 - v[0]
    s: list[Any] = [S]
    for k in range(1, ORDER + 1):
        s.append((v[k] - sum(s[i] * s[k - i] for i in range(1, k))) / (2 * s[0]))
    equal(coefficients(polynomial(s) ** 2), coefficients(polynomial(v) + eps))


@proves("T4", "T5")
def series_of_the_output() -> None:
    d, gamma, beta = (sympy.symbols(f"{name}0:{ORDER + 1}") for name in ("d", "gamma", "beta"))
    s = (S, *sympy.symbols(f"s1:{ORDER + 1}"))
    xhat: list[Any] = []
    for k in range(ORDER + 1):
        xhat.append(sympy.expand((d[k] - sum(s[i] * xhat[k - i] for i in range(1, k + 1))) / s[0]))
    equal(coefficients(polynomial(s) * polynomial(xhat)), d)
    y = [sum(gamma[i] * xhat[k - i] for i in range(k + 1)) + beta[k] for k in range(ORDER + 1)]
    equal(y, coefficients(polynomial(gamma) * polynomial(xhat) + polynomial(beta)))


# ---- other affine phases ---------------------------------------------------------------------------------------------


@proves("N1", "N2", "N3", "N4", "N5", "N6", "N7")
def gamma_varies_within_a_group() -> None:
    rho, delta = sympy.symbols("rho delta")  # they stand still
    gamma, beta, gamma_dot, beta_dot = (vector(name) for name in ("gamma", "beta", "c", "e"))
    affine = reference.Affine(batch(gamma), batch(rho)[:, None], batch(delta)[:, None])
    moves = (MOVE_X, (gamma, gamma_dot), (beta, beta_dot))
    y = gamma * (rho * XHAT + delta) + beta
    equal(y, reference.normalize(stats(), affine, batch(beta)))
    equal(along(y, *moves), reference.normalize_jvp(stats(), affine, *map(batch, (X_DOT, gamma_dot, beta_dot))))
    loss = (DY * y).sum()
    computed = reference.normalize_backward(stats(), affine, batch(DY))
    for symbols, gradient in zip((X, gamma, beta), computed, strict=True):
        equal([along(loss, (symbols, unit)) for unit in np.eye(M, dtype=int)], gradient)
    moved = reference.normalize_hvp(stats(), affine, *map(batch, (DY, X_DOT, gamma_dot)))
    for gradient, velocity in zip(computed, moved, strict=True):
        equal(along(gradient[0], *moves), velocity)


# ---- the table -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Prove everything and print a table; return 1 if an equation has no proof or a proof fails."""
    failures, done = 0, {}
    for equation in defined_labels():
        proof = PROOFS.get(equation.label)
        if proof is None:
            verdict = "NO PROOF"
        elif proof in done:
            verdict = done[proof]
        else:
            started = time.perf_counter()
            try:
                proof()
            except AssertionError as error:
                verdict = f"REFUTED: {error}"
            else:
                verdict = f"proved {time.perf_counter() - started:6.2f} s"
            done[proof] = verdict
        failures += not verdict.startswith("proved")
        print(f"{equation.label:>4}  {verdict:15}  {equation.text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
