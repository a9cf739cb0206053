"""Layer, group and instance norm, and batch renormalization: the same standardization, another affine phase."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column
from refbn.reference.operator import project
from refbn.reference.second_order import curvature
from refbn.reference.statistics import Statistics

__all__ = ["Affine", "Terms", "normalize", "normalize_backward", "normalize_hvp", "normalize_jvp"]


class Affine(NamedTuple):
    """The affine phase.

    Attributes
    ----------
    gamma : ndarray, shape (G, m)
        γ, repeated to what it scales.
    rho, delta : ndarray, shape (G, 1)
        ρ and δ of batch renormalization (r and d in its paper [1]_), constants of the derivatives; 1 and 0 elsewhere.

    References
    ----------
    .. [1] S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017.
    """

    gamma: Array
    rho: Array
    delta: Array


class Terms(NamedTuple):
    """Result of `normalize_backward` and `normalize_hvp`.

    Attributes
    ----------
    x : ndarray, shape (G, m)
        To x.
    gamma, beta : ndarray, shape (G, m)
        To γ and β as they stand repeated; where one of their elements stands several times, the sum is its gradient.
    """

    x: Array
    gamma: Array
    beta: Array


def normalize(stats: Statistics, affine: Affine, beta: Array) -> Array:
    """Return y.

    Parameters
    ----------
    stats : Statistics
        Of x, of the groups that are standardized: channels in batch norm, samples in layer norm, samples' channels in
        instance norm, samples' groups of channels in group norm.
    affine : Affine
        γ, ρ, δ.
    beta : ndarray, shape (G, m)
        β, repeated to what it shifts.

    Returns
    -------
    ndarray, shape (G, m)
        y.

    Notes
    -----
    All these norms standardize as batch norm does, equations (S1) to (S5); they differ in which elements share their
    statistics, and in which share a γ. In batch norm these are the same, so γ is a number in each group and passes
    through every formula. Elsewhere it varies within a group and must stay on its side of P. Batch renormalization
    corrects x̂ towards the running statistics first::

        (N1)  y = γ·z + β,   z = ρ·x̂ + δ

    with products of tensors elementwise, ρ = s/σ and δ = (μ − μ_run)/σ for running statistics μ_run and σ, both clipped
    and both *held constant* by every derivative: otherwise (unclipped) they would undo the batch statistics
    altogether, y = γ·(x − μ_run)/σ + β.
    """
    return affine.gamma * _corrected(stats, affine) + beta  # (N1)


def normalize_jvp(stats: Statistics, affine: Affine, x_dot: Array, gamma_dot: Array, beta_dot: Array) -> Array:
    """Return ẏ, the velocity of y when x, γ and β move with the given ones (all of shape (G, m)).

    Parameters
    ----------
    stats : Statistics
        Of x.
    affine : Affine
        γ, ρ, δ.
    x_dot, gamma_dot, beta_dot : ndarray, shape (G, m)
        ẋ, γ̇ and β̇.

    Returns
    -------
    ndarray, shape (G, m)
        ẏ.

    Notes
    -----
    d/dt x̂ = r·P ẋ, equation (J4), and ρ and δ stand still::

        (N2)  ẏ = γ·ρ·r·P ẋ + γ̇·z + β̇
    """
    r = column(stats.invstd)
    moved = affine.gamma * (affine.rho * (r * project(stats, x_dot)))
    return np.asarray(moved + gamma_dot * _corrected(stats, affine) + beta_dot)  # (N2)


def normalize_backward(stats: Statistics, affine: Affine, dy: Array) -> Terms:
    """Return the gradients of a loss whose gradient to y is dy.

    Parameters
    ----------
    stats : Statistics
        Of x.
    affine : Affine
        γ, ρ, δ.
    dy : ndarray, shape (G, m)
        The gradient to y.

    Returns
    -------
    Terms
        To x, γ and β.

    Notes
    -----
    1. *Push a tangent forward*: (N2).

    2. *Substitute*: ⟨dy, ẏ⟩ = ⟨dx, ẋ⟩ + ⟨dγ, γ̇⟩ + ⟨dβ, β̇⟩.

    3. *Rearrange.* ⟨dy, γ·ρ·r·P ẋ⟩ = ⟨γ·dy, ρ·r·P ẋ⟩ = ⟨ρ·r·P(γ·dy), ẋ⟩: first γ, a factor of each element, changes
       sides, then P, which is symmetric (P5). A group's ρ and r are numbers.

    4. *Read off the adjoint*. An element γ_a that stands in several places moves them all, so their terms add up::

        (N3)  dx = ρ·r·P(γ·dy)
        (N4)  dγ_a = Σ_a dy·z
        (N5)  dβ_a = Σ_a dy

    So what is blocked is γ·dy along **1** and x̂ *of the group*: layer norm lets a constant dy pass if γ varies, and
    blocks dy ∝ 1/γ.
    """
    r = column(stats.invstd)
    return Terms(
        x=affine.rho * (r * project(stats, affine.gamma * dy)),  # (N3)
        gamma=dy * _corrected(stats, affine),  # (N4)
        beta=dy,  # (N5)
    )


def normalize_hvp(stats: Statistics, affine: Affine, dy: Array, x_dot: Array, gamma_dot: Array) -> Terms:
    """Return the velocity of `normalize_backward`'s results when x and γ move.

    Parameters
    ----------
    stats : Statistics
        Of x.
    affine : Affine
        γ, ρ, δ.
    dy : ndarray, shape (G, m)
        The cotangent of y, held fixed.
    x_dot, gamma_dot : ndarray, shape (G, m)
        ẋ and γ̇.

    Returns
    -------
    Terms
        The velocities of dx, dγ and dβ.

    Notes
    -----
    In (N3) the kernel of `curvature` moves r·P, with γ = 1 there and γ·dy as the cotangent that it acts upon; in (N4)
    z moves by ρ·r·P ẋ::

        (N6)  (dx)˙ = ρ·[ K(ẋ, γ·dy) + r·P(γ̇·dy) ]   with γ = 1 in K
        (N7)  (dγ_a)˙ = Σ_a dy·ρ·r·P ẋ

    and (dβ)˙ = 0. Since ⟨ddx, (N6)⟩ is symmetric in ẋ and ddx, the same results along (ddx, ddγ) are those of double
    backward, as in (D3) and (D4); its ddy is (N2) along (ddx, ddγ, ddβ).
    """
    r, ones = column(stats.invstd), np.ones_like(stats.invstd)
    bent = curvature(stats, ones, x_dot, affine.gamma * dy) + r * project(stats, gamma_dot * dy)
    return Terms(
        x=affine.rho * bent,  # (N6)
        gamma=dy * (affine.rho * (r * project(stats, x_dot))),  # (N7)
        beta=np.zeros_like(dy),
    )


def _corrected(stats: Statistics, affine: Affine) -> Array:
    """Return z."""
    return np.asarray(affine.rho * stats.xhat + affine.delta)
