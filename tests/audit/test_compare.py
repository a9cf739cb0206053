import dataclasses

import numpy as np
import pytest

from refbn._formats import BINARY16, BINARY32, BINARY64, FORMATS, format_of
from refbn.audit import truth
from refbn.audit.cases import Case, parse
from refbn.audit.compare import CAP, VERDICTS, compare, compare_runs, same_bits, worst
from refbn.dialects import DIALECTS

CONVENTIONS = truth.Conventions.of(DIALECTS["torch"], True)


def expected(text, output):
    return truth.expect(parse(text), CONVENTIONS)[output]


def right(of, form=None):
    form = form or (of.param_form if of.is_vector else of.form)
    return of.rounded(form).astype(form.dtype)


Y = expected("conditioning:forward:f32:8x3", "y")


def test_the_correctly_rounded_values_are_exact():
    comparison = compare(right(Y), Y)
    assert comparison.verdict == "exact"
    assert 0 < comparison.max_ulp <= 0.5 and comparison.max_scaled_ulp <= comparison.max_ulp
    assert comparison.bound_ratio < 0.5 and comparison.note == ""


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.short)
def test_exact_in_every_format(form):
    of = expected(f"types:forward:{form.short}:8x3", "y")
    assert compare(right(of), of).verdict == "exact"


def test_three_ulps_off_at_one_place_is_what_the_numbers_say():
    got = right(Y).copy()
    place = np.unravel_index(np.argmax(np.abs(Y.high)), got.shape)
    ulp = np.spacing(got[place])
    got[place] += 3 * ulp
    comparison = compare(got, Y)
    assert comparison.verdict == "accurate"
    assert 2.5 <= comparison.max_ulp <= 3.5 and comparison.worst == place
    assert comparison.max_scaled_ulp == pytest.approx(comparison.max_ulp)
    error = abs(float(got[place]) - Y.high[place])
    assert comparison.bound_ratio == pytest.approx(error / Y.limit(BINARY32)[place])


def test_the_scaled_number_forgives_small_elements():
    got = right(Y).copy()
    place = np.unravel_index(np.argmin(np.abs(Y.high)), got.shape)
    got[place] += np.spacing(np.abs(got).max())
    comparison = compare(got, Y)
    assert comparison.max_ulp > 4 * comparison.max_scaled_ulp


def shifted(of, factor, form=BINARY32):
    """The truth, off by a multiple of the bound."""
    return (of.high + factor * of.limit(form)).astype(form.dtype)


def test_the_verdict_follows_the_bound():
    assert compare(shifted(Y, 0.5), Y).verdict == "accurate"
    assert compare(shifted(Y, 3.0), Y).verdict == "lossy"
    assert 2.5 < compare(shifted(Y, 3.0), Y).bound_ratio < 3.5
    assert compare((Y.high * 1.05).astype(np.float32), Y).verdict == "wrong"


def test_one_wrong_channel_is_enough():
    got = right(Y).copy()
    got[:, 1] *= np.float32(1.1)
    assert compare(got, Y).verdict == "wrong"


@pytest.mark.parametrize(("dtype", "digits_off"), [("f64", 1e-7), ("f32", 1e-3), ("f16", 0.02), ("bf16", 0.1)])
def test_a_third_of_the_digits_makes_it_lossy(dtype, digits_off):
    of = expected(f"conditioning:vjp:{dtype}:8x3", "dx")
    scale = np.abs(of.high).max(0, keepdims=True)
    for factor, verdict in ((1, "lossy"), (100, "wrong")):
        got = (of.high + factor * digits_off * scale).astype(of.form.dtype)
        assert compare(got, of).verdict == verdict


def test_a_truth_of_zero_is_judged_by_the_size_of_its_terms():
    of = expected("structure:vjp:f32:16x3:dy=constant", "dx")
    assert np.all(of.high == 0) and np.all(of.size > 0)
    assert compare(np.zeros(of.full_shape, np.float32), of).verdict == "exact"
    assert compare(-np.zeros(of.full_shape, np.float32), of).verdict == "exact"
    noise = compare((0.5 * of.limit(BINARY32)).astype(np.float32), of)
    assert noise.verdict == "accurate" and noise.max_ulp == CAP
    assert compare((2.0 * of.limit(BINARY32)).astype(np.float32), of).verdict == "lossy"
    assert compare((0.01 * of.size).astype(np.float32), of).verdict == "wrong"


def test_nan_where_a_number_is_due_is_nonfinite():
    got = right(Y).copy()
    got[3, 2] = np.nan
    comparison = compare(got, Y)
    assert comparison.verdict == "nonfinite" and comparison.worst == (3, 2)
    assert comparison.note == "1 of 24 elements are not finite"
    assert comparison.max_ulp <= 0.5


def test_nan_and_infinity_are_right_in_the_channel_that_has_them_and_there_alone():
    of = expected("special:forward:f32:5x3x2:special=inf", "y")
    assert of.nonfinite[:, 1].all() and not of.nonfinite[:, [0, 2]].any()
    got = right(of)
    assert compare(got, of).verdict == "exact"
    infinite = np.where(np.isnan(got), np.float32(np.inf), got)
    assert compare(infinite, of).verdict == "exact"
    swallowed = np.where(np.isnan(got), np.float32(0), got)
    comparison = compare(swallowed, of)
    assert comparison.verdict == "wrong" and "no finite value exists" in comparison.note
    assert compare(np.full_like(got, np.nan), of).verdict == "nonfinite"


def test_a_gradient_that_contains_no_x_stays_finite_beside_a_nan():
    truths = truth.expect(parse("special:vjp:f32:5x3x2:special=nan"), CONVENTIONS)
    assert truths["dx"].nonfinite[:, 1].all() and truths["dgamma"].nonfinite[1]
    assert not truths["dbeta"].nonfinite.any()
    frozen = truth.expect(parse("special:vjp_eval:f32:5x3x2:special=nan"), CONVENTIONS)
    assert not frozen["dx"].nonfinite.any() and frozen["dgamma"].nonfinite.tolist() == [False, True, False]


def test_zero_variance_without_epsilon_has_no_answer_but_its_mean_does():
    truths = truth.expect(parse("special:forward:f32:6x3:data=constant,eps=0"), CONVENTIONS)
    for answer in (np.nan, np.inf, 3.0):
        assert compare(np.full((6, 3), answer, np.float32), truths["y"]).verdict == "exact"
    assert compare(np.zeros(3, np.float32), truths["mean"]).verdict == "wrong"
    assert compare(right(truths["mean"]), truths["mean"]).verdict == "exact"
    assert np.all(truths["var"].high == 0)
    for text in ("jvp:f32:1x3", "rev_rev:f32:1x3", "vjp_eval:f32:1x3:var=0"):  # one element has no variance at all
        options = "," if "=" in text else ":"
        for expected in truth.expect(parse(f"special:{text}{options}eps=0"), CONVENTIONS).values():
            assert expected.free.all() or expected.name == "dbeta"


def test_a_wrong_shape_or_dtype_is_wrong():
    assert compare(right(Y)[:-1], Y).verdict == "wrong"
    comparison = compare(right(Y).astype(int), Y)
    assert comparison.verdict == "wrong" and "dtype" in comparison.note


def test_an_empty_batch_has_empty_tensors_and_zero_gradients():
    truths = truth.expect(parse("shape:vjp_eval:f32:0x3"), CONVENTIONS)
    assert compare(np.empty((0, 3), np.float32), truths["dx"]).verdict == "exact"
    assert compare(np.zeros(3, np.float32), truths["dgamma"]).verdict == "exact"
    assert compare(np.ones(3, np.float32), truths["dgamma"]).verdict == "wrong"
    training = truth.expect(parse("state:running:f32:0x3"), CONVENTIONS)["running_var"]
    assert compare(right(training), training).verdict == "exact"
    assert compare(np.full(3, np.nan, np.float32), training).verdict == "nonfinite"


def test_a_truth_that_overflows_asks_for_infinity():
    of = expected("conditioning:forward:f64:16x3:scale=1e+160", "var")
    assert np.isinf(of.rounded(BINARY64)).all()
    assert compare(np.full(3, np.inf), of).verdict == "exact"
    assert compare(np.zeros(3), of).verdict == "wrong"
    assert compare(np.full(3, -np.inf), of).verdict != "exact"
    half = expected("conditioning:forward:f16:16x3:scale=1000", "var")
    assert np.isinf(half.rounded(BINARY16)).all()
    wide = right(half, BINARY32)
    assert compare(wide, half).verdict == "exact" and compare(wide * np.float32(1 + 1e-6), half).verdict == "accurate"
    assert compare(wide * np.float32(0.01), half).verdict == "wrong"
    assert compare(np.full(3, 65504.0, np.float16), half).verdict == "wrong"


def test_a_wider_output_is_judged_in_the_format_that_was_due():
    of = expected("types:forward:f16:8x3", "y")
    as_half = right(of)
    assert compare(as_half.astype(np.float32), of).verdict == "accurate"
    assert compare(right(of, BINARY32), of).verdict == "exact"
    mixed = expected("types:vjp:f16:8x3:param=f32", "dgamma")
    assert mixed.output_format(BINARY64) is BINARY32 and mixed.output_format(BINARY16) is BINARY16
    narrow = expected("types:forward:f32:8x3", "y")
    assert narrow.output_format(BINARY16) is BINARY32
    assert compare(right(narrow, BINARY16), narrow).verdict == "lossy"


def test_statistics_without_rounding_must_match_exactly():
    of = expected("exact:forward:f32:16x3x2:data=integers", "var")
    assert of.no_rounding
    assert compare(right(of), of).verdict == "exact"
    got = right(of).copy()
    got[0] = np.nextafter(got[0], np.float32(np.inf))
    assert compare(got, of).verdict == "lossy"
    assert not expected("shape:forward:f32:16x3x2", "var").no_rounding
    assert not expected("exact:forward:f32:12x3:data=integers", "var").no_rounding


def test_a_repeated_case_is_judged_at_its_worst_repetition():
    case = parse("shape:vjp:f32:4x3:repeat=8")
    truths = truth.expect(case, CONVENTIONS)
    of = truths["dx"]
    assert of.full_shape == (32, 3) and of.high.shape == (4, 3)
    got = np.tile(right(of), (8, 1))
    assert compare(got, of).verdict == "exact"
    got[17, 1] = 40.0
    assert compare(got, of).verdict == "wrong" and compare(got, of).worst == (1, 1)
    assert compare(right(truths["dgamma"]), truths["dgamma"]).verdict == "exact"


@pytest.mark.parametrize("operation", ["forward", "vjp", "jvp", "inference", "vjp_eval"])
def test_repetition_is_the_large_case_itself(operation):
    short = Case("shape", operation, "f64", (4, 2), repeat=4)
    from refbn.audit.cases import make_inputs

    whole = truth.expect_from(dataclasses.replace(short, shape=(16, 2), repeat=1), make_inputs(short), CONVENTIONS)
    for name, of in truth.expect(short, CONVENTIONS).items():
        got = right(of)
        got = got if of.is_vector else np.tile(got, (4, 1))
        assert compare(got, whole[name]).verdict == "exact", name


# ---- two runs -----------------------------------------------------------------------------------------------------


def test_bits_are_compared_with_signs_and_without_nan_payloads():
    a = np.array([0.0, np.nan, 1.0], np.float32)
    b = a.copy()
    b.view(np.uint32)[1] ^= 1
    assert same_bits(a, b)
    assert not same_bits(a, np.array([-0.0, np.nan, 1.0], np.float32))
    assert not same_bits(a, a.astype(np.float64)) and not same_bits(a, a[:2])


def test_two_runs_are_exact_accurate_or_worse():
    got = right(Y)
    assert compare_runs(got, got.copy(), Y, "twice").verdict == "exact"
    other = got.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    comparison = compare_runs(got, other, Y, "twice")
    assert comparison.verdict == "accurate" and comparison.note == "twice: bits differ"
    assert 0.9 < comparison.max_ulp < 1.1
    assert compare_runs(got, got + np.float32(1), Y, "twice").verdict == "wrong"
    assert compare_runs(got, got + np.float32("nan"), Y, "twice").verdict == "nonfinite"
    assert compare_runs(got, got[1:], Y, "twice").verdict == "wrong"


def test_an_error_that_both_runs_share_is_not_a_difference():
    got = right(Y) * np.float32(7)
    assert compare_runs(got, got.copy(), Y, "twice").verdict == "exact"


# ---- words --------------------------------------------------------------------------------------------------------


def test_the_worst_verdict():
    assert worst(VERDICTS) == "wrong"
    assert worst(["exact", "unsupported"]) == "exact"
    assert worst(["unsupported"]) == "unsupported"
    assert worst(["lossy", "dialect", "accurate"]) == "lossy"
    with pytest.raises(ValueError):
        worst([])


# ---- named conventions -----------------------------------------------------------------------------------------------


def explained(text, output, got, conventions=CONVENTIONS):
    return [
        name
        for name, of in truth.alternatives(parse(text), output, conventions, False)
        if compare(got, of).verdict == "exact"
    ]


def test_the_other_running_variance_has_a_name():
    text = "state:running:f32:8x3x2:scale=3"
    other = dataclasses.replace(CONVENTIONS, unbiased=False)
    got = right(truth.expect(parse(text), other)["running_var"])
    assert explained(text, "running_var", got)[0] == "running_var with m: keras, flax, onnx, paddle, equinox dialects"
    back = right(truth.expect(parse(text), CONVENTIONS)["running_var"])
    assert (
        explained(text, "running_var", back, other)[0] == "running_var with m − 1: torch, tensorflow, tinygrad dialects"
    )


def test_the_other_sense_of_momentum_has_a_name():
    text = "state:running:f32:8x3x2"
    got = right(truth.expect(parse(text), dataclasses.replace(CONVENTIONS, weighs_new=False))["running_mean"])
    assert "momentum weighing the old value" in explained(text, "running_mean", got)[0]


def test_the_other_saved_statistic_has_a_name():
    text = "conditioning:forward:f32:8x3"
    truths = truth.expect(parse(text), CONVENTIONS)
    assert explained(text, "invstd", right(truths["var"])) == ["var in place of invstd"]
    unbiased = (truths["var"].high * 8 / 7).astype(np.float32)
    assert explained(text, "var", unbiased) == ["the variance with m − 1 in place of var"]


def test_attributes_stored_as_binary32_have_a_name():
    text = "types:forward:f64:16x3:scale=0.001"
    got = right(truth.expect(parse(text), dataclasses.replace(CONVENTIONS, narrow_attributes=True))["y"])
    of = expected(text, "y")
    assert compare(got, of).verdict == "lossy"
    assert explained(text, "y", got) == ["y with attributes stored as binary32: tensorflow, onnx, paddle dialects"]


def test_formats_are_known_by_dtype():
    assert [format_of(f.dtype) for f in FORMATS] == list(FORMATS)
