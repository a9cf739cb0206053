import dataclasses
import math

import numpy as np
import pytest

from refbn.audit import adapters, truth
from refbn.audit.adapters.zoo import ZOO, Control
from refbn.audit.cases import Case, make_inputs, parse
from refbn.audit.diagnosis import OFF, Bits, Diagnosis, fit, same_bits, shrink
from refbn.audit.runner import run_case, run_cases
from refbn.audit.truth import Conventions
from refbn.dialects import DIALECTS
from tests.audit.stand_ins import OnePass, Perfect, Restless

CONVENTIONS = Conventions.of(DIALECTS["torch"], True)
VJP = "composition:vjp:f64:6x2"


def someone(mistake):
    """A framework with one mistake, under a name of its own."""
    member = ZOO[mistake]()
    member.name = "someone"
    return member


def expected(text, output):
    return truth.expect(parse(text), CONVENTIONS)[output]


def diagnosed(adapter, *texts, seconds=30.0):
    return run_cases([adapter], [parse(text) for text in texts], None, Diagnosis(seconds))


# ---- one result ------------------------------------------------------------------------------------------------


def test_a_mistakes_own_numbers_fit_it_and_no_others():
    inputs = make_inputs(parse(VJP))
    answers = {name: member().run("vjp", inputs)["dx"] for name, member in ZOO.items()}
    truth_of_dx = expected(VJP, "dx")
    found = fit(answers["dropped-xhat-term"], answers["dropped-xhat-term"], truth_of_dx)
    assert found.how == "digits" and found.digits == pytest.approx(53 * math.log10(2))
    assert fit(answers["dropped-xhat-term"], answers["dropped-mean-term"], truth_of_dx) is None
    assert fit(answers["dropped-xhat-term"], answers["control"], truth_of_dx) is None


def test_digits_are_counted_and_two_are_not_enough_by_themselves():
    truth_of_dx = expected(VJP, "dx")
    mistaken = ZOO["dropped-xhat-term"]().run("vjp", make_inputs(parse(VJP)))["dx"]
    found = fit(mistaken * (1 + 1e-6), mistaken, truth_of_dx)
    assert found.how == "digits" and 5.5 < found.digits < 6.5
    assert fit(mistaken * 1.05, mistaken, truth_of_dx) is None


def test_other_shapes_fit_nothing():
    truth_of_dx = expected(VJP, "dx")
    assert fit(np.zeros((2, 2)), np.zeros((2, 2)), truth_of_dx) is None
    assert same_bits(np.zeros((2, 2)), np.zeros((2, 2)), truth_of_dx) == Bits(0, 0, 0, 0)


def test_the_pattern_of_what_is_not_finite():
    truth_of_dx = expected(VJP, "dx")
    right = truth_of_dx.high
    lost = np.where(np.arange(2) == 1, np.nan, right)
    assert fit(lost, lost * 1.0, truth_of_dx).how == "pattern"
    assert fit(lost, right, truth_of_dx) is None
    assert fit(lost, np.where(np.arange(2) == 1, np.inf, 2 * right), truth_of_dx) is None  # the rest is not alike
    assert fit(np.full((6, 2), np.nan), np.full((6, 2), np.nan), truth_of_dx).digits is None


def test_bits_count_where_mistake_and_truth_part():
    text = "conditioning:inference:f32:16x3:offset=4096"
    of_y = expected(text, "y")
    got = ZOO["folded-affine"](fused=1).run("inference", make_inputs(parse(text)))["y"]
    own = same_bits(got, got, of_y)
    assert own.fits and own.told == own.telling > 40 and own.same == own.real == 48
    assert not same_bits(got, np.nextafter(got, np.float32(np.inf)), of_y).fits
    assert not Bits(7, 7, 40, 40).fits and not Bits(9, 12, 40, 40).fits and Bits(8, 8, 8, 8).fits


# ---- a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "texts"),
    [
        ("dropped-xhat-term", [VJP, "composition:vjp:f64:4x3x5", "composition:jvp:f64:6x2"]),
        ("detached-variance", [VJP, "composition:vjp:f64:4x3x5", "composition:jvp:f64:6x2"]),
        ("bessel-forward", ["shape:forward:f32:3x3", "shape:forward:f32:3x5x7"]),
        ("constant-statistics-in-jvp", ["composition:rev_fwd:f64:6x2", "composition:rev_fwd:f32:4x3x5:seed=1"]),
        ("eps-outside-root", ["conditioning:forward:f32:16x3:scale=0.0001"]),
        ("cubed-invstd", ["structure:jvp:f16:16x3:data=constant"]),
        ("running-corrected-twice", ["state:running:f32:8x3x2:scale=3"]),
        ("eval-gradient-with-training-formula", ["conditioning:vjp_eval:f64:8x3:scale=3,var=9"]),
        ("layout-ignored", ["layout:forward:f32:4x3x5:layout=transposed,check=layout"]),
        ("input-overwritten", ["state:forward:f32:8x3x5:check=unmodified"]),
        ("running-variance-of-one-value", ["state:running:f32:1x3"]),
    ],
)
def test_each_mistake_is_told_by_its_name(mistake, texts):
    findings = [f for f in diagnosed(someone(mistake), *texts) if f.verdict in OFF]
    assert findings
    told = {f.explanation.partition(",")[0] for f in findings}
    assert told == {mistake}, told
    for found in findings:
        smallest = parse(found.smallest)
        again = {f.output: f.verdict for f in run_case(someone(mistake), smallest)}
        assert again[found.output] == found.verdict
        assert math.prod(smallest.shape) <= math.prod(parse(found.case).shape)


def test_a_smallest_case_is_small():
    (found,) = (f for f in diagnosed(someone("bessel-backward"), "shape:vjp:f64:5x3x4:seed=3") if f.verdict in OFF)
    assert parse(found.smallest).shape in ((2, 1), (3, 1), (4, 1)) and "seed" not in found.smallest
    assert "to 1" in found.explanation and "of 16.0 digits" in found.explanation


def test_what_is_right_needs_no_reason():
    for found in diagnosed(Perfect(), VJP, "state:running:f32:1x3"):
        assert found.explanation == found.smallest == found.thread == ""


def test_a_convention_is_its_own_reason():
    from tests.audit.stand_ins import Biased

    found = {f.output: f for f in diagnosed(Biased(), "state:running:f32:8x3x2:scale=3")}
    assert found["running_var"].explanation == found["running_var"].note
    assert found["running_var"].explanation.startswith("matches running_var with m")


def test_noise_is_not_explained():
    class Noisy(Perfect):
        def run(self, operation, inputs):
            answer = super().run(operation, inputs)
            noise = np.random.RandomState(inputs.x.size).standard_normal(answer["dx"].shape)
            return answer | {"dx": (answer["dx"] + noise).astype(answer["dx"].dtype)}

    found = [f for f in diagnosed(Noisy(), VJP, "composition:vjp:f64:4x3x5") if f.verdict in OFF]
    assert len(found) == 2 and all(f.explanation == "" for f in found) and all(f.smallest for f in found)


def test_one_case_alone_explains_nothing():
    class Once(Control):
        """Wrong for one set of data alone, so other seeds do not show it."""

        def run(self, operation, inputs):
            first = np.array_equal(inputs.x, make_inputs(parse(VJP)).x)
            return (ZOO["dropped-xhat-term"] if first else Control)().run(operation, inputs)

    found = {f.output: f for f in diagnosed(Once(), VJP)}
    assert found["dx"].verdict == "wrong" and found["dx"].explanation == ""


def test_a_mistake_that_would_show_elsewhere_is_out():
    class OnlyWithoutOffset(Control):
        """Numbers of a one-pass variance where squares overflow, right where its digits would cancel."""

        def run(self, operation, inputs):
            large = np.abs(inputs.x).max() > 1e18
            return (ZOO["one-pass-variance"] if large else Control)().run(operation, inputs)

    texts = ["conditioning:forward:f32:4x2:data=ramp,scale=1e+19", "conditioning:forward:f32:16x3:scale=1e+30"]
    texts += [f"conditioning:forward:f32:32x4:offset={offset}" for offset in (4096, 10000, -4096)]
    found = [f for f in diagnosed(OnlyWithoutOffset(), *texts) if f.verdict in OFF and f.output == "y"]
    assert len(found) == 2
    assert {f.explanation.partition(",")[0] for f in found} == {"unscaled-overflow"}


def test_sums_in_another_order_are_only_consistent():
    texts = [f"conditioning:forward:f32:32x4:offset={offset},seed={seed}" for offset in (300, 1000) for seed in (0, 1)]
    found = {f.output: f for f in diagnosed(OnePass(), *texts)}
    assert found["invstd"].verdict in OFF
    assert found["invstd"].explanation.startswith(("consistent with one-pass-", "one-pass-"))


def test_checks_that_fail_by_noise_are_left_without_a_reason():
    found = diagnosed(Restless(), "state:vjp:f32:8x3x5:check=unmodified")
    assert [f.verdict for f in found] == ["wrong"] and found[0].explanation == ""


def test_an_exception_is_shrunk_too():
    class Refusing(Perfect):
        def run(self, operation, inputs):
            if inputs.x.ndim > 2:
                raise RuntimeError("only matrices")
            return super().run(operation, inputs)

    (found,) = diagnosed(Refusing(), "shape:vjp:f32:3x5x7:seed=4")
    assert found.verdict == "raises" and found.smallest == "shape:vjp:f32:1x1x1:data=ramp"


def test_without_time_nothing_is_shrunk():
    found = diagnosed(someone("bessel-backward"), VJP, "composition:vjp:f64:4x3x5", seconds=0.0)
    assert {f.smallest for f in found} == {""}
    assert {f.explanation.partition(",")[0] for f in found if f.verdict in OFF} == {"bessel-backward"}


# ---- shrinking -------------------------------------------------------------------------------------------------


def test_shrinking_keeps_what_matters():
    big = Case(
        "layout", "vjp", "f32", (5, 3, 4, 2), layout="sliced", offset=4096.0, scale=3.0, seed=7, repeat=8, eps=0.1
    )
    small = shrink(big, lambda case: case.shape[0] >= 2 and case.offset == 4096.0)
    assert small == Case("layout", "vjp", "f32", (2, 1), offset=4096.0, data="ramp")
    assert shrink(big, lambda case: False) == big


def test_shrinking_is_bounded():
    seen = []
    shrink(parse("shape:vjp:f32:64x64x64"), lambda case: seen.append(case) or True, trials=3)
    assert len(seen) == 3
    assert shrink(parse(VJP), lambda case: pytest.fail("too late"), deadline=-math.inf) == parse(VJP)


def test_the_layout_of_a_layout_check_stays():
    case = parse("layout:vjp:f32:4x3x5:layout=transposed,check=layout")
    assert shrink(case, lambda case: True).layout == "transposed"


# ---- the real thing ----------------------------------------------------------------------------------------------


def test_torchs_nested_forward_mode_is_explained_and_has_its_thread():
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another PyTorch")
    (adapter,) = adapters.load("torch")
    (found,) = diagnosed(adapter, "composition:fwd_fwd:f64:6x2")
    assert found.explanation.startswith("constant-statistics-in-jvp, to 15")
    assert found.smallest == "composition:fwd_fwd:f64:2x1:data=ramp"
    assert found.thread == "https://github.com/pytorch/pytorch/issues/196699"
    assert dataclasses.replace(found, explanation="").id == found.id
