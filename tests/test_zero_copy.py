"""Arrays of other libraries go in without a copy: the Saved refers to the very memory (by pointer)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import refbn

TORCH = {
    "float32": torch.randn(4, 3, 5),
    "float64": torch.randn(4, 3, 5, dtype=torch.float64),
    "float16": torch.randn(4, 3, 5).half(),
    "bfloat16": torch.randn(4, 3, 5).bfloat16(),
    "channels_last": torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 4).T,
    "sliced": torch.randn(8, 6, 5)[::2, ::2],
}


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("name", TORCH)
def test_torch_tensor(name):
    x = TORCH[name]
    fwd = refbn.forward(x)
    assert address(fwd.saved.x) == x.data_ptr()
    assert fwd.saved.x.strides == tuple(s * x.element_size() for s in x.stride())
    assert fwd.saved.x.dtype.name == str(x.dtype).removeprefix("torch.")
    values = x.to(torch.float64).numpy()
    rounded = np.finfo(np.float32).eps if name not in ("float16", "bfloat16") else 2.0**-8
    np.testing.assert_allclose(fwd.y.astype(np.float64), refbn.forward(values).y, rtol=4 * rounded, atol=4 * rounded)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_jax_array(dtype):
    x = jax.random.normal(jax.random.key(0), (4, 3, 5)).astype(dtype)
    fwd = refbn.forward(x)
    assert address(fwd.saved.x) == x.unsafe_buffer_pointer()
    assert fwd.saved.x.dtype == dtype
    grads = refbn.backward(fwd.saved, jnp.ones_like(x))
    assert grads.dx.shape == x.shape


def test_torch_tensor_that_requires_grad_is_refused_with_its_reason():
    with pytest.raises(refbn.DtypeError, match=r"x: a Tensor .*\[C1\]"):
        refbn.forward(torch.randn(4, 3, requires_grad=True))


def test_jax_tracer_is_refused():
    with pytest.raises(refbn.DtypeError, match=r"\[C1\]"):
        jax.jit(lambda x: refbn.forward(x).y)(jnp.ones((4, 3)))


def test_array_protocol():
    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    x = np.random.default_rng(0).standard_normal((4, 3))
    assert address(refbn.forward(Wrapped(x)).saved.x) == address(x)
