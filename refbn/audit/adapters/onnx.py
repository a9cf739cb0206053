"""ONNX's operator BatchNormalization: the model that asks for it, and the reference evaluator of the package onnx.

ONNX has no gradients, so what can be asked is inference, training's forward pass and running statistics. A model is one
node, written as text for ``onnx.parser``; scripts show the same text.

**Opsets.** The operator has changed, and files of every age are in use. In opsets 7 to 13 a node with the output y
alone is in inference, one with all five outputs in training, where the last two are the batch's statistics. From
opset 14 on the attribute training_mode says it, and the outputs are y and the running statistics. With a momentum of 0,
the weight of the old value, these are the batch's own. From opset 15 on parameters and statistics may have types of
their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from refbn._formats import FORMATS
from refbn.audit.adapters._protocol import Array, Inputs, Unsupported, installed
from refbn.dialects import DIALECTS

__all__ = ["OnnxReference", "OnnxRunner"]

_LATEST = "15"
_MODE_SINCE = 14  # the attribute training_mode, and bfloat16
_MIXTURES_SINCE = 15
_TYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

# The lines that end a script; `run` stands above them.
_QUESTIONS = {
    "inference": """\
answer = {"y": run(infer, x, mean, var)[0]}""",
    "forward": """\
outputs = run(train, x, np.zeros_like(gamma), np.ones_like(gamma))
answer = {"y": outputs[0], "mean": outputs[-2], "%s": outputs[-1]}""",
    "running": """\
for batch in batches:
    running_mean, running_var = run(train, batch, running_mean, running_var)[1:3]
answer = {"running_mean": running_mean, "running_var": running_var}""",
    "train_eval_train": """\
y_train, running_mean, running_var = run(train, batches[0], running_mean, running_var)[:3]
y_eval = run(infer, batches[1], running_mean, running_var)[0]
y_again = run(train, batches[0], running_mean, running_var)[0]
answer = {"y_train": y_train, "y_eval": y_eval, "y_again": y_again}""",
}


class OnnxRunner(ABC):
    """Something that runs ONNX models.

    Parameters
    ----------
    opset : str, optional
        The version of the operator set that the models declare, 7 or later.
    """

    name: str
    dialect = DIALECTS["onnx"]
    operations = frozenset(_QUESTIONS)
    dtypes: frozenset[str]
    saved_var = "var"
    """What opsets 7 to 13 hand out under this name."""
    differentiates_statistics = False
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, opset: str = _LATEST) -> None:
        self.opset = int(opset)
        if opset != _LATEST:
            self.name = f"{self.name}-opset{opset}"
        if self.opset < _MODE_SINCE:
            self.dtypes = self.dtypes - {"bfloat16"}

    @abstractmethod
    def version(self) -> str | None:
        """Return the installed version, or None; nothing is imported for this."""

    @abstractmethod
    def set_threads(self, count: int) -> None:
        """See `Adapter.set_threads`."""

    @abstractmethod
    def evaluate(self, model: Any, arrays: dict[str, Array]) -> list[Array]:
        """Run a model on its inputs by name and return its outputs in their order."""

    script: ClassVar[tuple[str, str]]
    """What `evaluate` does, for scripts: a line that imports, and an expression in model and arrays."""

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""

        def infer(x: Array, mean: Array, var: Array) -> Array:
            return self._ask(inputs, x, mean, var, self._model(inputs, False) % inputs.eps)[0]

        def train(x: Array, mean: Array, var: Array, momentum: float | None) -> list[Array]:
            return self._ask(inputs, x, mean, var, self._model(inputs, True) % (inputs.eps, momentum))

        if operation == "inference":
            return {"y": infer(inputs.x, inputs.mean, inputs.var)}
        mean, var = inputs.running_mean, inputs.running_var
        if operation == "forward":
            outputs = train(inputs.x, mean, var, 0.0)
            return {"y": outputs[0], "mean": outputs[-2], self._last_statistic: outputs[-1]}
        if operation == "running":
            for batch in inputs.batches:
                mean, var = train(batch, mean, var, inputs.momentum)[1:3]
            return {"running_mean": mean, "running_var": var}
        if operation != "train_eval_train":
            raise Unsupported(f"ONNX: no {operation}")
        first, second = inputs.batches[:2]
        y_train, mean, var = train(first, mean, var, inputs.momentum)[:3]
        y_eval = infer(second, mean, var)
        return {"y_train": y_train, "y_eval": y_eval, "y_again": train(first, mean, var, inputs.momentum)[0]}

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        if operation not in _QUESTIONS:
            raise Unsupported(f"ONNX: no {operation}")
        needed, call = self.script
        momentum = "0.0" if operation == "forward" else "momentum"
        question = _QUESTIONS[operation].replace("%s", self._last_statistic)
        lines = ["import onnx.parser", needed]
        for name, training, attributes in (("train", True, f"(eps, {momentum})"), ("infer", False, "eps")):
            if f"run({name}" in question:
                model = f'"""\n{self._model(inputs, training)}\n""" % {attributes}'
                lines.append(f"{name} = onnx.parser.parse_model({model})")
        lines += [
            "def run(model, x, mean, var):",
            '    arrays = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var}',
            f"    return {call}",
            question,
        ]
        return "\n".join(lines)

    @property
    def _last_statistic(self) -> str:
        """What the last output of a training node is."""
        return self.saved_var if self.opset < _MODE_SINCE else "var"

    def _ask(self, inputs: Inputs, x: Array, mean: Array, var: Array, model: str) -> list[Array]:
        from onnx import parser

        arrays = {"x": x, "gamma": inputs.gamma, "beta": inputs.beta, "mean": mean, "var": var}
        return self.evaluate(parser.parse_model(model), arrays)

    def _model(self, inputs: Inputs, training: bool) -> str:
        """Return a model of one node as text, with ``%r`` in place of ε and, in training, of the momentum."""
        if self.opset < _MIXTURES_SINCE and inputs.gamma.dtype != inputs.x.dtype:
            raise Unsupported(f"BatchNormalization of opset {self.opset} takes x and gamma of one type")
        outputs, attributes = ["y"], "epsilon = %r"
        if training:
            attributes += ", momentum = %r"
            outputs += ["new_mean", "new_var"]
            if self.opset < _MODE_SINCE:
                outputs += ["saved_mean", "saved_var"]
            else:
                attributes += ", training_mode = 1"
        axes = ", ".join(("N", "C", *(f"D{axis}" for axis in range(1, inputs.x.ndim - 1))))
        tensor, vector = f"{_TYPES[inputs.x.dtype.name]}[{axes}]", f"{_TYPES[inputs.gamma.dtype.name]}[C]"
        given = ", ".join([f"{tensor} x", *(f"{vector} {name}" for name in ("gamma", "beta", "mean", "var"))])
        found = ", ".join([f"{tensor} y", *(f"{vector} {name}" for name in outputs[1:])])
        return (
            f'<ir_version: 8, opset_import: ["" : {self.opset}]>\n'
            f"bn ({given})\n"
            f"  => ({found}) {{\n"
            f"  {', '.join(outputs)} = BatchNormalization <{attributes}> (x, gamma, beta, mean, var)\n"
            "}"
        )


class OnnxReference(OnnxRunner):
    """The evaluator by which ONNX shows in NumPy what its operators mean."""

    name = "onnx-reference"
    dtypes = frozenset(f.name for f in FORMATS)
    script = ("from onnx.reference import ReferenceEvaluator", "ReferenceEvaluator(model).run(None, arrays)")

    def version(self) -> str | None:
        """Return the installed version of onnx, or None; it is not imported for this."""
        return installed("onnx")

    def set_threads(self, count: int) -> None:
        """Refuse: NumPy runs on the calling thread."""
        raise Unsupported(f"the reference evaluator runs on the calling thread, not on {count}")

    def evaluate(self, model: Any, arrays: dict[str, Array]) -> list[Array]:
        """Run a model; see `OnnxRunner.evaluate`."""
        from onnx.reference import ReferenceEvaluator

        return cast("list[Array]", ReferenceEvaluator(model).run(None, arrays))
