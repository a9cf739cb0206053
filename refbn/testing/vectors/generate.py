"""Compute the vectors: results by the oracle, bounds by the audit's model, text that is the same on every machine.

**Reproducible bit for bit.** Inputs come from `refbn.audit.cases`: raw output of PCG64, which NumPy keeps stable,
through additions, multiplications and comparisons in binary64. Results are exact numbers, rounded once. Bounds come
from `refbn.audit.budget`: binary64 operations in one fixed order, of which the square root is rounded correctly too, as
IEEE 754 asks; they are rounded up to 12 bits. Nothing depends on a C library's functions, on the date or on refbn's
version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn._formats import BINARY64, FORMATS, Format, format_of, load
from refbn.audit.adapters._protocol import Array, Inputs
from refbn.audit.budget import SAFETY, Model, Running
from refbn.audit.cases import make_inputs
from refbn.dialects import DIALECTS
from refbn.exact import program
from refbn.exact.arrays import vectors as exact_vectors
from refbn.exact.derive import Derivatives, derivatives
from refbn.exact.rounding import round_number
from refbn.testing.hexfloat import to_hex
from refbn.testing.vectors.table import NOTES, Row, rows

__all__ = ["FILES", "bounds", "document", "results", "schema", "text", "write"]

Doubles = npt.NDArray[np.float64]

FILES: dict[str, Format] = {f"bn_{f.name}.json": f for f in FORMATS}
"""The files, and the format of each one's tensors."""

SCHEMA = "vectors.schema.json"
SUMS = "SHA256SUMS"

_HEADER = (
    "Golden vectors of batch normalization: every result is the exact real value, rounded once, to nearest even.",
    "Tensors are in C order with the channels on axis 1; m is the number of values of a channel. Numbers are C99 "
    "hexadecimal floating-point text, exact in binary64.",
    "forward: y = gamma*(x - mean)*invstd + beta, var = mean((x - mean)^2), invstd = 1/sqrt(var + eps). inference: "
    "the same with the inputs' mean and var. backward: gradient of sum(dy*y). jvp: derivative of y along (x_dot, "
    "gamma_dot, beta_dot). double_backward: gradient of <(ddx, ddgamma, ddbeta), backward> on dy (ddy), x and gamma. "
    "hvp: derivative of backward along (x_dot, gamma_dot, beta_dot), dy held fixed. inference_...: the same with mean "
    "and var as inputs, which move along mean_dot and var_dot, or ddmean and ddvar.",
    "running: running_mean + momentum*(mean - running_mean), and var with m - 1 (var) and with m (var_biased).",
    "bound: one number for each channel. A competent implementation in the same formats is at most so far from the "
    "value (two passes, wide sums, results rounded to the format). nan: no finite value exists, infinity is as good. "
    "inf: beyond the format's range; in a wider format, any number of that sign.",
    "condition: for each channel sqrt((mean^2 + var)/(var + eps)), by which y magnifies relative errors of x.",
)

_TENSORS = ("x", "dy", "x_dot", "ddx")
_TRAINED = ("x", "gamma", "beta")
_FROZEN = (*_TRAINED, "mean", "var")
# Powers of x's unit, for data that are scaled; what is not named has none. See `refbn.audit.truth`.
_UNITS = {"x": 1, "mean": 1, "running_mean": 1, "var": 2, "running_var": 2}
_RESULT_UNITS = {"mean": 1, "var": 2, "var_biased": 2, "invstd": -1, "dx": -1, "dmean": -1, "dvar": -2}


def document(name: str) -> dict[str, Any]:
    """Return one file's content."""
    fmt = FILES[name]
    tests = [_test(number, row) for number, row in enumerate(rows(fmt.short), start=1)]
    used = {flag for test in tests for flag in test["flags"]}
    return {
        "schema": SCHEMA,
        "format": fmt.name,
        "numberOfTests": len(tests),
        "header": list(_HEADER),
        "notes": {
            flag: {"bugType": note.bug, "description": note.description, "links": list(note.links)}
            for flag, note in NOTES.items()
            if flag in used
        },
        "tests": tests,
    }


def text(content: Mapping[str, Any]) -> str:
    """Write a document as JSON with one array on a line."""

    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True)

    def block(key: str, values: Mapping[str, Any], indent: int) -> str:
        pad = " " * indent
        lines = ",\n".join(f"{pad} {dump(k)}: {dump(v)}" for k, v in values.items())
        return f"{pad}{dump(key)}: {{\n{lines}\n{pad}}}"

    tests = []
    for test in content["tests"]:
        plain = [f"   {dump(k)}: {dump(v)}" for k, v in test.items() if k not in ("inputs", "results")]
        blocks = [block(key, test[key], 3) for key in ("inputs", "results")]
        tests.append("  {\n" + ",\n".join([*plain, *blocks]) + "\n  }")
    head = [f" {dump(k)}: {dump(v)}" for k, v in content.items() if k not in ("notes", "tests")]
    listed = ' "tests": [\n' + ",\n".join(tests) + "\n ]"
    return "{\n" + ",\n".join([*head, block("notes", content["notes"], 1), listed]) + "\n}\n"


def schema() -> dict[str, Any]:
    """Return the files' JSON schema."""
    source = resources.files("refbn.testing.vectors") / "schema.json"
    content: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    return content


def write(folder: Path) -> dict[str, str]:
    """Write all files, the schema and the checksums; each file is replaced whole. Return the checksums.

    Raises
    ------
    jsonschema.ValidationError
        If a file would not follow the schema.
    OSError
        If a file cannot be written.
    """
    import jsonschema

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # finds out before the work, not after it
        pass
    checker = jsonschema.Draft202012Validator(schema())
    contents = {}
    for name in FILES:
        found = document(name)
        checker.validate(found)
        contents[name] = text(found)
    contents[SCHEMA] = json.dumps(schema(), indent=1) + "\n"
    sums = {name: hashlib.sha256(content.encode()).hexdigest() for name, content in contents.items()}
    contents[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    for name, content in contents.items():
        _replace(folder / name, content)
    return sums


def _replace(path: Path, content: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# ---- one test --------------------------------------------------------------------------------------------------------


def _test(number: int, row: Row) -> dict[str, Any]:
    inputs = make_inputs(row.case)
    given = arrays(inputs)
    values = results(inputs)
    limits = bounds(inputs, values)
    return {
        "id": number,
        "comment": row.comment,
        "flags": list(row.flags),
        "case": str(row.case),
        "shape": list(inputs.x.shape),
        "parameters": format_of(inputs.gamma.dtype).name,
        "condition": _hex(_condition(inputs)),
        "inputs": {
            "eps": to_hex(inputs.eps),
            "momentum": to_hex(float(inputs.momentum or 0.0)),
            **{name: _hex(array) for name, array in given.items()},
        },
        "results": {key: {"value": _hex(array), "bound": _hex(limits[key])} for key, array in values.items()},
    }


def arrays(inputs: Inputs) -> dict[str, Array]:
    """Return a test's arrays. The directions of double backward are those of the jvp, in the opposite order."""
    found = {
        name: getattr(inputs, name)
        for name in ("x", "gamma", "beta", "dy", "x_dot", "gamma_dot", "beta_dot", "mean", "var", "mean_dot", "var_dot")
    }
    found |= {f"dd{name}": found[f"{name}_dot"][::-1] for name in _FROZEN}
    return found | {"running_mean": inputs.running_mean, "running_var": inputs.running_var}


def _hex(array: Array) -> str:
    return " ".join(map(to_hex, array.astype(np.float64).ravel().tolist()))


def _condition(inputs: Inputs) -> Doubles:
    """Return sqrt((mean² + var)/(var + eps)) for each channel, correctly rounded; NaN where there is none."""
    found = []
    for row in load(_rows(inputs.x)):
        if not np.isfinite(row).all() or not row.size:
            found.append(math.nan)
            continue
        mean, _, var = program.moments(exact_vectors(row[None], "x")[0])
        square, variance = (_rational(value) for value in (mean * mean, var))
        below = variance + Fraction(inputs.eps)
        if not below:
            found.append(math.inf)
            continue
        ratio = (square + variance) / below
        # √(p/q) = √(p·q)/q
        root = round_number(0, Fraction(1, ratio.denominator), ratio.numerator * ratio.denominator, BINARY64)
        found.append(root)
    return np.array(found)


def _rational(value: Any) -> Fraction:
    return Fraction(value.parts()[0])


def results(inputs: Inputs, backend: str = "exact") -> dict[str, Array]:
    """Return the results of all passes; by default the oracle's, which are those of the vectors."""
    a = arrays(inputs)
    options: dict[str, Any] = {"eps": inputs.eps, "backend": backend}
    found: dict[str, Array] = {}

    def take(name: str, result: Any, outputs: str) -> None:
        for output in outputs.split():
            if (array := getattr(result, output)) is not None:
                found[f"{name}.{output}"] = array

    def differentiate(prefix: str, saved: Any, names: tuple[str, ...]) -> None:
        grads = " ".join(f"d{name}" for name in names)
        along: dict[str, Any] = {f"{n}_dot": a[f"{n}_dot"] for n in names}
        against: dict[str, Any] = {f"dd{n}": a[f"dd{n}"] for n in names}
        take(f"{prefix}backward", refbn.backward(saved, a["dy"]), grads)
        found[f"{prefix}jvp.y_dot"] = refbn.jvp(saved, **along)
        second = refbn.double_backward(saved, a["dy"], **against)
        take(f"{prefix}double_backward", second, " ".join(["ddy", *(f"d{n}" for n in names if n != "beta")]))
        take(f"{prefix}hvp", refbn.hvp(saved, a["dy"], **along), grads)

    if _count(inputs):
        fwd = refbn.forward(a["x"], a["gamma"], a["beta"], **options)
        take("forward", fwd, "y mean var invstd")
        differentiate("", fwd.saved, _TRAINED)
    else:
        nothing, zero = np.zeros_like(a["x"]), np.zeros_like(a["gamma"])
        found |= {"forward.y": nothing, "backward.dx": nothing, "backward.dgamma": zero, "backward.dbeta": zero}
        found |= {"jvp.y_dot": nothing}
    fwd = refbn.inference(a["x"], a["mean"], a["var"], a["gamma"], a["beta"], **options)
    take("inference", fwd, "y invstd")
    differentiate("inference_", fwd.saved, _FROZEN)
    return found | _running_statistics(inputs, backend)


def _running_statistics(inputs: Inputs, backend: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for output, unbiased in (("var", True), ("var_biased", False)):
        if _count(inputs) == 0:
            found |= {"running.mean": inputs.running_mean, f"running.{output}": inputs.running_var}
            continue
        if unbiased and _count(inputs) == 1:
            continue
        dialect = dataclasses.replace(
            DIALECTS["torch"], unbiased_running_var=unbiased, single_value="raise" if unbiased else "compute"
        )
        layer = refbn.BatchNorm(
            len(inputs.gamma), momentum=inputs.momentum, dialect=dialect, dtype=inputs.gamma.dtype, backend=backend
        )
        layer.running_mean, layer.running_var = inputs.running_mean, inputs.running_var
        layer(inputs.x)
        found |= {"running.mean": layer.running_mean, f"running.{output}": layer.running_var}
    return found


# ---- bounds ----------------------------------------------------------------------------------------------------------


def bounds(inputs: Inputs, values: Mapping[str, Array]) -> dict[str, Doubles]:
    """Return for each result and channel how far a competent implementation may be from the value that is given.

    `SAFETY` times the propagated error, and one ulp: half of it for the rounding of the implementation's result, half
    for that of the value. It is the largest bound of a channel's elements.
    """
    a = {name: _rows(load(array)) for name, array in arrays(inputs).items()}
    model = Model.of(format_of(inputs.x.dtype), _count(inputs))
    # Data of another magnitude are scaled by a power of two, which changes no digit (B5).
    reach = np.abs(a["x"][np.isfinite(a["x"])]).max(initial=math.sqrt(inputs.eps))
    exponent = math.frexp(reach)[1] if reach else 0
    exponent = exponent if abs(exponent) > 200 else 0
    eps = Fraction(inputs.eps) * Fraction(4) ** -exponent
    scaled = {
        name: np.ldexp(array, -exponent * _UNITS.get(name.removesuffix("_dot").removeprefix("dd"), 0))
        for name, array in a.items()
    }
    numbers = {name: Running.given(model, array if name in _TENSORS else array[:, 0]) for name, array in scaled.items()}
    with np.errstate(all="ignore"):
        found = _passes(numbers, eps, Fraction(inputs.momentum or 0.0), _count(inputs))
        return {
            key: _bound(key, found[key], exponent, format_of(value.dtype), len(inputs.gamma))
            for key, value in values.items()
        }


def _passes(n: Mapping[str, Running], eps: Fraction, momentum: Fraction, count: int) -> dict[str, Running | None]:
    """Run the definition of every pass over numbers that carry an error."""
    found: dict[str, Running | None] = {}

    def differentiate(prefix: str, definition: Any, names: tuple[str, ...]) -> None:
        given: dict[str, Running | Fraction] = {**{name: n[name] for name in names}, "eps": eps}
        first = derivatives(definition, given, cotangent=n["dy"], wanted=names)
        along = {name: n[f"{name}_dot"] for name in names}
        jvp = derivatives(definition, given, order=1, directions=along)
        against = {name: n[f"dd{name}"] for name in names}
        double = derivatives(definition, given, order=1, directions=against, cotangent=n["dy"], wanted=names)
        hvp = derivatives(definition, given, order=1, directions=along, cotangent=n["dy"], wanted=names)
        found[f"{prefix}jvp.y_dot"], found[f"{prefix}double_backward.ddy"] = jvp.value, double.value
        passes: dict[str, Derivatives[Running]] = {"backward": first, "double_backward": double, "hvp": hvp}
        for verb, result in passes.items():
            found.update({f"{prefix}{verb}.d{name}": number for name, number in result.gradient.items()})

    mean, _, var = program.moments(n["x"])
    found["forward.y"] = program.batch_norm(n["x"], n["gamma"], n["beta"], eps)
    found |= {"forward.mean": mean, "forward.var": var, "forward.invstd": program.invstd(var, eps)}
    differentiate("", program.batch_norm, _TRAINED)
    found["inference.y"] = program.frozen(n["x"], n["mean"], n["var"], n["gamma"], n["beta"], eps)
    found["inference.invstd"] = program.invstd(n["var"], eps)
    differentiate("inference_", program.frozen, _FROZEN)
    found["running.mean"] = program.blend(n["running_mean"], mean, momentum)
    found["running.var_biased"] = program.blend(n["running_var"], var, momentum)
    other = program.unbiased(var, count) if count > 1 else var
    found["running.var"] = program.blend(n["running_var"], other, momentum)
    return found


def _bound(key: str, number: Running | None, exponent: int, form: Format, channels: int) -> Doubles:
    """Return the bound of one result: an upper one of 12 bits for each channel; 0 where there is nothing to compare."""
    if number is None:
        return np.zeros(channels)
    back = exponent * _RESULT_UNITS.get(key.partition(".")[2], 0)
    value, error = (np.ldexp(part, back) for part in (number.value, number.error))
    reach = np.minimum(np.abs(value), form.max)
    _, e = np.frexp(np.where(np.isfinite(reach), reach, 0.0))
    ulp = np.ldexp(1.0, np.clip(e - 1, form.emin, form.emax) - form.precision + 1)
    allowed = SAFETY * error + np.where(reach == 0, 0.0, ulp)
    allowed = np.where(np.isfinite(allowed), allowed, 0.0).max(axis=1, initial=0.0)
    mantissa, e = np.frexp(allowed)
    return np.asarray(np.ldexp(np.ceil(mantissa * 4096.0) / 4096.0, e))


def _rows(array: Array) -> Array:
    """Return channels as rows; a vector as a column."""
    if array.ndim == 1:
        return array[:, None]
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], array.size // array.shape[1])


def _count(inputs: Inputs) -> int:
    return int(inputs.x.size // inputs.x.shape[1])
