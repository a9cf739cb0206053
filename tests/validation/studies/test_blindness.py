"""The studies of blindness, Z1 to Z6: identities, controls and measures, and that verdicts can turn."""

import copy
import dataclasses
import math
import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import refbn
from refbn.exact import Exact, program
from validation.studies import blind_networks, network, style
from validation.studies import exact_batches as exact
from validation.studies import framework_noise as noise
from validation.studies import z1_linear_term as z1
from validation.studies import z2_hessian_diagonal as z2
from validation.studies import z3_off_diagonal as z3
from validation.studies import z4_sample_losses as z4
from validation.studies import z5_remainder as z5
from validation.studies import z6_cause as z6
from validation.studies.study import Context
from validation.studies.training import train

EXACT = [z1, z2, z3, z4, z6]
INSTANCES = 30


def tally(study, count=INSTANCES):
    (counted,) = exact.examine(Context(study.STUDY.id, (0,)), count, study.judge, "")
    return counted


@pytest.fixture(scope="module", params=EXACT, ids=lambda study: study.STUDY.id)
def counted(request):
    return request.param, tally(request.param)


def as_told(study, count=INSTANCES):
    """Return a tally in which everything is as the study expects it, without computing it."""
    made = exact.Tally()
    for _ in range(count):
        made.add({statement: words[0] == "1" for statement, words in study.EXPECTED.items()})
    return made


def but(made, statement, holds):
    """Return a tally with one more instance, in which a statement holds or does not."""
    changed = copy.deepcopy(made)
    changed.add({statement: holds})
    return changed


# ---- exact numbers ---------------------------------------------------------------------------------------------------


def test_channels_share_a_field_and_are_not_alike():
    generator = np.random.default_rng(0)
    for eps in (Fraction(0), Fraction(3, 100)):
        first, *others = exact.random_batch(generator, channels=3, m=7, eps=eps)
        for other in others:
            assert (first.invstd + other.invstd).sign() > 0  # the sum of numbers from two fields raises
            assert other.var != first.var
            assert not (first.d * other.d).sum().is_zero()


def test_gradients_are_those_of_the_oracle():
    generator = np.random.default_rng(0)
    (c,) = exact.random_batch(generator, channels=1, m=6, eps=Fraction(1, 8))
    u = Exact.vector([3, -1, 4, 1, -5, 9])
    x, dy = ([[Fraction(v.parts(i)[0]) for i in range(6)]] for v in (c.x, u))
    found = exact.gradients((c,), lambda ys: (ys[0] * exact.Var(u)).sum())[0]
    due = refbn.exact.backward(np.array(x, object), [c.gamma], c.eps, np.array(dy, object))
    assert [found.dx] == list(due.dx)
    assert [found.dgamma] == list(due.dgamma)
    assert [found.dbeta] == list(due.dbeta)


def test_only_p_is_the_backward_pass():
    generator = np.random.default_rng(0)
    for _ in range(10):
        (c,) = exact.random_batch(generator, channels=1, eps=Fraction(1, 10))
        u = c.xhat + Exact.vector(generator.integers(1, 9, c.m).tolist())
        dx = exact.passed_by(c, u)
        assert dx == exact.project(c, u) * c.invstd * c.gamma
        for name, operator in exact.BROKEN.items():
            assert dx != operator(c, u) * c.invstd * c.gamma, name


def test_every_statement_is_as_expected(counted):
    study, found = counted
    for statement, words in study.EXPECTED.items():
        assert found.asked[statement] > 0, statement
        assert found.fraction(statement) == int(words[0]), statement


@pytest.mark.parametrize("study", EXACT, ids=lambda study: study.STUDY.id)
def test_statements_notice_another_forward_pass(study, monkeypatch):
    """With the cube of x̂ in the affine phase, what the tape differentiates is not batch norm any more."""

    def affine(xhat, gamma, beta):
        return (xhat + xhat * xhat * xhat * Fraction(1, 8)) * gamma + beta

    monkeypatch.setattr(program, "affine", affine)
    found = tally(study, 4)
    assert any(found.held[name] < found.asked[name] for name, words in study.EXPECTED.items() if words[0] == "1")


def test_instances_are_the_seeds():
    one, again, other = (tally_of(seed) for seed in (0, 0, 1))
    assert one == again != other


def tally_of(seed):
    drawn = []
    exact.examine(Context("Z1", (seed,)), 3, lambda g: drawn.append(g.integers(10**9)) or {}, "")
    return drawn


# ---- verdicts --------------------------------------------------------------------------------------------------------

GOOD = {
    z1: (0.0,),
    z2: (0, 0.0),
    z3: ([(1e-12, 1e-13)],),
    z4: ([0.5, -1.0],),
    z6: (
        [{name: tuple({"0": 1e-16, "κ": 1e-5, "1": 1.0}[f] for f in factors) for name, factors in z6.MEASURED.items()}],
    ),
}


def test_a_verdict_is_computed(counted):
    study, found = counted
    assert study.verdict([found], *GOOD[study])[0] == "confirmed"


@pytest.mark.parametrize("study", EXACT, ids=lambda study: study.STUDY.id)
def test_a_statement_that_fails_once_refutes(study):
    for statement, words in study.EXPECTED.items():
        if words == "1":
            broken = but(as_told(study), statement, False)
            assert study.verdict([as_told(study), broken], *GOOD[study])[0] == "not confirmed", statement


@pytest.mark.parametrize("study", [z1, z2, z3], ids=lambda study: study.STUDY.id)
def test_a_control_that_passes_makes_the_check_void(study):
    for statement, words in study.EXPECTED.items():
        if words == "0":
            broken = but(as_told(study), statement, True)
            assert study.verdict([broken], *GOOD[study])[0] == "partly", statement


@pytest.mark.parametrize(
    ("study", "measured"),
    [
        (z1, (1e-300,)),
        (z2, (1, 0.0)),
        (z2, (0, 1e-17)),
        (z3, ([(1e-8, 0.0)],)),
        (z3, ([(0.0, math.nan)],)),
        (z4, ([0.1, -5.0],)),
        (z6, ([{**GOOD[z6][0][0], "batch statistics": (1e-16, 0.02)}],)),
        (z6, ([{**GOOD[z6][0][0], "stop-gradient at the mean": (0.9, 1e-5)}],)),
        (z6, ([{**GOOD[z6][0][0], "layer norm, along the batch": (1.0, 0.4)}],)),
    ],
)
def test_what_is_measured_can_speak_against_it(study, measured):
    assert study.verdict([as_told(study)], *measured)[0] == "partly"


@pytest.mark.parametrize(
    ("numbers", "word"),
    [((0.096, 0.01, 0.01), "confirmed"), ((0.096, 0.9, 0.01), "partly"), ((0.2, 0.9, 0.3), "not confirmed")],
)
def test_small_is_judged_absolutely_and_relatively(numbers, word):
    assert z5.verdict(*numbers)[0] == word


# ---- floating point --------------------------------------------------------------------------------------------------


class Tampered:
    """refbn, with a gradient that is a little off."""

    name = noise.OURS

    def run(self, operation, inputs):
        saved = refbn.forward(inputs.x, inputs.gamma, eps=inputs.eps).saved
        dx = refbn.backward(saved, inputs.dy).dx.copy()
        dx[0, 0] += 1e-3
        return {"dx": dx}


@pytest.mark.parametrize("scalar", noise.DTYPES.values(), ids=noise.DTYPES)
def test_refbn_is_exactly_zero_and_another_is_seen(scalar):
    (ours,), absent = noise.installed([noise.OURS])
    assert not absent
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((37, 2)) + 1000).astype(scalar)
    gamma, g = np.array([[0.7, 2.0], [1.0, -0.3]], scalar)
    assert z1.noise_of(ours, x, gamma, g) == 0
    unit = abs(float(gamma[0] * g[0])) / math.sqrt(x[:, 0].astype(float).var() + z1.EPS)
    assert z1.noise_of(Tampered(), x, gamma, g) == pytest.approx(1e-3 / unit, rel=1e-5)
    assert z2.leak(x, gamma, noise.dx(ours, x, gamma, x, 0.0), 0.0) == (0.0, 0.0)
    assert z2.leak(x, gamma, noise.dx(Tampered(), x, gamma, x, 0.0), 0.0)[0] > 0


def test_the_leak_is_kappa():
    x = np.random.default_rng(0).standard_normal((50, 3)) * 0.01
    gamma = np.array([1.0, -2.0, 0.5])
    (ours,), _ = noise.installed([noise.OURS])
    leak, kappa = z2.leak(x, gamma, noise.dx(ours, x, gamma, x, 1e-5), 1e-5)
    assert leak == pytest.approx(kappa, rel=1e-12)
    assert 0.05 < kappa < 0.2


def test_a_framework_that_is_not_installed_is_told(monkeypatch):
    from refbn.audit.adapters.torch import Torch

    monkeypatch.setattr(Torch, "version", lambda self: None)
    there, absent = noise.installed(["torch", noise.OURS])
    assert absent == ["torch"]
    assert noise.told(there, absent) == {noise.OURS: refbn.__version__, "torch": "not installed"}


def test_pytorch_is_asked_the_same():
    pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    x, dy = generator.standard_normal((2, 20, 3))
    gamma = generator.standard_normal(3)
    found, ours = (noise.dx(adapter, x, gamma, dy, 1e-3) for adapter in noise.installed(["torch", noise.OURS])[0])
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-13)


# ---- the part that is blocked ----------------------------------------------------------------------------------------


def test_isotropic_gradients_have_the_share_of_their_dimensions():
    mean, error = z4.isotropic(np.random.default_rng(0), 10, 4000)
    # The share is Beta(1, m/2 − 1) for normal gradients, of variance (m/2 − 1)/((m/2)²(m/2 + 1)).
    assert error == pytest.approx(math.sqrt(4 / (25 * 6) / 4000), rel=0.1)
    assert abs(mean - 0.2) < 4 * error


# ---- losses and networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-30.0, -2.0, 0.0, 0.5, 40.0])
def test_derivatives_of_log_sigmoid(z):
    with mpmath.workdps(60):
        due = [mpmath.diff(lambda t: mpmath.log1p(mpmath.exp(-t)), z, order) for order in (1, 2, 3)]
    for found, exactly in zip(z5.derivatives(np.array([z])), due, strict=True):
        assert found[0] == pytest.approx(float(exactly), rel=1e-13, abs=1e-30)


def test_the_expansion_of_second_order_does_not_pass_and_the_loss_does():
    whole, expanded = z5.passing(np.random.default_rng(0).standard_normal(200), 2.0, np.array([4.0, 6.0]))
    assert np.abs(expanded).max() < 1e-13
    assert whole.min() > 0.1


@pytest.fixture(scope="module")
def given():
    return blind_networks.images(Context("Z3"))


def test_the_mean_hessian_is_the_derivative_of_the_gradient(given):
    generator = np.random.default_rng(0)
    net = network.perceptron(generator, (given.features, 6, 10), "BN")
    train(net, given, generator, m=64, steps=20, rate=0.1)
    x, labels = given.x[:40], given.labels[:40]
    hessian = z3.mean_hessian(net, x)
    *_, norm, relu, dense = net.layers()
    saved = norm.saved
    y = refbn.forward(saved.x, saved.gamma, saved.beta, eps=saved.eps).y

    def mean_gradient(y):
        _, dlogits = network.softmax_cross_entropy(dense.forward(relu.forward(y)), labels)
        return relu.backward(dense.backward(dlogits)).sum(0)

    step = 1e-6  # no unit is so near its kink
    assert np.abs(y).min() > 2 * step
    for d in range(6):
        moved = step * np.eye(6)[d]
        column = (mean_gradient(y + moved) - mean_gradient(y - moved)) / (2 * step)
        np.testing.assert_allclose(hessian[:, d], column, atol=1e-8)


@pytest.mark.parametrize(("mean", "deviation"), z6.NETWORKS.values(), ids=z6.NETWORKS)
def test_a_parted_norm_differentiates_what_it_is_said_to(mean, deviation):
    generator = np.random.default_rng(0)
    layer = z6.Parted(3, mean=mean, deviation=deviation)
    x, dy, direction = generator.standard_normal((3, 8, 3))
    layer.forward(x)
    dx = layer.backward(dy)

    def output(t):
        moved = x + t * direction
        center = (moved if mean else x).mean(0)
        # Where the mean is held, so it is inside the deviation; that makes no difference to the first order.
        var = (moved if deviation else x).var(0)
        return float((dy * (moved - center) / np.sqrt(var + layer.norm.eps)).sum())

    slope = (output(1e-5) - output(-1e-5)) / 2e-5
    assert (dx * direction).sum() == pytest.approx(slope, rel=1e-7)


def test_batch_statistics_are_refbns_batch_norm():
    generator = np.random.default_rng(0)
    layer = z6.Parted(3, mean=True, deviation=True)
    x, dy = generator.standard_normal((2, 8, 3))
    layer.forward(x)
    np.testing.assert_allclose(layer.backward(dy), refbn.backward(refbn.forward(x).saved, dy).dx, atol=1e-14)


# ---- whole studies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def only_refbn(monkeypatch):
    """No framework is installed."""
    ours = noise.installed([noise.OURS])[0]
    monkeypatch.setattr(noise, "installed", lambda: (ours, [name for name in noise.FRAMEWORKS if name != noise.OURS]))


@pytest.mark.parametrize("study", [z1, z2, z3, z4, z5, z6], ids=lambda study: study.STUDY.id)
def test_a_study_runs_and_repeats_itself(study, only_refbn, monkeypatch):
    monkeypatch.setattr(exact, "examine", lambda ctx, *_: [as_told(study) for _ in ctx.seeds])
    ctx = Context(study.STUDY.id, (0,), quick=True)
    with style.look():
        finding = study.STUDY.run(ctx)
    assert finding.verdict == ("partly" if study is z5 else "confirmed"), finding.because
    assert "nan" not in finding.caption
    assert not re.search(r"\{\w*[a-z]", finding.caption + finding.because)  # no literal was meant to be formatted
    if study in (z1, z2):
        assert finding.details["frameworks"]["torch"] == "not installed"
    if study in (z1, z5):
        assert study.STUDY.run(dataclasses.replace(ctx)).document() == finding.document()
