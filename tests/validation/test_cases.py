import numpy as np
import pytest

from refbn._formats import BINARY64, FORMATS
from validation.cases import EPSILONS, FAMILIES, SCALARS, VECTORS, batches, draw, parse

MANY = range(400)


def flat(channel):
    return {name: channel.arrays[name].astype(np.float64) for name in (*VECTORS, *SCALARS)}


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_a_description_rebuilds_the_case_bit_for_bit(form):
    for index in range(10):
        channel = draw(form, 3, index)
        again = parse(str(channel))
        assert str(again) == str(channel)
        for name, array in channel.arrays.items():
            assert array.tobytes() == again.arrays[name].tobytes() and array.dtype == form.dtype


@pytest.mark.parametrize("text", ["", "f32", "f8:0:1", "f32:0", "f32:-1:0", "f32:0:x"])
def test_other_descriptions_are_refused(text):
    with pytest.raises(ValueError, match="expected FORMAT:SEED:INDEX"):
        parse(text)


def test_seed_index_and_format_matter():
    first = draw(BINARY64, 0, 0).arrays["gamma"]
    assert len({float(c.arrays["gamma"]) for c in (draw(BINARY64, 0, 1), draw(BINARY64, 1, 0))} | {float(first)}) == 3


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_cases_are_finite_and_really_vary(form):
    channels = [draw(form, 0, index) for index in MANY]
    assert all(np.isfinite(array).all() for channel in channels for array in flat(channel).values())
    assert all(float(channel.arrays["var"]) >= 0 for channel in channels)
    assert {channel.kinds["x"] for channel in channels} == set(FAMILIES)
    assert {channel.eps for channel in channels} == set(EPSILONS)
    assert {1, 2, 3, 8} <= {channel.m for channel in channels}
    assert np.mean([channel.m for channel in channels]) < 12


def test_families_do_what_they_are_for():
    channels = [draw(BINARY64, 0, index) for index in range(3000)]
    of = {name: [flat(c)["x"] for c in channels if c.kinds["x"] == name and c.m > 2] for name in FAMILIES}
    spread = [abs(x.mean()) / x.std() for x in of["offset"] if x.std() > 0]
    assert max(spread) > 1e14
    assert all(np.ptp(x) == 0 for x in of["constant"])
    steps = [np.ptp(x) / np.spacing(abs(x).max()) for x in of["ulps"]]
    assert max(steps) <= 4 and min(step for step in steps if step) == 1
    assert all((x == np.round(x)).all() for x in of["integers"])
    assert all(len(set(x)) == 2 for x in of["two-values"])
    assert all((np.frexp(x)[0] % 0.5 == 0).all() for x in of["powers"])
    assert all((abs(x) < BINARY64.tiny * 2**53).all() for x in of["subnormal"])
    assert max(abs(x).max() for x in of["huge"]) > 0.9 * BINARY64.max
    assert max(np.ptp(np.log2(abs(x[x != 0]))) for x in of["mixed"]) > 1000
    assert max(c.m for c in channels) > 100


def test_batches_hold_each_case_once():
    stacked = [(b, g, c) for b in batches(BINARY64, 5, range(60)) for g, c in enumerate(b.channels)]
    assert sorted(c.index for _, _, c in stacked) == list(range(60))
    for batch, group, channel in stacked:
        assert batch.eps == channel.eps
        for name, array in channel.arrays.items():
            assert (batch.arrays[name][group] == array).all()
