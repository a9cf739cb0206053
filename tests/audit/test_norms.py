"""Layer, group and instance norm in the audit: cases, truth, adapters, mistakes and scripts."""

import dataclasses
import hashlib

import numpy as np
import pytest

from refbn._errors import DomainError
from refbn.audit import adapters, truth
from refbn.audit.adapters._protocol import OPERATIONS, TRAINING, Inputs, kind_and_groups, norms_of
from refbn.audit.adapters.zoo import ZOO
from refbn.audit.cases import Case, make_inputs, parse
from refbn.audit.compare import VERDICTS, compare
from refbn.audit.diagnosis import _simpler
from refbn.audit.families import all_cases
from refbn.audit.remote import wire
from refbn.audit.reproduce import script
from refbn.audit.runner import FAILURES, run_case, run_cases
from refbn.audit.truth import Conventions

CASES = all_cases("quick", ["norms"])
SPLITS = [("layer", (4, 3, 5)), ("group2", (3, 4, 5)), ("instance", (3, 2, 7))]
ARRAYS = [f.name for f in dataclasses.fields(Inputs) if f.name not in ("eps", "momentum", "batches", "norm")]
PLAIN = Conventions(False, True, True, True)


def executed(text):
    """Return the names that a script leaves, without its prints."""
    names = {"print": lambda *_: None}
    exec(compile(text, "script", "exec"), names)
    return names


def case_of(norm, shape, operation="vjp", dtype="f64", **fields):
    return Case("norms", operation, dtype, shape, **fields, norm=norm)


# ---- cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("norms:vjp:f32:4x3:norm=batch2", "expected batch, layer, instance, group2"),
        ("norms:vjp:f32:4x3:norm=group", "expected batch, layer, instance, group2"),
        ("norms:vjp:f32:4x3:norm=rms", "expected batch, layer, instance, group2"),
        ("norms:vjp:f32:4x3:norm=group2", "groups that divide the channels"),
        ("norms:vjp:f32:4x3:norm=group0", "groups that divide the channels"),
        ("norms:inference:f32:4x3:norm=layer", "batch: inference has statistics that are given or kept"),
        ("norms:running:f32:4x3:norm=layer", "batch: running has statistics that are given or kept"),
        ("norms:vjp:f32:4x3:var=9,norm=layer", "var is 9.0, expected None, as layer norm has none"),
        ("norms:vjp:f32:4x3:steps=2,norm=instance", "steps is 2, expected 1, as instance norm has none"),
        ("norms:vjp:f32:4x3:momentum=none,norm=instance", "momentum is None, expected 0.1"),
    ],
)
def test_a_bad_norm_says_what_is_wrong(text, words):
    with pytest.raises(DomainError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_the_norm_comes_last_and_batch_norm_is_left_out():
    assert str(case_of("group2", (3, 4), seed=1)) == "norms:vjp:f64:3x4:seed=1,norm=group2"
    assert "norm=" not in str(case_of("batch", (3, 4)))


def test_the_other_families_inputs_are_what_they_were_before_there_were_norms():
    total = hashlib.sha256()
    for case in all_cases("quick"):
        if case.family == "norms" or max(case.shape) > 1000 or case.repeat > 1:
            continue
        total.update(str(case).encode())
        inputs = make_inputs(case)
        for field in dataclasses.fields(inputs):
            value = getattr(inputs, field.name)
            for array in value if field.name == "batches" else (value,):
                if isinstance(array, np.ndarray):
                    total.update(np.ascontiguousarray(array).tobytes())
    assert total.hexdigest()[:16] == "12a47bf33e85544f"


# As in test_cases: these must never change.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "norms:vjp:f32:3x4x5:data=skewed,offset=4096,scale=3,layout=channels-last,seed=3,norm=group2",
            "17a2822d7e943e97",
        ),
        ("norms:vjp:bf16:4x3x5:param=f32,dy=like-x,norm=layer", "03422b18c450db32"),
        ("norms:rev_rev:f64:3x2x7:data=step,dy=constant,norm=instance", "4f6eca955d806eae"),
    ],
)
def test_a_descriptor_fixes_every_bit(text, expected):
    inputs, total = make_inputs(parse(text)), hashlib.sha256()
    for name in ARRAYS:
        total.update(np.ascontiguousarray(getattr(inputs, name)).tobytes())
    assert total.hexdigest()[:16] == expected


@pytest.mark.parametrize(("norm", "shape", "affine", "axes"), [
    ("layer", (4, 3, 5), (3, 5), (1, 2)),
    ("group2", (3, 4, 5), (4,), None),
    ("instance", (3, 2, 7), (2,), (2,)),
])  # fmt: skip
def test_data_are_drawn_for_each_group(norm, shape, affine, axes):
    case = case_of(norm, shape, data="ramp", dy="constant")
    inputs = make_inputs(case)
    assert inputs.norm == norm
    assert inputs.gamma.shape == inputs.beta.shape == inputs.gamma_dot.shape == inputs.beta_dot.shape == affine
    x, dy = inputs.x, inputs.dy
    if axes is None:
        x, dy, axes = x.reshape(3, 2, 2, 5), dy.reshape(3, 2, 2, 5), (2, 3)
    m = np.prod([x.shape[axis] for axis in axes])
    assert case.count == m
    assert np.all(np.sort(np.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, m)) == np.arange(1, m + 1))
    assert np.all(np.ptp(dy, axis=axes) == 0) and len(np.unique(dy)) == dy.size // m
    constant = make_inputs(dataclasses.replace(case, data="constant")).x.reshape(x.shape)
    assert np.all(np.ptp(constant, axis=axes) == 0) and len(np.unique(constant)) == x.size // m


def test_the_quick_depth_asks_every_norm_every_operation():
    for kind in ("layer", "group", "instance"):
        asked = {case.operation for case in CASES if kind_and_groups(case.norm)[0] == kind}
        assert asked == {op.name for op in TRAINING}


# ---- truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "shape"), SPLITS)
def test_the_truth_is_what_the_definition_gives_with_many_digits(norm, shape):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        inputs = make_inputs(case_of(norm, shape, offset=1e3))
        groups = {"layer": 1, "group2": 2, "instance": shape[1]}[norm]
        m = shape[1] // groups * shape[2]

        def wide(array):
            return np.vectorize(mpmath.mpf, otypes=[object])(np.broadcast_to(array, shape)).reshape(-1, m)

        whole = (lambda v: v) if norm == "layer" else (lambda v: v[:, None])
        x, dy = wide(inputs.x), wide(inputs.dy)
        gamma, beta = wide(whole(inputs.gamma)), wide(whole(inputs.beta))
        d = x - x.sum(axis=1, keepdims=True) / m
        r = 1 / np.vectorize(mpmath.sqrt)((d * d).sum(axis=1, keepdims=True) / m + mpmath.mpf(inputs.eps))
        xhat, g = d * r, gamma * dy
        centred = g - g.sum(axis=1, keepdims=True) / m
        terms = dy * xhat
        dgamma = terms.reshape(shape).sum(axis=0) if norm == "layer" else terms.reshape(shape).sum(axis=(0, 2))
        known = {
            "y": (xhat * gamma + beta).reshape(shape),
            "dx": (r * (centred - xhat * (xhat * g).sum(axis=1, keepdims=True) / m)).reshape(shape),
            "dgamma": dgamma,
        }
        for operation in ("forward", "vjp"):
            for name, expected in truth.expect(case_of(norm, shape, operation, offset=1e3), PLAIN).items():
                if name in known:
                    off = [
                        abs(mpmath.mpf(h) + mpmath.mpf(low) - k) / abs(k)
                        for h, low, k in zip(expected.high.flat, expected.low.flat, known[name].flat, strict=True)
                    ]
                    assert max(off) < 2.0**-100


@pytest.mark.parametrize("name", ["refbn-native", "zoo-control"])
def test_what_is_right_is_found_right(name):
    """The control's formulas are its own; that refbn rounds correctly is proved by its one-pass results."""
    (adapter,) = adapters.load(name)
    for finding in run_cases([adapter], CASES):
        assert finding.verdict in ("exact", "accurate", "unsupported"), finding.id
        if name != "zoo-control" and OPERATIONS[finding.operation].name in ("forward", "vjp", "jvp"):
            assert finding.verdict == "exact"


def test_a_gradient_of_gamma_adds_up_over_repetitions():
    once, often = (case_of("layer", (3, 4), repeat=repeat) for repeat in (1, 8))
    expected, more = (truth.expect(case, PLAIN) for case in (once, often))
    assert often.count == 4 and more["dx"].full_shape == (24, 4) and more["dgamma"].full_shape == (4,)
    assert np.array_equal(more["dgamma"].high, 8 * expected["dgamma"].high)
    assert np.all(more["dgamma"].bound > 8 * expected["dgamma"].bound)
    mean = truth.expect(dataclasses.replace(often, operation="forward"), PLAIN)["mean"]
    assert mean.full_shape == (24,) and mean.high.shape == (3,)


def test_a_nan_spoils_its_group_and_the_gradients_that_contain_it():
    expected = truth.expect(case_of("group2", (3, 4, 5), special="nan"), PLAIN)
    assert np.argwhere(expected["dx"].nonfinite.any(axis=2)).tolist() == [[1, 2], [1, 3]]
    assert expected["dgamma"].nonfinite.tolist() == [False, False, True, True]
    assert not expected["dbeta"].nonfinite.any()
    only = truth.expect(case_of("layer", (3, 4), special="nan@dy"), PLAIN)
    assert only["dgamma"].nonfinite.tolist() == only["dbeta"].nonfinite.tolist() == [False, False, True, False]


def test_an_empty_batch_has_gradients_of_zero_and_a_constant_group_gives_beta():
    empty = truth.expect(case_of("layer", (0, 4, 3)), PLAIN)
    assert empty["dx"].full_shape == (0, 4, 3) and np.array_equal(empty["dgamma"].high, np.zeros((4, 3)))
    assert truth.expect(case_of("layer", (0, 4), "forward"), PLAIN)["mean"].full_shape == (0,)
    case = case_of("layer", (3, 4), "forward", data="constant")
    y = truth.expect(case, PLAIN)["y"].rounded(case.format)
    assert np.array_equal(y, np.broadcast_to(make_inputs(case).beta, (3, 4)))


def test_errors_are_scaled_by_their_group():
    case = case_of("group2", (1, 4, 2), "forward", "f32")
    expected = truth.expect(case, PLAIN)["y"]
    got = expected.rounded(case.format).astype(np.float32)
    size = np.abs(expected.high.reshape(2, 4)).max(axis=1)
    assert np.allclose(expected.channel_max(np.abs(expected.high)).reshape(2, 4), size[:, None])
    place = np.unravel_index(np.argmin(np.abs(got)), got.shape)
    got[place] += 64 * np.spacing(np.float32(size[place[1] // 2]))
    assert 63 < compare(got, expected).max_scaled_ulp < 65


# ---- who is asked what -----------------------------------------------------------------------------------------------


def test_an_adapter_without_norms_is_asked_for_batch_norm_alone():
    (adapter,) = adapters.load("torch-native")
    assert norms_of(adapter) == norms_of(object()) == {"batch"}
    (finding,) = run_case(adapter, case_of("group2", (3, 4)))
    assert (finding.verdict, finding.note) == ("unsupported", "no group norm")


class Wrong:
    """An adapter that changes another one's answers."""

    def __init__(self, change):
        (self.inner,), self.change = adapters.load("refbn-exact"), change

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, operation, inputs):
        return self.change(self.inner, operation, inputs)


def _interleaved(inner, operation, inputs):
    """Groups of channels that are not neighbours."""
    order = np.arange(inputs.x.shape[1]).reshape(2, -1).T.ravel()
    back = np.argsort(order)
    tensors = {name: getattr(inputs, name)[:, order] for name in ("x", "dy", "w", "x_dot")}
    vectors = {name: getattr(inputs, name)[order] for name in ("gamma", "beta", "gamma_dot", "beta_dot")}
    answer = inner.run(operation, dataclasses.replace(inputs, **tensors, **vectors))
    return {
        name: a[:, back] if a.shape == inputs.x.shape else a[back] if a.shape == inputs.gamma.shape else a
        for name, a in answer.items()
    }


def _with_batch_statistics(inner, operation, inputs):
    """Batch norm over the samples, feature by feature, in place of layer norm."""
    flat = {name: getattr(inputs, name).reshape(len(inputs.x), -1) for name in ("x", "dy", "w", "x_dot")}
    vectors = {name: getattr(inputs, name).ravel() for name in ("gamma", "beta", "gamma_dot", "beta_dot")}
    answer = inner.run(operation, dataclasses.replace(inputs, **flat, **vectors, norm="batch"))
    return {
        name: a.reshape(inputs.x.shape if a.ndim > 1 else inputs.gamma.shape)
        for name, a in answer.items()
        if name not in ("mean", "var", "invstd")
    }


@pytest.mark.parametrize(
    ("norm", "change"),
    [("group2", _interleaved), ("layer", _with_batch_statistics)],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_statistics_over_the_wrong_axes_are_found(norm, change):
    cases = [case for case in CASES if case.norm == norm and case.dtype == "f64" and 0 not in case.shape]
    cases = [case for case in cases if case.operation not in ("rev_rev_rev", "fwd_fwd_fwd")]
    found = {f.operation for f in run_cases([Wrong(change)], cases) if f.verdict in FAILURES}
    assert found == {op.name for op in TRAINING} - {"rev_rev_rev", "fwd_fwd_fwd"}


@pytest.mark.parametrize("name", ["gamma-outside-projection", "statistics-over-the-last-axis"])
def test_the_family_kills_the_mistakes_of_layer_and_group_norm(name):
    member = ZOO[name]()
    for norm, shape in SPLITS:
        findings = [f for op in ("forward", "vjp", "rev_rev") for f in run_case(member, case_of(norm, shape, op))]
        failed = {f.operation for f in findings if f.verdict in FAILURES}
        if norm == "instance":
            assert {f.verdict for f in findings} == {"unsupported"}
        else:
            assert failed == ({"vjp", "rev_rev"} if name.startswith("gamma") else {"forward", "vjp", "rev_rev"})


@pytest.mark.parametrize("name", sorted(n for n, m in ZOO.items() if "layer" in m.norms))
def test_every_mistake_can_be_asked_for_every_norm(name):
    for norm, shape in SPLITS:
        if kind_and_groups(norm)[0] not in ZOO[name].norms:
            continue
        for operation in ("forward", "vjp", "rev_fwd"):
            case = case_of(norm, shape, operation, "f32")
            for variant in ZOO[name].variants:
                answer = ZOO[name](**variant).run(operation, make_inputs(case))
                shapes = {output: e.full_shape for output, e in truth.expect(case, PLAIN).items()}
                assert {output: a.shape for output, a in answer.items()} == shapes


def test_another_order_of_the_samples_moves_their_statistics_along():
    findings = run_case(adapters.load("refbn-exact")[0], case_of("layer", (5, 4), "forward", check="permute"))
    assert {f.output: f.verdict for f in findings} == dict.fromkeys(("y", "mean", "var", "invstd"), "exact")


def test_one_value_in_a_group_may_be_refused_and_more_may_not():
    def refusing(inner, operation, inputs):
        if inputs.x[0, 0].size == 1:
            raise ValueError("expected more than one value")
        return inner.run(operation, inputs)

    (finding,) = run_case(Wrong(refusing), case_of("instance", (2, 3, 1)))
    assert finding.verdict == "dialect" and "one value per group" in finding.note
    (finding,) = run_case(Wrong(refusing), case_of("layer", (2, 3)))
    assert finding.verdict == "raises"


def test_norms_travel_to_another_interpreter():
    inputs = make_inputs(case_of("layer", (3, 4, 2), layout="sliced"))
    head, parts = wire.pack_inputs(inputs)
    there = wire.unpack_inputs(head, [bytes(part) for part in parts])
    assert there.norm == "layer" and np.array_equal(there.gamma, inputs.gamma)


def test_smaller_cases_keep_the_norm_and_what_its_groups_need():
    case = case_of("group2", (3, 6, 4, 2), offset=3.0, seed=2)
    smaller = list(_simpler(case))
    assert {other.norm for other in smaller} == {"group2"}
    assert {other.shape[1] for other in smaller} == {6, 2}


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "shape"), SPLITS)
@pytest.mark.parametrize("name", ["torch", "refbn-native"])
def test_scripts_ask_the_same(name, norm, shape):
    if name == "torch":
        pytest.importorskip("torch")
    (adapter,) = adapters.load(name)
    for operation in ("forward", "vjp", "jvp", "rev_fwd") if name == "torch" else ("forward", "vjp", "fwd_fwd"):
        case = case_of(norm, shape, operation, "f32", layout="channels-last", repeat=2)
        findings = run_case(adapter, case)
        names = executed(script(findings[0], adapter))
        answer = adapter.run(operation, make_inputs(case))
        assert set(names["answer"]) == set(answer)
        for output, value in answer.items():
            assert names["answer"][output].shape == value.shape
            assert np.array_equal(names["answer"][output].astype(np.float64), value.astype(np.float64)), (
                operation,
                output,
            )


@pytest.mark.parametrize(("norm", "shape"), SPLITS)
def test_what_torch_composes_by_reverse_mode_is_right(norm, shape):
    pytest.importorskip("torch")
    for name in ("torch", "torch-func"):
        (adapter,) = adapters.load(name)
        for operation in ("forward", "vjp", "jvp", "rev", "rev_rev", "fwd_rev"):
            for finding in run_case(adapter, case_of(norm, shape, operation)):
                assert VERDICTS.index(finding.verdict) <= VERDICTS.index("accurate"), finding.id


@pytest.mark.parametrize(("norm", "shape"), SPLITS)
def test_torch_2_13_nests_a_jvp_as_a_mistake_of_the_zoo_does(norm, shape):
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another PyTorch")
    for operation in ("rev_fwd", "fwd_fwd"):
        case = case_of(norm, shape, operation)
        output = "dx" if operation == "rev_fwd" else "value"
        verdict = {f.output: f.verdict for f in run_case(adapters.load("torch")[0], case)}[output]
        if norm == "group2":  # whose jvp is a composition of differentiable operators
            assert verdict == "accurate"
            continue
        assert verdict == "wrong"
        theirs = adapters.load("torch")[0].run(operation, make_inputs(case))[output]
        mistaken = ZOO["constant-statistics-in-jvp"]().run(operation, make_inputs(case))[output]
        expected = truth.expect(case, PLAIN)[output]
        assert np.all(np.abs(theirs - mistaken) <= 2 * expected.limit(case.format))
