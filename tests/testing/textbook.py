"""Hand-written batch norms, as strangers write them: right ones in binary64, and ways to break them."""

import numpy as np


def column(vector, x):
    return np.asarray(vector, np.float64).reshape(1, -1, *(1 for _ in x.shape[2:]))


def parts(x, eps):
    axes = (0, *range(2, x.ndim))
    wide = x.astype(np.float64)
    d = wide - wide.mean(axes, keepdims=True)
    d = d - d.mean(axes, keepdims=True)
    var = (d * d).mean(axes, keepdims=True)
    return axes, d / np.sqrt(var + eps), 1 / np.sqrt(var + eps)


def forward(x, gamma, beta, eps):
    _, xhat, _ = parts(x, eps)
    return (column(gamma, x) * xhat + column(beta, x)).astype(x.dtype)


def backward(x, gamma, beta, eps, dy):
    axes, xhat, invstd = parts(x, eps)
    g = dy.astype(np.float64)
    dx = column(gamma, x) * invstd * projected(g, xhat, axes)
    dgamma, dbeta = (g * xhat).sum(axes), g.sum(axes)
    return dx.astype(x.dtype), dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)


def projected(g, xhat, axes):
    return g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True)


def jvp(x, gamma, beta, eps, x_dot, gamma_dot, beta_dot):
    axes, xhat, invstd = parts(x, eps)
    moved = column(gamma, x) * invstd * projected(x_dot.astype(np.float64), xhat, axes)
    return (moved + column(gamma_dot, x) * xhat + column(beta_dot, x)).astype(x.dtype)


def second(x, gamma, eps, dy, u, gamma_dot):
    """The derivative of backward along (u, gamma_dot): dx and dgamma."""
    axes, xhat, invstd = parts(x, eps)
    g, u, a = dy.astype(np.float64), u.astype(np.float64), column(gamma, x)
    pg, pu = projected(g, xhat, axes), projected(u, xhat, axes)

    def mean(values):
        return values.mean(axes, keepdims=True)

    bracket = mean(xhat * g) * pu + mean(xhat * u) * pg + xhat * mean(u * pg)
    dx = -a * invstd * invstd * bracket + column(gamma_dot, x) * invstd * pg
    return dx.astype(x.dtype), (invstd * (u * pg)).sum(axes).astype(gamma.dtype)


def double_backward(x, gamma, beta, eps, dy, ddx, ddgamma, ddbeta):
    return jvp(x, gamma, beta, eps, ddx, ddgamma, ddbeta), *second(x, gamma, eps, dy, ddx, ddgamma)


def hvp(x, gamma, beta, eps, dy, x_dot, gamma_dot, beta_dot):
    dx, dgamma = second(x, gamma, eps, dy, x_dot, gamma_dot)
    return {"dx": dx, "dgamma": dgamma, "dbeta": np.zeros_like(dgamma)}


def inference(x, mean, var, gamma, beta, eps):
    d = x.astype(np.float64) - column(mean, x)
    return (column(gamma, x) * d / np.sqrt(column(var, x) + eps) + column(beta, x)).astype(x.dtype)


def inference_backward(x, mean, var, gamma, beta, eps, dy):
    axes = (0, *range(2, x.ndim))
    invstd = 1 / np.sqrt(column(var, x) + eps)
    g = dy.astype(np.float64)
    d = x.astype(np.float64) - column(mean, x)
    dx = (column(gamma, x) * invstd * g).astype(x.dtype)
    return dx, (g * d * invstd).sum(axes).astype(gamma.dtype), g.sum(axes).astype(gamma.dtype)


def running(x, running_mean, running_var, momentum):
    axes = (0, *range(2, x.ndim))
    wide = x.astype(np.float64)
    m = x.size // x.shape[1]
    var = wide.var(axes) * m / (m - 1)
    mean, old = running_mean.astype(np.float64), running_var.astype(np.float64)
    mean, var = mean + momentum * (wide.mean(axes) - mean), old + momentum * (var - old)
    return mean.astype(running_mean.dtype), var.astype(running_var.dtype)


EVERYTHING = {
    "backward": backward,
    "jvp": jvp,
    "double_backward": double_backward,
    "hvp": hvp,
    "inference": inference,
    "inference_backward": inference_backward,
    "running": running,
}
