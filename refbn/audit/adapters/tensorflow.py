"""TensorFlow on the CPU, three ways: the fused op, the same under XLA, and `tf.nn`.

The fused op is ``tf.raw_ops.FusedBatchNormV3``, which ``tf.compat.v1.nn.fused_batch_norm`` calls. It takes four or five
axes, channels last; what has fewer gets axes of size one. Its gradients and their gradients are those that TensorFlow
registers for it; frozen statistics are constants to them. It knows no binary64 and no parameters in binary16.

`tf.nn` is ``tf.nn.moments`` followed by ``tf.nn.batch_normalization``: public Python functions of elementary ops, in
every format. Data in a half format with binary32 parameters are cast to binary32 for the moments alone, as the
casts in ``tf.nn.batch_normalization`` intend. It keeps no running statistics.

Compositions are nested literally, `tf.GradientTape` for reverse and `tf.autodiff.ForwardAccumulator` for forward mode.
They run eagerly, but for nested forward mode, which ``tf.function`` makes a graph: eagerly, nested accumulators of
TensorFlow 2.21 get the second derivative of y·y·y wrong for any computed y, which would hide what batch norm does. That
fault is not batch norm's; the variant `TensorFlowEager`, which runs these eagerly too, shows it. Under XLA every
operation is compiled as a whole. The loss runs in binary64 on y as batch norm rounded it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from refbn._formats import FORMATS
from refbn.audit.adapters._nesting import Language, asked_for, nest, point_of, script
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Array, Inputs, Operation, Unsupported, installed
from refbn.dialects import DIALECTS

__all__ = ["LANGUAGE", "TensorFlow", "TensorFlowEager", "TensorFlowNN", "TensorFlowXLA"]

Tensor = Any
Tensors = dict[str, Any]
"""Under the names of `Inputs`' fields; ``batches`` is a list."""
Function = Callable[..., Any]
"""Of the point (x, gamma, beta; mean and var too where they are differentiated): y, f or L, or gradients."""
Program = Callable[[Tensors], Tensors]

_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu")


class TensorFlow:
    """The fused op of the TensorFlow that is installed, eagerly."""

    name = "tensorflow"
    dialect = DIALECTS["tensorflow"]
    operations = frozenset(OPERATIONS)
    dtypes = frozenset({"float16", "bfloat16", "float32"})
    differentiates_statistics = False
    environment: ClassVar[Mapping[str, str]] = {}
    compiles = True  # XLA; eagerly, forward mode is traced anew for each op and shape, and its nestings are graphs
    jit_compile: ClassVar[bool] = False
    nests_as_graph: ClassVar[bool] = True
    """Whether nested forward mode runs as a graph."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[str, float, float | None], Program] = {}

    def version(self) -> str | None:
        """Return the installed version, or None; TensorFlow is not imported for this."""
        return next((version for name in _DISTRIBUTIONS if (version := installed(name)) is not None), None)

    def set_threads(self, count: int) -> None:
        """Refuse: TensorFlow fixes its threads when it runs its first op."""
        raise Unsupported(f"TensorFlow cannot change to {count} threads once it runs")

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        self.check(inputs)
        asked = OPERATIONS[operation]
        shape = inputs.batches[0].shape if asked in STATE else inputs.x.shape
        last = f"({', '.join(map(str, (shape[0], *shape[2:], shape[1])))})"
        head = [
            "import tensorflow as tf",
            "",
            "",
            "def tensor(a):",
            f"    return tf.constant({self.last_written('a', len(shape))} if a.ndim > 1 else a)",
            "",
            "",
            "def array(t):",
            f"    return np.moveaxis(t.numpy().reshape({last}), -1, 1) if t.ndim > 1 else t.numpy()",
            "",
            "",
            *self.written(asked, inputs),
        ]
        if asked in STATE:
            return "\n".join([*head, *self.stateful_written(operation, inputs)])
        if operation == "forward":
            return "\n".join([*head, *self.forward_written()])
        call = "{}(*point)"
        if self.jit_compile:
            call = "tf.function({}, jit_compile=True, autograph=False)(*point)"
        elif self.nests_as_graph and "fwd-fwd" in asked.composition:
            call = "tf.function({}, autograph=False)(*point)"
        return script(operation, LANGUAGE, head, point_of(asked, self.differentiates_statistics), call)

    def last_written(self, name: str, rank: int) -> str:
        """Write an array with the channels last, in four axes at least."""
        return f"np.moveaxis({name}, 1, -1){'[:, None, None]' if rank == 2 else '[:, None]' if rank == 3 else ''}"

    def written(self, asked: Operation, inputs: Inputs) -> list[str]:
        """Write the function under audit."""
        shape = inputs.batches[0].shape if asked in STATE else inputs.x.shape
        layout = ', data_format="NDHWC"' if len(shape) == 5 else ""
        call = f"scale=gamma, offset=beta, epsilon=eps{layout}"
        if asked in STATE:
            return [
                "def fused(x, **options):",
                "    scale, offset = tensor(gamma), tensor(beta)",
                "    return tf.raw_ops.FusedBatchNormV3(",
                f"        x=tensor(x), scale=scale, offset=offset, epsilon=eps{layout}, **options",
                "    )",
                "",
                "",
            ]
        statistics = "mean=tensor(mean), variance=tensor(var)" if asked.frozen else "mean=[], variance=[]"
        return [
            "def fused(x, gamma, beta):",
            "    return tf.raw_ops.FusedBatchNormV3(",
            f"        x=x, {call}, {statistics}, is_training={not asked.frozen}",
            "    )",
            "",
            "",
            "def batch_norm(x, gamma, beta):",
            "    return fused(x, gamma, beta).y",
            "",
        ]

    def forward_written(self) -> list[str]:
        """Write the question for y and the batch statistics."""
        called = "tf.function(fused, jit_compile=True, autograph=False)" if self.jit_compile else "fused"
        return [
            "",
            f"found = {called}(tensor(x), tensor(gamma), tensor(beta))",
            'answer = {"y": array(found.y), "mean": array(found.batch_mean), "var": array(found.batch_variance)}',
        ]

    def stateful_written(self, operation: str, inputs: Inputs) -> list[str]:
        """Write the training of one batch after another."""
        old = "mean=[], variance=[]" if inputs.momentum == 1.0 else "mean=mean, variance=variance"
        head = [
            "mean, variance = tensor(running_mean), tensor(running_var)",
            "",
            "",
            "def train(x):",
            f"    return fused(x, {old}, exponential_avg_factor=momentum, is_training=True)",
            "",
            "",
        ]
        if operation == "running":
            return [
                *head,
                "for batch in batches:",
                "    found = train(batch)",
                "    mean, variance = found.batch_mean, found.batch_variance",
                'answer = {"running_mean": array(mean), "running_var": array(variance)}',
            ]
        return [
            *head,
            "found = train(batches[0])",
            'answer = {"y_train": array(found.y)}',
            "mean, variance = found.batch_mean, found.batch_variance",
            'answer["y_eval"] = array(fused(batches[1], mean=mean, variance=variance, is_training=False).y)',
            'answer["y_again"] = array(train(batches[0]).y)',
        ]

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with _manners():
            self.check(inputs)
            tensors: Tensors = {name: self.tensor(getattr(inputs, name)) for name in asked_for(operation)}
            if OPERATIONS[operation] in STATE:
                tensors["batches"] = [self.tensor(batch) for batch in inputs.batches]
            answer = self.evaluate(operation, inputs, tensors)
            shape = inputs.batches[0].shape if operation == "train_eval_train" else inputs.x.shape
            return {name: self.array(tensor, shape) for name, tensor in answer.items()}

    def check(self, inputs: Inputs) -> None:
        """Refuse what the op's documented types leave out."""
        if inputs.gamma.dtype.name not in ("bfloat16", "float32"):
            raise Unsupported(f"FusedBatchNormV3: scale is bfloat16 or float32, not {inputs.gamma.dtype.name}")

    def evaluate(self, operation: str, inputs: Inputs, tensors: Tensors) -> Tensors:
        """Run an operation on tensors: under XLA or in nested forward mode as a graph, all else eagerly.

        A graph takes every array as an argument, so that none is folded as a constant, and is kept for each set of
        shapes and formats.
        """
        program = self.program(operation, inputs.eps, inputs.momentum)
        nested = self.nests_as_graph and "fwd-fwd" in OPERATIONS[operation].composition
        if not self.jit_compile and not nested:
            return program(tensors)
        import tensorflow as tf

        key = operation, inputs.eps, inputs.momentum
        if key not in self._graphs:
            self._graphs[key] = tf.function(program, jit_compile=self.jit_compile, autograph=False)
        return self._graphs[key](tensors)

    # ---- the function under audit -----------------------------------------------------------------------------

    def batch_norm(self, tensors: Tensors, eps: float, frozen: bool) -> Function:
        """Return batch norm as a function of the point. Variants override this."""
        statistics = (tensors["mean"], tensors["var"]) if frozen else ()

        def normalize(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            return self.fused(x, gamma, beta, *statistics, eps=eps, is_training=not frozen).y

        return normalize

    def fused(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Any = (),
        variance: Any = (),
        *,
        eps: float,
        is_training: bool,
        factor: float = 1.0,
    ) -> Any:
        """Call the fused op."""
        import tensorflow as tf

        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=tf.convert_to_tensor(mean, gamma.dtype),
            variance=tf.convert_to_tensor(variance, gamma.dtype),
            epsilon=eps,
            exponential_avg_factor=factor,
            data_format="NHWC" if x.shape.rank == 4 else "NDHWC",
            is_training=is_training,
        )

    # ---- the operations ---------------------------------------------------------------------------------------

    def program(self, operation: str, eps: float, momentum: float | None) -> Program:
        """Return an operation as a function of tensors alone."""
        asked = OPERATIONS[operation]
        names = point_of(asked, self.differentiates_statistics)

        def run(tensors: Tensors) -> Tensors:
            if asked in STATE:
                return self.stateful(operation, tensors, eps, momentum)
            if operation == "forward":
                return self.forward(tensors, eps)
            function = self.batch_norm(tensors, eps, asked.frozen)
            point = tuple(tensors[name] for name in names)
            if operation == "inference":
                return {"y": function(*point)}
            if operation.startswith("vjp"):
                dy = tensors["dy"]
                return _gradients(names, _reverse(lambda *p: _inner((function(*p),), (dy,)))(*point))
            direction = tuple(tensors[f"{name}_dot"] for name in names)
            if operation.startswith("jvp"):
                return {"y_dot": _forward(direction)(function)(*point)}
            composed = nest(
                asked.composition,
                lambda total: _loss(function, tensors["w"], total),
                _reverse,
                _forward(direction),
                lambda gradient: lambda *p: _inner(gradient(*p), direction),
            )
            found = composed(*point)
            return _gradients(names, found) if "rev" in asked.composition else {"value": _cast(found, point[0])}

        return run

    def forward(self, tensors: Tensors, eps: float) -> Tensors:
        """Return y and the batch statistics, as the fused op hands them out."""
        found = self.fused(tensors["x"], tensors["gamma"], tensors["beta"], eps=eps, is_training=True)
        return {"y": found.y, "mean": found.batch_mean, "var": found.batch_variance}

    def stateful(self, operation: str, tensors: Tensors, eps: float, momentum: float | None) -> Tensors:
        """Train batch after batch; the op returns the running statistics that the next call takes."""
        factor = 1.0 if momentum is None else momentum
        mean, variance = tensors["running_mean"], tensors["running_var"]
        gamma, beta = tensors["gamma"], tensors["beta"]

        def train(batch: Tensor) -> Any:
            # With a factor of 1 the op wants no running statistics: it returns the batch's.
            old = () if factor == 1.0 else (mean, variance)
            return self.fused(batch, gamma, beta, *old, eps=eps, is_training=True, factor=factor)

        if operation == "running":
            for batch in tensors["batches"]:
                found = train(batch)
                mean, variance = found.batch_mean, found.batch_variance
            return {"running_mean": mean, "running_var": variance}
        first, second = tensors["batches"][:2]
        trained = train(first)
        mean, variance = trained.batch_mean, trained.batch_variance
        evaluated = self.fused(second, gamma, beta, mean, variance, eps=eps, is_training=False)
        return {"y_train": trained.y, "y_eval": evaluated.y, "y_again": train(first).y}

    # ---- arrays -----------------------------------------------------------------------------------------------

    def tensor(self, array: Array) -> Tensor:
        """Return an array as a tensor, channels last and with at least four axes if it has any besides them."""
        import tensorflow as tf

        if array.ndim > 1:
            array = np.moveaxis(array, 1, -1)
            axes = tuple(range(1, 1 + 4 - array.ndim))
            array = np.expand_dims(array, axes)
        return tf.constant(array)

    def array(self, tensor: Tensor, shape: tuple[int, ...]) -> Array:
        """Return a tensor as an array, in the shape of the audit's tensors unless it is a vector."""
        array = np.asarray(tensor.numpy())
        if array.ndim < 2:
            return array
        return np.moveaxis(array.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


class TensorFlowXLA(TensorFlow):
    """The fused op under ``tf.function(jit_compile=True)``: XLA's own batch norm, compiled for each shape."""

    name = "tensorflow-xla"
    jit_compile = True


class TensorFlowEager(TensorFlow):
    """The fused op, with nested forward mode eagerly too: see the module."""

    name = "tensorflow-eager"
    nests_as_graph = False


class TensorFlowNN(TensorFlow):
    """``tf.nn.moments`` and ``tf.nn.batch_normalization``, eagerly."""

    name = "tensorflow-nn"
    dialect = DIALECTS["keras"]  # Keras on TensorFlow calls these functions; they have no conventions of their own
    operations = frozenset(OPERATIONS) - {op.name for op in STATE}
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True

    def check(self, inputs: Inputs) -> None:
        """Refuse mixtures: no op here promotes, and ``tf.nn.batch_normalization`` casts to x's dtype alone."""
        data, params = inputs.x.dtype.name, inputs.gamma.dtype.name
        if data != params and (data not in ("float16", "bfloat16") or params != "float32"):
            raise Unsupported(f"tf.nn: {data} data with {params} parameters")

    def batch_norm(self, tensors: Tensors, eps: float, frozen: bool) -> Function:
        """Return batch norm as a function of the point, with the moments of x or those given."""
        import tensorflow as tf

        def normalize(x: Tensor, gamma: Tensor, beta: Tensor, *statistics: Tensor) -> Tensor:
            mean, variance = statistics if frozen else self.moments(x, gamma)
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, eps)

        return normalize

    def moments(self, x: Tensor, gamma: Tensor) -> Tensors:
        """Return mean and variance of each channel in the parameters' format."""
        import tensorflow as tf

        moments: Tensors = tf.nn.moments(tf.cast(x, gamma.dtype), axes=list(range(x.shape.rank - 1)))
        return moments

    def forward(self, tensors: Tensors, eps: float) -> Tensors:
        """Return y and the moments that it was made with."""
        y = self.batch_norm(tensors, eps, False)(tensors["x"], tensors["gamma"], tensors["beta"])
        mean, variance = self.moments(tensors["x"], tensors["gamma"])
        return {"y": y, "mean": mean, "var": variance}

    def last_written(self, name: str, rank: int) -> str:
        """Write an array with the channels last."""
        return f"np.moveaxis({name}, 1, -1)"

    def written(self, asked: Operation, inputs: Inputs) -> list[str]:
        """Write the function under audit."""
        cast = "x" if inputs.x.dtype == inputs.gamma.dtype else "tf.cast(x, gamma.dtype)"
        moments = f"tf.nn.moments({cast}, axes={list(range(inputs.x.ndim - 1))})"
        given = ", mean, var" if asked.frozen else ""
        return [
            f"def batch_norm(x, gamma, beta{given}):",
            *([] if asked.frozen else [f"    mean, var = {moments}"]),
            "    return tf.nn.batch_normalization(x, mean, var, beta, gamma, eps)",
            "",
        ]

    def forward_written(self) -> list[str]:
        """Write the question for y and the moments; ``batch_norm`` has told no moments."""
        return ["", "point = tensor(x), tensor(gamma), tensor(beta)", 'answer = {"y": array(batch_norm(*point))}']

    def tensor(self, array: Array) -> Tensor:
        """Return an array as a tensor with the channels last."""
        import tensorflow as tf

        return tf.constant(np.moveaxis(array, 1, -1) if array.ndim > 1 else array)


LANGUAGE = Language(
    wide="tf.cast({}, tf.float64)",
    total="tf.reduce_sum({})",
    grad=(
        "def grad(function):",
        "    def gradient(*p):",
        "        with tf.GradientTape() as tape:",
        "            tape.watch(p)",
        "            value = function(*p)",
        '        return tape.gradient(value, p, unconnected_gradients="zero")',
        "",
        "    return gradient",
    ),
    jvp=(
        "def jvp(function):",
        "    def derivative(*p):",
        "        with tf.autodiff.ForwardAccumulator(p, direction) as accumulator:",
        "            value = function(*p)",
        '        return accumulator.jvp(value, unconnected_gradients="zero")',
        "",
        "    return derivative",
    ),
)


# ---- nesting --------------------------------------------------------------------------------------------------------


def _loss(function: Function, w: Tensor, total: bool) -> Function:
    """Return f = w·(y²/2 + y³/6) as a function of the point, or L = Σ f."""
    import tensorflow as tf

    weights = tf.cast(w, tf.float64)

    def loss(*point: Tensor) -> Tensor:
        y = tf.cast(function(*point), tf.float64)
        f = weights * (y * y / 2 + y * y * y / 6)
        return tf.reduce_sum(f) if total else f

    return loss


def _reverse(function: Function) -> Function:
    """Return the gradient of a scalar function."""
    import tensorflow as tf

    def gradient(*point: Tensor) -> tuple[Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = function(*point)
        return tuple(tape.gradient(value, point, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    return gradient


def _forward(direction: tuple[Tensor, ...]) -> Callable[[Function], Function]:
    """Return what turns a function into its derivative along the direction."""
    import tensorflow as tf

    def forward(function: Function) -> Function:
        def derivative(*point: Tensor) -> Any:
            with tf.autodiff.ForwardAccumulator(point, direction) as accumulator:
                value = function(*point)
            return accumulator.jvp(value, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        return derivative

    return forward


def _inner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Return the inner product in binary64: the cotangents that it sends back are the factors, exactly."""
    import tensorflow as tf

    return sum(tf.reduce_sum(tf.cast(u, tf.float64) * tf.cast(v, tf.float64)) for u, v in zip(a, b, strict=True))


def _cast(value: Tensor, like: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.cast(value, like.dtype)


def _gradients(names: tuple[str, ...], found: tuple[Tensor, ...]) -> Tensors:
    return {f"d{name}": gradient for name, gradient in zip(names, found, strict=True)}


@contextmanager
def _manners() -> Iterator[None]:
    """Turn TensorFlow's word that it has no kernel or no gradient into `Unsupported`, and keep its log quiet."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it warns of every graph that is made for another shape
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise Unsupported(f"TensorFlow: {error.message}") from error
    finally:
        logger.setLevel(level)
