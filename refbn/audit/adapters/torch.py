"""PyTorch on the CPU, through its public functions.

Statistics of x: ``torch.nn.functional.batch_norm(training=True)``; frozen ones: ``training=False`` with mean and var as
the running buffers, which PyTorch treats as constants; running statistics: ``torch.nn.BatchNorm1d/2d/3d``.

Other norms: ``torch.nn.functional.layer_norm``, ``group_norm`` and ``instance_norm``.

A single gradient (vjp) is that of training, without ``create_graph``: some operators have another formula where it is
to be differentiated again. Compositions, ``rev`` among them, are nested literally. Where only reverse mode occurs,
`torch.autograd.grad` with ``create_graph=True`` is nested; as soon as forward mode takes part, `torch.func.grad` and
`torch.func.jvp` are. The loss runs in binary64 on y as batch norm rounded it; autograd rounds the cotangent to y's
dtype on its way back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from refbn._formats import BFLOAT16, FORMATS
from refbn.audit.adapters._nesting import nest
from refbn.audit.adapters._protocol import (
    OPERATIONS,
    Array,
    Inputs,
    Unsupported,
    installed,
    kind_and_groups,
)
from refbn.dialects import DIALECTS

__all__ = ["Torch"]

Tensor = Any
Tensors = tuple[Tensor, ...]
Function = Callable[..., Any]
"""Of (x, gamma, beta): y, f or L, or their gradients as a tuple."""


class Torch:
    """The PyTorch that is installed."""

    name = "torch"
    dialect = DIALECTS["torch"]
    operations = frozenset(OPERATIONS)
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = False
    norms = frozenset({"batch", "layer", "group", "instance"})
    environment: ClassVar[Mapping[str, str]] = {}
    functional = False
    """Whether gradients are taken by `torch.func.grad` even where forward mode takes no part."""

    def version(self) -> str | None:
        """Return the installed version, or None; PyTorch is not imported for this."""
        return installed("torch")

    def set_threads(self, count: int) -> None:
        """Set the number of threads that an operator may use."""
        import torch

        torch.set_num_threads(count)

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation in ("running", "train_eval_train"):
            return _stateful_script(operation, inputs)
        asked = OPERATIONS[operation]
        arrays = ["x", "gamma", "beta"] + ["mean", "var"] * asked.frozen
        if operation.startswith("vjp"):
            arrays.append("dy")
        elif asked.composition:
            arrays += ["w"] * (not operation.startswith("jvp")) + ["x_dot", "gamma_dot", "beta_dot"]
        lines = [
            "import torch",
            f"{', '.join(arrays)} = ({_TENSOR[_narrow(inputs)]} for a in ({', '.join(arrays)}))",
            f"bn = lambda x, gamma, beta: {self.expression(asked.frozen, inputs.norm)}",
        ]
        if asked.composition == "":
            lines.append('answer = {"y": bn(x, gamma, beta)}')
            kind, groups = kind_and_groups(inputs.norm)
            if not asked.frozen and kind in _OPERATORS:
                lines.append(f"_, mean, invstd = torch.{_OPERATORS[kind].format(groups=groups)}")
                lines.append(f'answer |= {{"mean": mean{_FLAT[kind]}, "invstd": invstd{_FLAT[kind]}}}')
        elif operation.startswith("vjp"):
            if self.functional:
                lines.append("gradients = torch.func.vjp(bn, x, gamma, beta)[1](dy)")
            else:
                lines.append("point = [tensor.requires_grad_() for tensor in (x, gamma, beta)]")
                lines.append("gradients = torch.autograd.grad(bn(*point), point, dy, materialize_grads=True)")
            lines.append('answer = dict(zip(("dx", "dgamma", "dbeta"), gradients))')
        elif operation.startswith("jvp"):
            lines.append("direction = (x_dot, gamma_dot, beta_dot)")
            lines.append('answer = {"y_dot": torch.func.jvp(bn, (x, gamma, beta), direction)[1]}')
        else:
            lines += _nested_script(asked.composition)
        return "\n".join([*lines, _ANSWER])

    def expression(self, frozen: bool, norm: str = "batch") -> str:
        """Return `batch_norm` as an expression in x, gamma, beta, mean, var and eps, for scripts."""
        if norm != "batch":
            kind, groups = kind_and_groups(norm)
            return f"torch.nn.functional.{_NORMS[kind].format(groups=groups)}"
        statistics = "mean, var" if frozen else "None, None"
        return f"torch.nn.functional.batch_norm(x, {statistics}, gamma, beta, training={not frozen}, eps=eps)"

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with _manners():
            return self._run(operation, inputs)

    # ---- the function under audit -----------------------------------------------------------------------------

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return batch norm as a function of (x, gamma, beta). A variant of this adapter overrides this alone."""
        from torch.nn import functional

        mean = _tensor(inputs.mean) if frozen else None
        var = _tensor(inputs.var) if frozen else None

        def normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            return functional.batch_norm(x, mean, var, gamma, beta, training=not frozen, eps=inputs.eps)

        return normalize

    def normalization(self, inputs: Inputs) -> Function:
        """Return another norm as a function of (x, gamma, beta)."""
        from torch.nn import functional

        eps = inputs.eps
        kind, groups = kind_and_groups(inputs.norm)
        if kind == "layer":
            return lambda x, gamma, beta: functional.layer_norm(x, gamma.shape, gamma, beta, eps)
        if kind == "group":
            return lambda x, gamma, beta: functional.group_norm(x, groups, gamma, beta, eps)
        return lambda x, gamma, beta: functional.instance_norm(x, weight=gamma, bias=beta, eps=eps)

    def evaluate(self, function: Function, point: Tensors) -> Any:
        """Call a finished composition. `torch.compile`'s variant overrides this as well."""
        return function(*point)

    # ---- the operations ---------------------------------------------------------------------------------------

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        if operation in ("running", "train_eval_train"):
            return self._stateful(operation, inputs)
        asked = OPERATIONS[operation]
        function = self.batch_norm(inputs, asked.frozen) if inputs.norm == "batch" else self.normalization(inputs)
        point = tuple(_tensor(a) for a in (inputs.x, inputs.gamma, inputs.beta))
        if asked.composition == "":
            return self._forward(function, point, inputs, asked.frozen)
        direction = tuple(_tensor(a) for a in (inputs.x_dot, inputs.gamma_dot, inputs.beta_dot))
        if operation.startswith("vjp"):
            dy = _tensor(inputs.dy)

            def scalar_product(*p: Tensor) -> Tensor:
                return _inner((function(*p),), (dy,))

            reverse = _reverse_functional if self.functional else _reverse_once
            return _gradients(self.evaluate(reverse(scalar_product), point if self.functional else _leaves(point)))
        if operation.startswith("jvp"):
            return {"y_dot": _array(self.evaluate(_forward_mode(function, direction), point))}

        modes = asked.composition.split("-")
        functional = self.functional or "fwd" in modes
        composed = nest(
            asked.composition,
            lambda total: _loss(function, _tensor(inputs.w), total),
            _reverse_functional if functional else _reverse,
            lambda inside: _forward_mode(inside, direction),
            lambda gradient: _along(gradient, direction),
        )
        result = self.evaluate(composed, point if functional else _leaves(point))
        return _gradients(result) if "rev" in modes else {"value": _array(result.to(point[0].dtype))}

    def _forward(self, function: Function, point: Tensors, inputs: Inputs, frozen: bool) -> dict[str, Array]:
        import torch

        y = function(*point)
        answer = {"y": _array(y)}
        if not frozen and y.numel():
            # functional.batch_norm keeps its statistics to itself. The operator underneath returns them; they are the
            # same call's if y is the same. An empty batch takes another path, which knows no statistics.
            x, gamma, beta = point
            kind, groups = kind_and_groups(inputs.norm)
            if kind == "layer":
                again, *statistics = torch.native_layer_norm(x, gamma.shape, gamma, beta, inputs.eps)
                mean, invstd = (statistic.reshape(-1) for statistic in statistics)
            elif kind == "group":
                sizes = (len(x), x.shape[1], x[0, 0].numel(), groups)
                again, mean, invstd = torch.native_group_norm(x.contiguous(), gamma, beta, *sizes, inputs.eps)
            elif kind == "instance":  # it has no operator of its own
                return answer
            else:
                again, mean, invstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, inputs.eps)
            if torch.allclose(again, y, rtol=0, atol=0, equal_nan=True):
                answer |= {"mean": _array(mean), "invstd": _array(invstd)}
        return answer

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        import torch

        module = self._module(inputs)
        with torch.no_grad():
            if operation == "running":
                for batch in inputs.batches:
                    module(_tensor(batch))
                return {"running_mean": _array(module.running_mean), "running_var": _array(module.running_var)}
            first, second = (_tensor(batch) for batch in inputs.batches[:2])
            y_train = module.train()(first)
            y_eval = module.eval()(second)
            y_again = module.train()(first)
        return {"y_train": _array(y_train), "y_eval": _array(y_eval), "y_again": _array(y_again)}

    def _module(self, inputs: Inputs) -> Any:
        import torch

        rank = inputs.batches[0].ndim if inputs.batches else inputs.x.ndim
        by_rank = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
        if rank not in by_rank:
            raise Unsupported(f"torch.nn has no BatchNorm for {rank} axes")
        gamma = _tensor(inputs.gamma)
        module: Any = by_rank[rank](len(gamma), eps=inputs.eps, momentum=inputs.momentum, dtype=gamma.dtype)
        with torch.no_grad():
            module.weight.copy_(gamma)
            module.bias.copy_(_tensor(inputs.beta))
            module.running_mean.copy_(_tensor(inputs.running_mean))
            module.running_var.copy_(_tensor(inputs.running_var))
        return module


# ---- scripts --------------------------------------------------------------------------------------------------------

# Arrays to tensors; NumPy's bfloat16 goes in by its bits.
_TENSOR = {
    False: "torch.from_numpy(a)",
    True: "torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.itemsize == 2 else torch.from_numpy(a)",
}
# The other norms' functions, and the operators beneath that return statistics, with what flattens these.
_NORMS = {
    "layer": "layer_norm(x, gamma.shape, gamma, beta, eps)",
    "group": "group_norm(x, {groups}, gamma, beta, eps)",
    "instance": "instance_norm(x, weight=gamma, bias=beta, eps=eps)",
}
_OPERATORS = {
    "batch": "native_batch_norm(x, gamma, beta, None, None, True, 0.0, eps)",
    "layer": "native_layer_norm(x, gamma.shape, gamma, beta, eps)",
    "group": "native_group_norm(x.contiguous(), gamma, beta, len(x), x.shape[1], x[0, 0].numel(), {groups}, eps)",
}
_FLAT = {"batch": "", "layer": ".reshape(-1)", "group": ""}
_ANSWER = "answer = {name: tensor.detach().double().numpy() for name, tensor in answer.items()}"


def _narrow(inputs: Inputs) -> bool:
    return "bfloat16" in (inputs.x.dtype.name, inputs.gamma.dtype.name)


def _nested_script(composition: str) -> list[str]:
    """Return the lines of one composition of derivatives of L = Σ f, or of f itself where no gradient takes part."""
    modes = composition.split("-")
    scalar = "rev" in modes
    lines = [
        "direction = (x_dot, gamma_dot, beta_dot)",
        "def f(*point):",
        "    y = bn(*point).double()",
        f"    return (w.double() * (y**2 / 2 + y**3 / 6)){'.sum()' if scalar else ''}",
    ]
    current = "f"
    for depth, mode in enumerate(reversed(modes), start=1):
        if mode == "fwd":
            lines.append(f"d{depth} = lambda *point: torch.func.jvp({current}, point, direction)[1]")
        else:
            if not scalar:
                inner = f"(u.double() * v.double()).sum() for u, v in zip({current}(*point), direction)"
                lines.append(f"along{depth} = lambda *point: sum({inner})")
                current = f"along{depth}"
            lines.append(f"d{depth} = torch.func.grad({current}, argnums=(0, 1, 2))")
            scalar = False
        current = f"d{depth}"
    result = f"{current}(x, gamma, beta)"
    if "rev" in modes:
        return [*lines, f'answer = dict(zip(("dx", "dgamma", "dbeta"), {result}))']
    return [*lines, f'answer = {{"value": {result}.to(x.dtype)}}']


def _stateful_script(operation: str, inputs: Inputs) -> str:
    """Return the lines that train a module and look at it."""
    rank = inputs.batches[0].ndim - 2
    if rank > 3:
        raise Unsupported(f"torch.nn has no BatchNorm for {rank + 2} axes")
    tensor, narrow = _TENSOR[_narrow(inputs)], _narrow(inputs)
    of = "tensor({})" if narrow else "torch.from_numpy({})"
    lines = ["import torch"]
    if narrow:
        lines.append(f"tensor = lambda a: {tensor}")
    lines += [
        f"module = torch.nn.BatchNorm{max(rank, 1)}d(len(gamma), eps=eps, momentum=momentum)",
        f"module = module.to({of.format('gamma')}.dtype)",
        f"module.weight.data, module.bias.data = {of.format('gamma')}, {of.format('beta')}",
    ]
    names = ("running_mean", "running_var")
    lines += [f"module.{name} = {of.format(f'{name}.copy()')}" for name in names]
    if operation == "running":
        lines += ["for batch in batches:", f"    module({of.format('batch')})"]
        lines.append('answer = {"running_mean": module.running_mean, "running_var": module.running_var}')
    else:
        lines.append(f"first, second = ({of.format('batch')} for batch in batches)")
        lines.append('answer = {"y_train": module(first), "y_eval": module.eval()(second)}')
        lines.append('answer["y_again"] = module.train()(first)')
    return "\n".join([*lines, _ANSWER])


# ---- nesting --------------------------------------------------------------------------------------------------------


def _loss(function: Function, w: Tensor, total: bool) -> Function:
    """Return f = w·(y²/2 + y³/6) as a function of the point, or L = Σ f."""
    weights = w.double()

    def loss(*point: Tensor) -> Tensor:
        y = function(*point).double()
        f = weights * (y * y / 2 + y * y * y / 6)
        return f.sum() if total else f

    return loss


def _reverse(function: Function) -> Function:
    """Return the gradient of a scalar function by `torch.autograd.grad`; its arguments must be leaves."""
    import torch

    def gradient(*point: Tensor) -> Tensors:
        value = function(*point)
        return tuple(torch.autograd.grad(value, point, create_graph=True, materialize_grads=True))

    return gradient


def _reverse_once(function: Function) -> Function:
    """Return the gradient as training takes it, which cannot be differentiated again."""
    import torch

    return lambda *point: tuple(torch.autograd.grad(function(*point), point, materialize_grads=True))


def _reverse_functional(function: Function) -> Function:
    """Return the gradient of a scalar function by `torch.func.grad`, which nests with forward mode."""
    import torch

    gradient: Function = torch.func.grad(function, argnums=(0, 1, 2))
    return gradient


def _forward_mode(function: Function, direction: Tensors) -> Function:
    """Return the derivative of any function along the direction."""
    import torch

    def derivative(*point: Tensor) -> Any:
        return torch.func.jvp(function, point, direction)[1]

    return derivative


def _along(gradient: Function, direction: Tensors) -> Function:
    """Return <direction, gradient> as a scalar function."""
    return lambda *point: _inner(gradient(*point), direction)


def _inner(a: Tensors, b: Tensors) -> Tensor:
    """Return the inner product in binary64: the cotangents that it sends back are the factors, exactly."""
    return sum((u.double() * v.double()).sum() for u, v in zip(a, b, strict=True))


def _leaves(point: Tensors) -> Tensors:
    return tuple(p.detach().requires_grad_() for p in point)


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _tensor(array: Array) -> Tensor:
    """View an array as a tensor, with its strides.

    PyTorch knows no read-only tensors and warns about them; the tensor shares the array's memory all the same, since a
    copy would lose the layout, and the audit looks whether inputs have changed.
    """
    import torch

    narrow = array.dtype.name == "bfloat16"
    try:
        tensor = torch.from_numpy(array.view(np.int16) if narrow else array)
    except (TypeError, ValueError) as error:  # negative strides, unaligned elements, foreign byte order, dtype
        raise Unsupported(f"torch.from_numpy: {error}") from error
    return tensor.view(torch.bfloat16) if narrow else tensor


def _array(tensor: Tensor) -> Array:
    """Return a tensor as an array of the same dtype."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.view(torch.int16).numpy().view(BFLOAT16.dtype))


def _gradients(gradients: Tensors) -> dict[str, Array]:
    return {name: _array(g) for name, g in zip(("dx", "dgamma", "dbeta"), gradients, strict=True)}


@contextmanager
def _manners() -> Iterator[None]:
    """Turn PyTorch's refusal of a mixture of dtypes into `Unsupported`, and silence what is not about the result.

    That is a warning on read-only arrays (see `_tensor`) and one on `torch.jit.script`, which `torch.func` calls.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=DeprecationWarning)
        try:
            yield
        except RuntimeError as error:
            if str(error).startswith("mixed dtype (CPU)"):
                raise Unsupported(f"torch: {error}") from error
            raise
