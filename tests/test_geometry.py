import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refbn import _geometry
from refbn.testing.strategies import LAYOUTS, in_layout


def test_split_of_batch_norm():
    geometry = _geometry.batch_norm((4, 3, 5, 6), -3)
    assert geometry.group_axes == geometry.affine_axes == (1,)
    assert geometry.reduced_axes == (0, 2, 3)
    assert (geometry.groups, geometry.count, geometry.affine_shape) == (3, 120, (3,))


@pytest.mark.parametrize(
    ("layout", "extents"), [("contiguous", (4, 30)), ("channels_last", (120,)), ("reversed", (4, 30))]
)
def test_mergeable_axes_are_merged(layout, extents):
    x = in_layout(np.arange(4 * 3 * 5 * 6.0).reshape(4, 3, 5, 6), layout)
    (view,) = _geometry.batch_norm(x.shape, 1).canonical(x)
    assert view.shape == (3, *extents)


@given(
    shape=st.lists(st.integers(0, 4), min_size=2, max_size=5).map(tuple),
    data=st.data(),
)
def test_canonical_views_agree_and_share_memory(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    size = int(np.prod(shape))
    tensors = [
        in_layout(np.arange(k * size, (k + 1) * size, dtype=float).reshape(shape), data.draw(st.sampled_from(LAYOUTS)))
        for k in range(3)
    ]
    geometry = _geometry.batch_norm(shape, axis)
    views = geometry.canonical(*tensors)
    assert {v.shape for v in views} == {views[0].shape}
    assert views[0].shape[0] == shape[axis] and views[0].size == size
    for k, (view, tensor) in enumerate(zip(views, tensors, strict=True)):
        assert size == 0 or np.shares_memory(view, tensor)
        # the same element stands at the same place in all views
        np.testing.assert_array_equal(view - k * size, views[0])
        for group, channel in zip(view, np.moveaxis(tensor, axis, 0), strict=True):
            assert sorted(group.ravel()) == sorted(channel.ravel())


def test_views_that_were_seen_before_are_the_same_and_not_many_are_kept():
    geometry = _geometry.batch_norm((4, 3, 5), 1)
    assert geometry is _geometry.batch_norm((4, 3, 5), 1)
    base = np.arange(400 * 60.0)
    layouts = [base[: 60 * k].reshape(4, 3, 5, k)[..., 0] for k in range(1, 200)]
    fresh = [_geometry.batch_norm.__wrapped__((4, 3, 5), 1).canonical(x, x) for x in layouts]
    for _ in range(2):
        for x, expected in zip(layouts, fresh, strict=True):
            for view, other in zip(geometry.canonical(x, x), expected, strict=True):
                assert (view.shape, view.strides) == (other.shape, other.strides)
                assert view.__array_interface__["data"] == other.__array_interface__["data"]
    assert 0 < len(geometry._views) <= 64
    assert geometry == _geometry.batch_norm.__wrapped__((4, 3, 5), 1)
    assert hash(geometry) == hash(_geometry.batch_norm.__wrapped__((4, 3, 5), 1))


def test_tensors_of_different_layouts_are_seen_alike():
    """The axes can be merged in the first tensor, not in the second; then the other way round."""
    geometry = _geometry.batch_norm((4, 3, 5), 0)
    dense, loose = np.arange(60.0).reshape(4, 3, 5), np.arange(120.0).reshape(4, 3, 10)[..., ::2]
    for _ in range(2):  # the second time from what was kept
        assert [v.shape for v in geometry.canonical(dense, dense)] == [(4, 15)] * 2
        assert [v.shape for v in geometry.canonical(loose, loose)] == [(4, 15)] * 2
        gap = np.arange(4 * 3 * 7.0).reshape(4, 3, 7)[..., :5]
        assert [v.shape for v in geometry.canonical(dense, gap)] == [(4, 3, 5)] * 2
        assert [v.shape for v in geometry.canonical(gap, dense)] == [(4, 3, 5)] * 2


def test_native_copies_only_what_it_must():
    x = np.arange(6.0)
    assert _geometry.native(x) is x
    swapped = x.astype(">f8" if np.dtype("=f8") == np.dtype("<f8") else "<f8")
    misaligned = np.zeros(49, np.uint8)[1:].view(float)
    misaligned[:] = x
    for odd in (swapped, misaligned):
        result = _geometry.native(odd)
        assert result.dtype.isnative and result.flags.aligned
        np.testing.assert_array_equal(result, x)


def test_zeros_take_no_memory():
    zeros = _geometry.zeros((1000, 1000, 1000), np.dtype(np.float32))
    assert zeros.strides == (0, 0, 0) and not zeros.flags.writeable and zeros[1, 2, 3] == 0
