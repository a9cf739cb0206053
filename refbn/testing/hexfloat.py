"""Floating-point numbers as text that keeps every bit: C99's ``%a``, in one spelling on every machine."""

from __future__ import annotations

import math

__all__ = ["from_hex", "to_hex"]


def to_hex(value: float) -> str:
    """Write a number: one hexadecimal digit before the point, no zeros at the end (``0x1.8p+1``); NaN has no sign."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    head, exponent = value.hex().split("p")
    return f"{head.rstrip('0').rstrip('.') if '.' in head else head}p{exponent}"


def from_hex(text: str) -> float:
    """Read a number."""
    return float.fromhex(text)
