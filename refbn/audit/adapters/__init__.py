"""The frameworks that can be audited: a literal, ordered table from names to adapters, loaded when asked for.

To add a framework, write ``refbn/audit/adapters/<name>.py`` with a class that fulfils `_protocol.Adapter`, and add one
line to `ADAPTERS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from refbn._errors import DomainError
from refbn.audit.adapters._protocol import Adapter

__all__ = ["ADAPTERS", "BY_DEFAULT", "VARIANTS", "ZOO", "is_ours", "load", "names"]

ADAPTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("refbn.audit.adapters.torch:Torch", ()),
    "torch-native": ("refbn.audit.adapters.torch_variants:TorchNative", ()),
    "torch-module": ("refbn.audit.adapters.torch_variants:TorchModule", ()),
    "torch-channels-last": ("refbn.audit.adapters.torch_variants:TorchChannelsLast", ()),
    "torch-func": ("refbn.audit.adapters.torch_variants:TorchFunc", ()),
    "torch-decomposition": ("refbn.audit.adapters.torch_variants:TorchDecomposition", ()),
    "torch-compile": ("refbn.audit.adapters.torch_variants:TorchCompile", ()),
    "jax": ("refbn.audit.adapters.jax:Jax", ()),
    "jax-standardize": ("refbn.audit.adapters.jax:Standardize", ("fast",)),
    "jax-standardize-stable": ("refbn.audit.adapters.jax:Standardize", ("stable",)),
    "flax-linen": ("refbn.audit.adapters.flax:Linen", ()),
    "flax-linen-two-pass": ("refbn.audit.adapters.flax:Linen", ("two-pass",)),
    "flax-nnx": ("refbn.audit.adapters.flax:Nnx", ()),
    "flax-nnx-two-pass": ("refbn.audit.adapters.flax:Nnx", ("two-pass",)),
    "equinox": ("refbn.audit.adapters.equinox:Equinox", ("batch",)),
    "equinox-ema": ("refbn.audit.adapters.equinox:Equinox", ("ema",)),
    "autograd": ("refbn.audit.adapters.autograd:Autograd", ("var",)),
    "autograd-mean": ("refbn.audit.adapters.autograd:Autograd", ("mean",)),
    "tensorflow": ("refbn.audit.adapters.tensorflow:TensorFlow", ()),
    "tensorflow-nn": ("refbn.audit.adapters.tensorflow:TensorFlowNN", ()),
    "tensorflow-xla": ("refbn.audit.adapters.tensorflow:TensorFlowXLA", ()),
    "tensorflow-eager": ("refbn.audit.adapters.tensorflow:TensorFlowEager", ()),
    "keras-torch": ("refbn.audit.adapters.keras:KerasTorch", ()),
    "keras-jax": ("refbn.audit.adapters.keras:KerasJax", ()),
    "keras-numpy": ("refbn.audit.adapters.keras:KerasNumPy", ()),
    "keras-tensorflow": ("refbn.audit.adapters.keras:KerasTensorFlow", ()),
    "onnx-reference": ("refbn.audit.adapters.onnx:OnnxReference", ()),
    "onnx-reference-opset7": ("refbn.audit.adapters.onnx:OnnxReference", ("7",)),
    "onnx-reference-opset9": ("refbn.audit.adapters.onnx:OnnxReference", ("9",)),
    "onnx-reference-opset14": ("refbn.audit.adapters.onnx:OnnxReference", ("14",)),
    "onnxruntime": ("refbn.audit.adapters.onnxruntime:OnnxRuntime", ()),
    "onnxruntime-opset7": ("refbn.audit.adapters.onnxruntime:OnnxRuntime", ("7",)),
    "onnxruntime-opset9": ("refbn.audit.adapters.onnxruntime:OnnxRuntime", ("9",)),
    "onnxruntime-opset14": ("refbn.audit.adapters.onnxruntime:OnnxRuntime", ("14",)),
    "openvino": ("refbn.audit.adapters.openvino:OpenVino", ()),
    "paddle": ("refbn.audit.adapters.paddle:Paddle", ()),
    "tinygrad": ("refbn.audit.adapters.tinygrad:Tinygrad", ()),
    "refbn": ("refbn.audit.adapters.own:Own", ("native",)),
    "refbn-native": ("refbn.audit.adapters.own:Own", ("native",)),
    "refbn-numba": ("refbn.audit.adapters.own:Own", ("numba",)),
    "refbn-reference": ("refbn.audit.adapters.own:Own", ("reference",)),
    "refbn-exact": ("refbn.audit.adapters.own:Own", ("exact",)),
}
"""Name → ("module:class", the class's arguments)."""

VARIANTS = tuple(n for n in ADAPTERS if n.startswith("torch-") or "-opset" in n or n == "tensorflow-eager")
"""Other ways to ask a framework that is in the table already; `torch-compile` takes minutes."""

BY_DEFAULT = tuple(name for name in ADAPTERS if name != "refbn" and name not in VARIANTS)
"""What is audited when no framework is named; "refbn" is another name of "refbn-native"."""

ZOO = "refbn.audit.adapters.zoo"
"""The module with our own classic mistakes: its dict ``ZOO`` maps a mistake's name to an adapter class."""


def names() -> list[str]:
    """Return every name that `load` understands, those of the zoo's members included."""
    return [*ADAPTERS, "zoo", *(f"zoo-{mistake}" for mistake in _zoo())]


def is_ours(name: str) -> bool:
    """Whether a name is refbn's own or the zoo's: code of this checkout, which runs in this interpreter alone."""
    return name.partition("-")[0] in ("refbn", "zoo")


def load(name: str) -> list[Adapter]:
    """Return the adapters of a name: one, or for ``"zoo"`` all its members.

    Raises
    ------
    DomainError
        If there is no such framework.
    """
    if name == "zoo":
        return [_member(mistake) for mistake in _zoo()]
    mistake = name.removeprefix("zoo-")
    if mistake != name and mistake in _zoo():
        return [_member(mistake)]
    if name not in ADAPTERS:
        raise DomainError(f"framework: {name!r}, expected one of {', '.join(names())}", argument="framework")
    path, arguments = ADAPTERS[name]
    module, _, attribute = path.partition(":")
    return [cast(Adapter, getattr(import_module(module), attribute)(*arguments))]


def _member(mistake: str) -> Adapter:
    """Return one of the zoo, under the name by which it can be asked for again."""
    adapter = cast(Adapter, _zoo()[mistake]())
    adapter.name = f"zoo-{mistake}"
    return adapter


def _zoo() -> dict[str, Any]:
    return cast("dict[str, Any]", import_module(ZOO).ZOO)
