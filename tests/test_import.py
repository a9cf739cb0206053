import json
import subprocess
import sys
from importlib import metadata

import refbn

PROBE = """
import sys, json
import numpy
before = set(sys.modules)
import refbn
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_brings_nothing_optional():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    roots = {name.split(".")[0] for name in json.loads(done.stdout)}
    third_party = {r for r in roots if r not in sys.stdlib_module_names and not r.startswith("_")}
    assert third_party <= {"refbn", "numpy"}
    brought = json.loads(done.stdout)
    assert not [name for name in brought if name.startswith(("refbn.audit", "refbn.testing", "refbn.exact"))]


def test_version_is_one():
    assert refbn.__version__ == metadata.version("refbn")


def test_public_names_exist_and_are_documented():
    for name in refbn.__all__:
        assert getattr(refbn, name).__doc__, name
