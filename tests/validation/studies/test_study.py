import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from validation.studies import MODULES, style
from validation.studies.study import Context, Finding, Measured, Study, jsonable


def test_mean_and_spread():
    row = Measured("error", (1.0, 2.0, 4.5), "m")
    assert row.mean == 2.5 and math.isclose(row.spread, math.sqrt((1.5**2 + 0.5**2 + 2**2) / 2))
    assert str(row) == "2.5 ± 1.8 m"
    single = Measured("error", (1.25,))
    assert math.isnan(single.spread) and str(single) == "1.25"
    diverged = Measured("loss", (1.0, math.inf))
    assert diverged.mean == math.inf and math.isnan(diverged.spread)
    assert type(Measured("x", (np.float32(1),)).values[0]) is float


def test_what_is_incomplete_is_refused():
    with pytest.raises(ValueError, match="values of 'error': none"):
        Measured("error", ())
    rows = (Measured("error", (1.0,)),)
    with pytest.raises(ValueError, match="verdict: 'maybe', expected one of confirmed, partly, not confirmed"):
        Finding("maybe", "because", rows, Figure(), "caption")
    for name in ("because", "numbers", "caption"):
        with pytest.raises(ValueError, match=f"{name}: empty"):
            Finding(
                **{"verdict": "partly", "because": "b", "numbers": rows, "figure": Figure(), "caption": "c", name: ()}
            )


def test_json_is_strict():
    value = {"a": np.arange(3), "b": (np.float64(0.5), math.inf, -math.inf, math.nan), 3: None, "c": [True, np.int8(2)]}
    plain = jsonable(value)
    assert plain == {"a": [0, 1, 2], "b": [0.5, "inf", "-inf", "nan"], "3": None, "c": [True, 2]}
    json.dumps(plain, allow_nan=False)
    assert float(plain["b"][1]) == math.inf
    with pytest.raises(TypeError, match=r"Figure .* cannot go into a JSON file"):
        jsonable({"figure": Figure()})


def test_generators_are_independent_and_repeatable():
    context = Context("Z1")
    draws = [
        made.random(4).tolist()
        for made in (
            context.generator(0),
            context.generator(1),
            context.generator(0, "weights"),
            context.generator(0, "batches"),
            context.generator(0, 1),
            Context("Z2").generator(0),
        )
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)
    assert Context("Z1", seeds=(7,), quick=True).generator(0, "weights").random(4).tolist() == draws[2]


class Recorder:
    """In the place of rich's progress display."""

    def __init__(self):
        self.told = []

    def add_task(self, what, total):
        self.told.append((what, total))
        return len(self.told)

    def advance(self, bar):
        self.told.append(bar)

    def remove_task(self, bar):
        self.told.append(-bar)


def test_progress_passes_everything_on():
    assert list(Context("Z1").progress(iter("ab"), "letters")) == ["a", "b"]
    shown = Recorder()
    context = Context("Z1", shown=shown)
    assert list(context.progress("ab", "letters")) == ["a", "b"]
    assert shown.told == [("letters", 2), 1, 1, -1]
    shown.told.clear()
    for _ in context.progress(iter(range(9)), "numbers", total=9):
        break
    assert shown.told == [("numbers", 9), -1]  # removed although it did not come to its end


def test_every_study_is_where_the_table_says():
    from validation import studies

    for identity in MODULES:
        study = studies.load(identity)
        assert isinstance(study, Study) and study.id == identity
        assert study.claim.endswith(".") and study.title and study.source


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        with style.look():
            figure, axes = style.figure(2, 1)
            axes[0].plot([1, 2], [3, 4], **style.of("BN"))
            axes[1].set_title("second")
            style.letter(axes)
            style.outlined(axes[1], 0.5, 0.5, "text")
            style.save(figure, tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second and first.startswith(b"\x89PNG")
    assert int.from_bytes(first[16:20]) == style.WIDTH * style.DPI
    assert [one.get_title(loc="left") for one in axes] == ["(a)", "(b) second"]


def test_the_look_is_left_behind():
    import matplotlib as mpl

    before = mpl.rcParams["axes.prop_cycle"]
    with style.look():
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(style.CYCLE)
    assert mpl.rcParams["axes.prop_cycle"] == before
    assert style.COLOURS.keys() == style.MARKERS.keys() == style.NAMES.keys()
    assert len(set(style.COLOURS.values())) == len(set(style.MARKERS.values())) == len(style.NAMES)
