from xml.etree import ElementTree as ET

import pytest

from refbn.audit.cases import parse
from refbn.audit.report.curves import _across, _down, curves, svg
from refbn.audit.runner import run_cases
from tests.audit.report.runs import RUN, one, run_of
from tests.audit.stand_ins import OnePass

FAMILY = "conditioning"


def test_points_are_the_conditioning_family_s_binary32_cases():
    drawn = curves(RUN)
    assert list(drawn) == ["perfect", "one-pass", "biased"]  # one that raises has nothing to draw
    (y, dx) = drawn["perfect"]
    assert (y.operation, y.output, [p.x for p in y.points]) == ("forward", "y", [0.0, 100.0, 4096.0])
    assert (dx.operation, dx.output, [p.x for p in dx.points]) == ("vjp", "dx", [100.0])
    assert all(p.error <= 0.5 < p.bound for p in y.points)
    (bad,) = drawn["one-pass"]
    assert [p.error > p.bound for p in bad.points] == [False, True, True]
    errors = {f.case: f.max_scaled_ulp for f in RUN.of("one-pass") if f.family == FAMILY and f.output == "y"}
    assert [p.error for p in bad.points] == [errors[c] for c in sorted(errors, key=lambda c: parse(c).offset)]


def test_the_bound_grows_with_the_offset_and_no_result_beyond_it_is_accurate():
    (curve,) = curves(RUN)["one-pass"]
    bounds = [p.bound for p in curve.points]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1] / 10
    beyond = {f.verdict for f in RUN.of("one-pass") if f.family == FAMILY and f.bound_ratio and f.bound_ratio > 1}
    assert beyond <= {"lossy", "wrong"}


@pytest.mark.parametrize(
    "case",
    [
        "conditioning:forward:f64:32x4",
        "conditioning:forward:f32:16x3:data=skewed",
        "conditioning:forward:f32:16x3:scale=1e+30",
        "conditioning:forward:f32:16x3:eps=0.001",
        "shape:forward:f32:16x3",
    ],
)
def test_other_cases_are_not_drawn(case):
    assert curves(run_of([one("exact", family=case.split(":")[0], case=case)])) == {}


def test_offsets_are_measured_in_standard_deviations_and_the_worst_counts():
    cases = [
        "conditioning:forward:f32:32x4:offset=10000",
        "conditioning:forward:f32:8x4x4x4:offset=1000,scale=0.1,seed=3",
        "conditioning:forward:f32:32x4:offset=-4096,scale=1000,seed=2",
    ]
    findings = [f for f in run_cases([OnePass()], [parse(c) for c in cases]) if f.output == "y"]
    ((curve,),) = curves(run_of(findings)).values()
    assert [p.x for p in curve.points] == [4.096, 10000.0]
    assert curve.points[1].error == max(f.max_scaled_ulp for f in findings[:2])


def test_what_is_not_finite_is_a_cross_at_the_top():
    lost = one("nonfinite", family=FAMILY, case="conditioning:forward:f32:32x4:offset=4096", max_scaled_ulp=None)
    run = run_of([lost, one("exact", family=FAMILY, case="conditioning:forward:f32:32x4")])
    ((curve,),) = curves(run).values()
    assert [p.error for p in curve.points] == [0.5, None]
    drawn = svg([curve], "c")
    assert drawn.count('class="cross s0"') == 1 and drawn.count("<circle") == 1 and "not finite" in drawn


def test_a_chart_is_well_formed_labelled_and_within_its_box():
    for name, drawn in curves(RUN).items():
        root = ET.fromstring(svg(drawn, f"c-{name}"))
        _, _, width, height = map(float, root.get("viewBox").split())
        assert root.get("role") == "img" and root.get("aria-labelledby") == f"c-{name}-t c-{name}-d"
        assert name in root.find("title").text and "bound" in root.find("desc").text
        words = {t.text for t in root.iter("text")}
        assert {"offset / standard deviation", "error in ulp", "no digit right", "0", "1", "10²", "10⁴", "10⁶"} <= words
        for point in root.iter("circle"):
            assert 0 < float(point.get("cx")) < width and 0 < float(point.get("cy")) < height


def test_axes_are_logarithmic_and_clamp():
    assert _across(2) - _across(1) == pytest.approx(_across(5) - _across(4))
    assert (
        _down(1) - _down(2) == pytest.approx(_down(4) - _down(5)) and _down(30) == _down(8) and _down(-9) == _down(-1)
    )


def test_names_are_escaped():
    cases = [one("exact", family=FAMILY, framework="<b>&", case="conditioning:forward:f32:32x4")]
    ((_, drawn),) = curves(run_of(cases)).items()
    assert ET.fromstring(svg(drawn, "c")).find("title").text.startswith("<b>&")
