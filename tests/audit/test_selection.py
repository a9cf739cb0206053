"""Where adapters run: in this process, in one of its own, or in another interpreter."""

import os
import sys
from pathlib import Path

import pytest

from refbn._errors import DomainError
from refbn.audit import adapters
from refbn.audit.cases import make_inputs, parse
from refbn.audit.remote.interpreter import InterpreterError, Remote
from refbn.audit.selection import NotInstalledError, choose

ROOT = Path(__file__).parents[2]
INPUTS = make_inputs(parse("shape:forward:f32:4x3x2"))
TABLE = {
    "stranger": ("tests.audit.strangers:Stranger", ()),
    "dependent": ("tests.audit.strangers:Dependent", ()),
    "absent": ("tests.audit.strangers:Absent", ()),
    "elsewhere": ("tests.audit.strangers:Elsewhere", ()),
    "refbn-native": ("tests.audit.strangers:Stranger", ("native",)),
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setattr(adapters, "ADAPTERS", TABLE)
    monkeypatch.setattr(adapters, "BY_DEFAULT", tuple(TABLE))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("REFBN_ELSEWHERE", raising=False)
    monkeypatch.delenv("REFBN_STRANGER", raising=False)


@pytest.fixture
def other(tmp_path):
    """Another interpreter, in which one more framework is installed."""

    def make(version, name="python"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nREFBN_ELSEWHERE={version} PYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


def where(adapter):
    return adapter.interpreter.python if isinstance(adapter, Remote) else "here"


def told(chosen):
    return {a.name: (a.version(), where(a)) for a in chosen.adapters}


def test_by_default_all_that_are_installed_here():
    with choose() as chosen:
        assert told(chosen) == {
            "stranger": ("1", "here"),
            "dependent": ("1", sys.executable),
            "stranger@1.native": ("1.native", "here"),
        }
        assert chosen.missing == ["absent", "elsewhere"]


def test_all_interpreters_are_asked_and_a_version_only_once(other):
    first, second = other("7", "first"), other("8", "second")
    with choose(pythons=[first, second, first]) as chosen:
        assert told(chosen) == {
            "stranger": ("1", "here"),
            "dependent": ("1", sys.executable),
            "elsewhere": ("7", first),
            "elsewhere@8": ("8", second),
            "stranger@1.native": ("1.native", "here"),
        }
        assert chosen.missing == ["absent"]
        processes = {int(a.run("forward", INPUTS)["process"]) for a in chosen.adapters}
        assert len(processes) == 4 and os.getpid() in processes


def test_a_name_takes_the_first_interpreter_that_has_it(other):
    first, second = other("", "first"), other("8", "second")
    with choose(["elsewhere", "stranger"], [first, second]) as chosen:
        assert told(chosen)["stranger"] == ("1", "here")
    first = other("7", "third")
    with choose(["elsewhere"], [first, second]) as chosen:
        assert told(chosen) == {"elsewhere": ("7", first)}


def test_a_name_can_be_tied_to_an_interpreter(other):
    python = other("7")
    with choose([f"stranger@{python}", f"elsewhere@{python}", "stranger"]) as chosen:
        assert told(chosen) == {
            "stranger": ("1", python),
            "elsewhere": ("7", python),
            "stranger@1": ("1", "here"),
        }


def test_the_variables_that_an_adapter_needs_decide(monkeypatch):
    with choose(["dependent"]) as chosen:
        (adapter,) = chosen.adapters
        assert where(adapter) == sys.executable and "y" in adapter.run("forward", INPUTS)
        assert "REFBN_STRANGER" not in os.environ
    monkeypatch.setenv("REFBN_STRANGER", "yes")
    with choose(["dependent"]) as chosen:
        assert where(chosen.adapters[0]) == "here"


def test_what_cannot_be_chosen(other, monkeypatch):
    python = other("7")
    with pytest.raises(DomainError, match="framework: 'tensorstream', expected one of stranger"):
        choose(["tensorstream"])
    with pytest.raises(NotInstalledError, match=r"^audit: absent is not installed here$"):
        choose(["absent"])
    with pytest.raises(NotInstalledError, match=f"absent is not installed here or in {python}"):
        choose(["absent"], [python])
    with pytest.raises(NotInstalledError, match=f"absent is not installed in {python}"):
        choose([f"absent@{python}"])
    with pytest.raises(NotInstalledError, match=f"refbn-native runs in this interpreter alone, not in {python}"):
        choose([f"refbn-native@{python}"])
    with pytest.raises(InterpreterError, match="no-such-python"):
        choose(["stranger"], ["no-such-python"])
    monkeypatch.setattr(adapters, "BY_DEFAULT", ("absent",))
    with pytest.raises(NotInstalledError, match="no framework is installed"):
        choose()


def test_an_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(TABLE, "torch", TABLE["absent"])
    monkeypatch.setitem(TABLE, "torch-module", TABLE["absent"])
    for name in ("torch", "torch-module"):
        with pytest.raises(NotInstalledError, match=rf"{name} is not installed here: pip install 'refbn\[torch\]'"):
            choose([name])
