import pytest

flint = pytest.importorskip("flint")

from flint import fmpq  # noqa: E402

from refbn._formats import FORMATS  # noqa: E402
from validation.cases import draw  # noqa: E402
from validation.enclosures import exact_inputs  # noqa: E402
from validation.formulas import OPERATIONS, Surd, projector_route, statistics_route, surd_root  # noqa: E402


def coordinates(value):
    return (value.a, value.b) if isinstance(value, Surd) else (value, fmpq(0))


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_both_arrangements_are_the_same_functions(form):
    for index in range(40):
        inputs = exact_inputs(draw(form, 11, index))
        one, other = projector_route(inputs), statistics_route(inputs)
        for operation, outputs in OPERATIONS.items():
            assert set(one[operation]) == set(other[operation]) == set(outputs)
            for output in outputs:
                if one[operation][output] is None:
                    assert other[operation][output] is None
                    continue
                values = zip(one[operation][output], other[operation][output], strict=True)
                assert all(coordinates(a) == coordinates(b) for a, b in values), (index, operation, output)


def test_surds_are_a_field():
    q = fmpq(7, 3)
    a, b = Surd(fmpq(1, 2), fmpq(3), q), Surd(fmpq(-5), fmpq(2, 7), q)
    assert coordinates(a * b / b) == coordinates(a)
    assert coordinates(a - b + b) == coordinates(a)
    assert coordinates(2 * a) == coordinates(a + a)
    assert coordinates(3 - a) == coordinates(-(a - 3))


def test_the_root_is_rational_where_it_can_be():
    assert surd_root(fmpq(9, 4)) == fmpq(2, 3)
    root = surd_root(fmpq(2))
    assert coordinates(root * root) == (fmpq(1, 2), fmpq(0))
