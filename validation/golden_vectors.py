"""The golden vectors of ``validation/vectors/`` are those that refbn makes here, byte for byte, and others can run.

Makes all of them again and compares checksums; checks that the default backend returns every value to the bit and that
the textbook stays within every bound; runs the readers in C and in Python over them. Leaves no file.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from refbn import backends
from refbn._formats import load
from refbn.audit.adapters._protocol import Array, Inputs
from refbn.audit.cases import make_inputs
from refbn.testing.vectors import FILES, generate, write
from refbn.testing.vectors.table import rows
from validation import report

__all__ = ["FOLDER", "READERS_MISS", "compile_reader", "main", "off", "read", "recorded", "stale"]

FOLDER = Path(__file__).parent / "vectors"
READERS_MISS = {"conditioning:forward:f64:4x2:data=ramp,scale=1e+160"}
"""The cases that the plain-double readers get wrong, as they must: x² overflows."""


def recorded() -> dict[str, str]:
    """Return the committed checksums by file."""
    lines = (FOLDER / generate.SUMS).read_text(encoding="ascii").splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def stale(sums: dict[str, str]) -> list[str]:
    """Return the committed files whose bytes or whose recorded checksum are not the ones given."""
    return [
        name
        for name, digest in sums.items()
        if recorded().get(name) != digest or hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() != digest
    ]


def off(backend: str, short: str) -> Iterator[str]:
    """Yield the results of one format in which a backend is beyond its promise: bits, or for the textbook the bound."""
    for row in rows(short):
        inputs = make_inputs(row.case)
        values = generate.results(inputs)
        limits = generate.bounds(inputs, values)
        for name, got in generate.results(inputs, backend).items():
            if backend != "reference":
                fine = got.dtype == values[name].dtype and got.tobytes() == values[name].tobytes()
            else:
                fine = _within(got, values[name], limits[name], inputs)
            if not fine:
                yield f"{backend} {row.case} {name}"


def _within(got: Array, value: Array, limit: Array, inputs: Inputs) -> bool:
    allowed = limit.reshape(-1, *(1 for _ in inputs.x.shape[2:])) if value.ndim > 1 else limit
    a, b = load(got), load(value)
    with np.errstate(invalid="ignore"):
        return bool(np.all((np.abs(a - b) <= allowed) | np.isnan(b) | (got.astype(float) == value.astype(float))))


def compile_reader(folder: Path) -> Path | None:
    """Compile the reader in C; None if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = folder / "vectors"
    source = Path(__file__).with_name("vectors.c")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, source, "-o", program, "-lm"], check=True)
    return program


def read(command: Sequence[str | Path], name: str) -> tuple[set[str], str]:
    """Run a reader over one committed file; return the cases that it gets wrong, and its last line."""
    done = subprocess.run([*command, FOLDER / name], capture_output=True, text=True)
    *wrong, last = done.stdout.splitlines()
    assert done.returncode == bool(wrong), done.stderr
    return {line.split(" of ")[1].split(" [")[0] for line in wrong}, last


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; 1 if a file is stale, a value not refbn's, or a reader astonishes."""
    report.parser(__doc__, results=False).parse_args(argv)
    problems = []
    with tempfile.TemporaryDirectory() as name:
        problems += [f"{file} is stale" for file in stale(write(Path(name)))]
        program = compile_reader(Path(name))
        readers: dict[str, list[str | Path]] = {
            "Python": [sys.executable, Path(__file__).with_name("vectors_reader.py")]
        }
        readers |= {"C": [program]} if program else {}
        rows_of_table = []
        for file, fmt in FILES.items():
            for backend in ("native", "reference"):
                if backend in backends.available():
                    problems += off(backend, fmt.short)
            for language, command in readers.items():
                wrong, last = read(command, file)
                rows_of_table.append((file, language, last))
                problems += [f"{language}: {case}" for case in wrong ^ (READERS_MISS if fmt.short == "f64" else set())]
    report.show("Readers over the vectors", ("file", "reader", "result"), rows_of_table)
    print("\n".join(problems) or "every file is current, every value native's, every bound kept by the textbook")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
