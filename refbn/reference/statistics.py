"""The statistics of a channel: mean, variance, inverse standard deviation, and the standardized input."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refbn.reference._sum import Array, column, mean

__all__ = ["Running", "Statistics", "center", "exponent", "running_update", "statistics", "unbiased_var"]


class Statistics(NamedTuple):
    """What the passes want to know of x.

    Attributes
    ----------
    mean, var, invstd : ndarray, shape (G,)
        μ, v (biased) and r = 1/√(v+ε).
    xhat : ndarray, shape (G, m)
        x̂ = (x − μ)·r.
    kappa : ndarray, shape (G,)
        κ = ε/(v+ε), the share of ε in the denominator.
    """

    mean: Array
    var: Array
    invstd: Array
    xhat: Array
    kappa: Array


class Running(NamedTuple):
    """Running statistics.

    Attributes
    ----------
    mean, var : ndarray, shape (G,)
        The blended values.
    """

    mean: Array
    var: Array


def center(u: Array) -> tuple[Array, Array]:
    """Return C u = u − mean(u), and mean(u) with shape (G, 1).

    Notes
    -----
    The operator C is linear, symmetric and idempotent, and C 1 = 0: a constant added to u changes nothing. That
    gives two liberties, and each removes one rounding error.

    *Before* the subtraction any constant c may be taken out of the mean, see (S1). With c the first
    element, the mean of a constant channel is that constant, exactly, and C u is exactly 0.

    *After* it, C(C u) = C u: what is left of the mean is the first mean's own rounding error, and subtracting it
    removes it. So the error no longer grows with offset/std (Lemma 2 of `refbn.reference.bounds`).

    c is taken out of the mean only, not out of u itself: if the first element is an outlier, then rounding u − c
    costs every other element more than the whole operation may.
    """
    first = u[..., :1]
    rough = first + mean(u - first)  # (S1)
    deviation = u - rough
    rest = mean(deviation)
    return deviation - rest, rough + rest  # (S2), C(C u) = C u


def exponent(u: Array) -> Array:
    """Return, per channel, a k in −1000 … 1000 for which u·2^(−k) is of order one; shape (G, 1).

    k is the binary exponent of the largest element. At the ends of the range the scaled values leave order
    one, but their squares neither overflow nor underflow.
    """
    size = np.max(np.abs(u), axis=-1, keepdims=True, initial=0.0)
    return np.where(size == 0, -1000, np.clip(np.frexp(size)[1], -1000, 1000))


def statistics(x: Array, eps: float) -> Statistics:
    """Compute the statistics of x.

    Parameters
    ----------
    x : ndarray, shape (G, m), m ≥ 1
        The input.
    eps : float
        ε ≥ 0.

    Returns
    -------
    Statistics
        mean, var, invstd, xhat, kappa.

    Notes
    -----
    Definitions::

        (S1)  μ = mean(x) = c + mean(x − c)   for every constant c
        (S2)  d = x − μ = C x,   where C u = u − mean(u) = C(C u)
        (S3)  v = mean(d²)
        (S4)  q = v + ε,   s = √q,   r = 1/s,   κ = ε/q
        (S5)  x̂ = d·r

    The standardized input has mean 0, but its mean square falls short of 1 by what ε takes::

        (S6)  mean(x̂) = 0,   mean(x̂²) = v/q = 1 − κ

    *Scale.* Squares of binary64 numbers overflow above 2^512 and vanish below 2^(−537). They need not be formed there,
    for standardization does not see a power of two::

        (S7)  x → 2^k·x, ε → 4^k·ε   gives   μ → 2^k·μ,  v → 4^k·v,  r → 2^(−k)·r,  x̂ → x̂

    So x is centered at a scale, 2^k, where its largest element is of order one, and squared at a scale, 2^j, where
    its largest deviation is. q and r take 2^n, the larger of that and √ε's scale, since either may dwarf the other.

    *Edges.* If q = 0 (a constant channel, and ε = 0), r = +inf and x̂ = 0·inf = NaN, and so does all that
    contains them. A constant channel with ε > 0 has v = 0 and x̂ = 0 exactly. m = 1 is such a channel.
    """
    with np.errstate(all="ignore"):
        k = exponent(x)
        d, mu = center(x * 2.0**-k)  # (S1, S2)
        shrink = exponent(d)
        d, j = d * 2.0**-shrink, k + shrink
        v = mean(d * d)  # (S3)
        n = np.maximum(j, exponent(np.sqrt(np.full((1, 1), eps))))
        eps_scaled = eps * 2.0**-n * 2.0**-n
        q = v * 4.0 ** (j - n) + eps_scaled  # (S4)
        r = 1.0 / np.sqrt(q)
        xhat = d * 2.0 ** (j - n) * r  # (S5)
        return Statistics(
            mean=(mu * 2.0**k)[:, 0],  # (S7), here and below
            var=(v * 2.0**j * 2.0**j)[:, 0],
            invstd=(r * 2.0**-n)[:, 0],
            xhat=xhat,
            kappa=(eps_scaled / q)[:, 0],
        )


def unbiased_var(var: Array, m: int) -> Array:
    """Return Bessel's estimate of the variance, for m > 1.

    Notes
    -----
    If the elements are independent with variance σ², the biased v expects to see (m−1)/m·σ², for one of the m
    degrees of freedom goes into μ. Hence::

        (S8)  v·m/(m−1)   is the unbiased variance

    It enters running statistics in some dialects, and never the normalization itself.
    """
    return np.asarray(var * (m / (m - 1)))  # (S8)


def running_update(
    stats: Statistics,
    m: int,
    momentum: Fraction,
    weighs_new: bool,
    unbiased: bool,
    running_mean: Array,
    running_var: Array,
) -> Running:
    """Blend a batch's statistics into running ones.

    Parameters
    ----------
    stats : Statistics
        Of the batch.
    m : int
        Elements per channel; more than 1 if `unbiased`.
    momentum : Fraction
        The weight of the new value if `weighs_new`, else that of the old one.
    weighs_new, unbiased : bool
        See `momentum`; and whether the new variance is (S8) or v.
    running_mean, running_var : ndarray, shape (G,)
        The old values.

    Returns
    -------
    Running
        mean, var.

    Notes
    -----
    With w the weight of the new value::

        (S9)  running → w·new + (1 − w)·running

    After n steps from 0 with a constant new value, running = (1 − (1 − w)ⁿ)·new. Both weights are rounded
    from the exact momentum once; 1 − w is not computed from the rounded w.
    """
    new, old = (momentum, 1 - momentum) if weighs_new else (1 - momentum, momentum)
    with np.errstate(all="ignore"):
        var = unbiased_var(stats.var, m) if unbiased else stats.var  # (S8)
        return Running(
            mean=float(new) * stats.mean + float(old) * running_mean,  # (S9)
            var=float(new) * var + float(old) * running_var,
        )


def columns(stats: Statistics, gamma: Array) -> tuple[Array, Array, Array]:
    """Return r, x̂ and γ, all ready to multiply tensors."""
    return column(stats.invstd), stats.xhat, column(gamma)
