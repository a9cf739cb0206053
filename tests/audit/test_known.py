import pytest

from refbn import RefbnError
from refbn.audit import known
from refbn.audit.known import Deviation
from refbn.audit.runner import Finding

WHOLE = """
[[deviation]]
framework = "torch*"
version = ">=2.13,<2.14"
operation = "rev_*"
family = "composition"
output = "dx"
explanation = "constant-*"
case = "*:f64:*"
reason = "reported"
thread = "https://example.org/1"
"""


def finding(verdict="wrong", version="2.13.0+cpu", explanation="constant-statistics-in-jvp, to 15 digits", **fields):
    told = {
        "framework": "torch",
        "operation": "rev_fwd",
        "family": "composition",
        "output": "dx",
        "case": "composition:rev_fwd:f64:6x2",
    } | fields
    return Finding(
        version=version, composition="", dtype="float64", check="", verdict=verdict, max_ulp=None, max_scaled_ulp=None,
        bound_ratio=None, worst=None, note="", explanation=explanation, **told,
    )  # fmt: skip


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(WHOLE, encoding="utf-8")
    (deviation,) = known.read(path)
    return deviation


def test_nothing_is_shipped_as_accepted():
    assert known.shipped() == ()


def test_an_entry_is_read_whole(entry):
    assert entry == Deviation(
        "torch*",
        "reported",
        ">=2.13,<2.14",
        "rev_*",
        "composition",
        "dx",
        "constant-*",
        "*:f64:*",
        "https://example.org/1",
    )
    assert "framework 'torch*'" in str(entry) and "thread" in str(entry)


def test_what_it_describes_is_marked_and_nothing_else(entry):
    (marked,) = known.mark([finding()], [entry])
    assert marked.known and marked.thread == "https://example.org/1" and marked.verdict == "wrong"
    others = [
        finding("accurate"),
        finding(version="2.14.0"),
        finding(explanation=""),
        finding(output="dgamma"),
        finding(operation="fwd_fwd"),
        finding(framework="keras-torch"),
        finding(family="shape"),
        finding(case="composition:rev_fwd:f32:6x2"),
        finding(version="of my own"),
    ]
    assert not any(f.known for f in known.mark(others, [entry]))
    everything = Deviation("torch", "always")
    assert [f.known for f in known.mark(others, [everything])] == [
        f.verdict != "accurate" and f.framework == "torch" for f in others
    ]


def test_a_thread_that_is_known_stays(entry):
    import dataclasses

    own = dataclasses.replace(finding(), thread="https://example.org/own")
    assert known.mark([own], [entry])[0].thread == "https://example.org/own"


def test_what_no_longer_shows_is_reported_if_it_was_asked_for(entry):
    assert known.gone([finding()], [entry]) == []
    assert known.gone([finding("exact", explanation="")], [entry]) == [entry]
    assert known.gone([finding(explanation="another-mistake")], [entry]) == [entry]
    for not_asked in (finding("unsupported"), finding("exact", version="2.14.0"), finding("exact", operation="vjp")):
        assert known.gone([not_asked], [entry]) == []
    mended = finding("exact", explanation="")
    assert known.gone([mended], [entry], {mended.framework}) == []  # what it was not asked may still show it
    assert known.gone([mended], [entry], {"another"}) == [entry]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[deviation]\n", "no TOML"),
        ("colour = 1\n", "key 'colour', expected [[deviation]] alone"),
        ("deviation = 3\n", "deviation is no list of tables"),
        ("deviation = [3]\n", "deviation 1: 3, expected a table"),
        ("[[deviation]]\nframework = 'a'\n", "deviation 1: reason is missing or empty"),
        ("[[deviation]]\nreason = 'a'\n", "deviation 1: framework is missing or empty"),
        ("[[deviation]]\nframework = 'a'\nreason = ' '\n", "deviation 1: reason is missing or empty"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\n[[deviation]]\nframework = 3\n", "deviation 2: framework is 3"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\nverdicts = 'c'\n", "key 'verdicts', expected one of framework"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\noperation = 'backward'\n", "matches none of forward"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\nfamily = 'x*'\n", "matches none of composition"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\nversion = 'new'\n", "version is 'new', expected specifiers"),
        ("[[deviation]]\nframework = 'a'\nreason = 'b'\nthread = 'issue 3'\n", "expected an address"),
    ],
)
def test_a_bad_file_is_told_by_entry_and_field(tmp_path, text, words):
    path = tmp_path / "known.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RefbnError) as caught:
        known.read(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(RefbnError, match="cannot be read"):
        known.read(tmp_path / "none.toml")
