import hashlib

import numpy as np
import pytest

from refbn._errors import DomainError
from refbn._formats import format_of
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import CHECKS, DATA, FAMILIES, LAYOUTS, Case, make_inputs, parse
from refbn.audit.families import FAMILY_TABLE, all_cases

TENSORS = ("x", "dy", "w", "x_dot")
VECTORS = ("gamma", "beta", "gamma_dot", "beta_dot", "mean", "var", "mean_dot", "var_dot")


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_every_descriptor_round_trips(depth):
    cases = all_cases(depth)
    texts = [str(case) for case in cases]
    assert [parse(text) for text in texts] == cases
    assert len(set(texts)) == len(texts)
    assert not any(" " in text for text in texts)


def test_unusual_values_round_trip():
    case = Case(
        "state",
        "running",
        "bf16",
        (3, 2),
        param="f32",
        offset=-1.5e-300,
        scale=0.1,
        special="-inf@dy",
        eps=0.0,
        var=9.0,
        momentum=None,
        steps=4,
        check="threads",
        repeat=8,
        seed=12,
    )
    assert parse(str(case)) == case
    assert "momentum=none" in str(case) and "var=9," in str(case)


def test_defaults_are_left_out_and_the_tensors_format_is_no_option():
    assert str(Case("shape", "forward", "f32", (2, 3), param="f32")) == "shape:forward:f32:2x3"
    assert parse("shape:forward:f32:2x3:param=f32") == Case("shape", "forward", "f32", (2, 3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "parts between colons"),
        ("shape:forward:f32", "parts between colons"),
        ("shape:forward:f32:2by3", "whole numbers joined by x"),
        ("shape:forward:f32:2", "at least two sizes"),
        ("shape:forward:f32:2x-3", "none of them negative"),
        ("shape:forward:f32:2x0", "at least one channel"),
        ("nowhere:forward:f32:2x3", "family is 'nowhere', expected one of"),
        ("shape:backward:f32:2x3", "operation is 'backward', expected one of"),
        ("shape:forward:f8:2x3", "dtype is 'f8', expected one of"),
        ("shape:forward:f32:2x3:", "key=value"),
        ("shape:forward:f32:2x3:colour=red", "key=value with a key among"),
        ("shape:forward:f32:2x3:seed=1,seed=2", "seed is given twice"),
        ("shape:forward:f32:2x3:eps=tiny", "eps='tiny' is not a number"),
        ("shape:forward:f32:2x3:eps=-1", "eps is -1.0"),
        ("shape:forward:f32:2x3:eps=nan", "eps is nan"),
        ("shape:forward:f32:2x3:scale=0", "scale is 0.0"),
        ("shape:forward:f32:2x3:special=big", "special is 'big'"),
        ("shape:forward:f32:2x3:special=nan@z", "special is 'nan@z'"),
        ("shape:forward:f32:2x3:repeat=3", "repeat is 3, expected a power of two"),
        ("shape:forward:f32:2x3:layout=odd", "layout is 'odd'"),
        ("shape:forward:f32:2x3:check=odd", "check is 'odd'"),
    ],
)
def test_a_bad_descriptor_says_what_is_wrong(text, words):
    with pytest.raises(DomainError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert caught.value.argument == "case"


# A descriptor means the same bits on every machine and in every version: these digests must never change.
DIGESTS = {
    "composition:vjp:f64:6x2": "36de8e04a16e44a6",
    "conditioning:vjp:f32:4x3x5:data=skewed,offset=4096,scale=3,layout=sliced,seed=3": "66ff3f57b817ad9d",
    "types:running:bf16:8x3:param=f32,data=bimodal,steps=3,seed=1": "2f6fa02b1fc0a8c1",
    "exact:forward:f16:16x3x2:data=integers": "df527c59d35b3f8c",
}


def digest(inputs):
    total = hashlib.sha256()
    for name in (*TENSORS, *VECTORS, "running_mean", "running_var"):
        total.update(np.ascontiguousarray(getattr(inputs, name)).tobytes())
    for batch in inputs.batches:
        total.update(np.ascontiguousarray(batch).tobytes())
    return total.hexdigest()[:16]


@pytest.mark.parametrize("text", DIGESTS)
def test_a_descriptor_fixes_every_bit(text):
    assert digest(make_inputs(parse(text))) == DIGESTS[text]


def test_inputs_differ_from_each_other_and_between_seeds():
    one, two = (make_inputs(Case("shape", "vjp", "f64", (5, 3), seed=seed)) for seed in (0, 1))
    for names in (TENSORS, VECTORS):
        values = [getattr(inputs, name) for inputs in (one, two) for name in names]
        for i, a in enumerate(values):
            assert not any(np.array_equal(a, b) for b in values[:i])
            assert len(np.unique(a)) == a.size


def test_parameters_have_both_signs_and_keep_away_from_zero_and_mostly_from_one():
    gamma = make_inputs(Case("shape", "vjp", "f64", (2, 400))).gamma
    assert 120 < np.sum(gamma < 0) < 280
    assert np.abs(gamma).min() > 0.37
    assert np.mean(np.abs(np.abs(gamma) - 1) < 0.1) < 0.2


@pytest.mark.parametrize("data", [name for name in DATA if name not in ("ramp", "constant", "step", "integers")])
def test_random_data_have_about_unit_spread(data):
    x = make_inputs(Case("shape", "vjp", "f64", (4000, 2), data=data)).x
    assert np.all(np.abs(x.mean(0)) < 1) and np.all((x.std(0) > 0.5) & (x.std(0) < 2.5))


def test_offset_scale_and_frozen_variance_are_what_they_say():
    case = Case("shape", "vjp_eval", "f64", (4000, 2), offset=50.0, scale=0.01, var=9.0)
    inputs = make_inputs(case)
    assert np.all(np.abs(inputs.x.mean(0) - 50) < 0.001) and np.all(np.abs(inputs.x.std(0) - 0.01) < 0.001)
    assert np.all(inputs.var == 9) and np.all(np.abs(inputs.mean - 50) < 0.1)
    assert np.all(np.abs(inputs.x_dot) < 0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
def test_layouts_differ_in_strides_alone(layout, shape):
    case = Case("layout", "vjp", "f32", shape, layout=layout)
    plain = make_inputs(Case("layout", "vjp", "f32", shape))
    inputs = make_inputs(case)
    for name in (*TENSORS, *VECTORS):
        assert np.array_equal(getattr(inputs, name), getattr(plain, name))
    x = inputs.x
    assert x.flags.writeable == (layout != "read-only")
    contiguous = np.empty(shape, np.float32).strides
    if layout in ("contiguous", "read-only"):
        assert x.strides == contiguous
    elif layout == "negative":
        assert x.strides == tuple(-s for s in contiguous) and inputs.gamma.strides == (-4,)
    elif layout == "transposed":
        assert x.strides == np.empty(shape, np.float32, order="F").strides
    elif layout == "channels-last":
        assert x.strides[1] == 4 and np.moveaxis(x, 1, -1).flags.c_contiguous
    else:
        assert not x.flags.c_contiguous and x.strides[-1] == 8 and inputs.gamma.strides == (8,)


@pytest.mark.parametrize(("special", "name"), [("nan", "x"), ("inf", "x"), ("-inf@x", "x"), ("inf@dy", "dy")])
def test_one_special_value_stands_in_one_channel(special, name):
    inputs = make_inputs(Case("special", "vjp", "f32", (5, 3, 2), special=special))
    wild = ~np.isfinite(getattr(inputs, name))
    assert wild.sum() == 1 and wild[:, 1].sum() == 1
    other = "dy" if name == "x" else "x"
    assert np.isfinite(getattr(inputs, other)).all()
    assert np.array_equal(inputs.batches[0], inputs.x, equal_nan=True)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_formats_of_data_and_parameters(dtype):
    inputs = make_inputs(Case("types", "vjp", dtype, (4, 3), param="f32"))
    assert format_of(inputs.x.dtype).short == dtype and inputs.dy.dtype == inputs.x.dtype
    assert inputs.gamma.dtype == inputs.var.dtype == inputs.running_var.dtype == np.float32


def test_integers_have_an_exact_mean_and_variance_in_any_order():
    x = make_inputs(Case("exact", "forward", "f32", (64, 2), data="integers")).x
    assert np.array_equal(x, np.round(x)) and np.abs(x).max() <= 16
    mean = x.mean(0)
    assert np.array_equal(mean, np.round(mean))
    orders = [np.add.accumulate(np.random.default_rng(i).permutation(x) ** 2, dtype=np.float32)[-1] for i in range(5)]
    assert all(np.array_equal(order, orders[0]) for order in orders)
    assert np.all(x.var(0) > 1)


def test_a_repeated_case_tiles_the_batch():
    case = Case("shape", "vjp", "f32", (3, 2), repeat=4)
    x = make_inputs(case).x
    assert x.shape == (12, 2) and case.count == 12
    assert np.array_equal(x, np.tile(x[:3], (4, 1)))


def test_batches_follow_the_steps():
    batches = make_inputs(Case("state", "running", "f32", (3, 2), steps=3)).batches
    assert len(batches) == 3 and not np.array_equal(batches[0], batches[1])
    assert len(make_inputs(Case("state", "train_eval_train", "f32", (3, 2))).batches) == 2


def test_dy_can_lie_in_the_span_of_one_and_x():
    inputs = make_inputs(Case("structure", "vjp", "f32", (9, 3), dy="like-x", scale=3.0, offset=1.0))
    assert np.array_equal(inputs.dy * 4, inputs.x)
    constant = make_inputs(Case("structure", "vjp", "f32", (9, 3), dy="constant")).dy
    assert np.all(constant == constant[:1]) and len(np.unique(constant)) == 3


# ---- the families ------------------------------------------------------------------------------------------------


def test_the_families_are_ordered_and_named():
    assert tuple(FAMILY_TABLE) == FAMILIES
    for family in FAMILIES:
        for depth in ("quick", "full"):
            cases = all_cases(depth, [family])
            assert cases and all(case.family == family for case in cases)


def test_the_full_depth_has_every_operation_format_layout_and_check():
    cases = all_cases("full")
    assert {case.operation for case in cases} == set(OPERATIONS)
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.check for case in cases} == set(CHECKS)
    assert {case.data for case in cases} == set(DATA)
    derivatives = {name for name, op in OPERATIONS.items() if op.composition}
    # The half types lose digits of their own, which would hide in one column what the nesting is about.
    for dtype, family in (("f16", "types"), ("bf16", "types"), ("f32", "composition"), ("f64", "composition")):
        chosen = {case.operation for case in cases if (case.dtype, case.family) == (dtype, family)}
        assert derivatives <= chosen


def test_the_quick_depth_has_every_operation_too():
    cases = all_cases("quick")
    assert {case.operation for case in cases} == set(OPERATIONS)
    assert len(cases) < 550


def test_cases_stay_small_where_the_size_is_not_the_point():
    for case in all_cases("full"):
        assert int(np.prod(case.shape)) <= 8192
    counts = [case.count for case in all_cases("full")]
    assert max(counts) > 2**24 and sum(count > 2**16 for count in counts) >= 3


# What audit reports of the public record cite, as properties of cases; the tables name them in comments only.
PUBLIC = {
    "pytorch#196699": lambda c: c.operation == "fwd_fwd" and c.dtype == "f64" and c.shape == (6, 2),
    "pytorch#186256": lambda c: c.operation == "rev_rev_rev" and c.dtype == "f64" and c.shape == (4, 3, 5),
    "pytorch#162489": lambda c: c.operation == "forward" and c.data == "ramp" and c.scale == 1e19,
    "google/flax#1491": lambda c: c.operation == "forward" and c.shape == (32, 4) and c.offset == 4096,
    "tensorflow#118701": lambda c: c.operation == "forward" and c.offset == 1e4 and len(c.shape) == 4,
    "pytorch#1381": lambda c: c.operation == "running" and c.shape == (1, 3),
    "pytorch#12013": lambda c: c.operation == "forward" and c.shape == (0, 3),
    "pytorch#586": lambda c: c.operation == "vjp_eval" and c.var == 9,
    "pytorch#115500": lambda c: c.operation == "running" and c.special == "inf",
    "onnx#5799": lambda c: c.operation == "inference" and c.scale < 0.1 and c.offset >= 50,
}


@pytest.mark.parametrize("thread", PUBLIC)
def test_public_cases_are_among_the_quick_ones(thread):
    assert any(PUBLIC[thread](case) for case in all_cases("quick"))
