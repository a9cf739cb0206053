import pytest

pytest.importorskip("torch")
pytest.importorskip("jax")

from validation.zero_copy import Row, look


def test_nothing_is_copied():
    rows = list(look())
    assert {"torch float32", "torch bfloat16, channels last", "torch float64, sliced", "jax float32"} <= {
        row.array for row in rows
    }
    assert [row.array for row in rows if row.copied] == []


@pytest.mark.parametrize(("theirs", "shared"), [(8, None), (16, False)])
def test_a_copy_would_show(theirs, shared):
    assert Row("array", theirs, 16, (4,), shared).copied
