import numpy as np
import pytest

import refbn
from validation.studies import e1_one_category_batches as e1
from validation.studies.study import Context

GOOD = {(arm, e1.RANDOM): 0.97 for arm in e1.ARMS} | {
    ("none", e1.ONE): 0.97,
    ("LN", e1.ONE): 0.96,
    ("BN", e1.ONE): 0.12,
    ("forward", e1.ONE): 0.97,
    ("backward", e1.ONE): 0.12,
}


def test_the_verdict_follows_from_the_numbers():
    assert e1.judge(GOOD, 0.8, 0.1)[0] == "confirmed"
    assert e1.judge(GOOD | {("forward", e1.ONE): 0.3}, 0.8, 0.1)[0] == "partly"
    assert e1.judge(GOOD | {("backward", e1.ONE): 0.95}, 0.8, 0.1)[0] == "partly"
    for key, value in ((("LN", e1.ONE), 0.5), (("BN", e1.ONE), 0.3), (("BN", e1.RANDOM), 0.5)):
        assert e1.judge(GOOD | {key: value}, 0.8, 0.1)[0] == "not confirmed"
    assert e1.judge(GOOD, 0.4, 0.1)[0] == "not confirmed"


def test_backward_alone_blocks_and_does_not_erase():
    generator = np.random.default_rng(0)
    layer, x, dy = e1.BackwardAlone(3), 5 + generator.standard_normal((8, 3)), generator.standard_normal((8, 3))
    layer.norm.gamma[:] = 1, 2, 3
    y = layer.forward(x)
    assert y.mean() > 1  # not erased
    expected = refbn.inference(x, layer.norm.running_mean, layer.norm.running_var, layer.norm.gamma, layer.norm.beta)
    assert np.allclose(y, expected.y, rtol=1e-14)
    assert np.array_equal(layer.backward(dy), refbn.backward(refbn.forward(x, layer.norm.gamma).saved, dy).dx)
    assert np.allclose(layer.gradients["gamma"], refbn.backward(expected.saved, dy).dgamma, rtol=1e-13)
    assert np.array_equal(layer.forward(x, train=False), expected.y)


@pytest.mark.parametrize("steps", [21])
def test_a_short_run(monkeypatch, steps):
    monkeypatch.setattr(e1, "QUICK_STEPS", steps)
    finding, again = (e1.STUDY.run(Context("E1", seeds=(3,), quick=True)) for _ in range(2))
    assert finding.document() == again.document()
    networks = finding.details["networks"]
    assert len(networks) == 10 and all(0 <= one["test"][0] <= 1 for one in networks)
    blocked = {(one["arm"], one["batches"]): one["blocked"][0] for one in networks if one["arm"] in e1.NORMED}
    assert all(len(values) == 2 and 0 < min(values) <= max(values) < 1 for values in blocked.values())
    assert min(blocked["BN", e1.ONE]) > 2 * max(blocked["BN", e1.RANDOM])
