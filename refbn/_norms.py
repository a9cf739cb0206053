"""Batch norm's relatives: other splits of the axes, other corrections, the same standardization and passes.

Each returns a `Forward` whose ``saved`` goes into `backward`, `jvp`, `double_backward`, `hvp` and `blindness`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _geometry, _validate
from refbn._api import forward, normalized
from refbn._types import Array, Forward, Renormalization

__all__ = [
    "batch_renorm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "renormalization",
    "weight_standardization",
]


def layer_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axes: int | tuple[int, ...] = -1,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Normalize each sample by the statistics of its features: y = gamma·(x−μ)/√(v+ε) + beta.

    Parameters
    ----------
    x : array
        At least two axes; formats, layouts and sources as for `forward`.
    gamma, beta : array, the shape of x along ``axes``, optional
        Scale and shift of each feature. Ones and zeros by default.
    eps : float
        ε >= 0, taken as exactly this number.
    axes : int or tuple of int
        The features' axes, which the statistics run over; there is a sample for each index of all others.
    backend : {"enclosure", "reference", "exact"}, optional
        Who computes: enclosures with the oracle as the last resort (the default), the textbook in binary64, or
        the oracle alone.
    dtype, out
        As for `forward`.

    Returns
    -------
    Forward
        y in x's shape; mean, var (biased) and invstd in the shape of the other axes; and `Saved`.

    Raises
    ------
    RefbnError
        C1 … C6, C10 … C15, C24. Nothing is written then.

    Notes
    -----
    ``enclosure`` and ``exact`` round the exact real result of every output of every pass once, as batch norm's
    backends do, and so agree bit for bit; an element of the gradient to gamma is a sum of numbers from as many fields
    as there are samples (`refbn.exact.sums`). Derivation: `refbn.reference.normalize`.

    Examples
    --------
    >>> import numpy as np, refbn
    >>> refbn.layer_norm(np.array([[1.0, 3.0], [5.0, 9.0]]), eps=0.0).y
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    x, _ = _validate.input_tensor(x, 0)
    counted = _validate.feature_axes(axes, x.ndim)
    return normalized(x, gamma, beta, eps, _geometry.layer_norm(x.shape, counted), counted, backend, dtype, out)


def group_norm(
    x: Any,
    groups: int,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Normalize each sample by the statistics of each group of neighbouring channels.

    Parameters
    ----------
    x : array, shape (N, C, …)
        As for `forward`. The first axis beside the channel axis is the samples'.
    groups : int
        How many groups of C / groups channels each; it divides C.
    gamma, beta : array, shape (C,), optional
        Scale and shift of each channel. Ones and zeros by default.
    eps, channel_axis, dtype, out
        As for `forward`.
    backend
        As for `layer_norm`.

    Returns
    -------
    Forward
        y in x's shape; mean, var (biased) and invstd of shape (N, groups), in the order of x's axes; and `Saved`.

    Raises
    ------
    RefbnError
        C1 … C6, C10 … C15, C25. Nothing is written then.

    Notes
    -----
    Accuracy and derivation as for `layer_norm`.
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    number = _validate.channel_groups(groups, x.shape[axis])
    geometry = _geometry.group_norm(x.shape, axis, number)
    return normalized(x, gamma, beta, eps, geometry, axis, backend, dtype, out)


def instance_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Normalize each channel of each sample by its own statistics.

    Parameters
    ----------
    x : array, shape (N, C, …)
        As for `forward`. The first axis beside the channel axis is the samples'.
    gamma, beta : array, shape (C,), optional
        Scale and shift of each channel. Ones and zeros by default.
    eps, channel_axis, dtype, out
        As for `forward`.
    backend
        As for `layer_norm`.

    Returns
    -------
    Forward
        y in x's shape; mean, var (biased) and invstd of shape (N, C), in the order of x's axes; and `Saved`.

    Raises
    ------
    RefbnError
        C1 … C6, C10 … C15. Nothing is written then.

    Notes
    -----
    Accuracy and derivation as for `layer_norm`.
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    return normalized(x, gamma, beta, eps, _geometry.instance_norm(x.shape, axis), axis, backend, dtype, out)


def weight_standardization(
    w: Any,
    gain: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 0,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Standardize the weights of each output channel: gain·(w−μ)/√(v+ε).

    Parameters
    ----------
    w : array, shape (C, …)
        A layer's weights; the statistics run over all that belongs to one output channel.
    gain : array, shape (C,), optional
        Scale of each output channel; ones by default.
    eps, backend, dtype, out
        As for `forward`; ``y`` is the standardized weight.
    channel_axis : int
        The output channels' axis.

    Returns
    -------
    Forward
        As of `forward`; the gradient to the gain is ``dgamma``.

    Raises
    ------
    RefbnError
        As for `forward`.

    Notes
    -----
    This is `forward` with the output channels as channels [1]_ (there ε is added to the standard deviation; here, as
    in most implementations, to the variance).

    References
    ----------
    .. [1] S. Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """
    return forward(w, gain, eps=eps, channel_axis=channel_axis, backend=backend, dtype=dtype, out=out)


def batch_renorm(
    x: Any,
    r: Any,
    d: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Normalize as `forward` does, with a correction before the affine phase: y = gamma·(r·x̂ + d) + beta.

    Parameters
    ----------
    x, gamma, beta, eps, channel_axis, dtype, out
        As for `forward`.
    r, d : array, shape (C,)
        The correction, of `renormalization`. **Constants**: the derivatives of all passes hold them still, though they
        were computed from x (the stop-gradient of [1]_), and there is no gradient to them.
    backend
        As for `layer_norm`.

    Returns
    -------
    Forward
        As of `forward`: mean, var and invstd are the batch's own.

    Raises
    ------
    RefbnError
        As for `forward`.

    Notes
    -----
    Accuracy as for `layer_norm`, given r and d as they are. Unclipped, y is that of `inference` with the running
    statistics; its gradient is not: it is as blind as batch norm's.

    References
    ----------
    .. [1] S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017.
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    geometry = _geometry.batch_renorm(x.shape, axis)
    return normalized(x, gamma, beta, eps, geometry, axis, backend, dtype, out, (r, d))


def renormalization(
    x: Any,
    running_mean: Any,
    running_var: Any,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    dtype: npt.DTypeLike | None = None,
) -> Renormalization:
    """Return the correction of `batch_renorm`: r = s/σ and d = (μ − running_mean)/σ, clipped.

    Parameters
    ----------
    x : array, shape (N, C, …)
        The batch, with statistics μ and s = √(v + ε).
    running_mean, running_var : array, shape (C,)
        The running statistics; σ = √(running_var + ε).
    r_max : float
        r is clipped to 1/r_max … r_max; at least 1, infinity for no limit.
    d_max : float
        d is clipped to −d_max … d_max; at least 0.
    eps, channel_axis, dtype
        As for `forward`.

    Returns
    -------
    Renormalization
        r and d, of shape (C,): correctly rounded before they are clipped, to limits rounded to the same format. NaN
        where a statistic is no number or running_var + eps is 0.

    Raises
    ------
    RefbnError
        C1, C2, C3, C5, C6, C7 (running_var), C15, C26.
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    geometry = _geometry.batch_norm(x.shape, axis)
    _validate.filled(geometry)
    mean = _geometry.native(_validate.vector(running_mean, "running_mean", geometry.affine_shape, axis))
    var = _geometry.native(_validate.vector(running_var, "running_var", geometry.affine_shape, axis))
    _validate.frozen_variance(var, "running_var")
    r_max, d_max = _validate.limit(r_max, "r_max", 1.0), _validate.limit(d_max, "d_max", 0.0)
    eps = _validate.epsilon(eps)
    dtype = _validate.result_dtype(dtype, x.dtype)

    from refbn.backends.normalization import correction  # not before it is wanted: it loads the oracle

    (view,) = geometry.canonical(_geometry.native(x))
    r, d = correction(view, mean, var, eps, dtype)
    ends = np.array([1 / r_max, r_max, -d_max, d_max]).astype(dtype)
    return Renormalization(np.clip(r, ends[0], ends[1]), np.clip(d, ends[2], ends[3]))
