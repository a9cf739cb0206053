import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_each_line_is_far_worse_than_the_same_by_another_route():
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another PyTorch")
    from validation import torch_by_hand

    lines = torch_by_hand.main([])
    assert len(lines) == 30 and not any(math.isnan(error) for _, error in lines)
    for place, (what, error) in enumerate(lines):
        if not what.startswith(" "):
            route = next(other for name, other in lines[place:] if name.startswith(" "))
            assert error > 40 * route, what


def test_its_formulas_on_numbers_known_by_hand():
    import mpmath as mp

    from validation import torch_by_hand

    with mp.workdps(40):
        y = torch_by_hand.forward([1, 3])
        assert abs(y[1] - 1 / mp.sqrt(1 + mp.mpf(torch_by_hand.EPS))) < mp.mpf(10) ** -38 and y[0] == -y[1]
        still = torch_by_hand.jvp([1, 3, 4], [1, 1, 1])  # a shift changes nothing
        assert max(abs(v) for v in still) < mp.mpf(10) ** -38
