"""The command: every room's subcommands, under one name."""

import subprocess
import sys
from importlib import metadata

from refbn import cli


def test_subcommands(capsys):
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert "audit" in told and "vectors" in told


def test_without_a_subcommand_it_helps(capsys):
    assert cli.main([]) == 2
    assert "vectors" in capsys.readouterr().out


def test_the_audit_is_in_reach(capsys):
    assert cli.main(["audit", "--list", "--quick", "--family", "exact", "--dtype", "f64"]) == 0
    assert capsys.readouterr().out.startswith("exact:forward:f64:")


def test_it_is_the_installed_command():
    (entry,) = metadata.entry_points(group="console_scripts", name="refbn")
    assert entry.value == "refbn.cli:main"


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "refbn.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refbn ")
