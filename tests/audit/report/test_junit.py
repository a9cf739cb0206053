from xml.etree import ElementTree as ET

import pytest

from refbn.audit.report.junit import junit
from refbn.audit.runner import FAILURES
from tests.audit.report.runs import CASES, FINDINGS, RUN, one, rich_run, run_of


def parsed(run):
    return ET.fromstring(junit(run).split("\n", 1)[1])


@pytest.mark.parametrize("run", [RUN, rich_run()], ids=["stand-ins", "every field"])
def test_counts_are_those_of_the_tests(run):
    root = parsed(run)
    assert junit(run).startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    for element, suites in [(root, root.findall("testsuite")), *((s, [s]) for s in root.findall("testsuite"))]:
        tests = [test for suite in suites for test in suite.findall("testcase")]
        assert int(element.get("tests")) == len(tests)
        assert int(element.get("failures")) == sum(t.find("failure") is not None for t in tests)
        assert int(element.get("skipped")) == sum(t.find("skipped") is not None for t in tests)
        assert element.get("errors") == "0"


def test_one_suite_a_framework_and_one_test_a_case():
    root = parsed(RUN)
    assert [s.get("name") for s in root] == ["perfect", "one-pass", "biased", "raising", "not installed"]
    assert all({t.get("name") for t in suite.findall("testcase")} == set(CASES) for suite in root[:-1])
    failed = {
        (s.get("name"), t.get("name")) for s in root for t in s.findall("testcase") if t.find("failure") is not None
    }
    assert failed == {(f.framework, f.case) for f in FINDINGS if f.verdict in FAILURES} != set()
    assert {p.get("name"): p.get("value") for p in root[0].find("properties")}["version"] == "1.0"


@pytest.mark.parametrize(
    ("finding", "outcome"),
    [
        (one("exact"), None),
        (one("accurate"), None),
        (one("dialect", note="matches m − 1"), "system-out"),
        (one("lossy"), "system-out"),
        (one("wrong", known=True), "system-out"),
        (one("unsupported", output="", note="no forward"), "skipped"),
        (one("wrong"), "failure"),
        (one("nonfinite"), "failure"),
        (one("raises", output=""), "failure"),
    ],
)
def test_what_fails_what_passes_what_is_skipped(finding, outcome):
    (test,) = parsed(run_of([finding])).iter("testcase")
    assert [child.tag for child in test] == ([outcome] if outcome else [])


def test_a_failure_tells_everything_and_stays_xml():
    root = parsed(rich_run())
    first = next(t for t in root.iter("testcase") if t.get("classname") == "frame.conditioning.forward")
    failure = first.find("failure")
    assert (failure.get("type"), failure.get("message")) == ("wrong", "y wrong")
    for text in ("max_ulp 3.5e+06", "one-pass-variance", "threads/1491", "refbn audit frame --case", "smallest case"):
        assert text in failure.text
    raised = next(t for t in root.iter("testcase") if t.get("classname") == "frame.shape.rev").find("failure").text
    assert "<script>alert(1)</script>" in raised and "\x00" not in raised and "\x1b" not in raised
    not_asked = [t for t in root.find("testsuite[@name='loose']").iter("testcase") if t.find("skipped") is not None]
    assert [t.get("name") for t in not_asked] == ["shape:vjp:f32:2x3", "conditioning:jvp:f32:32x4:offset=100"]
    assert "compiles for each shape" in not_asked[0].find("skipped").get("message")
    skipped = [t.get("name") for t in root[-1]]
    assert skipped == ["tensorstream", "<caffe>"] and root[-1].get("name") == "not installed"
