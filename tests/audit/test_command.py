import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from refbn import cli
from refbn.audit import adapters, command, jobs
from refbn.audit.cases import FAMILIES, parse
from refbn.audit.families import all_cases

ROOT = Path(__file__).parents[2]
STAND_INS = {
    "perfect": ("tests.audit.stand_ins:Perfect", ()),
    "one-pass": ("tests.audit.stand_ins:OnePass", ()),
    "biased": ("tests.audit.stand_ins:Biased", ()),
    "raising": ("tests.audit.stand_ins:Raising", ()),
    "missing": ("tests.audit.stand_ins:Missing", ()),
    "compiling": ("tests.audit.stand_ins:PerfectCompiling", ()),
}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    monkeypatch.setattr(adapters, "ADAPTERS", STAND_INS)
    monkeypatch.setattr(adapters, "BY_DEFAULT", ("perfect", "missing"))
    monkeypatch.setattr(jobs, "available", lambda: 1)  # another process would know nothing of this


def run(capsys, *arguments):
    status = cli.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *arguments):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and "Traceback" not in err
    return err


# ---- exit status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("framework", "case", "status"),
    [
        ("perfect", "shape:forward:f32:4x3", 0),
        ("one-pass", "conditioning:forward:f32:32x4:offset=100", 0),
        ("one-pass", "conditioning:forward:f32:32x4:offset=4096", 1),
        ("one-pass", "shape:vjp:f32:4x3", 0),
        ("biased", "state:running:f32:8x3x2:scale=3", 0),
        ("raising", "shape:forward:f32:4x3", 1),
    ],
)
def test_exit_status_follows_the_worst_verdict(capsys, framework, case, status):
    assert run(capsys, "audit", framework, "--case", case)[0] == status


def test_an_audit_prints_its_table(capsys):
    status, out, err = run(capsys, "audit", "perfect", "--quick", "--family", "exact")
    assert status == 0 and err == ""
    assert out.lstrip().startswith("perfect 1.0") and "forward" in out and "\x1b" not in out
    cases = len(all_cases("quick", ["exact"]))
    assert f"perfect: {cases} cases, {4 * cases} findings: {4 * cases} exact" in out


def test_a_quick_audit_of_a_framework_that_compiles_says_what_it_was_not_asked(capsys, tmp_path):
    chosen = ("--quick", "--family", "special", "--family", "structure", "--operation", "vjp", "--json")
    documents = {}
    for options in ((), ("--every-case",)):
        path = tmp_path / f"{len(options)}.json"
        status, out, _ = run(capsys, "audit", "perfect", "compiling", *options, *chosen, str(path))
        assert status == 0
        documents[options] = json.loads(path.read_text(encoding="utf-8"))
        assert ("compiling was not asked " in out) == (not options) and "perfect was not asked" not in out
    every = {f["case"] for f in documents["--every-case",]["findings"]}
    planned = documents[()]
    perfect, compiling = planned["frameworks"]
    assert perfect["not_asked"] == perfect["instead"] == [] and planned["cases"] == len(every)
    asked = {f["case"] for f in planned["findings"] if f["framework"] == "compiling"}
    assert asked == every - set(compiling["not_asked"]) | set(compiling["instead"]) != every
    assert {f["case"] for f in planned["findings"] if f["framework"] == "perfect"} == every
    assert {f["case"] for f in documents["--every-case",]["findings"] if f["framework"] == "compiling"} == every
    assert cli.main(("audit", "--from-json", str(tmp_path / "0.json"))) == 0
    assert "compiling was not asked " in capsys.readouterr().out


def test_without_a_name_all_that_are_installed_are_audited(capsys):
    status, out, _ = run(capsys, "audit", "--case", "shape:forward:f32:4x3")
    assert status == 0 and "perfect" in out and "missing" not in out
    _, out, _ = run(capsys, "audit", "--all", "--quick", "--family", "exact", "--operation", "forward")
    assert "perfect 1.0" in out and "not installed, so not audited: missing" in out


# ---- options -------------------------------------------------------------------------------------------------------


def test_list_prints_descriptors_that_case_takes(capsys):
    status, out, _ = run(
        capsys, "audit", "--list", "--quick", "--family", "layout", "--operation", "vjp", "--dtype", "f32"
    )
    lines = out.split()
    assert status == 0 and lines
    assert all(str(parse(line)) == line and line.startswith("layout:vjp:f32:") for line in lines)


def test_list_is_everything_in_order(capsys):
    for options, depth in (((), "full"), (("--quick",), "quick")):
        _, out, _ = run(capsys, "audit", "--list", *options)
        assert out.split() == [str(case) for case in all_cases(depth)]


def test_case_shows_inputs_truth_and_answer(capsys):
    case = "conditioning:forward:f32:32x4:offset=4096"
    _, out, _ = run(capsys, "audit", "one-pass", "--case", case)
    assert case in out and "m = 32" in out
    assert "x            float32 (32, 4)" in out and "gamma" in out and "dy" not in out
    assert "y: wrong" in out and "worst at (" in out and "expected" in out and "got" in out
    for name in ("max_ulp", "max_scaled_ulp", "bound_ratio"):
        assert name in out


@pytest.mark.parametrize(
    "case",
    [
        "state:train_eval_train:f32:8x3x5:check=momentum",
        "shape:vjp_eval:f32:0x3",
        "special:vjp:f32:5x3x2:special=nan@dy",
        "shape:vjp:f32:16x2:repeat=4",
        "composition:rev_rev_eval:bf16:4x3x5",
    ],
)
def test_case_shows_any_case(capsys, case):
    status, out, err = run(capsys, "audit", "perfect", "--case", case)
    assert status == 0 and case in out and err == "" and "nan …" not in out


def test_json_holds_every_finding(capsys, tmp_path):
    path = tmp_path / "audit.json"
    status, _, _ = run(capsys, "audit", "perfect", "--quick", "--family", "exact", "--json", str(path))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert status == 0 and document["depth"] == "quick"
    (framework,) = document["frameworks"]
    assert (framework["name"], framework["version"], framework["dialect"]) == ("perfect", "1.0", "torch")
    assert framework["python"] == platform.python_version() and framework["process"] == "this"
    assert document["missing"] == [] and document["scripts"] == {}
    assert {f["case"] for f in document["findings"]} == {str(c) for c in all_cases("quick", ["exact"])}


def test_json_is_written_when_something_is_wrong_too(capsys, tmp_path):
    path = tmp_path / "audit.json"
    case = "shape:forward:f32:4x3"
    assert run(capsys, "audit", "raising", "--case", case, "--json", str(path))[0] == 1
    assert [f["verdict"] for f in json.loads(path.read_text())["findings"]] == ["raises"]


FORMS = {"json": '"schema": "refbn-audit-1"', "junit": "<testsuites", "markdown": "# Audit", "html": "<!doctype html>"}


def test_every_form_is_written_and_can_be_made_again_from_json(capsys, tmp_path):
    chosen = ("audit", "one-pass", "raising", "--quick", "--family", "exact", "--dtype", "f32", "--no-diagnosis")
    files = [part for form in FORMS for part in (f"--{form}", str(tmp_path / form))]
    status, out, _ = run(capsys, *chosen, *files)
    assert status == 1 and "operations × frameworks" in out
    for form, start in FORMS.items():
        assert start in (tmp_path / form).read_text(encoding="utf-8")[:200]

    files = [part for form in FORMS for part in (f"--{form}", str(tmp_path / f"{form}-again"))]
    assert run(capsys, "audit", "--from-json", str(tmp_path / "json"), *files) == (status, out, "")
    for form in FORMS:
        assert (tmp_path / f"{form}-again").read_bytes() == (tmp_path / form).read_bytes()


def test_a_saved_run_is_rendered_as_it_is(capsys, tmp_path):
    path = tmp_path / "audit.json"
    run(capsys, "audit", "perfect", "--case", "shape:forward:f32:4x3", "--json", str(path))
    saved = ("audit", "--from-json", str(path))
    assert run(capsys, *saved)[0] == 0
    assert "without frameworks" in refused(capsys, *saved, "perfect")
    assert "without case" in refused(capsys, *saved, "--case", "shape:forward:f32:4x3")
    assert "without all" in refused(capsys, *saved, "--all")
    assert run(capsys, *saved, "--family", "shape", "--dtype", "f32")[0] == 0
    assert "no finding" in refused(capsys, *saved, "--family", "state")
    path.write_text("{}")
    assert f"{path}: $: 'schema' is a required property" in refused(capsys, *saved)
    path.unlink()
    assert f"{path}: No such file" in refused(capsys, *saved)


def test_known_deviations_do_not_fail(capsys, tmp_path):
    accepted = tmp_path / "known.toml"
    accepted.write_text('[[deviation]]\nframework = "raising"\nreason = "we know"\n')
    report = tmp_path / "audit.xml"
    case = ("audit", "raising", "--case", "shape:forward:f32:4x3", "--junit", str(report))
    assert run(capsys, *case)[0] == 1 and 'failures="1"' in report.read_text()
    assert run(capsys, *case, "--known", str(accepted))[0] == 0 and 'failures="0"' in report.read_text()


def test_the_zoo_gets_its_kill_table(capsys):
    status, out, _ = run(
        capsys, "audit", "zoo", "--quick", "--family", "composition", "--dtype", "f64", "--operation", "vjp"
    )
    assert status == 1 and "mistakes × families" in out
    assert "control: no case kills it" in out
    assert "zoo-dropped-xhat-term: 2 cases, first composition:vjp:f64:6x2" in out


def test_one_of_the_zoo_is_reproduced_by_its_name(capsys):
    status, out, _ = run(capsys, "audit", "zoo-dropped-xhat-term", "--case", "composition:vjp:f64:6x2")
    assert status == 1 and "dx: wrong" in out and "zoo-dropped-xhat-term" in out


def test_a_known_deviation_does_not_fail_the_run_and_one_that_is_gone_is_told(capsys, tmp_path):
    path, out = tmp_path / "known.toml", tmp_path / "audit.json"
    path.write_text('[[deviation]]\nframework = "raising"\noperation = "forward"\nreason = "so it is"\n')
    case = ("--case", "shape:forward:f32:4x3", "--known", str(path), "--json", str(out))
    assert run(capsys, "audit", "raising", *case)[0] == 0
    document = json.loads(out.read_text())
    assert [f["known"] for f in document["findings"]] == [True] and document["gone"] == []
    path.write_text(path.read_text().replace("raising", "perfect"))
    status, told, _ = run(capsys, "audit", "perfect", *case)
    assert status == 0 and "known deviation that no longer shows: framework 'perfect'" in told
    assert len(json.loads(out.read_text())["gone"]) == 1
    path.write_text("[[deviation]]\n")
    assert "deviation 1: framework is missing" in refused(capsys, "audit", "perfect", *case)


def test_reproduce_prints_a_script_alone(capsys):
    case = "composition:vjp:f64:6x2"
    status, out, err = run(capsys, "audit", "zoo-dropped-xhat-term", "--reproduce", case)
    assert status == 0 and err == "" and out.startswith("# zoo-dropped-xhat-term")
    compile(out, "script", "exec")
    assert "is no finding of perfect" in refused(capsys, "audit", "perfect", "--reproduce", "perfect/vjp/dx/000000")


def test_case_says_why(capsys, monkeypatch):
    monkeypatch.setitem(adapters.ADAPTERS, "someone", ("tests.audit.stand_ins:Someone", ()))
    case = ("--case", "composition:vjp:f64:6x2")
    _, out, _ = run(capsys, "audit", "someone", *case)
    assert "bessel-backward, to 1" in out and "smallest case composition:vjp:f64:" in out
    assert "refbn audit someone --reproduce someone/vjp/dx/" in out
    assert "bessel-backward" not in run(capsys, "audit", "someone", *case, "--no-diagnosis")[1]


# ---- bad use -------------------------------------------------------------------------------------------------------


def test_an_unknown_framework(capsys):
    err = refused(capsys, "audit", "tensorstream")
    assert "framework: 'tensorstream', expected one of perfect, one-pass" in err and "zoo-" in err


def test_a_framework_that_is_not_installed(capsys):
    assert "missing is not installed here" in refused(capsys, "audit", "missing")


def test_bad_use_of_interpreters(capsys):
    assert "exclude each other" in refused(capsys, "audit", "perfect", "--all")
    assert "no-such-python: No such file" in refused(capsys, "audit", "perfect", "--python", "no-such-python")
    for seconds in ("0", "-1", "nan", "inf", "soon"):
        assert "--timeout" in refused(capsys, "audit", "perfect", f"--timeout={seconds}")


def test_a_framework_in_another_process(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(STAND_INS, "stranger", ("tests.audit.strangers:Stranger", ()))
    case = ("--case", "shape:forward:f64:4x3")
    assert run(capsys, "audit", f"stranger@{sys.executable}", *case) == run(capsys, "audit", "stranger", *case)


@pytest.mark.parametrize("case", ["nonsense", "shape:forward:f32:0x0", "shape:forward:f32:2x3:eps=often"])
def test_a_bad_descriptor(capsys, case):
    assert case in refused(capsys, "audit", "perfect", "--case", case) or case.endswith("0x0")


@pytest.mark.parametrize(
    "option", [("--family", "families"), ("--operation", "backward"), ("--dtype", "f8"), ("--colour",)]
)
def test_a_bad_option(capsys, option):
    assert option[-1] in refused(capsys, "audit", *option)


def test_every_case_is_asked_of_a_quick_audit(capsys):
    assert "--quick alone" in refused(capsys, "audit", "perfect", "--every-case")


def test_an_empty_choice(capsys):
    err = refused(capsys, "audit", "perfect", "--family", "exact", "--operation", "rev_rev_rev")
    assert "no case has this combination" in err


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["no/such/folder/audit.json", "."])
def test_an_unwritable_file_is_refused_before_the_run(capsys, monkeypatch, tmp_path, path, form):
    monkeypatch.setattr("refbn.audit.runner.run_cases", lambda *_: pytest.fail("the run began"))
    err = refused(capsys, "audit", "perfect", f"--{form}", str(tmp_path / path))
    assert f"--{form} {tmp_path / path}" in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_the_check(tmp_path):
    path = tmp_path / "audit.json"
    path.write_text("before")
    command._check_files(argparse.Namespace(json=path, junit=None, markdown=None, html=None))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_missing_extra_says_what_to_install(capsys, monkeypatch):
    real = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("rich", "ml_dtypes") else real(name))
    assert "audit needs rich, ml_dtypes: pip install 'refbn[audit]'" in refused(capsys, "audit", "perfect")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "jinja2" else real(name))
    assert "audit needs jinja2" in refused(capsys, "audit", "perfect", "--html", "page.html")


def test_no_command_prints_help(capsys):
    status, out, _ = run(capsys)
    assert status == 2 and "audit" in out


def test_version_and_help(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0 and out.startswith("refbn ")
    status, out, _ = run(capsys, "audit", "--help")
    assert status == 0 and all(word in out for word in ("--json", "--case", "--list", "--quick", *FAMILIES))


# ---- as a program ----------------------------------------------------------------------------------------------------


def test_the_real_table_loads_and_names_are_unique(monkeypatch):
    monkeypatch.undo()
    names = adapters.names()
    assert len(set(names)) == len(names) and {"torch", "refbn", "zoo", "zoo-control"} <= set(names)
    for name in ("refbn", "refbn-reference", "refbn-exact"):
        (adapter,) = adapters.load(name)
        assert adapter.version() is None or adapter.version()


def test_it_runs_as_a_program():
    def program(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "refbn.cli", "audit", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )

    listed = program("--list", "--quick", "--family", "exact")
    assert listed.returncode == 0 and listed.stdout.split() == [str(c) for c in all_cases("quick", ["exact"])]
    bad = program("--case", "nonsense")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_a_progress_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    with command._progress() as progress:
        assert progress is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    with command._progress() as progress:
        progress("shape:forward:f32:2x3", 1, 2)
