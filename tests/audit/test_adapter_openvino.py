from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refbn.audit.adapters._protocol import Unsupported
from refbn.audit.adapters.openvino import OpenVino
from tests.audit.difference_quotients import draw
from tests.audit.test_adapter_onnx import check_script, check_values

pytest.importorskip("onnx", reason="it writes the models")
openvino = pytest.importorskip("openvino", reason="not among the test requirements")


def test_version_is_told_without_importing_anything():
    code = (
        "import sys; from refbn.audit.adapters.openvino import OpenVino; version = OpenVino().version(); "
        "assert not {'onnx', 'openvino'} & set(sys.modules); print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert openvino.__version__.startswith(told)


@pytest.mark.parametrize("shape", [(6, 2), (4, 3, 5), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("dtype", sorted(OpenVino.dtypes))
def test_values(dtype, shape):
    for operation in OpenVino.operations:
        inputs = draw(shape, dtype, eps=1e-3, momentum=0.75)
        check_values(OpenVino(), operation, inputs)
        for array in OpenVino().run(operation, inputs).values():
            assert array.dtype == dtype


def test_mixtures_are_unsupported():
    with pytest.raises(Unsupported, match="one type"):
        OpenVino().run("inference", draw((4, 3), "float16", "float32"))


def test_scripts_give_the_adapters_answers():
    for operation in OpenVino.operations:
        check_script(OpenVino(), operation, draw((4, 3, 5), "float32"))


def test_threads():
    adapter = OpenVino()
    answers = []
    for count in (1, 2):
        adapter.set_threads(count)
        answers.append(adapter.run("inference", draw((4, 3, 5), "float32"))["y"])
    assert np.array_equal(*answers)
