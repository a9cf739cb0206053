import numpy as np
import pytest

from refbn import reference
from validation.finite_differences import compare, complex_step, richardson


def test_every_pass_agrees():
    rows = compare(seed=1, sizes=(2, 5))
    assert {row.operation for row in rows} == {"jvp", "backward", "hvp", "double_backward", "taylor"}
    assert {row.output for row in rows if row.statistics == "frozen"} >= {"dmean", "dvar", "ddy"}
    assert [row for row in rows if not row.ratio <= 1] == []


@pytest.mark.parametrize("name", ["backward", "inference_backward"])
def test_a_small_mistake_is_found(monkeypatch, name):
    right = getattr(reference, name)

    def wrong(stats, gamma, dy):
        answer = right(stats, gamma, dy)
        return answer._replace(dx=answer.dx * (1 + 1e-6))

    monkeypatch.setattr(reference, name, wrong)
    found = {(row.operation, row.output) for row in compare(seed=1, sizes=(3,)) if not row.ratio <= 1}
    assert ("backward", "dx") in found


@pytest.mark.parametrize("method", [complex_step, richardson])
def test_a_method_meets_its_own_estimate(method):
    point, directions = np.array([0.7, -0.3]), np.eye(2)

    def function(z):
        return np.stack([np.exp(z[:, 0]) * np.sin(3 * z[:, 1]), 1 / (1 + z[:, 0] ** 2)], axis=1)

    a, b = point
    truth = np.array([[np.exp(a) * np.sin(3 * b), -2 * a / (1 + a * a) ** 2], [3 * np.exp(a) * np.cos(3 * b), 0.0]])
    found, estimate = method(function, np.full(2, 2.0**-51), point, directions)
    assert (abs(found - truth) <= estimate).all()
    assert estimate.max() < 1e-9
