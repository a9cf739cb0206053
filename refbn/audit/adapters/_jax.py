"""What the adapters of batch norms on JAX share: everything but the batch norm.

Compositions are nested literally, `jax.grad` for reverse and `jax.jvp` for forward mode
(`refbn.audit.adapters._nested`). Frozen statistics are arguments, so they are differentiated too.

**Compiled.** Each operation is one function under `jax.jit`, as JAX is used; it is compiled once for each shape and
dtype. Without it JAX compiles every elementary operation for every shape, which takes several times as long.

**binary64.** JAX has no binary64 unless it is switched on. Each operation runs inside ``with jax.enable_x64(True)``,
which holds for this thread and for the length of the block: who uses JAX beside the audit notices nothing.

**The CPU.** Arrays are made on the CPU, whatever else the machine has. JAX takes its number of threads when the process
starts, so that it cannot be asked for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from refbn._formats import FORMATS
from refbn.audit.adapters import _nested
from refbn.audit.adapters._nesting import point_of
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Array, Inputs, Unsupported, installed
from refbn.dialects import Dialect

__all__ = ["STATELESS", "OnJax", "Value", "axes_of", "column"]

Value = Any
"""An array of JAX's."""
Function = Callable[..., Any]

STATELESS = frozenset(OPERATIONS) - {operation.name for operation in STATE}


class OnJax:
    """A batch norm on JAX: a subclass says which one, once to be run and once as the lines of a script."""

    name: str
    package: ClassVar[str]
    dialect: Dialect
    operations = frozenset(OPERATIONS)
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True
    environment: ClassVar[Mapping[str, str]] = {}
    compiles = True

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, float, float | None], Function] = {}

    def version(self) -> str | None:
        """Return the installed version, or None; the package is not imported for this."""
        return installed(self.package)

    def set_threads(self, count: int) -> None:
        """JAX has one pool of threads, as large as the machine, from its first operation on."""
        raise Unsupported(f"{self.name}: JAX's number of threads is fixed when the process starts, not {count}")

    # ---- what a subclass provides ---------------------------------------------------------------------------------

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """Return y, and the batch statistics if the framework hands them out."""
        raise NotImplementedError

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """Return y from given statistics."""
        raise NotImplementedError

    def stateful(
        self,
        operation: str,
        eps: float,
        momentum: float | None,
        gamma: Value,
        beta: Value,
        running: tuple[Value, Value],
        batches: Sequence[Value],
    ) -> dict[str, Value]:
        """Answer an operation that keeps state."""
        raise NotImplementedError

    imports: tuple[str, ...] = ()
    """Lines of a script that import more than JAX."""

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """Return the lines of a script that define ``batch_norm``, a function of the point that returns y.

        ``np``, ``jax``, ``jnp``, ``eps`` and the arrays of `Inputs` are there.
        """
        raise NotImplementedError

    def statistics(self, inputs: Inputs) -> list[str]:
        """Return the lines of a script that add the batch statistics to ``answer``."""
        return []

    def steps(self, operation: str, inputs: Inputs) -> list[str]:
        """Return the lines of a script that answer an operation that keeps state."""
        raise NotImplementedError

    # ---- the operations -------------------------------------------------------------------------------------------

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with _settings():
            found = self._run(operation, inputs)
            return {name: np.asarray(value) for name, value in found.items()}

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Value]:
        import jax

        key = operation, inputs.eps, inputs.momentum if OPERATIONS[operation] in STATE else None
        if key not in self._compiled:
            self._compiled[key] = jax.jit(self._function(*key))
        return dict(self._compiled[key](*self._arguments(operation, inputs)))

    def _arguments(self, operation: str, inputs: Inputs) -> tuple[Any, ...]:
        """Return what the operation is a function of; `jnp.asarray` would compile a copy for each shape."""
        import jax

        def arrays(*names: str) -> tuple[Value, ...]:
            return tuple(jax.device_put(getattr(inputs, name)) for name in names)

        asked = OPERATIONS[operation]
        if asked in STATE:
            running = arrays("running_mean", "running_var")
            return *arrays("gamma", "beta"), running, tuple(map(jax.device_put, inputs.batches))
        names = point_of(asked, moves_statistics=True)
        if asked.composition == "":
            return arrays(*names)
        return arrays(*names), arrays(*(f"{name}_dot" for name in names)), *arrays("dy", "w")

    def _function(self, operation: str, eps: float, momentum: float | None) -> Function:
        """Return the operation as a function of what `_arguments` returns."""
        asked = OPERATIONS[operation]
        if asked in STATE:
            return lambda *arguments: self.stateful(operation, eps, momentum, *arguments)
        if operation == "forward":
            return lambda *point: self.forward(eps, *point)

        def y(*point: Value) -> Value:
            return self.inference(eps, *point) if asked.frozen else self.forward(eps, *point)["y"]

        if operation == "inference":
            return lambda *point: {"y": y(*point)}
        names = point_of(asked, moves_statistics=True)

        def composed(point: Any, direction: Any, dy: Value, w: Value) -> dict[str, Value]:
            result = _nested.compose(asked, y, point, direction, dy, w, _calculus())
            if "rev" in asked.composition:
                return {f"d{name}": value for name, value in zip(names, result, strict=True)}
            return {asked.outputs[0]: result.astype(dy.dtype) if asked.outputs[0] == "value" else result}

        return composed

    # ---- scripts --------------------------------------------------------------------------------------------------

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        asked = OPERATIONS[operation]
        lines = ["import jax", "import jax.numpy as jnp", *self.imports, ""]
        lines += ['jax.config.update("jax_enable_x64", True)', ""]
        if asked in STATE:
            return "\n".join([*lines, *self.steps(operation, inputs)])
        names = point_of(asked, moves_statistics=True)
        lines += [*self.definition(inputs, asked.frozen), "", f"point = tuple(map(jnp.asarray, ({', '.join(names)})))"]
        if asked.composition == "":
            lines.append('answer = {"y": np.asarray(jax.jit(batch_norm)(*point))}')
            return "\n".join([*lines, *([] if asked.frozen else self.statistics(inputs))])
        directions = ", ".join(f"{name}_dot" for name in names)
        if "rev" in asked.composition:
            lines.append(f"grad = lambda f: jax.grad(f, argnums={tuple(range(len(names)))})")
        if asked.composition != "rev":
            lines.append(f"direction = tuple(map(jnp.asarray, ({directions})))")
        if "fwd" in asked.composition:
            lines.append("jvp = lambda f: lambda *p: jax.jvp(f, p, direction)[1]")
        return "\n".join([*lines, *_nested.script(asked, names, call="jax.jit({})(*point)")])


def _calculus() -> _nested.Calculus:
    import jax
    import jax.numpy as jnp

    def gradient(function: Function) -> Function:
        return lambda *point: jax.grad(function, argnums=tuple(range(len(point))))(*point)

    def derivative(function: Function, direction: tuple[Value, ...]) -> Function:
        return lambda *point: jax.jvp(function, point, direction)[1]

    return _nested.Calculus(gradient, derivative, lambda array: array.astype(jnp.float64))


@contextmanager
def _settings() -> Iterator[None]:
    """Switch binary64 on and make arrays on the CPU, for this thread and the length of the block."""
    import jax

    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def axes_of(rank: int) -> tuple[int, ...]:
    """Return the axes of a tensor that are reduced: all but the channels'."""
    return (0, *range(2, rank))


def column(rank: int) -> tuple[int, ...]:
    """Return the shape in which a vector of channels meets a tensor."""
    return (1, -1, *(1,) * (rank - 2))
