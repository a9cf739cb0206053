"""Strangers can run the vectors: the readers find a plain textbook right, and a broken one wrong."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refbn.testing.vectors import FILES
from validation import golden_vectors

PYTHON = Path(golden_vectors.__file__).with_name("vectors_reader.py")
C = Path(golden_vectors.__file__).with_name("vectors.c")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    found = golden_vectors.compile_reader(tmp_path_factory.mktemp("reader"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(params=["C", "Python"])
def reader(request):
    return [request.getfixturevalue("program")] if request.param == "C" else [sys.executable, PYTHON]


@pytest.mark.parametrize("name", FILES)
def test_a_plain_textbook_passes_but_where_squares_overflow(reader, name):
    wrong, last = golden_vectors.read(reader, name)
    assert wrong == (golden_vectors.READERS_MISS if name == "bn_float64.json" else set())
    assert re.fullmatch(r"3\d tests, \d results wrong", last)


# The same mistake in both languages, and a result that must be wrong then.
MISTAKES = {
    "m - 1": ("square / m :", "square / (m - 1) :", "for v in x) / m", "for v in x) / max(m - 1, 1)", "forward.var"),
    "gamma missing": ("= a[GAMMA][c] * r", "= r", "[gamma * invstd *", "[invstd *", "backward.dx"),
    "term missing": (
        " - (a[X][i] - mean) * r * (gx / m)",
        "",
        " - h * (dgamma / m)",
        "",
        "backward.dx",
    ),
    "eps outside": (
        "1 / sqrt(var + eps)",
        "1 / (sqrt(var) + eps)",
        "1 / math.sqrt(var + eps)",
        "1 / (math.sqrt(var) + eps)",
        "forward.y",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("language", ["C", "Python"])
def test_mistakes_are_found(language, mistake, tmp_path):
    c, broken_c, python, broken_python, result = MISTAKES[mistake]
    source, line, broken = (C, c, broken_c) if language == "C" else (PYTHON, python, broken_python)
    code = source.read_text(encoding="utf-8")
    assert code.count(line) == 1
    spoiled = tmp_path / source.name
    spoiled.write_text(code.replace(line, broken), encoding="utf-8")
    command = [sys.executable, spoiled]
    if language == "C":
        if shutil.which("cc") is None:
            pytest.skip("no C compiler")
        command = [tmp_path / "spoiled"]
        subprocess.run(["cc", "-std=c99", "-O1", spoiled, "-o", command[0], "-lm"], check=True)
    done = subprocess.run([*command, golden_vectors.FOLDER / "bn_float32.json"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{result} of composition:forward:f32:6x2" in done.stdout


def test_the_python_reader_needs_no_numpy():
    done = subprocess.run(
        [sys.executable, "-I", "-S", PYTHON, golden_vectors.FOLDER / "bn_bfloat16.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_file_of_vectors_is_no_pass(program, tmp_path):
    (tmp_path / "empty.json").write_text("{}\n")
    assert subprocess.run([program, tmp_path / "empty.json"], capture_output=True).returncode == 1
    assert subprocess.run([program, tmp_path / "absent.json"], capture_output=True).returncode == 1


@pytest.mark.parametrize(("source", "most"), [(C, 70), (PYTHON, 50)])
def test_readers_are_short(source, most):
    assert len(source.read_text(encoding="utf-8").splitlines()) <= most
