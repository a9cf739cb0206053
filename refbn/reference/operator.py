"""The one operator behind all of batch norm's derivatives, P."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, mean
from refbn.reference.statistics import Statistics, center

__all__ = ["Spectrum", "project", "spectrum"]


class Spectrum(NamedTuple):
    """The eigenvalues of P.

    Attributes
    ----------
    on_ones, on_xhat, on_rest : ndarray, shape (G,)
        On the constant vector, on x̂, and on all that is orthogonal to both. A channel with x̂ = 0 has no
        eigenvector x̂; there P = C and `on_xhat` is 1, the value on the rest.
    rank : ndarray of int, shape (G,)
        The number of non-zero eigenvalues, with multiplicity.
    """

    on_ones: Array
    on_xhat: Array
    on_rest: Array
    rank: Array


def project(stats: Statistics, u: Array) -> Array:
    """Apply P, which removes from u what standardization cannot see.

    Parameters
    ----------
    stats : Statistics
        Of x.
    u : ndarray, shape (G, m)
        Any tensor.

    Returns
    -------
    ndarray, shape (G, m)
        P u.

    Notes
    -----
    Standardization undoes a shift of the whole channel and (at ε = 0) a change of its scale. P takes both out
    of u: its mean, and its share along x̂::

        (P1)  P u = C u − x̂·mean(x̂·C u) = u − mean(u) − x̂·mean(x̂·u)

    Its effect on the three kinds of vectors::

        (P2)  P 1 = 0                            shifts are invisible
        (P3)  P x̂ = κ·x̂                          changes of scale are too, but for what ε lets through
        (P4)  P w = w   if mean(w) = mean(x̂·w) = 0

    These are all eigenvalues: 0 once, κ once and 1 on the other m − 2 dimensions. For v > 0 the rank is
    m − 1 if ε > 0 and m − 2 if ε = 0; only then is P a projector, for in general::

        (P7)  P(P u) = P u − κ·x̂·mean(x̂·u)

    P is symmetric, so gradients need no other operator than tangents do; and its bilinear form is made of five
    means, which one sweep gathers::

        (P5)  ⟨g, P u⟩ = ⟨P g, u⟩
        (P6)  mean(u·P g) = mean(C u·P g) = mean(u·g) − mean(u)·mean(g) − mean(x̂·u)·mean(x̂·g)

    *Why it is symmetric.* Regard s = √(v + ε) as a function of x. Standardization is its gradient, up to a
    factor, and r·P is its Hessian::

        (P8)  x̂ = m·∇s,   ∂x̂/∂x = r·P = m·∇²s

    The Jacobian of a gradient is a Hessian, hence symmetric, and all higher derivatives of x̂ are
    symmetric in all their arguments; see (K4).
    """
    centered, _ = center(u)
    return np.asarray(centered - stats.xhat * mean(stats.xhat * centered))  # (P1)


def spectrum(stats: Statistics) -> Spectrum:
    """Return the eigenvalues of P, from (P2), (P3) and (P4), and its rank.

    Parameters
    ----------
    stats : Statistics
        Of x.

    Returns
    -------
    Spectrum
        on_ones, on_xhat, on_rest, rank.
    """
    groups, m = stats.xhat.shape
    has_xhat = stats.var > 0
    return Spectrum(
        on_ones=np.zeros(groups),  # (P2)
        on_xhat=np.where(has_xhat, stats.kappa, 1.0),  # (P3)
        on_rest=np.ones(groups),  # (P4)
        rank=m - 1 - (has_xhat & (stats.kappa == 0)),
    )
