import ast
import json
from dataclasses import replace

import numpy as np
import pytest

from refbn import reference
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES, parse
from refbn.audit.families import all_cases
from refbn.audit.runner import FAILURES, run_case
from validation.mutants import judge, table, textbook
from validation.mutants.__main__ import main
from validation.mutants.adapter import Mutated
from validation.mutants.custom import POINTS, Frozen, Training
from validation.mutants.generate import mutants, original
from validation.mutants.operators import OPERATORS, RECIPES, Scope
from validation.mutants.work import LETTERS, audits, checked, checks, judged

BY_ID = {m.id: m for m in mutants()}
RESULT = json.loads(table.newest().read_text(encoding="utf-8"))

# A dozen: what the quick audit says, and the letters of the ten tools in their order.
SLICE = {
    "statistics.S3.one-pass-variance.1": ("nonfinite", "pppppppppp"),
    "statistics.S4.eps-as-floor.1": ("wrong", "cccccccccc"),
    "statistics.S5.eps-outside-root.1": ("wrong", "cccccccucc"),
    "columns.L2.eps-forgotten.1": ("nonfinite", "ccccccuucc"),
    "statistics.S3.unbiased-normalization.1": ("nonfinite", "uuuuuuuuuu"),
    "running_update.S8.corrected-twice.1": ("wrong", "----------"),
    "unbiased_var.S8.wrong-constant.2": ("dialect", "----------"),
    "taylor.T3.drop-root.1": ("wrong", "----------"),
    "inference.I1.eps-outside-root.1": ("wrong", "cccccccccc"),
    "hvp.H2.wrong-power.3": ("wrong", "---uuu-c-p"),
    "double_backward.D2.zero-output.2": ("wrong", "---uu--u--"),
    "statistics.S7.swap-outputs.3": ("wrong", "pppppppppp"),
}


# ---- the textbook, flat ------------------------------------------------------------------------------------------


def test_the_flat_textbook_is_the_textbook():
    for book in (textbook.build(), textbook.build(original("curvature"))):
        for where, (eps, values) in POINTS.items():
            for custom in (Training, Frozen):
                point = tuple(values[n] for n in custom.names)
                ours, theirs = custom(book, eps), custom(reference, eps)
                direction = tuple(0.5 + a[..., ::-1] for a in point)
                dy = np.cos(point[0])
                for method, arguments in (
                    ("value", ()),
                    ("velocity", (direction,)),
                    ("gradients", (dy,)),
                    ("moved_gradients", (dy, direction)),
                    ("bend", (direction, point)),
                ):
                    a, b = (np.hstack([*map(np.ravel, getattr(c, method)(point, *arguments))]) for c in (ours, theirs))
                    assert np.array_equal(a, b), (where, method)


def test_functions_are_seen_and_arrays_known():
    book = textbook.build()
    x = np.arange(6.0).reshape(2, 3)
    assert textbook.called(lambda: book.statistics(x, 1e-5)) == {"statistics", "center", "mean", "exponent"}
    assert textbook.called(lambda: None) == frozenset()
    assert {name for name, _ in textbook.shapes()} >= set(textbook.FUNCTIONS)


def test_bend_is_the_second_derivative_of_y():
    book = textbook.build()
    for custom in (Training(book, 0.5), Frozen(book, 0.5)):
        point = tuple(POINTS["chosen"][1][n] for n in custom.names)
        rng = np.random.default_rng(1)
        u, w = (tuple(rng.standard_normal(a.shape) for a in point) for _ in range(2))
        h = 1e-5

        def velocity(t, custom=custom, point=point, u=u, w=w):
            return custom.velocity(tuple(a + t * b for a, b in zip(point, w, strict=True)), u)

        assert np.allclose(custom.bend(point, u, w), (velocity(h) - velocity(-h)) / (2 * h), rtol=1e-7, atol=1e-7)


# ---- generation --------------------------------------------------------------------------------------------------


def test_mutants_are_many_different_and_always_the_same():
    assert len(BY_ID) == len(mutants()) > 1000
    assert len({(m.function, m.source) for m in mutants()}) == len(mutants())
    assert {m.function for m in mutants()} == set(textbook.FUNCTIONS)
    again = mutants.__wrapped__()
    assert again == mutants()
    for mutant in mutants():
        assert mutant.id.startswith(f"{mutant.function}.") and f".{mutant.operator}." in mutant.id
        assert ast.unparse(ast.parse(mutant.source)) != original(mutant.function)


def test_every_recipe_applies():
    made = {(m.operator, m.function) for m in mutants()}
    doubles = {("first-element-for-mean", "center")}  # dropping a term gives the same
    for recipe in RECIPES:
        assert {(recipe.operator, recipe.function)} <= made | doubles, recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", {"b", "a", "a - b"}),
        ("a - b", {"-b", "a", "a + b"}),
        ("-a", {"a"}),
        ("a * b", {"b", "a", "a * a * b", "b * b * a", "a / b"}),
        ("a / b", {"a", "a / b / b", "a * b"}),
        ("a ** b", {"a", "a ** -b"}),
        ("0.5", {"1.0", "0.25"}),
        ("1", {"2", "0"}),
        ("True", set()),
        ("np.sqrt(a)", {"a"}),
        ("mean(a)", {"total(a)", "total(a) / (m - 1)", "total(a) / (m + 1)", "np.mean(a)", "mean(a[:, :-1])"}),
        ("total(a)", {"mean(a)", "np.sum(a)", "total(a[:, :-1])"}),
        ("np.maximum(a, b)", {"np.minimum(a, b)", "a", "b"}),
        ("np.where(a, b, c)", {"b", "c"}),
        ("center(a)", {"(a, mean(a))"}),
        ("a if c else b", {"a", "b", "b if c else a"}),
        ("stats.var", {"stats.mean", "stats.invstd", "stats.kappa"}),
        ("u", {"g", "xhat"}),
        ("R(dx=a, dgamma=b, dbeta=c)", {"dx=-(a)", "dx=0", "dgamma and dbeta swapped", "dgamma=-(b)", "dgamma=0",
                                        "dbeta=-(c)", "dbeta=0"}),
    ],
)  # fmt: skip
def test_operators(text, expected):
    node = ast.parse(text, mode="eval").body
    scope = Scope({"g": (3, 5), "u": (3, 5), "xhat": (3, 5), "w": (3, 5), "r": (3, 1)})
    changes = [change for operator in OPERATORS.values() for change in operator(node, scope)]
    assert {change.after for change in changes} == expected
    for change in changes:
        ast.parse(change.code, mode="eval")


def test_a_dropped_term_keeps_the_shape():
    mutant = BY_ID["forward.F1.drop-term.1"]
    assert mutant.after == "column(beta)"
    x = np.arange(6.0).reshape(2, 3)
    y = textbook.build(mutant.source).forward(x, np.ones(2), np.array([1.0, 2.0]), 1e-5).y
    assert np.array_equal(y, [[1.0] * 3, [2.0] * 3])


# ---- the audit ---------------------------------------------------------------------------------------------------


def test_the_control_survives():
    for case in judge.cases("quick")[::9]:
        for finding in run_case(Mutated(None), case):
            assert finding.verdict not in FAILURES | {"lossy"}, finding


def test_reach_is_measured():
    reach = judge.reach()
    assert set(reach) == set(Mutated(None).operations)
    assert "taylor" in reach["fwd_fwd"] and "taylor" not in reach["fwd_rev"]
    assert "running_update" in reach["running"] and "curvature" not in reach["vjp"]


def test_cases_come_cheap_first_and_the_quick_ones_are_among_the_full():
    quick, full = judge.cases("quick"), judge.cases("full")
    assert set(quick) <= set(full) and len(quick) == len(set(quick)) == len(all_cases("quick"))
    assert np.prod(quick[0].shape) <= np.prod(quick[-1].shape)
    left_out = set(all_cases("full")) - set(full)
    assert {c.family for c in left_out} <= {"shape", "exact", "state"} and len(left_out) < 20


def test_the_dense_set_is_not_the_audits_own():
    dense = judge.dense()
    assert dense == judge.dense()
    assert {c.operation for c in dense} == set(OPERATIONS)
    known = {replace(c, family="composition") for c in all_cases("full")}
    assert not known & set(dense)
    assert all(parse(str(case)) == case for case in dense[::50])


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("exponent.L6.no-magnitude.1", "conditioning:forward:f64:16x3:offset=-10000000000,seed=1"),
        ("exponent.L6.wrong-extreme.1", "conditioning:forward:f64:7x3:data=integers,scale=1e+20"),
        ("statistics.S3.wrong-operand.1", "conditioning:forward:f64:16x3:scale=1e+160,seed=1"),
        ("taylor.S7.flip-sign.1", "conditioning:fwd_fwd:f64:8x3:scale=1e+120"),
    ],
)
def test_cases_that_mutants_have_brought_into_the_quick_audit(name, case):
    assert case in {str(c) for c in all_cases("quick")}
    outcome = judge.hunt([BY_ID[name]], [parse(case)])[name]
    assert outcome.verdict in FAILURES and outcome.case == case


def test_a_convention_is_named_and_a_crash_is_no_function():
    (row,) = judged([BY_ID["unbiased_var.S8.wrong-constant.2"]], ("quick",))
    assert row["quick"]["verdict"] == "dialect" and "with m" in row["quick"]["note"]
    (row,) = judged([BY_ID["mean.L2.mean-for-sum.1"]], ("quick",))
    assert "RecursionError" in row["crashes"] and "quick" not in row


def test_an_equivalent_mutant_is_asked_everywhere_and_found_nowhere():
    mutant = BY_ID["hvp.H2.drop-centering.1"]
    cases = [c for c in judge.cases("quick") if mutant.function in judge.reach().get(c.operation, ())][::6]
    outcome = judge.hunt([mutant], cases)[mutant.id]
    assert outcome.verdict == "" and outcome.asked == len(cases)


# ---- everything on a dozen ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sliced():
    pytest.importorskip("torch", reason="gradcheck is PyTorch's")
    pytest.importorskip("jax", reason="check_grads is JAX's")
    chosen = [BY_ID[name] for name in SLICE]
    return {row["id"]: row | other for row, other in zip(judged(chosen, ("quick",)), checked(chosen), strict=True)}


@pytest.mark.parametrize("name", SLICE)
def test_slice(sliced, name):
    verdict, letters = SLICE[name]
    assert sliced[name]["quick"].get("verdict", "") == verdict
    assert sliced[name]["tools"] == letters


def test_the_checks_run_the_mutated_function():
    pytest.importorskip("torch", reason="gradcheck is PyTorch's")
    pytest.importorskip("jax", reason="check_grads is JAX's")
    from validation.mutants.checks import reach

    assert {tool for (tool, kind), functions in reach().items() if "curvature" in functions} == {
        "gradgradcheck", "gradgradcheck fast", "gradgradcheck fwd-over-rev", "check_grads rev 2", "check_grads fwd 2",
    }  # fmt: skip
    assert not any("taylor" in functions for functions in reach().values())
    assert "inference_hvp" in reach()["gradgradcheck", 1] and "inference_hvp" not in reach()["gradcheck", 1]


# ---- the result and the page -------------------------------------------------------------------------------------


def test_the_result_is_of_these_mutants():
    """If this fails, formulas or operators have changed: run `python -m validation.mutants run` and `table`."""
    assert [row["id"] for row in RESULT["mutants"]] == [m.id for m in mutants()]
    assert set("".join(row.get("tools", "") for row in RESULT["mutants"])) <= set(LETTERS.values())
    assert len(table.Score(RESULT).checked) > 200


def test_both_audits_find_every_mutant_that_changes_a_result():
    score = table.Score(RESULT)
    assert len(score.different) > 1000
    assert [row["id"] for row in score.different if not table.found(row, "quick")] == []


def test_the_page_is_the_result():
    assert table.DOCS.read_text(encoding="utf-8") == table.render(RESULT)


def test_what_is_explained_is_so():
    rows = {row["id"]: row for row in RESULT["mutants"]}
    place = RESULT["tools"].index("gradgradcheck")
    for name, why in table.EXPLAINED.items():
        assert table.found(rows[name], "quick") in FAILURES, name
        assert rows[name]["tools"][place] in "pc-", name
        assert why.endswith(".")
    assert len(table.EXPLAINED) >= 8


def test_cases_of_the_result_are_the_audits():
    known = {str(case) for case in all_cases("quick")}
    for row in RESULT["mutants"]:
        case = row.get("quick", {}).get("case", "")
        assert not case or (case in known and case.partition(":")[0] in FAMILIES)


# ---- the commands ------------------------------------------------------------------------------------------------


def test_work_is_shared_out():
    chosen = [BY_ID[name] for name in ("mean.L2.drop-factor.1", "jvp.J5.drop-term.1", "inference.I1.drop-term.1")]
    parts = audits(chosen)
    assert [kind for kind, _ in parts] == ["audit"] * 3
    ((kind, names),) = checks(chosen, 1)
    assert kind == "checks" and sorted(name for _, part in parts for name in part) == sorted(names)
    some = [name for _, part in checks(mutants(), 4) for name in part]
    assert set(some) >= {m.id for m in mutants()[::4]} and "statistics.S3.one-pass-variance.1" in some


def test_show(capsys):
    assert main(["show", "curvature.K3.drop-term.2", "--no-checks"]) == 1
    printed = capsys.readouterr().out
    assert "xhat * mean(u * project_g)" in printed and "'verdict': 'wrong'" in printed
    assert main(["show", "no.such.mutant"]) == 2


def test_table(tmp_path):
    assert main(["table", "--docs", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == table.render(RESULT)


def test_a_survivor_is_reported(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="gradcheck is PyTorch's")
    pytest.importorskip("jax", reason="check_grads is JAX's")
    name = "exponent.L6.no-magnitude.1"
    case = "conditioning:forward:f64:16x3:offset=-10000000000,seed=1"
    monkeypatch.setattr(judge, "cases", lambda depth: [parse("shape:forward:f64:2x3")])
    monkeypatch.setattr(judge, "dense", lambda: [parse(case)])
    command = ["run", "--only", name, "--processes", "1", "--output", str(tmp_path), "--date", "2026-01-01"]
    assert main(command) == 1
    assert f"survives the full audit: {name}" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "2026-01-01-mutants.json").read_text(encoding="utf-8"))["mutants"]
    assert row["dense"]["case"] == case and "verdict" not in row["full"]
