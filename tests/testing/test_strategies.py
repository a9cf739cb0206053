"""The guard: the strategies do vary what they promise to vary."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from refbn import DomainError
from refbn._formats import FORMATS, format_of
from refbn.audit.adapters._protocol import OPERATIONS, Inputs
from refbn.audit.cases import DATA, Case, parse
from refbn.audit.cases import LAYOUTS as CASE_LAYOUTS
from refbn.testing import Check, adapter_of, assert_accurate, make_inputs
from refbn.testing.strategies import LAYOUTS, Problem, cases, in_layout, inputs, problems

FAST = settings(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_problems_vary():
    seen = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(problems())
    def draw(p):
        seen[p.x.dtype.name] += 1
        seen["mixed formats"] += p.x.dtype != p.gamma.dtype
        seen[f"{p.x.ndim} axes"] += 1
        seen["one element"] += p.x.size == p.x.shape[1]
        seen["eps 0"] += p.eps == 0
        seen["contiguous"] += p.x.flags.c_contiguous
        seen["negative strides"] += min(p.x.strides) < 0
        seen["layouts differ"] += p.x.strides != p.dy.strides
        channels = np.moveaxis(p.x.astype(np.float64), 1, 0).reshape(p.x.shape[1], -1)
        if channels.shape[1] > 1:
            mean, std = channels.mean(axis=1), channels.std(axis=1)
            seen["constant channel"] += (channels == channels[:, :1]).all(axis=1).any()
            seen["offset over 100 std"] += (np.abs(mean) > 100 * std).any() and (std > 0).all()
            seen["repeated values"] += any(len(set(c)) < len(c) and len(set(c)) > 1 for c in channels.tolist())
        assert p.x.shape == p.dy.shape == p.ddx.shape
        assert (p.var >= 0).all() and np.isfinite(p.x.astype(np.float64)).all()
        seen[b"".join(getattr(p, f.name).tobytes() for f in fields(p) if f.name != "eps")] += 1

    draw()
    values = [count for key, count in seen.items() if isinstance(key, bytes)]
    assert len(values) > 0.8 * sum(values), "inputs repeat"
    for name in (
        *(f.name for f in FORMATS),
        *(f"{n} axes" for n in (2, 3, 4, 5)),
        "mixed formats",
        "one element",
        "eps 0",
        "contiguous",
        "negative strides",
        "layouts differ",
        "constant channel",
        "offset over 100 std",
        "repeated values",
    ):
        assert seen[name] >= 5, (name, seen[name])


def test_layouts_hold_equal_values_in_different_memory():
    x = np.arange(120.0).reshape(2, 3, 4, 5)
    strides = set()
    for layout in LAYOUTS:
        y = in_layout(x, layout)
        np.testing.assert_array_equal(y, x)
        strides.add(y.strides)
    assert len(strides) == len(LAYOUTS)


# ---- cases of the audit ----------------------------------------------------------------------------------------------


def test_cases_vary():
    seen = Counter()

    @settings(FAST, max_examples=600)
    @given(cases(empty=True))
    def draw(case):
        assert parse(str(case)) == case
        seen[case.operation] += 1
        seen[case.dtype] += 1
        seen["mixed formats"] += case.param != ""
        seen[case.data] += 1
        seen[case.layout] += 1
        seen[f"{len(case.shape)} axes"] += 1
        seen["empty"] += case.count == 0
        seen["one element"] += case.count == 1
        seen["offset"] += case.offset != 0
        seen["extreme"] += not 2.0**-8 < case.scale < 2.0**8

    draw()
    short = (f.short for f in FORMATS)
    axes = (f"{n} axes" for n in (2, 3, 4, 5))
    for name in (
        *OPERATIONS,
        *short,
        *DATA,
        *CASE_LAYOUTS,
        *axes,
        "mixed formats",
        "empty",
        "one element",
        "offset",
        "extreme",
    ):
        assert seen[name] >= 3, (name, seen[name])


@FAST
@given(cases(operations=["vjp", "vjp_eval"], dtypes=["f32", "float64"], layouts=["sliced"], max_side=2))
def test_choices_of_cases(case):
    assert case.operation in ("vjp", "vjp_eval") and case.dtype in ("f32", "f64") and case.layout == "sliced"
    assert case.param in ("", "f64") and case.shape[0] <= 6 and max(case.shape[2:], default=1) <= 2 and case.count >= 1


def test_an_unknown_dtype_is_told():
    with pytest.raises(DomainError, match="dtypes: 'f8'"):
        find(cases(dtypes=["f8"]), lambda _: True)


def test_a_case_shrinks_to_a_line_that_can_be_kept():
    found = find(
        cases(operations=["forward"]),
        lambda case: case.shape[1] >= 2 and case.offset != 0,
        settings=settings(FAST, max_examples=500),
    )
    assert found.shape == (1, 2) and found.offset == 1 and found.seed == 0
    assert (found.scale, found.data, found.layout, found.dtype) == (1.0, "normal", "contiguous", "f16")


@settings(FAST, max_examples=100)
@given(cases(empty=True))
def test_refbn_is_right_on_whatever_is_drawn(case):
    try:
        Check(adapter_of("refbn"), case, strict=True)()
    except pytest.skip.Exception as skipped:
        assert "dtype" in str(skipped) or "no " in str(skipped)  # a pass that refbn does not have


@FAST
@given(inputs(operations=["forward"], dtypes=["f16", "f64"]))
def test_inputs_are_those_of_a_case(i):
    assert format_of(i.x.dtype).short in ("f16", "f64") and i.x.shape == i.dy.shape
    assert np.isfinite(i.x.astype(np.float64)).all()


@FAST
@given(st.from_type(Problem), st.from_type(Case), st.builds(lambda i: i, st.from_type(Inputs)))
def test_types_are_registered(problem, case, i):
    assert isinstance(problem, Problem) and isinstance(case, Case) and isinstance(i, Inputs)


@FAST
@given(cases(operations=["vjp"], dtypes=["f64"]))
def test_the_example_of_the_docstring(case):
    from tests.testing import textbook

    i = make_inputs(case)
    if abs(np.log2(case.scale)) < 100 and case.data != "constant":  # what the plain textbook can do
        dx, dgamma, dbeta = textbook.backward(i.x, i.gamma, i.beta, i.eps, i.dy)
        assert_accurate({"dx": dx, "dgamma": dgamma, "dbeta": dbeta}, case)


@FAST
@given(problems(formats=FORMATS[2:], layouts=["contiguous"]))
def test_problems_of_other_arrays(problem):
    moved = problem.converted(lambda array: ("mine", array))
    assert moved.x == ("mine", problem.x) and moved.var[1] is problem.var and moved.eps == problem.eps
