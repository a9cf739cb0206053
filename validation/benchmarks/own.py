"""refbn's native backend, with results that it allocates ("refbn") and results in given arrays ("refbn out=")."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import refbn._native as _native

import refbn
from refbn._types import Array, Gradients, Saved
from validation.benchmarks.cases import Inputs
from validation.benchmarks.timing import Contender

__all__ = ["contenders", "describe"]

_FIELDS = {
    "forward": ("y", "mean", "var", "invstd"),
    "backward": ("dx", "dgamma", "dbeta"),
    "double_backward": ("ddy", "dx", "dgamma"),
}


def describe(threads: int) -> dict[str, Any]:
    """Return which build of the core computes, and in how many threads."""
    return {"build": _native.builds[0].name, "threads": threads if hasattr(refbn, "num_threads") else 1}


def contenders(operation: str, inputs: Inputs, threads: int) -> list[Contender]:
    """Return both ways to compute a pass."""
    around = _threads(threads)
    with around():
        saved = _forward(inputs, None).saved
        call = _calls(inputs, saved)[operation]
        results = _results(operation, call(None))
        kept = {name: np.empty_like(a) for name, a in results.items()}
    out: Any = kept["y_dot"] if operation == "jvp" else kept
    return [
        Contender("refbn", "refbn", lambda: call(None), lambda raw: _results(operation, raw), around),
        Contender("refbn out=", "refbn", lambda: call(out), lambda raw: _results(operation, raw), around),
    ]


def _calls(inputs: Inputs, saved: Saved) -> dict[str, Callable[[Any], Any]]:
    vectors = inputs.gamma_dot, inputs.beta_dot
    return {
        "forward": lambda out: _forward(inputs, out),
        "backward": lambda out: refbn.backward(saved, inputs.dy, out=out),
        "jvp": lambda out: refbn.jvp(saved, inputs.x_dot, *vectors, out=out),
        "double_backward": lambda out: refbn.double_backward(saved, inputs.dy, inputs.x_dot, *vectors, out=out),
    }


def _forward(inputs: Inputs, out: Mapping[str, Array] | None) -> refbn.Forward:
    return refbn.forward(inputs.x, inputs.gamma, inputs.beta, eps=inputs.eps, backend="native", out=out)


def _results(operation: str, raw: refbn.Forward | Gradients | refbn.DoubleBackward | Array) -> dict[str, Array]:
    if isinstance(raw, np.ndarray):
        return {"y_dot": raw}
    return {name: getattr(raw, name) for name in _FIELDS[operation]}


def _threads(count: int) -> Callable[[], AbstractContextManager[Any]]:
    if hasattr(refbn, "num_threads"):
        return lambda: refbn.num_threads(count)
    return contextlib.nullcontext
