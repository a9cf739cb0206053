"""The oracle's two promises on speed, in seconds of processor time."""

from time import process_time

import numpy as np

from refbn import exact


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_three_passes_over_100_000_elements_within_5_seconds():
    rng = np.random.default_rng(0)
    x, dy, ddx = (draw(rng, 1, 100_000) for _ in range(3))
    gamma, beta, ddgamma, ddbeta = (draw(rng, 1) for _ in range(4))
    start = process_time()
    results = (
        *exact.forward(x, gamma, beta, 1e-5),
        *exact.backward(x, gamma, 1e-5, dy),
        *exact.double_backward(x, gamma, 1e-5, dy, ddx, ddgamma, ddbeta),
    )
    rounded = [result.round(np.float32) for result in results]
    assert process_time() - start < 5
    assert all(np.isfinite(r).all() for r in rounded)


def test_order_five_of_64_elements_within_a_second():
    rng = np.random.default_rng(0)
    x, w, x_dot = (draw(rng, 1, 64) for _ in range(3))
    gamma, beta, gamma_dot, beta_dot = (draw(rng, 1) for _ in range(4))
    start = process_time()
    results = exact.composed(x, gamma, beta, 1e-5, w, x_dot, gamma_dot, beta_dot, order=5)
    ys = exact.taylor([x, x_dot, w, x, x_dot, w], [gamma, gamma_dot], [beta, beta_dot])
    rounded = [result.round(np.float32) for result in (*results.values(), *ys)]
    assert process_time() - start < 1
    assert all(np.isfinite(r).all() for r in rounded)
