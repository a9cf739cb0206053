"""What must not change a single bit: ``python -m validation.invariance``.

A correctly rounded result is a function of the numbers alone. So every pass must return the same bits whatever the
number of threads, the instruction set of the C core, the memory layout of each tensor, whether dy is broadcast or
written out, the order of the samples (results in the same order), and the backend. One run on the baseline, one
thread, contiguous arrays, is compared with runs that differ from it in one or two of these. The channels of a problem
are of all families of `validation.cases`, so different rungs of a backend's ladder meet within one call.

A NaN equals a NaN; all else must have the same bits. Where `refbn.num_threads` is missing, threads are left out.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import refbn
from refbn import backends
from refbn._formats import FORMATS, Format
from refbn._types import Array
from refbn.testing.strategies import LAYOUTS, in_layout
from validation import cases, report
from validation.cases import SCALARS, VECTORS
from validation.correct_rounding import differ

__all__ = ["BACKENDS", "LARGE", "SMALL", "Findings", "Problem", "check", "check_backends", "draw", "main", "outputs"]

THREADS = (1, 2, 3, 7)
BACKENDS = ("native", "numba", "exact")

LARGE = ((32, 8, 40, 40), (3, 2, 300, 300), (64, 512, 4, 4), (2, 3, 90_000))
"""Some with fewer channels than threads, some with many; all of 4·10⁵ elements or more."""
SMALL = ((5, 3, 2, 7), (7, 70, 3), (1, 4, 1), (33, 17), (2, 1, 65), (4, 20, 5, 5))
_CHANNELS_OF_ORACLE = 5
"""It takes too long to vary more of them; with other backends it is compared on all small shapes."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The inputs of all passes.

    Attributes
    ----------
    arrays : dict
        ``x``, ``dy``, ``x_dot`` of shape (N, C, …); the scalars of `validation.cases.Channel` of shape (C,).
    eps : float
        ε.
    """

    arrays: dict[str, Array]
    eps: float

    def changed(self, change: Callable[[str, Array], Array]) -> Problem:
        """Return the problem with other arrays in its tensors' places."""
        return replace(self, arrays=self.arrays | {key: change(key, self.arrays[key]) for key in VECTORS})


def draw(form: Format, shape: Sequence[int], seed: int) -> Problem:
    """Draw a problem whose channels are of all families in turn."""
    rng = np.random.default_rng((FORMATS.index(form), seed, *shape))
    m = int(np.prod(shape)) // shape[1]
    # "mixed" makes integers of thousands of bits, for minutes in long channels
    families = [key for key in cases.FAMILIES if m <= 1000 or key != "mixed"]
    order = [families[i] for i in rng.permutation(len(families))]
    channels = [cases.fill(rng, m, cases.FAMILIES[order[c % len(order)]][0], form)[1] for c in range(shape[1])]
    arrays = {key: np.stack([channel[key] for channel in channels]) for key in (*VECTORS, *SCALARS)}
    for key in VECTORS:
        by_channel = arrays[key].reshape(shape[1], shape[0], *shape[2:])
        arrays[key] = np.ascontiguousarray(np.moveaxis(by_channel, 0, 1))
    return Problem(arrays, float(rng.choice((0.0, 1e-5))))


def outputs(problem: Problem, backend: str) -> dict[str, Array]:
    """Return every output of every pass, through the public functions."""
    a = problem.arrays
    options: dict[str, Any] = {"eps": problem.eps, "backend": backend}
    found: dict[str, Array] = {}

    def keep(operation: str, result: Any) -> None:
        values = {"y_dot": result} if isinstance(result, np.ndarray) else vars(result)
        found.update({f"{operation} {key}": v for key, v in values.items() if isinstance(v, np.ndarray)})

    first = (a["x_dot"], a["gamma_dot"], a["beta_dot"])
    trained = refbn.forward(a["x"], a["gamma"], a["beta"], **options)
    frozen = refbn.inference(a["x"], a["mean"], a["var"], a["gamma"], a["beta"], **options)
    for operation, forward, more in (("", trained, ()), ("inference ", frozen, ("mean", "var"))):
        keep(f"{operation}forward", forward)
        keep(f"{operation}backward", refbn.backward(forward.saved, a["dy"]))
        along: dict[str, Any] = {f"{key}_dot": a[f"{key}_dot"] for key in more}
        keep(f"{operation}jvp", refbn.jvp(forward.saved, *first, **along))
        keep(f"{operation}hvp", refbn.hvp(forward.saved, a["dy"], *first, **along))
        cotangents: dict[str, Any] = {f"dd{key}": a[f"{key}_dot"] for key in more}
        keep(f"{operation}double_backward", refbn.double_backward(forward.saved, a["dy"], *first, **cotangents))
    if a["x"].size > a["gamma"].size:
        layer = refbn.BatchNorm(a["gamma"].size, eps=problem.eps, dtype=a["x"].dtype, backend=backend)
        layer.forward(a["x"])
        found |= {"running_update mean": layer.running_mean, "running_update var": layer.running_var}
    return found


@dataclass
class Findings:
    """Outputs compared, and those that differ, by (backend, what was varied); a line for each of the first."""

    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: Counter[tuple[str, str]] = field(default_factory=Counter)
    different: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.runs.update(other.runs)
        self.compared.update(other.compared)
        self.different.update(other.different)
        self.lines += other.lines[: 100 - len(self.lines)]
        return self

    def compare(self, key: tuple[str, str], got: dict[str, Array], expected: dict[str, Array], where: str) -> None:
        """Count what has other bits than expected."""
        self.runs[key] += 1
        for name, right in expected.items():
            wrong = differ(np.ascontiguousarray(got[name]), np.ascontiguousarray(right))
            self.compared[key] += right.size
            self.different[key] += int(wrong.sum())
            if wrong.any() and len(self.lines) < 100:
                at = tuple(map(int, np.argwhere(wrong)[0]))
                self.lines.append(
                    f"{where} {' '.join(key)}: {name}{list(at)} = {got[name][at]!r}, else {right[at]!r}; "
                    f"{int(wrong.sum())} of {right.size}"
                )


@contextlib.contextmanager
def _build(core: Any) -> Iterator[None]:
    """Run the native backend on another instruction set; None leaves it."""
    if core is None:
        yield
        return
    native: Any = backends.load("native")
    usual = native._core
    native._core = core
    try:
        yield
    finally:
        native._core = usual


def _builds(backend: str) -> list[Any]:
    """Return the builds of the core, the baseline first; [None] for other backends."""
    if backend != "native":
        return [None]
    import refbn._native as core

    return list(core.builds)[::-1]


def _permutation(shape: Sequence[int], rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what permutes the samples, and the positions within them."""
    orders = [np.arange(size) if axis == 1 else rng.permutation(size) for axis, size in enumerate(shape)]
    place = np.ix_(*orders)
    return lambda tensor: tensor[place]


def check(backend: str, form: Format, shape: Sequence[int], seed: int, counts: Sequence[int] = THREADS) -> Findings:
    """Vary everything for one backend and one problem."""
    found = Findings()
    problem = draw(form, shape, seed)
    rng = np.random.default_rng(seed)
    where = f"{form.short} {'x'.join(map(str, shape))} seed {seed}"
    builds = _builds(backend)
    has_threads = hasattr(refbn, "num_threads") and backend != "exact"
    counts = counts if has_threads else counts[:1]

    def compute(some: Problem, threads: int = 1, build: Any = builds[0]) -> dict[str, Array]:
        with report.threads(threads), _build(build):
            return outputs(some, backend)

    usual = compute(problem)

    def compare(what: str, got: dict[str, Array], detail: object, expected: dict[str, Array] = usual) -> None:
        found.compare((backend, what), got, expected, f"{where} ({detail})")

    # threads and builds, each with each
    for build in builds:
        for threads in counts:
            if threads == counts[0] and build is builds[0]:
                continue
            what = "build" if threads == counts[0] else "threads" if build is builds[0] else "threads and build"
            compare(what, compute(problem, threads, build), f"{threads} {getattr(build, 'name', '')}")

    # layouts: of all tensors alike, and of each tensor another one
    for turn, layout in enumerate(LAYOUTS):
        threads, build = counts[turn % len(counts)], builds[turn % len(builds)]
        alike = problem.changed(lambda key, array, layout=layout: in_layout(array, layout))
        compare("layout", compute(alike, threads, build), layout)
        own = {key: LAYOUTS[(turn + 1 + k) % len(LAYOUTS)] for k, key in enumerate(VECTORS)}
        each = problem.changed(lambda key, array, own=own: in_layout(array, own[key]))
        compare("layout", compute(each, threads, build), own)

    # dy broadcast or written out
    dy = problem.arrays["dy"]
    kept = (dy[:1], dy[:, :, :1] if dy.ndim > 2 else dy[:1], dy.reshape(-1)[:1].reshape((1,) * dy.ndim))
    for turn, part in enumerate(kept):
        threads, build = counts[-turn % len(counts)], builds[-turn % len(builds)]
        view = np.broadcast_to(part, dy.shape)
        broadcast, written = (
            problem.changed(lambda key, array, some=some: some if key == "dy" else array)
            for some in (view, np.ascontiguousarray(view))
        )
        compare("broadcast dy", compute(broadcast, threads, build), part.shape, compute(written))

    # the order of the samples
    for turn in range(2):
        permute = _permutation(shape, rng)
        threads, build = counts[(turn + 2) % len(counts)], builds[(turn + 1) % len(builds)]
        expected = {key: permute(v) if v.shape == tuple(shape) else v for key, v in usual.items()}
        shuffled = problem.changed(lambda key, array, permute=permute: permute(array))
        compare("order", compute(shuffled, threads, build), f"permutation {turn}", expected)
    return found


def check_backends(names: Sequence[str], form: Format, shape: Sequence[int], seed: int) -> Findings:
    """Compare backends with the first of them."""
    found = Findings()
    problem = draw(form, shape, seed)
    usual = outputs(problem, names[0])
    for name in names[1:]:
        where = f"{form.short} {'x'.join(map(str, shape))} seed {seed}"
        found.compare((name, f"as {names[0]}"), outputs(problem, name), usual, where)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, print a table, write the result; 1 if anything differs."""
    parser = report.parser(__doc__)
    here = [name for name in BACKENDS if name in backends.available()]
    parser.add_argument("--backend", nargs="+", default=here, help="whom to check")
    parser.add_argument("--seeds", type=int, default=2, help="problems of each small shape; large ones are drawn once")
    parser.add_argument("--small", action="store_true", help="leave the large shapes out")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    fast = [name for name in arguments.backend if name != "exact"]
    problems = [(shape, seed, arguments.backend) for shape in SMALL for seed in range(arguments.seeds)]
    if not arguments.small:  # which take the oracle minutes
        problems += [(shape, 0, fast) for shape in LARGE]
    found = Findings()
    for number, (shape, seed, names) in enumerate(problems, 1):
        for form in FORMATS:
            for name in names:
                if name != "exact" or shape[1] <= _CHANNELS_OF_ORACLE:
                    found += check(name, form, shape, seed)
            if len(names) > 1:
                found += check_backends(names, form, shape, seed)
        print(f"problems: {number} of {len(problems)}", flush=True)
    report.show(
        "The same bits whatever is varied",
        ("backend", "varied", "runs", "outputs compared", "different"),
        ((*key, runs, found.compared[key], found.different[key]) for key, runs in sorted(found.runs.items())),
    )
    for line in found.lines[:20]:
        print(line)
    report.write(
        "invariance",
        arguments,
        {
            "versions": report.versions(*(("numba",) if "numba" in arguments.backend else ())),
            "seconds": round(time.perf_counter() - start, 1),
            "shapes": {"small": SMALL, "large": () if arguments.small else LARGE},
            "seeds": arguments.seeds,
            "threads": THREADS if hasattr(refbn, "num_threads") else None,
            "builds": [build.name for build in _builds("native")] if "native" in arguments.backend else None,
            "layouts": LAYOUTS,
            "outputs": {
                f"{backend}: {what}": {
                    "runs": runs,
                    "compared": found.compared[backend, what],
                    "different": found.different[backend, what],
                }
                for (backend, what), runs in sorted(found.runs.items())
            },
            "lines": found.lines,
        },
    )
    return 1 if found.lines else 0


if __name__ == "__main__":
    sys.exit(main())
