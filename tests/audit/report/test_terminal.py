import io
import re

import pytest
from rich.console import Console

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES
from refbn.audit.compare import VERDICTS
from refbn.audit.report import terminal
from refbn.audit.runner import kill_table
from tests.audit.report.runs import FINDINGS, HOSTILE, RUN, one, rich_run, run_of


def printed(run, width, **options):
    stream = io.StringIO()
    run = run_of(run) if isinstance(run, list) else run
    terminal.print_report(run, Console(file=stream, width=width, highlight=False, **options))
    return stream.getvalue()


FULL = [one(VERDICTS[i % len(VERDICTS)], op, f) for i, op in enumerate(OPERATIONS) for f in FAMILIES]


@pytest.mark.parametrize("width", [80, 124])
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
    [(80, {"WRONG", "NONF", "RAISE", "ok", "–"}), (124, {"WRONG", "NONFINITE", "RAISES", "accurate"})],
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
    text = printed(RUN, 100)
    assert "matches running_var with m: keras, flax, onnx, paddle, equinox dialects" in text
    assert "ZeroDivisionError: a framework's own trouble" in text
    assert "no vjp" in text


def test_the_kill_table_shows_families_first_cases_and_survivors():
    for width, word in ((80, "cond."), (124, "conditioning")):
        stream = io.StringIO()
        terminal.print_kill_table(kill_table(FINDINGS), Console(file=stream, width=width))
        text = stream.getvalue()
        assert word in text
        assert "one-pass: 1 case, first conditioning:forward:f32:32x4:offset=4096" in text
        assert "perfect: no case kills it" in text
        assert max(len(line) for line in text.splitlines() if "first" not in line) <= width


def test_explanations_smallest_cases_threads_and_known_ones_are_told():
    text = printed(rich_run(), 100)
    assert "one-pass-variance, to 7.1 of 7.2 digits" in text and "https://example.org/threads/1491" in text
    assert "smallest case that shows it: conditioning:forward:f32:3x1:offset=4096" in text
    assert re.search(r"rev_fwd dx  wrong, known  1 case", text)
    assert HOSTILE.split("\x00")[0].strip() in text
    assert "bfloat16 is not asked" in text
    assert "loose was not asked 2 of the " in text and "but 1 of them in another shape; --every-case" in text
    assert "not installed, so not audited: tensorstream, <caffe>" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_matrix_shows_all_frameworks_and_fits(width):
    names = [f"framework-{i}-with-a-long-name" for i in range(7)]
    text = printed([one(VERDICTS[i], framework=name) for i, name in enumerate(names)], width)
    lines = text[text.index("operations × frameworks") :].splitlines()
    assert max(len(line) for line in lines if not line.startswith("ok:")) <= width
    cells = [word for line in lines if line.startswith("forward") for word in line.split()[1:]]
    assert cells == ["exact", "ok", "dial.", "–", "lossy", "NONF", "RAISE"]
    assert "operations × frameworks" not in printed([one("exact")], width)


def test_the_matrix_marks_what_is_known():
    run = run_of([one("wrong", known=True), one("exact", framework="other")])
    assert re.search(r"forward +WRONG\* +exact", printed(run, 80)) and "known and accepted" in printed(run, 80)
    mixed = run_of([one("wrong", known=True), one("wrong", case="shape:forward:f32:3x3"), one("exact", framework="b")])
    assert re.search(r"forward +WRONG +exact", printed(mixed, 80))


def test_a_command_names_the_other_interpreter():
    run = rich_run()
    assert run.command(run.findings[0]).startswith("refbn audit frame --case ")
    calm, loose = run.findings[-2:]
    assert run.command(calm) == "refbn audit calm@PYTHON --case shape:forward:f32:2x3"
    assert run.command(loose) == "refbn audit loose --case shape:forward:f32:2x3"


def test_deviations_that_are_gone_are_told():
    stream = io.StringIO()
    terminal.print_gone(rich_run(), Console(file=stream, width=100))
    assert stream.getvalue() == "known deviation that no longer shows: frame: rev dx, mended in 9\n"
