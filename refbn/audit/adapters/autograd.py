"""HIPS autograd: a batch norm composed of `autograd.numpy`.

Reverse mode is `autograd.grad`, forward mode `autograd.make_jvp`, nested literally (`refbn.audit.adapters._nested`).
autograd has no bfloat16, and no threads of its own.

The variance is ``np.var(x)``, or in the variant "autograd-mean" ``np.mean((x − mean)²)``: the same function, made of
operations that autograd differentiates by other rules.

The loss is brought to binary64 by ``astype``, which rounds the cotangent on its way back. There is no forward rule for
``astype``; where forward mode takes part, y is multiplied by a 1 in binary64, and cotangents stay in binary64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from refbn._formats import BFLOAT16, FORMATS
from refbn.audit.adapters import _nested
from refbn.audit.adapters._jax import STATELESS, axes_of, column
from refbn.audit.adapters._nesting import point_of
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Operation, Unsupported, installed
from refbn.dialects import DIALECTS

__all__ = ["Autograd"]

Value = Any
Function = Callable[..., Any]


class Autograd:
    """``(x − mean) / np.sqrt(var + ε) · γ + β``.

    Parameters
    ----------
    variance : str
        How it is computed: ``"var"``, or ``"mean"`` of squares.
    """

    dialect = DIALECTS["flax"]  # no state is kept; that one value per channel is computed is all that is asked of it
    operations = STATELESS
    dtypes = frozenset(f.name for f in FORMATS if f is not BFLOAT16)
    differentiates_statistics = True
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, variance: str) -> None:
        self.variance = variance
        self.name = "autograd" if variance == "var" else f"autograd-{variance}"

    def version(self) -> str | None:
        """Return the installed version, or None; autograd is not imported for this."""
        return installed("autograd")

    def set_threads(self, count: int) -> None:
        """NumPy's elementwise operations and sums run on the calling thread."""
        raise Unsupported(f"autograd runs on the calling thread, not on {count}")

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        asked = OPERATIONS[operation]
        names = point_of(asked, moves_statistics=True)
        point = tuple(getattr(inputs, name) for name in names)

        def function(x: Value, gamma: Value, beta: Value, *frozen: Value) -> Value:
            return _normalize(inputs.eps, x, gamma, beta, *(frozen or self._statistics(x)))

        if asked.composition == "":
            answer = {"y": np.asarray(function(*point))}
            if not asked.frozen:
                mean, var = self._statistics(inputs.x)
                answer |= {"mean": np.asarray(mean), "var": np.asarray(var)}
            return answer
        direction = tuple(getattr(inputs, f"{name}_dot") for name in names)
        result = _nested.compose(asked, function, point, direction, inputs.dy, inputs.w, _calculus(asked))
        if "rev" in asked.composition:
            return {f"d{name}": np.asarray(value) for name, value in zip(names, result, strict=True)}
        return {asked.outputs[0]: np.asarray(result.astype(inputs.x.dtype) if "value" in asked.outputs else result)}

    def _statistics(self, x: Value) -> tuple[Value, Value]:
        import autograd.numpy as anp

        axes = axes_of(x.ndim)
        mean = anp.mean(x, axes)
        if self.variance == "var":
            return mean, anp.var(x, axes)
        return mean, anp.mean((x - anp.reshape(mean, column(x.ndim))) ** 2, axes)

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        asked, rank = OPERATIONS[operation], inputs.x.ndim
        names = point_of(asked, moves_statistics=True)
        lines = [
            "import autograd",
            "import autograd.numpy as anp",
            "",
            f"def {'batch_norm' if asked.frozen else 'normalize'}(x, gamma, beta, mean, var):",
            f"    gamma, beta, mean, var = (anp.reshape(v, {column(rank)}) for v in (gamma, beta, mean, var))",
            "    return (x - mean) / anp.sqrt(var + eps) * gamma + beta",
            "",
        ]
        if not asked.frozen:
            lines += self._statistics_script(rank)
        lines.append(f"point = {', '.join(names)}")
        if asked.composition == "":
            lines.append('answer = {"y": np.asarray(batch_norm(*point))}')
            if not asked.frozen:
                lines.append('answer |= dict(zip(("mean", "var"), map(np.asarray, statistics(x))))')
            return "\n".join(lines)
        places = list(range(len(names)))
        if "rev" in asked.composition:
            lines.append(f"grad = lambda f: autograd.grad(f, {places})")
        if asked.composition != "rev":
            lines.append(f"direction = {', '.join(f'{name}_dot' for name in names)}")
        if "fwd" in asked.composition:
            lines.append(f"jvp = lambda f: lambda *p: autograd.make_jvp(f, {places})(*p)(direction)[1]")
            wide = "{} * np.float64(1)"
        else:
            wide = '{}.astype("float64")'
        return "\n".join([*lines, *_nested.script(asked, names, wide=wide)])

    def _statistics_script(self, rank: int) -> list[str]:
        """Return the lines that define ``batch_norm`` in training."""
        axes, squares = axes_of(rank), f"(x - anp.reshape(mean, {column(rank)})) ** 2"
        var = f"anp.var(x, {axes})" if self.variance == "var" else f"anp.mean({squares}, {axes})"
        return [
            "def statistics(x):",
            f"    mean = anp.mean(x, {axes})",
            f"    return mean, {var}",
            "",
            "def batch_norm(x, gamma, beta):",
            "    return normalize(x, gamma, beta, *statistics(x))",
            "",
        ]


def _normalize(eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
    import autograd.numpy as anp

    gamma, beta, mean, var = (anp.reshape(vector, column(x.ndim)) for vector in (gamma, beta, mean, var))
    return (x - mean) / anp.sqrt(var + eps) * gamma + beta


def _calculus(operation: Operation) -> _nested.Calculus:
    import autograd

    one = np.float64(1)

    def gradient(function: Function) -> Function:
        return lambda *point: autograd.grad(function, list(range(len(point))))(*point)

    def derivative(function: Function, direction: tuple[Value, ...]) -> Function:
        return lambda *point: autograd.make_jvp(function, list(range(len(point))))(*point)(direction)[1]

    if "fwd" in operation.composition:
        return _nested.Calculus(gradient, derivative, lambda array: array * one)
    return _nested.Calculus(gradient, derivative, lambda array: array.astype(np.float64))
