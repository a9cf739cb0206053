import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from refbn import cli
from refbn.audit import adapters, groups, jobs
from refbn.audit.diagnosis import Diagnosis
from refbn.audit.families import all_cases
from refbn.audit.runner import run_cases
from tests.audit.stand_ins import Compiling

NAMES = ["zoo-one-pass-variance", "refbn-reference"]


def test_jobs_find_what_one_process_finds():
    cases = all_cases("quick", ["structure", "exact"])
    alone = [adapter for name in NAMES for adapter in adapters.load(name)]
    progress = []
    found = jobs.run_jobs(
        NAMES, [], 60.0, [a.name for a in alone], cases, 2, lambda *told: progress.append(told), seconds=0.0
    )
    assert found == run_cases(alone, cases, None, Diagnosis(0.0))
    assert any(finding.explanation for finding in found)
    done = [count for _, count, _ in progress]
    assert done == sorted(done) and done[-1] == len(cases) and {total for *_, total in progress} == {len(cases)}


def test_jobs_leave_out_what_one_process_leaves_out():
    cases = all_cases("quick", ["structure", "special"])
    alone = [adapter for name in NAMES for adapter in adapters.load(name)]
    plans = {NAMES[0]: groups.Plan(), NAMES[1]: groups.plan(Compiling(alone[1]), cases)}
    every, untold = groups.everything(plans, cases)
    found = jobs.run_jobs(NAMES, [], 60.0, [a.name for a in alone], every, 2, None, None, untold)
    assert found == run_cases(alone, every, not_asked=untold)
    assert {f.case for f in found if f.framework == NAMES[0]} == set(map(str, cases))
    asked = {f.case for f in found if f.framework == NAMES[1]}
    assert set(map(str, plans[NAMES[1]].instead)) < asked and not set(map(str, plans[NAMES[1]].left_out)) & asked


def test_without_seconds_there_is_no_diagnosis():
    cases = all_cases("quick", ["exact"])
    (adapter,) = adapters.load(NAMES[0])
    found = jobs.run_jobs(NAMES[:1], [], 60.0, [adapter.name], cases, 2)
    assert found == run_cases([adapter], cases) and not any(finding.explanation for finding in found)


def test_a_job_that_ends_is_told():
    with pytest.raises(jobs.JobError, match="--jobs 1"):
        jobs.run_jobs(["no-framework"], [], 60.0, ["no-framework"], all_cases("quick", ["exact"]), 2)


def test_the_command_line_shares_cases_out(capsys, monkeypatch, tmp_path):
    asked = []
    run_jobs = jobs.run_jobs
    monkeypatch.setattr(jobs, "run_jobs", lambda *given: asked.append(given[5]) or run_jobs(*given))
    chosen = ("audit", "zoo-dropped-xhat-term", "--quick", "--family", "composition", "--json")
    documents = []
    for count in "12":
        path = tmp_path / count
        assert cli.main((*chosen, str(path), "--jobs", count)) == 1
        documents.append(json.loads(path.read_text(encoding="utf-8")))
    assert asked == [2] and documents[0]["findings"] == documents[1]["findings"]
    assert cli.main((*chosen[:3], "--jobs", "0")) == 2
    assert "--jobs" in capsys.readouterr().err


def test_as_many_jobs_as_cores_but_not_too_many(monkeypatch):
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert jobs.available() == 3
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda _: set(range(300)), raising=False)
    assert jobs.available() == jobs.MOST


def test_jobs_end_with_the_audit():
    """Killed, it leaves no process behind: each holds its standard output, which ends only when all have ended."""
    code = (
        "from refbn.audit import jobs\n"
        "from refbn.audit.families import all_cases\n"
        "if __name__ == '__main__':\n"
        "    told = lambda *_: print('told', flush=True)\n"
        "    jobs.run_jobs(['refbn-exact'], [], 60.0, ['refbn-exact'], all_cases('full'), 2, told)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "audit.py"
        script.write_text(code)
        audit = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert audit.stdout.readline() == "told\n"
        audit.kill()
        audit.communicate(timeout=60)
