"""Messages between the audit and its workers: a JSON head, then the memory of arrays, byte by byte.

::

    8 bytes    `_MAGIC`, so that noise is not taken for a message
    8 bytes    length of the head, little-endian
    head       a JSON object in UTF-8; "sizes" lists the lengths of the parts that follow
    parts      raw bytes, one after the other

An *input* array travels with its strides: from the lowest to the highest address that it reaches, gaps included, and is
laid out on the other side in the same way, at an address that is equal modulo `ALIGNMENT`. An *output* travels as its
values in C order. Both processes run on one machine, so byte order is no question. Nothing that is received is ever
executed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from refbn._formats import BFLOAT16
from refbn.audit.adapters._protocol import Inputs

__all__ = [
    "ALIGNMENT",
    "Message",
    "Part",
    "flatten",
    "lay_out",
    "memory",
    "pack_inputs",
    "pack_outputs",
    "receive",
    "send",
    "unpack_inputs",
    "unpack_outputs",
]

Array = npt.NDArray[Any]
Message = dict[str, Any]
Part = memoryview | bytearray | bytes

ALIGNMENT = 64
"""The largest alignment that a framework asks of memory that it does not copy."""

_MAGIC = b"refbn\x00m1"
_LENGTH = struct.Struct("<Q")


# ---- messages ------------------------------------------------------------------------------------------------------


def send(stream: BinaryIO, head: Message, parts: Sequence[Part] = ()) -> None:
    """Write one message."""
    text = json.dumps({**head, "sizes": [len(part) for part in parts]}).encode()
    stream.write(_MAGIC + _LENGTH.pack(len(text)) + text)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Message, list[bytearray]] | None:
    """Read one message, or return None at the end of the stream.

    Raises
    ------
    EOFError
        If the stream ends within a message.
    ValueError
        If what comes is not a message.
    """
    magic = stream.read(len(_MAGIC))
    if not magic:
        return None
    if magic != _MAGIC:
        raise ValueError("what comes is no message")
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    head: Message = json.loads(bytes(_exactly(stream, length)))
    return head, [_exactly(stream, size) for size in head.pop("sizes")]


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the stream ends within a message")
        done += count
    return buffer


# ---- inputs: memory and strides ------------------------------------------------------------------------------------


def memory(array: Array) -> memoryview:
    """Return all memory between the lowest and the highest address that an array reaches, gaps included.

    It is the array's own memory, and can be written even where the array says that it is read-only.
    """
    _, size = _extent(array)
    if size == 0:
        return memoryview(b"")
    first, _ = _extent(array)
    return memoryview((ctypes.c_ubyte * size).from_address(array.ctypes.data - first)).cast("B")


def _extent(array: Array) -> tuple[int, int]:
    """Return how far the first element lies above the lowest address, and the length of the array's memory."""
    if array.size == 0:
        return 0, 0
    steps = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    below = -sum(step for step in steps if step < 0)
    return below, below + sum(step for step in steps if step > 0) + array.itemsize


def flatten(inputs: Inputs) -> dict[str, Array]:
    """Return every array of some inputs by name; the batches are called ``batches[0]`` and so on."""
    arrays = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    arrays |= {f"batches[{i}]": batch for i, batch in enumerate(inputs.batches)}
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def pack_inputs(inputs: Inputs) -> tuple[Message, list[memoryview]]:
    """Return what `unpack_inputs` needs to lay out the same inputs elsewhere."""
    arrays = flatten(inputs)
    described = {
        name: {
            "dtype": _dtype_name(array.dtype),
            "shape": array.shape,
            "strides": array.strides,
            "first": _extent(array)[0],
            "place": (array.ctypes.data - _extent(array)[0]) % ALIGNMENT,
            "writeable": bool(array.flags.writeable),
        }
        for name, array in arrays.items()
    }
    momentum = None if inputs.momentum is None else float(inputs.momentum)
    head = {
        "arrays": described,
        "eps": float(inputs.eps),
        "momentum": momentum,
        "batches": len(inputs.batches),
        "norm": inputs.norm,
    }
    return head, [memory(array) for array in arrays.values()]


def unpack_inputs(head: Message, parts: Iterable[Part]) -> Inputs:
    """Lay out the inputs that `pack_inputs` described."""
    arrays = {
        name: lay_out(described, part) for (name, described), part in zip(head["arrays"].items(), parts, strict=True)
    }
    batches = tuple(arrays.pop(f"batches[{i}]") for i in range(head["batches"]))
    return Inputs(**arrays, eps=head["eps"], momentum=head["momentum"], batches=batches, norm=head["norm"])


def lay_out(described: Message, part: Part) -> Array:
    """Return an array with the strides, the place modulo `ALIGNMENT` and the memory of the one that was described."""
    buffer = np.empty(len(part) + 2 * ALIGNMENT, np.uint8)
    start = (described["place"] - buffer.ctypes.data) % ALIGNMENT
    buffer[start : start + len(part)] = np.frombuffer(part, np.uint8)
    array: Array = np.ndarray(
        tuple(described["shape"]),
        _dtype(described["dtype"]),
        buffer,
        start + described["first"],
        tuple(described["strides"]),
    )
    array.flags.writeable = described["writeable"]
    return array


# ---- outputs: values -------------------------------------------------------------------------------------------------


def pack_outputs(answer: dict[str, Array]) -> tuple[Message, list[Part]]:
    """Return what `unpack_outputs` needs.

    Raises
    ------
    TypeError
        If an output is not numeric.
    """
    arrays = {name: np.asarray(value) for name, value in answer.items()}
    head = {name: {"dtype": _dtype_name(a.dtype), "shape": a.shape} for name, a in arrays.items()}
    return head, [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays.values()]


def unpack_outputs(head: Message, parts: Iterable[Part]) -> dict[str, Array]:
    """Return the outputs that `pack_outputs` described."""
    return {
        name: np.frombuffer(part, _dtype(described["dtype"])).reshape(described["shape"])
        for (name, described), part in zip(head.items(), parts, strict=True)
    }


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if dtype.name == BFLOAT16.name:
        return BFLOAT16.name
    if dtype.kind not in "biufc":
        raise TypeError(f"an array of dtype {dtype}, expected numbers")
    return dtype.str


def _dtype(name: str) -> np.dtype[Any]:
    return BFLOAT16.dtype if name == BFLOAT16.name else np.dtype(name)
