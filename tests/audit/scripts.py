"""Follow the scripts that adapters write (`Adapter.reproduction`)."""

from __future__ import annotations

import dataclasses

import numpy as np

from refbn.audit.adapters._protocol import Inputs


def follow(script: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """Run a script's heart under its inputs, as the script around it defines them; return its answer."""
    names = {"np": np} | {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    exec(compile(script, "<script>", "exec"), names)
    return {output: np.asarray(value) for output, value in names["answer"].items()}
