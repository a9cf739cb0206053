import json

import pytest

pytest.importorskip("rich")

from refbn._formats import BINARY32
from refbn.backends import _ladder
from validation import normalizations
from validation.normalizations import check, check_batch_norm, main


def test_a_wrong_rounding_is_found(monkeypatch):
    """The first rung believes itself too soon: its radius is nothing."""
    assert check("layer", BINARY32, (5, 4, 3), 2).lines == []
    rounded = _ladder.Rough.rounded
    monkeypatch.setattr(_ladder.Rough, "rounded", lambda values, length: rounded(values * (1 + 2.0**-26), length))
    found = check("layer", BINARY32, (5, 4, 3), 2)
    assert any("forward y" in line for line in found.lines)
    assert sum(found.different.values()) > 0
    assert check_batch_norm(BINARY32, (5, 4, 3), 2).lines != []


def test_the_result_has_the_counts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(normalizations, "SHAPES", ((2, 4, 3),))
    monkeypatch.setattr(normalizations, "FORMATS", (BINARY32,))
    monkeypatch.setattr(
        normalizations.report,
        "spread",
        lambda work, tasks, label: map(work, [t for t in tasks if t[0] in "batch layer"]),
    )
    monkeypatch.setattr("sys.argv", ["normalizations", "--seeds", "1", "--output", str(tmp_path)])
    assert main() == 0
    (result,) = map(json.loads, (path.read_text() for path in tmp_path.iterdir()))
    assert result["lines"] == [] and result["total"] == sum(o["compared"] for o in result["outputs"].values())
    assert result["outputs"]["layer: f32"] == {"compared": 6 * 24 + 3 * 2 + 5 * 12, "different": 0}
    assert "compared" in capsys.readouterr().out
