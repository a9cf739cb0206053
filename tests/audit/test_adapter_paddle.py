from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.adapters.paddle import Paddle
from tests.audit.difference_quotients import allowance, deviation, draw, known, truth
from tests.audit.scripts import follow
from tests.audit.test_adapter_onnx import expected

paddle = pytest.importorskip("paddle", reason="not among the test requirements")

SHAPES = [(6, 2), (4, 3, 5), (3, 2, 2, 2), (2, 2, 2, 3, 2)]
GRADIENTS = [name for name in Paddle.operations if "rev" in OPERATIONS[name].composition]
VALUES = [name for name in Paddle.operations if not OPERATIONS[name].composition]


@pytest.fixture(scope="module")
def adapter():
    return Paddle()


def test_version_is_told_without_importing_paddle():
    code = (
        "import sys; from refbn.audit.adapters.paddle import Paddle; version = Paddle().version(); "
        "assert 'paddle' not in sys.modules; print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == paddle.__version__


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("operation", sorted(GRADIENTS))
def test_derivatives_against_difference_quotients(adapter, operation, shape):
    inputs = draw(shape, eps=2.0**-10)  # a binary32 number, as Paddle's attribute is one
    answer = adapter.run(operation, inputs)

    for output, value in truth(operation, inputs, moves_statistics=False).items():
        assert deviation(answer.pop(output), value) <= allowance(inputs)
    assert not answer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", sorted(VALUES))
def test_values(adapter, operation, shape):
    inputs = draw(shape, momentum=0.75, steps=3)  # conventions as ONNX has them
    answer, due = adapter.run(operation, inputs), expected(operation, inputs)
    assert answer
    for output, array in answer.items():
        assert deviation(array, due[output]) <= allowance(inputs)


def test_jvp_asks_for_the_gradient_of_a_gradient(adapter):
    """In 3.3 the second derivative of the operator stops where only its first output is asked for."""
    for operation in ("jvp", "jvp_eval"):
        if paddle.__version__.startswith("3.3."):
            with pytest.raises(ValueError, match="nullptr"):
                adapter.run(operation, draw((4, 3)))
        else:
            y_dot = known(operation, (4, 3), moves_statistics=False)["y_dot"]
            assert deviation(adapter.run(operation, draw((4, 3)))["y_dot"], y_dot) <= 1e-7  # ε in binary32


def test_what_is_not_offered(adapter):
    for operation in set(OPERATIONS) - adapter.operations:
        with pytest.raises(Unsupported):
            adapter.run(operation, draw((4, 3)))
        with pytest.raises(Unsupported):
            adapter.reproduction(operation, draw((4, 3)))
    with pytest.raises(Unsupported, match="does not match the type"):
        adapter.run("forward", draw((4, 3), "float64", "float32"))
    with pytest.raises(Unsupported, match="thread"):
        adapter.set_threads(2)


def test_one_element_tells_no_statistics(adapter):
    assert set(adapter.run("forward", draw((1, 3)))) == {"y"}


def test_inputs_stay_as_they_were(adapter):
    inputs, twin = draw((4, 3, 5)), draw((4, 3, 5))
    for operation in (*GRADIENTS, *VALUES):
        adapter.run(operation, inputs)
    for name in ("x", "dy", "w", "gamma", "mean", "var", "running_mean", "running_var"):
        assert np.array_equal(getattr(inputs, name), getattr(twin, name))


@pytest.mark.filterwarnings("ignore:When training, we now always track")
@pytest.mark.parametrize("operation", sorted((*GRADIENTS, *VALUES)))
def test_scripts_give_the_adapters_answers(adapter, operation):
    for shape in SHAPES[1:3]:
        inputs = draw(shape, "float32")
        answer, followed = adapter.run(operation, inputs), follow(adapter.reproduction(operation, inputs), inputs)
        assert set(answer) == set(followed)
        for output in answer:
            assert deviation(answer[output], followed[output]) <= allowance(inputs)
