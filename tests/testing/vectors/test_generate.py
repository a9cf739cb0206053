"""The vectors: reproducible, valid, complete, right, and their bounds those of a competent implementation."""

import hashlib
import json
import re

import jsonschema
import numpy as np
import pytest

from refbn import backends
from refbn._formats import FORMATS
from refbn.audit.cases import make_inputs, parse
from refbn.testing.hexfloat import from_hex
from refbn.testing.vectors import FILES, document, generate, schema, text, write
from refbn.testing.vectors.table import NOTES, rows
from validation import golden_vectors

DERIVATIVES = ("backward", "jvp", "double_backward", "hvp")
PASSES = ("forward", "inference", "running", *DERIVATIVES, *(f"inference_{verb}" for verb in DERIVATIVES))


@pytest.fixture(scope="module")
def half():
    return document("bn_float16.json")


def test_a_slice_is_what_is_committed(half):
    """binary16 here; `validation.golden_vectors` makes all of them again."""
    content = text(half)
    committed = (golden_vectors.FOLDER / "bn_float16.json").read_text(encoding="ascii")
    assert content == committed
    assert golden_vectors.recorded()["bn_float16.json"] == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("short", ["bf16", "f32", "f64"])
def test_one_test_of_each_other_format_is_what_is_committed(short):
    (name,) = (name for name, fmt in FILES.items() if fmt.short == short)
    committed = json.loads((golden_vectors.FOLDER / name).read_text(encoding="ascii"))["tests"]
    for number, row in list(enumerate(rows(short), start=1))[::9]:
        assert generate._test(number, row) == committed[number - 1]


def test_checksums_cover_every_file():
    assert golden_vectors.recorded().keys() == {*FILES, generate.SCHEMA}
    assert golden_vectors.stale(golden_vectors.recorded()) == []
    assert golden_vectors.stale({generate.SCHEMA: "0" * 64}) == [generate.SCHEMA]
    total = sum(path.stat().st_size for path in golden_vectors.FOLDER.iterdir())
    assert total <= 5 * 2**20


@pytest.mark.parametrize("name", FILES)
def test_committed_files_follow_the_schema(name):
    content = json.loads((golden_vectors.FOLDER / name).read_text(encoding="ascii"))
    jsonschema.Draft202012Validator(schema()).validate(content)
    assert content["numberOfTests"] == len(content["tests"])
    assert content["format"] == FILES[name].name
    used = {flag for test in content["tests"] for flag in test["flags"]}
    assert used == content["notes"].keys()
    found = {key.partition(".")[0] for test in content["tests"] for key in test["results"]}
    assert found == set(PASSES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["tests"][0].pop("shape"),
        lambda d: d["tests"][0]["inputs"].update(x="1.5"),
        lambda d: d["tests"][0]["inputs"].update(x="0x1p+0  0x1p+0"),
        lambda d: d["tests"][0]["results"].update(other={"value": "", "bound": ""}),
        lambda d: d["tests"][0].update(parameters="float8"),
        lambda d: d.update(more=1),
    ],
)
def test_the_schema_can_fail(half, spoil):
    spoiled = json.loads(json.dumps(half))
    spoil(spoiled)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(spoiled)


def test_shapes_and_inputs(half):
    for test in half["tests"]:
        inputs = make_inputs(parse(test["case"]))
        sizes = {name: len(t.split()) for name, t in test["inputs"].items()}
        size, channels = int(np.prod(test["shape"])), test["shape"][1]
        for name, count in sizes.items():
            tensor, scalar = name in ("x", "dy", "x_dot", "ddx"), name in ("eps", "momentum")
            assert count == (size if tensor else 1 if scalar else channels), name
        assert [from_hex(t) for t in test["inputs"]["gamma"].split()] == inputs.gamma.tolist()
        for result in test["results"].values():
            assert len(result["value"].split()) in (size, channels) and len(result["bound"].split()) == channels


def test_one_array_stands_on_each_line(half):
    for line in text(half).splitlines():
        if '"value"' in line:
            assert re.fullmatch(r' +"[a-z_.]+": \{"value": "[^"]*", "bound": "[^"]*"\},?', line)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_the_default_backend_returns_every_value(fmt):
    assert list(golden_vectors.off(backends.first(), fmt.short)) == []


def test_the_textbook_stays_within_every_bound():
    assert list(golden_vectors.off("reference", "f64")) == []
    assert list(golden_vectors.off("reference", "f16")) == []


def test_bounds_are_not_idle():
    """A result of half the digits is out of bounds, in every pass."""
    for row in list(rows("f64"))[:4]:
        inputs = make_inputs(row.case)
        values = generate.results(inputs)
        limits = generate.bounds(inputs, values)
        for name, value in values.items():
            if name.endswith(("hvp.dbeta", "jvp.y_dot")) and not value.any():
                continue
            largest = np.abs(value).max()
            assert limits[name].max() <= 1e-8 * largest, (str(row.case), name)


def test_condition():
    test = next(t for t in document("bn_float32.json")["tests"] if "offset=4096" in t["case"])
    inputs = make_inputs(parse(test["case"]))
    x = inputs.x.astype(np.float64)
    expected = np.sqrt((x.mean(0) ** 2 + x.var(0)) / (x.var(0) + inputs.eps))
    found = [from_hex(t) for t in test["condition"].split()]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_flags_and_notes():
    for fmt in FORMATS:
        for row in rows(fmt.short):
            assert row.flags and set(row.flags) <= NOTES.keys()
            assert row.case.format is fmt and row.case.operation == "forward"
        cases = [str(row.case) for row in rows(fmt.short)]
        assert len(set(cases)) == len(cases)
    links = {link for note in NOTES.values() for link in note.links}
    numbers = {int(link.rpartition("/")[2]) for link in links}
    # The publicly known cases that derivatives up to the second order can show.
    assert numbers == {196699, 162489, 1491, 118701, 1381, 77014, 12013, 586, 5222, 115500, 5799}


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    monkeypatch.setattr(generate, "FILES", {"bn_float16.json": FORMATS[0]})
    sums = write(folder)
    assert {p.name for p in folder.iterdir()} == {"bn_float16.json", generate.SCHEMA, generate.SUMS}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    before = (folder / "bn_float16.json").read_bytes()
    monkeypatch.setattr(generate.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write(folder)
    assert {p.name for p in folder.iterdir()} == {"bn_float16.json", generate.SCHEMA, generate.SUMS}
    assert (folder / "bn_float16.json").read_bytes() == before
