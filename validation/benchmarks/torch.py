"""PyTorch's ways to compute the passes; it reads the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F

from refbn._formats import Array
from validation.benchmarks.cases import Inputs
from validation.benchmarks.timing import Contender

__all__ = ["contenders", "describe"]

_MOMENTUM = 0.1  # of running statistics, of which there are none


def describe(threads: int) -> dict[str, Any]:
    """Set the number of threads; return it as PyTorch has it, and the instruction set that it found."""
    torch.set_num_threads(threads)
    return {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}


def contenders(operation: str, inputs: Inputs, stack: ExitStack) -> Iterator[Callable[[], Contender]]:
    """Yield makers of contenders; what a maker opens, the stack closes.

    Each maker may fail by itself: PyTorch does not have every pass in every format.
    """
    x, dy, x_dot = (_tensor(a) for a in (inputs.x, inputs.dy, inputs.x_dot))
    gamma, beta, gamma_dot, beta_dot = (
        _tensor(a) for a in (inputs.gamma, inputs.beta, inputs.gamma_dot, inputs.beta_dot)
    )
    eps = inputs.eps

    def normalise(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, gamma, beta, True, _MOMENTUM, eps)

    def native(out: tuple[torch.Tensor, ...] | None = None) -> tuple[torch.Tensor, ...]:
        return torch.native_batch_norm(x, gamma, beta, None, None, True, _MOMENTUM, eps, out=out)

    def into_arrays() -> Contender:
        with torch.inference_mode():
            out = native()
        return _contender("native_batch_norm out=", lambda: native(out), ("y", "mean", "invstd"))

    def backward() -> Contender:
        with torch.inference_mode():
            _, mean, invstd = native()
        pull = torch.ops.aten.native_batch_norm_backward
        every = [True, True, True]
        return _contender(
            "native_batch_norm_backward",
            lambda: pull(dy, x, gamma, None, None, mean, invstd, True, eps, every),
            ("dx", "dgamma", "dbeta"),
        )

    def linear() -> Contender:
        _, push = torch.func.linearize(normalise, x, gamma, beta)
        return _contender("func.linearize", lambda: (push(x_dot, gamma_dot, beta_dot),), ("y_dot",), torch.no_grad)

    def dual() -> Contender:
        stack.enter_context(forward_ad.dual_level())
        pairs = (x, x_dot), (gamma, gamma_dot), (beta, beta_dot)
        duals = [forward_ad.make_dual(primal, tangent) for primal, tangent in pairs]
        return _contender(
            "forward_ad", lambda: (forward_ad.unpack_dual(normalise(*duals)).tangent,), ("y_dot",), torch.no_grad
        )

    def double_backward() -> Contender:
        leaves = [a.detach().requires_grad_() for a in (dy, x, gamma, beta)]
        y = normalise(*leaves[1:])
        first = torch.autograd.grad(y, leaves[1:], leaves[0], create_graph=True)
        cotangents = x_dot, gamma_dot, beta_dot
        return _contender(
            "autograd.grad",
            lambda: torch.autograd.grad(first, leaves[:3], cotangents, retain_graph=True),
            ("ddy", "dx", "dgamma"),
            torch.enable_grad,
        )

    if operation == "forward":
        yield lambda: _contender("native_batch_norm", native, ("y", "mean", "invstd"))
        yield into_arrays
        if inputs.case.size == "small":
            yield lambda: _contender("F.batch_norm", lambda: (normalise(x, gamma, beta),), ("y",))
    elif operation == "backward":
        yield backward
    elif operation == "jvp":
        if inputs.case.size == "small":
            yield linear  # before the level of dual numbers is entered: there is one at most
        yield dual
    else:
        yield double_backward


def _contender(
    name: str, work: Callable[[], Any], fields: tuple[str, ...], around: Callable[[], Any] = torch.inference_mode
) -> Contender:
    def results(raw: tuple[torch.Tensor, ...]) -> dict[str, Array]:
        return {field: _array(tensor) for field, tensor in zip(fields, raw, strict=True)}

    return Contender(f"PyTorch {name}", "PyTorch", work, results, around)


def _tensor(array: Array) -> torch.Tensor:
    """Return the same memory, strides included; PyTorch takes no bfloat16 from NumPy."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> Array:
    detached = tensor.detach()
    return (detached.float() if detached.dtype == torch.bfloat16 else detached).numpy()
