from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from refbn._formats import BFLOAT16
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Unsupported
from refbn.audit.adapters.keras import KerasJax, KerasNumPy, KerasTensorFlow, KerasTorch
from tests.audit.difference_quotients import allowance, deviation, draw, truth

SHAPE = (4, 3, 5)
ADAPTERS = {kind.backend: kind for kind in (KerasTorch, KerasJax, KerasNumPy, KerasTensorFlow)}
HERE = os.environ.get("KERAS_BACKEND", "tensorflow")
"""Keras keeps one backend for a process: the other tests with it need another run, with KERAS_BACKEND set."""
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]
# What Keras 3.15 on TensorFlow 2.21 gets wrong, since tf.nn.moments stops the gradient at the mean.
WRONG_ON_TENSORFLOW = {
    ("rev_rev", "dx"),
    ("fwd_rev", "dx"),
    ("rev_fwd", "dx"),
    ("fwd_fwd", "value"),
    ("rev_rev_rev", "dx"),
    ("rev_rev_rev", "dgamma"),
    ("rev_rev_rev", "dbeta"),
    ("fwd_fwd_fwd", "value"),
}


@pytest.fixture(scope="module")
def adapter():
    pytest.importorskip("keras", reason="not in [test]: pip install 'refbn[keras]' and the backend")
    found = ADAPTERS[HERE]()
    if found.version() is None:
        pytest.skip(f"{HERE} is not installed")
    return found


# ---- without Keras --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADAPTERS.values(), ids=lambda kind: kind.name)
def test_nothing_is_imported_before_it_is_asked(kind):
    code = (
        f"import sys; from refbn.audit.adapters.keras import {kind.__name__} as K; K().version(); "
        "assert not {'keras', 'torch', 'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ADAPTERS.values(), ids=lambda kind: kind.name)
def test_the_environment_names_the_backend(kind):
    assert kind.environment == {"KERAS_BACKEND": kind.backend}
    assert kind.name == f"keras-{kind.backend}"


@pytest.mark.parametrize("kind", ADAPTERS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_script_that_compiles(kind, operation):
    written, inputs = kind(), draw(SHAPE, "float32")
    if operation not in written.operations:
        with pytest.raises(Unsupported):
            written.reproduction(operation, inputs)
        return
    text = written.reproduction(operation, inputs)
    compile(text, operation, "exec")
    assert "answer" in text
    assert f'"KERAS_BACKEND"] = "{kind.backend}"' in text
    assert max(map(len, text.splitlines())) <= 120


def test_numpy_has_no_derivatives():
    assert not KerasNumPy.operations & set(DERIVATIVES)
    with pytest.raises(Unsupported, match="no derivatives"):
        KerasNumPy().run("vjp", draw(SHAPE))


def test_mixtures_without_a_policy_are_unsupported():
    for data, params in (("float64", "float32"), ("float32", "float64"), ("float16", "float64")):
        with pytest.raises(Unsupported, match="no dtype policy"):
            KerasTorch().reproduction("forward", draw(SHAPE, data, params))


# ---- with it, on one backend ----------------------------------------------------------------------------------------


def test_another_backend_is_refused(adapter):
    other = next(kind for backend, kind in ADAPTERS.items() if backend != HERE)()
    with pytest.raises(Unsupported, match=f"KERAS_BACKEND={other.backend}"):
        other.new_layer(SHAPE, "float32", "float32", 1e-3, 0.5)


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, operation):
    if operation not in adapter.operations:
        pytest.skip("NumPy has no derivatives")
    inputs = draw(SHAPE, "float32")
    answer, expected = adapter.run(operation, inputs), truth(operation, inputs, moves_statistics=False)
    assert set(answer) == set(expected)
    for output in answer:
        off = deviation(answer[output], expected[output])
        if HERE == "tensorflow" and (operation, output) in WRONG_ON_TENSORFLOW:
            assert off > 5 * allowance(inputs)
        else:
            assert off <= allowance(inputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_shapes_and_dtypes(adapter, dtype):
    pytest.importorskip("ml_dtypes")
    for operation in adapter.operations & {"forward", "inference", "vjp", "rev_rev", "running", "train_eval_train"}:
        inputs = draw((3, 2, 4), BFLOAT16.dtype if dtype == "bfloat16" else dtype)
        for output, array in adapter.run(operation, inputs).items():
            whole = output in ("y", "dx") or output.startswith("y_")
            assert array.shape == ((3, 2, 4) if whole else (2,))
            assert array.dtype.name == dtype
            assert np.isfinite(array.astype(np.float64)).all()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_data_with_binary32_parameters(adapter, half):
    pytest.importorskip("ml_dtypes")
    inputs = draw(SHAPE, BFLOAT16.dtype if half == "bfloat16" else half, "float32")
    answer = adapter.run("forward", inputs)
    assert answer["y"].dtype.name == half
    assert answer["mean"].dtype == np.float32


def test_statistics_are_those_of_the_same_call(adapter):
    inputs = draw(SHAPE, "float32")
    answer = adapter.run("forward", inputs)
    x = np.moveaxis(inputs.x.astype(np.float64), 1, 0).reshape(3, -1)
    assert deviation(answer["mean"], x.mean(axis=1)) <= allowance(inputs)
    assert deviation(answer["var"], x.var(axis=1)) <= allowance(inputs)


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
def test_state(adapter, momentum):
    inputs = draw(SHAPE, "float32", steps=3, momentum=momentum)
    answer = adapter.run("running", inputs)
    mean, var = inputs.running_mean.astype(np.float64), inputs.running_var.astype(np.float64)
    for batch in inputs.batches:
        x = np.moveaxis(batch.astype(np.float64), 1, 0).reshape(3, -1)
        mean = momentum * mean + (1 - momentum) * x.mean(axis=1)
        var = momentum * var + (1 - momentum) * x.var(axis=1)
    assert deviation(answer["running_mean"], mean) <= allowance(inputs)
    assert deviation(answer["running_var"], var) <= allowance(inputs)
    answer = adapter.run(STATE[1].name, inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    assert not np.array_equal(answer["y_train"], answer["y_eval"])


def test_inputs_stay_as_they_were(adapter):
    inputs, twin = draw(SHAPE, "float32"), draw(SHAPE, "float32")
    for operation in adapter.operations & {"forward", "inference", "vjp", "jvp_eval", "rev_rev", "running"}:
        adapter.run(operation, inputs)
    for field in dataclasses.fields(inputs):
        if isinstance(getattr(inputs, field.name), np.ndarray):
            assert np.array_equal(getattr(inputs, field.name), getattr(twin, field.name))


@pytest.mark.parametrize("operation", ["forward", "inference", "vjp", "jvp", "rev_rev", "fwd_fwd_eval", "running"])
def test_scripts_give_the_adapters_numbers(adapter, operation):
    if operation not in adapter.operations:
        pytest.skip("NumPy has no derivatives")
    inputs = draw(SHAPE, "float32")
    arrays = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    code = "import sys, pickle\nimport numpy as np\nglobals().update(pickle.load(sys.stdin.buffer))\n"
    code += adapter.reproduction(operation, inputs) + "\nsys.stdout.buffer.write(pickle.dumps(answer))\n"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(arrays), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    answer, told = adapter.run(operation, inputs), pickle.loads(done.stdout)
    assert set(told) == set(answer)
    for output, array in told.items():
        assert array.shape == answer[output].shape
        assert deviation(array, answer[output].astype(np.float64)) <= allowance(inputs)
