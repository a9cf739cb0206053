"""refbn reads the arrays of other libraries where they lie: ``python -m validation.zero_copy``.

``forward(x).saved.x`` is what the kernels read. Its address is compared with the one that the framework itself gives
for its array, and, where the framework lets one write, a value written on its side must show on NumPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch

import refbn
from validation import report

__all__ = ["Row", "look", "main"]


@dataclass(frozen=True)
class Row:
    """One array: what it is, both addresses, and whether memory was seen to be one (None: cannot be written)."""

    array: str
    theirs: int
    ours: int
    strides: tuple[int, ...]
    shared: bool | None

    @property
    def copied(self) -> bool:
        """Whether refbn looks at other memory than the framework does."""
        return self.theirs != self.ours or self.shared is False


def _torch_tensors() -> Iterator[tuple[str, torch.Tensor]]:
    values = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5).sin()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        tensor = values.to(dtype, copy=True)
        yield f"torch {name}", tensor
        yield f"torch {name}, channels last", tensor.clone().to(memory_format=torch.channels_last)
        yield f"torch {name}, sliced", values.to(dtype, copy=True)[:, 1:, ::2, 1:4]
        yield f"torch {name}, transposed", values.to(dtype, copy=True).permute(2, 1, 3, 0)


def look() -> Iterator[Row]:
    """Pass arrays of all kinds to `refbn.forward` and look at where it reads."""
    for name, tensor in _torch_tensors():
        seen = refbn.forward(tensor).saved.x
        tensor[0, 0, 0, 0] = 7.0
        yield Row(name, tensor.data_ptr(), _address(seen), seen.strides, float(seen[0, 0, 0, 0]) == 7.0)
    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
        array = jnp.sin(jnp.arange(24.0)).reshape(2, 3, 4).astype(dtype)
        yield _look_at_jax(f"jax {array.dtype}", array)
    with jax.enable_x64(True):
        yield _look_at_jax("jax float64", jnp.sin(jnp.arange(24.0, dtype=jnp.float64)).reshape(2, 3, 4))


def _look_at_jax(name: str, array: Any) -> Row:
    array.block_until_ready()
    seen = refbn.forward(array).saved.x
    return Row(name, array.unsafe_buffer_pointer(), _address(seen), seen.strides, None)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if anything was copied."""
    report.parser(__doc__, results=False).parse_args(argv)
    rows = list(look())
    report.show(
        "Where refbn.forward reads",
        ("array", "strides", "address minus the framework's", "a write shows", "copied"),
        (
            (
                row.array,
                row.strides,
                row.ours - row.theirs,
                "read-only" if row.shared is None else row.shared,
                row.copied,
            )
            for row in rows
        ),
    )
    return 1 if any(row.copied for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
