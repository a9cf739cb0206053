"""JAX's ways to compute the passes of a plain batch normalization, compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refbn._formats import Array
from validation.benchmarks.cases import Case, Inputs
from validation.benchmarks.timing import Contender

__all__ = ["contenders", "forget"]

jax.config.update("jax_enable_x64", True)


def forget() -> None:
    """Drop what was compiled."""
    jax.clear_caches()


def contenders(operation: str, inputs: Inputs) -> Iterator[Callable[[], Contender]]:
    """Yield makers of contenders: each pass whole, and what remains of it when all is saved that can be."""
    case = inputs.case
    x, dy, x_dot = (jnp.asarray(case.to_memory(a)) for a in (inputs.x, inputs.dy, inputs.x_dot))
    gamma, beta, gamma_dot, beta_dot = (
        jnp.asarray(a) for a in (inputs.gamma, inputs.beta, inputs.gamma_dot, inputs.beta_dot)
    )
    primals, tangents = (x, gamma, beta), (x_dot, gamma_dot, beta_dot)

    def statistics(x: jax.Array) -> tuple[jax.Array, ...]:
        channel = -1 if case.layout == "last" else 1
        axes = tuple(axis for axis in range(x.ndim) if axis != channel % x.ndim)
        wide = x.astype(jnp.promote_types(x.dtype, gamma.dtype))
        mean = wide.mean(axes, keepdims=True)
        centred = wide - mean
        var = jnp.square(centred).mean(axes, keepdims=True)
        return centred, mean, var, jax.lax.rsqrt(var + inputs.eps)

    def along(vector: jax.Array) -> jax.Array:
        return vector if case.layout == "last" else vector.reshape(-1, *[1] * (x.ndim - 2))

    def forward(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> tuple[jax.Array, ...]:
        centred, mean, var, invstd = statistics(x)
        y = (centred * (invstd * along(gamma)) + along(beta)).astype(x.dtype)
        return y, mean.ravel(), var.ravel(), invstd.ravel()

    def normalise(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
        return forward(x, gamma, beta)[0]

    def gradients(dy: jax.Array, x: jax.Array, gamma: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(normalise, x, gamma, beta)[1](dy)

    def contender(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], fields: str) -> Contender:
        compiled = jax.jit(function)
        return Contender(
            f"JAX {name}",
            "JAX",
            lambda: jax.block_until_ready(compiled(*arguments)),
            lambda raw: _results(case, fields.split(), raw),
        )

    def pull(residuals: Any, cotangent: Any) -> Any:
        return residuals(cotangent)

    def saved_backward() -> Contender:
        residuals = jax.jit(lambda *a: jax.vjp(normalise, *a)[1])(*primals)
        return contender("vjp, residuals saved", pull, (residuals, dy), "dx dgamma dbeta")

    def saved_jvp() -> Contender:
        linear = jax.jit(lambda *a: jax.linearize(normalise, *a)[1])(*primals)
        return contender("linearize", lambda push, along: (push(*along),), (linear, tangents), "y_dot")

    def saved_double_backward() -> Contender:
        residuals = jax.jit(lambda *a: jax.vjp(gradients, *a)[1])(dy, x, gamma)
        return contender("vjp of vjp, residuals saved", pull, (residuals, tangents), "ddy dx dgamma")

    if operation == "forward":
        yield lambda: contender("jit", forward, primals, "y mean var invstd")
    elif operation == "backward":
        yield lambda: contender("vjp", gradients, (dy, x, gamma), "dx dgamma dbeta")
        yield saved_backward
    elif operation == "jvp":
        yield lambda: contender("jvp", lambda *a: (jax.jvp(normalise, *a)[1],), (primals, tangents), "y_dot")
        yield saved_jvp
    else:
        arguments = dy, x, gamma, tangents
        yield lambda: contender(
            "vjp of vjp", lambda *a: jax.vjp(gradients, *a[:3])[1](a[3]), arguments, "ddy dx dgamma"
        )
        yield saved_double_backward


def _results(case: Case, fields: list[str], raw: tuple[jax.Array, ...]) -> dict[str, Array]:
    arrays = {field: np.asarray(a) for field, a in zip(fields, raw, strict=True)}
    return {field: case.from_memory(a) if a.ndim > 1 else a for field, a in arrays.items()}
