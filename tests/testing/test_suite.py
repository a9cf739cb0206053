"""A check asks one case and fails with all that is known; a suite chooses the cases."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from refbn import DomainError
from refbn.audit.cases import FAMILIES
from refbn.audit.families import all_cases
from refbn.testing import Check, adapter_of, parametrize_with_cases, parse
from refbn.testing.suite import MARK, Suite
from tests.audit import stand_ins
from tests.testing import textbook


def failure(adapter, descriptor, **options):
    check = Check(adapter, parse(descriptor), **options)
    with pytest.raises(AssertionError) as caught:
        check()
    return check, str(caught.value)


# ---- one check -------------------------------------------------------------------------------------------------------


def test_a_right_one_passes():
    check = Check(adapter_of(textbook.forward), parse("shape:forward:f32:2x3"))
    assert check.verdict is None
    check()
    assert check.verdict in ("exact", "accurate") and not check.failed
    assert repr(check).endswith("textbook.forward, shape:forward:f32:2x3>")
    assert check.inputs.x.shape == (2, 3)


def test_the_message_of_a_wrong_output():
    def backward(*a):
        dx, dgamma, dbeta = textbook.backward(*a)
        return dx, dgamma / 16, dbeta

    check, text = failure(adapter_of(backward=backward, name="mine"), "conditioning:vjp:f32:16x3:scale=3")
    assert check.verdict == "wrong"
    assert text.startswith("mine: wrong in vjp\ndgamma is wrong (3 of 3 elements are off)\n")
    for part in ("at     dgamma[", "got    0x", "exact  0x", "error  ", "bound  ", "trace  got = 1/m * exact"):
        assert f"\n    {part}" in text
    assert "the other outputs: dx exact, dbeta" in text or "the other outputs: dx accurate, dbeta" in text
    assert "case conditioning:vjp:f32:16x3:scale=3" in text
    assert check.traces and check.traces[0].startswith("got = 1/m * exact")


def test_what_is_raised_is_told():
    _, text = failure(stand_ins.Raising(), "shape:forward:f32:2x3")
    assert "forward is raises: ZeroDivisionError: a framework's own trouble" in text


def test_a_failed_invariant_is_told():
    _, text = failure(stand_ins.Restless(), "state:vjp:f32:8x3x5:check=unmodified")
    assert "vjp is wrong (a call leaves its inputs as they were): modified its input dy" in text


def test_lossy_fails_when_strict():
    descriptor = "conditioning:forward:f32:32x4:offset=100"
    Check(stand_ins.OnePass(), parse(descriptor))()
    check, text = failure(stand_ins.OnePass(), descriptor, strict=True)
    assert check.verdict == "lossy" and "y is lossy" in text


def test_what_is_not_offered_or_not_there_is_skipped():
    with pytest.raises(pytest.skip.Exception, match="no forward"):
        Check(adapter_of(backward=textbook.backward), parse("shape:forward:f32:2x3"))()
    with pytest.raises(pytest.skip.Exception, match="missing is not installed"):
        Check(stand_ins.Missing(), parse("shape:forward:f32:2x3"))()


def test_conventions_are_the_adapter_s():
    adapter = adapter_of(running=textbook.running, dialect="onnx", name="mine")
    _, text = failure(adapter, "state:running:f64:8x3x2:scale=3,momentum=0.9")
    assert "running_mean" in text


# ---- suites ----------------------------------------------------------------------------------------------------------


def test_a_suite_asks_what_its_adapter_can():
    suite = Suite(adapter_of(textbook.forward, backward=textbook.backward))
    found = suite.cases("quick")
    assert {case.operation for case in found} == {"forward", "vjp", "rev"}
    assert {case.family for case in found} == set(FAMILIES) - {"norms"}
    assert found == [c for c in all_cases("quick") if c.operation in suite.adapter.operations and c.norm == "batch"]
    assert len(suite.cases("full")) > len(found)


def test_choices_narrow():
    suite = Suite(adapter_of(textbook.forward), None, ("shape", "exact"), None, ("f32",))
    assert {case.family for case in suite.cases("quick")} == {"shape", "exact"}
    assert {case.family for case in suite.cases("quick", families=["exact", "layout"])} == {"exact"}
    assert not suite.cases("quick", families=["layout"])
    assert not suite.cases("quick", operations=["vjp"])
    assert {case.dtype for case in suite.cases("quick")} == {"f32"}
    assert not suite.cases("quick", dtypes=["f64"])


def test_formats_that_the_adapter_lacks_are_left_out():
    found = Suite(adapter_of(textbook.forward, dtypes=["float32"])).cases("quick")
    assert {case.dtype for case in found} == {"f32"} and not any(case.param for case in found)


def test_the_mark():
    @parametrize_with_cases(
        textbook.forward, families=["shape"], depth="full", cases=["exact:forward:f64:4x2"], backward=textbook.backward
    )
    def test(check):
        check()

    (mark,) = test.pytestmark
    (suite,) = mark.args
    assert mark.name == MARK
    assert suite.cases("quick")[-1] == parse("exact:forward:f64:4x2")
    assert {case.family for case in suite.cases("quick")[:-1]} == {"shape"}


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("depth: 'deep', expected quick or full", {"depth": "deep"}),
        ("families: 'shapes', expected some of", {"families": ["shapes"]}),
        ("operations: 'backward', expected some of", {"operations": "backward"}),
        ("dtypes: 'f8', expected some of", {"dtypes": ["f8"]}),
        ("case: 'nonsense'", {"cases": ["nonsense"]}),
    ],
)
def test_bad_choices(match, options):
    with pytest.raises(DomainError, match=match):
        parametrize_with_cases(textbook.forward, **options)


# ---- causes ----------------------------------------------------------------------------------------------------------


def test_a_diagnosis_is_told_for_the_first_cases_of_a_kind(monkeypatch):
    """Whatever the audit can say about a cause goes into the message, and takes no time again and again."""
    looked = []

    class Diagnosis:
        def __init__(self, seconds):
            assert seconds <= 1

        def look(self, adapter, case, findings, answer):
            looked.append((adapter.name, case, set(answer)))

        def conclude(self, findings, adapters):
            return [dataclasses.replace(f, explanation="gamma, squared", smallest="a", thread="b") for f in findings]

    monkeypatch.setitem(sys.modules, "refbn.audit.diagnosis", SimpleNamespace(Diagnosis=Diagnosis))
    adapter = adapter_of(lambda x, gamma, beta, eps: textbook.forward(x, gamma**2, beta, eps), name="squared")
    texts = [failure(adapter, f"shape:forward:f64:{n}x3")[1] for n in range(4, 12)]
    assert all("\n    cause  gamma, squared\n    least  a\n    known  b\n" in text for text in texts[:3])
    assert not any("cause" in text for text in texts[3:])
    assert looked[0] == ("squared", parse("shape:forward:f64:4x3"), {"y"}) and len(looked) == 3


def test_without_a_diagnosis_nothing_is_said_of_a_cause(monkeypatch):
    monkeypatch.setitem(sys.modules, "refbn.audit.diagnosis", None)
    adapter = adapter_of(lambda x, gamma, beta, eps: 2 * textbook.forward(x, gamma, beta, eps), name="doubled")
    assert "cause" not in failure(adapter, "shape:forward:f64:4x3")[1]
