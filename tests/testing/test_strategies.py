"""The guard: the strategies do vary what they promise to vary."""

from collections import Counter
from dataclasses import fields

import numpy as np
from hypothesis import HealthCheck, given, settings

from refbn._formats import FORMATS
from refbn.testing.strategies import LAYOUTS, in_layout, problems


def test_problems_vary():
    seen = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(problems())
    def draw(p):
        seen[p.x.dtype.name] += 1
        seen["mixed formats"] += p.x.dtype != p.gamma.dtype
        seen[f"{p.x.ndim} axes"] += 1
        seen["one element"] += p.x.size == p.x.shape[1]
        seen["eps 0"] += p.eps == 0
        seen["contiguous"] += p.x.flags.c_contiguous
        seen["negative strides"] += min(p.x.strides) < 0
        seen["layouts differ"] += p.x.strides != p.dy.strides
        channels = np.moveaxis(p.x.astype(np.float64), 1, 0).reshape(p.x.shape[1], -1)
        if channels.shape[1] > 1:
            mean, std = channels.mean(axis=1), channels.std(axis=1)
            seen["constant channel"] += (channels == channels[:, :1]).all(axis=1).any()
            seen["offset over 100 std"] += (np.abs(mean) > 100 * std).any() and (std > 0).all()
            seen["repeated values"] += any(len(set(c)) < len(c) and len(set(c)) > 1 for c in channels.tolist())
        assert p.x.shape == p.dy.shape == p.ddx.shape
        assert (p.var >= 0).all() and np.isfinite(p.x.astype(np.float64)).all()
        seen[b"".join(getattr(p, f.name).tobytes() for f in fields(p) if f.name != "eps")] += 1

    draw()
    values = [count for key, count in seen.items() if isinstance(key, bytes)]
    assert len(values) > 0.8 * sum(values), "inputs repeat"
    for name in (
        *(f.name for f in FORMATS),
        *(f"{n} axes" for n in (2, 3, 4, 5)),
        "mixed formats",
        "one element",
        "eps 0",
        "contiguous",
        "negative strides",
        "layouts differ",
        "constant channel",
        "offset over 100 std",
        "repeated values",
    ):
        assert seen[name] >= 5, (name, seen[name])


def test_layouts_hold_equal_values_in_different_memory():
    x = np.arange(120.0).reshape(2, 3, 4, 5)
    strides = set()
    for layout in LAYOUTS:
        y = in_layout(x, layout)
        np.testing.assert_array_equal(y, x)
        strides.add(y.strides)
    assert len(strides) == len(LAYOUTS)
