import dataclasses
import sys
from pathlib import Path

import pytest

from refbn._errors import DomainError
from refbn.audit import diagnosis
from refbn.audit.adapters._protocol import Unsupported
from refbn.audit.cases import parse
from refbn.audit.groups import Plan
from refbn.audit.remote.interpreter import Interpreter
from refbn.audit.report.run import Framework, by_operation, fails, groups, make_run, merge, part, scripts
from refbn.audit.runner import FAILURES
from tests.audit.report.runs import ADAPTERS, CASES, FINDINGS, RUN, one, run_of


def test_only_what_is_wrong_and_not_known_fails():
    assert {v for v in FAILURES if fails(one(v))} == FAILURES
    assert not any(fails(one(v, known=True)) for v in FAILURES)
    assert not fails(one("lossy")) and not fails(one("dialect"))


def test_cells_hold_the_worst_verdict_and_all_findings():
    cells = by_operation([one("exact"), one("lossy"), one("unsupported", "vjp"), one("wrong", framework="b")])
    assert {key: (verdict, len(found)) for key, (verdict, found) in cells.items()} == {
        ("frame", "forward"): ("lossy", 2),
        ("frame", "vjp"): ("unsupported", 1),
        ("b", "forward"): ("wrong", 1),
    }


def test_groups_are_of_one_kind_and_the_worst_comes_first():
    why = "one-pass-variance"
    found = [
        one("lossy", bound_ratio=9.0),
        one("wrong", "vjp", output="dx", explanation=f"{why}, to 7 of 7 digits: it cancels"),
        one("wrong", "forward", explanation=f"{why}, to 5 of 7 digits: it cancels", bound_ratio=4.0),
        one("wrong", "vjp", output="dgamma", family="shape"),
        one("wrong", "vjp", output="dbeta", check="layout"),
        one("wrong", known=True),
        one("raises", "rev", output="", note="ValueError: no"),
        one("raises", "rev_rev", output="", note="ValueError: no"),
        one("exact"),
    ]
    made = groups(found, (*FAILURES, "lossy"))
    told = [(g.verdict, g.worst.known, [op for op, _ in g.where], len(g.findings)) for g in made]
    assert told == [
        ("wrong", False, ["forward", "vjp"], 2),
        ("wrong", False, ["vjp"], 1),
        ("wrong", False, ["vjp"], 1),
        ("raises", False, ["rev", "rev_rev"], 2),
        ("lossy", False, ["forward"], 1),
        ("wrong", True, ["forward"], 1),
    ]
    assert made[0].worst.bound_ratio == 4.0 and made[0].where == [("forward", ["y"]), ("vjp", ["dx"])]
    assert groups(found, ("dialect",)) == []


def test_each_kind_gets_a_script_where_one_can_be_had(monkeypatch):
    def script(finding, adapter):
        if finding.operation == "vjp":
            raise Unsupported("no script")
        if finding.framework == "raising":
            raise AttributeError("an adapter without scripts")
        return f"{adapter.name} {finding.case}"

    monkeypatch.setattr(diagnosis, "script", script)
    found = scripts(FINDINGS, ADAPTERS)
    kinds = [g.worst for a in ADAPTERS for g in groups(RUN.of(a.name), (*FAILURES, "lossy"))]
    assert found == {f.id: f"{f.framework} {f.case}" for f in kinds if f.framework != "raising"} != {}


def test_a_real_script_is_written(tmp_path):
    class Scripted(type(ADAPTERS[1])):
        def reproduction(self, operation, inputs):
            return "answer = {'y': x}"

    own = [f for f in FINDINGS if f.framework == "one-pass"]
    (text,) = {t for t in scripts(own, [Scripted()]).values() if "is wrong" in t}
    assert "import numpy as np" in text and "answer = {'y': x}" in text
    compile(text, "script", "exec")


def test_frameworks_say_what_they_were_not_asked():
    first, third = CASES[0], CASES[2]
    plans = {"perfect": Plan((parse(first),), (parse(third),)), "biased": Plan()}
    run = make_run([], ADAPTERS[:2], "quick", 2, "0.1", plans=plans)
    perfect, other = run.frameworks
    assert (perfect.not_asked, perfect.instead) == ((first,), (third,)) and other.not_asked == other.instead == ()
    assert run.left_out(other) == "" and "perfect was not asked 1 of the 2 cases" in run.left_out(perfect)


def test_frameworks_say_where_they_ran(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    here = ".".join(map(str, sys.version_info[:3]))
    with Interpreter(sys.executable) as interpreter:
        remote = interpreter.adapter("tests.audit.strangers:Stranger")
        run = make_run([], [ADAPTERS[0], remote], "quick", 0, "0.1", missing=("absent",), gone=(1,))
    assert [(f.name, f.python, f.process) for f in run.frameworks] == [
        ("perfect", here, "this"),
        ("stranger", here, "own"),
    ]
    assert run.missing == ("absent",) and run.gone == ("1",)


@pytest.mark.parametrize("name", ["torch", "torch@2.5.0"])
def test_a_name_with_a_version_is_asked_by_its_plain_name(name):
    run = make_run([one("wrong", framework=name)], [], "quick", 1, "0.1")
    assert run.command(run.findings[0]).split()[2] in ("torch", name)


def test_runs_of_several_frameworks_become_one():
    first = run_of([one("exact", framework="a")], missing=("b", "d"), scripts={"a/forward/y/1": "print(1)"})
    second = run_of([one("wrong", framework="b")], missing=("d",), date="2026-11-29T06:00:00+00:00", gone=("x",))
    whole = merge([first, second])
    assert [f.name for f in whole.frameworks] == ["a", "b"] == [f.framework for f in whole.findings]
    assert whole.missing == ("d",) and whole.gone == ("x",) and whole.date == second.date
    assert whole.scripts == first.scripts and whole.cases == first.cases
    assert merge([first]) == first


def test_what_one_framework_was_not_asked_belongs_to_the_run():
    here, elsewhere = (one("exact", "vjp", framework=name) for name in "ab")
    moved = dataclasses.replace(elsewhere, case="shape:vjp:f32:4x3", dtype="float32")
    left_out = Framework("b", "9", "flax", "3.12.1", not_asked=(elsewhere.case,), instead=(moved.case,))
    whole = merge([run_of([here]), run_of([moved], frameworks=(left_out,))])
    assert whole.descriptors == {here.case} and whole.cases == 1
    assert part(whole, operation=["vjp"]).frameworks[1] == left_out
    assert part(merge([run_of([here, one("exact", framework="a")])]), operation=["forward"]).cases == 1
    only = part(dataclasses.replace(whole, findings=(one("exact", framework="a"), moved)), operation=["forward"])
    assert only.frameworks[1].not_asked == only.frameworks[1].instead == ()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (run_of([one("wrong", framework="b")], refbn="0.2"), "refbn is '0.1' in one run and '0.2'"),
        (run_of([one("wrong", framework="b")], depth="full"), "depth is 'quick'"),
        (run_of([one("wrong", "vjp", framework="b")]), "not asked the same cases"),
        (run_of([one("wrong", framework="a")]), "a is in more than one run"),
    ],
)
def test_runs_that_do_not_belong_together_stay_apart(other, words):
    with pytest.raises(DomainError, match=words):
        merge([run_of([one("exact", framework="a")]), other])


def test_a_part_of_a_run_is_what_it_found_there():
    there = one("wrong", "vjp", "conditioning", dtype="float64")
    run = run_of([one("exact"), there, one("wrong", "vjp")], scripts={there.id: "print(1)", "another": "print(2)"})
    assert part(run) == dataclasses.replace(run, scripts={there.id: "print(1)"})
    chosen = part(run, family=["conditioning"])
    assert chosen.findings == (there,) and chosen.cases == 1 and chosen.scripts == {there.id: "print(1)"}
    assert part(run, dtype=["f64"]).findings == part(run, dtype=["float64"]).findings == (there,)
    assert [f.operation for f in part(run, operation=["forward"]).findings] == ["forward"]
    with pytest.raises(DomainError, match="no finding"):
        part(run, family=["state"])
