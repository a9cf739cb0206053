"""One case of the audit: a line of text that fixes every input bit.

A descriptor has no spaces and reads ``family:operation:dtype:shape[:key=value,…]``, for example
::

    conditioning:vjp:f32:32x4x5:data=skewed,offset=4096,layout=sliced,seed=3

Keys that keep their default are left out; those present come in the order of the table below, and
``parse(str(case)) == case`` always holds.

=============  =========================================================================================
family         one of `FAMILIES`; it says why the case exists and changes no input
operation      one of `refbn.audit.adapters._protocol.OPERATIONS`
dtype          ``f16``, ``bf16``, ``f32`` or ``f64``: the format of x, dy, w and the direction of x
shape          N×C×…; the channels stand on axis 1
``param``      format of gamma, beta, the statistics and their directions; the dtype itself by default
``data``       how z is drawn, see `DATA`; x is ``offset + scale·z``, rounded to the dtype
``offset``     (default 0)
``scale``      (default 1); x_dot and the frozen statistics take their size from it
``dy``         ``normal``; ``constant`` in each channel; ``like-x``: in the span of 1 and x̂
``special``    ``nan``, ``inf`` or ``-inf`` at one place of one channel of x; ``nan@dy`` etc. of dy
``layout``     strides of all arrays, see `LAYOUTS`
``eps``        ε (default 1e-05)
``var``        the frozen variance of every channel; by default drawn near scale²
``momentum``   a number in the sense of the framework's dialect, or ``none`` (default 0.1)
``steps``      number of training batches of the operations that keep state (default 1)
``check``      the invariant that is checked instead of the values, see `CHECKS`
``repeat``     a power of two: the tensors are tiled this many times along the batch (default 1)
``seed``       (default 0)
``norm``       ``batch`` (default), ``layer`` (statistics over all axes but the first), ``instance``, or
               ``group2``, …: any number of groups that divides C; but for batch norm only training without state
=============  =========================================================================================

What holds for each channel (data, dy) holds for each *group* in other norms: whatever has statistics of its own.

**Reproducible on every machine.** Values come from the raw 64-bit output of PCG64, which NumPy keeps stable, through
additions, multiplications and comparisons in binary64 alone (no function of a C library), and are rounded once
to their format. Each array has its own stream, so that one does not change when another one is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._errors import DomainError
from refbn._formats import FORMATS, Format, round_to
from refbn._geometry import Geometry, batch_norm, group_norm, instance_norm, layer_norm
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Inputs, Operation, kind_and_groups

__all__ = ["CHECKS", "DATA", "FAMILIES", "LAYOUTS", "Case", "geometry_of", "make_inputs", "parse"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

FAMILIES = (
    "composition",
    "conditioning",
    "shape",
    "layout",
    "structure",
    "state",
    "special",
    "types",
    "exact",
    "norms",
)
CHECKS = ("", "idempotent", "unmodified", "threads", "permute", "momentum", "layout")
_DY = ("normal", "constant", "like-x")
_SPECIAL_VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SPECIAL_ARRAYS = ("x", "dy")
_FORMATS = {f.short: f for f in FORMATS}
_NORMS = ("batch", "layer", "instance", "group")


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its inputs, fully described by its own text (see the module).

    Raises
    ------
    DomainError
        If a field has a value that the module's table does not allow.
    """

    family: str
    operation: str
    dtype: str
    shape: tuple[int, ...]
    param: str = ""
    data: str = "normal"
    offset: float = 0.0
    scale: float = 1.0
    dy: str = "normal"
    special: str = ""
    layout: str = "contiguous"
    eps: float = 1e-5
    var: float | None = None
    momentum: float | None = 0.1
    steps: int = 1
    check: str = ""
    repeat: int = 1
    seed: int = 0
    norm: str = "batch"

    def __post_init__(self) -> None:
        if self.param == self.dtype:  # one spelling for each case
            object.__setattr__(self, "param", "")
        value, _, array = self.special.partition("@")
        kind, groups = kind_and_groups(self.norm)
        frozen_or_kept = self.operation in OPERATIONS and (self.op.frozen or self.op in STATE)
        for name, fine, expected in (
            ("family", self.family in FAMILIES, f"one of {', '.join(FAMILIES)}"),
            ("operation", self.operation in OPERATIONS, f"one of {', '.join(OPERATIONS)}"),
            ("dtype", self.dtype in _FORMATS, f"one of {', '.join(_FORMATS)}"),
            ("shape", len(self.shape) >= 2 and min(self.shape) >= 0, "at least two sizes, none of them negative"),
            ("shape", len(self.shape) < 2 or self.shape[1] > 0, "at least one channel"),
            ("param", self.param == "" or self.param in _FORMATS, f"one of {', '.join(_FORMATS)}"),
            ("data", self.data in DATA, f"one of {', '.join(DATA)}"),
            ("offset", math.isfinite(self.offset), "a finite number"),
            ("scale", math.isfinite(self.scale) and self.scale > 0, "a finite number greater than 0"),
            ("dy", self.dy in _DY, f"one of {', '.join(_DY)}"),
            (
                "special",
                self.special == "" or (value in _SPECIAL_VALUES and (array or "x") in _SPECIAL_ARRAYS),
                "nan, inf or -inf, then nothing or @x or @dy",
            ),
            ("layout", self.layout in LAYOUTS, f"one of {', '.join(LAYOUTS)}"),
            ("eps", math.isfinite(self.eps) and self.eps >= 0, "a finite number that is not negative"),
            ("var", self.var is None or (math.isfinite(self.var) and self.var >= 0), "a finite number, not negative"),
            ("momentum", self.momentum is None or math.isfinite(self.momentum), "a finite number, or none"),
            ("steps", self.steps >= 1, "a whole number, at least 1"),
            ("check", self.check in CHECKS, f"one of {', '.join(c for c in CHECKS if c)}"),
            ("repeat", self.repeat >= 1 and self.repeat & (self.repeat - 1) == 0, "a power of two"),
            ("seed", self.seed >= 0, "a whole number, not negative"),
            ("norm", kind in _NORMS and (kind == "group") == (kind != self.norm), "batch, layer, instance, group2, …"),
            (
                "norm",
                len(self.shape) < 2 or (groups > 0 and self.shape[1] % groups == 0),
                "groups that divide the channels",
            ),
            (
                "norm",
                kind == "batch" or not frozen_or_kept,
                f"batch: {self.operation} has statistics that are given or kept",
            ),
            *(
                (name, kind == "batch" or getattr(self, name) == default, f"{default!r}, as {self.norm} norm has none")
                for name, default in (("var", None), ("momentum", 0.1), ("steps", 1))
            ),
        ):
            if not fine:
                raise DomainError(f"case: {name} is {getattr(self, name)!r}, expected {expected}", argument="case")

    def __str__(self) -> str:
        head = f"{self.family}:{self.operation}:{self.dtype}:{'x'.join(map(str, self.shape))}"
        options = [
            f"{f.name}={_show(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if f.default is not dataclasses.MISSING and getattr(self, f.name) != f.default
        ]
        return head + (":" + ",".join(options) if options else "")

    @property
    def format(self) -> Format:
        """The format of the tensors."""
        return _FORMATS[self.dtype]

    @property
    def param_format(self) -> Format:
        """The format of gamma, beta and the statistics."""
        return _FORMATS[self.param or self.dtype]

    @property
    def op(self) -> Operation:
        """The operation that is asked for."""
        return OPERATIONS[self.operation]

    @property
    def geometry(self) -> Geometry:
        """How the norm splits the axes, of one repetition."""
        return geometry_of(self.norm, self.shape)

    @property
    def count(self) -> int:
        """m: the number of elements that a set of statistics runs over, a channel's in batch norm."""
        return self.geometry.count * (self.repeat if self.norm == "batch" else 1)


def geometry_of(norm: str, shape: tuple[int, ...]) -> Geometry:
    """Return how a norm splits a tensor's axes."""
    kind, groups = kind_and_groups(norm)
    if kind == "layer":
        return layer_norm(shape, tuple(range(1, len(shape))))
    if kind == "group":
        return group_norm(shape, 1, groups)
    return (instance_norm if kind == "instance" else batch_norm)(shape, 1)


def _show(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _float_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "offset": float,
    "scale": float,
    "eps": float,
    "var": _float_or_none,
    "momentum": _float_or_none,
    "steps": int,
    "repeat": int,
    "seed": int,
}
_OPTIONS = tuple(f.name for f in dataclasses.fields(Case) if f.default is not dataclasses.MISSING)


def parse(text: str) -> Case:
    """Read a descriptor.

    Raises
    ------
    DomainError
        If the text is not one; the message says which part.
    """

    def bad(what: str) -> DomainError:
        return DomainError(
            f"case: {text!r}: {what}; a descriptor reads family:operation:dtype:shape[:key=value,…], "
            "such as shape:forward:f32:2x3x5:eps=0.001",
            argument="case",
        )

    parts = text.split(":")
    if len(parts) not in (4, 5):
        raise bad(f"{len(parts)} parts between colons, expected 4 or 5")
    try:
        shape = tuple(int(size) for size in parts[3].split("x"))
    except ValueError:
        raise bad(f"shape {parts[3]!r}, expected whole numbers joined by x") from None
    options: dict[str, Any] = {}
    for item in parts[4].split(",") if len(parts) == 5 else ():
        key, equals, value = item.partition("=")
        if not equals or key not in _OPTIONS:
            raise bad(f"{item!r}, expected key=value with a key among {', '.join(_OPTIONS)}")
        if key in options:
            raise bad(f"{key} is given twice")
        try:
            options[key] = _READERS.get(key, str)(value)
        except ValueError:
            raise bad(f"{key}={value!r} is not a number") from None
    return Case(parts[0], parts[1], parts[2], shape, **options)


# ---- random numbers ----------------------------------------------------------------------------------------------


def _uniform(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """Draw from (0, 1): odd multiples of 2^−53."""
    raw = np.random.PCG64(list(seed)).random_raw(math.prod(shape))
    return (np.asarray(raw, np.uint64) >> np.uint64(12)).astype(np.float64).reshape(shape) * 2.0**-52 + 2.0**-53


def _normal(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """Draw nearly normal numbers of mean 0 and variance 1: sums of twelve uniform ones (Irwin–Hall)."""
    parts = _uniform(seed, (12, *shape))
    total = np.zeros(shape)
    for part in parts:  # in this order on every machine
        total += part
    return total - 6.0


def _skewed(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """A few large values among many small ones."""
    u = _uniform(seed, shape)
    return 8.0 * (u * u) * (u * u) - 1.0


def _bimodal(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    return np.where(_uniform((*seed, 1), shape) < 0.4, -2.0, 1.5) + 0.125 * _normal(seed, shape)


def _ramp(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """1, 2, 3, … in each channel."""
    rest = (shape[0], *shape[2:])
    line = np.arange(1.0, math.prod(rest) + 1).reshape(rest)
    return np.broadcast_to(np.expand_dims(line, 1), shape)


def _constant(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    column = _normal(seed, (1, shape[1], *(1 for _ in shape[2:])))
    return np.broadcast_to(column, shape)


def _constant_dy(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    return np.broadcast_to(0.5 + _uniform(seed, (1, shape[1], *(1 for _ in shape[2:]))), shape)


def _step(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """Constant but for the first element of the batch: the smallest variance that data with an outlier can have."""
    z = _constant(seed, shape).copy()
    z[:1] += 1.0
    return z


def _integers(seed: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    """Small integers, those of the second half of the batch mirrored at the channel's own mean.

    As in benchdnn's bnorm: every partial sum of x, of x − mean and of their squares is an integer below 2^24, in any
    order; and with a power of two of elements mean and variance are exact too.
    """
    half = shape[0] // 2
    deviation = np.floor(_uniform((*seed, 1), (half, *shape[1:])) * 8.0) + 1.0
    centre = np.floor(_uniform(seed, (1, shape[1], *(1 for _ in shape[2:]))) * 16.0) - 8.0
    z = np.broadcast_to(centre, shape).copy()
    z[:half] += deviation
    z[half : 2 * half] -= deviation
    return z


DATA: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], Doubles]] = {
    "normal": _normal,
    "skewed": _skewed,
    "bimodal": _bimodal,
    "ramp": _ramp,
    "constant": _constant,
    "step": _step,
    "integers": _integers,
}
"""How z is drawn: mean about 0 and variance about 1, but for the ramp, the constant and the integers."""


# ---- layouts -----------------------------------------------------------------------------------------------------


def _contiguous(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape, dtype)


def _channels_last(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.moveaxis(np.empty((shape[0], *shape[2:], *shape[1:2]), dtype), -1, min(1, len(shape) - 1))


def _sliced(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Every second element of each axis of a larger array that is NaN elsewhere."""
    large = np.full(tuple(2 * size + 1 for size in shape), np.nan, dtype)
    return large[tuple(slice(1, None, 2) for _ in shape)]


def _transposed(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape[::-1], dtype).T


def _negative(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape, dtype)[tuple(slice(None, None, -1) for _ in shape)]


LAYOUTS: dict[str, Callable[[tuple[int, ...], np.dtype[Any]], Array]] = {
    "contiguous": _contiguous,
    "channels-last": _channels_last,
    "sliced": _sliced,
    "transposed": _transposed,
    "negative": _negative,
    "read-only": _contiguous,
}
"""How the memory of an array of a given shape is laid out."""


# ---- inputs ------------------------------------------------------------------------------------------------------

# The streams of the arrays; a number must never change its meaning, or old descriptors would mean other data.
_STREAMS = {
    "x": 0,
    "dy": 1,
    "w": 2,
    "x_dot": 3,
    "gamma": 4,
    "beta": 5,
    "gamma_dot": 6,
    "beta_dot": 7,
    "mean": 8,
    "var": 9,
    "mean_dot": 10,
    "var_dot": 11,
    "running_mean": 12,
    "running_var": 13,
    "sign": 14,
}


def make_inputs(case: Case) -> Inputs:
    """Build all inputs of a case."""
    geometry = case.geometry
    channels = geometry.affine_shape

    def stream(name: str, step: int = 0) -> tuple[int, ...]:
        return (case.seed, _STREAMS[name], step)

    def lay(values: Doubles, form: Format) -> Array:
        array = LAYOUTS[case.layout](values.shape, form.dtype)
        array[...] = round_to(values, form.dtype)
        if case.layout == "read-only":
            array.flags.writeable = False
        return array

    def tensor(values: Doubles) -> Array:
        return lay(np.tile(values, (case.repeat, *(1 for _ in case.shape[1:]))), case.format)

    def vector(values: Doubles) -> Array:
        return lay(values, case.param_format)

    def data(step: int) -> Doubles:
        return case.offset + case.scale * by_group(DATA[case.data], stream("x", step))

    def by_group(draw: Callable[..., Doubles], seed: tuple[int, ...]) -> Doubles:
        """Draw what is described by channels; in other norms each group is a channel of its own."""
        if case.norm == "batch":
            return draw(seed, case.shape)
        return geometry.ungrouped(draw(seed, (geometry.count, geometry.groups)).T)

    def cotangent() -> Doubles:
        if case.dy == "constant":
            return by_group(_constant_dy, stream("dy"))
        if case.dy == "like-x":  # x itself over a power of two, so that rounding leaves the span of 1 and x̂ alone
            return data(0) * 2.0 ** -math.frexp(case.scale)[1]
        return 0.25 + _normal(stream("dy"), case.shape)

    values = {
        "x": data(0),
        "dy": cotangent(),
        "w": 0.125 + _normal(stream("w"), case.shape),
        "x_dot": case.scale * (0.25 + _normal(stream("x_dot"), case.shape)),
    }
    if case.special and min(case.shape) > 0:
        special, _, name = case.special.partition("@")
        place = tuple(size // 2 for size in case.shape)
        values[name or "x"] = values[name or "x"].copy()
        values[name or "x"][place] = _SPECIAL_VALUES[special]

    # Neither near 1 nor of one sign: a factor gamma that is missing or squared must show.
    sign = np.where(_uniform(stream("sign"), channels) < 0.5, -1.0, 1.0)
    gamma = sign * (0.375 + 2.0 * _uniform(stream("gamma"), channels))
    var = case.scale * case.scale * (0.5 + _uniform(stream("var"), channels))
    if case.var is not None:
        var = np.full(channels, case.var)
    return Inputs(
        x=tensor(values["x"]),
        dy=tensor(values["dy"]),
        w=tensor(values["w"]),
        x_dot=tensor(values["x_dot"]),
        gamma=vector(gamma),
        beta=vector(_normal(stream("beta"), channels)),
        gamma_dot=vector(_normal(stream("gamma_dot"), channels)),
        beta_dot=vector(_normal(stream("beta_dot"), channels)),
        mean=vector(case.offset + 0.5 * case.scale * _normal(stream("mean"), channels)),
        var=vector(var),
        mean_dot=vector(case.scale * _normal(stream("mean_dot"), channels)),
        var_dot=vector(0.5 * var * _normal(stream("var_dot"), channels)),
        running_mean=vector(_normal(stream("running_mean"), channels)),
        running_var=vector(0.5 + _uniform(stream("running_var"), channels)),
        eps=case.eps,
        momentum=case.momentum,
        batches=tuple(
            tensor(data(step) if step or not case.special else values["x"]) for step in range(_batches(case))
        ),
        norm=case.norm,
    )


def _batches(case: Case) -> int:
    """How many batches the operation sees: train_eval_train evaluates a second one."""
    if case.operation == "train_eval_train":
        return 2
    return case.steps if case.operation == "running" else 1
