from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from refbn.audit.adapters import load
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from tests.audit.adapter_checks import (
    DERIVATIVES,
    check_derivative,
    check_formats,
    check_forward,
    check_script,
    told_without_import,
)
from tests.audit.difference_quotients import allowance, deviation, draw, truth

pytest.importorskip("autograd", reason="the extra 'autograd' is not installed")

NAMES = ["autograd", "autograd-mean"]
# What autograd 1.9.1 cannot do with np.var over a tuple of axes; the adapter does not know this.
NO_FORWARD_RULE = {"jvp", "fwd_rev", "rev_fwd", "fwd_fwd", "fwd_fwd_fwd"}


@pytest.fixture(scope="module", params=NAMES)
def adapter(request):
    return load(request.param)[0]


def test_version_is_told_without_importing_autograd():
    assert told_without_import("autograd", "autograd", "autograd") == metadata.version("autograd")


def test_names(adapter):
    assert adapter.name in NAMES


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, operation):
    if adapter.name == "autograd" and operation in NO_FORWARD_RULE:
        if metadata.version("autograd") == "1.9.1":
            with pytest.raises(NameError, match="'np' is not defined"):
                adapter.run(operation, draw((4, 3, 5)))
    else:
        check_derivative(adapter, operation)


def test_the_reference_notices_a_changed_question(adapter):
    inputs = draw((4, 3, 5))
    expected = truth("rev_rev", draw((4, 3, 5), eps=1e-3))
    answer = adapter.run("rev_rev", inputs)
    assert any(deviation(answer[output], expected[output]) > allowance(inputs) for output in answer)


def test_forward(adapter):
    check_forward(adapter, ("mean", "var"))


@pytest.mark.parametrize(
    ("dtype", "param"), [("float16", None), ("float32", None), ("float16", "float32"), ("float64", "float32")]
)
@pytest.mark.parametrize("operation", ["forward", "vjp", "rev_rev", "inference", "jvp_eval", "fwd_rev_eval"])
def test_formats(adapter, operation, dtype, param):
    check_formats(adapter, operation, dtype, param)


@pytest.mark.parametrize("operation", ["forward", "inference", *DERIVATIVES])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scripts(operation, dtype):
    check_script(load("autograd-mean")[0], operation, dtype=dtype)


@pytest.mark.parametrize("operation", ["forward", "vjp", "inference", "jvp_eval", "rev_rev"])
def test_scripts_with_var(operation):
    check_script(load("autograd")[0], operation, shape=(6, 2))


def test_state_is_unsupported(adapter):
    for operation in set(OPERATIONS) - adapter.operations:
        with pytest.raises(Unsupported, match=operation):
            adapter.run(operation, draw((4, 3)))
        with pytest.raises(Unsupported, match=operation):
            adapter.reproduction(operation, draw((4, 3)))
    with pytest.raises(Unsupported, match="calling thread"):
        adapter.set_threads(2)


def test_inputs_stay_as_they_were_and_strides_do_not_matter(adapter):
    inputs, twin = draw((4, 3, 5)), draw((4, 3, 5))
    expected = adapter.run("vjp", inputs)["dx"]
    assert np.array_equal(inputs.x, twin.x) and np.array_equal(inputs.dy, twin.dy)
    moved = replace(inputs, x=inputs.x[:, :, ::-1].copy()[:, :, ::-1])
    assert deviation(adapter.run("vjp", moved)["dx"], expected) <= allowance(inputs)
