"""PaddlePaddle on the CPU, in dynamic mode, through its public functions.

Derivatives go through ``paddle.nn.functional.batch_norm``: gradients are nested `paddle.grad`, and the jvp is
``paddle.incubate.autograd.jvp``, which takes the gradient of a gradient. The operator's second derivative has none
itself, so nothing of third order can be asked, nor any nesting of a jvp with a gradient. Frozen statistics are
``use_global_stats=True``, constants to every derivative. Running statistics are those of ``paddle.nn.BatchNorm1D``, 2D
and 3D.

Paddle keeps the batch's statistics to itself. With a momentum of 0, the weight of the old value, the running ones are
the batch's; a channel of one element leaves them alone, and tells nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from refbn.audit.adapters._protocol import OPERATIONS, STATE, Array, Inputs, Unsupported, installed
from refbn.dialects import DIALECTS

__all__ = ["Paddle"]

Tensor = Any
Function = Callable[..., Any]

_LAYERS = {2: "BatchNorm1D", 3: "BatchNorm1D", 4: "BatchNorm2D", 5: "BatchNorm3D"}
_GRADIENTS = ("dx", "dgamma", "dbeta")


class Paddle:
    """The PaddlePaddle that is installed."""

    name = "paddle"
    dialect = DIALECTS["paddle"]
    operations = frozenset(
        {
            *(op.name for op in OPERATIONS.values() if op.composition in ("", "rev", "rev-rev")),
            *("jvp", "jvp_eval"),
        }
    )
    dtypes = frozenset({"float32", "float64"})
    differentiates_statistics = False
    environment: ClassVar[Mapping[str, str]] = {}

    def version(self) -> str | None:
        """Return the installed version, or None; Paddle is not imported for this."""
        return installed("paddlepaddle")

    def set_threads(self, count: int) -> None:
        """Refuse: Paddle takes the number of threads of an operator from its environment, at import."""
        raise Unsupported(
            f"paddle reads OMP_NUM_THREADS when it is imported; {count} threads cannot be asked for later"
        )

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        if operation not in self.operations:
            raise Unsupported(f"paddle: the second derivative of batch_norm has no gradient, so no {operation}")
        with _manners():
            answer = self._run(operation, inputs)
        return {name: tensor.numpy() for name, tensor in answer.items()}

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Tensor]:
        from paddle.incubate import autograd

        if operation in _STATEFUL:
            return self._stateful(operation, inputs)
        asked = OPERATIONS[operation]
        if asked.composition == "":
            return self._forward(inputs, asked.frozen)
        point = _tensors(inputs.x, inputs.gamma, inputs.beta)
        direction = _tensors(inputs.x_dot, inputs.gamma_dot, inputs.beta_dot)
        for tensor in point:
            tensor.stop_gradient = False
        function = _batch_norm(inputs, asked.frozen)
        if operation.startswith("jvp"):
            return {"y_dot": autograd.jvp(function, point, direction)[1]}
        import paddle

        if operation.startswith("vjp"):
            (dy,) = _tensors(inputs.dy)
            gradient = paddle.grad(function(*point), point, dy)
        else:
            (w,) = (tensor.astype("float64") for tensor in _tensors(inputs.w))
            y = function(*point).astype("float64")
            value = (w * (y * y / 2 + y * y * y / 6)).sum()
            twice = asked.composition == "rev-rev"
            gradient = paddle.grad(value, point, create_graph=twice)
            if twice:
                pairs = zip(gradient, direction, strict=True)
                gradient = paddle.grad(sum((a.astype("float64") * b.astype("float64")).sum() for a, b in pairs), point)
        return dict(zip(_GRADIENTS, gradient, strict=True))

    def _forward(self, inputs: Inputs, frozen: bool) -> dict[str, Tensor]:
        from paddle.nn import functional

        x, gamma, beta = _tensors(inputs.x, inputs.gamma, inputs.beta)
        if frozen:
            mean, var = _tensors(inputs.mean, inputs.var)
            return {"y": functional.batch_norm(x, mean, var, gamma, beta, training=False, epsilon=inputs.eps)}
        mean, var = _tensors(inputs.running_mean, inputs.running_var)
        y = functional.batch_norm(x, mean, var, gamma, beta, training=True, momentum=0.0, epsilon=inputs.eps)
        return {"y": y, "mean": mean, "var": var} if inputs.x.size > gamma.size else {"y": y}

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Tensor]:
        import paddle

        rank = inputs.batches[0].ndim
        if rank not in _LAYERS:
            raise Unsupported(f"paddle.nn has no BatchNorm for {rank} axes")
        layer = getattr(paddle.nn, _LAYERS[rank])(inputs.gamma.size, momentum=inputs.momentum, epsilon=inputs.eps)
        layer.to(dtype=inputs.gamma.dtype.name)
        layer.weight.set_value(inputs.gamma)
        layer.bias.set_value(inputs.beta)
        layer._mean.set_value(inputs.running_mean)
        layer._variance.set_value(inputs.running_var)
        with paddle.no_grad():
            if operation == "running":
                for batch in _tensors(*inputs.batches):
                    layer(batch)
                return {"running_mean": layer._mean, "running_var": layer._variance}
            first, second = _tensors(*inputs.batches[:2])
            y_train = layer(first)
            layer.eval()
            y_eval = layer(second)
            layer.train()
            return {"y_train": y_train, "y_eval": y_eval, "y_again": layer(first)}

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"paddle: the second derivative of batch_norm has no gradient, so no {operation}")
        asked = OPERATIONS[operation]
        # Training reads no statistics, but writes them.
        given = ("mean", "var") if asked.frozen else ("np.zeros_like(gamma)", "np.ones_like(gamma)")
        if operation in _STATEFUL:
            rank = inputs.batches[0].ndim
            if rank not in _LAYERS:
                raise Unsupported(f"paddle.nn has no BatchNorm for {rank} axes")
            lines = [
                f"bn = paddle.nn.{_LAYERS[rank]}(len(gamma), momentum=momentum, epsilon=eps)",
                "bn.to(dtype=gamma.dtype.name)",
                "for own, array in zip((bn.weight, bn.bias, bn._mean, bn._variance),",
                "                      (gamma, beta, running_mean, running_var)):",
                "    own.set_value(array)",
                *_STATEFUL[operation],
            ]
        elif asked.composition == "":
            mean, var = given
            how = "training=False" if asked.frozen else "training=True, momentum=0.0"
            also = "" if asked.frozen else ', "mean": mean, "var": var'
            lines = [
                f"x, gamma, beta, mean, var = map(paddle.to_tensor, (x, gamma, beta, {mean}, {var}))",
                f"y = paddle.nn.functional.batch_norm(x, mean, var, gamma, beta, {how}, epsilon=eps)",
                f'answer = {{"y": y{also}}}',
            ]
        else:
            mean, var = given
            lines = [
                f"mean, var = paddle.to_tensor({mean}), paddle.to_tensor({var})",
                "point = [paddle.to_tensor(a, stop_gradient=False) for a in (x, gamma, beta)]",
                "bn = lambda x, gamma, beta: paddle.nn.functional.batch_norm(",
                f"    x, mean, var, gamma, beta, training=True, epsilon=eps, use_global_stats={asked.frozen})",
                *_DERIVATIVES[operation.removesuffix("_eval")],
            ]
        return "\n".join(
            ["import paddle", *lines, "answer = {name: tensor.numpy() for name, tensor in answer.items()}"]
        )


_ANSWER = 'answer = dict(zip(("dx", "dgamma", "dbeta"), gradient))'
_DIRECTION = "direction = [paddle.to_tensor(a) for a in (x_dot, gamma_dot, beta_dot)]"
_LOSS = [
    'y, w = bn(*point).astype("float64"), paddle.to_tensor(w).astype("float64")',
    "loss = (w * (y * y / 2 + y * y * y / 6)).sum()",
]
# What scripts do with bn, point, mean and var.
_DERIVATIVES = {
    "vjp": ["gradient = paddle.grad(bn(*point), point, paddle.to_tensor(dy))", _ANSWER],
    "jvp": [_DIRECTION, 'answer = {"y_dot": paddle.incubate.autograd.jvp(bn, point, direction)[1]}'],
    "rev": [*_LOSS, "gradient = paddle.grad(loss, point)", _ANSWER],
    "rev_rev": [
        _DIRECTION,
        *_LOSS,
        "gradient = paddle.grad(loss, point, create_graph=True)",
        'along = sum((g.astype("float64") * d.astype("float64")).sum() for g, d in zip(gradient, direction))',
        "gradient = paddle.grad(along, point)",
        _ANSWER,
    ],
}
_STATEFUL = {
    "running": [
        "for batch in batches:",
        "    bn(paddle.to_tensor(batch))",
        'answer = {"running_mean": bn._mean, "running_var": bn._variance}',
    ],
    "train_eval_train": [
        "first, second = map(paddle.to_tensor, batches)",
        "y_train = bn(first)",
        "bn.eval()",
        "y_eval = bn(second)",
        "bn.train()",
        'answer = {"y_train": y_train, "y_eval": y_eval, "y_again": bn(first)}',
    ],
}
assert set(_STATEFUL) == {op.name for op in STATE}


def _batch_norm(inputs: Inputs, frozen: bool) -> Function:
    """Return batch norm as a function of (x, gamma, beta)."""
    from paddle.nn import functional

    given = (inputs.mean, inputs.var) if frozen else (inputs.running_mean, inputs.running_var)
    mean, var = _tensors(*given)
    return lambda x, gamma, beta: functional.batch_norm(
        x, mean, var, gamma, beta, training=True, epsilon=inputs.eps, use_global_stats=frozen
    )


def _tensors(*arrays: Array) -> list[Tensor]:
    """Copy arrays into tensors."""
    import paddle

    return [paddle.to_tensor(array) for array in arrays]


@contextmanager
def _manners() -> Iterator[None]:
    """Turn Paddle's refusal of a mixture of dtypes into `Unsupported`, and silence what is not about the result.

    That is a warning at import on a compiler cache that is missing, and one that training tracks statistics.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No ccache found")
        warnings.filterwarnings("ignore", message="When training, we now always track")
        try:
            yield
        except ValueError as error:
            if "does not match the type of data" in str(error):
                raise Unsupported(f"paddle: {str(error).strip()}") from error
            raise
