from fractions import Fraction

import numpy as np

import refbn
from refbn._formats import BINARY64
from refbn.exact import Exact, round_number
from validation.studies import e2_normalizing_flow as e2
from validation.studies.study import Context

X = Exact.vector([1, 4, -2, 7, 5], Fraction(1, 3))
GAMMA, BETA = Exact.number(Fraction(7, 5)), Exact.number(Fraction(-2, 3))


def rounded(value):
    return np.array([round_number(*value.parts(place), BINARY64) for place in range(value.length)])


def test_the_prior_s_gradient_is_refbn_s():
    x, eps = np.array([1, 4, -2, 7, 5]) / 3, 0.5
    fwd = refbn.forward(x[:, None], np.array([1.4]), np.array([-2 / 3]), eps=eps)
    expected = refbn.backward(fwd.saved, fwd.y).dx[:, 0]
    found = rounded(e2.prior_gradient(X, GAMMA, BETA, Fraction(eps)))
    assert np.allclose(found, expected, rtol=0, atol=1e-14) and abs(expected).max() > 0.1
    frozen = refbn.inference(x[:, None], fwd.mean, fwd.var, np.array([1.4]), np.array([-2 / 3]), eps=eps)
    expected = refbn.backward(frozen.saved, frozen.y).dx[:, 0]
    assert np.allclose(rounded(e2.prior_gradient(X, GAMMA, BETA, Fraction(eps), frozen=True)), expected, atol=1e-14)


def test_it_is_zero_where_it_should_be_and_nowhere_else():
    nothing = Fraction(0)
    assert e2.prior_gradient(X, GAMMA, BETA, nothing).is_zero()
    assert not e2.prior_gradient(X, GAMMA, BETA, Fraction(1, 10**30)).is_zero()
    assert not e2.prior_gradient(X, GAMMA, BETA, nothing, frozen=True).is_zero()
    each = Exact.vector([1, 2, 3, 4, 5])  # a gamma for each element: layer norm's affine phase
    assert not e2.prior_gradient(X, each, BETA, nothing).is_zero()


def prior(**zero):
    counts = {"BN": 8, "frozen": 0, "LN": 0, "LN without affine": 8}
    return [e2._Prior(counts | zero, dict.fromkeys(counts, 8), {})]


def test_the_verdict_follows_from_the_numbers():
    dips = {"BN": (-0.1, -0.12, -0.09), "LN": (0.1, 0.13, 0.11), "none": (0.1, 0.11, 0.09)}
    assert e2.judge(prior(), dips)[0] == "confirmed"
    assert e2.judge(prior(BN=7), dips)[0] == "not confirmed"
    assert e2.judge(prior(frozen=1), dips)[0] == "not confirmed"
    assert e2.judge(prior(LN=1), dips)[0] == "not confirmed"
    assert e2.judge(prior(), dips | {"BN": dips["LN"]})[0] == "partly"
    assert e2.judge(prior(), dips | {"none": (0.01, -0.1, 0.0)})[0] == "partly"
    assert e2.judge(prior(), dips | {"LN": (-0.1, 0.2, -0.05)})[0] == "partly"
    assert e2.judge(prior(), {kind: values[:1] for kind, values in dips.items()})[0] == "partly"  # one seed


def test_a_short_run(monkeypatch):
    monkeypatch.setattr(e2, "QUICK_STEPS", 3)
    monkeypatch.setattr(e2, "QUICK_CHANNELS", 4)
    finding, again = (e2.STUDY.run(Context("E2", seeds=(3,), quick=True)) for _ in range(2))
    assert finding.document() == again.document()
    details = finding.details
    for curves in details["curves"].values():
        assert np.shape(curves[0]["test"]) == np.shape(details["alphas"]) and np.isfinite(curves[0]["train"]).all()
    assert details["prior"][0]["zero"]["BN"] == details["prior"][0]["asked"]["BN"] == 4
    leaks = details["prior"][0]["sizes"]["BN"]
    assert leaks[0] == 0 and leaks == sorted(leaks)


def test_a_flow_begins_as_the_identity(monkeypatch):
    monkeypatch.setattr(e2, "STEPS", 0)
    flow = e2._train(Context("E2"), np.zeros((64, 16)), 17, 0, "BN")
    x = np.random.default_rng(0).standard_normal((3, 16))
    assert np.array_equal(flow.forward(x), x)
