import re
from html.parser import HTMLParser

import pytest

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.compare import VERDICTS
from refbn.audit.report.page import LETTERS, _number, page
from refbn.audit.runner import FAILURES
from tests.audit.report.runs import RUN, one, rich_run, run_of

VOID = {"meta", "link", "br"}
SELF_CLOSING = {"path", "circle"}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and keeps them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in SELF_CLOSING
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


PAGES = {
    "stand-ins": RUN,
    "every field": rich_run(),
    "one": run_of([one("exact")]),
    "nothing": run_of([]),
    "all verdicts": run_of([one(VERDICTS[i % len(VERDICTS)], op) for i, op in enumerate(OPERATIONS)]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_loads_nothing_and_runs_nothing(name):
    reader = Reader(page(PAGES[name]))
    assert not reader.all("script") and not reader.all("img") and not reader.all("iframe")
    assert all(link["href"] == "data:," for link in reader.all("link"))
    assert "@import" not in page(PAGES[name]) and "url(" not in page(PAGES[name])
    ids = [attributes["id"] for _, attributes in reader.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in reader.all("a")]
    assert all(target[1:] in ids for target in targets if target.startswith("#"))
    assert all(target.startswith(("#", "https://")) for target in targets)
    assert not any(key.startswith("on") for _, attributes in reader.found for key in attributes)
    assert {h["http-equiv"] for h in reader.all("meta") if "http-equiv" in h} == {"Content-Security-Policy"}


def test_the_matrix_has_a_letter_and_words_for_every_verdict():
    run = PAGES["all verdicts"]
    text = page(run)
    for finding in run.findings:
        told = f"{finding.operation}: {finding.verdict} in 1 of 1 cases"
        assert re.search(rf'class="v {finding.verdict}"[^>]*aria-label="{told}">{LETTERS[finding.verdict]}</a>', text)
    assert len(set(LETTERS.values())) == len(VERDICTS) == len(LETTERS)
    assert all(text.count(f'class="v {verdict}"') >= 2 for verdict in VERDICTS)  # and in the legend


def test_cells_lead_to_what_was_found():
    reader = Reader(page(rich_run()))
    cells = {a["title"].partition(":")[0]: a["href"] for a in reader.all("a") if a.get("class", "").startswith("v ")}
    articles = {a["id"] for a in reader.all("article")}
    assert cells["rev_fwd"][1:] in articles and cells["vjp"][1:] in articles
    assert cells["vjp_eval"] == "#f-frame"


def test_findings_tell_everything():
    text = page(rich_run())
    words = "".join(Reader(text).words)
    for part in (
        "one-pass-variance, to 7.1 of 7.2 digits",
        "conditioning:forward:f32:3x1:offset=4096",
        "example.org/threads/1491",
        "3.5·10⁶",
        "loose was not asked 2 of the ",
        "2 cases not asked",
        "conditioning:jvp:f32:32x4:offset=100",
        "not all of them asked of every framework",
        "10³⁰",
        "import numpy as np",
        "<script>alert(1)</script>",
        "bfloat16 is not asked",
        "tensorstream, <caffe>",
        "mended in 9",
        "Nothing fails.",
        "matches running_var with m: keras dialect",
        "quick audit of",
    ):
        assert part in words, part
    assert "1 of 3 frameworks returns something wrong" in words
    assert "known" in words and "<script" not in text


def test_known_deviations_do_not_count_as_wrong():
    words = "".join(Reader(page(run_of([one("wrong", known=True), one("exact", framework="b")]))).words)
    assert "0 of 2 frameworks return something wrong." in words


def test_of_many_frameworks_the_fewer_are_named():
    many = [one("wrong", framework=f"bad-{i}") for i in range(9)]
    told = "".join(Reader(page(run_of([*many, one("exact", framework="good")]))).words)
    assert "9 of 10 frameworks return something wrong, all but good. Every result" in told
    assert "9 of 9 frameworks return something wrong. Every result" in "".join(Reader(page(run_of(many))).words)


def test_one_framework_gets_one_sentence():
    for verdict, sentence in (
        ("exact", "is never worse than accurate"),
        ("lossy", "is never worse than lossy"),
        *((failure, "returns something wrong") for failure in FAILURES),
    ):
        assert f"frame 9 {sentence}." in "".join(Reader(page(run_of([one(verdict)]))).words)


def test_boxes_that_scroll_can_be_reached_with_the_keyboard():
    reader = Reader(page(rich_run()))
    boxes = [a for a in reader.all("div") if a.get("class") == "scroll"] + reader.all("pre")
    assert len(boxes) == 3 and all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.125, "0.125"), (1234.0, "1.23·10³"), (1e30, "1·10³⁰"), (2e-7, "2·10⁻⁷")],
)
def test_numbers_are_written_as_one_writes_them(value, text):
    assert _number(value) == text
