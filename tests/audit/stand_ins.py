"""Adapters for testing the audit itself: one that is always right, and ones that are wrong in one way."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from refbn._formats import FORMATS, format_of
from refbn.audit import truth
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.adapters.zoo import ZOO
from refbn.audit.cases import Case
from refbn.dialects import DIALECTS


def case_of(operation, inputs):
    """A case of the inputs' shape, formats and numbers; what else it says about data is not used."""
    x = inputs.batches[0] if operation in ("running", "train_eval_train") else inputs.x
    return Case(
        "shape",
        operation,
        format_of(x.dtype).short,
        x.shape,
        param=format_of(inputs.gamma.dtype).short,
        eps=inputs.eps,
        momentum=inputs.momentum,
        steps=len(inputs.batches) or 1,
        norm=inputs.norm,
    )


class Perfect:
    """The oracle's values, correctly rounded."""

    name = "perfect"
    dialect = DIALECTS["torch"]
    operations = frozenset(OPERATIONS)
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True
    norms = frozenset({"batch", "layer", "group", "instance"})
    environment: ClassVar = {}

    def version(self):
        return "1.0"

    def set_threads(self, count):
        self.threads = count

    def run(self, operation, inputs):
        case = case_of(operation, inputs)
        conventions = truth.Conventions.of(self.dialect, self.differentiates_statistics)
        return {
            name: expected.rounded(self.form(case, expected)).astype(self.form(case, expected).dtype)
            for name, expected in truth.expect_from(case, inputs, conventions).items()
        }

    @staticmethod
    def form(case, expected):
        return case.param_format if expected.is_vector else case.format


class Biased(Perfect):
    """Keeps the running variance with m, though it declares m − 1."""

    name = "biased"

    def run(self, operation, inputs):
        self.dialect = dataclasses.replace(DIALECTS["torch"], unbiased_running_var=False)
        answer = super().run(operation, inputs)
        self.dialect = DIALECTS["torch"]
        return answer


class Missing(Perfect):
    name = "missing"

    def version(self):
        return None


class Raising(Perfect):
    name = "raising"

    def run(self, operation, inputs):
        raise ZeroDivisionError("a framework's own trouble")


class Refusing(Perfect):
    """Refuses what has no answer, and some more that it declares."""

    name = "refusing"

    def run(self, operation, inputs):
        frozen = OPERATIONS[operation].frozen
        m = inputs.x.size // inputs.x.shape[1]
        if not frozen and m < 2:
            raise ValueError("needs two values")
        if inputs.eps == 0:
            raise ValueError("needs a positive eps")
        if operation == "rev_rev_rev":
            raise Unsupported("no third order")
        return super().run(operation, inputs)


class Restless(Perfect):
    """Overwrites dy, and gives other last bits on every call."""

    name = "restless"

    def __init__(self):
        self.calls = 0

    def run(self, operation, inputs):
        self.calls += 1
        answer = super().run(operation, inputs)
        inputs.dy[...] = 0
        if "y" in answer:
            answer["y"] = np.nextafter(answer["y"], np.inf if self.calls % 2 else -np.inf, dtype=answer["y"].dtype)
        return answer


class Threaded(Perfect):
    """Another function on two threads."""

    name = "threaded"

    def run(self, operation, inputs):
        answer = super().run(operation, inputs)
        if getattr(self, "threads", 1) == 2:
            answer["y"] = answer["y"] + np.ones((), answer["y"].dtype)
        return answer


class OnePass(Perfect):
    """E[x²] − E[x]², all in the data's own format."""

    name = "one-pass"
    operations = frozenset({"forward"})

    def run(self, operation, inputs):
        dtype = inputs.x.dtype.type
        axes = tuple(axis for axis in range(inputs.x.ndim) if axis != 1)
        column = (1, -1, *(1 for _ in inputs.x.shape[2:]))
        mean = inputs.x.mean(axes, dtype=dtype, keepdims=True)
        var = (inputs.x * inputs.x).mean(axes, dtype=dtype, keepdims=True) - mean * mean
        invstd = dtype(1) / np.sqrt(np.maximum(var, 0) + dtype(inputs.eps))
        y = (inputs.x - mean) * invstd * inputs.gamma.reshape(column) + inputs.beta.reshape(column)
        return {"y": y, "mean": mean.ravel(), "invstd": invstd.ravel()}


class Someone(ZOO["bessel-backward"]):
    """A framework with one of the zoo's mistakes, under a name of its own."""

    name = "someone"


class PerfectCompiling(Perfect):
    """Compiles for each shape."""

    name = "compiling"
    compiles = True


class Compiling:
    """Another adapter, which is said to compile for each shape."""

    compiles = True

    def __init__(self, adapter):
        self.adapter = adapter

    def __getattr__(self, name):
        return getattr(self.adapter, name)
