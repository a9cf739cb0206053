"""The HTML page in headless Chromium, where it is installed."""

import dataclasses

import pytest

from refbn.audit.report.page import page
from tests.audit.report.runs import RUN, rich_run
from validation import report_in_browser as browser

pytestmark = pytest.mark.skipif(browser.find_browser() is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "audit.html"
    many = rich_run()
    long = dataclasses.replace(many.frameworks[0], name="frame")
    run = dataclasses.replace(
        many,
        frameworks=(long, *RUN.frameworks, *many.frameworks[1:]),
        findings=(*many.findings, *RUN.findings),
        scripts={many.findings[0].id: "x = [" + "1.0, " * 200 + "]\n"},
    )
    path.write_text(page(run), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", browser.SCHEMES)
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_nothing_sticks_out_is_faint_or_goes_wrong(report, width, scheme):
    seen = browser.inspect(report, width, scheme)
    assert (seen.width, seen.scroll_width, seen.scheme) == (width, width, scheme)
    assert seen.complaints == []


def test_the_inspection_finds_what_is_wrong(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><meta charset=utf-8><meta http-equiv=Content-Security-Policy content=\"script-src 'none'\">"
        '<p id="a" style="width: 500px">wide</p><p id="a" style="color: #aaa">faint</p><a href="#nowhere">link</a>'
        '<div id="box" style="overflow-x: auto"><pre>' + "long " * 99 + "</pre></div><script>1</script>"
    )
    seen = browser.inspect(path, 360)
    assert seen.scroll_width > 500 and "p#a" in seen.out
    assert seen.unreachable == ["div#box"]
    assert [line.split()[0] for line in seen.faint] == ["p#a"]
    assert seen.links == ["no target: #nowhere", "twice: a"]
    assert len(seen.console) >= 1 and "Content Security Policy" in seen.console[0]


def test_pictures_are_taken(report, tmp_path):
    picture = tmp_path / "page.png"
    browser.shoot(report, picture, 360, "dark", height=600)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_script_says_what_it_saw(report, capsys):
    assert browser.main([str(report)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{w} pixels, {s}: fine" for w in browser.WIDTHS for s in browser.SCHEMES
    ]
