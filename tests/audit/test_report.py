import io
import json
import re

import jsonschema
import pytest
from rich.console import Console

from refbn.audit import report
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES, parse
from refbn.audit.compare import VERDICTS
from refbn.audit.runner import Finding, kill_table, run_cases
from tests.audit.stand_ins import Biased, OnePass, Perfect, Raising

CASES = [
    "composition:rev_rev_rev_eval:f64:6x2",
    "conditioning:forward:f32:32x4:offset=4096",
    "conditioning:forward:f32:32x4:offset=100",
    "shape:forward:f32:1x3",
    "shape:vjp:f32:0x3",
    "state:running:f32:8x3x2:scale=3",
    "state:train_eval_train:f32:8x3x2",
    "special:forward:f32:5x3x2:special=nan",
]
ADAPTERS = [Perfect(), OnePass(), Biased(), Raising()]
FINDINGS = run_cases(ADAPTERS, [parse(text) for text in CASES])


def printed(findings, width, **options):
    stream = io.StringIO()
    report.print_report(findings, Console(file=stream, width=width, highlight=False, **options))
    return stream.getvalue()


def one(verdict, operation="forward", family="shape", **fields):
    values = {
        "framework": "frame",
        "version": "9",
        "operation": operation,
        "composition": "",
        "family": family,
        "case": f"{family}:{operation}:f32:2x3",
        "dtype": "float32",
        "check": "",
        "output": "y",
        "verdict": verdict,
        "max_ulp": 1.5,
        "max_scaled_ulp": 0.5,
        "bound_ratio": 0.25,
        "worst": (0, 1),
        "note": "",
    }
    return Finding(**(values | fields))


FULL = [one(VERDICTS[i % len(VERDICTS)], op, f) for i, op in enumerate(OPERATIONS) for f in FAMILIES]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_is_whole(width):
    lines = printed(FULL, width).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("operation"))
    table = lines[start : start + 1 + len(OPERATIONS)]
    assert max(map(len, table)) <= width
    assert [line.split()[0] for line in table[1:]] == list(OPERATIONS)
    assert all(len(line.split()) == 1 + len(FAMILIES) for line in table)
    assert "…" not in "".join(table)


@pytest.mark.parametrize(
    ("width", "words"),
    [(80, {"WRONG", "NONF", "RAISE", "ok", "–"}), (120, {"WRONG", "NONFINITE", "RAISES", "accurate"})],
)
def test_failures_stand_out_without_colours(width, words):
    text = printed(FULL, width)
    assert "\x1b" not in text
    assert words <= set(text.split())


def test_colours_follow_the_verdict():
    text = printed([one("wrong")], 80, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;31m\s*WRONG", text)


def test_the_details_name_the_worst_case_and_its_numbers():
    found = [
        one("lossy", bound_ratio=3.0, case="shape:forward:f32:2x3"),
        one("lossy", bound_ratio=7.0, max_ulp=123.4, case="shape:forward:f32:9x3:seed=1", family="layout"),
        one("exact", bound_ratio=0.1, case="shape:forward:f32:7x3"),
        one("wrong", "vjp", output="dx"),
    ]
    text = printed(found, 80)
    assert "refbn audit frame --case shape:forward:f32:9x3:seed=1\n" in text
    assert "shape:forward:f32:2x3" not in text.replace("shape:vjp:f32:2x3", "") and "7x3" not in text
    assert "forward y  lossy  2 cases (shape, layout)" in text
    assert "max_ulp 123  max_scaled_ulp 0.5  bound_ratio 7" in text
    assert text.index("vjp dx  wrong  1 case (shape)") < text.index("forward y  lossy")
    assert "frame: 4 cases, 4 findings: 1 exact, 2 lossy, 1 wrong" in text


def test_a_descriptor_is_never_broken_over_lines():
    case = "conditioning:forward:f32:8x3x5x7:" + "data=skewed,offset=4096,scale=0.001,layout=channels-last,eps=0.001"
    assert f"--case {case}\n" in printed([one("wrong", case=case)], 60)


def test_dialects_and_refusals_are_told_with_their_reason():
    text = printed(FINDINGS, 100)
    assert "matches running_var with m: keras, flax, onnx, paddle dialects" in text
    assert "ZeroDivisionError: a framework's own trouble" in text
    assert "no vjp" in text


def test_the_kill_table_shows_families_first_cases_and_survivors():
    for width, word in ((80, "cond."), (120, "conditioning")):
        stream = io.StringIO()
        report.print_kill_table(kill_table(FINDINGS), Console(file=stream, width=width))
        text = stream.getvalue()
        assert word in text
        assert "one-pass: 1 case, first conditioning:forward:f32:32x4:offset=4096" in text
        assert "perfect: no case kills it" in text
        assert max(len(line) for line in text.splitlines() if "first" not in line) <= width


# ---- JSON ---------------------------------------------------------------------------------------------------------


def document():
    return report.as_json(FINDINGS, ADAPTERS, "quick", len(CASES), "0.1")


def test_the_schema_is_one_and_the_document_follows_it(tmp_path):
    jsonschema.Draft202012Validator.check_schema(report.schema())
    path = tmp_path / "audit.json"
    report.write_json(path, document())
    loaded = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(report.schema()).validate(loaded)
    assert len(loaded["findings"]) == len(FINDINGS)
    assert {f["framework"] for f in loaded["findings"]} == {a.name for a in ADAPTERS}
    first = loaded["findings"][0]
    required = ("framework", "version", "operation", "composition", "family", "case", "dtype", "verdict")
    assert set(required) | {"max_ulp", "max_scaled_ulp", "bound_ratio"} <= set(first)
    assert {(s["framework"], s["operation"], s["family"]): s["verdict"] for s in loaded["summary"]}[
        "one-pass", "forward", "conditioning"
    ] == "wrong"


def test_the_schema_and_the_code_have_the_same_words():
    definitions = report.schema()["$defs"]
    assert definitions["verdict"]["enum"] == list(VERDICTS)
    assert definitions["family"]["enum"] == list(FAMILIES)
    assert set(definitions["finding"]["required"]) == {*Finding.__dataclass_fields__, "id"}
    assert set(definitions["finding"]["properties"]) == {*Finding.__dataclass_fields__, "id"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["findings"][0].update(verdict="fine"),
        lambda d: d["findings"][0].update(max_ulp=-1.0),
        lambda d: d["findings"][0].update(colour="red"),
        lambda d: d["findings"][0].update(case="two words:x:f32:1"),
        lambda d: d.pop("date"),
    ],
)
def test_a_document_that_breaks_the_schema_is_not_written(tmp_path, spoil):
    path = tmp_path / "audit.json"
    path.write_text("before")
    spoiled = document()
    spoil(spoiled)
    with pytest.raises(jsonschema.ValidationError):
        report.write_json(path, spoiled)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "audit.json"
    path.write_text("before")

    def fail(*args, **kwargs):
        args[1].write("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.json, "dump", fail)
    with pytest.raises(OSError, match="No space"):
        report.write_json(path, document())
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
