"""One process of the benchmarks: all cases with one number of threads.

`launch` starts it from the command line's process and yields its records as they come. The process binds itself to
its cores before it imports any library that counts them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refbn._formats import Array
    from validation.benchmarks.cases import Inputs
    from validation.benchmarks.timing import Contender

__all__ = ["RIVALS", "TOLERANCE", "launch", "main"]

RIVALS = ("PyTorch", "JAX", "copy")

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 1e-1, "float16": 2e-2}
"""Of the largest result: enough to see that the same function is computed; no statement about accuracy."""

_Record = dict[str, Any]

_PROGRAM = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job.pop("path")
from validation.benchmarks.worker import main
main(job)
"""


def launch(job: _Record) -> Iterator[_Record]:
    """Yield the records of a job, measured in a process of its own.

    Parameters
    ----------
    job : dict
        ``threads``, ``shapes``, ``dtypes``, ``passes``, ``rivals``, ``rounds`` and ``seed``.

    Yields
    ------
    dict
        First what the process found of libraries, then one record for each case and pass.

    Raises
    ------
    RuntimeError
        If the process fails; it has said why on the standard error stream.
    """
    threads = job["threads"]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    xla = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if threads == 1 else ""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM],
        env={**os.environ, **limits, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            with process.stdin as pipe:
                json.dump({**job, "path": sys.path}, pipe)
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"the benchmarks with {threads} threads ended with code {process.returncode}")


def main(job: _Record) -> None:
    """Measure, and write each record as a line to the standard output, which nobody else writes to from here on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as records:
        os.dup2(2, 1)
        for record in _records(job):
            print(json.dumps(record), file=records, flush=True)


def _records(job: _Record) -> Iterator[_Record]:
    from validation.benchmarks.cases import cases, draw  # not before the process is bound to its cores

    modules, found = _libraries(job["rivals"], job["threads"])
    yield found
    for case in cases(job["shapes"], job["dtypes"]):
        inputs = draw(case, job["seed"])
        for operation in job["passes"]:
            yield _record(operation, inputs, job, modules)
            gc.collect()
        if "JAX" in modules:
            modules["JAX"].forget()


def _libraries(rivals: list[str], threads: int) -> tuple[dict[str, ModuleType], _Record]:
    """Import those of the rivals that are installed, and say how many cores and threads there are for whom."""
    from validation.benchmarks import own

    modules: dict[str, ModuleType] = {}
    for rival in rivals:
        name = {"PyTorch": "torch", "JAX": "jax", "copy": "memory"}[rival]
        try:
            modules[rival] = importlib.import_module(f"validation.benchmarks.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("validation"):
                raise
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: _Record = {"threads": threads, "cores": cores, "refbn": own.describe(threads)}
    if "PyTorch" in modules:
        found["PyTorch"] = modules["PyTorch"].describe(threads)
    return modules, found


def _record(operation: str, inputs: Inputs, job: _Record, modules: dict[str, ModuleType]) -> _Record:
    from validation.benchmarks import own
    from validation.benchmarks.timing import measure

    skipped: dict[str, list[str]] = {}
    differences: dict[str, float] = {}
    with ExitStack() as stack:
        contenders = own.contenders(operation, inputs, job["threads"])
        expected = _results(contenders[0])
        makers: dict[str, Iterator[Callable[[], Contender]]] = {}
        if "PyTorch" in modules:
            makers["PyTorch"] = modules["PyTorch"].contenders(operation, inputs, stack)
        if "JAX" in modules:
            makers["JAX"] = modules["JAX"].contenders(operation, inputs)
        for library, ways in makers.items():
            for make in ways:
                try:
                    contender = make()
                    results = _results(contender)
                except Exception as error:  # no framework has every pass in every format
                    skipped.setdefault(library, []).append(type(error).__name__)
                    print(f"{library} left out: {error}", file=sys.stderr)
                    continue
                contenders.append(contender)
                differences[contender.name] = _difference(results, expected)
        if "copy" in modules:
            contenders += modules["copy"].contenders(inputs)
        timings = measure(contenders, rounds=job["rounds"], seed=job["seed"])
    libraries = {c.name: c.library for c in contenders}
    return {
        "threads": job["threads"],
        "pass": operation,
        "shape": list(inputs.case.shape),
        "layout": inputs.case.layout,
        "dtype": inputs.case.dtype,
        "timings": {
            name: {"library": libraries[name], **{key: _short(value) for key, value in asdict(timing).items()}}
            for name, timing in timings.items()
        },
        "differences": {name: _short(value) for name, value in differences.items()},
        "agree": all(value <= TOLERANCE[inputs.case.dtype] for value in differences.values()),
        "skipped": skipped,
    }


def _results(contender: Contender) -> dict[str, Array]:
    """Return results in binary64, tensors for a part of the batch."""
    with contender.around():
        results = contender.results(contender.work())
        return {name: (a[:2] if a.ndim > 1 else a).astype("float64") for name, a in results.items()}


def _difference(results: dict[str, Array], expected: dict[str, Array]) -> float:
    """Return by how much results differ at most, in parts of the largest; NaN if either is."""
    parts = [abs(a - expected[name]).max() / abs(expected[name]).max() for name, a in results.items()]
    return float(max(parts, key=lambda part: (part != part, part)))


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")
