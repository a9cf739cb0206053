"""A run as JSON, and back.

The schema, ``schema.json``, is part of the package; what does not follow it is neither written nor read. A file whose
name ends in ``.gz`` is compressed: the findings of many frameworks take many megabytes, and shrink to a thirtieth.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from refbn._errors import RefbnError
from refbn.audit.report.run import Framework, Run
from refbn.audit.runner import Finding, summary

__all__ = ["DocumentError", "as_document", "read", "schema", "write_json", "write_text"]

_SCHEMA_NAME = "refbn-audit-1"


class DocumentError(RefbnError, ValueError):
    """A file does not hold a run."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of what `write_json` writes."""
    text = resources.files("refbn.audit.report").joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def as_document(run: Run) -> dict[str, Any]:
    """Return a run as the document that the schema describes."""
    return {
        "schema": _SCHEMA_NAME,
        "refbn": run.refbn,
        "date": run.date,
        "environment": dict(run.environment),
        "depth": run.depth,
        "cases": run.cases,
        "frameworks": [
            {**dataclasses.asdict(f), "not_asked": list(f.not_asked), "instead": list(f.instead)}
            for f in run.frameworks
        ],
        "missing": list(run.missing),
        "findings": [
            {**dataclasses.asdict(f), "worst": None if f.worst is None else list(f.worst), "id": f.id}
            for f in run.findings
        ],
        "scripts": dict(run.scripts),
        "gone": list(run.gone),
        "summary": [
            {"framework": framework, "operation": operation, "family": family, "verdict": verdict}
            for (framework, operation, family), verdict in summary(run.findings).items()
        ],
    }


def read(path: Path) -> Run:
    """Read a run that was saved.

    Raises
    ------
    DocumentError
        If the file cannot be read, is no JSON, or does not follow the schema.
    """
    import jsonschema

    try:
        stored = path.read_bytes()
        document = json.loads(gzip.decompress(stored) if path.suffix == ".gz" else stored)
        jsonschema.Draft202012Validator(schema()).validate(document)
    except OSError as error:  # gzip's own has no number
        raise DocumentError(f"{path}: {error.strerror or error}", argument="from_json") from error
    except (ValueError, EOFError, zlib.error) as error:
        raise DocumentError(f"{path}: no JSON: {error}", argument="from_json") from error
    except jsonschema.ValidationError as error:
        raise DocumentError(f"{path}: {error.json_path}: {error.message[:200]}", argument="from_json") from error
    return Run(
        date=document["date"],
        refbn=document["refbn"],
        environment=document["environment"],
        depth=document["depth"],
        cases=document["cases"],
        frameworks=tuple(_framework(f) for f in document["frameworks"]),
        missing=tuple(document["missing"]),
        findings=tuple(_finding(f) for f in document["findings"]),
        scripts=document["scripts"],
        gone=tuple(document["gone"]),
    )


def _framework(found: dict[str, Any]) -> Framework:
    lists = {name: tuple(found.get(name, ())) for name in ("not_asked", "instead")}  # earlier versions have none
    return Framework(**{**found, **lists})


def _finding(found: dict[str, Any]) -> Finding:
    place = found["worst"]
    fields = {name: value for name, value in found.items() if name != "id"}  # the others give it
    return Finding(**{**fields, "worst": None if place is None else tuple(place)})


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Validate a document and write it, compressed if the name ends in ``.gz``.

    The file is replaced whole or stays as it was.

    Raises
    ------
    jsonschema.ValidationError
        If the document does not follow the schema.
    OSError
        If the file cannot be written.
    """
    import jsonschema

    jsonschema.Draft202012Validator(schema()).validate(document)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if path.suffix == ".gz":
        _write(path, gzip.compress(text.encode(), mtime=0))
    else:
        write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; it is replaced whole or stays as it was.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
