"""Keras 3 on its four backends: ``keras.layers.BatchNormalization`` with ``axis=1``.

Keras reads the backend from the variable ``KERAS_BACKEND`` when it is imported, once for a process; see
`Adapter.environment`. The layer's ``stateless_call`` is batch norm as a function of x, gamma, beta and the moving
statistics, which is what every backend's derivatives need. Derivatives are the backend's own: PyTorch's as in
`refbn.audit.adapters.torch`, TensorFlow's as in `refbn.audit.adapters.tensorflow`, ``jax.grad`` and ``jax.jvp``
(compiled as a whole, as Keras trains on JAX); NumPy has none. Moving statistics are not trainable and so constants.

Data in a half format with binary32 parameters are the policies ``mixed_float16`` and ``mixed_bfloat16``; there are no
others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from refbn._formats import FORMATS
from refbn.audit.adapters._nesting import Language, asked_for, nest, point_of, script
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Array, Inputs, Unsupported, installed
from refbn.audit.adapters.tensorflow import LANGUAGE, TensorFlow
from refbn.audit.adapters.torch import Torch
from refbn.dialects import DIALECTS

__all__ = ["KerasJax", "KerasNumPy", "KerasTensorFlow", "KerasTorch"]

Tensor = Any
Function = Callable[..., Any]


class _Layer:
    """What the adapters share: the layer, and the operations that need no derivative."""

    name: str
    dialect = DIALECTS["keras"]
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = False
    operations = frozenset(OPERATIONS)
    backend: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    """Under which names the backend may be installed."""

    def __init__(self) -> None:
        super().__init__()
        self._layers: dict[tuple[Any, ...], Any] = {}

    def version(self) -> str | None:
        """Return Keras's version and the backend's, or None if one is missing; neither is imported for this."""
        keras = installed("keras")
        found = next((v for name in self.distributions if (v := installed(name)) is not None), None)
        return None if keras is None or found is None else f"{keras} on {self.backend} {found}"

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        asked = OPERATIONS[operation]
        data, momentum = (inputs.batches[0], "momentum") if asked in STATE else (inputs.x, "0.0")
        policy = _policy(data.dtype.name, inputs.gamma.dtype.name)
        shape = "batches[0].shape" if asked in STATE else "x.shape"
        head = [
            "import os",
            "",
            f'os.environ["KERAS_BACKEND"] = "{self.backend}"',
            "import keras",
            *_IMPORTS[self.backend],
            "",
            f'layer = keras.layers.BatchNormalization(axis=1, momentum={momentum}, epsilon=eps, dtype="{policy}")',
            f"layer.build({shape})",
        ]
        if asked in STATE:
            return "\n".join([*head, *_stateful_written(operation)])
        head += ["", "", "def tensor(a):", "    return keras.ops.convert_to_tensor(a, dtype=a.dtype.name)"]
        head += ["", "", "def array(t):", "    return np.asarray(keras.ops.convert_to_numpy(t))", ""]
        if asked.frozen:
            head += ["", "moving = [tensor(mean), tensor(var)]"]
        else:
            head += ["", "moving = [v.value for v in layer.non_trainable_variables]"]
        if operation == "forward":
            return "\n".join(
                [
                    *head,
                    "point = tensor(x), tensor(gamma), tensor(beta)",
                    "y, (mean, var) = layer.stateless_call(point[1:], moving, point[0], training=True)",
                    'answer = {"y": array(y), "mean": array(mean), "var": array(var)}',
                ]
            )
        head += ["", "", "def batch_norm(x, gamma, beta):"]
        head += [f"    return layer.stateless_call([gamma, beta], moving, x, training={not asked.frozen})[0]", ""]
        call = "{}(*point)"
        if self.backend == "jax":
            call = "jax.jit({})(*point)"
        elif self.backend == "tensorflow" and "fwd-fwd" in asked.composition:
            call = "tf.function({}, autograph=False)(*point)"
        return script(operation, _LANGUAGES[self.backend], head, point_of(asked, False), call)

    def layer_for(self, inputs: Inputs) -> Any:
        """Return the layer for the inputs' x and gamma."""
        return self.layer(inputs.x.shape, inputs.x.dtype.name, inputs.gamma.dtype.name, inputs.eps)

    def layer(self, shape: tuple[int, ...], dtype: str, param: str, eps: float) -> Any:
        """Return a layer for calls without state; it is kept, since graphs refer to it.

        With its momentum of 0 the moving statistics that a call returns are the batch's.
        """
        key = len(shape), shape[1], dtype, param, eps
        if key not in self._layers:
            self._layers[key] = self.new_layer(shape, dtype, param, eps, 0.0)
        return self._layers[key]

    def new_layer(self, shape: tuple[int, ...], dtype: str, param: str, eps: float, momentum: float | None) -> Any:
        """Return a new layer for inputs of a shape, with gamma = 1 and beta = 0."""
        import keras

        if keras.backend.backend() != self.backend:
            raise Unsupported(
                f"Keras runs on {keras.backend.backend()} in this process: set KERAS_BACKEND={self.backend} before"
            )
        layer = keras.layers.BatchNormalization(axis=1, momentum=momentum, epsilon=eps, dtype=_policy(dtype, param))
        layer.build(shape)
        return layer

    def trained(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Train and evaluate the layer itself."""
        with warnings.catch_warnings():  # of how Keras turns variables into arrays, which is not about the result
            warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
            return self._trained(operation, inputs)

    def _trained(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        import keras

        first = inputs.batches[0]
        layer = self.new_layer(first.shape, first.dtype.name, inputs.gamma.dtype.name, inputs.eps, inputs.momentum)
        layer.set_weights([inputs.gamma, inputs.beta, inputs.running_mean, inputs.running_var])

        def call(batch: Array, training: bool) -> Array:
            return np.asarray(keras.ops.convert_to_numpy(layer(batch, training=training)))

        if operation == "running":
            for batch in inputs.batches:
                call(batch, True)
            moving = (keras.ops.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance))
            mean, variance = (np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in moving)
            return {"running_mean": mean, "running_var": variance}
        second = inputs.batches[1]
        return {"y_train": call(first, True), "y_eval": call(second, False), "y_again": call(first, True)}


def _stateful_written(operation: str) -> list[str]:
    lines = ["layer.set_weights([gamma, beta, running_mean, running_var])", "", "", "def call(batch, training):"]
    lines += ["    return np.asarray(keras.ops.convert_to_numpy(layer(batch, training=training)))", "", ""]
    if operation == "running":
        lines += ["for batch in batches:", "    call(batch, True)"]
        lines += ["moving = (keras.ops.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_variance))"]
        lines += ["mean, var = (np.asarray(keras.ops.convert_to_numpy(t)) for t in moving)"]
        return [*lines, 'answer = {"running_mean": mean, "running_var": var}']
    lines += ['answer = {"y_train": call(batches[0], True), "y_eval": call(batches[1], False)}']
    return [*lines, 'answer["y_again"] = call(batches[0], True)']


_IMPORTS = {
    "numpy": [],
    "torch": ["import torch"],
    "tensorflow": ["import tensorflow as tf"],
    "jax": ["import jax", "", 'jax.config.update("jax_enable_x64", True)'],
}
_LANGUAGES = {
    "torch": Language(
        wide="{}.double()",
        total="({}).sum()",
        grad=(
            "def grad(function):",
            "    return torch.func.grad(function, argnums=(0, 1, 2))",
        ),
        jvp=(
            "def jvp(function):",
            "    return lambda *p: torch.func.jvp(function, p, direction)[1]",
        ),
    ),
    "jax": Language(
        wide='{}.astype("float64")',
        total="({}).sum()",
        grad=(
            "def grad(function):",
            "    return jax.grad(function, argnums=(0, 1, 2))",
        ),
        jvp=(
            "def jvp(function):",
            "    return lambda *p: jax.jvp(function, p, direction)[1]",
        ),
    ),
    "tensorflow": LANGUAGE,
    "numpy": Language("{}", "{}.sum()", (), ()),  # it has no derivatives to write
}


def _normalize(layer: Any, statistics: tuple[Tensor, Tensor] | None) -> Function:
    """Return batch norm as a function of (x, gamma, beta), with the batch's statistics or with those given."""
    moving = [v.value for v in layer.non_trainable_variables] if statistics is None else list(statistics)

    def normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return layer.stateless_call([gamma, beta], moving, x, training=statistics is None)[0]

    return normalize


def _forward(layer: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> dict[str, Tensor]:
    """Return y and the statistics of the same call: with the momentum 0 the moving statistics become the batch's."""
    moving = [v.value for v in layer.non_trainable_variables]
    y, (mean, var) = layer.stateless_call([gamma, beta], moving, x, training=True)
    return {"y": y, "mean": mean, "var": var}


class KerasNumPy(_Layer):
    """Keras on NumPy: no derivatives."""

    name = "keras-numpy"
    backend = "numpy"
    distributions = ("numpy",)
    environment: ClassVar[Mapping[str, str]] = {"KERAS_BACKEND": "numpy"}
    operations = frozenset({"forward", "inference", "running", "train_eval_train"})

    def set_threads(self, count: int) -> None:
        """Refuse: NumPy runs on the calling thread."""
        raise Unsupported(f"NumPy runs on the calling thread, not on {count}")

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        if operation not in self.operations:
            raise Unsupported("Keras on NumPy has no derivatives")
        if OPERATIONS[operation] in STATE:
            return self.trained(operation, inputs)
        layer = self.layer_for(inputs)
        point = inputs.x, inputs.gamma, inputs.beta
        if operation == "forward":
            return _forward(layer, *point)
        return {"y": _normalize(layer, (inputs.mean, inputs.var))(*point)}


class KerasTorch(_Layer, Torch):
    """Keras on PyTorch."""

    name = "keras-torch"
    norms = frozenset({"batch"})
    backend = "torch"
    distributions = ("torch",)
    environment: ClassVar[Mapping[str, str]] = {"KERAS_BACKEND": "torch"}

    def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
        """Return batch norm as a function of (x, gamma, beta)."""
        from refbn.audit.adapters.torch import _tensor

        layer = self.layer_for(inputs)
        return _normalize(layer, (_tensor(inputs.mean), _tensor(inputs.var)) if frozen else None)

    def _forward(self, function: Function, point: tuple[Tensor, ...], inputs: Inputs, frozen: bool) -> dict[str, Array]:
        from refbn.audit.adapters.torch import _array

        if frozen:
            return {"y": _array(function(*point))}
        layer = self.layer_for(inputs)
        return {name: _array(tensor) for name, tensor in _forward(layer, *point).items()}

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        return self.trained(operation, inputs)


class KerasTensorFlow(_Layer, TensorFlow):
    """Keras on TensorFlow, eagerly."""

    name = "keras-tensorflow"
    backend = "tensorflow"
    distributions = ("tensorflow", "tensorflow-cpu")
    environment: ClassVar[Mapping[str, str]] = {"KERAS_BACKEND": "tensorflow"}

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        if OPERATIONS[operation] in STATE:
            return self.trained(operation, inputs)
        self.layer_for(inputs)  # here, as a graph must not make variables
        return super().run(operation, inputs)

    def check(self, inputs: Inputs) -> None:
        """Refuse mixtures for which there is no policy."""
        _policy(inputs.x.dtype.name, inputs.gamma.dtype.name)

    def batch_norm(self, tensors: Mapping[str, Tensor], eps: float, frozen: bool) -> Function:
        """Return batch norm as a function of the point."""
        return _normalize(self._layer_of(tensors, eps), (tensors["mean"], tensors["var"]) if frozen else None)

    def forward(self, tensors: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
        """Return y and the statistics of the same call."""
        return _forward(self._layer_of(tensors, eps), tensors["x"], tensors["gamma"], tensors["beta"])

    def _layer_of(self, tensors: Mapping[str, Tensor], eps: float) -> Any:
        x, gamma = tensors["x"], tensors["gamma"]
        return self.layer(tuple(x.shape), x.dtype.name, gamma.dtype.name, eps)

    def tensor(self, array: Array) -> Tensor:
        """Return an array as a tensor of the same shape."""
        import tensorflow as tf

        return tf.constant(array)

    def array(self, tensor: Tensor, shape: tuple[int, ...]) -> Array:
        """Return a tensor as an array."""
        return np.asarray(tensor.numpy())


class KerasJax(_Layer):
    """Keras on JAX, with binary64 switched on while it runs."""

    name = "keras-jax"
    backend = "jax"
    distributions = ("jax",)
    environment: ClassVar[Mapping[str, str]] = {"KERAS_BACKEND": "jax"}
    compiles = True

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[tuple[str, Any], Callable[..., dict[str, Tensor]]] = {}

    def set_threads(self, count: int) -> None:
        """Refuse: XLA fixes its threads when it starts."""
        raise Unsupported(f"JAX cannot change to {count} threads once it runs")

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        import jax

        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            if OPERATIONS[operation] in STATE:
                return self.trained(operation, inputs)
            return {name: np.asarray(value) for name, value in self._run(operation, inputs).items()}

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Tensor]:
        import jax

        layer = self.layer_for(inputs)
        key = operation, layer
        if key not in self._compiled:
            self._compiled[key] = jax.jit(_jax_program(operation, layer))
        answer: dict[str, Tensor] = self._compiled[key](
            {name: jax.device_put(getattr(inputs, name)) for name in asked_for(operation)}
        )
        return answer


def _jax_program(operation: str, layer: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return an operation that keeps no state as a function of arrays alone."""
    import jax
    from jax import numpy as jnp

    asked = OPERATIONS[operation]

    def wide(tensor: Tensor) -> Tensor:
        return tensor.astype(jnp.float64)

    def inner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        return sum((wide(u) * wide(v)).sum() for u, v in zip(a, b, strict=True))

    def reverse(scalar: Function) -> Function:
        gradient: Function = jax.grad(scalar, argnums=(0, 1, 2))
        return gradient

    def run(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        x, gamma, beta = point = tuple(arrays[name] for name in ("x", "gamma", "beta"))
        if operation == "forward":
            return _forward(layer, x, gamma, beta)
        function = _normalize(layer, (arrays["mean"], arrays["var"]) if asked.frozen else None)
        if operation == "inference":
            return {"y": function(*point)}
        direction = tuple(arrays.get(f"{name}_dot") for name in ("x", "gamma", "beta"))

        def forward(any_function: Function) -> Function:
            return lambda *p: jax.jvp(any_function, p, direction)[1]

        def loss(total: bool) -> Function:
            def f(*p: Tensor) -> Tensor:
                y = wide(function(*p))
                weighted = wide(arrays["w"]) * (y * y / 2 + y * y * y / 6)
                return weighted.sum() if total else weighted

            return f

        if operation.startswith("jvp"):
            return {"y_dot": forward(function)(*point)}
        if operation.startswith("vjp"):
            found = reverse(lambda *p: inner((function(*p),), (arrays["dy"],)))(*point)
        else:
            composed = nest(
                asked.composition, loss, reverse, forward, lambda gradient: lambda *p: inner(gradient(*p), direction)
            )
            found = composed(*point)
            if "rev" not in asked.composition:
                return {"value": found.astype(x.dtype)}
        return {f"d{name}": value for name, value in zip(("x", "gamma", "beta"), found, strict=True)}

    return run


def _policy(dtype: str, param: str) -> str:
    """Return the dtype policy for data and parameters of given formats."""
    if dtype == param:
        return dtype
    if dtype in ("float16", "bfloat16") and param == "float32":
        return f"mixed_{dtype}"
    raise Unsupported(f"Keras has no dtype policy for {dtype} data with {param} parameters")
