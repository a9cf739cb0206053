"""The families of cases: literal, ordered tables, one function a family.

No row is made for one framework or one known defect. A row stands for a property that any implementation can get
wrong, and the public threads that audit reports cite (named in comments) must fall out of the tables by themselves.
Tensors stay small: the oracle's time grows with the number of elements, and no property needs many. Where
the size itself is the property, a small tensor is repeated (see ``repeat`` in `refbn.audit.cases`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from refbn.audit.adapters._protocol import EVAL, TRAINING
from refbn.audit.cases import FAMILIES, LAYOUTS, Case

__all__ = ["FAMILY_TABLE", "Depth", "all_cases"]

Depth = Literal["quick", "full"]
Row = tuple[str, tuple[int, ...], dict[str, Any]]  # dtype, shape, the other fields that are not default

_FIRST = ("forward", "vjp", "jvp")
_FIRST_EVAL = ("inference", "vjp_eval", "jvp_eval")
_SECOND = ("rev_rev", "fwd_rev", "rev_fwd", "fwd_fwd")
_SECOND_EVAL = tuple(f"{name}_eval" for name in _SECOND)
_DERIVATIVES = tuple(op.name for op in (*TRAINING, *EVAL) if op.composition)
_HALVES = ("f16", "bf16")


def _cross(family: str, operations: Iterable[str], rows: Iterable[Row]) -> Iterator[Case]:
    operations = tuple(operations)
    for dtype, shape, fields in rows:
        for operation in operations:
            yield Case(family, operation, dtype, shape, **fields)


def _composition(depth: Depth) -> Iterator[Case]:
    """Every nesting of reverse and forward mode, with a loss under which no term of the truth vanishes.

    In binary32 and binary64; the half types, which lose digits of their own, are among the types.
    """
    rows: list[Row] = [
        ("f64", (6, 2), {}),  # pytorch#196699
        ("f64", (4, 3, 5), {}),  # pytorch#186256
        ("f32", (4, 3, 5), {"seed": 1}),
    ]
    if depth == "full":
        rows += [
            ("f64", (6, 2), {"eps": 1e-3, "seed": 2}),
            ("f64", (3, 2, 3, 2), {"eps": 0.5, "offset": 3.0, "scale": 2.0, "seed": 3}),
            ("f32", (6, 2), {"seed": 4}),
            ("f32", (2, 3, 2, 2, 2), {"eps": 0.01, "scale": 0.125, "seed": 5}),
            ("f32", (5, 4), {"data": "skewed", "seed": 6}),
        ]
    yield from _cross("composition", _DERIVATIVES, rows)


def _conditioning(depth: Depth) -> Iterator[Case]:
    """Data on which textbook-equivalent formulas part: large offsets, extreme sizes, odd distributions."""
    rows: list[Row] = [
        ("f32", (32, 4), {}),
        ("f32", (32, 4), {"offset": 100.0}),
        ("f32", (32, 4), {"offset": 4096.0}),  # google/flax#1491
        ("f32", (8, 3, 4, 4), {"offset": 1e4}),  # tensorflow#118701
        ("f32", (32, 4), {"offset": -1e6}),
        ("f32", (16, 3), {"scale": 3.0}),
        ("f32", (16, 3), {"scale": 1e-4}),
        ("f32", (16, 3), {"scale": 1e4}),
        ("f32", (4, 2), {"data": "ramp", "scale": 1e19}),  # pytorch#162489
        ("f32", (16, 3), {"scale": 1e30}),
        ("f32", (16, 3), {"data": "skewed"}),
        ("f64", (32, 4), {"offset": 4096.0}),
        ("f64", (16, 3), {"scale": 1e-4}),
        ("f64", (16, 3), {"scale": 1e8, "seed": 1}),
        ("f64", (16, 3), {"scale": 1e160, "seed": 1}),  # squares overflow binary64, too
        ("f64", (16, 3), {"offset": -1e10, "seed": 1}),
        ("f64", (7, 3), {"data": "integers", "scale": 1e20}),  # each channel's mean is one of its elements
        ("f16", (64, 3), {"offset": 1500.0, "scale": 100.0}),  # Σx is beyond 65504
        ("f16", (16, 3), {"scale": 1000.0}),  # the variance is beyond 65504
        ("bf16", (64, 3), {"offset": 40.0, "scale": 10.0}),
        ("bf16", (64, 3), {"offset": 301.0, "scale": 0.5}),  # two values; the format has no number at their mean
    ]
    if depth == "full":
        rows += [
            ("f32", (32, 4), {"offset": 1e4, "seed": 1}),
            ("f32", (32, 4), {"offset": 4096.0, "data": "bimodal", "seed": 1}),
            ("f32", (32, 4), {"offset": -4096.0, "scale": 1e3, "seed": 2}),
            ("f32", (8, 4, 4, 4), {"offset": 1e3, "scale": 0.1, "seed": 3}),
            ("f32", (32, 4), {"data": "bimodal", "seed": 1}),
            ("f32", (64, 3), {"data": "step", "seed": 1}),
            ("f32", (16, 3), {"scale": 1e-8, "seed": 1}),
            ("f32", (16, 3), {"scale": 1e-19, "seed": 1}),
            ("f32", (16, 3), {"scale": 1e-40, "seed": 1}),  # subnormal
            ("f32", (16, 3), {"scale": 1e8, "seed": 1}),
            ("f32", (16, 3), {"scale": 1e19, "seed": 1}),
            ("f32", (16, 3), {"scale": 1e36, "seed": 1}),
            ("f64", (32, 4), {"offset": 1e6, "seed": 1}),
            ("f64", (32, 4), {"offset": 1e10, "seed": 1}),
            ("f64", (16, 3), {"scale": 1e-150, "seed": 1}),
            ("f64", (16, 3), {"data": "skewed", "seed": 1}),
            ("f16", (16, 3), {"scale": 1e-4, "seed": 1}),
            ("f16", (300, 2), {"offset": 300.0, "scale": 30.0, "seed": 1}),
            ("bf16", (16, 3), {"scale": 1e19, "seed": 1}),
            ("bf16", (64, 3), {"offset": 300.0, "scale": 30.0, "seed": 1}),
        ]
    yield from _cross("conditioning", _FIRST, rows)
    chosen: list[Row] = [
        ("f32", (8, 3), {"offset": 100.0}),
        ("f64", (8, 3), {"scale": 3.0}),
        ("f64", (8, 3), {"scale": 0.003}),
        ("f64", (8, 3), {"scale": 1e120}),
    ]
    if depth == "full":
        chosen += [
            ("f32", (8, 3), {"offset": 4096.0, "seed": 1}),
            ("f32", (8, 3), {"scale": 1e-4, "seed": 1}),
            ("f32", (8, 3), {"scale": 1e4, "seed": 1}),
            ("f64", (8, 3), {"offset": 1e6, "seed": 1}),
            ("f64", (8, 3), {"data": "skewed", "seed": 1}),
        ]
    yield from _cross("conditioning", ("rev", *_SECOND), chosen)
    frozen: list[Row] = [
        ("f32", (8, 3), {"var": 9.0, "scale": 3.0}),  # pytorch#586, FlagGems#5222
        ("f64", (8, 3), {"var": 9.0, "scale": 3.0}),
        ("f64", (6, 3), {"var": 1e-8, "scale": 1e-4}),
        ("f32", (6, 3), {"offset": 4096.0, "scale": 2.0}),
        ("f64", (6, 3), {"offset": 50.0, "scale": 0.01, "var": 1.0}),  # onnx#5799: far from the batch's own
        ("f32", (6, 3), {"offset": 1e6}),
    ]
    if depth == "full":
        frozen += [
            ("f32", (6, 3), {"var": 1e8, "scale": 1e4, "seed": 1}),
            ("f32", (6, 3), {"var": 1e-8, "scale": 1e-4, "seed": 1}),
            ("f64", (6, 3), {"var": 0.0, "scale": 0.01, "eps": 0.01, "seed": 1}),
            ("f16", (6, 3), {"var": 9.0, "scale": 3.0, "seed": 1}),
            ("bf16", (6, 3), {"var": 9.0, "scale": 3.0, "seed": 1}),
        ]
    yield from _cross("conditioning", _FIRST_EVAL, frozen)
    yield from _cross("conditioning", ("rev_eval", *_SECOND_EVAL), frozen[: 2 if depth == "quick" else None])


def _shape(depth: Depth) -> Iterator[Case]:
    """Few elements, none, many, and every rank."""
    rows: list[Row] = [
        ("f32", (1, 3), {}),  # pytorch#1381, #77014
        ("f32", (2, 3), {}),
        ("f32", (3, 3), {}),
        ("f32", (0, 3), {}),  # pytorch#12013
        ("f32", (1, 3, 2), {}),
        ("f32", (3, 5, 7), {}),
        ("f32", (2, 3, 5, 7), {}),
        ("f32", (2, 3, 3, 1, 3), {}),
        ("f32", (7, 1), {}),
        ("f32", (2, 1024), {}),
        ("f32", (16, 2), {"repeat": 512}),
    ]
    if depth == "full":
        rows += [
            ("f64", (1, 3), {"seed": 1}),
            ("f64", (2, 3), {"seed": 1}),
            ("f64", (0, 3), {"seed": 1}),
            ("f64", (0, 3, 4, 4), {"seed": 1}),
            ("f64", (2, 3, 0), {"seed": 1}),
            ("f64", (3, 5, 7), {"seed": 1}),
            ("f64", (1, 4, 1, 1), {"seed": 1}),
            ("f64", (1, 4, 3, 3), {"seed": 1}),
            ("f32", (5, 7, 1, 1), {"seed": 1}),
            ("f32", (2, 17, 3, 5), {"seed": 1}),
            ("f32", (3, 2048), {"seed": 1}),
            ("f64", (16, 2), {"repeat": 512, "seed": 1}),
            ("f32", (64, 2), {"repeat": 2048, "seed": 1}),  # m = 2^17
            ("f16", (64, 2), {"repeat": 512, "seed": 1}),
            ("bf16", (64, 2), {"repeat": 512, "seed": 1}),
        ]
    yield from _cross("shape", (*_FIRST, *_FIRST_EVAL), rows)
    small: list[Row] = [("f64", (2, 3), {}), ("f64", (3, 2, 3), {})]
    if depth == "full":
        small += [("f32", (7, 1), {}), ("f64", (0, 3), {}), ("f64", (2, 3, 3, 1, 1), {}), ("f64", (1, 3), {})]
    yield from _cross("shape", ("rev", *_SECOND, "rev_eval", *_SECOND_EVAL), small)
    if depth == "full":
        yield Case("shape", "forward", "f32", (96, 1), repeat=2**18)  # m > 2^24, not a binary32 count any more


def _layout(depth: Depth) -> Iterator[Case]:
    """The same tensors with other strides."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("f32", (2, 3, 4, 5))]
    if depth == "full":
        shapes += [("f64", (3, 4, 5)), ("f32", (7, 5)), ("bf16", (2, 3, 4, 5)), ("f64", (2, 3, 2, 3, 2))]
    for dtype, shape in shapes:
        for layout in LAYOUTS:
            for operation in (*_FIRST, *_FIRST_EVAL, "rev_rev"):
                yield Case("layout", operation, dtype, shape, layout=layout)
                if layout != "contiguous" and operation in ("forward", "vjp", "jvp"):
                    yield Case("layout", operation, dtype, shape, layout=layout, check="layout")
            if layout != "contiguous":
                yield Case("layout", "running", dtype, shape, layout=layout, check="layout")


def _structure(depth: Depth) -> Iterator[Case]:
    """Where the truth is exactly zero or exactly β, or where the order of the batch must not matter."""
    rows: list[Row] = [
        ("f32", (16, 3), {"data": "constant"}),
        ("f32", (16, 3), {"data": "constant", "offset": 1e3}),
        ("f64", (6, 3, 3), {"data": "constant"}),
        ("f32", (16, 3), {"dy": "constant"}),
        ("f64", (9, 3), {"dy": "constant"}),
        ("f32", (16, 3), {"dy": "like-x"}),
        ("f64", (9, 3), {"dy": "like-x"}),
        ("f16", (16, 3), {"data": "constant"}),  # invstd is 316, its cube beyond 65504
    ]
    if depth == "full":
        rows += [
            ("f32", (5, 3, 7), {"data": "constant", "offset": -4096.0, "seed": 1}),
            ("f64", (7, 3), {"data": "constant", "offset": 1e6, "seed": 1}),
            ("f16", (16, 3), {"data": "constant", "seed": 1}),
            ("bf16", (16, 3), {"data": "constant", "seed": 1}),
            ("f32", (16, 3), {"dy": "constant", "offset": 100.0, "seed": 1}),
            ("f32", (16, 3), {"dy": "like-x", "offset": 10.0, "seed": 1}),
            ("f64", (2, 3), {"seed": 1}),  # P has rank 0: dx is κ times something small
            ("f16", (16, 3), {"dy": "constant", "seed": 1}),
            ("f32", (33, 3), {"data": "step", "offset": 7.0, "seed": 1}),
        ]
    yield from _cross("structure", _FIRST, rows)
    yield from _cross("structure", ("rev", *_SECOND), [("f64", (6, 3), {"data": "constant"})])
    for dtype in ("f32",) if depth == "quick" else ("f32", "f64", *_HALVES):
        for operation in ("forward", "vjp", "jvp", "running"):
            yield Case("structure", operation, dtype, (33, 3), check="permute")


def _state(depth: Depth) -> Iterator[Case]:
    """Running statistics over several batches, and calls that must leave no trace."""
    dtypes = ("f32",) if depth == "quick" else ("f32", "f64", *_HALVES)
    for dtype in dtypes:
        for momentum, steps in ((0.1, 1), (0.1, 3), (0.0, 2), (1.0, 2), (0.9, 3), (None, 1), (None, 4)):
            yield Case("state", "running", dtype, (8, 3, 2), momentum=momentum, steps=steps, scale=3.0)
        yield Case("state", "running", dtype, (2, 3), steps=2)  # m/(m − 1) is far from 1
        yield Case("state", "running", dtype, (1, 3))
        yield Case("state", "running", dtype, (0, 3))
        for momentum in (0.1, 1.0):
            yield Case("state", "train_eval_train", dtype, (8, 3, 2), momentum=momentum, offset=2.0)
        for check in ("idempotent", "unmodified", "threads"):
            for operation in ("forward", "vjp", "jvp", "rev_rev", "inference", "running", "train_eval_train"):
                yield Case("state", operation, dtype, (8, 3, 5), check=check)
        yield Case("state", "train_eval_train", dtype, (8, 3, 5), check="momentum")
    yield Case("state", "forward", "f32", (4, 8, 16, 16), check="threads")
    if depth == "full":
        yield Case("state", "vjp", "f32", (4, 8, 16, 16), check="threads")
        yield Case("state", "forward", "f32", (32, 4, 5), check="threads", repeat=512)
        yield Case("state", "vjp", "f32", (32, 4, 5), check="threads", repeat=512)
        yield Case("state", "running", "f64", (8, 3, 2), steps=12, momentum=0.01, offset=100.0)


def _special(depth: Depth) -> Iterator[Case]:
    """NaN and infinity in one channel stay there; so does a variance of zero with ε = 0."""
    dtypes = ("f32",) if depth == "quick" else ("f32", "f64", "bf16")
    for dtype in dtypes:
        for special in ("nan", "inf", "-inf"):
            for operation in (*_FIRST, *_FIRST_EVAL, "running", "train_eval_train"):  # pytorch#115500
                yield Case("special", operation, dtype, (5, 3, 2), special=special)
        for special in ("nan@dy", "inf@dy"):
            for operation in ("vjp", "vjp_eval"):
                yield Case("special", operation, dtype, (5, 3, 2), special=special)
        for operation in ("rev", "rev_rev", "rev_eval"):
            yield Case("special", operation, dtype, (4, 3), special="nan")
        for operation in (*_FIRST, "rev_rev"):  # ε = 0 is a domain question before it is one of digits
            yield Case("special", operation, dtype, (6, 3), data="constant", eps=0.0)
            yield Case("special", operation, dtype, (6, 3), dy="like-x", eps=0.0)


def _types(depth: Depth) -> Iterator[Case]:
    """Parameters of another format than the data, and ε and momentum that a narrower attribute would round."""
    mixed: list[Row] = [(half, (16, 3, 2), {"param": "f32"}) for half in _HALVES]
    mixed += [(half, (16, 3, 2), {}) for half in _HALVES]
    mixed += [("f64", (16, 3), {"scale": 0.001, "eps": 1e-5})]
    if depth == "full":
        mixed += [(half, (16, 3, 2), {"param": "f32", "offset": 30.0, "seed": 1}) for half in _HALVES]
        mixed += [
            ("f32", (16, 3), {"param": "f64", "seed": 1}),
            ("f64", (16, 3), {"param": "f32", "seed": 1}),
            ("f64", (16, 3), {"scale": 0.01, "eps": 0.0001, "seed": 1}),
            ("f32", (16, 3), {"scale": 0.01, "eps": 1e-12, "seed": 1}),
            ("f32", (16, 3), {"eps": 1e-3, "scale": 0.03, "seed": 1}),
        ]
    yield from _cross("types", (*_FIRST, *_FIRST_EVAL), mixed)
    yield from _cross("types", ("rev_rev",), mixed[:2] if depth == "quick" else mixed)
    if depth == "full":
        yield from _cross("types", _DERIVATIVES, [(half, (4, 3, 5), {"seed": 1}) for half in _HALVES])
    state: list[Row] = [("f64", (8, 3), {"momentum": 0.1, "steps": 2})]
    state += [(half, (8, 3), {"param": "f32", "steps": 2}) for half in _HALVES]
    yield from _cross("types", ("running",), state)


def _exact(depth: Depth) -> Iterator[Case]:
    """Mean and variance exact in any order of summation: the statistics have no error to be forgiven."""
    for dtype in ("f32", "f64", *_HALVES):
        yield Case("exact", "forward", dtype, (16, 3, 2), data="integers")
        yield Case("exact", "forward", dtype, (64, 2), data="integers", seed=1)
    yield Case("exact", "forward", "f32", (16, 2), data="integers", repeat=256)
    if depth == "full":
        for half in _HALVES:
            yield Case("exact", "forward", half, (16, 3, 2), data="integers", param="f32")
        for dtype in ("f32", "f64"):
            yield Case("exact", "forward", dtype, (8, 3, 2, 2), data="integers", layout="channels-last")
            yield Case("exact", "forward", dtype, (32, 2), data="integers", repeat=1024, seed=1)
            yield Case("exact", "running", dtype, (16, 3, 2), data="integers", momentum=1.0)
        # 2^25 elements: a binary32 count or sum would stand still, yet the truth is that of sixteen of them.
        yield Case("exact", "forward", "f32", (16, 1), data="integers", repeat=2**21)


def _norms(depth: Depth) -> Iterator[Case]:
    """Layer, group and instance norm, with what each of the other families looks for.

    gamma varies within a layer's or a group's statistics, and its gradient adds up over samples with statistics of
    their own. The quick depth asks each row one operation, in turn.
    """
    full = depth == "full"
    splits: list[tuple[str, tuple[int, ...]]] = [("layer", (4, 3, 5)), ("group2", (3, 4, 5)), ("instance", (3, 2, 7))]
    if full:
        splits += [("layer", (5, 16)), ("group3", (2, 6, 2, 3)), ("group4", (3, 4, 5)), ("instance", (2, 3, 3, 3))]
    for place, (norm, shape) in enumerate(splits):
        derivatives: list[tuple[str, dict[str, Any]]] = [("f64", {})]
        first: list[tuple[str, dict[str, Any]]] = [
            ("f32", {"scale": 1e19}),  # x² is beyond binary32
            ("f32", {"offset": 4096.0}),
            ("f16", {"scale": 1000.0}),  # the variance is beyond 65504
            ("f32", {"offset": 1e6}),
            ("f64", {"offset": 1e12}),
            ("f32", {"layout": "channels-last"}),
            ("bf16", {"offset": 301.0, "scale": 0.5}),
            ("f32", {"data": "constant"}),
        ]
        if full and place < 3:
            derivatives += [
                ("f32", {"seed": 1}),
                ("f32", {"offset": 100.0, "seed": 2}),
                ("f64", {"eps": 1e-3, "offset": 3.0, "scale": 2.0, "seed": 2}),
                ("f64", {"scale": 1e120, "seed": 1}),
            ]
            first += [("f32", {"offset": offset, "seed": 1}) for offset in (0.0, 100.0, 1e3, -1e4, 1e5, 1e7)]
            first += [("f32", {"scale": scale, "seed": 1}) for scale in (1e-40, 1e-19, 1e-4, 1e4, 1e30, 1e36)]
            first += [("f64", {"scale": scale, "seed": 1}) for scale in (1e-150, 1e-4, 1e8, 1e160)]
            first += [("f64", {"offset": 4096.0, "seed": 1}), ("f64", {"eps": 0.5, "seed": 1})]
            first += [("f32", {"data": data, "seed": 1}) for data in ("skewed", "bimodal", "step", "ramp")]
            first += [
                ("f32", {"data": "constant", "offset": 1e3, "seed": 1}),
                ("f16", {"data": "constant", "seed": 1}),  # invstd is 316, its cube beyond 65504
                ("f32", {"data": "constant", "eps": 0.0, "seed": 1}),
                ("f32", {"dy": "constant", "seed": 1}),
                ("f32", {"dy": "like-x", "offset": 10.0, "seed": 1}),
                ("f32", {"special": "nan", "seed": 1}),
                ("f32", {"special": "inf", "seed": 1}),
                ("f32", {"repeat": 256, "seed": 1}),  # a gradient of gamma adds up over many samples
            ]
            first += [("f32", {"layout": layout}) for layout in LAYOUTS if layout != "channels-last"]
            for half in _HALVES:
                first += [
                    (half, {"seed": 1}),
                    (half, {"param": "f32", "seed": 1}),
                    (half, {"offset": 300.0, "scale": 30.0, "seed": 1}),
                    (half, {"repeat": 256, "seed": 1}),
                ]
            for check in ("idempotent", "unmodified", "threads", "permute"):
                for operation in (*_FIRST, "rev_rev"):
                    yield Case("norms", operation, "f32", shape, check=check, norm=norm)
        yield from _cross(
            "norms", (op.name for op in TRAINING), [(dtype, shape, {**f, "norm": norm}) for dtype, f in derivatives]
        )
        for turn, (dtype, fields) in enumerate(first):
            again = ("rev",) if dtype in _HALVES else ()  # a gradient that can be differentiated again
            for operation in (*_FIRST, *again) if full else _FIRST[turn % 3 :][:1]:
                yield Case("norms", operation, dtype, shape, **fields, norm=norm)
    few: list[Row] = [
        ("f32", (3, 1), {"norm": "layer"}),
        ("f32", (2, 3, 1), {"norm": "instance"}),
        ("f32", (0, 4, 3), {"norm": "group2"}),
    ]
    if full:
        few += [
            ("f32", (2, 4), {"norm": "group4"}),
            ("f32", (0, 4, 3), {"norm": "layer"}),
            ("f32", (0, 4, 3), {"norm": "instance"}),
            ("f64", (2, 3, 0), {"norm": "instance"}),
            ("f64", (2, 4, 0), {"norm": "group2"}),
            ("f32", (1, 6), {"norm": "layer"}),
            ("f64", (1, 1), {"norm": "layer"}),
            ("f64", (2, 2), {"norm": "layer"}),
            ("f32", (2, 1024), {"norm": "layer"}),
            ("f32", (2, 4, 300), {"norm": "group2"}),
            ("f32", (2, 3, 2, 3, 2), {"norm": "instance"}),
        ]
        for dtype in ("f32", "f64", *_HALVES):
            for norm, shape in (("layer", (2, 4, 4)), ("group2", (2, 4, 8)), ("instance", (4, 2, 16))):
                yield Case("norms", "forward", dtype, shape, data="integers", norm=norm)
    yield from _cross("norms", (*_FIRST, "rev_rev", "rev_fwd") if full else ("forward",), few)


FAMILY_TABLE: dict[str, Callable[[Depth], Iterator[Case]]] = {
    "composition": _composition,
    "conditioning": _conditioning,
    "shape": _shape,
    "layout": _layout,
    "structure": _structure,
    "state": _state,
    "special": _special,
    "types": _types,
    "exact": _exact,
    "norms": _norms,
}
assert tuple(FAMILY_TABLE) == FAMILIES


def all_cases(depth: Depth, families: Iterable[str] = FAMILIES) -> list[Case]:
    """Return the cases of some families, in the tables' order; none comes twice."""
    wanted = set(families)
    found = [case for name, family in FAMILY_TABLE.items() if name in wanted for case in family(depth)]
    return list(dict.fromkeys(found))
