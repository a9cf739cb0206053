"""The forward pass on truncated Taylor series: derivatives along a curve, to any order."""

from __future__ import annotations

import numpy as np

from refbn.reference._sum import Array, column, mean
from refbn.reference.statistics import center, exponent

__all__ = ["taylor"]


def taylor(x_series: Array, gamma_series: Array, beta_series: Array, eps: float) -> Array:
    """Push series in t through the forward pass.

    Parameters
    ----------
    x_series : ndarray, shape (n+1, G, m)
        The coefficients of x(t) = Σ x_k·t^k, without factorials.
    gamma_series, beta_series : ndarray, shape (n+1, G)
        Those of γ(t) and β(t).
    eps : float
        ε ≥ 0.

    Returns
    -------
    ndarray, shape (n+1, G, m)
        The coefficients of y(t). The first is `forward`, the second `jvp` along the first-order coefficients, and
        k! times the k-th the k-th derivative of y(t) at 0.

    Notes
    -----
    Each step of the forward pass becomes one on coefficients. Centering is linear, and a product is a
    convolution::

        (T1)  d_k = C x_k
        (T2)  v_k = Σ_{i+j=k} mean(d_i·d_j)

    The root has no formula of its own: compare coefficients in s·s = q, where q_0 = v_0 + ε and q_k = v_k, and
    solve for the newest::

        (T3)  s_0 = √(v_0 + ε),   s_k = (v_k − Σ_{0<i<k} s_i·s_{k−i}) / (2·s_0)

    Nor has the quotient: compare coefficients in s·x̂ = d::

        (T4)  x̂_k = (d_k − Σ_{0<i≤k} s_i·x̂_{k−i}) / s_0

    The affine phase is a product and a sum::

        (T5)  y_k = Σ_{0≤i≤k} γ_i·x̂_{k−i} + β_k

    n orders cost O(n²) operations on tensors. By (S7) everything is computed at a scale where d_0 (or √ε) is of
    order one.
    """
    with np.errstate(all="ignore"):
        first = exponent(x_series[0])
        deviation, _ = center(x_series[0] * 2.0**-first)
        n = np.maximum(first + exponent(deviation), exponent(np.sqrt(np.full((1, 1), eps))))  # (S7)
        eps_scaled = eps * 2.0**-n * 2.0**-n
        d: list[Array] = []
        v: list[Array] = []
        s: list[Array] = []
        xhat: list[Array] = []
        y: list[Array] = []
        for k, x_k in enumerate(x_series):
            d.append(center(x_k * 2.0**-first)[0] * 2.0 ** (first - n))  # (T1)
            v.append(np.asarray(sum(mean(d[i] * d[k - i]) for i in range(k + 1))))  # (T2)
            if k == 0:
                s.append(np.sqrt(v[0] + eps_scaled))  # (T3)
            else:
                s.append((v[k] - sum(s[i] * s[k - i] for i in range(1, k))) / (2.0 * s[0]))  # (T3)
            xhat.append((d[k] - sum(s[i] * xhat[k - i] for i in range(1, k + 1))) / s[0])  # (T4)
            y.append(
                sum(column(gamma_series[i]) * xhat[k - i] for i in range(k + 1)) + column(beta_series[k])  # (T5)
            )
        return np.stack(y)
