import dataclasses

import numpy as np
import pytest

from refbn.audit import adapters
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES, Case, parse
from refbn.audit.families import all_cases
from refbn.audit.runner import FAILURES, Finding, kill_table, run, run_case, run_cases, select, summary
from tests.audit.stand_ins import Biased, OnePass, Perfect, Raising, Refusing, Restless, Threaded


def verdicts(adapter, text):
    return {finding.output: finding.verdict for finding in run_case(adapter, parse(text))}


# ---- the perfect adapter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracles_own_values_are_exact_everywhere(family):
    # The wide shapes and the repeated batches cost the oracle most and differ in nothing else.
    cases = [case for case in all_cases("quick", [family]) if case.repeat == 1 and max(case.shape) < 1000]
    findings = run_cases([Perfect()], cases)
    assert len({finding.case for finding in findings}) == len(cases)
    for finding in findings:
        assert finding.verdict == "exact", finding
        assert (finding.bound_ratio or 0) <= 1
    if family not in ("state", "layout"):
        assert all(finding.output for finding in findings)


def test_run_takes_families_depth_and_progress():
    seen = []
    findings = run(Perfect(), ["exact"], "quick", lambda case, done, total: seen.append((case, done, total)))
    assert {finding.family for finding in findings} == {"exact"}
    cases = all_cases("quick", ["exact"])
    assert seen == [*((str(case), i, len(cases)) for i, case in enumerate(cases)), ("", len(cases), len(cases))]


def test_a_finding_says_all_that_the_schema_asks():
    (finding,) = run_case(Perfect(), parse("composition:fwd_fwd:f64:6x2"))
    assert dataclasses.astuple(finding)[:10] == (
        "perfect",
        "1.0",
        "fwd_fwd",
        "fwd-fwd",
        "composition",
        "composition:fwd_fwd:f64:6x2",
        "float64",
        "",
        "value",
        "exact",
    )


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_exception_is_a_finding_with_its_message():
    (finding,) = run_case(Raising(), parse("shape:vjp:f32:4x3"))
    assert finding.verdict == "raises" and finding.output == ""
    assert finding.note == "ZeroDivisionError: a framework's own trouble"
    assert finding.max_ulp is finding.max_scaled_ulp is finding.bound_ratio is None


@pytest.mark.parametrize("text", ["shape:vjp:f32:1x3", "shape:forward:f32:0x3", "special:vjp:f32:6x3:eps=0"])
def test_an_exception_on_everything_is_no_convention(text):
    assert verdicts(Raising(), text) == {"": "raises"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shape:forward:f32:1x3", "refuses one value per channel, as the torch dialect does: needs two values"),
        ("shape:vjp:f64:1x3x1", "refuses one value per channel"),
        ("shape:jvp:f32:0x3", "refuses an empty batch, which has no mean"),
        ("shape:jvp:f32:2x3x0", "refuses an empty batch, which has no mean"),
        ("special:rev:f32:4x3:eps=0", "refuses ε = 0: needs a positive eps"),
    ],
)
def test_refusing_what_has_no_answer_is_a_dialect(text, words):
    (finding,) = run_case(Refusing(), parse(text))
    assert finding.verdict == "dialect" and words in finding.note


def test_refusing_one_value_is_no_dialect_of_a_framework_that_computes_it():
    adapter = Refusing()
    adapter.dialect = dataclasses.replace(adapter.dialect, name="keras", single_value="compute")
    assert verdicts(adapter, "shape:forward:f32:1x3") == {"": "raises"}


def test_what_is_not_offered_is_unsupported():
    refused = run_case(Refusing(), parse("composition:rev_rev_rev:f64:6x2"))
    assert [(f.verdict, f.note) for f in refused] == [("unsupported", "no third order")]
    assert verdicts(OnePass(), "composition:vjp:f64:6x2") == {"": "unsupported"}
    narrow = Perfect()
    narrow.dtypes = frozenset({"float32"})
    assert verdicts(narrow, "composition:vjp:f64:6x2") == {"": "unsupported"}
    assert verdicts(narrow, "types:vjp:f32:6x2:param=f64") == {"": "unsupported"}
    averaging = Perfect()
    averaging.dialect = dataclasses.replace(averaging.dialect, cumulative=False)
    assert verdicts(averaging, "state:running:f32:6x2:momentum=none") == {"": "unsupported"}


def test_an_adapter_may_leave_outputs_out():
    class MeanOnly(Perfect):
        def run(self, operation, inputs):
            return {"mean": super().run(operation, inputs)["mean"]}

    assert verdicts(MeanOnly(), "shape:forward:f32:4x3") == {"mean": "exact"}


def test_a_named_convention_is_a_dialect_and_is_named():
    findings = {f.output: f for f in run_case(Biased(), parse("state:running:f32:8x3x2:scale=3"))}
    assert findings["running_mean"].verdict == "exact"
    assert findings["running_var"].verdict == "dialect"
    assert findings["running_var"].note == "matches running_var with m: keras, flax, onnx, paddle, equinox dialects"
    assert findings["running_var"].bound_ratio > 1


def test_one_pass_variance_degrades_as_the_offset_grows():
    by_offset = {
        offset: verdicts(OnePass(), f"conditioning:forward:f32:32x4:offset={offset}")["y"] for offset in (0, 100, 4096)
    }
    assert by_offset == {0: "accurate", 100: "lossy", 4096: "wrong"}
    assert verdicts(OnePass(), "conditioning:forward:f32:4x2:data=ramp,scale=1e+19")["y"] == "nonfinite"


# ---- invariants ---------------------------------------------------------------------------------------------------


def test_the_same_call_twice():
    assert verdicts(Restless(), "state:forward:f32:8x3x5:check=idempotent")["y"] == "accurate"
    assert verdicts(Restless(), "state:forward:f32:8x3x5:check=idempotent")["mean"] == "exact"


def test_inputs_must_stay():
    (finding,) = run_case(Restless(), parse("state:vjp:f32:8x3x5:check=unmodified"))
    assert finding.verdict == "wrong" and finding.note == "modified its input dy"
    (finding,) = run_case(Perfect(), parse("state:running:f32:8x3x5:check=unmodified"))
    assert finding.verdict == "exact"


def test_thread_counts():
    found = {f.output: f for f in run_case(Threaded(), parse("state:forward:f32:8x3x5:check=threads"))}
    assert found["y"].verdict == "wrong" and found["y"].note == "1 and 2 threads: bits differ"
    assert found["mean"].verdict == "exact" and found["mean"].check == "threads"


def test_the_order_of_the_batch():
    class FirstCounts(Perfect):
        def run(self, operation, inputs):
            answer = super().run(operation, inputs)
            answer["y"][0] *= 2
            return answer

    text = "structure:forward:f32:33x3:check=permute"
    assert verdicts(FirstCounts(), text)["y"] == "wrong"
    assert verdicts(Perfect(), text)["y"] == "exact"


def test_the_order_of_the_batch_and_its_layout_must_not_reach_the_running_statistics():
    class OneCounts(Perfect):
        def run(self, operation, inputs):
            answer = super().run(operation, inputs)
            if operation == "running":
                answer["running_mean"] = answer["running_mean"] + inputs.batches[0].ravel(order="K")[1]
            return answer

    for text in ("structure:running:f32:33x3:check=permute", "layout:running:f32:4x3x5:layout=transposed,check=layout"):
        assert verdicts(Perfect(), text) == {"running_mean": "exact", "running_var": "exact"}
        assert verdicts(OneCounts(), text) == {"running_mean": "wrong", "running_var": "exact"}


def test_momentum_must_not_reach_training():
    class Leaking(Perfect):
        def run(self, operation, inputs):
            answer = super().run(operation, inputs)
            answer["y_train"] = answer["y_train"] + np.float32(inputs.momentum)
            return answer

    found = verdicts(Leaking(), "state:train_eval_train:f32:8x3x5:check=momentum")
    assert found == {"y_train": "wrong", "y_again": "exact"}


def test_layouts_are_compared_with_contiguous_memory():
    class Raw(Perfect):
        def run(self, operation, inputs):
            memory = inputs.x if inputs.x.base is None else inputs.x.base
            x = memory.ravel()[: inputs.x.size].reshape(inputs.x.shape)
            return super().run(operation, dataclasses.replace(inputs, x=x))

    assert verdicts(Raw(), "layout:forward:f32:4x3x5:layout=transposed,check=layout")["y"] == "wrong"
    assert verdicts(Raw(), "layout:forward:f32:4x3x5:layout=read-only,check=layout")["y"] == "exact"


def test_a_running_variance_must_stay_a_number_where_none_is_due():
    class Poisoned(Perfect):
        def run(self, operation, inputs):
            answer = super().run(operation, inputs)
            return answer | {"running_var": np.full_like(answer["running_var"], np.nan)}

    text = "state:running:f32:1x3"
    (mean, var) = run_case(Poisoned(), parse(text))
    assert mean.verdict == "exact" and var.verdict == "nonfinite" and "would stay" in var.note
    assert verdicts(Perfect(), text) == {"running_mean": "exact", "running_var": "exact"}


def test_the_latest_answer_is_handed_out():
    answer = {}
    run_case(Perfect(), parse("shape:forward:f32:4x3"), answer)
    assert set(answer) == {"y", "mean", "var", "invstd"} and answer["y"].shape == (4, 3)
    run_case(Perfect(), parse("layout:vjp:f32:4x3:layout=transposed,check=layout"), answer)
    assert set(answer) == {"dx", "dgamma", "dbeta"}


# ---- many findings ------------------------------------------------------------------------------------------------


def finding(framework, operation, family, verdict, case="c"):
    return Finding(framework, "1", operation, "", family, case, "float32", "", "y", verdict, None, None, None, None, "")


def test_the_summary_is_the_worst_of_each_cell():
    found = [
        finding("a", "forward", "shape", "exact"),
        finding("a", "forward", "shape", "lossy"),
        finding("a", "vjp", "shape", "unsupported"),
        finding("b", "forward", "shape", "wrong"),
    ]
    assert summary(found) == {
        ("a", "forward", "shape"): "lossy",
        ("a", "vjp", "shape"): "unsupported",
        ("b", "forward", "shape"): "wrong",
    }


def test_the_kill_table_knows_survivors():
    found = [
        finding("a", "forward", "shape", "wrong", "first"),
        finding("a", "vjp", "shape", "nonfinite", "second"),
        finding("a", "vjp", "composition", "raises", "third"),
        finding("b", "forward", "shape", "lossy"),
        finding("b", "forward", "state", "dialect"),
    ]
    table = kill_table(found)
    assert list(table["a"]) == ["composition", "shape"]
    kill = table["a"]["shape"]
    assert (kill.verdict, kill.cases, kill.first) == ("wrong", 2, "first")
    assert table["b"] == {}
    assert {"lossy", "dialect", "accurate"}.isdisjoint(FAILURES)


def test_select_narrows_by_family_operation_and_dtype():
    cases = select("quick", ["composition", "shape"], ["vjp", "rev"], ["float64"])
    assert cases and {case.operation for case in cases} == {"vjp", "rev"}
    assert {case.dtype for case in cases} == {"f64"} and {case.family for case in cases} == {"composition", "shape"}
    assert select("quick", ["composition"], None, ["f64"]) == select("quick", ["composition"], None, ["float64"])
    assert select("quick", ["exact"], ["rev_rev_rev"]) == []


# ---- the real thing -----------------------------------------------------------------------------------------------


def test_the_zoo_has_no_survivor_but_the_control():
    control, *mistakes = adapters.load("zoo")
    findings = run_cases([control], [case for case in all_cases("quick") if case.count * case.shape[1] < 1000])
    for family in FAMILIES:  # each mistake by the family that is meant to find it
        findings += run_cases([m for m in mistakes if m.family == family], all_cases("quick", [family]))
    long = "exact:forward:f32:16x1:data=integers,repeat=2097152"  # in the full audit alone
    findings += run_cases([m for m in mistakes if m.name == "zoo-serial-sums"], [parse(long)])
    table = kill_table(findings)
    assert len(table) == len(mistakes) + 1 and len(mistakes) > 9
    assert all(name.startswith("zoo-") for name in table)
    assert [name for name, row in table.items() if not row] == ["zoo-control"]


def test_the_audit_finds_what_is_wrong_with_torch_and_nothing_else_in_its_compositions():
    pytest.importorskip("torch")
    (torch,) = adapters.load("torch")
    if torch.version().partition("+")[0] != "2.13.0":
        pytest.skip("the version of record is 2.13.0")
    found = run_cases([torch], select("quick", ["composition"]))
    verdict = {operation: v for (_, operation, _), v in summary(found).items()}
    wrong = {operation for operation, v in verdict.items() if v in FAILURES}
    assert wrong == {"rev_fwd", "fwd_fwd", "rev_rev_rev", "fwd_fwd_fwd"}
    right = {operation for operation, v in verdict.items() if v in ("exact", "accurate")}
    assert right == {name for name, op in OPERATIONS.items() if op.composition} - wrong
    # Where it is wrong, it is wrong with respect to x alone.
    assert {f.output for f in found if f.verdict == "wrong"} == {"dx", "value"}


@pytest.mark.parametrize("name", ["refbn-reference", "refbn-exact"])
def test_refbns_own_backends_pass_their_own_audit(name):
    (own,) = adapters.load(name)
    findings = run_cases([own], select("quick", ["composition", "structure", "special", "exact", "state"]))
    for found in findings:
        assert found.verdict in ("exact", "accurate", "dialect", "unsupported"), found


def test_a_case_can_be_asked_of_several_adapters():
    found = run_cases([Perfect(), OnePass()], [Case("shape", "forward", "f32", (4, 3), offset=1e4)])
    assert [f.framework for f in found] == ["perfect"] * 4 + ["one-pass"] * 3
