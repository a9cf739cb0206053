"""Adapters for testing workers: they need NumPy alone, as a framework in another interpreter does."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import ClassVar

import numpy as np

from refbn._formats import FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.dialects import DIALECTS


class Stranger:
    """Batch norm in plain NumPy, and what it can say of its process."""

    name = "stranger"
    dialect = DIALECTS["keras"]
    operations = frozenset(OPERATIONS)
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = False
    environment: ClassVar = {}

    def __init__(self, *arguments):
        self.arguments = arguments
        self.threads = 0

    def version(self):
        return ".".join(("1", *self.arguments))

    def set_threads(self, count):
        if count > 2:
            raise Unsupported(f"no {count} threads")
        self.threads = count

    def reproduction(self, operation, inputs):
        return f"answer = {{}}  # {operation} of {inputs.x.shape}"

    def run(self, operation, inputs):
        axes = tuple(axis for axis in range(inputs.x.ndim) if axis != 1)
        column = (1, -1, *(1 for _ in inputs.x.shape[2:]))
        wide = inputs.x.astype(np.float64)
        mean = wide.mean(axes, keepdims=True)
        var = ((wide - mean) ** 2).mean(axes, keepdims=True)
        y = (wide - mean) / np.sqrt(var + inputs.eps) * inputs.gamma.reshape(column) + inputs.beta.reshape(column)
        return {"y": y.astype(inputs.x.dtype), "threads": np.array(self.threads), "process": np.array(os.getpid())}


class Eloquent(Stranger):
    """Says how it sees its inputs."""

    name = "eloquent"

    def run(self, operation, inputs):
        x = inputs.x
        batch = inputs.batches[-1]
        return {
            "x": x.copy(),
            "strides": np.array(x.strides),
            "place": np.array(x.ctypes.data % 64),
            "writeable": np.array(x.flags.writeable),
            "gamma": inputs.gamma.copy(),
            "batch": batch.copy(),
            "batch_strides": np.array(batch.strides),
            "numbers": np.array([inputs.eps, -1.0 if inputs.momentum is None else inputs.momentum]),
        }


class Rude(Stranger):
    """Does what its first argument says, in training alone."""

    name = "rude"

    def run(self, operation, inputs):
        if operation != "inference":
            getattr(self, self.arguments[0])(inputs)
        return super().run(operation, inputs)

    def crash(self, inputs):
        ctypes.string_at(0)

    def abort(self, inputs):
        print("Check failed: a framework's last words", file=sys.stderr, flush=True)
        os.abort()

    def leave(self, inputs):
        sys.exit("a framework that ends the process")

    def vanish(self, inputs):
        os._exit(3)

    def hang(self, inputs):
        time.sleep(600)

    def shout(self, inputs):
        os.write(1, b"noise\n" * 100_000)
        print("noise\n" * 100_000)
        print("noise\n" * 100_000, file=sys.stderr)
        assert sys.stdin.read() == ""

    def raising(self, inputs):
        inputs.x[:1] = 7
        raise ZeroDivisionError("a framework's own trouble\nin two lines")

    def refuse(self, inputs):
        raise Unsupported("not offered")

    def overwrite(self, inputs):
        inputs.dy[...] = 0
        ctypes.memset(inputs.beta.ctypes.data, 0, inputs.beta.itemsize)


class Odd(Stranger):
    """Answers with arrays of any kind."""

    name = "odd"

    def run(self, operation, inputs):
        if operation == "inference":
            return {"y": np.array([object()])}
        return {
            "transposed": np.arange(6.0).reshape(2, 3).T,
            "negative": np.arange(4, dtype=np.int8)[::-1],
            "scalar": np.float32(3),
            "empty": np.empty((0, 3), np.float16),
            "complex": np.array([1j]),
            "swapped": np.arange(3, dtype=">f4"),
            "nan": np.array([0x7FF0000000000001, 0xFFF8000000000002], np.uint64).view(np.float64),
        }


class Dependent(Stranger):
    """Needs a variable of its process."""

    name = "dependent"
    environment: ClassVar = {"REFBN_STRANGER": "yes"}

    def version(self):
        return "1"

    def run(self, operation, inputs):
        if os.environ.get("REFBN_STRANGER") != "yes":
            raise RuntimeError("the variable is not set")
        return super().run(operation, inputs)


class Absent(Stranger):
    name = "absent"

    def version(self):
        return None


class Elsewhere(Stranger):
    """Installed where a variable says so, and in that version."""

    name = "elsewhere"

    def version(self):
        return os.environ.get("REFBN_ELSEWHERE")
