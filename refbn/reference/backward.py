"""The backward pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, total
from refbn.reference.operator import project
from refbn.reference.statistics import Statistics, center, columns

__all__ = ["Backward", "backward"]


class Backward(NamedTuple):
    """Result of `backward` and `hvp`.

    Attributes
    ----------
    dx : ndarray, shape (G, m)
        To x.
    dgamma, dbeta : ndarray, shape (G,)
        To γ and β.
    """

    dx: Array
    dgamma: Array
    dbeta: Array


def backward(stats: Statistics, gamma: Array, dy: Array) -> Backward:
    """Return the gradients of a loss whose gradient to y is dy (reverse mode).

    Parameters
    ----------
    stats : Statistics
        Of x.
    gamma : ndarray, shape (G,)
        The scale.
    dy : ndarray, shape (G, m)
        The gradient to y.

    Returns
    -------
    Backward
        dx, dgamma, dbeta.

    Notes
    -----
    1. *Push a tangent forward*: ẏ = γ·r·P ẋ + γ̇·x̂ + β̇, equation (J5).

    2. *Substitute* into what defines the gradients: for all velocities, the loss changes as fast seen from y
       as seen from the inputs::

        (B1)  ⟨dy, ẏ⟩ = ⟨dx, ẋ⟩ + dγ·γ̇ + dβ·β̇

    3. *Rearrange.* P is symmetric (P5), so it moves over to dy::

        (B2)  ⟨dy, ẏ⟩ = ⟨γ·r·P dy, ẋ⟩ + γ̇·Σ dy·x̂ + β̇·Σ dy

    4. *Read off the adjoint.* ẋ, γ̇ and β̇ are arbitrary, so their factors in (B1) and (B2) agree::

        (B3)  dx = γ·r·P dy
        (B4)  dγ = Σ dy·x̂ = Σ C dy·x̂
        (B5)  dβ = Σ dy

    What P removes, the gradient cannot carry: by (P2) and (P3) a dy that is constant gives dx = 0 for every ε,
    and one that is proportional to x̂ gives κ times what frozen statistics would give, nothing at ε = 0.
    Always Σ dx = 0, and ⟨x̂, dx⟩ = κ·γ·r·⟨x̂, dy⟩.

    The textbook computes dγ with C dy, so that a constant dy gives dγ = 0 exactly.
    """
    with np.errstate(all="ignore"):
        r, xhat, gamma = columns(stats, gamma)
        return Backward(
            dx=gamma * (r * project(stats, dy)),  # (B3)
            dgamma=total(center(dy)[0] * xhat)[:, 0],  # (B4)
            dbeta=total(dy)[:, 0],  # (B5)
        )
