from collections import Counter

import pytest

from validation import proofs

DEFINED = [equation.label for equation in proofs.defined_labels()]


def test_no_label_is_defined_twice():
    assert [label for label, n in Counter(DEFINED).items() if n > 1] == []


def test_every_cited_label_is_defined():
    assert [equation for equation in proofs.cited_labels() if equation.label not in DEFINED] == []


def test_the_register_finds_definitions_and_citations():
    assert {"S1", "P1", "F1", "J5", "B3", "K3", "D4", "H1", "I12", "T4"} <= set(DEFINED)
    cited = {(e.where.split(":")[0], e.label) for e in proofs.cited_labels()}
    assert ("refbn/reference/backward.py", "B3") in cited
    assert ("refbn/reference/operator.py", "P1") in cited


def test_every_equation_has_a_proof_and_every_proof_an_equation():
    assert set(proofs.PROOFS) == set(DEFINED)


@pytest.mark.parametrize("proof", dict.fromkeys(proofs.PROOFS.values()), ids=lambda proof: proof.__name__)
def test_proof(proof):
    proof()


def test_a_wrong_equation_is_refuted():
    with pytest.raises(AssertionError):
        proofs.equal(proofs.project(proofs.XHAT), 0 * proofs.XHAT)  # true at ε = 0 only
