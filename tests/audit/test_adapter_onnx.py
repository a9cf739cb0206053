from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from refbn._formats import BFLOAT16, BINARY32, FORMATS, format_of
from refbn.audit import adapters
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.adapters.onnx import OnnxReference
from refbn.dialects import DIALECTS
from tests.audit.difference_quotients import allowance, deviation, draw, known
from tests.audit.scripts import follow

OPSETS = ("7", "9", "14", "15")
TRAINING = ("14", "15")  # the reference evaluator's earlier versions know no outputs of training


def expected(operation, inputs):
    """What ONNX defines, in binary64 and with its binary32 attributes."""
    eps, momentum = np.float64(np.float32(inputs.eps)), np.float64(np.float32(inputs.momentum))
    column = (1, -1, *(1 for _ in inputs.x.shape[2:]))

    def statistics(x):
        rows = np.moveaxis(x.astype(np.float64), 1, 0).reshape(x.shape[1], -1)
        return rows.mean(axis=1), rows.var(axis=1)

    def y(x, mean, var):
        d, r = x - mean.reshape(column), 1 / np.sqrt(var + eps)
        return d * (inputs.gamma * r).reshape(column) + inputs.beta.reshape(column)

    def moved(x, old):
        return tuple(momentum * a + (1 - momentum) * b for a, b in zip(old, statistics(x), strict=True))

    if operation == "inference":
        return {"y": y(inputs.x, inputs.mean, inputs.var)}
    if operation == "forward":
        mean, var = statistics(inputs.x)
        return {"y": y(inputs.x, mean, var), "mean": mean, "var": var, "invstd": 1 / np.sqrt(var + eps)}
    running = inputs.running_mean, inputs.running_var
    if operation == "running":
        for batch in inputs.batches:
            running = moved(batch, running)
        return dict(zip(("running_mean", "running_var"), running, strict=True))
    first, second = inputs.batches[:2]
    y_train = y(first, *statistics(first))
    return {"y_train": y_train, "y_eval": y(second, *moved(first, running)), "y_again": y_train}


def check_values(adapter, operation, inputs):
    """The adapter's answer against the definition."""
    answer, truth = adapter.run(operation, inputs), expected(operation, inputs)
    assert answer
    for output, array in answer.items():
        assert deviation(array, truth[output]) <= allowance(inputs)


def check_script(adapter, operation, inputs):
    """A script leaves what the adapter answers, bit for bit."""
    answer = adapter.run(operation, inputs)
    followed = follow(adapter.reproduction(operation, inputs), inputs)
    assert set(answer) == set(followed)
    for output in answer:
        assert answer[output].tobytes() == followed[output].tobytes()


def test_version_is_told_without_importing_onnx():
    code = (
        "import sys; from refbn.audit.adapters.onnx import OnnxReference; version = OnnxReference().version(); "
        "assert 'onnx' not in sys.modules; print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    try:
        import onnx
    except ImportError:
        assert told == "None"
    else:
        assert told == onnx.__version__


@pytest.mark.parametrize("framework", ["onnx-reference", "onnxruntime"])
def test_names_tell_the_opset(framework):
    for opset in OPSETS:
        name = framework if opset == "15" else f"{framework}-opset{opset}"
        (adapter,) = adapters.load(name)
        assert (adapter.name, adapter.opset) == (name, int(opset))
        assert ("bfloat16" in adapter.dtypes) == (framework == "onnx-reference" and int(opset) >= 14)


def test_what_models_say():
    inputs = draw((4, 3, 5), "float32", "float64")
    assert OnnxReference("15")._model(inputs, True) == (
        '<ir_version: 8, opset_import: ["" : 15]>\n'
        "bn (float[N, C, D1] x, double[C] gamma, double[C] beta, double[C] mean, double[C] var)\n"
        "  => (float[N, C, D1] y, double[C] new_mean, double[C] new_var) {\n"
        "  y, new_mean, new_var = BatchNormalization <epsilon = %r, momentum = %r, training_mode = 1> "
        "(x, gamma, beta, mean, var)\n}"
    )
    old = OnnxReference("9")._model(draw((4, 3)), True)
    assert "y, new_mean, new_var, saved_mean, saved_var = " in old and "training_mode" not in old
    assert "training_mode" not in OnnxReference("15")._model(inputs, False)
    with pytest.raises(Unsupported, match="one type"):
        OnnxReference("14")._model(inputs, False)


def test_only_what_onnx_has():
    adapter = OnnxReference()
    assert adapter.operations == {"forward", "inference", "running", "train_eval_train"}
    for operation in set(OPERATIONS) - adapter.operations:
        with pytest.raises(Unsupported):
            adapter.run(operation, draw((4, 3)))
        with pytest.raises(Unsupported):
            adapter.reproduction(operation, draw((4, 3)))
    with pytest.raises(Unsupported, match="thread"):
        adapter.set_threads(2)
    assert adapter.dialect is DIALECTS["onnx"]


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="the reference evaluator is in the package onnx")


@pytest.mark.parametrize("shape", [(6, 2), (4, 3, 5), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("opset", TRAINING)
def test_values(onnx, opset, shape):
    for operation in OnnxReference.operations:
        check_values(OnnxReference(opset), operation, draw(shape, eps=1e-3, momentum=0.75))


@pytest.mark.parametrize("opset", TRAINING)
@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_types(onnx, form, opset):
    pytest.importorskip("ml_dtypes")
    inputs = draw((4, 3, 5), form.dtype)
    for operation in OnnxReference.operations:
        for array in OnnxReference(opset).run(operation, inputs).values():
            assert format_of(array.dtype) is form


def test_data_and_parameters_of_two_types(onnx):
    pytest.importorskip("ml_dtypes")
    answer = OnnxReference().run("forward", draw((4, 3, 5), BFLOAT16.dtype, BINARY32.dtype))
    assert format_of(answer["y"].dtype) is BFLOAT16


@pytest.mark.parametrize("opset", ("9", *TRAINING))
def test_scripts_give_the_adapters_answers(onnx, opset):
    adapter = OnnxReference(opset)
    for operation in adapter.operations if opset in TRAINING else ("inference",):
        check_script(adapter, operation, draw((4, 3, 5), "float32"))


def test_opset_7_is_not_evaluated_at_all(onnx):
    if onnx.__version__.startswith("1.23."):
        with pytest.raises(TypeError, match="tuple"):
            OnnxReference("7").run("inference", draw((4, 3)))
    else:
        check_values(OnnxReference("7"), "inference", draw((4, 3)))


def test_opset_9_inference_is_read_as_training(onnx):
    """onnx#5799: without the outputs of training a node is in inference, whatever its momentum, which has a default."""
    inputs = draw((4, 3, 5))
    y = OnnxReference("9").run("inference", inputs)["y"]
    truth = known("inference", inputs.x.shape)["y"]
    if onnx.__version__.startswith("1.23."):
        assert deviation(y, truth) > 1e-3
        x = np.moveaxis(inputs.x, 1, 0).reshape(3, -1)
        momentum = np.float64(np.float32(0.9))
        mean, var = (
            momentum * given + (1 - momentum) * batch
            for given, batch in ((inputs.mean, x.mean(axis=1)), (inputs.var, x.var(axis=1)))
        )
        taken = expected("inference", replace(inputs, mean=mean, var=var))["y"]
        assert deviation(y, taken) <= allowance(inputs)
    else:
        assert deviation(y, truth) <= allowance(inputs)


def test_binary16_variances_whose_terms_overflow(onnx):
    """ONNX says that the statistics of float16 data are computed in float32, so that they do not overflow."""
    x = np.zeros((16, 1), np.float16)
    x[0] = 600  # mean 37.5, largest squared deviation 562.5², variance 21093.75
    inputs = replace(draw((16, 1), "float16"), x=x)
    with np.errstate(over="ignore"):
        answer = OnnxReference().run("forward", inputs)
    assert answer["mean"] == 37.5
    if onnx.__version__.startswith("1.23."):
        assert np.isinf(answer["var"]) and (answer["y"] == inputs.beta).all()
    else:
        assert answer["var"] == np.float16(21093.75)
