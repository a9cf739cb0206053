"""The forward pass, and its derivative along a direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column
from refbn.reference.operator import project
from refbn.reference.statistics import Statistics, columns, statistics

__all__ = ["Forward", "forward", "jvp"]


class Forward(NamedTuple):
    """Result of `forward`.

    Attributes
    ----------
    y : ndarray, shape (G, m)
        The output.
    stats : Statistics
        For the derivative passes.
    """

    y: Array
    stats: Statistics


def forward(x: Array, gamma: Array, beta: Array, eps: float) -> Forward:
    """Normalize each channel of x with its own statistics.

    Parameters
    ----------
    x : ndarray, shape (G, m), m ≥ 1
        The input.
    gamma, beta : ndarray, shape (G,)
        Scale and shift.
    eps : float
        ε ≥ 0.

    Returns
    -------
    Forward
        y, stats.

    Notes
    -----
    Two phases. *Standardization* maps x to x̂ (equations S1 to S5 of `statistics`); all that is unusual about batch norm
    happens there. The *affine phase* gives each channel a scale and a shift of its own::

        (F1)  y = γ·x̂ + β
    """
    with np.errstate(all="ignore"):
        stats = statistics(x, eps)
        return Forward(column(gamma) * stats.xhat + column(beta), stats)  # (F1)


def jvp(stats: Statistics, gamma: Array, x_dot: Array, gamma_dot: Array, beta_dot: Array) -> Array:
    """Return ẏ, the velocity of y when x, γ and β move with the given ones (forward mode).

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    x_dot : ndarray, shape (G, m)
        ẋ.
    gamma_dot, beta_dot : ndarray, shape (G,)
        γ̇ and β̇.

    Returns
    -------
    ndarray, shape (G, m)
        ẏ.

    Notes
    -----
    This is step 1 of all derivations: push a tangent through (S1) to (S5), one line at a time. Subtracting the
    mean is linear::

        (J1)  ḋ = C ẋ = ẋ − mean(ẋ)

    In the variance mean(d) = 0 lets us write ẋ for ḋ::

        (J2)  v̇ = 2·mean(d·ḋ) = 2·mean(d·ẋ)

    q̇ = v̇, and r = q^(−1/2); with r·d = x̂::

        (J3)  ṙ = −½·r³·v̇ = −r²·mean(x̂·ẋ)

    The product rule for x̂ = d·r collects the two::

        (J4)  d/dt x̂ = ḋ·r + d·ṙ = r·[ẋ − mean(ẋ) − x̂·mean(x̂·ẋ)] = r·P ẋ

    and once more for y = γ·x̂ + β::

        (J5)  ẏ = γ·r·P ẋ + γ̇·x̂ + β̇
    """
    with np.errstate(all="ignore"):
        r, xhat, gamma = columns(stats, gamma)
        return np.asarray(
            gamma * (r * project(stats, x_dot)) + column(gamma_dot) * xhat + column(beta_dot)  # (J5)
        )
