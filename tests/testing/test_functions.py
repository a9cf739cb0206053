"""Functions as adapters: what is asked follows from what is given, and any array type goes through."""

import numpy as np
import pytest

from refbn import DomainError, DtypeError
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.cases import make_inputs, parse
from refbn.audit.runner import run_case
from refbn.testing import Functions, adapter_of
from tests.testing import textbook

BY_OPERATION = {
    "forward": "composition:forward:f64:6x2",
    "vjp": "shape:vjp:f32:2x3x5x7",
    "jvp": "composition:jvp:f64:4x3x5",
    "rev": "composition:rev:f64:6x2",
    "rev_rev": "composition:rev_rev:f64:6x2",
    "fwd_rev": "composition:fwd_rev:f64:4x3x5",
    "inference": "conditioning:inference:f64:8x3:var=9,scale=3",
    "vjp_eval": "conditioning:vjp_eval:f64:8x3:var=9,scale=3",
    "rev_eval": "composition:rev_eval:f32:4x3x5",
    "running": "state:running:f32:8x3x2:steps=3",
}


def verdicts(adapter, descriptor):
    return {finding.output: finding.verdict for finding in run_case(adapter, parse(descriptor))}


@pytest.mark.parametrize("operation", BY_OPERATION)
def test_a_right_textbook_is_accurate(operation):
    adapter = adapter_of(textbook.forward, **textbook.EVERYTHING)
    assert operation in adapter.operations
    found = verdicts(adapter, BY_OPERATION[operation])
    assert found and set(found.values()) <= {"exact", "accurate"}, found


def test_only_what_is_given_is_asked():
    assert adapter_of(textbook.forward).operations == {"forward"}
    assert adapter_of(backward=textbook.backward).operations == {"vjp"}
    assert adapter_of(textbook.forward, backward=textbook.backward).operations == {"forward", "vjp", "rev"}
    assert adapter_of(inference=textbook.inference).operations == {"inference"}
    every = adapter_of(textbook.forward, inference_jvp=textbook.jvp, **textbook.EVERYTHING)
    assert every.operations == BY_OPERATION.keys() | {"jvp_eval"}
    assert every.operations < OPERATIONS.keys()


def test_names():
    assert adapter_of(textbook.forward).name.endswith("textbook.forward")
    assert adapter_of(textbook.forward, name="mine").name == "mine"


class Named:
    def __init__(self, dx, dgamma, dbeta):
        self.dx, self.dgamma, self.dbeta = dx, dgamma, dbeta


@pytest.mark.parametrize(
    "packed",
    [tuple, list, lambda g: dict(zip(("dx", "dgamma", "dbeta"), g, strict=True)), lambda g: Named(*g)],
    ids=["tuple", "list", "mapping", "object"],
)
def test_results_in_any_package(packed):
    adapter = Functions(backward=lambda *a: packed(textbook.backward(*a)))
    assert set(verdicts(adapter, BY_OPERATION["vjp"])) == {"dx", "dgamma", "dbeta"}


def test_last_results_may_be_left_out():
    for packed in (lambda g: g[:1], lambda g: g[0], lambda g: (g[0], None, None)):
        adapter = Functions(backward=lambda *a, packed=packed: packed(textbook.backward(*a)))
        assert set(verdicts(adapter, BY_OPERATION["vjp"])) == {"dx"}


def test_forward_may_tell_its_statistics():
    def forward(x, gamma, beta, eps):
        axes = (0, *range(2, x.ndim))
        return {"y": textbook.forward(x, gamma, beta, eps), "mean": x.mean(axes), "var": 2 * x.var(axes)}

    found = verdicts(Functions(forward), BY_OPERATION["forward"])
    assert found["var"] == "wrong" and found["y"] in ("exact", "accurate") and "invstd" not in found


def test_too_many_results_are_told():
    (finding,) = run_case(Functions(backward=lambda *a: (1.0,) * 4), parse(BY_OPERATION["vjp"]))
    assert finding.verdict == "raises" and "4 results, expected dx, dgamma, dbeta" in finding.note


def test_channels_last():
    def forward(x, gamma, beta, eps):
        assert x.shape == (2, 5, 7, 3)
        axes = tuple(range(x.ndim - 1))
        return (x - x.mean(axes)) / np.sqrt(x.var(axes) + eps) * gamma + beta

    found = verdicts(Functions(forward, channel_axis=-1), "shape:forward:f64:2x3x5x7")
    assert found["y"] in ("exact", "accurate")


def test_dtypes():
    adapter = Functions(textbook.forward, dtypes=["float32"])
    assert adapter.dtypes == {"float32"}
    assert verdicts(adapter, BY_OPERATION["forward"]) == {"": "unsupported"}


def test_what_the_array_type_refuses_is_unsupported():
    def refuse(array):
        raise ValueError("no negative strides")

    adapter = Functions(textbook.forward, array=refuse)
    with pytest.raises(Unsupported, match="no negative strides"):
        adapter.run("forward", make_inputs(parse(BY_OPERATION["forward"])))
    assert verdicts(adapter, BY_OPERATION["forward"]) == {"": "unsupported"}


def test_what_a_function_raises_is_its_own():
    def forward(x, gamma, beta, eps):
        raise ZeroDivisionError("oh")

    assert verdicts(Functions(forward), BY_OPERATION["forward"]) == {"": "raises"}


def test_threads_and_scripts_are_not_offered():
    adapter = adapter_of(textbook.forward)
    with pytest.raises(Unsupported):
        adapter.set_threads(2)
    with pytest.raises(Unsupported):
        adapter.reproduction("forward", make_inputs(parse(BY_OPERATION["forward"])))
    assert adapter.version() is not None


def test_bad_arguments():
    with pytest.raises(DomainError, match="no function is given"):
        adapter_of()
    with pytest.raises(DtypeError, match="backward: int, expected a function"):
        adapter_of(textbook.forward, backward=3)
    with pytest.raises(DomainError, match="target: int, expected an adapter"):
        adapter_of(3)
    with pytest.raises(DomainError, match="framework: 'nothing'"):
        adapter_of("nothing")
    with pytest.raises(DomainError, match="an adapter takes no functions"):
        adapter_of("refbn-exact", backward=textbook.backward)
    with pytest.raises(DomainError, match="autodiff: 'jax'"):
        adapter_of(textbook.forward, autodiff="jax")
    with pytest.raises(DomainError, match="backward cannot be combined"):
        adapter_of(textbook.forward, autodiff="torch", backward=textbook.backward)


def test_adapters_pass_through():
    adapter = adapter_of("refbn-exact")
    assert adapter.name == "refbn-exact" and adapter_of(adapter) is adapter


# ---- other arrays ----------------------------------------------------------------------------------------------------


def torch_forward(x, gamma, beta, eps):
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * gamma.reshape(shape) + beta.reshape(shape)


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    adapter = Functions(torch_forward, array=torch.from_numpy)
    assert verdicts(adapter, BY_OPERATION["forward"])["y"] in ("exact", "accurate")
    assert verdicts(adapter, "layout:forward:f64:2x3x4x5:layout=negative") == {"": "unsupported"}


def test_a_tensor_that_autograd_watches():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def array(values):
        return torch.from_numpy(values).requires_grad_()

    assert verdicts(Functions(torch_forward, array=array), BY_OPERATION["forward"])["y"] in ("exact", "accurate")


def test_jax_arrays():
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def forward(x, gamma, beta, eps):
        return (x - x.mean(0)) / jax.numpy.sqrt(x.var(0) + eps) * gamma + beta

    adapter = Functions(forward, array=jax.numpy.asarray, dtypes=["float32"])
    assert verdicts(adapter, "conditioning:forward:f32:16x3:scale=3")["y"] in ("exact", "accurate")


@pytest.mark.parametrize("operation", ["forward", "vjp", "jvp", "rev_rev", "rev_fwd", "fwd_fwd", "rev_rev_rev"])
def test_autodiff_takes_every_derivative_of_a_torch_function(operation):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    adapter = adapter_of(torch_forward, autodiff="torch")
    found = verdicts(adapter, f"composition:{operation}:f64:6x2")
    assert found and set(found.values()) <= {"exact", "accurate"}, found


def test_autodiff_finds_a_detached_mean():
    pytest.importorskip("torch", reason="PyTorch is not installed")

    def forward(x, gamma, beta, eps):
        mean = x.mean(0).detach()
        return (x - mean) / (((x - mean) ** 2).mean(0) + eps).sqrt() * gamma + beta

    adapter = adapter_of(forward, autodiff="torch")
    assert verdicts(adapter, "composition:forward:f64:6x2")["y"] in ("exact", "accurate")
    assert verdicts(adapter, "composition:vjp:f64:6x2")["dx"] == "wrong"


def test_autodiff_of_frozen_statistics_and_channels_last():
    pytest.importorskip("torch", reason="PyTorch is not installed")

    def inference(x, mean, var, gamma, beta, eps):
        assert x.shape[-1] == 3
        return (x - mean) / (var + eps).sqrt() * gamma + beta

    adapter = adapter_of(inference=inference, autodiff="torch", channel_axis=-1)
    assert adapter.operations == {n for n, op in OPERATIONS.items() if op.frozen}
    for operation in ("inference", "vjp_eval", "rev_rev_eval"):
        found = verdicts(adapter, f"shape:{operation}:f64:2x3x4x5")
        assert found and set(found.values()) <= {"exact", "accurate"}, found
