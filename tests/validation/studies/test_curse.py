"""U1 to U6: exact statements, measures on cases whose answer is known, and verdicts that turn on the numbers."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("ml_dtypes")

import refbn
from refbn.reference import spectrum, statistics
from validation.finite_differences import richardson
from validation.studies import network, training
from validation.studies import u1_benefits as u1
from validation.studies import u2_small_batches as u2
from validation.studies import u3_train_and_test as u3
from validation.studies import u4_online as u4
from validation.studies import u5_recurrent as u5
from validation.studies import u6_alternatives as u6
from validation.studies.study import Context

UNIT = 2.0**-53


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def given():
    return training.task(None)


class TestTraining:
    def test_an_effect_is_clear_beyond_two_standard_deviations(self):
        assert training.clear([1.0, 1.1, 0.9])
        assert not training.clear([-1.0, -1.1, -0.9])
        assert training.clear([5.0, 5.0 + math.sqrt(8) - 1e-9])  # mean 6.4, twice the deviation is 4
        values = np.array([0.0, 1.0])  # mean 0.5, deviation √½
        assert not training.clear(values + 0.9)
        assert training.clear(values + 0.92)

    def test_a_single_effect_is_clear_if_it_is_positive(self):
        assert training.clear([0.1])
        assert not training.clear([0.0])

    def test_the_memory_counts_images(self):
        assert training.memory(64) == 0.1
        assert training.memory(2) * 32 == pytest.approx(0.1)

    def test_some_images_keep_their_labels(self, given):
        few = given.some(generator(), 40)
        assert few.x.shape == (40, given.features)
        for x, label in zip(few.x, few.labels, strict=True):
            (place,) = np.nonzero((given.x == x).all(axis=1))[0][:1]
            assert given.labels[place] == label

    def test_training_learns(self, given):
        net = network.perceptron(generator(), (given.features, 32, 10), "none")
        losses = training.train(net, given, generator(1), m=32, steps=60, rate=0.1)
        assert len(losses) == 60
        assert given.accuracy(net) > 0.6

    def test_training_ends_where_the_loss_is_not_finite(self, given):
        net = network.perceptron(generator(), (given.features, *[64] * 5, 10), "none")
        losses = training.train(net, given, generator(1), m=32, steps=20, rate=1e6)
        assert len(losses) < 20
        assert not math.isfinite(losses[-1])

    def test_training_ends_when_it_is_told_to(self, given):
        net = network.perceptron(generator(), (given.features, 10), "none")
        losses = training.train(net, given, generator(), m=32, steps=9, rate=0.1, watch=lambda step: step == 4)
        assert len(losses) == 4

    @pytest.mark.parametrize("kind", ["BN", "BRN"])
    def test_two_samples_are_blocked_but_for_what_epsilon_lets_through(self, given, kind):
        net = network.perceptron(generator(), (given.features, 32, 10), kind, eps=1e-12)
        training.train(net, given, generator(1), m=2, steps=1, rate=0.0)
        ((blocked, whole),) = training.blocked_shares(net)
        (norm,) = training.norms(net)
        # κ ≤ ε/v leaks, and features whose variance is nothing let all of their part of the gradient through.
        variances = np.var(norm.saved.x, axis=0)
        assert blocked / whole > 1 - 1e-9
        assert variances.min() > 1e-3

    def test_layer_norm_blocks_a_part(self, given):
        net = network.perceptron(generator(), (given.features, 32, 10), "LN")
        training.train(net, given, generator(1), m=2, steps=1, rate=0.0)
        ((blocked, whole),) = training.blocked_shares(net)
        assert 0 < blocked < whole / 2

    def test_weight_standardization_blocks_the_part_along_the_weights(self, given):
        net = network.perceptron(generator(), (given.features, 32, 10), "WS", eps=0.0)
        training.train(net, given, generator(1), m=8, steps=1, rate=0.0)
        (layer,) = training.norms(net)
        split = refbn.blindness(layer.saved, layer.linear.gradients["weight"])
        ((blocked, whole),) = training.blocked_shares(net)
        assert blocked == np.square(split.blocked).sum()
        assert 0 < blocked < whole

    def test_only_batch_statistics_make_a_discrepancy(self, given):
        for kind, changes in (("BN", True), ("LN", False), ("none", False)):
            net = network.perceptron(generator(), (given.features, 32, 10), kind)
            change, accuracy = training.discrepancy(net, given, generator(1), 8, 5)
            # Without: products of matrices of other sizes, rounded otherwise.
            assert (change > 0.1) if changes else (change < 1000 * UNIT)
            assert 0 <= accuracy <= 1

    def test_a_single_seed_has_no_spread(self):
        assert training.spread(np.array([[1.0, 2.0]])).tolist() == [0.0, 0.0]
        assert training.spread(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2))


class TestBenefits:
    """U1."""

    def test_steps_until(self):
        assert u1.steps_until([0.1, 0.6, 0.5, 0.9], 0.5) == 2 * u1.EVERY
        assert u1.steps_until([0.1, 0.2], 0.5) == 3 * u1.EVERY

    def test_the_best_rate_is_first_and_then_highest(self):
        curves = {0.1: [[0.2, 0.6]], 1.0: [[0.6, 0.5]], 10.0: [[0.0, 0.0]]}
        assert u1.best_rate(curves, 0.5) == 1.0
        assert u1.best_rate(curves, 0.9) == 0.1

    def test_decades(self):
        assert u1.decades([0.2, 0.9, 0.8, 0.1, 0.9], 0.8) == 1.5

    def test_divergence_is_no_accuracy(self):
        curve = u1.learn(Context("U1"), 0, "none", 1e6, 10)
        assert curve == [0.0, 0.0]

    def test_the_verdict_turns_on_the_numbers(self):
        ours = u1.Benefits([20.0, 25.0], [3.0, 3.0], [2.5, 2.5], [0.9, 0.91])
        other = u1.Benefits([60.0, 70.0], [1.0, 1.5], [0.5, 0.5], [0.8, 0.8])
        assert u1.judge({"BN": ours, "none": other})[0] == "confirmed"
        assert u1.judge({"BN": other, "none": ours})[0] == "not confirmed"
        for part, equal in other._asdict().items():
            verdict, because = u1.judge({"BN": ours._replace(**{part: equal}), "none": other})
            assert verdict == "partly"
            assert because.count("(not ahead)") == 1


class TestSmallBatches:
    """U2."""

    @pytest.mark.parametrize("m", [2, 3, 4, 7, 12])
    def test_p_is_a_projector_of_rank_m_minus_two(self, m):
        found = u2.projector(generator(m), m)
        assert found.idempotent
        assert found.trace == m - 2
        stats = statistics(generator(m).standard_normal((1, m)), 0.0)
        assert spectrum(stats).rank[0] == found.trace

    def test_isotropic_gradients_lose_two_of_m_parts(self):
        m = 9
        assert 1 - u2.projector(generator(), m).trace / m == Fraction(2, m)

    def test_degradation_is_from_the_best_size(self):
        accuracies = {2: [0.5, 0.6], 4: [0.9, 0.8], 64: [0.6, 0.7]}
        assert u2.degradation(accuracies) == pytest.approx([0.4, 0.2])

    @pytest.mark.parametrize(
        ("at_two", "bad"),
        [([0.5, 0.51], True), ([0.89, 0.88], False), ([0.92, 0.91], False), ([0.5, 0.9], False)],
        ids=["clear", "small", "better", "not clear"],
    )
    def test_what_degrades(self, at_two, bad):
        assert u2.degrades({2: at_two, 64: [0.9, 0.9]}) is bad

    def test_the_verdict_turns_on_the_numbers(self):
        projectors = {4: [SimpleNamespace(idempotent=True, trace=Fraction(2))]}
        bad, good = {2: [0.5, 0.5], 64: [0.9, 0.9]}, {2: [0.9, 0.9], 64: [0.9, 0.9]}
        claimed = {"BN": bad, "BRN": good, "GN": good, "LN": good}
        assert u2.judge(projectors, claimed)[0] == "confirmed"
        verdict, because = u2.judge(projectors, claimed | {"BRN": bad})
        assert verdict == "partly"
        assert "BRN degrades, too" in because
        assert u2.judge(projectors, claimed | {"BN": good})[0] == "partly"
        wrong = {4: [SimpleNamespace(idempotent=True, trace=Fraction(3))]}
        assert u2.judge(wrong, claimed)[0] == "partly"
        nothing = dict.fromkeys(claimed, bad) | {"BN": good}
        assert u2.judge({4: [SimpleNamespace(idempotent=False, trace=Fraction(2))]}, nothing)[0] == "not confirmed"


class TestTrainAndTest:
    """U3."""

    def test_known_variances(self):
        values = [Fraction(0), Fraction(0), Fraction(3)]
        assert u3.population_variance(values) == 2
        assert u3.mean_variance([(Fraction(0), Fraction(3)), (Fraction(0), Fraction(1))]) == Fraction(5, 4)

    def test_expectations_by_enumeration(self):
        values = [Fraction(0), Fraction(0), Fraction(3)]
        pairs = [(a, b) for a in values for b in values]
        assert u3.mean_variance(pairs) == u3.predicted(Fraction(2), 2) == 1
        distinct = [(values[0], values[1]), (values[0], values[2]), (values[1], values[2])]
        assert u3.mean_variance(distinct) == u3.predicted(Fraction(2), 2, 3) == Fraction(3, 2)

    @pytest.mark.parametrize("seed", range(3))
    def test_any_population(self, seed):
        assert u3.enumerated(generator(seed))

    def test_another_formula_is_found_out(self, monkeypatch):
        monkeypatch.setattr(u3, "predicted", lambda variance, m, count=None: variance)
        assert not u3.enumerated(generator())

    def test_a_trained_network_is_measured(self):
        found = u3.learn(Context("U3"), 0, 8, 1, 100)
        first = found.ratios[0]
        assert abs(first.mean - 7 / 8) < 5 * first.error  # one in a million
        assert found.discrepancy > 0.05

    def test_the_verdict_turns_on_the_numbers(self):
        def trained(m, off=0.0, discrepancy=None, gap=0.1):
            return u3.Trained(
                (u3.Ratio(1 - 1 / m + off, 0.01), u3.Ratio(0.5, 0.01)), discrepancy or 1 / m, 0.8, 0.8 + gap
            )

        good = {m: [trained(m), trained(m)] for m in (2, 8, 64)}
        assert u3.judge([True, True], good)[0] == "confirmed"
        assert u3.judge([True, True], good | {2: [trained(2, gap=-0.1)] * 2})[0] == "confirmed"  # either sign
        assert u3.judge([True, False], good)[0] == "partly"
        assert u3.judge([True, True], good | {8: [trained(8, off=0.04)] * 2})[0] == "partly"
        assert u3.judge([True, True], good | {64: [trained(64, discrepancy=0.4)] * 2})[0] == "partly"
        assert u3.judge([True, True], good | {2: [trained(2, gap=0.1), trained(2, gap=-0.1)]})[0] == "partly"


class TestOnline:
    """U4."""

    @pytest.mark.parametrize("backend", u4.BACKENDS)
    @pytest.mark.parametrize("name", u4.FORMATS)
    def test_one_sample_gives_beta_and_no_gradient(self, name, backend):
        stream = generator()
        assert all(u4.in_bits(stream, u4._dtype(name), backend) for _ in range(10))

    @pytest.mark.parametrize("wrong", ["dx", "dgamma", "dbeta"])
    def test_other_bits_are_found_out(self, monkeypatch, wrong):
        right = refbn.backward

        def backward(saved, dy):
            found = {name: getattr(right(saved, dy), name) for name in ("dx", "dgamma", "dbeta")}
            return SimpleNamespace(**found | {wrong: np.nextafter(found[wrong], np.inf)})

        monkeypatch.setattr(refbn, "backward", backward)
        assert not u4.in_bits(generator(), np.dtype("float64"), "native")

    def test_nothing_below_the_topmost_norm_moves(self):
        found = u4.learn(Context("U4"), 0, "BN", 40, 60)
        assert {name for name, change in found.moved.items() if change} == {"4.beta", "6.weight", "6.bias"}
        assert found.categories == 1
        assert found.accuracy < 0.3

    def test_other_norms_move_everything(self):
        found = u4.learn(Context("U4"), 0, "LN", 40, 60)
        assert all(found.moved.values())
        assert found.categories > 1

    def test_batch_renormalization_learns_nothing_below_either(self):
        found = u4.learn(Context("U4"), 0, "BRN", 40, 60)
        assert found.moved["0.weight"] == found.moved["3.weight"] == 0.0
        assert found.categories > 1

    def test_pytorch_refuses(self):
        pytest.importorskip("torch")
        assert "more than 1 value per channel" in u4.torch_raises()

    def test_the_verdict_turns_on_the_numbers(self):
        names = ("0.weight", "4.beta", "6.weight", "6.bias")

        def learnt(accuracy, categories=10, still=0):
            moved = {name: float(place >= still) for place, name in enumerate(names)}
            return u4.Learnt(moved, [(0, 0.1), (40, accuracy)], categories)

        bits = {("float32", "native"): [True, True]}
        found = {kind: [learnt(0.8), learnt(0.81)] for kind in ("LN", "GN", "none", "BRN")}
        found["BN"] = [learnt(0.1, 1, still=1)] * 2
        assert u4.judge(bits, found, 0.12)[0] == "confirmed"
        assert u4.judge({("float32", "native"): [True, False]}, found, 0.12)[0] == "partly"
        assert u4.judge(bits, found | {"BN": [learnt(0.1, 1)] * 2}, 0.12)[0] == "partly"  # a weight below moved
        assert u4.judge(bits, found | {"BN": [learnt(0.1, 2, still=1)] * 2}, 0.12)[0] == "partly"
        assert u4.judge(bits, found | {"LN": [learnt(0.1)] * 2}, 0.12)[0] == "partly"


class TestRecurrent:
    """U5."""

    def test_growth_of_a_geometric_sequence(self):
        assert u5.growth(10.0 ** (-0.2 * np.arange(20)[::-1])) == pytest.approx(-0.2)

    def test_small_gamma_loses_the_square_root_of_two(self):
        assert u5.predicted(1e-3) == pytest.approx(-math.log10(2) / 2, abs=1e-5)  # O(γ²)
        assert u5.predicted(0.1) < u5.predicted(1.0) < 0 < u5.predicted(3.0)

    @pytest.mark.parametrize("kind", ["none", "BN", "LN"])
    def test_the_gradient_of_a_reader(self, kind):
        net = u5.Reader(generator(), 12, 3, kind, 0.5)
        x, weights = generator(1).standard_normal((8, 12)), generator(2).standard_normal((8, 10))
        y = net.forward(x)
        dx = net.backward(weights)
        directions = generator(3).standard_normal((3, x.size))

        def function(points):
            return np.array([[(weights * net.forward(point.reshape(x.shape))).sum()] for point in points])

        noise = np.array([256 * UNIT * abs(weights * y).sum()])
        found, error = richardson(function, noise, x.ravel(), directions)
        assert error.max() < 1e-4 * np.abs(found).max()
        assert (abs(found - directions @ dx.reshape(-1, 1)) <= error).all()

    def test_shared_statistics_are_those_of_all_steps_together(self):
        net = u5.Reader(generator(), 6, 3, "BN", 0.5)
        net.forward(generator(1).standard_normal((8, 6)))
        values = generator(2).standard_normal((2, 100, u5.HIDDEN)) + np.array([0.0, 3.0])[:, None, None]
        first, second = (layer.norm for layer in net.norms[::2])
        for norm, of_step in zip((first, second), values, strict=True):
            norm.running_mean, norm.running_var = of_step.mean(axis=0), of_step.var(axis=0)
        net.share_statistics()
        together = values.reshape(-1, u5.HIDDEN)
        assert first.running_mean == pytest.approx(together.mean(axis=0))
        assert second.running_var == pytest.approx(together.var(axis=0))

    def test_the_verdict_turns_on_the_numbers(self):
        growths, accuracies, common = (
            {0.1: [0.0, 0.0], 1.0: [-0.3, -0.3]},
            {0.1: [0.9, 0.9], 1.0: [0.6, 0.6]},
            [0.5, 0.5],
        )
        assert u5.judge(growths, accuracies, common)[0] == "confirmed"
        verdict, because = u5.judge({0.1: [-0.3, -0.3], 1.0: [0.0, 0.0]}, accuracies, common)
        assert verdict == "partly"
        assert "does not vanish faster" in because
        assert u5.judge(growths, {0.1: [0.9, 0.9], 1.0: [0.9, 0.9]}, common)[0] == "partly"
        assert u5.judge(growths, accuracies, [0.9, 0.9])[0] == "partly"


class TestAlternatives:
    """U6."""

    @pytest.mark.parametrize("kind", u6.KINDS)
    @pytest.mark.parametrize("m", [1, 2])
    def test_any_kind_can_be_trained(self, kind, m):
        images = training.task(None, images=True)
        net = u6.build(generator(), kind, images.x.shape[1:], m)
        losses = training.train(net, images, generator(1), m=m, steps=3, rate=0.01)
        assert len(losses) == 3
        assert np.isfinite(losses).all()
        assert len(training.norms(net)) == {"none": 0, "IN": 2}.get(kind, 3)

    def test_images_until(self):
        curve = [(80, 0.2), (160, 0.7), (240, 0.6)]
        assert u6.images_until(curve, 0.6) == 160
        assert math.isnan(u6.images_until(curve, 0.8))

    def test_the_verdict_turns_on_the_numbers(self):
        bad = u6.Row(0.9, 0.5, 0.1, [], 1.0, 1.0)
        good = u6.Row(0.9, 0.9, 0.8, [], 0.1, 0.0)
        assert u6.failures([good, good], [bad, bad]) == []
        for part, value, name in (
            ("accuracy", 0.8, "accuracy"),
            ("small", 0.5, "small batches"),
            ("online", 0.1, "online"),
            ("modes", 1.0, "two modes"),
        ):
            assert u6.failures([good._replace(**{part: value})] * 2, [bad, bad]) == [name]
        found = {kind: [good, good] for kind in u6.KINDS} | {"BN": [bad, bad]}
        assert u6.judge(found)[0] == "confirmed"
        verdict, because = u6.judge(found | {"BRN": [bad, bad]})
        assert verdict == "partly"
        assert "BRN fails in: small batches, online, two modes" in because
        assert u6.judge({kind: [bad, bad] for kind in u6.KINDS})[0] == "not confirmed"
