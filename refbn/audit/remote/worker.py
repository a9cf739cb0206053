"""The other side: load adapters when asked for, run them, and send back what they answer.

Requests and replies (`wire`), the request's kind under "ask":

``load``          "adapter" ("module:class"), "arguments" → "declared": what the adapter declares, and its version
``run``           "adapter", "operation", "inputs" and their memory → "answer" and its memory
``set_threads``   "adapter", "count" → nothing
``reproduction``  "adapter", "operation", "inputs" and their memory → "text"

Where the adapter raises, the reply has "unsupported" (a text) or "raised" (a type's name and a text) instead. A reply
to ``run`` lists under "changed" the inputs whose memory is not what it was, and their memory follows that of the
answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np

from refbn._formats import BFLOAT16
from refbn.audit.adapters._protocol import Adapter, Unsupported, compiles, norms_of
from refbn.audit.remote import wire

__all__ = ["serve"]


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Say what there is here, then answer request after request, until the stream ends."""
    wire.send(replies, {"python": platform.python_version(), "numpy": np.__version__})
    adapters: dict[str, Adapter] = {}
    while (message := wire.receive(requests)) is not None:
        wire.send(replies, *_reply(adapters, *message))


def _reply(
    adapters: dict[str, Adapter], head: wire.Message, parts: Sequence[wire.Part]
) -> tuple[wire.Message, list[wire.Part]]:
    extra: wire.Message = {}
    changed: list[wire.Part] = []
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if head["ask"] == "load":
                return {"declared": _load(adapters, head["adapter"], head["arguments"])}, []
            adapter = adapters[head["adapter"]]
            if head["ask"] == "set_threads":
                adapter.set_threads(head["count"])
                return {}, []
            inputs = wire.unpack_inputs(head["inputs"], parts)
            if head["ask"] == "reproduction":
                return {"text": adapter.reproduction(head["operation"], inputs)}, []
            views = {name: wire.memory(array) for name, array in wire.flatten(inputs).items()}
            before = {name: _digest(view) for name, view in views.items()}
            try:
                answer, outputs = wire.pack_outputs(adapter.run(head["operation"], inputs))
            finally:
                extra["changed"] = [name for name, view in views.items() if _digest(view) != before[name]]
                changed += [views[name] for name in extra["changed"]]
            return {"answer": answer, **extra}, [*outputs, *changed]
    except Unsupported as error:
        return {"unsupported": str(error), **extra}, changed
    except BaseException as error:  # a framework may even try to end the process
        return {"raised": type(error).__name__, "text": str(error), **extra}, changed


def _load(adapters: dict[str, Adapter], path: str, arguments: Sequence[str]) -> dict[str, Any]:
    module, _, attribute = path.partition(":")
    adapter: Adapter = getattr(import_module(module), attribute)(*arguments)
    adapters[f"{path}{list(arguments)}"] = adapter
    dtypes = adapter.dtypes if find_spec("ml_dtypes") else adapter.dtypes - {BFLOAT16.name}
    return {
        "key": f"{path}{list(arguments)}",
        "name": adapter.name,
        "version": adapter.version(),
        "dialect": dataclasses.asdict(adapter.dialect),
        "operations": sorted(adapter.operations),
        "norms": sorted(norms_of(adapter)),
        "compiles": compiles(adapter),
        "dtypes": sorted(dtypes),
        "left_out": sorted(adapter.dtypes - dtypes),
        "differentiates_statistics": adapter.differentiates_statistics,
        "environment": dict(adapter.environment),
    }


def _digest(view: memoryview) -> bytes:
    return hashlib.blake2b(view, digest_size=16).digest()
