import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.validation.studies import small_study
from validation import studies
from validation.studies.__main__ import main

SMALL = {"E1": small_study.STUDY, "E2": small_study.BROKEN}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(studies, "MODULES", {"E1": "small", "E2": "broken"})
    monkeypatch.setattr(studies, "load", SMALL.__getitem__)


def refused(arguments, capsys, match):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert match in capsys.readouterr().err


def test_it_lists_the_studies(capsys):
    assert main([]) == main(["list"]) == 0
    told = capsys.readouterr().out
    assert all(identity in told for identity in studies.MODULES)


def test_a_run_tells_and_writes(small, tmp_path, capsys):
    arguments = ["run", "e1", "--seeds", "3", "--output", str(tmp_path), "--date", "2020-01-02"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    for part in ("Numbers are normal. (Gauss 1809)", "confirmed: it is <so>", "normal deviate", "What one sees.", "±"):
        assert part in told
    written = json.loads((tmp_path / "2020-01-02-E1.json").read_text())
    assert (tmp_path / "2020-01-02-E1.png").read_bytes().startswith(b"\x89PNG")
    assert written["settings"] == {"seeds": [0, 1, 2], "quick": False, "data": None}
    finding = written["finding"]
    assert finding["verdict"] == "confirmed" and finding["numbers"][1]["mean"] == "inf"
    assert finding["details"]["values"] == finding["numbers"][0]["values"]
    assert {"refbn", "numpy", "python", "matplotlib"} <= written["versions"].keys()
    assert written["arithmetic"]["libraries"] and str(tmp_path) not in json.dumps(written)

    figure = (tmp_path / "2020-01-02-E1.png").read_bytes()
    assert main(arguments) == 0
    assert json.loads((tmp_path / "2020-01-02-E1.json").read_text())["finding"] == finding
    assert (tmp_path / "2020-01-02-E1.png").read_bytes() == figure


def test_quick_runs_have_names_and_seeds_of_their_own(small, tmp_path):
    assert main(["run", "E1", "--quick", "--output", str(tmp_path), "--date", "2020-01-02"]) == 0
    written = json.loads((tmp_path / "2020-01-02-E1-quick.json").read_text())
    assert written["settings"]["seeds"] == [0, 1] and written["settings"]["quick"]


def test_all_goes_on_past_one_that_fails(small, tmp_path, capfd):
    assert main(["all", "--processes", "1", "--output", str(tmp_path), "--date", "2020-01-02"]) == 1
    told = capfd.readouterr()
    assert "failed" in told.out and "ArithmeticError: no number came out" in told.out
    assert "confirmed" in told.out and "Traceback" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2020-01-02-E1.json", "2020-01-02-E1.png"]


def test_all_works_with_two_processes(tmp_path):
    """In processes of their own, where nothing can be replaced; so with a quick one that exists."""
    program = (
        "import sys; from validation import studies; from validation.studies.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    studies.MODULES = {'Z5': studies.MODULES['Z5']}\n"
        f"    sys.exit(main(['all', '--quick', '--seeds', '1', '--output', {str(tmp_path)!r}, '--date', 'D']))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, script], cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"D-Z5-quick.json", "D-Z5-quick.png"} <= {path.name for path in tmp_path.iterdir()}


def test_bad_settings_are_refused(small, tmp_path, capsys):
    refused(["run", "Q9"], capsys, "no study 'Q9'")
    refused(["run", "E1", "--seeds", "0"], capsys, "--seeds: 0, expected at least 1")
    refused(["all", "--processes", "0"], capsys, "--processes: 0, expected at least 1")
    refused(["run", "E1", "--data", str(tmp_path / "no")], capsys, "not a folder")
    refused(["run", "E1", "--data", str(tmp_path)], capsys, "has neither train-images-idx3-ubyte")
    file = tmp_path / "file"
    file.touch()
    refused(["run", "E1", "--output", str(file)], capsys, "is not a folder")
    refused(["report", "--output", str(tmp_path)], capsys, "no results")


def test_a_missing_extra_is_named(small, monkeypatch, capsys):
    def load(identity):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(studies, "load", load)
    refused(["run", "E1"], capsys, "sklearn is missing: pip install 'refbn[studies]'")
    monkeypatch.setattr(studies, "load", lambda identity: __import__("no_such_module"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["run", "E1"])


def test_the_report_shows_the_newest(small, tmp_path, monkeypatch, capsys):
    for date in ("2020-01-02", "2020-01-03"):
        assert main(["run", "E1", "--seeds", "2", "--output", str(tmp_path), "--date", date]) == 0
    assert main(["report", "--output", str(tmp_path), "--date", "2020-01-04"]) == 0
    text = (tmp_path / "2020-01-04-studies.html").read_text()
    assert "2020-01-03: 2 seeds" in text and "2020-01-02" not in text
