"""tinygrad on its default device, through ``tinygrad.nn.BatchNorm`` and ``Tensor.gradient``.

tinygrad has reverse mode alone; gradients are nested as the composition says. Training without running statistics is
``track_running_stats=False``, and the batch's statistics are those of ``BatchNorm.calc_stats``. Frozen ones are the
module's running tensors outside of ``Context(TRAINING=1)``, which take part in derivatives.

All outputs of an operation are realized at once, as an optimizer realizes its gradients: what they share is scheduled
and compiled once.

The device CPU compiles its kernels with clang. A type that this compiler does not know is unsupported here. tinygrad
would compile the kernels of one schedule in a pool of processes, one for each core, that start anew after every few
kernels; they would take the cores from the audit's own jobs (`refbn.audit.jobs`). So each kernel is compiled in the
process that asks for it, by the same compiler with the same flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from subprocess import CalledProcessError
from typing import Any, ClassVar

import numpy as np

from refbn._formats import BFLOAT16, FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Array, Inputs, Unsupported, installed
from refbn.dialects import DIALECTS

__all__ = ["Tinygrad"]

Tensor = Any

_VECTORS = ("gamma", "beta", "mean", "var")


class Tinygrad:
    """The tinygrad that is installed."""

    name = "tinygrad"
    dialect = DIALECTS["tinygrad"]
    operations = frozenset(op.name for op in OPERATIONS.values() if "fwd" not in op.composition)
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True
    environment: ClassVar[Mapping[str, str]] = {}
    compiles = True

    def version(self) -> str | None:
        """Return the installed version, or None; tinygrad is not imported for this."""
        return installed("tinygrad")

    def set_threads(self, count: int) -> None:
        """Refuse: tinygrad reads the number of threads when it is imported."""
        raise Unsupported(f"tinygrad reads CPU_COUNT at import; {count} threads cannot be asked for later")

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        if operation not in self.operations:
            raise Unsupported(f"tinygrad has no forward mode, so no {operation}")
        with _compiler():
            return _arrays(self._run(operation, inputs))

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Tensor]:
        if operation in _STATEFUL:
            return self._stateful(operation, inputs)
        asked = OPERATIONS[operation]
        names = ("x", *_VECTORS) if asked.frozen else ("x", *_VECTORS[:2])
        point = [_tensor(getattr(inputs, name)) for name in names]
        module = _module(inputs, point[1:])
        y = module(point[0])
        if asked.composition == "":
            if asked.frozen:
                return {"y": y}
            mean, var = module.calc_stats(point[0])
            return {"y": y, "mean": mean, "var": var}
        if operation.startswith("vjp"):
            gradient = y.gradient(*point, gradient=_tensor(inputs.dy))
        else:
            w, y = _tensor(inputs.w).double(), y.double()
            gradient = (w * (y * y / 2 + y * y * y / 6)).sum().gradient(*point)
            direction = [_tensor(getattr(inputs, f"{name}_dot")) for name in names]
            for _ in asked.composition.split("-")[1:]:
                pairs = zip(gradient, direction, strict=True)
                gradient = sum((a.double() * b.double()).sum() for a, b in pairs).gradient(*point)
        return {f"d{name}": tensor for name, tensor in zip(names, gradient, strict=True)}

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Tensor]:
        from tinygrad.helpers import Context

        statistics = inputs.running_mean.copy(), inputs.running_var.copy()
        module = _module(inputs, [_tensor(a) for a in (inputs.gamma, inputs.beta, *statistics)])
        module.momentum = inputs.momentum
        first, *others = (_tensor(batch) for batch in inputs.batches)
        with Context(TRAINING=1):
            y_train = module(first).realize()
            if operation == "running":
                for batch in others:
                    module(batch).realize()
                return {"running_mean": module.running_mean, "running_var": module.running_var}
        y_eval = module(others[0]).realize()
        with Context(TRAINING=1):
            return {"y_train": y_train, "y_eval": y_eval, "y_again": module(first).realize()}

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"tinygrad has no forward mode, so no {operation}")
        asked = OPERATIONS[operation]
        tracked = asked.frozen or operation in _STATEFUL
        statistics = ["mean", "var"] if asked.frozen else ["running_mean", "running_var"]
        lines = [
            "from tinygrad import Tensor",
            "from tinygrad.helpers import Context",
            "from tinygrad.nn import BatchNorm",
            f"bn = BatchNorm(len(gamma), eps=eps, track_running_stats={tracked}"
            + (", momentum=momentum)" if operation in _STATEFUL else ")"),
            "bn.weight, bn.bias = Tensor(gamma), Tensor(beta)",
        ]
        if tracked:
            lines.append(
                "bn.running_mean, bn.running_var = {}, {}".format(*(f"Tensor({s}.copy())" for s in statistics))
            )
        if operation in _STATEFUL:
            lines += _STATEFUL[operation]
        else:
            lines += ["x = Tensor(x)", "y = bn(x)"]
        if asked.composition == "" and operation not in _STATEFUL:
            lines.append(
                'answer = {"y": y}'
                if asked.frozen
                else 'answer = dict(zip(("y", "mean", "var"), (y, *bn.calc_stats(x))))'
            )
        elif asked.composition:
            point = ["x", "bn.weight", "bn.bias", *(["bn.running_mean", "bn.running_var"] if asked.frozen else [])]
            names = ["x", *_VECTORS] if asked.frozen else ["x", *_VECTORS[:2]]
            lines.append(f"point = [{', '.join(point)}]")
            if operation.startswith("vjp"):
                lines.append("gradient = y.gradient(*point, gradient=Tensor(dy))")
            else:
                lines += [
                    "w, y = Tensor(w).double(), y.double()",
                    "gradient = (w * (y * y / 2 + y * y * y / 6)).sum().gradient(*point)",
                ]
                depth = asked.composition.count("-")
                if depth:
                    lines.append(f"direction = [Tensor(a) for a in ({', '.join(f'{name}_dot' for name in names)})]")
                lines += [
                    "along = sum((g.double() * d.double()).sum() for g, d in zip(gradient, direction))",
                    "gradient = along.gradient(*point)",
                ] * depth
            lines.append(f"answer = dict(zip({tuple(f'd{name}' for name in names)}, gradient))")
        if "bfloat16" not in (inputs.x.dtype.name, inputs.gamma.dtype.name):  # which NumPy gets as binary32
            lines.append("Tensor.realize(*answer.values())")
        lines.append("answer = {name: tensor.numpy() for name, tensor in answer.items()}")
        return "\n".join(lines)


# What scripts do with a module that keeps statistics.
_STATEFUL = {
    "running": [
        "with Context(TRAINING=1):",
        "    for batch in batches:",
        "        bn(Tensor(batch)).realize()",
        'answer = {"running_mean": bn.running_mean, "running_var": bn.running_var}',
    ],
    "train_eval_train": [
        "first, second = map(Tensor, batches)",
        "with Context(TRAINING=1):",
        "    y_train = bn(first).realize()",
        "y_eval = bn(second).realize()",
        "with Context(TRAINING=1):",
        '    answer = {"y_train": y_train, "y_eval": y_eval, "y_again": bn(first).realize()}',
    ],
}
assert set(_STATEFUL) == {op.name for op in STATE}


def _module(inputs: Inputs, vectors: Sequence[Tensor]) -> Any:
    """Return a module with the parameters (gamma, beta), and with running statistics if they come as well."""
    from tinygrad.nn import BatchNorm

    module = BatchNorm(inputs.gamma.size, eps=inputs.eps, track_running_stats=len(vectors) > 2)
    module.weight, module.bias = vectors[:2]
    if len(vectors) > 2:
        module.running_mean, module.running_var = vectors[2:]
    return module


def _tensor(array: Array) -> Tensor:
    """Copy an array into a tensor; tinygrad knows NumPy's bfloat16 by its bits alone."""
    from tinygrad import Tensor, dtypes

    if array.dtype.name == "bfloat16":
        return Tensor(array.view(np.uint16)).bitcast(dtypes.bfloat16)
    return Tensor(array)


def _arrays(answer: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the tensors' values, realized at once; NumPy gets bfloat16 as binary32, as by tinygrad's own ``numpy``."""
    from tinygrad import dtypes

    half = {name for name, tensor in answer.items() if tensor.dtype == dtypes.bfloat16}
    told = {name: tensor.float() if name in half else tensor for name, tensor in answer.items()}
    first, *others = told.values()
    first.realize(*others)
    arrays = {name: np.asarray(tensor.numpy()) for name, tensor in told.items()}
    return {name: array.astype(BFLOAT16.dtype) if name in half else array for name, array in arrays.items()}


@contextmanager
def _compiler() -> Iterator[None]:
    """Turn the compiler's refusal into `Unsupported`: it is too old for a type, which is not tinygrad's affair."""
    from tinygrad import helpers
    from tinygrad.device import CompileError

    alone = {"PARALLEL": 0} if hasattr(helpers, "PARALLEL") else {}  # older versions have no pool
    try:
        with helpers.Context(**alone):
            yield
    except (CompileError, CalledProcessError) as error:  # the second: clang as a program, which tinygrad calls itself
        ended = isinstance(error, CalledProcessError)
        words = f"{error.cmd[0]} ends with status {error.returncode}" if ended else str(error).strip()
        raise Unsupported(f"tinygrad: the compiler of its device refuses: {words}") from error
