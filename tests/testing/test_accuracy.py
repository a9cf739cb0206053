"""`assert_accurate` accepts what is within the bound, and its message names everything that is needed."""

from fractions import Fraction

import numpy as np
import pytest

import refbn
from refbn import DomainError, DtypeError, ShapeError
from refbn.testing import assert_accurate, make_inputs, parse, truth
from tests.testing import textbook

CASE = "conditioning:vjp:f32:16x3:scale=3"


def message(*arguments, **options):
    with pytest.raises(AssertionError) as caught:
        assert_accurate(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def inputs():
    return make_inputs(CASE)


def gradients(i):
    return dict(zip(("dx", "dgamma", "dbeta"), textbook.backward(i.x, i.gamma, i.beta, i.eps, i.dy), strict=True))


def test_a_case_by_descriptor_or_object(inputs):
    found = gradients(inputs)
    assert_accurate(found, CASE)
    assert_accurate(found, parse(CASE))
    assert_accurate(found["dx"], CASE)  # the operation's first output
    assert_accurate(found["dgamma"], CASE, output="dgamma")
    assert_accurate({"dbeta": found["dbeta"], "dx": None}, CASE)


def test_the_message_names_everything(inputs):
    found = gradients(inputs)
    exact = found["dx"][5, 1]
    found["dx"][5, 1] += np.float32(0.125)
    text = message(found, CASE)
    assert "dx is wrong (1 of 48 elements are off, in channel 1)" in text
    assert "at     dx[5, 1]" in text
    assert (
        f"= {float(exact + np.float32(0.125))!r}" in text
        and f"= {float(exact)!r}, correctly rounded to float32" in text
    )
    assert float(exact).hex().rstrip("0").split("p")[0].rstrip("0") in text
    assert "error  0.125 here; at most" in text and "scaled ulp" in text and "times the bound" in text
    assert "bound  " in text
    assert f"case {CASE}" in text and f"make_inputs({CASE!r})" in text
    assert "m = 16, eps = 1e-05" in text and "the gradients for the output cotangent dy" in text
    assert "dgamma" not in text and "dbeta" not in text  # which are fine


def test_several_outputs_and_the_trace(inputs):
    found = gradients(inputs)
    found |= {"dgamma": found["dgamma"] / 16, "dx": 2 * found["dx"]}
    text = message(found, CASE)
    assert "dx is wrong" in text and "trace  got = 2 * exact" in text
    assert "dgamma is wrong" in text and "trace  got = 1/m * exact" in text


def test_nan_where_a_number_is_due(inputs):
    found = gradients(inputs)
    found["dx"][2, 0] = np.nan
    text = message(found, CASE)
    assert "dx is nonfinite: 1 of 48 elements are not finite" in text and "at     dx[2, 0]" in text
    assert "got    nan = nan" in text


def test_wrong_shape(inputs):
    assert "dx is wrong: shape (3, 16), expected (16, 3)" in message(gradients(inputs)["dx"].T, CASE)


def test_lossy_results_fail_unless_told(inputs):
    found = gradients(inputs)
    found["dx"] = found["dx"] * np.float32(1 + 1e-4)
    assert "dx is lossy" in message(found, CASE)
    assert_accurate(found, CASE, lossy_ok=True)
    found["dx"] *= 2
    assert "dx is wrong" in message(found, CASE, lossy_ok=True)


def test_channels_elsewhere(inputs):
    case = "shape:forward:f64:2x3x5x7"
    i = make_inputs(case)
    y = textbook.forward(i.x, i.gamma, i.beta, i.eps)
    assert_accurate(np.moveaxis(y, 1, -1), case, channel_axis=-1)
    assert "shape" in message(np.moveaxis(y, 1, -1), case)


def test_the_dialect_of_running_statistics():
    case = "state:running:f64:8x3x2:scale=3,steps=1"
    i = make_inputs(case)
    mean, var = textbook.running(i.batches[0], i.running_mean, i.running_var, i.momentum)
    assert_accurate({"running_mean": mean, "running_var": var}, case)
    assert "running_var is wrong" in message({"running_var": var}, case, dialect="onnx")


# ---- your own inputs -------------------------------------------------------------------------------------------------


def test_the_truth_of_own_arrays(inputs):
    i = inputs
    known = truth("vjp", x=i.x, gamma=i.gamma, beta=i.beta, dy=i.dy, eps=i.eps)
    assert set(known) == {"dx", "dgamma", "dbeta"} and len(known) == 3
    found = gradients(i)
    assert_accurate(found, known)
    text = message(found["dx"] * 2, known)
    assert "inputs: your own, float32 (16, 3)" in text and "trace  got = 2 * exact" in text and "case " not in text


def test_truth_has_defaults():
    x = np.arange(12.0).reshape(4, 3)
    assert_accurate(refbn.forward(x).y, truth("forward", x=x))
    assert_accurate(refbn.jvp(refbn.forward(x).saved, x[::-1]), truth("jvp", x=x, x_dot=x[::-1]))
    running = truth("running", x=x, running_mean=np.zeros(3), running_var=np.ones(3), momentum=1.0)
    assert_accurate({"running_mean": x.mean(0), "running_var": x.var(0, ddof=1)}, running)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (DomainError, "operation: 'backward', expected one of", {"operation": "backward", "x": np.ones((2, 3))}),
        (DomainError, "dy: missing, vjp needs x, dy", {"operation": "vjp", "x": np.ones((2, 3))}),
        (DomainError, "mean: missing", {"operation": "inference", "x": np.ones((2, 3))}),
        (DomainError, "w: missing", {"operation": "rev", "x": np.ones((2, 3))}),
        (DomainError, "z: expected one of", {"operation": "forward", "x": np.ones((2, 3)), "z": 1}),
        (DomainError, "train_eval_train", {"operation": "train_eval_train", "x": np.ones((2, 3))}),
        (ShapeError, "x: 1 axes", {"operation": "forward", "x": np.ones(3)}),
        (ShapeError, r"gamma: shape \(2,\)", {"operation": "forward", "x": np.ones((2, 3)), "gamma": np.ones(2)}),
        (DtypeError, "x: dtype int64", {"operation": "forward", "x": np.ones((2, 3), int)}),
    ],
)
def test_truth_refuses(error, match, arguments):
    with pytest.raises(error, match=match):
        truth(**arguments)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("backend", ["exact", "reference"])
def test_a_forward_result_knows_its_inputs(axis, backend):
    x = np.random.default_rng(0).standard_normal((5, 3, 4, 3)).astype(np.float32)
    fwd = refbn.forward(x, eps=1e-3, channel_axis=axis, backend=backend)
    assert_accurate(refbn.forward(x, eps=1e-3, channel_axis=axis), fwd, channel_axis=axis)
    assert_accurate(fwd.y, fwd, channel_axis=axis)
    assert "y is wrong" in message(2 * fwd.y, fwd, channel_axis=axis)
    frozen = refbn.inference(x, fwd.mean, fwd.var, channel_axis=axis)
    assert_accurate({"y": frozen.y}, frozen, channel_axis=axis)


# ---- plain values ----------------------------------------------------------------------------------------------------


def test_exact_results_with_a_bound():
    x = np.random.default_rng(0).standard_normal((6, 3))
    saved = refbn.forward(x, backend="exact").saved
    exact, found = refbn.backward(saved, x[::-1]), refbn.backward(refbn.forward(x).saved, x[::-1])
    assert_accurate(found, exact, ulps=0.5)
    assert_accurate({"dx": found.dx + 1e-6, "dbeta": found.dbeta}, exact, bound=2e-6)
    text = message({"dx": found.dx + 1e-6}, exact, bound=5e-7)
    assert "dx is lossy (18 of 18 elements are off, in every channel)" in text and "bound  5e-07" in text


def test_arrays_and_fractions():
    exact = np.array([[Fraction(1, 3), Fraction(-2, 7)], [Fraction(0), Fraction(10**30)]], object)
    rounded = np.array([[1 / 3, -2 / 7], [0, 1e30]])
    assert_accurate(rounded, exact, ulps=0.5)
    assert_accurate(rounded.astype(np.float32), exact, ulps=0.5)
    off = rounded.copy()
    off[0, 0] = np.nextafter(1 / 3, 1)
    text = message(off, exact, ulps=0.5, output="weights")
    assert "weights[0, 0]" in text and "0x1.5555555555556p-2" in text and "0x1.5555555555555p-2" in text
    assert_accurate(off, exact, ulps=1)
    assert_accurate(np.array([1.0, np.inf]), np.array([1.0, np.inf]), ulps=0)
    assert "a number where no finite value exists" in message(np.array([1.0, 2.0]), np.array([1.0, np.nan]), ulps=0)
    assert_accurate(1.5, 1.5, ulps=0)


def test_bounds_may_differ_by_element():
    exact = np.zeros((2, 3))
    allowed = np.array([[1.0, 2.0, 3.0]])
    assert_accurate(np.array([[1.0, 2.0, 3.0], [0, 0, 0]]), exact, bound=allowed)
    assert "output[1, 0]" in message(np.array([[1.0, 2.0, 3.0], [1.5, 0, 0]]), exact, bound=allowed)


def test_arguments_that_do_not_go_together(inputs):
    with pytest.raises(DomainError, match="expected bound or ulps"):
        assert_accurate(inputs.x, inputs.x)
    with pytest.raises(DomainError, match="expected bound or ulps"):
        assert_accurate(inputs.x, inputs.x, bound=1, ulps=1)
    with pytest.raises(DomainError, match="the exact side has its own"):
        assert_accurate(inputs.x, CASE, ulps=1)
    with pytest.raises(DomainError, match="actual: 'dz', expected some of dx, dgamma, dbeta"):
        assert_accurate({"dz": inputs.x}, CASE)
    with pytest.raises(DomainError, match="actual: no result"):
        assert_accurate({"dx": None}, CASE)
    with pytest.raises(DomainError, match="actual: object, expected an array"):
        assert_accurate(object(), CASE)
    with pytest.raises(DtypeError, match="actual: dtype int64"):
        assert_accurate(np.ones((16, 3), int), CASE)
    with pytest.raises(DomainError, match="expected 4 or 5"):
        assert_accurate(inputs.x, "nonsense")


def test_tensors_of_other_libraries(inputs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    dx = torch.from_numpy(gradients(inputs)["dx"]).requires_grad_()
    assert_accurate(dx, CASE)
    assert_accurate(dx, dx.detach(), ulps=0)
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert_accurate(half, half, ulps=0)
    assert "dx is wrong" in message(2 * dx, CASE)
