from fractions import Fraction

import numpy as np
import pytest

from refbn.dialects import DIALECTS, debiased_weight


@pytest.mark.parametrize("name", ["torch", "keras", "flax", "onnx", "paddle", "tinygrad"])
def test_momentum_weighs_one_value_and_its_complement_the_other(name):
    dialect = DIALECTS[name]
    old, new = Fraction(3), Fraction(11)
    blended = dialect.blend(old, new, dialect.momentum, 1)
    share = (blended - old) / (new - old)  # of the new value
    momentum = Fraction(dialect.attribute(dialect.momentum))
    assert share == (momentum if dialect.momentum_weighs == "new" else 1 - momentum)
    assert 0 < share < Fraction(1, 5), "defaults forget slowly"


def test_cumulative_average():
    dialect = DIALECTS["torch"]
    batches = [Fraction(n * n, 7) for n in range(1, 6)]
    running = Fraction(1000)
    for step, batch in enumerate(batches, 1):
        running = dialect.blend(running, batch, None, step)
    assert running == sum(batches) / len(batches)


def test_attributes_are_stored_as_the_framework_stores_them():
    assert DIALECTS["onnx"].attribute(1e-5) == float(np.float32(1e-5)) != 1e-5
    assert DIALECTS["torch"].attribute(1e-5) == 1e-5


def test_debiased_average_divides_by_its_weights():
    dialect = DIALECTS["equinox"]
    momentum = Fraction(3, 4)
    batches = [Fraction(n * n, 7) for n in range(1, 6)]
    running, total, weights = Fraction(1000), Fraction(0), Fraction(0)
    for step, batch in enumerate(batches, 1):
        running = dialect.blend(running, batch, float(momentum), step)
        total = momentum * total + (1 - momentum) * batch
        weights = momentum * weights + (1 - momentum)
        assert running == total / weights


@pytest.mark.parametrize("step", [1, 2, 5])
def test_debiased_average_of_momentum_one_is_cumulative(step):
    assert debiased_weight(Fraction(1), step) == Fraction(1, step)
    assert debiased_weight(Fraction(0), step) == 1
