"""Every constraint has a call that breaks it; each is told by its label, and nothing is written."""

from fractions import Fraction
from itertools import chain, combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import refbn
from refbn import _api, _validate
from refbn._formats import BFLOAT16

X = np.arange(24.0).reshape(2, 4, 3) ** 1.5
DY = np.cos(X)
VEC = np.linspace(0.5, 2.0, 4)


def saved(**options):
    return refbn.forward(X, **options).saved


def frozen():
    return refbn.inference(X, VEC, VEC).saved


def read_only(a):
    a.flags.writeable = False
    return a


class NoCpu:
    def __dlpack__(self, **_):
        raise BufferError("lives elsewhere")

    def __dlpack_device__(self):
        return (2, 0)


BAD_CALLS = [
    ("C3", "gamma", ValueError, lambda: refbn.layer_norm(X, VEC)),
    ("C3", "beta", ValueError, lambda: refbn.layer_norm(X, beta=np.ones((3, 4)), axes=(1, 2))),
    ("C3", "gamma", ValueError, lambda: refbn.group_norm(X, 2, VEC[:2])),
    ("C3", "r", ValueError, lambda: refbn.batch_renorm(X, VEC[:3], VEC)),
    ("C3", "d", ValueError, lambda: refbn.batch_renorm(X, VEC, VEC[:3])),
    ("C3", "running_mean", ValueError, lambda: refbn.renormalization(X, VEC[:3], VEC)),
    ("C6", "x", ValueError, lambda: refbn.layer_norm(np.ones((3, 0)))),
    ("C7", "running_var", ValueError, lambda: refbn.renormalization(X, VEC, -VEC)),
    ("C13", "out['mean']", ValueError, lambda: (lambda r: refbn.batch_renorm(X, r, VEC, out={"mean": r}))(VEC.copy())),
    ("C14", "backend", RuntimeError, lambda: refbn.layer_norm(X, backend="native")),
    ("C14", "backend", RuntimeError, lambda: refbn.forward(X, backend="enclosure")),
    ("C24", "axes", TypeError, lambda: refbn.layer_norm(X, axes=1.0)),
    ("C24", "axes", TypeError, lambda: refbn.layer_norm(X, axes=(1, True))),
    ("C24", "axes", IndexError, lambda: refbn.layer_norm(X, axes=3)),
    ("C24", "axes", IndexError, lambda: refbn.layer_norm(X, axes=(-1, 2))),
    ("C24", "axes", IndexError, lambda: refbn.layer_norm(X, axes=())),
    ("C24", "axes", IndexError, lambda: refbn.layer_norm(X, axes=(0, 1, 2))),
    ("C25", "groups", TypeError, lambda: refbn.group_norm(X, 2.0)),
    ("C25", "groups", ValueError, lambda: refbn.group_norm(X, 3)),
    ("C25", "groups", ValueError, lambda: refbn.group_norm(X, 0)),
    ("C26", "r_max", ValueError, lambda: refbn.renormalization(X, VEC, VEC, r_max=0.5)),
    ("C26", "d_max", ValueError, lambda: refbn.renormalization(X, VEC, VEC, d_max=-1)),
    ("C26", "d_max", ValueError, lambda: refbn.renormalization(X, VEC, VEC, d_max=float("nan"))),
    ("C26", "r_max", TypeError, lambda: refbn.renormalization(X, VEC, VEC, r_max="3")),
    ("C27", "saved", TypeError, lambda: refbn.jacobian(refbn.layer_norm(X).saved)),
    ("C27", "saved", TypeError, lambda: refbn.hessian(refbn.batch_renorm(X, VEC, VEC).saved, DY)),
    ("C8", "saved", TypeError, lambda: refbn.blindness(X, DY)),
    ("C4", "dy", ValueError, lambda: refbn.blindness(saved(), DY[:1])),
    ("C1", "x", TypeError, lambda: refbn.forward([[1.0, 2.0]])),
    ("C1", "x", TypeError, lambda: refbn.forward(None)),
    ("C1", "x", TypeError, lambda: refbn.forward(np.arange(6).reshape(2, 3))),
    ("C1", "x", TypeError, lambda: refbn.forward(X.astype(complex))),
    ("C1", "x", TypeError, lambda: refbn.forward(X.astype(object))),
    ("C1", "x", TypeError, lambda: refbn.forward(X.astype(np.longdouble))),
    ("C1", "x", TypeError, lambda: refbn.forward(X > 1)),
    ("C1", "x", TypeError, lambda: refbn.forward(np.ma.masked_less(X, 3.0))),
    ("C1", "x", TypeError, lambda: refbn.forward(NoCpu())),
    ("C1", "gamma", TypeError, lambda: refbn.forward(X, gamma=np.arange(4))),
    ("C1", "dy", TypeError, lambda: refbn.backward(saved(), 1.0)),
    ("C2", "x", ValueError, lambda: refbn.forward(X.ravel())),
    ("C2", "x", ValueError, lambda: refbn.forward(np.ones((1,) * 33))),
    ("C2", "channel_axis", IndexError, lambda: refbn.forward(X, channel_axis=3)),
    ("C2", "channel_axis", IndexError, lambda: refbn.forward(X, channel_axis=-4)),
    ("C2", "channel_axis", TypeError, lambda: refbn.forward(X, channel_axis=1.0)),
    ("C2", "channel_axis", TypeError, lambda: refbn.forward(X, channel_axis=True)),
    ("C3", "gamma", ValueError, lambda: refbn.forward(X, gamma=VEC[:3])),
    ("C3", "beta", ValueError, lambda: refbn.forward(X, beta=VEC[:, None])),
    ("C3", "mean", ValueError, lambda: refbn.inference(X, VEC[:1], VEC)),
    ("C3", "var", ValueError, lambda: refbn.inference(X, VEC, VEC[:2])),
    ("C3", "gamma_dot", ValueError, lambda: refbn.jvp(saved(), gamma_dot=VEC[:2])),
    ("C3", "ddbeta", ValueError, lambda: refbn.double_backward(saved(), DY, ddbeta=VEC[:2])),
    ("C3", "var_dot", ValueError, lambda: refbn.hvp(frozen(), DY, var_dot=VEC[:2])),
    ("C4", "dy", ValueError, lambda: refbn.backward(saved(), DY[:1])),
    ("C4", "x_dot", ValueError, lambda: refbn.jvp(saved(), x_dot=DY.T)),
    ("C4", "ddx", ValueError, lambda: refbn.double_backward(saved(), DY, ddx=DY[0])),
    ("C4", "dy", ValueError, lambda: refbn.hessian(saved(), DY[:, :2])),
    ("C5", "eps", ValueError, lambda: refbn.forward(X, eps=-1e-5)),
    ("C5", "eps", ValueError, lambda: refbn.forward(X, eps=float("nan"))),
    ("C5", "eps", ValueError, lambda: refbn.inference(X, VEC, VEC, eps=float("inf"))),
    ("C5", "eps", ValueError, lambda: refbn.forward(X, eps=10**400)),
    ("C5", "eps", TypeError, lambda: refbn.forward(X, eps="1e-5")),
    ("C5", "eps", TypeError, lambda: refbn.forward(X, eps=None)),
    ("C5", "eps", TypeError, lambda: refbn.BatchNorm(4, eps=True)),
    ("C6", "x", ValueError, lambda: refbn.forward(X[:0])),
    ("C6", "x", ValueError, lambda: refbn.forward(X[..., :0])),
    ("C6", "x_series", ValueError, lambda: refbn.taylor([X[:0]])),
    ("C7", "var", ValueError, lambda: refbn.inference(X, VEC, -VEC)),
    ("C8", "saved", TypeError, lambda: refbn.backward(refbn.forward(X), DY)),
    ("C8", "saved", TypeError, lambda: refbn.jvp(None)),
    ("C8", "saved", TypeError, lambda: refbn.double_backward(X, DY)),
    ("C8", "saved", TypeError, lambda: refbn.hvp({}, DY)),
    ("C8", "saved", TypeError, lambda: refbn.jacobian(X)),
    ("C8", "saved", TypeError, lambda: refbn.hessian(X, DY)),
    ("C9", "mean_dot", TypeError, lambda: refbn.jvp(saved(), mean_dot=VEC)),
    ("C9", "var_dot", TypeError, lambda: refbn.hvp(saved(), DY, var_dot=VEC)),
    ("C9", "ddvar", TypeError, lambda: refbn.double_backward(saved(), DY, ddvar=VEC)),
    ("C10", "out", TypeError, lambda: refbn.backward(saved(), DY, out=np.empty_like(X))),
    ("C10", "out", TypeError, lambda: refbn.forward(X, out={"z": np.empty_like(X)})),
    ("C10", "out", TypeError, lambda: refbn.forward(X, out=3)),
    ("C10", "out['y']", TypeError, lambda: refbn.forward(X, out={"y": [1.0]})),
    ("C11", "out['y']", ValueError, lambda: refbn.forward(X, out=np.empty((2, 4)))),
    ("C11", "out['y']", TypeError, lambda: refbn.forward(X, out=np.empty_like(X, dtype=np.float32))),
    ("C11", "out['y']", TypeError, lambda: refbn.forward(X, out=X.astype(X.dtype.newbyteorder("S")))),
    ("C11", "out['dgamma']", ValueError, lambda: refbn.backward(saved(), DY, out={"dgamma": np.empty(3)})),
    ("C12", "out['y']", ValueError, lambda: refbn.forward(X, out=read_only(np.empty_like(X)))),
    ("C13", "out['y']", ValueError, lambda: refbn.forward(X, out=X)),
    ("C13", "out['y']", ValueError, lambda: refbn.forward(X, out=X[::-1])),
    ("C13", "out['dgamma']", ValueError, lambda: overlapping_outputs()),
    ("C13", "out['y']", ValueError, lambda: self_overlapping_output()),
    ("C14", "backend", RuntimeError, lambda: refbn.forward(X, backend="fortran")),
    ("C14", "backend", RuntimeError, lambda: refbn.taylor([X], backend="numba")),
    ("C14", "backend", RuntimeError, lambda: refbn.BatchNorm(3, backend="cuda")),
    ("C15", "dtype", TypeError, lambda: refbn.forward(X, dtype=np.int8)),
    ("C15", "dtype", TypeError, lambda: refbn.forward(X, dtype="no dtype")),
    ("C16", "momentum", ValueError, lambda: refbn.BatchNorm(3, momentum=1.5)),
    ("C16", "momentum", ValueError, lambda: refbn.BatchNorm(3, momentum=float("nan"))),
    ("C16", "momentum", ValueError, lambda: refbn.BatchNorm(3, momentum=None, dialect="keras")),
    ("C16", "momentum", TypeError, lambda: refbn.BatchNorm(3, momentum="0.1")),
    ("C17", "dialect", ValueError, lambda: refbn.BatchNorm(3, dialect="caffe")),
    ("C18", "x", ValueError, lambda: refbn.BatchNorm(4).forward(X[:1, :, :1])),
    ("C19", "x_series", ValueError, lambda: refbn.taylor([])),
    ("C19", "x_series", TypeError, lambda: refbn.taylor(3.0)),
    ("C19", "gamma_series", ValueError, lambda: refbn.taylor([X], gamma_series=())),
    ("C4", "x_series[1]", ValueError, lambda: refbn.taylor([X, X[:1]])),
    ("C20", "saved", ValueError, lambda: refbn.jacobian(refbn.forward(np.ones((100, 100))).saved)),
    ("C20", "saved", ValueError, lambda: refbn.hessian(refbn.forward(np.ones((100, 100))).saved, np.ones((100, 100)))),
    ("C21", "num_features", ValueError, lambda: refbn.BatchNorm(0)),
    ("C21", "num_features", TypeError, lambda: refbn.BatchNorm(2.0)),
    ("C21", "x", ValueError, lambda: refbn.BatchNorm(3).forward(X)),
    ("C22", "n", ValueError, lambda: refbn.set_num_threads(0)),
    ("C22", "n", TypeError, lambda: refbn.num_threads(2.0)),
    ("C23", "backend", RuntimeError, lambda: _validate.backend_arithmetic("numba", False)),
]


def overlapping_outputs():
    both = np.empty(4)
    return refbn.backward(saved(), DY, out={"dgamma": both, "dbeta": both})


def self_overlapping_output():
    y = np.lib.stride_tricks.as_strided(np.empty(100), X.shape, (8, 8, 8))
    return refbn.forward(X, out=y)


@pytest.mark.parametrize(
    ("label", "argument", "builtin", "call"), BAD_CALLS, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(BAD_CALLS)]
)
def test_bad_call_is_told(label, argument, builtin, call):
    with pytest.raises(refbn.RefbnError) as caught:
        call()
    error = caught.value
    assert (error.label, error.argument) == (label, argument)
    assert isinstance(error, builtin)
    message = str(error)
    assert message.startswith(f"{argument}: ") and message.endswith(f" [{label}]")


def test_every_label_is_tested_and_documented():
    assert {call[0] for call in BAD_CALLS} == set(_validate.CONSTRAINTS)
    assert list(_validate.CONSTRAINTS) == [f"C{n}" for n in range(1, len(_validate.CONSTRAINTS) + 1)]


def test_the_documented_message():
    x = np.ones((2, 4))
    with pytest.raises(refbn.ShapeError) as caught:
        refbn.forward(x, gamma=np.ones(3))
    expected = "gamma: shape (3,), expected (4,), the size of x along channel_axis=1 [C3]"
    assert str(caught.value) == expected


@pytest.mark.parametrize("bad", [{"eps": -1.0}, {"gamma": VEC[:2]}, {"backend": "none"}])
def test_nothing_is_written_on_failure(bad):
    out = {"y": np.full_like(X, 7.0), "mean": np.full(4, 7.0)}
    with pytest.raises(refbn.RefbnError):
        refbn.forward(X, out=out, **bad)
    assert all((a == 7.0).all() for a in out.values())


def test_one_bad_output_spares_the_good_ones():
    out = {"y": np.full_like(X, 7.0), "mean": np.empty(3)}
    with pytest.raises(refbn.ShapeError):
        refbn.forward(X, out=out)
    assert (out["y"] == 7.0).all()


def test_good_calls_at_the_edges_pass():
    refbn.forward(X, eps=0)
    refbn.forward(X, eps=np.float32(1e-3))
    refbn.forward(X, eps=np.array(1e-3))
    refbn.forward(X, eps=Fraction(1, 1024))
    refbn.forward(X, channel_axis=np.int64(-2))
    refbn.forward(X[:1, :, :1])
    refbn.inference(X[:0], VEC, VEC)
    refbn.inference(X, VEC, np.array([0.0, np.nan, 1.0, 2.0]))
    refbn.forward(X.astype(X.dtype.newbyteorder("S")))
    refbn.forward(X.astype(BFLOAT16.dtype))
    refbn.forward(X, dtype="float32", out=np.empty_like(X, dtype=np.float32))
    interleaved = np.empty((*X.shape, 2))
    interleaved[..., 0] = X
    refbn.forward(interleaved[..., 0], out=interleaved[..., 1])
    assert refbn.BatchNorm(4, dialect="keras", channel_axis=1).forward(X[:1, :, :1]).y.shape == (1, 4, 1)


# ---- outputs that share memory -------------------------------------------------------------------------------------


def own():
    return np.empty((4, 6))


def told(out, inputs):
    """Return the name in the error that an overlap gives, or None."""
    like = {"more": own(), **out}
    try:
        found = list(_validate.outputs(out, None, inputs, like))
        assert all(a is b for a, b in zip(found, [None, *out.values()], strict=True))
    except refbn.LayoutError as error:
        assert error.label == "C13"
        return error.argument
    return None


BUFFER = np.zeros((8, 12))
FOREIGN = np.frombuffer(bytearray(BUFFER.nbytes)).reshape(BUFFER.shape)
WAYS = {
    "itself": lambda a: a,
    "view": lambda a: a[:],
    "subclass": lambda a: a.view(np.memmap),
    "reversed": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.reshape(6, 4, copy=False).T,
    "buffer": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a).reshape(a.shape),
    "interface": lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides),
    "dlpack": lambda a: np.from_dlpack(a),
    "torch": lambda a: torch.from_numpy(a).numpy(),
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_known_whatever_way_it_is_seen(way):
    """An array and another view of it: as input and output, and as two outputs, in either order."""
    a = own()
    b = WAYS[way](a)
    assert np.shares_memory(a, b)
    for one, other in ((a, b), (b, a), (b, b[:]), (b, b)):
        assert told({"y": one}, [own(), other, None]) == "out['y']"
        assert told({"mean": own(), "y": one, "var": other}, [own()]) == "out['y']"
        assert told({"y": one, "var": own(), "mean": other}, [None, own()]) == "out['y']"
    assert told({"y": a, "var": own()}, [own(), WAYS[way](own()), None]) is None
    assert told({"y": own(), "var": b}, [own(), WAYS[way](own())]) is None


@pytest.mark.parametrize("buffer", [BUFFER, FOREIGN], ids=["ndarray", "foreign"])
@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (np.s_[:4, :6], np.s_[4:, :6], False),  # apart
        (np.s_[:4, :6], np.s_[:4, 6:], False),  # side by side in each row
        (np.s_[::2, ::2], np.s_[1::2, ::2], False),  # interleaved rows
        (np.s_[::2, ::2], np.s_[::2, 1::2], False),  # interleaved columns
        (np.s_[::2, ::2], np.s_[::-2, ::2], False),  # from the last row on: the odd ones
        (np.s_[:4, :6], np.s_[3:7, 5:11], True),  # a corner
        (np.s_[::2, :6], np.s_[:4, :6], True),
        (np.s_[::2, ::2], np.s_[::2, 10::-2], True),
    ],
)
def test_overlap_is_told_by_elements_not_by_bounds(buffer, one, other, overlap):
    one, other = buffer[one], buffer[other]
    assert told({"y": one}, [other]) == told({"y": other}, [one]) == ("out['y']" if overlap else None)
    assert told({"mean": own(), "y": one, "var": other}, []) == ("out['y']" if overlap else None)


def test_the_first_of_those_that_clash_is_told():
    a, b, c = own(), own(), own()
    assert told({"p": a, "q": b, "r": b, "s": a}, []) == "out['p']"
    assert told({"p": a, "q": b, "r": b[:], "s": c}, [c]) == "out['q']"
    assert told({"p": a, "q": b, "r": c[:]}, [c, b]) == "out['q']"
    assert told({"p": a, "q": b}, [c, c, c[:], None]) is None  # inputs may share


def test_empty_arrays_share_nothing():
    empty = np.empty((0, 4))
    assert told({"y": empty, "var": empty, "mean": empty[:]}, [empty]) is None
    assert refbn.inference(empty, VEC, VEC, out=empty).y is empty


@given(data=st.data())
def test_overlaps_are_those_that_numpy_finds(data):
    """Any windows on two buffers: the name that is told is that of the first output with a partner."""

    def window():
        a = data.draw(st.sampled_from([BUFFER, FOREIGN]))
        rows, columns = data.draw(st.sampled_from([1, 2, -1, -2])), data.draw(st.sampled_from([1, 2, -1]))
        top, left = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
        return a[top:, left:][::rows, ::columns][:2, :3] if data.draw(st.booleans()) else np.empty((2, 3))

    inputs = [window() for _ in range(data.draw(st.integers(0, 3)))]
    out = {name: window() for name in ("y", "mean", "var")[: data.draw(st.integers(1, 3))]}
    partners = {name: [*inputs, *(other for key, other in out.items() if key != name)] for name in out}
    clashing = [name for name in out if any(np.shares_memory(out[name], other) for other in partners[name])]
    assert told(out, inputs) == (f"out['{clashing[0]}']" if clashing else None)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_output_may_lie_in_any_order(order):
    expected = refbn.forward(X).y
    y = np.full(X.shape, np.nan, order=order)
    loose = np.full((*X.shape, 2), np.nan, order=order)[..., 0]
    for out in (y, loose, loose[::-1]):
        assert refbn.forward(X, out=out).y is out
        np.testing.assert_array_equal(out, expected)
        out.flags.writeable = False
        with pytest.raises(refbn.LayoutError, match=r"out\['y'\]: read-only, .* \[C12\]"):
            refbn.forward(X, out=out)


def test_an_output_may_be_of_a_subclass_or_any_mapping():
    class Labelled(np.ndarray):
        pass

    y = np.empty_like(X).view(Labelled)
    assert refbn.forward(X, out=MappingProxyType({"y": y})).y is y
    np.testing.assert_array_equal(y, refbn.forward(X).y)


PASSES = {
    "forward": (("y", "mean", "var", "invstd"), lambda out: refbn.forward(X, VEC, VEC, out=out)),
    "inference": (("y", "invstd"), lambda out: refbn.inference(X, VEC, VEC, out=out)),
    "backward": (("dx", "dgamma", "dbeta"), lambda out: refbn.backward(saved(), DY, out=out)),
    "frozen backward": (
        ("dx", "dgamma", "dbeta", "dmean", "dvar"),
        lambda out: refbn.backward(frozen(), DY, out=out),
    ),
    "double_backward": (("ddy", "dx", "dgamma"), lambda out: refbn.double_backward(saved(), DY, X, VEC, out=out)),
    "frozen double_backward": (
        ("ddy", "dx", "dgamma", "dmean", "dvar"),
        lambda out: refbn.double_backward(frozen(), DY, X, VEC, ddvar=VEC, out=out),
    ),
    "hvp": (("dx", "dgamma", "dbeta"), lambda out: refbn.hvp(saved(), DY, X, VEC, out=out)),
    "frozen hvp": (
        ("dx", "dgamma", "dbeta", "dmean", "dvar"),
        lambda out: refbn.hvp(frozen(), DY, X, VEC, var_dot=VEC, out=out),
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_any_of_the_results_may_be_given(name):
    """Those that are given are returned, the others are new, and none has another value for it."""
    results, call = PASSES[name]
    plain = call(None)
    for chosen in chain.from_iterable(combinations(results, n) for n in range(len(results) + 1)):
        out = {result: np.full_like(getattr(plain, result), np.nan) for result in chosen}
        found = call(out)
        for result in results:
            assert (getattr(found, result) is out.get(result)) == (result in out)
            np.testing.assert_array_equal(getattr(found, result), getattr(plain, result))
    with pytest.raises(refbn.DtypeError, match=f"'z', expected names from {', '.join(results)} "):
        call({"z": X.copy()})


def test_the_tangent_of_y_may_be_given_either_way():
    plain, out = refbn.jvp(saved(), DY), np.full_like(X, np.nan)
    assert refbn.jvp(saved(), DY, out=out) is refbn.jvp(saved(), DY, out={"y_dot": out}) is out
    for found in (out, refbn.jvp(saved(), DY, out={})):
        np.testing.assert_array_equal(found, plain)


def test_what_is_given_is_not_allocated(monkeypatch):
    before, after = saved(), frozen()

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(_api, "_like", refuse)
    tensors = [np.empty_like(X) for _ in range(2)]
    for one in (before, after):
        refbn.backward(one, DY, out={"dx": tensors[0]})
        refbn.jvp(one, DY, out=tensors[0])
        refbn.double_backward(one, DY, X, out=dict(zip(("ddy", "dx"), tensors, strict=True)))
        refbn.hvp(one, DY, X, out={"dx": tensors[0]})
    refbn.forward(X, out=tensors[0])
    refbn.inference(X, VEC, VEC, out=tensors[0])
    with pytest.raises(MemoryError):
        refbn.forward(X, out={"mean": np.empty(4)})


# ---- what is let through -------------------------------------------------------------------------------------------


def test_a_plain_array_stays_itself_from_the_first_call_on(monkeypatch):
    monkeypatch.setattr(_validate, "_SEEN", set())  # as in a fresh process
    for _ in range(2):
        saved = refbn.forward(X, VEC, VEC).saved
        assert saved.x is X and saved.gamma is saved.beta is VEC


def test_what_is_no_plain_array_is_seen_as_one():
    class Labelled(np.ndarray):
        pass

    expected = refbn.forward(X, VEC, VEC)
    odd = np.zeros(X.nbytes + 1, np.uint8)[1:].view(X.dtype).reshape(X.shape)
    odd[:] = X
    swapped = X.dtype.newbyteorder("S")
    for x in (X.view(Labelled), odd, X.astype(swapped), odd.copy().astype(swapped)):
        for _ in range(2):  # a second call knows the dtype
            fwd = refbn.forward(x, VEC.astype(swapped), VEC.view(Labelled))
            assert type(fwd.y) is type(fwd.saved.x) is type(fwd.saved.beta) is np.ndarray
            assert fwd.y.dtype.isnative and fwd.saved.gamma.dtype.isnative
            np.testing.assert_array_equal(fwd.y, expected.y)
            with pytest.raises(refbn.ShapeError):
                refbn.forward(x, VEC[:3].astype(swapped))


def test_negative_variances_are_found_in_any_format():
    for dtype in (np.float16, np.float32, np.float64, BFLOAT16.dtype):
        var = VEC.astype(dtype)
        for good in (0.0, -0.0, np.nan, -np.nan, np.inf):
            var[2] = good
            refbn.inference(X, VEC, var)
        for bad in (-1.0, -np.inf, -np.finfo(np.float16).smallest_subnormal):
            var[2] = bad
            with pytest.raises(refbn.DomainError, match=r"at index 2, expected values >= 0 \[C7\]"):
                refbn.inference(X, VEC, var[::-1][::-1])


def test_the_documented_table():
    page = (Path(__file__).parents[1] / "docs" / "constraints.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| C")]
    assert dict(rows) == _validate.CONSTRAINTS
