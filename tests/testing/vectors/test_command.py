import importlib.util

import pytest

from refbn import cli
from refbn.testing.vectors import command, generate


def test_it_writes_and_prints_checksums(tmp_path, monkeypatch, capsys):
    written = []

    def write(folder):
        written.append(folder)
        return {"bn_float16.json": "abc"}

    monkeypatch.setattr(generate, "write", write)
    assert cli.main(["vectors", str(tmp_path / "v")]) == 0
    assert written == [tmp_path / "v"]
    assert capsys.readouterr().out == f"abc  {tmp_path / 'v' / 'bn_float16.json'}\n"


def test_a_folder_that_cannot_be_is_bad_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "document", lambda name: pytest.fail("computed before the folder was looked at"))
    (tmp_path / "file").write_text("")
    assert cli.main(["vectors", str(tmp_path / "file")]) == 2
    assert "File exists" in capsys.readouterr().err


def test_missing_packages_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["vectors", str(tmp_path)]) == 2
    assert "vectors needs jsonschema, ml_dtypes: pip install 'refbn[audit]'" in capsys.readouterr().err
    assert importlib.util.find_spec("jsonschema")
