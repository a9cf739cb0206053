"""The only place where argument errors are raised. Each constraint has a label, `CONSTRAINTS` is their table.

A check returns the normalised argument or raises an error that names the argument, what came, what is required
and the label. Nothing is computed or written before every check of a call has passed.
"""

from __future__ import annotations

import ctypes
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from refbn import dialects
from refbn._errors import (
    AxisError,
    BackendError,
    DomainError,
    DtypeError,
    LayoutError,
    RefbnError,
    SavedError,
    ShapeError,
)
from refbn._formats import FORMATS, format_of
from refbn._geometry import Geometry
from refbn._types import Array, Saved

__all__ = ["CONSTRAINTS"]

CONSTRAINTS: dict[str, str] = {
    "C1": "An array is an ndarray (not masked), exports DLPack from the CPU, or speaks NumPy's array protocol; "
    "its dtype is float16, bfloat16, float32 or float64.",
    "C2": "x has 2 to 32 axes; channel_axis is an int and one of them.",
    "C3": "gamma, beta, mean, var and what moves with them have the shape (C,), the size of x along channel_axis; "
    "layer norm's gamma and beta have the shape of x along axes.",
    "C4": "dy, x_dot, ddx and every other tensor have x's shape.",
    "C5": "eps is a real number, finite and >= 0.",
    "C6": "Training statistics need at least one element per channel (m >= 1).",
    "C7": "var >= 0 for frozen statistics; NaN is let through, as a missing value.",
    "C8": "saved is a Saved, made by forward or inference.",
    "C9": "Directions and cotangents of mean and var go with a Saved of inference only.",
    "C10": "out is an array for a pass with one tensor result, or a mapping from result names to arrays.",
    "C11": "An array in out has the result's shape and dtype, in native byte order.",
    "C12": "An array in out is writeable.",
    "C13": "An array in out shares memory with no input, no other output and not with itself.",
    "C14": "backend is None or the name of a backend that is available here and offers the pass.",
    "C15": "dtype is None or one of float16, bfloat16, float32, float64.",
    "C16": "momentum is a real number from 0 to 1, or None in a dialect that has a cumulative average.",
    "C17": "dialect is a Dialect or the name of one.",
    "C18": "A running variance with m - 1 needs at least two elements per channel (m >= 2).",
    "C19": "A series is a non-empty sequence of arrays of one shape.",
    "C20": "Dense derivatives are for small inputs: at most 2**26 elements in one result.",
    "C21": "num_features is an int >= 1, and x has as many channels.",
    "C22": "A number of threads is an int from 1 to 1024, in the environment variable REFBN_NUM_THREADS too.",
    "C23": "numba, and the backends of batch norm's relatives, need binary64 arithmetic that rounds to nearest and "
    "keeps subnormal numbers.",
    "C24": "axes is an int or a tuple of different ints, axes of x; at least one axis is left.",
    "C25": "groups is an int >= 1 that divides the number of channels.",
    "C26": "r_max is a real number >= 1, d_max one >= 0; infinity sets no limit.",
    "C27": "jacobian and hessian take a Saved of batch norm (forward, inference, weight_standardization).",
}

DENSE_LIMIT = 2**26
THREAD_LIMIT = 1024  # REFBN_MAX_THREADS of the C core

_SEEN: set[np.dtype[Any]] = set()  # dtypes of supported formats; a plain ndarray of one is spared the call of `array`


def fail(
    kind: type[RefbnError], argument: str, label: str, message: str, cause: BaseException | None = None
) -> NoReturn:
    """Raise ``kind`` with the message in the family's one form."""
    raise kind(f"{argument}: {message} [{label}]", argument=argument, label=label) from cause


# ---- arrays ----------------------------------------------------------------------------------------------------


def array(value: Any, argument: str) -> Array:
    """Return ``value`` as an ndarray of a supported format, without a copy where its memory can be seen. (C1)."""
    if isinstance(value, np.ma.MaskedArray):
        fail(DtypeError, argument, "C1", "a masked array, expected one without a mask")
    if isinstance(value, np.ndarray):
        result = value if type(value) is np.ndarray else value.view(np.ndarray)
    elif hasattr(value, "__dlpack__") or hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        try:
            result = _import(value)
        except Exception as error:  # every exporter has its own kinds of refusal; its words are passed on
            fail(DtypeError, argument, "C1", f"{_kind(value)} gives no array on the CPU: {error}", error)
    else:
        fail(DtypeError, argument, "C1", f"{_kind(value)}, expected an array")
    try:
        format_of(result.dtype)
    except KeyError:
        fail(DtypeError, argument, "C1", f"dtype {result.dtype}, expected one of {_format_names()}")
    _SEEN.add(result.dtype)
    return result


def _import(value: Any) -> Array:
    if not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    if str(getattr(value, "dtype", "")).endswith("bfloat16"):
        return _import_bfloat16(value)
    try:
        return np.from_dlpack(value)
    except (BufferError, TypeError, RuntimeError):
        if not hasattr(value, "__array__"):
            raise
        return np.asarray(value)


class _Capsule:
    """A DLPack capsule, offered to NumPy."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU


def _import_bfloat16(value: Any) -> Array:
    """Import a bfloat16 array through DLPack, which NumPy itself refuses: as uint16, then viewed."""
    from refbn._formats import BFLOAT16

    dtype = BFLOAT16.dtype
    if next(iter(value.__dlpack_device__())) != 1:
        raise BufferError("it is not in CPU memory")
    capsule = value.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: data pointer (8 bytes), device (2 x int32), ndim (int32), then the dtype's one-byte type code
    code = ctypes.c_uint8.from_address(pointer(capsule, b"dltensor") + 20)
    code.value = 1  # kDLUInt, instead of kDLBfloat
    return np.from_dlpack(_Capsule(capsule)).view(dtype)


def tensor(value: Any, argument: str, shape: tuple[int, ...]) -> Array:
    """Return an array of exactly x's shape. (C1, C4)."""
    result = value if type(value) is np.ndarray and value.dtype in _SEEN else array(value, argument)
    if result.shape != shape:
        fail(ShapeError, argument, "C4", f"shape {result.shape}, expected {shape}, the shape of x")
    return result


def vector(value: Any, argument: str, shape: tuple[int, ...], axes: int | tuple[int, ...]) -> Array:
    """Return an array of shape (C,), or of the shape of x along some axes. (C1, C3)."""
    result = value if type(value) is np.ndarray and value.dtype in _SEEN else array(value, argument)
    if result.shape != shape:
        one = isinstance(axes, int)
        where = f"the size of x along channel_axis={axes}" if one else f"the shape of x along axes={axes}"
        fail(ShapeError, argument, "C3", f"shape {result.shape}, expected {shape}, {where}")
    return result


def input_tensor(value: Any, channel_axis: Any, argument: str = "x") -> tuple[Array, int]:
    """Return x and its channel axis counted from the front. (C1, C2)."""
    x = value if type(value) is np.ndarray and value.dtype in _SEEN else array(value, argument)
    ndim = x.ndim
    if not 2 <= ndim <= 32:
        fail(ShapeError, argument, "C2", f"{ndim} axes, expected 2 to 32")
    if type(channel_axis) is int:
        axis = channel_axis
    elif isinstance(channel_axis, bool) or not isinstance(channel_axis, (int, np.integer)):
        fail(DtypeError, "channel_axis", "C2", f"{channel_axis!r}, expected an int")
    else:
        axis = int(channel_axis)
    if not -ndim <= axis < ndim:
        fail(AxisError, "channel_axis", "C2", f"{axis}, expected {-ndim} to {ndim - 1} for x of {ndim} axes")
    return x, axis % ndim


def feature_axes(axes: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that layer norm's statistics run over, counted from the front, in order. (C24)."""
    given = axes if isinstance(axes, tuple) else (axes,)
    for axis in given:
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            fail(DtypeError, "axes", "C24", f"{axis!r}, expected an int or a tuple of ints")
        if not -ndim <= axis < ndim:
            fail(AxisError, "axes", "C24", f"{axis}, expected {-ndim} to {ndim - 1} for x of {ndim} axes")
    counted = tuple(sorted({int(axis) % ndim for axis in given}))
    if len(counted) != len(given):
        fail(AxisError, "axes", "C24", f"{axes}, expected each axis once")
    if not 0 < len(counted) < ndim:
        fail(AxisError, "axes", "C24", f"{axes}, expected one axis at least, and one of x's {ndim} to remain")
    return counted


def channel_groups(value: Any, channels: int) -> int:
    """Return the number of groups that group norm splits the channels into. (C25)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        fail(DtypeError, "groups", "C25", f"{value!r}, expected an int")
    if value < 1 or channels % value:
        fail(ShapeError, "groups", "C25", f"{value}, expected a divisor of the {channels} channels")
    return int(value)


def limit(value: Any, argument: str, smallest: float) -> float:
    """Return the limit of a correction. (C26)."""
    number = _real(value, argument, "C26")
    if not number >= smallest:
        fail(DomainError, argument, "C26", f"{number}, expected at least {smallest:g}")
    return number


def channelwise(geometry: Geometry, operation: str) -> None:
    """Some results are batch norm's only. (C27)."""
    if not geometry.channelwise:
        message = f"of another norm, expected one of forward or inference: {operation} is batch norm's only"
        fail(SavedError, "saved", "C27", message)


def filled(geometry: Geometry, argument: str = "x") -> None:
    """Training needs elements. (C6)."""
    if geometry.count == 0:
        fail(ShapeError, argument, "C6", f"shape {geometry.shape} has no element per channel, expected at least one")


def frozen_variance(var: Array, argument: str = "var") -> None:
    """A variance is no negative number. (C7)."""
    if 1 not in np.signbit(var).tobytes():
        return
    with np.errstate(invalid="ignore"):
        negative = np.flatnonzero(var.astype(np.float64) < 0)
    if negative.size:
        index = int(negative[0])
        fail(DomainError, argument, "C7", f"{var[index]} at index {index}, expected values >= 0")


def series(values: Any, argument: str) -> tuple[Any, ...]:
    """Return the coefficients of a series. (C19)."""
    if isinstance(values, np.ndarray):
        values = tuple(values) if values.ndim else ()
    if not isinstance(values, Sequence):
        fail(DtypeError, argument, "C19", f"{_kind(values)}, expected a sequence of arrays")
    if not values:
        fail(ShapeError, argument, "C19", "no coefficients, expected at least the one of order 0")
    return tuple(values)


def dense(size: int, argument: str) -> None:
    """Dense derivatives must fit. (C20)."""
    if size > DENSE_LIMIT:
        fail(
            ShapeError,
            argument,
            "C20",
            f"the result would have {size} elements, expected at most {DENSE_LIMIT}",
        )


# ---- numbers and names -----------------------------------------------------------------------------------------


def epsilon(value: Any, argument: str = "eps") -> float:
    """Return ε as the binary64 number that was given. (C5)."""
    if type(value) is float and 0 <= value < math.inf:
        return value
    eps = _real(value, argument, "C5")
    if not (math.isfinite(eps) and eps >= 0):
        fail(DomainError, argument, "C5", f"{eps}, expected a finite number >= 0")
    return eps


def momentum(value: Any, dialect: dialects.Dialect) -> float | None:
    """Return the momentum. (C16)."""
    if value is None:
        if not dialect.cumulative:
            message = f"None, expected a number: the {dialect.name} dialect has no cumulative average"
            fail(DomainError, "momentum", "C16", message)
        return None
    number = _real(value, "momentum", "C16")
    if not 0 <= number <= 1:
        fail(DomainError, "momentum", "C16", f"{number}, expected 0 to 1")
    return number


def _real(value: Any, argument: str, label: str) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        fail(DtypeError, argument, label, f"{value!r}, expected a real number")
    try:
        return float(value)
    except OverflowError as error:
        fail(DomainError, argument, label, f"{value!r} is beyond binary64", error)


def dialect(value: Any) -> dialects.Dialect:
    """Return a dialect by name. (C17)."""
    if isinstance(value, dialects.Dialect):
        return value
    if value not in dialects.DIALECTS:
        fail(DomainError, "dialect", "C17", f"{value!r}, expected one of {', '.join(dialects.DIALECTS)}")
    return dialects.DIALECTS[value]


def result_dtype(value: Any, default: np.dtype[Any]) -> np.dtype[Any]:
    """Return the format of the results, in native byte order. (C15)."""
    if value is None:
        return default if default.isnative else default.newbyteorder("=")
    try:
        return format_of(value).dtype
    except (KeyError, TypeError) as error:
        fail(DtypeError, "dtype", "C15", f"{value!r}, expected one of {_format_names()}", error)


def saved(value: Any) -> Saved:
    """Return a `Saved`. (C8)."""
    if not isinstance(value, Saved):
        hint = " (pass its .saved)" if hasattr(value, "saved") else ""
        fail(SavedError, "saved", "C8", f"{_kind(value)}{hint}, expected the Saved of a forward or inference")
    return value


def no_frozen_argument(value: Any, argument: str) -> None:
    """Statistics computed from x are no inputs of their own. (C9)."""
    if value is not None:
        message = "given with a Saved of forward, expected None: only inference takes mean and var as inputs"
        fail(SavedError, argument, "C9", message)


def backend(name: Any, table: Iterable[str]) -> str:
    """Return the name of a known backend. (C14)."""
    if name not in tuple(table):
        fail(BackendError, "backend", "C14", f"{name!r}, expected None or one of {', '.join(table)}")
    return str(name)


def backend_missing(name: str, error: ImportError) -> NoReturn:
    """Complain that a known backend cannot be used here. (C14)."""
    fail(BackendError, "backend", "C14", f"{name!r} is not available here: {error}", error)


def backend_arithmetic(name: str, is_ieee: bool) -> None:
    """A thread may have set another rounding mode, or flush subnormal numbers to zero. (C23)."""
    if not is_ieee:
        message = "this thread rounds another way or flushes subnormal numbers to zero, expected neither"
        fail(BackendError, "backend", "C23", f"{name!r}: {message}")


def backend_offers(name: str, module: Any, operation: str) -> None:
    """A backend may lack a pass. (C14)."""
    if not hasattr(module, operation):
        fail(BackendError, "backend", "C14", f"{name!r} has no {operation}")


def unbiased_count(count: int, argument: str = "x") -> None:
    """m − 1 must not be zero. (C18)."""
    if count < 2:
        message = f"{count} element per channel, expected at least 2 for a running variance with m - 1"
        fail(ShapeError, argument, "C18", message)


def features(value: Any) -> int:
    """Return the number of channels of a layer. (C21)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        fail(DtypeError, "num_features", "C21", f"{value!r}, expected an int")
    if value < 1:
        fail(ShapeError, "num_features", "C21", f"{value}, expected at least 1")
    return int(value)


def feature_count(x: Array, channel_axis: int, num_features: int) -> None:
    """A layer sees as many channels as it was made for. (C21)."""
    if x.shape[channel_axis] != num_features:
        message = f"{x.shape[channel_axis]} channels along channel_axis={channel_axis}, expected {num_features}"
        fail(ShapeError, "x", "C21", message)


def threads(value: Any, argument: str = "n") -> int:
    """Return a number of threads. (C22)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        fail(DtypeError, argument, "C22", f"{value!r}, expected an int")
    number = int(value)
    if not 1 <= number <= THREAD_LIMIT:
        # Python refuses to write very long ints in decimal.
        shown = number if number.bit_length() < 64 else hex(number)
        fail(DomainError, argument, "C22", f"{shown}, expected 1 to {THREAD_LIMIT}")
    return number


def threads_variable(text: str, argument: str) -> int:
    """Return the number of threads that an environment variable asks for. (C22)."""
    try:
        value = int(text)
    except ValueError as error:
        fail(DomainError, argument, "C22", f"{text!r}, expected an int from 1 to {THREAD_LIMIT}", error)
    return threads(value, argument)


# ---- outputs ---------------------------------------------------------------------------------------------------


def outputs(out: Any, main: str | None, inputs: Iterable[Array | None], like: Mapping[str, Any]) -> Iterable[Any]:
    """Return the caller's arrays that results go to; None for a result that ``out`` has no array for. (C10 to C13).

    Parameters
    ----------
    out : ndarray or mapping
        As the public functions take it.
    main : str or None
        The result that a bare array stands for, if there is one.
    inputs : iterable of ndarray or None
        What the outputs must not overlap.
    like : mapping from str to ndarray or None
        Arrays of the results' shapes and dtypes by name; None for a result that the pass does not have.
    """
    if isinstance(out, np.ndarray):
        if main is None:
            fail(DtypeError, "out", "C10", f"an array, expected a mapping with keys from {_present(like)}")
        out = {main: out}
    elif not isinstance(out, (dict, Mapping)):  # dict first: asking the abstract class takes a while
        fail(
            DtypeError,
            "out",
            "C10",
            f"{_kind(out)}, expected an array or a mapping from result names to arrays",
        )
    arrays = dict(out)
    for name, target in arrays.items():
        own = like.get(name)
        if own is None:
            fail(DtypeError, "out", "C10", f"result {name!r}, expected names from {_present(like)}")
        _output(target, name, own.shape, own.dtype)
    _apart(arrays, inputs)
    return map(arrays.get, like)


def _present(like: Mapping[str, Any]) -> str:
    return ", ".join(name for name, array in like.items() if array is not None)


def _output(target: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check one array in out, for itself. (C10 to C13)."""
    if type(target) is np.ndarray and target.shape == shape and target.dtype == dtype and target.flags.carray:
        return  # dtype is in native byte order, and carray says contiguous, aligned and writeable
    argument = f"out[{name!r}]"
    if not isinstance(target, np.ndarray):
        fail(DtypeError, argument, "C10", f"{_kind(target)}, expected an ndarray")
    if target.shape != shape:
        fail(ShapeError, argument, "C11", f"shape {target.shape}, expected {shape}")
    if target.dtype != dtype or not (target.dtype.isnative and target.flags.aligned):
        fail(
            DtypeError,
            argument,
            "C11",
            f"dtype {target.dtype.str}, expected {dtype} in native byte order, aligned",
        )
    if not target.flags.writeable:
        fail(LayoutError, argument, "C12", "read-only, expected a writeable array")
    if _self_overlaps(target):
        fail(LayoutError, argument, "C13", f"strides {target.strides} put two elements at one place")


def _apart(targets: dict[str, Array], inputs: Iterable[Array | None]) -> None:
    """No array in out shares memory with an input or with another one. (C13).

    Two arrays that own their memory have nothing in common unless they are one: only views have to be compared.
    """
    owners: dict[int, Array] = {}
    views: list[Array] = []
    for array in inputs:
        if array is None:
            continue
        if array.flags.owndata:
            owners[id(array)] = array
        else:
            views.append(array)
    clashing = None
    for name, target in reversed(targets.items()):  # of two that clash the first is told
        if target.flags.owndata:
            others = [*views, target] if id(target) in owners else views
            owners[id(target)] = target
        else:
            others = [*views, *owners.values()]
            views.append(target)
        for other in others:
            if _overlap(target, other):
                clashing = name
    if clashing is not None:
        message = "shares memory with an input or another output, expected memory of its own"
        fail(LayoutError, f"out[{clashing!r}]", "C13", message)


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False  # their bounds are apart
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # any int, the stub knows two
    except np.exceptions.TooHardError:
        return True  # undecided within the budget: their bounds overlap, refuse


def _self_overlaps(a: Array) -> bool:
    """Whether two indices may meet at one address (sufficient for distinct: each stride spans all smaller axes)."""
    if a.flags.forc:
        return False  # contiguous
    reach = a.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _format_names() -> str:
    return ", ".join(f.name for f in FORMATS)
