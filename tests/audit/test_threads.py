import dataclasses
import re
from fnmatch import fnmatchcase

import pytest

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.adapters.zoo import ZOO
from refbn.audit.threads import THREADS, thread_of
from tests.audit.test_known import finding


@pytest.mark.parametrize("thread", THREADS, ids=lambda t: f"{t.address.rsplit('/', 1)[-1]}-{t.operation}")
def test_each_row_can_match_and_has_an_address(thread):
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+", thread.address)
    assert any(fnmatchcase(name, thread.operation) for name in OPERATIONS)
    assert thread.mistake == "*" or any(fnmatchcase(name, thread.mistake) for name in ZOO)


def test_threads_are_found_by_framework_operation_and_mistake():
    nested = finding(operation="fwd_fwd", output="value")
    assert thread_of(nested, "constant-statistics-in-jvp").endswith("pytorch/issues/196699")
    assert thread_of(nested, "dropped-xhat-term") == ""
    assert thread_of(dataclasses.replace(nested, framework="jax"), "constant-statistics-in-jvp") == ""
    assert thread_of(finding(operation="rev_rev_rev"), "").endswith("pytorch/issues/186256")
    layer = dataclasses.replace(nested, case="norms:fwd_fwd:f64:2x3:norm=layer")
    assert thread_of(layer, "constant-statistics-in-jvp").endswith("pytorch/issues/196700")
    instance, group = (
        dataclasses.replace(nested, case=f"norms:fwd_fwd:f64:2x4x3:norm={n}") for n in ("instance", "group2")
    )
    assert thread_of(instance, "constant-statistics-in-jvp").endswith("pytorch/issues/196699")
    assert thread_of(group, "constant-statistics-in-jvp") == ""
    assert thread_of(finding(framework="flax-nnx", operation="forward", output="y"), "one-pass-clipped").endswith(
        "1491"
    )
