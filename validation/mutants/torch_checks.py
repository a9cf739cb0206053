"""`gradcheck` and `gradgradcheck` on a textbook that is wrapped as a custom function of PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import Function, gradcheck, gradgradcheck

from validation.mutants.custom import POINTS, Custom

__all__ = ["CHECKS", "check", "wrap"]

Tensor = torch.Tensor


def _arrays(tensors: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(
        np.zeros(t.shape) if a is None else np.ascontiguousarray(a.detach().numpy())
        for a, t in zip(tensors, like, strict=True)
    )


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))


def _tensors(arrays: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(_tensor(a) for a in arrays)


def wrap(custom: Custom) -> Callable[..., Tensor]:
    """Return a function of the point's tensors, twice differentiable in reverse mode, and once forward after either."""

    class Value(Function):
        @staticmethod
        def forward(*point: Tensor) -> Tensor:
            return _tensor(custom.value(_arrays(point, point)))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:
            return Gradients.apply(dy, *ctx.saved_tensors)

        @staticmethod
        def jvp(ctx: Any, *direction: Any) -> Any:
            point = ctx.saved_tensors
            return _tensor(custom.velocity(_arrays(point, point), _arrays(direction, point)))

    class Gradients(Function):
        @staticmethod
        def forward(dy: Tensor, *point: Tensor) -> tuple[Tensor, ...]:
            return _tensors(custom.gradients(_arrays(point, point), dy.detach().numpy()))

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *cotangent: Any) -> Any:
            dy, *point = ctx.saved_tensors
            given = _arrays(tuple(point), tuple(point))
            gradients, ddy = custom.second_gradients(given, dy.detach().numpy(), _arrays(cotangent, tuple(point)))
            return _tensor(ddy), *_tensors(gradients)

        @staticmethod
        def jvp(ctx: Any, dy_dot: Any, *direction: Any) -> Any:
            dy, *point = ctx.saved_tensors
            given = _arrays(tuple(point), tuple(point))
            moved = custom.moved_gradients(given, dy.detach().numpy(), _arrays(direction, tuple(point)))
            of_dy = custom.gradients(given, _arrays((dy_dot,), (dy,))[0])
            return _tensors(tuple(a + b for a, b in zip(moved, of_dy, strict=True)))

    return Value.apply


CHECKS: dict[str, Callable[..., bool]] = {
    "gradcheck": gradcheck,
    "gradcheck fast": lambda f, point: gradcheck(f, point, fast_mode=True),
    "gradcheck forward": lambda f, point: gradcheck(f, point, check_forward_ad=True, check_backward_ad=False),
    "gradgradcheck": gradgradcheck,
    "gradgradcheck fast": lambda f, point: gradgradcheck(f, point, fast_mode=True),
    "gradgradcheck fwd-over-rev": lambda f, point: gradgradcheck(
        f, point, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
    ),
}
"""Each with its default tolerances, in binary64."""


def check(name: str, custom: Custom, where: str) -> str:
    """Run one check at one of `POINTS`; return why it fails, or nothing."""
    _, values = POINTS[where]
    point = tuple(_tensor(values[n]).requires_grad_() for n in custom.names)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[name](wrap(custom), point)
        except Exception as error:  # a mutant that raises is found as well
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""
