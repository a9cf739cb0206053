"""What the project says of itself is true: the README's commands, the extras, the packaged folders."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_opens_with_two_commands():
    blocks = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    install, test = blocks[:2]
    assert install.strip().endswith("refbn audit torch") and test.strip().endswith("pytest")
    for extra in re.findall(r"\[([a-z,]+)\]", install + test):
        assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"])


def test_ci_runs_the_readme_s_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extraction = next(line for line in script.splitlines() if line.startswith("command=$(sed"))
    shell = ["bash", "-c", f'{extraction}; printf %s "$command"']
    extracted = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert extracted == README.split("<!-- test command -->")[1].split("```")[1].strip()
    assert extracted.endswith("pytest")


def test_core_depends_on_numpy_alone():
    assert [re.split(r"\W", d)[0] for d in PROJECT["dependencies"]] == ["numpy"]
    assert "torch==2.13.0" in PROJECT["optional-dependencies"]["torch"]


def test_caches_are_left_out_of_every_packaged_folder():
    build = (ROOT / "meson.build").read_text(encoding="utf-8")
    excluded = set(re.findall(r"'([\w/]*__pycache__)'", build))
    folders = {p.parent.relative_to(ROOT / "refbn") for p in (ROOT / "refbn").rglob("*.py")}
    assert excluded == {(folder / "__pycache__").as_posix() for folder in folders}


def test_versions_agree():
    assert f"version: '{PROJECT['version']}'" in (ROOT / "meson.build").read_text(encoding="utf-8")
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
