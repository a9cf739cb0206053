"""The results are frozen records, whichever way they were made."""

import copy
import dataclasses
import inspect
import pickle
import re
import weakref

import numpy as np
import pytest

import refbn
from refbn import _types
from refbn._types import Gradients, Saved, new_gradients

X = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3) ** 2
VEC = np.linspace(0.5, 2.0, 4, dtype=np.float32)
TRAINED, FROZEN = refbn.forward(X, VEC, VEC), refbn.inference(X, VEC, VEC)
RESULTS = {
    f"{name}-{kind}": value
    for kind, fwd in (("trained", TRAINED), ("frozen", FROZEN))
    for name, value in {
        "forward": fwd,
        "saved": fwd.saved,
        "backward": refbn.backward(fwd.saved, X),
        "double_backward": refbn.double_backward(fwd.saved, X, X),
        "hvp": refbn.hvp(fwd.saved, X, X),
    }.items()
}
every_result = pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)


@every_result
def test_is_frozen(result):
    name = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(result, name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.more = 1


@every_result
def test_is_told_by_identity_and_shown_by_its_fields(result):
    twin = copy.copy(result)
    assert result == result and result != twin and len({result, twin}) == 2
    shown = [field.name for field in dataclasses.fields(result) if field.name != "state"]
    fields = ", ".join(f"{name}={getattr(result, name)!r}" for name in shown)
    assert repr(result) == f"{type(result).__name__}({fields})"


@every_result
def test_can_be_pickled(result):
    loaded = pickle.loads(pickle.dumps(result))
    assert type(loaded) is type(result) and repr(loaded) == repr(result)
    if isinstance(result, Saved):
        np.testing.assert_array_equal(refbn.backward(loaded, X).dx, refbn.backward(result, X).dx)


@every_result
def test_is_what_the_constructor_makes(result):
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    constructed = type(result)(**fields)
    assert type(constructed) is type(result) and repr(constructed) == repr(result)
    assert all(getattr(constructed, name) is value for name, value in fields.items())
    name = next(iter(fields))
    assert getattr(dataclasses.replace(result, **{name: VEC}), name) is VEC
    assert weakref.ref(result)() is result


@every_result
def test_both_constructors_take_the_same(result):
    kind = type(result)
    quick = getattr(_types, "new" + re.sub("([A-Z])", r"_\1", kind.__name__).lower())
    assert inspect.signature(quick) == inspect.signature(kind)


def test_fields_that_are_left_out_are_none():
    for made in (new_gradients(X, VEC, VEC), Gradients(X, VEC, VEC)):
        assert type(made) is Gradients and made.dmean is made.dvar is None


def test_results_are_arrays_of_their_own():
    grads = RESULTS["backward-frozen"]
    arrays = [TRAINED.y, TRAINED.mean, TRAINED.var, TRAINED.invstd]
    arrays += [grads.dx, grads.dgamma, grads.dbeta, grads.dmean, grads.dvar]
    for k, a in enumerate(arrays):
        assert type(a) is np.ndarray and a.base is None and a.flags.writeable and a.flags.owndata
        assert not any(np.shares_memory(a, b) for b in arrays[:k])
