import re

import pytest

from tests.validation.studies import small_study
from validation import report_in_browser as browser
from validation.studies import MODULES, report, style
from validation.studies.study import VERDICTS, Context


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three studies, of a verdict each."""
    with style.look():
        finding = small_study.run(Context("E1", seeds=(0, 1)))
        path = tmp_path_factory.mktemp("figures") / "figure.png"
        style.save(finding.figure, path)
    made = {}
    for identity, verdict in zip(("Z1", "B2", "U3"), VERDICTS, strict=True):
        document = {
            "date": "2020-01-02",
            "title": "A long title that has to wrap on the screen of a telephone",
            "claim": "Everything is < 1 & so on.",
            "source": "Gauss 1809",
            "settings": {"seeds": [0, 1], "quick": False, "data": None},
            "versions": {"python": "3", "refbn": "0"},
            "finding": finding.document() | {"verdict": verdict},
        }
        made[identity] = report.Result(identity, document, path.read_bytes())
    return made


def test_the_page_tells_everything(results):
    page = report.page(results, "2020-01-03")
    for verdict in VERDICTS:
        assert f"1 {verdict}" in page
    assert page.count("data:image/png;base64,") == 3
    assert page.count("Everything is &lt; 1 &amp; so on.") == 3 and "it is &lt;so&gt; &amp; so" in page
    assert page.count("What one sees.") == 3 and "± " in page and "inf" in page
    assert "Without results: Z2, Z3" in page
    assert f'width="{round(style.WIDTH * style.DPI)}"' in page


def test_the_page_loads_nothing(results):
    page = report.page(results, "2020-01-03")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) > 6 and all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in page and "url(" not in page


def test_every_study_has_a_place():
    letters = "".join(letters for letters, _ in report._PARTS.values())
    assert {identity[0] for identity in MODULES} == set(letters)


@pytest.mark.skipif(browser.find_browser() is None, reason="needs Chromium")
@pytest.mark.parametrize("width, scheme", list(zip(browser.WIDTHS, browser.SCHEMES, strict=True)))
def test_nothing_sticks_out_is_faint_or_goes_wrong(results, tmp_path, width, scheme):
    path = tmp_path / "studies.html"
    path.write_text(report.page(results, "2020-01-03"), encoding="utf-8")
    seen = browser.inspect(path, width, scheme)
    assert (seen.width, seen.scroll_width, seen.scheme) == (width, width, scheme)
    assert seen.complaints == []
