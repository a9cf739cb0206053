"""What the audit calls defects of PyTorch, evaluated once more: mpmath at 60 digits and the textbook's first formulas.

Nothing of refbn takes part, so that neither its oracle nor its bounds decide. Each line shows PyTorch's result, the
exact one, and the largest error over the largest exact magnitude; indented lines show what PyTorch itself makes of the
same by another route, so that neither format nor data are to blame.

    python -m validation.torch_by_hand
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import mpmath as mp
import numpy as np
import torch
from ml_dtypes import bfloat16
from torch.nn.functional import batch_norm, group_norm, layer_norm

EPS = 1e-5


def tensor(a):
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == bfloat16 else torch.from_numpy(a)


def normal(n, seed=0):
    return np.random.RandomState(seed).standard_normal(n)


def exact(values):
    return [mp.mpf(float(v)) for v in values]


def moments(x):
    mean = mp.fsum(x) / len(x)
    return mean, mp.fsum((v - mean) ** 2 for v in x) / len(x)


def forward(x):
    x = exact(x)
    mean, var = moments(x)
    return [(v - mean) / mp.sqrt(var + mp.mpf(EPS)) for v in x]


def jvp(x, x_dot):
    x, x_dot = exact(x), exact(x_dot)
    mean, var = moments(x)
    r = 1 / mp.sqrt(var + mp.mpf(EPS))
    mean_dot = mp.fsum(x_dot) / len(x)
    slope = mp.fsum((v - mean) * r * (d - mean_dot) for v, d in zip(x, x_dot, strict=True)) / len(x)
    return [r * (d - mean_dot - (v - mean) * r * slope) for v, d in zip(x, x_dot, strict=True)]


def show(what, got, truth):
    got, size = [float(g) for g in got], max(abs(t) for t in truth) or mp.mpf(1)
    error = max(abs(mp.mpf(g) - t) if np.isfinite(g) else mp.inf for g, t in zip(got, truth, strict=True)) / size
    print(f"{what:50} got {got[0]:<11.6g} exact {mp.nstr(truth[0], 9):<13} error {mp.nstr(error, 3)}")
    return what, float(error)


def rounded_mean():
    for dtype, name, offset, scale in ((bfloat16, "bfloat16", 301.0, 0.5), (np.float16, "binary16", 1500.0, 2.0)):
        x = (offset + scale * normal(64)).astype(dtype)
        for parameters in (dtype, np.float32):
            gamma, beta = tensor(np.ones(1, parameters)), tensor(np.zeros(1, parameters))
            y = batch_norm(tensor(x[:, None]), None, None, gamma, beta, training=True, eps=EPS)[:, 0]
            what = f"y, {name} at {offset:g}" if parameters is dtype else "  with binary32 parameters"
            yield show(what, y.float(), forward(x))


def cubed_invstd():
    def of(x, x_dot):
        ones, zeros = torch.ones(1, dtype=tensor(x).dtype), torch.zeros(1, dtype=tensor(x).dtype)
        function = lambda q: batch_norm(q, None, None, ones, zeros, training=True, eps=EPS)  # noqa: E731
        return torch.func.jvp(function, (tensor(x[:, None]),), (tensor(x_dot[:, None]),))[1][:, 0].float()

    for name, x, x_dot in (
        ("a constant channel", np.ones(4), np.array([1e-3, 2e-3, 0.0, 1e-3])),
        ("data of size 1e-4", 1e-4 * normal(8), 1e-4 * normal(8, 1)),
        ("data of size 1000", 1e3 * normal(8), 1e3 * normal(8, 1)),
    ):
        x, x_dot = x.astype(np.float16), x_dot.astype(np.float16)
        yield show(f"jvp, binary16, {name}", of(x, x_dot), jvp(x, x_dot))
        yield show("  in binary32", of(x.astype(np.float32), x_dot.astype(np.float32)), jvp(x, x_dot))


def folded_affine():
    for offset in (4096.0, 1e6):
        x = (offset + normal(6)).astype(np.float32)
        mean, var, gamma, beta = (np.float32([v]) for v in (offset, 2.0, 1.3, -0.7))
        m, v, g, b = (tensor(a) for a in (mean, var, gamma, beta))
        r = 1 / mp.sqrt(mp.mpf(2) + mp.mpf(EPS))
        truth = [(a - mp.mpf(offset)) * r * exact(gamma)[0] + exact(beta)[0] for a in exact(x)]
        yield show(
            f"evaluation, binary32 at {offset:g}", batch_norm(tensor(x[:, None]), m, v, g, b, eps=EPS)[:, 0], truth
        )
        yield show("  (x − μ)·rsqrt(v + ε)·γ + β", (tensor(x) - m) * torch.rsqrt(v + EPS) * g + b, truth)


def serial_sums():
    x = tensor(np.tile(np.arange(1, 9, dtype=np.float32), 2**22)[:, None])
    module = torch.nn.BatchNorm1d(1, eps=EPS, momentum=1.0)
    y = module(x)[:8, 0]
    yield show("y, binary32, 2^25 values 1 … 8", y, forward(range(1, 9)))
    yield show("running mean, 2^25 values, momentum 1", module.running_mean, [mp.mpf("4.5")])
    yield show("running variance, 2^25 values, momentum 1", module.running_var, [mp.mpf("5.25") * 2**25 / (2**25 - 1)])
    yield show("  torch.var", torch.var(x)[None], [mp.mpf("5.25") * 2**25 / (2**25 - 1)])


def nested_jvp():
    """Layer norm of x + t·x_dot: its second derivative in t is that of the definition, taken numerically."""
    x, x_dot, gamma = normal(5), normal(5, 1), normal(5, 2)
    eps, zeros = 0.25, np.zeros(5)

    def along(t):
        moved = [a + t * b for a, b in zip(exact(x), exact(x_dot), strict=True)]
        mean, var = moments(moved)
        return [g * (v - mean) / mp.sqrt(var + mp.mpf(eps)) for g, v in zip(exact(gamma), moved, strict=True)]

    truth = [mp.diff(lambda t, i=i: along(t)[i], 0, 2) for i in range(5)]
    g, b = tensor(gamma), tensor(zeros)
    own = lambda q: layer_norm(q, (5,), g, b, eps)  # noqa: E731
    parts = lambda q: (q - q.mean()) * torch.rsqrt(((q - q.mean()) ** 2).mean() + eps) * g  # noqa: E731
    for what, function in (("layer_norm, jvp of jvp, binary64", own), ("  written out", parts)):

        def first(q, function=function):
            return torch.func.jvp(function, (q,), (tensor(x_dot),))[1]

        yield show(what, torch.func.jvp(first, (tensor(x),), (tensor(x_dot),))[1], truth)


def narrow_sums():
    """The gradient of layer norm's beta is the sum of dy over the samples, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for dtype, name in ((bfloat16, "bfloat16"), (np.float16, "binary16")):
        x, dy = normal(2**13 * 4).astype(dtype).reshape(-1, 4), np.ones((2**13, 4), dtype)
        for parameters in (dtype, np.float32):
            gamma, beta = (tensor(np.full(4, v, parameters)).requires_grad_() for v in (1.0, 0.0))
            with torch.enable_grad():
                y = layer_norm(tensor(x), (4,), gamma, beta, EPS)
            dbeta = torch.autograd.grad(y, beta, tensor(dy))[0].float()
            what = f"layer_norm dbeta, {name}, 8192 ones"
            yield show(what if parameters is dtype else f"{what}, binary32 beta", dbeta, [mp.mpf(8192)] * 4)
        yield show("  dy.sum(0)", tensor(dy).sum(0).float(), [mp.mpf(8192)] * 4)
    torch.set_num_threads(threads)


def group_backward():
    """The two formulas of group norm's gradient: the one of training, and the one that can be differentiated again."""
    x, dy = (1e3 * normal(8)).astype(np.float16), (0.25 + normal(8, 1)).astype(np.float16)
    values, g = exact(x), exact(dy)
    mean, var = moments(values)
    r = 1 / mp.sqrt(var + mp.mpf(EPS))
    slope = mp.fsum((v - mean) * r * d for v, d in zip(values, g, strict=True)) / 8
    truth = [r * (d - mp.fsum(g) / 8 - (v - mean) * r * slope) for v, d in zip(values, g, strict=True)]
    for again in (True, False):
        q = tensor(x.reshape(1, 1, 8)).requires_grad_()
        ones, zeros = torch.ones(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float16)
        with torch.enable_grad():
            y = group_norm(q, 1, ones, zeros, EPS)
            dx = torch.autograd.grad(y, q, tensor(dy.reshape(1, 1, 8)), create_graph=again)[0]
        what = "group_norm dx, binary16 of size 1000, create_graph" if again else "  without create_graph"
        yield show(what, dx.detach().flatten().float(), truth)


def rounded_statistics():
    """The backward of layer norm takes the mean as it was stored, in the parameters' format."""
    x, dy = (301.0 + 0.5 * normal(64)).astype(bfloat16), (0.25 + normal(64, 1)).astype(bfloat16)
    values, g = exact(x), exact(dy)
    mean, var = moments(values)
    r = 1 / mp.sqrt(var + mp.mpf(EPS))
    slope = mp.fsum((v - mean) * r * d for v, d in zip(values, g, strict=True)) / 64
    truth = [r * (d - mp.fsum(g) / 64 - (v - mean) * r * slope) for v, d in zip(values, g, strict=True)]
    for parameters in (bfloat16, np.float32):
        gamma, beta = tensor(np.ones(64, parameters)), tensor(np.zeros(64, parameters))
        q = tensor(x[None]).requires_grad_()
        with torch.enable_grad():
            y = layer_norm(q, (64,), gamma, beta, EPS)
        what = "layer_norm dx, bfloat16 at 301" if parameters is bfloat16 else "  with binary32 parameters"
        yield show(what, torch.autograd.grad(y, q, tensor(dy[None]))[0].flatten().float(), truth)


def main(argv: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """Print every line, and return what each is and its error."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(argv)
    print(f"PyTorch {torch.__version__}")
    with mp.workdps(60), torch.no_grad():
        checks = (rounded_mean, cubed_invstd, folded_affine, serial_sums)
        norms = (nested_jvp, narrow_sums, group_backward, rounded_statistics)
        return [line for check in (*checks, *norms) for line in check()]


if __name__ == "__main__":
    main()
