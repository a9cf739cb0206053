"""Derivatives of the backward pass: the kernel K, Hessian-vector products and double backward."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column, mean, total
from refbn.reference.backward import Backward
from refbn.reference.forward import jvp
from refbn.reference.operator import project
from refbn.reference.statistics import Statistics, center, columns

__all__ = ["DoubleBackward", "curvature", "double_backward", "hvp"]


class DoubleBackward(NamedTuple):
    """Result of `double_backward`.

    Attributes
    ----------
    ddy : ndarray, shape (G, m)
        To dy.
    dx : ndarray, shape (G, m)
        To x.
    dgamma : ndarray, shape (G,)
        To γ. The gradient to β is zero: backward does not contain it.
    """

    ddy: Array
    dx: Array
    dgamma: Array


def curvature(stats: Statistics, gamma: Array, u: Array, g: Array) -> Array:
    """Return K(u, g), the derivative of γ·r·P g along u at fixed γ and g: all of batch norm's curvature in x.

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    u, g : ndarray, shape (G, m)
        The direction in which x moves, and the cotangent of y.

    Returns
    -------
    ndarray, shape (G, m)
        K(u, g).

    Notes
    -----
    Let x move with velocity u and hold g. In P g = g − mean(g) − x̂·mean(x̂·g) only x̂ moves, by r·P u, see (J4); it
    stands there twice::

        (K1)  (P g)˙ = −r·[ mean(x̂·g)·P u + x̂·mean(u·P g) ]

    where mean(g·P u) = mean(u·P g) by (P5). With ṙ = −r²·mean(x̂·u) from (J3) the product rule gives::

        (K2)  (r·P g)˙ = −r²·[ mean(x̂·g)·P u + mean(x̂·u)·P g + x̂·mean(u·P g) ]

    and the kernel carries γ as well::

        (K3)  K(u, g) = −γ·r²·[ mean(x̂·g)·P u + mean(x̂·u)·P g + x̂·mean(u·P g) ]

    K is symmetric in u and g by sight. More is true::

        (K4)  ⟨w, K(u, g)⟩ = ⟨u, K(g, w)⟩ = ⟨g, K(w, u)⟩,   K(u, g) = K(g, u)

    It must be so: by (P8) the form ⟨w, K(u, g)⟩ = m·γ·∇³s[u, g, w] is a third derivative. In the bracket, each of the
    three terms pairs one of the vectors with x̂ and the other two with each other.
    """
    with np.errstate(all="ignore"):
        r, xhat, gamma = columns(stats, gamma)
        project_u, project_g = project(stats, u), project(stats, g)
        u, g = center(u)[0], center(g)[0]  # by (P2), K sees neither mean
        bracket = mean(xhat * g) * project_u + mean(xhat * u) * project_g + xhat * mean(u * project_g)
        return np.asarray(-(gamma * (r * (r * bracket))))  # (K3)


def hvp(stats: Statistics, gamma: Array, dy: Array, x_dot: Array, gamma_dot: Array) -> Backward:
    """Return the velocity of `backward`'s results when x and γ move (forward over reverse).

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The cotangent of y, held fixed.
    x_dot : ndarray, shape (G, m)
        ẋ.
    gamma_dot : ndarray, shape (G,)
        γ̇. There is no β̇: backward does not contain β.

    Returns
    -------
    Backward
        The velocities of dx, dgamma, dbeta. If dy moves as well, add ``backward(stats, gamma, dy_dot)``.

    Notes
    -----
    Only step 1 is needed: push the tangent through (B3), (B4) and (B5). In dx = γ·r·P dy, γ moves by γ̇ and the rest by
    the kernel of `curvature`::

        (H1)  (dx)˙ = γ̇·r·P dy + K(ẋ, dy)

    In dγ = Σ dy·x̂, x̂ moves by r·P ẋ (J4), and P changes sides (P5)::

        (H2)  (dγ)˙ = ⟨dy, r·P ẋ⟩ = r·Σ ẋ·P dy

    dβ contains neither x nor γ::

        (H3)  (dβ)˙ = 0

    This is the product of the Hessian of ⟨dy, y⟩ with (ẋ, γ̇, β̇).
    """
    with np.errstate(all="ignore"):
        r, _, _ = columns(stats, gamma)
        project_dy = project(stats, dy)
        return Backward(
            dx=column(gamma_dot) * (r * project_dy) + curvature(stats, gamma, x_dot, dy),  # (H1)
            dgamma=(r * total(center(x_dot)[0] * project_dy))[:, 0],  # (H2)
            dbeta=np.zeros_like(stats.invstd),  # (H3)
        )


def double_backward(
    stats: Statistics, gamma: Array, dy: Array, ddx: Array, ddgamma: Array, ddbeta: Array
) -> DoubleBackward:
    """Return the gradients of a loss that depends on `backward`'s results (reverse over reverse).

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The cotangent of y that backward was given.
    ddx : ndarray, shape (G, m)
        The gradient to backward's dx.
    ddgamma, ddbeta : ndarray, shape (G,)
        The gradients to backward's dgamma and dbeta.

    Returns
    -------
    DoubleBackward
        ddy, dx, dgamma: the gradients to backward's inputs dy, x and γ.

    Notes
    -----
    1. *Push a tangent forward*, through backward itself. If x and γ move, `hvp` says what follows, equations
       (H1) to (H3); if dy moves by z, backward is linear in it and moves by backward(z)::

        (dx)˙ = γ·r·P z + γ̇·r·P dy + K(ẋ, dy)      (dγ)˙ = Σ z·x̂ + r·Σ ẋ·P dy      (dβ)˙ = Σ z

    2. *Substitute* into what defines the three results, called here ddy, X and Γ::

        (D1)  ⟨ddx, (dx)˙⟩ + ddγ·(dγ)˙ + ddβ·(dβ)˙ = ⟨ddy, z⟩ + ⟨X, ẋ⟩ + Γ·γ̇

    3. *Rearrange.* Collect z, γ̇ and ẋ. P changes sides by (P5), and by (K4) K does:
       ⟨ddx, K(ẋ, dy)⟩ = ⟨K(ddx, dy), ẋ⟩. So the left side of (D1) is::

        ⟨γ·r·P ddx + ddγ·x̂ + ddβ, z⟩ + ⟨K(ddx, dy) + ddγ·r·P dy, ẋ⟩ + r·⟨ddx, P dy⟩·γ̇

    4. *Read off the adjoint*::

        (D2)  ddy = γ·r·P ddx + ddγ·x̂ + ddβ
        (D3)  dγ = Γ = r·Σ ddx·P dy
        (D4)  dx = X = K(ddx, dy) + ddγ·r·P dy

    *What it means.* ddy is the jvp along (ddx, ddγ, ddβ), since backward is linear in dy with the transposed Jacobian.
    dγ and dx are the hvp along (ddx, ddγ), since the Hessian of ⟨dy, y⟩ is symmetric.

    *One sweep.* Gathered by vectors, with u = ddx and g = dy, dx needs three numbers a channel beside P u and P g, made
    of the five means mean(u), mean(g), mean(x̂·u), mean(x̂·g), mean(u·g)::

        (D5)  dx = r·(ddγ − γ·r·mean(x̂·u))·P g − γ·r²·mean(x̂·g)·P u − γ·r²·mean(u·P g)·x̂
    """
    with np.errstate(all="ignore"):
        second = hvp(stats, gamma, dy, ddx, ddgamma)
        return DoubleBackward(
            ddy=jvp(stats, gamma, ddx, ddgamma, ddbeta),  # (D2)
            dx=second.dx,  # (D4) is (H1) along ddx, ddγ
            dgamma=second.dgamma,  # (D3) is (H2) along ddx
        )
