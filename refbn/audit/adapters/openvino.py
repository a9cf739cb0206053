"""OpenVINO on the CPU, which reads the models of `refbn.audit.adapters.onnx` through its ONNX frontend.

Inference becomes OpenVINO's own operator BatchNormInference, training a graph of elementary operators. All of it is
computed in binary32 (binary64, which OpenVINO would narrow, is not asked for); the hint says so, since on some
processors the default is bfloat16.
"""

from __future__ import annotations

from typing import Any

from refbn.audit.adapters._protocol import Array, Unsupported, installed
from refbn.audit.adapters.onnx import OnnxRunner

__all__ = ["OpenVino"]


class OpenVino(OnnxRunner):
    """The OpenVINO that is installed; the package onnx writes its models.

    Parameters
    ----------
    opset : str, optional
        As for `OnnxRunner`.
    """

    name = "openvino"
    dtypes = frozenset({"float16", "float32"})
    script = (
        "import openvino",
        'list(openvino.compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", '
        '{"INFERENCE_PRECISION_HINT": "f32"})(arrays).values())',
    )
    _threads = 0  # as many as OpenVINO uses by itself

    def version(self) -> str | None:
        """Return the installed version, or None if it or onnx is missing; neither is imported for this."""
        return installed("openvino") if installed("onnx") else None

    def set_threads(self, count: int) -> None:
        """Set the number of threads of the models to come."""
        self._threads = count

    def evaluate(self, model: Any, arrays: dict[str, Array]) -> list[Array]:
        """Run a model; see `OnnxRunner.evaluate`."""
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": self._threads}
        try:
            graph = openvino.Core().read_model(model.SerializeToString())
        except RuntimeError as error:
            if "Input element types do not match" in str(error):
                raise Unsupported("openvino: BatchNormInference takes data and parameters of one type") from error
            raise
        compiled = openvino.compile_model(graph, "CPU", options)
        return [array.copy() for array in compiled(arrays).values()]
