"""The public passes. Each is four visible steps: validate, view, run one kernel, return a frozen result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _geometry, _validate, backends
from refbn._types import (
    Array,
    DoubleBackward,
    Forward,
    Gradients,
    Hessian,
    Jacobian,
    Saved,
    SecondOrder,
    new_double_backward,
    new_forward,
    new_gradients,
    new_saved,
    new_second_order,
)
from refbn.backends._contract import Backend

__all__ = [
    "backward",
    "double_backward",
    "forward",
    "hessian",
    "hvp",
    "inference",
    "jacobian",
    "jvp",
    "normalized",
    "taylor",
]


def forward(
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
    """Normalize each channel of x by its own statistics: y = gamma·(x−μ)/√(v+ε) + beta.

    Parameters
    ----------
    x : array, shape (N, C, …)
        At least two axes, float16, bfloat16, float32 or float64, any strides; an ndarray or anything that
        exports DLPack from the CPU or speaks NumPy's array protocol. Not copied.
    gamma, beta : array, shape (C,), optional
        Scale and shift, of any of the four formats. Ones and zeros by default.
    eps : float
        ε >= 0, taken as exactly this number.
    channel_axis : int
        The axis of the C channels; the statistics run over all others.
    backend : {"native", "numba", "reference", "exact"}, optional
        Who computes. The first that is available by default; one that is named and missing is an error.
    dtype : dtype, optional
        The results' format; x's own by default.
    out : ndarray or mapping, optional
        Where to write y, or any of ``{"y": …, "mean": …, "var": …, "invstd": …}``.

    Returns
    -------
    Forward
        y in x's shape and memory order; mean, var (biased) and invstd of shape (C,); and `Saved`.

    Raises
    ------
    RefbnError
        Of the kind and with the label of the constraint that is broken (C1 … C15, `docs/constraints.md`).
        Nothing is written then.

    Notes
    -----
    ``native``, ``numba`` and ``exact`` round the exact real result of every output once, so they agree bit for bit.
    ``reference`` computes in binary64, stays within the bound of `refbn.reference.bounds`, and rounds once more.
    A channel with an infinity or NaN is NaN in every output
    that contains it, and so is x̂ where v + ε = 0; a result beyond the format is ±inf. Derivation:
    `refbn.reference.forward`.

    Examples
    --------
    >>> import numpy as np, refbn
    >>> fwd = refbn.forward(np.array([[1.0, 5.0], [3.0, 5.0]]), eps=0.0, channel_axis=1, beta=np.array([0.0, 7.0]))
    >>> fwd.mean
    array([2., 5.])
    >>> fwd.var
    array([1., 0.])
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    return normalized(x, gamma, beta, eps, _geometry.batch_norm(x.shape, axis), axis, backend, dtype, out)


def normalized(
    x: Array,
    gamma: Any,
    beta: Any,
    eps: Any,
    geometry: _geometry.Geometry,
    axes: int | tuple[int, ...],
    backend: str | None,
    dtype: npt.DTypeLike | None,
    out: Array | Mapping[str, Array] | None,
    correction: tuple[Any, Any] | None = None,
) -> Forward:
    """Run a forward for any split of the axes: `forward` and its relatives in `refbn._norms`.

    ``axes`` is what the errors call the axes of gamma; ``correction`` goes with a corrected geometry.
    """
    _validate.filled(geometry)
    eps = _validate.epsilon(eps)
    dtype = _validate.result_dtype(dtype, x.dtype)
    affine_shape, group_shape = geometry.affine_shape, geometry.group_shape
    gamma = _ones(geometry, dtype) if gamma is None else _vector(gamma, "gamma", geometry, axes)
    beta = np.zeros(affine_shape, dtype) if beta is None else _vector(beta, "beta", geometry, axes)
    more: dict[str, Any] = {}
    if correction is not None:
        named = zip(("r", "d"), correction, strict=True)
        more = {"correction": tuple(_vector(value, name, geometry, axes) for name, value in named)}
    name, kernels = _backend(backend, geometry)
    y = mean = var = invstd = None
    if out is not None:
        vector = _geometry.zeros(group_shape, dtype)
        like = {"y": _geometry.zeros(x.shape, dtype), "mean": vector, "var": vector, "invstd": vector}
        y, mean, var, invstd = _validate.outputs(out, "y", (x, gamma, beta, *more.get("correction", ())), like)
    y = _like(x, dtype) if y is None else y
    mean = np.empty(group_shape, dtype) if mean is None else mean
    var = np.empty(group_shape, dtype) if var is None else var
    invstd = np.empty(group_shape, dtype) if invstd is None else invstd

    x = _geometry.native(x)
    x_view, y_view = geometry.canonical(x, y)
    state = kernels.forward(x_view, gamma, beta, eps, y=y_view, mean=mean, var=var, invstd=invstd, **more)
    saved = new_saved(x, gamma, beta, None, None, eps, False, dtype, geometry, name, state)
    return new_forward(y, mean, var, invstd, saved)


def inference(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    backend: str | None = None,
    dtype: npt.DTypeLike | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Forward:
    """Normalize x by statistics that are given: y = gamma·(x−mean)/√(var+ε) + beta.

    Parameters
    ----------
    x, gamma, beta, eps, channel_axis, backend, dtype
        As for `forward`. x may be empty here.
    mean, var : array, shape (C,)
        The statistics, independent inputs of the function; var >= 0.
    out : ndarray or mapping, optional
        Where to write y, or any of ``{"y": …, "invstd": …}``.

    Returns
    -------
    Forward
        y and invstd computed, mean and var as they were given.

    Raises
    ------
    RefbnError
        As for `forward`, and C7 for a negative variance.

    Notes
    -----
    An infinite or NaN element of x concerns its own y alone. Derivation: `refbn.reference.inference`.
    """
    x, axis = _validate.input_tensor(x, channel_axis)
    eps = _validate.epsilon(eps)
    dtype = _validate.result_dtype(dtype, x.dtype)
    geometry = _geometry.batch_norm(x.shape, axis)
    mean = _vector(mean, "mean", geometry, axis)
    var = _vector(var, "var", geometry, axis)
    _validate.frozen_variance(var)
    gamma = _ones(geometry, dtype) if gamma is None else _vector(gamma, "gamma", geometry, axis)
    beta = np.zeros(geometry.affine_shape, dtype) if beta is None else _vector(beta, "beta", geometry, axis)
    name, kernels = _backend(backend, geometry)
    y = invstd = None
    if out is not None:
        like = {"y": _geometry.zeros(x.shape, dtype), "invstd": _geometry.zeros(geometry.affine_shape, dtype)}
        y, invstd = _validate.outputs(out, "y", (x, mean, var, gamma, beta), like)
    y = _like(x, dtype) if y is None else y
    invstd = np.empty(geometry.affine_shape, dtype) if invstd is None else invstd

    x = _geometry.native(x)
    x_view, y_view = geometry.canonical(x, y)
    state = kernels.inference(x_view, mean, var, gamma, beta, eps, y=y_view, invstd=invstd)
    saved = new_saved(x, gamma, beta, mean, var, eps, True, dtype, geometry, name, state)
    return new_forward(y, mean, var, invstd, saved)


def backward(saved: Saved, dy: Any, *, out: Mapping[str, Array] | None = None) -> Gradients:
    """Pull a cotangent of y back to the inputs of the forward that made ``saved``.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.
    dy : array, x's shape
        The cotangent (upstream gradient) of y.
    out : mapping, optional
        Where to write any of ``{"dx": …, "dgamma": …, "dbeta": …}`` (``dmean``, ``dvar`` too after `inference`).

    Returns
    -------
    Gradients
        dx in x's shape and the dtype of the forward; dgamma, dbeta (dmean, dvar) in the parameters' own.

    Raises
    ------
    RefbnError
        C1, C4, C8, C10 … C13.

    Notes
    -----
    ``dx = γ·r·P dy, dγ = Σ dy·x̂, dβ = Σ dy`` with ``P u = u − mean(u) − x̂·mean(x̂·u)``; derivation and error bound:
    `refbn.reference.backward`. With frozen statistics ``dx = γ·r·dy``: `refbn.reference.inference_backward`.
    """
    saved = _validate.saved(saved)
    dy = _validate.tensor(dy, "dy", saved.geometry.shape)
    dx = dgamma = dbeta = dmean = dvar = None
    if out is not None:
        dx, dgamma, dbeta, dmean, dvar = _validate.outputs(out, None, _inputs(saved, dy), _like_gradients(saved))
    dx, dgamma, dmean, dvar = _gradients(saved, dx, dgamma, dmean, dvar)
    dbeta = np.empty(saved.beta.shape, saved.beta.dtype) if dbeta is None else dbeta

    state, gamma = saved.state, saved.gamma
    kernels = backends.bound(saved.backend, saved.geometry)
    x, dy, dx_view = saved.geometry.canonical(saved.x, _geometry.native(dy), dx)
    if saved.frozen:
        kernels.inference_backward(state, x, gamma, dy, dx=dx_view, dgamma=dgamma, dbeta=dbeta, dmean=dmean, dvar=dvar)
    else:
        kernels.backward(state, x, gamma, dy, dx=dx_view, dgamma=dgamma, dbeta=dbeta)
    return new_gradients(dx, dgamma, dbeta, dmean, dvar)


def jvp(
    saved: Saved,
    x_dot: Any = None,
    gamma_dot: Any = None,
    beta_dot: Any = None,
    *,
    mean_dot: Any = None,
    var_dot: Any = None,
    out: Array | None = None,
) -> Array:
    """Push a tangent of the inputs forward to y.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.
    x_dot : array, x's shape, optional
        Tangent of x; what is left out does not move.
    gamma_dot, beta_dot : array, shape (C,), optional
        Tangents of the parameters.
    mean_dot, var_dot : array, shape (C,), optional
        Tangents of frozen statistics; only after `inference`.
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray
        y_dot, in x's shape and the dtype of the forward.

    Raises
    ------
    RefbnError
        C1, C3, C4, C8 … C13.

    Notes
    -----
    ``ẏ = γ·r·Pẋ + γ̇·x̂ + β̇``; derivation and error bound: `refbn.reference.jvp`.
    """
    saved = _validate.saved(saved)
    x_dot = _tensor_or_zeros(x_dot, "x_dot", saved)
    gamma_dot = _vector_or_zeros(gamma_dot, "gamma_dot", saved)
    beta_dot = _vector_or_zeros(beta_dot, "beta_dot", saved)
    mean_dot = _frozen_or_zeros(mean_dot, "mean_dot", saved)
    var_dot = _frozen_or_zeros(var_dot, "var_dot", saved)
    result = None
    if out is not None:
        inputs = _inputs(saved, x_dot, gamma_dot, beta_dot, mean_dot, var_dot)
        like = {"y_dot": _geometry.zeros(saved.geometry.shape, saved.dtype)}
        (result,) = _validate.outputs(out, "y_dot", inputs, like)
    result = _like(saved.x, saved.dtype) if result is None else result

    state, gamma = saved.state, saved.gamma
    kernels = backends.bound(saved.backend, saved.geometry)
    x, x_dot, y_dot = saved.geometry.canonical(saved.x, x_dot, result)
    if saved.frozen:
        kernels.inference_jvp(state, x, gamma, x_dot, mean_dot, var_dot, gamma_dot, beta_dot, y_dot=y_dot)
    else:
        kernels.jvp(state, x, gamma, x_dot, gamma_dot, beta_dot, y_dot=y_dot)
    return result


def double_backward(
    saved: Saved,
    dy: Any,
    ddx: Any = None,
    ddgamma: Any = None,
    ddbeta: Any = None,
    *,
    ddmean: Any = None,
    ddvar: Any = None,
    out: Mapping[str, Array] | None = None,
) -> DoubleBackward:
    """Pull cotangents of `backward`'s results back to its inputs dy, x and gamma.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.
    dy : array, x's shape
        As `backward` got it.
    ddx : array, x's shape, optional
        Cotangent of dx; what is left out is zero.
    ddgamma, ddbeta : array, shape (C,), optional
        Cotangents of dgamma and dbeta.
    ddmean, ddvar : array, shape (C,), optional
        Cotangents of dmean and dvar; only after `inference`.
    out : mapping, optional
        Where to write any of ``{"ddy": …, "dx": …, "dgamma": …}`` (``dmean``, ``dvar`` too after `inference`).

    Returns
    -------
    DoubleBackward
        ddy, dx in x's shape and the dtype of the forward; dgamma (dmean, dvar) in the parameters' own.

    Raises
    ------
    RefbnError
        C1, C3, C4, C8 … C13.

    Notes
    -----
    Derivation and error bound: `refbn.reference.double_backward`.
    """
    saved = _validate.saved(saved)
    dy = _validate.tensor(dy, "dy", saved.geometry.shape)
    ddx = _tensor_or_zeros(ddx, "ddx", saved)
    ddgamma = _vector_or_zeros(ddgamma, "ddgamma", saved)
    ddbeta = _vector_or_zeros(ddbeta, "ddbeta", saved)
    ddmean = _frozen_or_zeros(ddmean, "ddmean", saved)
    ddvar = _frozen_or_zeros(ddvar, "ddvar", saved)
    ddy = dx = dgamma = dmean = dvar = None
    if out is not None:
        inputs = _inputs(saved, dy, ddx, ddgamma, ddbeta, ddmean, ddvar)
        tensor = _geometry.zeros(saved.geometry.shape, saved.dtype)
        like = {"ddy": tensor, "dx": tensor, "dgamma": saved.gamma, "dmean": saved.mean, "dvar": saved.var}
        ddy, dx, dgamma, dmean, dvar = _validate.outputs(out, None, inputs, like)
    ddy = _like(saved.x, saved.dtype) if ddy is None else ddy
    dx, dgamma, dmean, dvar = _gradients(saved, dx, dgamma, dmean, dvar)

    state, gamma = saved.state, saved.gamma
    kernels = backends.bound(saved.backend, saved.geometry)
    x, dy, ddx, ddy_view, dx_view = saved.geometry.canonical(saved.x, _geometry.native(dy), ddx, ddy, dx)
    if saved.frozen:
        written = {"ddy": ddy_view, "dx": dx_view, "dgamma": dgamma, "dmean": dmean, "dvar": dvar}
        kernels.inference_double_backward(state, x, gamma, dy, ddx, ddmean, ddvar, ddgamma, ddbeta, **written)
    else:
        kernels.double_backward(state, x, gamma, dy, ddx, ddgamma, ddbeta, ddy=ddy_view, dx=dx_view, dgamma=dgamma)
    return new_double_backward(ddy, dx, dgamma, dmean, dvar)


def hvp(
    saved: Saved,
    dy: Any,
    x_dot: Any = None,
    gamma_dot: Any = None,
    beta_dot: Any = None,
    *,
    mean_dot: Any = None,
    var_dot: Any = None,
    out: Mapping[str, Array] | None = None,
) -> SecondOrder:
    """Differentiate `backward` along a direction of the inputs, dy held fixed.

    That is the Hessian of ⟨dy, y⟩ times the direction. If dy itself moves along dy_dot, add
    ``backward(saved, dy_dot)``.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.
    dy : array, x's shape
        As `backward` got it.
    x_dot : array, x's shape, optional
        Direction of x; what is left out does not move.
    gamma_dot, beta_dot : array, shape (C,), optional
        Directions of the parameters (nothing depends on beta_dot, it is taken for symmetry with `jvp`).
    mean_dot, var_dot : array, shape (C,), optional
        Directions of frozen statistics; only after `inference`.
    out : mapping, optional
        As for `backward`.

    Returns
    -------
    SecondOrder
        The directional derivatives of dx, dgamma, dbeta (dmean, dvar); dbeta is zero.

    Raises
    ------
    RefbnError
        C1, C3, C4, C8 … C13.

    Notes
    -----
    Derivation and error bound: `refbn.reference.hvp`.
    """
    saved = _validate.saved(saved)
    dy = _validate.tensor(dy, "dy", saved.geometry.shape)
    x_dot = _tensor_or_zeros(x_dot, "x_dot", saved)
    gamma_dot = _vector_or_zeros(gamma_dot, "gamma_dot", saved)
    beta_dot = _vector_or_zeros(beta_dot, "beta_dot", saved)
    mean_dot = _frozen_or_zeros(mean_dot, "mean_dot", saved)
    var_dot = _frozen_or_zeros(var_dot, "var_dot", saved)
    dx = dgamma = dbeta = dmean = dvar = None
    if out is not None:
        inputs = _inputs(saved, dy, x_dot, gamma_dot, beta_dot, mean_dot, var_dot)
        dx, dgamma, dbeta, dmean, dvar = _validate.outputs(out, None, inputs, _like_gradients(saved))
    dx, dgamma, dmean, dvar = _gradients(saved, dx, dgamma, dmean, dvar)
    dbeta = np.empty(saved.beta.shape, saved.beta.dtype) if dbeta is None else dbeta

    state, gamma = saved.state, saved.gamma
    kernels = backends.bound(saved.backend, saved.geometry)
    x, dy, x_dot, dx_view = saved.geometry.canonical(saved.x, _geometry.native(dy), x_dot, dx)
    if saved.frozen:
        written = {"dx": dx_view, "dgamma": dgamma, "dbeta": dbeta, "dmean": dmean, "dvar": dvar}
        kernels.inference_hvp(state, x, gamma, dy, x_dot, mean_dot, var_dot, gamma_dot, **written)
    else:
        kernels.hvp(state, x, gamma, dy, x_dot, gamma_dot, dx=dx_view, dgamma=dgamma, dbeta=dbeta)
    return new_second_order(dx, dgamma, dbeta, dmean, dvar)


def taylor(
    x_series: Sequence[Any] | Array,
    gamma_series: Sequence[Any] | Array | None = None,
    beta_series: Sequence[Any] | Array | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    backend: str | None = "exact",
) -> Array:
    """Push truncated Taylor series in t through the forward pass, to any order.

    Parameters
    ----------
    x_series : sequence of K+1 arrays of one shape (N, C, …)
        Coefficients of x(t) = Σ x_k t^k (coefficients, not derivatives: no factorials).
    gamma_series, beta_series : sequence of arrays of shape (C,), optional
        Coefficients of the parameters; missing orders are zero, and beyond K they are not used.
    eps, channel_axis
        As for `forward`.
    backend : {"exact", "reference"}, optional
        Correctly rounded (the default), or in plain binary64.

    Returns
    -------
    ndarray, shape (K+1, *x.shape)
        Coefficients of y(t), in the dtype of ``x_series[0]``.

    Raises
    ------
    RefbnError
        C1 … C6, C14, C19.

    Notes
    -----
    The recurrences: `refbn.reference.taylor`. Order 1 is `jvp`.
    """
    coefficients = _validate.series(x_series, "x_series")
    x0, axis = _validate.input_tensor(coefficients[0], channel_axis, "x_series[0]")
    xs = [x0, *(_validate.tensor(c, f"x_series[{k}]", x0.shape) for k, c in enumerate(coefficients[1:], 1))]
    geometry = _geometry.batch_norm(x0.shape, axis)
    _validate.filled(geometry, "x_series")
    eps = _validate.epsilon(eps)
    dtype = _validate.result_dtype(None, x0.dtype)
    gammas = _vector_series(gamma_series, "gamma_series", 1, len(xs), geometry, axis, dtype)
    betas = _vector_series(beta_series, "beta_series", 0, len(xs), geometry, axis, dtype)
    _, kernels = _backend(backend, geometry, "taylor")

    ys = np.empty((len(xs), *x0.shape), dtype)
    views = tuple(geometry.canonical(*map(_geometry.native, xs), *ys))
    kernels.taylor(views[: len(xs)], gammas, betas, eps, y=views[len(xs) :])
    return ys


def jacobian(saved: Saved) -> Jacobian:
    """Return the dense first derivatives of y, for small inputs.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.

    Returns
    -------
    Jacobian
        dy_dx of shape (*x.shape, *x.shape), dy_dgamma and dy_dbeta of shape (*x.shape, C), in the dtype of the
        forward. Column by column they are `jvp` along the unit vectors; different channels do not interact.

    Raises
    ------
    RefbnError
        C8, C20.
    """
    saved = _validate.saved(saved)
    _validate.channelwise(saved.geometry, "jacobian")
    shape, channels = saved.x.shape, saved.geometry.affine_shape
    _validate.dense(max(saved.x.size**2, saved.x.size * channels[0]), "saved")
    ones = np.ones(channels, saved.dtype)
    dy_dx = np.zeros((*shape, *shape), saved.dtype)
    for column, unit in _units(saved):
        _scatter(dy_dx, saved, column, jvp(saved, x_dot=unit))
    return Jacobian(
        dy_dx, _by_channel(saved, jvp(saved, gamma_dot=ones)), _by_channel(saved, jvp(saved, beta_dot=ones))
    )


def hessian(saved: Saved, dy: Any) -> Hessian:
    """Return the dense second derivatives of ⟨dy, y⟩, for small inputs.

    Parameters
    ----------
    saved : Saved
        Of `forward` or `inference`.
    dy : array, x's shape
        The weights of y.

    Returns
    -------
    Hessian
        dx_dx of shape (*x.shape, *x.shape) and dx_dgamma of shape (*x.shape, C); all other blocks are zero. Column
        by column they are `hvp` along the unit vectors.

    Raises
    ------
    RefbnError
        C1, C4, C8, C20.
    """
    saved = _validate.saved(saved)
    _validate.channelwise(saved.geometry, "hessian")
    dy = _validate.tensor(dy, "dy", saved.geometry.shape)
    shape, channels = saved.x.shape, saved.geometry.affine_shape
    _validate.dense(max(saved.x.size**2, saved.x.size * channels[0]), "saved")
    dx_dx = np.zeros((*shape, *shape), saved.dtype)
    for column, unit in _units(saved):
        _scatter(dx_dx, saved, column, hvp(saved, dy, x_dot=unit).dx)
    mixed = hvp(saved, dy, gamma_dot=np.ones(channels, saved.dtype)).dx
    return Hessian(dx_dx, _by_channel(saved, mixed))


# ---- the steps ---------------------------------------------------------------------------------------------------


_LARGE = 1 << 20  # bytes from which it matters where a result lies
_LINE, _PAGE = 64, 4096


def _like(a: Array, dtype: np.dtype[Any]) -> Array:
    """Allocate a result of an array's shape, in its memory order."""
    if a.size * dtype.itemsize >= _LARGE:
        return _large_like(a, dtype)
    return np.empty(a.shape, dtype) if a.flags.c_contiguous else np.empty_like(a, dtype=dtype)


def _large_like(a: Array, dtype: np.dtype[Any]) -> Array:
    """Allocate a result that begins with a line of the cache, half a page from where the array is in its own.

    Whole lines can be written past the caches; and a machine that compares addresses within pages only does not take
    reading ``a`` for reading what was just written.
    """
    size = a.size * dtype.itemsize
    memory = np.empty(size + _PAGE, np.uint8)
    wanted = a.__array_interface__["data"][0] // _LINE * _LINE + _PAGE // 2 + _LINE
    start = (wanted - memory.__array_interface__["data"][0]) % _PAGE
    order = sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]))
    laid = memory[start : start + size].view(dtype).reshape([a.shape[axis] for axis in order])
    return laid.transpose(np.argsort(order))


def _gradients(saved: Saved, dx: Any, dgamma: Any, dmean: Any, dvar: Any) -> tuple[Any, ...]:
    """Allocate those of dx, dgamma, dmean and dvar that are not given; None for no inputs.

    Parameters' gradients have their own formats.
    """
    gamma, mean, var = saved.gamma, saved.mean, saved.var
    return (
        _like(saved.x, saved.dtype) if dx is None else dx,
        np.empty(gamma.shape, gamma.dtype) if dgamma is None else dgamma,
        np.empty(mean.shape, mean.dtype) if dmean is None and mean is not None else dmean,
        np.empty(var.shape, var.dtype) if dvar is None and var is not None else dvar,
    )


def _like_gradients(saved: Saved) -> dict[str, Array | None]:
    """Return arrays like the gradients, for the checks of out."""
    dx = _geometry.zeros(saved.geometry.shape, saved.dtype)
    return {"dx": dx, "dgamma": saved.gamma, "dbeta": saved.beta, "dmean": saved.mean, "dvar": saved.var}


def _inputs(saved: Saved, *more: Array | None) -> tuple[Array | None, ...]:
    """List all arrays that a derivative pass reads."""
    return (saved.x, saved.gamma, saved.beta, saved.mean, saved.var, *more)


def _backend(name: str | None, geometry: _geometry.Geometry, operation: str = "forward") -> tuple[str, Backend]:
    if not geometry.channelwise:
        name = backends.NORMALIZATIONS[0] if name is None else _validate.backend(name, backends.NORMALIZATIONS)
        return name, backends.bound(name, geometry)
    return _offering(None if name is None else _validate.backend(name, backends.TABLE), operation)


@cache
def _offering(name: str | None, operation: str) -> tuple[str, Backend]:
    name = backends.first() if name is None else name
    try:
        kernels = backends.load(name)
    except ImportError as error:
        _validate.backend_missing(name, error)
    _validate.backend_offers(name, kernels, operation)
    return name, kernels


def _vector(value: Any, argument: str, geometry: _geometry.Geometry, axes: int | tuple[int, ...]) -> Array:
    return _geometry.native(_validate.vector(value, argument, geometry.affine_shape, axes))


def _ones(geometry: _geometry.Geometry, dtype: np.dtype[Any]) -> Array:
    ones = np.empty(geometry.affine_shape, dtype)
    ones.fill(1)  # np.ones takes a microsecond
    return ones


def _tensor_or_zeros(value: Any, argument: str, saved: Saved) -> Array:
    """Return a tangent or cotangent of x's shape; zeros if it was left out."""
    if value is None:
        return _geometry.zeros(saved.geometry.shape, saved.dtype)
    return _geometry.native(_validate.tensor(value, argument, saved.geometry.shape))


def _vector_or_zeros(value: Any, argument: str, saved: Saved) -> Array:
    """Return a tangent or cotangent of gamma or beta; zeros if it was left out."""
    if value is None:
        return _geometry.zeros(saved.geometry.affine_shape, saved.dtype)
    return _vector(value, argument, saved.geometry, saved.geometry.named_axes)


def _frozen_or_zeros(value: Any, argument: str, saved: Saved) -> Any:
    """Return a tangent or cotangent of frozen statistics; None where they are no inputs."""
    if saved.frozen:
        return _vector_or_zeros(value, argument, saved)
    _validate.no_frozen_argument(value, argument)
    return None


def _vector_series(
    values: Any,
    argument: str,
    default: int,
    length: int,
    geometry: _geometry.Geometry,
    axis: int,
    dtype: np.dtype[Any],
) -> tuple[Array, ...]:
    zero = np.zeros(geometry.affine_shape, dtype)
    if values is None:
        coefficients = [np.full(geometry.affine_shape, default, dtype)]
    else:
        checked = _validate.series(values, argument)
        coefficients = [_vector(c, f"{argument}[{k}]", geometry, axis) for k, c in enumerate(checked)]
    return tuple([*coefficients, *[zero] * length][:length])


def _units(saved: Saved) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield each reduced index with the tensor that is 1 there in every channel, 0 elsewhere."""
    channel = saved.geometry.group_axes[0]
    for column in np.ndindex(*(saved.x.shape[axis] for axis in saved.geometry.reduced_axes)):
        unit = np.zeros(saved.x.shape, saved.dtype)
        np.moveaxis(unit, channel, -1)[column] = 1
        yield column, unit


def _scatter(dense: Array, saved: Saved, column: tuple[int, ...], values: Array) -> None:
    """Write one column of every channel's diagonal block."""
    channel = saved.geometry.group_axes[0]
    blocks = np.moveaxis(dense, (channel, saved.x.ndim + channel), (0, 1))
    for c, rows in enumerate(np.moveaxis(values, channel, 0)):
        blocks[c, c][(..., *column)] = rows


def _by_channel(saved: Saved, values: Array) -> Array:
    """Spread a tensor over a trailing channel axis: zero where the channels differ."""
    channel = saved.geometry.group_axes[0]
    spread = np.zeros((*values.shape, saved.geometry.groups), values.dtype)
    blocks = np.moveaxis(spread, (channel, -1), (0, 1))
    for c, rows in enumerate(np.moveaxis(values, channel, 0)):
        blocks[c, c] = rows
    return spread
