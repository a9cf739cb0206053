"""PyTorch's batch norm by other ways than ``torch.nn.functional.batch_norm`` and `torch.autograd.grad`.

Each class changes one thing of `refbn.audit.adapters.torch.Torch` and leaves the rest. What all of them get wrong lies
in the operator's own formulas; what one of them does belongs to its way.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from typing import Any

from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Unsupported
from refbn.audit.adapters.torch import (
    _ANSWER,
    _TENSOR,
    Function,
    Tensor,
    Tensors,
    Torch,
    _array,
    _narrow,
    _tensor,
)

__all__ = ["TorchChannelsLast", "TorchCompile", "TorchDecomposition", "TorchFunc", "TorchModule", "TorchNative"]


class TorchNative(Torch):
    """The operator underneath, `torch.native_batch_norm`, which checks nothing and returns its statistics."""

    name = "torch-native"
    norms = frozenset({"batch"})
    called = "torch.native_batch_norm"
    """The operator's name in scripts."""
    may_crash = True
    """Whether a fault of the operator ends the process, since it is compiled code. One is known: its registered
    backward divides by zero for an empty tensor and frozen statistics. Forward over reverse takes another path."""

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        asked = OPERATIONS[operation]
        reverse = asked.frozen and asked.composition.startswith("rev")
        if self.may_crash and inputs.x.size == 0 and reverse and (ending := _dies()):
            raise RuntimeError(f"the gradient of torch.native_batch_norm of nothing ends the process with {ending}")
        return super().run(operation, inputs)

    def operator(self) -> Function:
        """Return the operator, of (x, gamma, beta, mean, var, training, momentum, eps): y, mean and invstd."""
        import torch

        function: Function = torch.native_batch_norm
        return function

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return the operator's first output as a function of (x, gamma, beta)."""
        operator, statistics = self.operator(), (None, None)
        if frozen:
            statistics = _tensor(inputs.mean), _tensor(inputs.var)
        return lambda *point: operator(*point, *statistics, not frozen, 0.0, inputs.eps)[0]

    def expression(self, frozen: bool, norm: str = "batch") -> str:
        """See `Torch.expression`."""
        return f"{self.called}(x, gamma, beta, {'mean, var' if frozen else 'None, None'}, {not frozen}, 0.0, eps)[0]"

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in _STATEFUL:
            return super().reproduction(operation, inputs)
        tensor = _TENSOR[_narrow(inputs)]
        return "\n".join(
            [
                "import torch",
                f"tensor = lambda a: {tensor}",
                "gamma, beta, mean, var = (tensor(a.copy()) for a in (gamma, beta, running_mean, running_var))",
                "bn = lambda batch, training: "
                f"{self.called}(tensor(batch), gamma, beta, mean, var, training, momentum, eps)[0]",
                *_STATEFUL[operation],
                _ANSWER,
            ]
        )

    def _forward(self, function: Function, point: Tensors, inputs: Inputs, frozen: bool) -> dict[str, Array]:
        if frozen:
            return {"y": _array(function(*point))}
        y, mean, invstd = self.operator()(*point, None, None, True, 0.0, inputs.eps)
        return {"y": _array(y), "mean": _array(mean), "invstd": _array(invstd)}

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        if inputs.momentum is None:
            raise Unsupported("torch.native_batch_norm has no cumulative average")
        gamma, beta = _tensor(inputs.gamma), _tensor(inputs.beta)
        mean, var = _tensor(inputs.running_mean).clone(), _tensor(inputs.running_var).clone()

        def call(batch: Array, training: bool) -> Array:
            operator = self.operator()
            return _array(operator(_tensor(batch), gamma, beta, mean, var, training, inputs.momentum, inputs.eps)[0])

        if operation == "running":
            for batch in inputs.batches:
                call(batch, True)
            return {"running_mean": _array(mean), "running_var": _array(var)}
        first, second = inputs.batches[:2]
        return {"y_train": call(first, True), "y_eval": call(second, False), "y_again": call(first, True)}


# What scripts do with bn, which updates mean and var.
_STATEFUL = {
    "running": [
        "for batch in batches:",
        "    bn(batch, True)",
        'answer = {"running_mean": mean, "running_var": var}',
    ],
    "train_eval_train": [
        'answer = {"y_train": bn(batches[0], True), "y_eval": bn(batches[1], False)}',
        'answer["y_again"] = bn(batches[0], True)',
    ],
}


@cache
def _dies() -> str:
    """Try in another process whether this one would survive an empty tensor; return the signal that ends it, if any."""
    code = (
        "import torch; x, c = torch.zeros(0, 1, requires_grad=True), torch.ones(1); "
        "torch.native_batch_norm(x, c, c, c, c, False, 0.0, 1e-5)[0].sum().backward()"
    )
    status = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
    return signal.Signals(-status).name if status < 0 else ""


class TorchDecomposition(TorchNative):
    """That operator's decomposition into elementary ones, which `torch.compile` works with, run eagerly."""

    name = "torch-decomposition"
    called = "torch._decomp.decomposition_table[torch.ops.aten.native_batch_norm.default]"
    may_crash = False

    def operator(self) -> Function:
        """Return the decomposition."""
        import torch
        from torch._decomp import get_decompositions

        target = torch.ops.aten.native_batch_norm.default
        function: Function = get_decompositions([target])[target]
        return function


class TorchModule(Torch):
    """The modules `torch.nn.BatchNorm1d`, 2d and 3d, called through `torch.func.functional_call`."""

    name = "torch-module"
    norms = frozenset({"batch"})

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return the module as a function of its parameters; in training it has no running statistics."""
        import torch

        given = dataclasses.replace(inputs, batches=(), running_mean=inputs.mean, running_var=inputs.var)
        module = self._module(given).train(not frozen)
        if not frozen:
            module.track_running_stats = False
            module.running_mean = module.running_var = None

        def normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            return torch.func.functional_call(module, {"weight": gamma, "bias": beta}, (x,))

        return normalize

    def expression(self, frozen: bool, norm: str = "batch") -> str:
        """See `Torch.expression`; `reproduction` puts in the number of spatial axes."""
        parameters = '"weight": gamma, "bias": beta'
        if frozen:
            module, given = "(len(gamma), eps=eps).eval()", f'{parameters}, "running_mean": mean, "running_var": var'
        else:
            module, given = "(len(gamma), eps=eps, track_running_stats=False)", parameters
        return f"torch.func.functional_call(torch.nn.BatchNormNd{module}, {{{given}}}, (x,))"

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        return super().reproduction(operation, inputs).replace("Nd(", f"{max(inputs.x.ndim - 2, 1)}d(")


class TorchChannelsLast(Torch):
    """Data in the memory format ``channels_last``, which has kernels of its own; with fewer axes, ones are added."""

    name = "torch-channels-last"
    norms = frozenset({"batch"})

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return batch norm of channels-last data."""
        function = super().batch_norm(inputs, frozen)
        return lambda x, gamma, beta: function(_channels_last(x), gamma, beta).reshape(x.shape)

    def expression(self, frozen: bool, norm: str = "batch") -> str:
        """See `Torch.expression`; `reproduction` puts in the memory format and the axes."""
        return super().expression(frozen).replace("(x,", "(x<axes>.contiguous(memory_format=<format>),") + "<back>"

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if not OPERATIONS[operation].composition and operation not in ("forward", "inference"):
            raise Unsupported(f"{self.name}: no script for {operation}")
        added = 4 - inputs.x.ndim
        return (
            super()
            .reproduction(operation, inputs)
            .replace("<axes>", f".reshape(*x.shape{', 1' * added})" if added > 0 else "")
            .replace("<format>", "torch.channels_last_3d" if added < 0 else "torch.channels_last")
            .replace("<back>", ".reshape(x.shape)" if added > 0 else "")
        )

    def _forward(self, function: Function, point: Tensors, inputs: Inputs, frozen: bool) -> dict[str, Array]:
        x, gamma, beta = point
        answer = super()._forward(function, (_channels_last(x), gamma, beta), inputs, frozen)
        return answer | {"y": answer["y"].reshape(tuple(x.shape))}

    def _module(self, inputs: Inputs) -> Any:
        batch = inputs.batches[0]
        added = (1,) * (4 - batch.ndim)
        module = super()._module(dataclasses.replace(inputs, batches=(batch.reshape(*batch.shape, *added),)))
        module.register_forward_pre_hook(lambda _, given: _channels_last(given[0]))
        module.register_forward_hook(lambda _, __, y: y.reshape(y.shape[: batch.ndim]))
        return module


def _channels_last(x: Tensor) -> Tensor:
    import torch

    if x.ndim > 5:
        raise Unsupported(f"torch has no channels-last memory format for {x.ndim} axes")
    x = x.reshape(*x.shape, *(1,) * (4 - x.ndim))
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)


class TorchFunc(Torch):
    """Every gradient by `torch.func.grad`."""

    name = "torch-func"
    functional = True


class TorchCompile(Torch):
    """`torch.compile` of ``torch.nn.functional.batch_norm``, forward and, through AOTAutograd, backward.

    A compiled backward has no derivative. Compiling takes a second or more for each rank, dtype and layout, so that
    even a quick audit takes minutes.

    Parameters
    ----------
    backend : str, optional
        As for `torch.compile`. By default the inductor if there is a C++ compiler, otherwise ``"aot_eager"``.
    """

    name = "torch-compile"
    compiles = True
    operations = frozenset({"forward", "vjp", "inference", "vjp_eval"})

    def __init__(self, backend: str = "") -> None:
        compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
        self.backend = backend or ("inductor" if compiler else "aot_eager")
        self._compiled: dict[tuple[bool | str, float], Function] = {}

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return compiled batch norm; one function for all shapes and dtypes, which Dynamo compiles anew for some."""
        import torch
        from torch.nn import functional

        eps = inputs.eps

        def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
            return functional.batch_norm(x, mean, var, gamma, beta, training=not frozen, eps=eps)

        if (frozen, eps) not in self._compiled:
            self._compiled[frozen, eps] = torch.compile(normalize, backend=self.backend, fullgraph=True, dynamic=True)
        compiled, statistics = self._compiled[frozen, eps], (None, None)
        if frozen:
            statistics = _tensor(inputs.mean), _tensor(inputs.var)
        return lambda *point: compiled(*point, *statistics)

    def normalization(self, inputs: Inputs) -> Function:
        """Return another norm, compiled."""
        import torch

        key = inputs.norm, inputs.eps
        if key not in self._compiled:
            plain = super().normalization(inputs)
            self._compiled[key] = torch.compile(plain, backend=self.backend, fullgraph=True, dynamic=True)
        return self._compiled[key]

    def evaluate(self, function: Function, point: Tensors) -> Any:
        """Call; compile as often as it takes, and let the backward be called as a part of a graph."""
        import torch

        limits = {"recompile_limit": 10**6, "accumulated_recompile_limit": 10**6}
        with torch._dynamo.config.patch(limits), torch._functorch.config.patch(donated_buffer=False):
            return function(*point)

    def _forward(self, function: Function, point: Tensors, inputs: Inputs, frozen: bool) -> dict[str, Array]:
        return {"y": _array(self.evaluate(function, point))}

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        frozen, gradient = OPERATIONS[operation].frozen, operation.startswith("vjp")
        arrays = ", ".join(["x", "gamma", "beta"] + ["mean", "var"] * frozen + ["dy"] * gradient)
        lines = [
            "import torch",
            f"{arrays} = ({_TENSOR[_narrow(inputs)]} for a in ({arrays}))",
            f"bn = lambda x, gamma, beta: {self.expression(frozen, inputs.norm)}",
            f'bn = torch.compile(bn, backend="{self.backend}", fullgraph=True, dynamic=True)',
        ]
        if gradient:
            lines += [
                "point = [tensor.requires_grad_() for tensor in (x, gamma, beta)]",
                "gradients = torch.autograd.grad(bn(*point), point, dy)",
                'answer = dict(zip(("dx", "dgamma", "dbeta"), gradients))',
            ]
        else:
            lines.append('answer = {"y": bn(x, gamma, beta)}')
        return "\n".join([*lines, _ANSWER])
