"""A mutant as a framework that the audit asks."""

from __future__ import annotations

from types import ModuleType
from unittest import mock

from refbn.audit.adapters._protocol import Array, Inputs
from refbn.audit.adapters.own import Own
from refbn.backends import reference as binding
from refbn.dialects import DIALECTS
from validation.mutants.generate import Mutant
from validation.mutants.textbook import build

__all__ = ["Mutated"]


class Mutated(Own):
    """refbn's backend `reference` with another textbook: public functions, layouts, edges and compositions are refbn's.

    Parameters
    ----------
    mutant : Mutant or None
        None is the control, whose textbook is right.
    dialect : str
        Whose running statistics it keeps; the textbook knows them all.
    """

    def __init__(self, mutant: Mutant | None, dialect: str = "torch") -> None:
        super().__init__("reference")
        self.dialect = DIALECTS[dialect]
        self.name = "control" if mutant is None else mutant.id
        self.textbook: ModuleType = build("" if mutant is None else mutant.source)

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with mock.patch.object(binding, "reference", self.textbook):
            return super().run(operation, inputs)
