import re

from refbn.audit.compare import VERDICTS
from refbn.audit.report.markdown import MEANINGS, markdown
from tests.audit.report.runs import RUN, one, rich_run, run_of

TEXT = markdown(rich_run())


def tables(text):
    return re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)


def test_tables_are_whole():
    for text in (TEXT, markdown(RUN)):
        for table in tables(text):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_matrix_shows_every_verdict():
    matrix = tables(TEXT)[1]
    assert "| operation | frame | calm | loose |" in matrix
    assert "| forward | **wrong** | accurate | lossy |" in matrix
    assert "| rev | **raises** |  |  |" in matrix and "| rev\\_rev" not in matrix and "| rev_rev | – |" in matrix


def test_findings_tell_everything():
    assert "### wrong: `forward` y; `vjp` dx" in TEXT and "### wrong, known: `rev_fwd` dx" in TEXT
    assert "one-pass-variance, to 7.1 of 7.2 digits" in TEXT and "<https://example.org/threads/1491>" in TEXT
    assert "Smallest case that shows it: `conditioning:forward:f32:3x1:offset=4096`" in TEXT
    assert "2 cases (conditioning; float32), the worst: max_ulp 3.5e+06" in TEXT
    assert "````python\nimport numpy as np" in TEXT  # a longer fence, as the script holds one
    assert "Not installed, so not audited: tensorstream, " in TEXT and "bfloat16 is not asked" in TEXT
    assert "Known deviation that no longer shows: frame: rev dx, mended in 9" in TEXT
    assert "loose was not asked 2 of the " in TEXT and "<summary>2 cases that were not asked</summary>" in TEXT
    assert "* `conditioning:jvp:f32:32x4:offset=100`" in TEXT
    assert "* dialect, 1 case: matches running\\_var with m" in TEXT
    assert "Nothing is worse than accurate." in TEXT


def test_a_framework_s_words_are_no_markup():
    assert "<script>" not in TEXT.replace("print('<script>", "") and "\\<script\\>alert(1)" in TEXT
    assert "Nothing is worse" in markdown(run_of([one("exact")]))


def test_every_verdict_is_explained():
    assert tuple(MEANINGS) == VERDICTS
    assert all(f"* `{verdict}`: " in TEXT for verdict in VERDICTS)
