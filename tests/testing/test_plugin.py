"""The plugin in projects of strangers: selection, ids, header, summary, and what it costs when it is not used."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

import refbn.testing.plugin  # noqa: F401  a run within this process restores modules, and NumPy loads but once

pytest_plugins = ["pytester"]

# Of an editable install of refbn, see pyproject.toml; pytester's projects have an ini file of their own.
OPTIONS = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")

RIGHT = """
import numpy as np

def forward(x, gamma, beta, eps):
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    d = x.astype(float) - x.mean(axes, dtype=float, keepdims=True)
    y = d / np.sqrt((d * d).mean(axes, keepdims=True) + eps) * gamma.reshape(shape) + beta.reshape(shape)
    return y.astype(x.dtype)
"""
ONE_PASS = """
import numpy as np

def forward(x, gamma, beta, eps):
    mean = x.mean(0)
    return (x - mean) / np.sqrt(np.maximum((x * x).mean(0) - mean * mean, 0) + np.float32(eps)) * gamma + beta
"""
TEST = """
from mine import forward
from refbn.testing import parametrize_with_cases

@parametrize_with_cases(forward{options})
def test_batch_norm(check): check()
"""


@pytest.fixture
def project(pytester):
    """Make a project of a stranger: a module ``mine`` and a test file with the kit's three lines."""

    def make(module=RIGHT, options="", ini=""):
        pytester.makepyfile(mine=module, test_mine=TEST.format(options=options))
        pytester.makeini(f"[pytest]\npythonpath = .\n{ini}")
        return lambda *arguments: pytester.runpytest_inprocess(*OPTIONS, *arguments)

    return make


def ids(result):
    return re.findall(r"test_batch_norm\[(.*)\]", result.stdout.str())


def test_each_case_is_a_test_named_after_it(project):
    result = project()("--collect-only", "-q", "--refbn-family", "shape", "--refbn-dtype", "f32")
    found = ids(result)
    assert "shape:forward:f32:2x3" in found and "shape:forward:f32:16x2:repeat=512" in found
    assert all(descriptor.startswith("shape:forward:f32:") for descriptor in found)


def test_depth_and_the_ini_file(project):
    run = project(ini="refbn_families = exact\nrefbn_dtypes = f32 f64\n")
    quick, full = (ids(run("--collect-only", "-q", *more)) for more in ((), ("--refbn-depth", "full")))
    assert len(full) > len(quick) > 0 and {d.split(":")[0] for d in full} == {"exact"}
    assert {d.split(":")[2] for d in full} == {"f32", "f64"}
    run = project(ini="refbn_families = exact\nrefbn_dtypes = f32 f64\nrefbn_depth = full\n")
    assert ids(run("--collect-only", "-q")) == full


def test_the_decorator_s_choices(project):
    run = project(options=", families=['exact'], depth='full'")
    found = ids(run("--collect-only", "-q"))
    assert {d.split(":")[0] for d in found} == {"exact"}
    assert len(ids(run("--collect-only", "-q", "--refbn-depth", "quick"))) < len(found)
    run("--refbn-family", "shape").assert_outcomes(skipped=1)  # pytest's answer to an empty list


def test_one_case_by_its_descriptor(project):
    run = project()
    result = run("-v", "--refbn-case", "shape:forward:f64:3x2:seed=77", "--refbn-case", "shape:vjp:f64:3x2")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["refbn: case shape:forward:f64:3x2:seed=77, shape:vjp:f64:3x2", "refbn: 2 cases of mine.forward (as told)"]
    )
    # The id of a test selects it as well.
    run("test_mine.py::test_batch_norm[shape:forward:f32:2x3]").assert_outcomes(passed=1)


def test_lossy_passes_and_is_told_unless_strict(project):
    run = project(ONE_PASS)
    case = ("--refbn-case", "conditioning:forward:f32:32x4:offset=100")
    result = run(*case)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*refbn: 0 of 1 cases failed*", "1 case passed as lossy: *--refbn-strict*"])
    result = run(*case, "--refbn-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["refbn: *; strict", "refbn: 1 case of mine.forward (as told, strict)", "*y is lossy*"])
    run = project(ONE_PASS, ini="refbn_strict = true")
    run(*case).assert_outcomes(failed=1)


def test_the_summary_groups_failures_and_repeats_one(project):
    run = project(RIGHT.replace("+ beta", "- beta"))
    result = run("--refbn-family", "shape", "--refbn-family", "layout", "--refbn-dtype", "f32")
    outcomes = result.parseoutcomes()
    total = outcomes["failed"] + outcomes.get("passed", 0)
    lines = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if f"refbn: {outcomes['failed']} of {total} cases failed" in line)
    # Where m = 1, y is beta itself, and not a number too few.
    assert lines[start + 1].startswith("wrong     forward y: ")
    assert "got - exact is one number in each channel (" in lines[start + 2]
    assert lines[start + 3].endswith("smallest shape:forward:f32:1x3")
    command = next(line for line in lines if line.startswith("repeat one: pytest "))
    words = command.removeprefix("repeat one: pytest ").split()
    assert words == ["test_mine.py::test_batch_norm", "--refbn-case", "shape:forward:f32:1x3"]
    repeated = run(*words)
    repeated.assert_outcomes(failed=1)


def test_the_summary_comes_from_other_processes_too(project, pytester):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    run = project(RIGHT.replace("+ beta", "- beta"))
    result = run("-n2", "--refbn-family", "shape", "--refbn-dtype", "f32", "--junitxml=report.xml")
    result.stdout.fnmatch_lines(["*refbn: * of * cases failed*", "wrong*forward y: *", "repeat one: pytest *"])
    xml = (pytester.path / "report.xml").read_text()
    assert "shape:forward:f32:2x3" in xml and "&quot;verdict&quot;: &quot;wrong&quot;" in xml


@pytest.mark.parametrize(
    ("arguments", "ini", "message"),
    [
        (("--refbn-family", "shapes"), "", "--refbn-family: 'shapes', expected one of composition"),
        (("--refbn-operation", "backward"), "", "--refbn-operation: 'backward', expected one of"),
        (("--refbn-dtype", "f8"), "", "--refbn-dtype: 'f8'"),
        (("--refbn-case", "nonsense"), "", "--refbn-case: case: 'nonsense'"),
        ((), "refbn_depth = deep", "refbn_depth: 'deep', expected quick or full"),
        (("--refbn-depth", "deep"), "", "invalid choice: 'deep'"),
    ],
)
def test_bad_choices_are_told(project, arguments, ini, message):
    result = project(ini=ini)(*arguments)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert message in result.stdout.str() + result.stderr.str()


def test_a_test_without_the_argument_is_told(pytester):
    pytester.makepyfile(mine=RIGHT, test_mine=TEST.format(options="").replace("(check): check()", "(): pass"))
    pytester.makeini("[pytest]\npythonpath = .\n")
    result = pytester.runpytest_inprocess(*OPTIONS)
    assert "parametrize_with_cases needs a test with the argument check" in result.stdout.str()


def test_other_tests_see_nothing_of_it(pytester):
    pytester.makepyfile(test_other="def test_nothing(): pass")
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=1)
    assert not [line for line in result.stdout.lines if "refbn" in line and not line.startswith("plugins:")]


def test_unused_it_imports_nothing(tmp_path):
    """Neither refbn nor NumPy is loaded by a pytest that has the plugin and does not use it."""
    (tmp_path / "test_other.py").write_text("def test_nothing(): pass")
    program = (
        "import json, sys, pytest\n"
        "status = pytest.main(['-q', '-p', 'no:cacheprovider'])\n"
        "print(json.dumps([status, sorted(sys.modules)]))"
    )
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "_refbn_pytest"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=alone
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert "_refbn_pytest" in modules
    assert not [name for name in modules if name == "refbn" or name.startswith(("refbn.", "numpy"))]


def test_it_is_an_entry_point():
    (entry,) = metadata.entry_points(group="pytest11", name="refbn")
    assert entry.value == "_refbn_pytest"
