import pytest

pytest.importorskip("torch")

from validation.formulas import OPERATIONS
from validation.pytorch import ALLOWED, compositions, passes

# PyTorch compiles its forward-mode formulas with something that it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_pytorch_and_the_textbook_agree():
    rows = passes(seed=1)
    assert {row.operation for row in rows} == set(OPERATIONS)
    assert [row for row in rows if not row.fraction <= ALLOWED] == []
    assert max(row.difference for row in rows) < 1e-12


def test_right_compositions_agree():
    rows = {row.operation: row.difference for row in compositions(seed=1)}
    assert rows["forward over reverse"] < 1e-12
    assert rows["reverse over reverse"] < 1e-12
    assert {"reverse over forward", "forward over forward", "reverse three times"} <= set(rows)
