"""What the tests of the adapters built on `refbn.audit.adapters._nested` have in common."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from refbn.audit.adapters._protocol import OPERATIONS
from tests.audit.difference_quotients import allowance, deviation, draw, known

SHAPE = (4, 3, 5)
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]


def check_derivative(adapter, operation, shape=SHAPE):
    """Compare one operation in binary64 with difference quotients."""
    inputs = draw(shape)
    answer, expected = adapter.run(operation, inputs), known(operation, shape)
    assert set(answer) == set(expected)
    for output in answer:
        assert deviation(answer[output], expected[output]) <= allowance(inputs), output


def check_forward(adapter, statistics, shape=SHAPE):
    """Compare y and the statistics in binary64 with their definitions."""
    inputs = draw(shape)
    answer = adapter.run("forward", inputs)
    assert set(answer) == {"y", *statistics}
    column = (1, -1, *(1 for _ in shape[2:]))
    rows = np.moveaxis(inputs.x, 1, 0).reshape(shape[1], -1)
    mean, var = rows.mean(axis=1), rows.var(axis=1)
    y = (inputs.x - mean.reshape(column)) / np.sqrt(var + inputs.eps).reshape(column)
    y = y * inputs.gamma.reshape(column) + inputs.beta.reshape(column)
    for output, value in {"y": y, "mean": mean, "var": var}.items():
        if output in answer:
            assert deviation(answer[output], value) <= allowance(inputs), output


def check_formats(adapter, operation, dtype, param=None):
    """Ask one operation in one mixture of formats; no output may be narrower than the inputs' narrowest."""
    shape = (3, 2, 4)
    inputs = draw(shape, dtype, param, momentum=0.75)
    answer = adapter.run(operation, inputs)
    narrowest = min(inputs.x.dtype.itemsize, inputs.gamma.dtype.itemsize)
    assert answer and answer.keys() <= set(OPERATIONS[operation].outputs)
    for output, array in answer.items():
        whole = output in ("y", "y_dot", "value", "dx") or output.startswith("y_")
        assert array.shape == (shape if whole else (2,))
        assert array.dtype.itemsize >= narrowest
        assert np.isfinite(array.astype(np.float64)).all()


def check_script(adapter, operation, shape=SHAPE, **kwargs):
    """Run the script of an operation; it must leave what the adapter answers, but for the order of roundings."""
    inputs = draw(shape, momentum=0.75, **kwargs)
    expected = adapter.run(operation, inputs)
    script = adapter.reproduction(operation, inputs)
    assert "refbn" not in script
    assert max(map(len, script.splitlines())) <= 120
    names = {"np": np} | {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
    exec(script, names)
    assert set(names["answer"]) == set(expected)
    for output, value in expected.items():
        got = names["answer"][output]
        assert isinstance(got, np.ndarray) and got.dtype == value.dtype
        assert deviation(got, value.astype(np.float64)) <= allowance(inputs), output


def told_without_import(module, adapter, package):
    """Return the version that an adapter tells in a fresh interpreter, where the framework stays out."""
    code = (
        f"import sys; from refbn.audit.adapters import load; version = load({adapter!r})[0].version(); "
        f"assert {module!r} not in sys.modules and {package!r} not in sys.modules; print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()
