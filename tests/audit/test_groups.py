import dataclasses

import pytest

from refbn.audit import adapters
from refbn.audit.adapters._protocol import compiles
from refbn.audit.families import all_cases
from refbn.audit.groups import Plan, everything, groups_of, plan
from refbn.audit.runner import FAILURES, out_of_scope, run_cases
from tests.audit.stand_ins import Compiling, Perfect

CASES = all_cases("quick")
ABOUT_SHAPE = {"composition", "shape", "layout", "exact", "norms"}


def planned(adapter, cases=CASES):
    """What an adapter that compiles is asked, without what it does not offer."""
    own = plan(Compiling(adapter), cases)
    return own, [
        case for case in (*cases, *own.instead) if case not in own.left_out and not out_of_scope(adapter, case)
    ]


def kinds(cases):
    return {(c.norm, c.operation, c.dtype, c.param, c.eps, c.steps) for c in cases}


def keys(cases):
    """What a framework compiles once."""
    return {(c.norm, c.operation, c.dtype, c.param, c.eps, c.steps, c.shape[0] * c.repeat, c.shape[1:]) for c in cases}


@pytest.fixture(scope="module")
def everyone():
    return planned(Perfect())


def test_groups_share_what_a_framework_compiles_and_leave_no_case_out():
    cases = all_cases("full")
    groups = groups_of(cases)
    assert sorted(place for group in groups for place in group) == list(range(len(cases)))
    for group in groups:
        own = [cases[place] for place in group]
        assert len({(c.norm, c.operation, c.dtype, c.param, c.count, c.shape[1:], c.eps) for c in own}) == 1
    assert len(groups) < len(cases)


def test_the_tables_stand_for_who_does_not_compile():
    assert not compiles(Perfect()) and plan(Perfect(), CASES) == Plan()
    assert everything({"perfect": Plan()}, CASES) == (CASES, {"perfect": frozenset()})


def test_a_plan_compiles_nothing_more_and_half_as_much_batch_norm_at_most(everyone):
    _, asked = everyone
    assert keys(asked) < keys(CASES)
    fewer, all_of_them = (keys(c for c in cases if c.norm == "batch") for cases in (asked, CASES))
    assert len(fewer) <= len(all_of_them) / 2
    assert len(set(asked)) == len(asked)


def test_every_kind_of_program_is_compiled(everyone):
    _, asked = everyone
    assert kinds(asked) == kinds(CASES)


def test_every_row_that_is_about_its_shape_is_asked(everyone):
    _, asked = everyone

    def rows(cases):
        plain = ((c, dataclasses.replace(c, operation="forward", check="")) for c in cases if c.family in ABOUT_SHAPE)
        return {(row, c.op.frozen, bool(c.op.composition) and not c.op.frozen) for c, row in plain}

    assert rows(asked) == rows(CASES)
    assert {(c.family, c.operation) for c in asked} == {(c.family, c.operation) for c in CASES}


def test_what_is_left_out_is_asked_in_another_shape_unless_the_shape_is_the_question(everyone):
    own, asked = everyone
    unshaped = {dataclasses.replace(case, shape=(1, 1)) for case in asked if case.norm == "batch"}
    lost = [case for case in own.left_out if dataclasses.replace(case, shape=(1, 1)) not in unshaped]
    assert {case.family for case in lost} <= ABOUT_SHAPE
    assert {case.family for case in own.left_out} > {"conditioning", "structure", "special", "state", "types"}
    for case in own.instead:
        assert case.family not in ABOUT_SHAPE and case.data != "integers" and case.repeat == 1 and case.count >= 4
        assert case not in CASES


def test_what_an_adapter_does_not_offer_stays():
    class Few(Perfect):
        operations = frozenset({"forward", "inference"})
        norms = frozenset({"batch"})

    own, _ = planned(Few())
    assert not any(out_of_scope(Few(), case) for case in (*own.left_out, *own.instead))
    assert any(out_of_scope(Few(), case) for case in CASES)


def test_each_adapter_is_asked_its_own():
    first, second, third = CASES[:3]
    plans = {"one": Plan((first,), (third,)), "other": Plan()}
    every, untold = everything(plans, [first, second])
    assert every == [first, second, third]
    assert untold == {"one": {first}, "other": {third}}


@pytest.mark.parametrize("mistake", [a.name for a in adapters.load("zoo") if a.family in ("state", "special", "types")])
def test_a_plan_finds_the_mistakes_that_the_tables_find(mistake):
    (adapter,) = adapters.load(mistake)
    cases = [case for case in CASES if case.family == adapter.family]
    assert any(f.verdict in FAILURES for f in run_cases([adapter], cases))
    _, asked = planned(adapter, cases)
    assert any(f.verdict in FAILURES for f in run_cases([adapter], asked))
