from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refbn.audit.adapters._protocol import Unsupported
from refbn.audit.adapters.onnxruntime import OnnxRuntime
from tests.audit.difference_quotients import draw
from tests.audit.test_adapter_onnx import OPSETS, check_script, check_values

pytest.importorskip("onnx", reason="it writes the models")
onnxruntime = pytest.importorskip("onnxruntime", reason="not among the test requirements")


def test_version_is_told_without_importing_anything():
    code = (
        "import sys; from refbn.audit.adapters.onnxruntime import OnnxRuntime; version = OnnxRuntime().version(); "
        "assert not {'onnx', 'onnxruntime'} & set(sys.modules); print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == onnxruntime.__version__


@pytest.mark.parametrize("shape", [(6, 2), (4, 3, 5), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("opset", OPSETS)
def test_values(opset, shape):
    for operation in OnnxRuntime.operations:
        check_values(OnnxRuntime(opset), operation, draw(shape, eps=1e-3, momentum=0.75))


def test_what_opset_9_saves_is_invstd():
    assert set(OnnxRuntime("9").run("forward", draw((4, 3)))) == {"y", "mean", "invstd"}
    assert set(OnnxRuntime("14").run("forward", draw((4, 3)))) == {"y", "mean", "var"}


@pytest.mark.parametrize("dtype", sorted(OnnxRuntime.dtypes))
@pytest.mark.parametrize("opset", OPSETS)
def test_types(opset, dtype):
    inputs = draw((4, 3, 5), dtype)
    for operation in OnnxRuntime.operations:
        for array in OnnxRuntime(opset).run(operation, inputs).values():
            assert array.dtype == dtype
            assert np.isfinite(array).all()


def test_mixtures():
    assert OnnxRuntime().run("inference", draw((4, 3), "float16", "float32"))["y"].dtype == np.float16
    for x, parameters in (("float32", "float64"), ("float64", "float32")):
        answer = None
        try:
            answer = OnnxRuntime().run("inference", draw((4, 3), x, parameters))
        except Unsupported as error:
            assert "onnxruntime" in str(error)
        assert answer is None or answer["y"].dtype == x


@pytest.mark.parametrize("opset", OPSETS)
def test_scripts_give_the_adapters_answers(opset):
    for operation in OnnxRuntime.operations:
        check_script(OnnxRuntime(opset), operation, draw((4, 3, 5), "float32"))


def test_threads():
    adapter = OnnxRuntime()
    answers = []
    for count in (1, 2):
        adapter.set_threads(count)
        answers.append(adapter.run("inference", draw((4, 3, 5)))["y"])
    assert np.array_equal(*answers)
