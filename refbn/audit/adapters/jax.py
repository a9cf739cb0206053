"""JAX: a batch norm composed of `jax.numpy`, as users write it, and one on top of `jax.nn.standardize`.

`jax.nn.standardize` has two algorithms for the variance. The default, "fast", is E[x²] − E[x]², with a warning in its
documentation; "stable" takes two passes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from refbn.audit.adapters._jax import STATELESS, OnJax, Value, axes_of, column
from refbn.audit.adapters._protocol import Inputs
from refbn.dialects import DIALECTS

__all__ = ["Jax", "Standardize"]


class Jax(OnJax):
    """``(x − jnp.mean(x)) · lax.rsqrt(jnp.var(x) + ε) · γ + β``."""

    name = "jax"
    package = "jax"
    dialect = DIALECTS["flax"]  # no state is kept; that one value per channel is computed is all that is asked of it
    operations = STATELESS

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """See `OnJax.forward`."""
        import jax.numpy as jnp

        mean, var = jnp.mean(x, axes_of(x.ndim)), jnp.var(x, axes_of(x.ndim))
        return {"y": self.inference(eps, x, gamma, beta, mean, var), "mean": mean, "var": var}

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """See `OnJax.inference`."""
        from jax import lax

        gamma, beta, mean, var = (vector.reshape(column(x.ndim)) for vector in (gamma, beta, mean, var))
        return (x - mean) * lax.rsqrt(var + eps) * gamma + beta

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """See `OnJax.definition`."""
        axes = axes_of(inputs.x.ndim)
        lines = [
            f"def {'batch_norm' if frozen else 'normalize'}(x, gamma, beta, mean, var):",
            f"    gamma, beta, mean, var = (v.reshape{column(inputs.x.ndim)} for v in (gamma, beta, mean, var))",
            "    return (x - mean) * jax.lax.rsqrt(var + eps) * gamma + beta",
        ]
        if frozen:
            return lines
        return [
            *lines,
            "",
            "def batch_norm(x, gamma, beta):",
            f"    return normalize(x, gamma, beta, jnp.mean(x, {axes}), jnp.var(x, {axes}))",
        ]

    def statistics(self, inputs: Inputs) -> list[str]:
        """See `OnJax.statistics`."""
        axes = axes_of(inputs.x.ndim)
        return [f"answer |= {{'mean': np.asarray(jnp.mean(x, {axes})), 'var': np.asarray(jnp.var(x, {axes}))}}"]


class Standardize(OnJax):
    """``jax.nn.standardize(x) · γ + β``.

    Parameters
    ----------
    algorithm : str
        ``"fast"``, the default of `jax.nn.standardize`, or ``"stable"``.
    """

    package = "jax"
    dialect = DIALECTS["flax"]  # as for `Jax`
    operations = STATELESS
    _names: ClassVar[dict[str, str]] = {"fast": "jax-standardize", "stable": "jax-standardize-stable"}

    def __init__(self, algorithm: str) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.name = self._names[algorithm]

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """See `OnJax.forward`."""
        shape = column(x.ndim)
        xhat = self._standardize(x, axes_of(x.ndim), epsilon=eps)
        return {"y": xhat * gamma.reshape(shape) + beta.reshape(shape)}

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """See `OnJax.inference`."""
        gamma, beta, mean, var = (vector.reshape(column(x.ndim)) for vector in (gamma, beta, mean, var))
        return self._standardize(x, axes_of(x.ndim), mean, var, eps) * gamma + beta

    def _standardize(self, *arguments: Any, **options: Any) -> Value:
        from jax import nn

        standardize: Any = nn.standardize  # older versions have the fast algorithm alone, and no word for it
        chosen = {} if self.algorithm == "fast" else {"algorithm": self.algorithm}
        return standardize(*arguments, **options, **chosen)

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """See `OnJax.definition`."""
        shape, axes = column(inputs.x.ndim), axes_of(inputs.x.ndim)
        option = "" if self.algorithm == "fast" else f", algorithm={self.algorithm!r}"
        if frozen:
            return [
                "def batch_norm(x, gamma, beta, mean, var):",
                f"    gamma, beta, mean, var = (v.reshape{shape} for v in (gamma, beta, mean, var))",
                f"    return jax.nn.standardize(x, {axes}, mean, var, eps{option}) * gamma + beta",
            ]
        return [
            "def batch_norm(x, gamma, beta):",
            f"    xhat = jax.nn.standardize(x, {axes}, epsilon=eps{option})",
            f"    return xhat * gamma.reshape{shape} + beta.reshape{shape}",
        ]
