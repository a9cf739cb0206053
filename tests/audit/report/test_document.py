import copy
import dataclasses
import gzip
import json

import jsonschema
import pytest

from refbn.audit.cases import FAMILIES
from refbn.audit.compare import VERDICTS
from refbn.audit.report import document
from refbn.audit.report.document import DocumentError
from refbn.audit.report.run import Framework
from refbn.audit.runner import Finding
from tests.audit.report.runs import ADAPTERS, FINDINGS, RUN, rich_run


def saved():
    return copy.deepcopy(document.as_document(RUN))


def test_the_schema_is_one_and_the_document_follows_it(tmp_path):
    jsonschema.Draft202012Validator.check_schema(document.schema())
    path = tmp_path / "audit.json"
    document.write_json(path, saved())
    loaded = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(document.schema()).validate(loaded)
    assert len(loaded["findings"]) == len(FINDINGS)
    assert {f["framework"] for f in loaded["findings"]} == {a.name for a in ADAPTERS}
    first = loaded["findings"][0]
    required = ("framework", "version", "operation", "composition", "family", "case", "dtype", "verdict")
    assert set(required) | {"max_ulp", "max_scaled_ulp", "bound_ratio"} <= set(first)
    assert {(s["framework"], s["operation"], s["family"]): s["verdict"] for s in loaded["summary"]}[
        "one-pass", "forward", "conditioning"
    ] == "wrong"
    assert loaded["missing"] == ["tensorstream"]


def test_the_schema_and_the_code_have_the_same_words():
    schema = document.schema()
    definitions = schema["$defs"]
    assert definitions["verdict"]["enum"] == list(VERDICTS)
    assert definitions["family"]["enum"] == list(FAMILIES)
    assert set(definitions["finding"]["required"]) == {*Finding.__dataclass_fields__, "id"}
    assert set(definitions["finding"]["properties"]) == {*Finding.__dataclass_fields__, "id"}
    framework = schema["properties"]["frameworks"]["items"]
    assert set(framework["properties"]) == set(Framework.__dataclass_fields__)
    assert set(framework["properties"]) - set(framework["required"]) == {"not_asked", "instead"}
    assert set(schema["required"]) == set(schema["properties"]) == set(saved())


@pytest.mark.parametrize("run", [RUN, rich_run()], ids=["stand-ins", "every field"])
def test_what_is_read_is_what_was_written(tmp_path, run):
    path = tmp_path / "audit.json"
    document.write_json(path, document.as_document(run))
    again = document.read(path)
    assert again == dataclasses.replace(run, environment=dict(run.environment))
    document.write_json(tmp_path / "again.json", document.as_document(again))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_run_of_an_earlier_version_left_nothing_out(tmp_path):
    path = tmp_path / "audit.json"
    old = saved()
    for framework in old["frameworks"]:
        del framework["not_asked"], framework["instead"]
    path.write_text(json.dumps(old), encoding="utf-8")
    assert document.read(path).frameworks == RUN.frameworks


def test_a_compressed_file_holds_the_same_bytes(tmp_path):
    plain, compressed = tmp_path / "audit.json", tmp_path / "audit.json.gz"
    for path in (plain, compressed):
        document.write_json(path, saved())
    assert gzip.decompress(compressed.read_bytes()) == plain.read_bytes()
    assert document.read(compressed) == document.read(plain)
    for spoiled in (compressed.read_bytes()[:-20], b"\x1f\x8b\x08 and noise", plain.read_bytes()):
        compressed.write_bytes(spoiled)
        with pytest.raises(DocumentError, match=r"audit\.json\.gz: "):
            document.read(compressed)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["findings"][0].update(verdict="fine"),
        lambda d: d["findings"][0].update(max_ulp=-1.0),
        lambda d: d["findings"][0].update(colour="red"),
        lambda d: d["findings"][0].update(case="two words:x:f32:1"),
        lambda d: d["frameworks"][0].update(process="elsewhere"),
        lambda d: d.update(scripts={"id": 1}),
        lambda d: d.pop("missing"),
        lambda d: d.pop("date"),
    ],
)
def test_a_document_that_breaks_the_schema_is_neither_written_nor_read(tmp_path, spoil):
    path = tmp_path / "audit.json"
    path.write_text("before")
    spoiled = saved()
    spoil(spoiled)
    with pytest.raises(jsonschema.ValidationError):
        document.write_json(path, spoiled)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    path.write_text(json.dumps(spoiled))
    with pytest.raises(DocumentError, match=r"audit\.json: "):
        document.read(path)


def test_what_is_no_run_is_not_read(tmp_path):
    path = tmp_path / "audit.json"
    with pytest.raises(DocumentError, match="No such file"):
        document.read(path)
    for text in ("no JSON at all", "\udcff"):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(DocumentError, match="no JSON"):
            document.read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "audit.json"
    path.write_text("before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(document.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        document.write_json(path, saved())
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
