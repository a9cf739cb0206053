"""ONNX Runtime on the CPU, asked for one operator BatchNormalization.

What it computes in binary16 it computes in binary32, between casts that it puts around the operator by itself.
"""

from __future__ import annotations

from typing import Any

from refbn.audit.adapters._protocol import Array, Unsupported, installed
from refbn.audit.adapters.onnx import OnnxRunner

__all__ = ["OnnxRuntime"]


class OnnxRuntime(OnnxRunner):
    """The ONNX Runtime that is installed; the package onnx writes its models.

    Parameters
    ----------
    opset : str, optional
        As for `OnnxRunner`.
    """

    name = "onnxruntime"
    dtypes = frozenset({"float16", "float32", "float64"})
    saved_var = "invstd"
    script = (
        "import onnxruntime",
        "onnxruntime.InferenceSession(model.SerializeToString()).run(None, arrays)",
    )
    _threads = 0  # as many as ONNX Runtime uses by itself

    def version(self) -> str | None:
        """Return the installed version, or None if it or onnx is missing; neither is imported for this."""
        return installed("onnxruntime") if installed("onnx") else None

    def set_threads(self, count: int) -> None:
        """Set the number of threads inside an operator for the sessions to come."""
        self._threads = count

    def evaluate(self, model: Any, arrays: dict[str, Array]) -> list[Array]:
        """Run a model; see `OnnxRunner.evaluate`."""
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # errors come as exceptions, and need not be printed as well
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except failures.NotImplemented as error:
            raise Unsupported(f"onnxruntime: {error}") from error
        outputs: list[Array] = session.run(None, arrays)
        return outputs
