"""Dense first and second derivatives, one block a channel (different channels do not interact)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column, mean
from refbn.reference.operator import project
from refbn.reference.statistics import Statistics, center

__all__ = ["Hessian", "Jacobian", "hessian", "jacobian"]


class Jacobian(NamedTuple):
    """Result of `jacobian`.

    Attributes
    ----------
    dy_dx : ndarray, shape (G, m, m)
        ∂yᵢ/∂xⱼ in row i, column j.
    dy_dgamma, dy_dbeta : ndarray, shape (G, m)
        ∂yᵢ/∂γ and ∂yᵢ/∂β.
    """

    dy_dx: Array
    dy_dgamma: Array
    dy_dbeta: Array


class Hessian(NamedTuple):
    """Result of `hessian`. The blocks that it does not list, γγ and all with β, are zero.

    Attributes
    ----------
    dx_dx : ndarray, shape (G, m, m)
        ∂²⟨dy, y⟩/∂xᵢ∂xⱼ.
    dx_dgamma : ndarray, shape (G, m)
        ∂²⟨dy, y⟩/∂xᵢ∂γ.
    """

    dx_dx: Array
    dx_dgamma: Array


def jacobian(stats: Statistics, gamma: Array) -> Jacobian:
    """Return the dense derivatives of y.

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.

    Returns
    -------
    Jacobian
        dy_dx, dy_dgamma, dy_dbeta.

    Notes
    -----
    By (J5), ∂y/∂x = γ·r·P, with P written as a matrix, ∂y/∂γ = x̂ and ∂y/∂β = 1::

        (P9)  P = I − 1·1ᵀ/m − x̂·x̂ᵀ/m

    The matrix is symmetric. Its eigenvalues are those of P (see `project`) times γ·r.
    """
    with np.errstate(all="ignore"):
        return Jacobian(
            dy_dx=_matrix(gamma * stats.invstd) * _p(stats),  # (J5, P9)
            dy_dgamma=stats.xhat.copy(),
            dy_dbeta=np.ones_like(stats.xhat),
        )


def hessian(stats: Statistics, gamma: Array, dy: Array) -> Hessian:
    """Return the dense second derivatives of ⟨dy, y⟩.

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The weights g of y.

    Returns
    -------
    Hessian
        dx_dx, dx_dgamma.

    Notes
    -----
    Write K(·, g) of (K3) as a matrix, with a = mean(x̂·g); ∂²/∂x∂γ = r·P g by (H1)::

        (K5)  ∂²⟨g, y⟩/∂x∂x = −γ·r²·[ a·P + (P g·x̂ᵀ + x̂·(P g)ᵀ)/m ]

    *Its eigenvalues.* The bracket is a·P plus a matrix of rank two, so it is a on the m − 3 dimensions orthogonal to
    1, x̂ and g, and 0 on 1. On the plane of x̂ and w = P g − κ·a/(1−κ)·x̂, the part of P g orthogonal to x̂, it
    has in orthonormal coordinates the matrix::

        (K6)  | 3·κ·a   b |
              |   b     a |     with  b² = (1−κ)·mean(w²)

    so its two eigenvalues there are ½·a·(1+3κ) ± √(¼·a²·(1−3κ)² + b²). At ε = 0 they are ½·a ± √(¼·a² + b²), one of
    each sign unless P g is proportional to x̂: the Hessian of batch norm's output is indefinite for almost every g.
    """
    with np.errstate(all="ignore"):
        a = mean(stats.xhat * center(dy)[0])
        pg = project(stats, dy)
        outer = pg[:, :, None] * stats.xhat[:, None, :]
        bracket = a[:, :, None] * _p(stats) + (outer + outer.swapaxes(1, 2)) / stats.xhat.shape[1]
        r = _matrix(stats.invstd)
        return Hessian(
            dx_dx=-(_matrix(gamma) * (r * (r * bracket))),  # (K5)
            dx_dgamma=column(stats.invstd) * pg,  # (H1)
        )


def _matrix(vector: Array) -> Array:
    """Turn a vector (G,) into (G, 1, 1), which multiplies matrices channel by channel."""
    return vector[:, None, None]


def _p(stats: Statistics) -> Array:
    m = stats.xhat.shape[1]
    outer = stats.xhat[:, :, None] * stats.xhat[:, None, :]
    return np.asarray(np.eye(m) - 1.0 / m - outer / m)  # (P9)
