from fractions import Fraction

import numpy as np
import pytest

import refbn
from refbn.dialects import DIALECTS

RNG = np.random.default_rng(3)
BATCHES = [RNG.standard_normal((6, 3, 2)) * [[[1.0]], [[10.0]], [[0.1]]][0] + k for k in range(4)]
every_dialect = pytest.mark.parametrize("name", DIALECTS)


def exact_statistics(batch, unbiased):
    """Mean and variance of each channel as Fractions."""
    for channel in np.moveaxis(batch, 1, 0):
        values = [Fraction(v) for v in channel.ravel().tolist()]
        mean = sum(values) / len(values)
        yield mean, sum((v - mean) ** 2 for v in values) / (len(values) - unbiased)


@pytest.mark.parametrize(
    ("name", "momentum"),
    [(name, m) for name, d in DIALECTS.items() for m in ("default", 0.0, 1.0, 0.3, *[None] * d.cumulative)],
)
def test_running_statistics(name, momentum):
    dialect = DIALECTS[name]
    options = {} if momentum == "default" else {"momentum": momentum}
    bn = refbn.BatchNorm(3, dialect=name, channel_axis=1, dtype=np.float64, **options)
    expected = [(Fraction(0), Fraction(1))] * 3
    for step, batch in enumerate(BATCHES, 1):
        bn.forward(batch)
        expected = [
            (dialect.blend(mean, m, bn.momentum, step), dialect.blend(var, v, bn.momentum, step))
            for (mean, var), (m, v) in zip(expected, exact_statistics(batch, dialect.unbiased_running_var), strict=True)
        ]
    assert bn.num_batches_tracked == len(BATCHES)
    np.testing.assert_allclose(bn.running_mean, [float(m) for m, _ in expected], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(bn.running_var, [float(v) for _, v in expected], rtol=1e-14)


def test_modes():
    bn = refbn.BatchNorm(3, dtype=np.float64)
    x = BATCHES[0]
    first = bn(x)
    np.testing.assert_array_equal(first, refbn.forward(x, eps=bn.eps).y)
    mean, var = bn.running_mean.copy(), bn.running_var.copy()
    assert bn.eval() is bn and not bn.training
    fwd = bn.forward(BATCHES[1])
    np.testing.assert_array_equal(fwd.y, refbn.inference(BATCHES[1], mean, var, eps=bn.eps).y)
    assert fwd.saved.frozen
    np.testing.assert_array_equal(bn.running_mean, mean)
    np.testing.assert_array_equal(bn.train()(x), first)
    assert bn.num_batches_tracked == 2
    np.testing.assert_array_equal(fwd.saved.mean, mean, "a Saved does not see later updates")


def test_training_output_does_not_depend_on_momentum():
    ys = [refbn.BatchNorm(3, momentum=m)(BATCHES[2].astype(np.float32)) for m in (0.0, 0.1, 1.0, None)]
    for y in ys[1:]:
        np.testing.assert_array_equal(y, ys[0])


@every_dialect
def test_defaults(name):
    dialect = DIALECTS[name]
    bn = refbn.BatchNorm(3, dialect=name)
    assert bn.eps == dialect.attribute(dialect.eps)
    assert bn.momentum == dialect.momentum
    x = np.moveaxis(BATCHES[0], 1, dialect.channel_axis)
    expected = refbn.forward(x, eps=bn.eps, channel_axis=dialect.channel_axis).y
    np.testing.assert_array_equal(bn(x), expected)
    assert repr(bn).startswith("BatchNorm(3, eps=")


def test_parameters_are_used_and_their_gradients_come_in_their_format():
    bn = refbn.BatchNorm(3, dtype=np.float64)
    bn.gamma[:], bn.beta[:] = [2.0, -1.0, 0.5], [1.0, 2.0, 3.0]
    x = BATCHES[0].astype(np.float32)
    fwd = bn.forward(x)
    assert fwd.y.dtype == np.float32
    np.testing.assert_array_equal(fwd.y, refbn.forward(x, bn.gamma, bn.beta, eps=bn.eps).y)
    grads = refbn.backward(fwd.saved, np.ones_like(x))
    assert grads.dgamma.dtype == grads.dbeta.dtype == np.float64


@pytest.mark.parametrize("bad", [np.ones((1, 3, 1)), np.ones((4, 2, 1)), np.ones((0, 3, 1))])
def test_a_failed_call_changes_nothing(bad):
    bn = refbn.BatchNorm(3)
    bn(BATCHES[0].astype(np.float32))
    before = (bn.running_mean.copy(), bn.running_var.copy(), bn.num_batches_tracked)
    with pytest.raises(refbn.RefbnError):
        bn.forward(bad)
    np.testing.assert_array_equal(bn.running_mean, before[0])
    np.testing.assert_array_equal(bn.running_var, before[1])
    assert bn.num_batches_tracked == before[2]


def test_one_poisoned_channel_leaves_the_others_running():
    bn = refbn.BatchNorm(3, dtype=np.float64)
    x = BATCHES[0].copy()
    x[0, 1, 0] = np.inf
    bn(x)
    assert list(np.isnan(bn.running_mean)) == [False, True, False]
    assert list(np.isnan(bn.running_var)) == [False, True, False]
