"""Which cases one compilation serves, and what a quick audit asks of a framework that compiles.

Cases of one *group* have operation, shape, formats, ε and the number of steps in common, so that whatever a framework
compiles or traces is made once. In a quick audit of an adapter that compiles (``compiles``, see
`refbn.audit.adapters._protocol.Adapter`) nearly all the time goes into one compilation for each group; the cases
themselves cost next to nothing. For such an adapter the quick audit is *planned*: it keeps whole groups, as few as it
takes to fulfil three wants.

W1. Where the shape is the question (`_is_about_its_shape`), each row of a family's table (inputs, whatever is asked of
    them) is asked at least once with the statistics of the batch, once for a derivative, and once with frozen
    statistics, as far as the table asks for that.
W2. Such a family asks each of its operations at least once.
W3. There is at least one group for each *kind of program*: operation, formats, ε and number of steps, whatever the
    shape.

The groups are taken one after the other: each time the one that fulfils most wants that are still open; of several, the
one that stands first in the tables. What is not in a group that was taken is

* asked all the same, but in a shape that is compiled anyway for this kind of program, if the shape is not the question:
  offset, scale, data, special values and checks are those of the table. Of several shapes it is the one whose numbers
  of channels and of elements in each are the nearest;
* not asked, otherwise.

Both are reported (`refbn.audit.report.run.Framework`): a case that was not asked is no pass. What an adapter does not
offer costs nothing and stays, so that it is reported as unsupported. A full audit is asked as it stands in the tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refbn.audit.adapters._protocol import Adapter, compiles
from refbn.audit.runner import out_of_scope

if TYPE_CHECKING:
    from refbn.audit.cases import Case

__all__ = ["Plan", "everything", "groups_of", "plan"]

_SHAPES = frozenset({"composition", "shape", "layout", "exact", "norms"})
_FEW, _MANY = 4, 1024
"""Of how few elements in a channel, and of how many in a tensor, the size is a question of its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one adapter is asked instead of the tables.

    Attributes
    ----------
    left_out : tuple of Case
        The cases of the tables that it is not asked.
    instead : tuple of Case
        Those that it is asked in their place, in other shapes.
    """

    left_out: tuple[Case, ...] = ()
    instead: tuple[Case, ...] = ()


def groups_of(cases: Iterable[Case]) -> list[list[int]]:
    """Return the places of cases that have norm, operation, shape, formats, ε and the number of steps in common."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault((*_program(case), _shape(case)), []).append(place)
    return list(groups.values())


def plan(adapter: Adapter, cases: Sequence[Case]) -> Plan:
    """Return what an adapter is asked in a quick audit; it departs from the tables only if the adapter compiles."""
    if not compiles(adapter):
        return Plan()
    offered = [case for case in cases if not out_of_scope(adapter, case)]
    groups = [[offered[place] for place in places] for places in groups_of(offered)]
    kept = _cover([{want for case in group for want in _wants(case)} for group in groups])
    shapes: dict[Hashable, list[Case]] = {}
    for k in kept:
        if _is_ordinary(groups[k][0]):
            shapes.setdefault(_program(groups[k][0]), []).append(groups[k][0])
    left_out = [case for k, group in enumerate(groups) if k not in kept for case in group]
    moved = [_moved(case, shapes[_program(case)]) for case in left_out if not _is_about_its_shape(case)]
    return Plan(tuple(left_out), tuple(case for case in dict.fromkeys(moved) if case not in set(offered)))


def everything(plans: Mapping[str, Plan], cases: Sequence[Case]) -> tuple[list[Case], dict[str, frozenset[Case]]]:
    """Return all cases that some adapter is asked, and which of them each one, by its name, is not."""
    others = list(dict.fromkeys(case for own in plans.values() for case in own.instead))
    untold = {name: frozenset({*own.left_out, *others} - set(own.instead)) for name, own in plans.items()}
    return [*cases, *others], untold


def _cover(wants: Sequence[set[Hashable]]) -> list[int]:
    """Return the places of groups that fulfil every want, in the order of the tables."""
    still = set().union(*wants)
    kept = []
    while still:
        most = max(range(len(wants)), key=lambda k: (len(wants[k] & still), -k))
        kept.append(most)
        still -= wants[most]
    return sorted(kept)


def _wants(case: Case) -> Iterator[Hashable]:
    """Yield the wants that a case fulfils, by their numbers."""
    if _is_about_its_shape(case):
        differentiates = bool(case.op.composition) and not case.op.frozen
        yield 1, dataclasses.replace(case, operation="forward", check=""), case.op.frozen, differentiates
        yield 2, case.family, case.operation
    if _is_ordinary(case):
        yield 3, _program(case)


def _is_about_its_shape(case: Case) -> bool:
    """Whether a case would be another one in another shape: by its family, its size, or data that depend on it."""
    return case.family in _SHAPES or case.data == "integers" or not _is_ordinary(case)


def _is_ordinary(case: Case) -> bool:
    return case.repeat == 1 and case.count >= _FEW and math.prod(case.shape) <= _MANY


def _moved(case: Case, shapes: Sequence[Case]) -> Case:
    """Return the case in the shape, among those of some other cases, that is the nearest."""

    def distance(other: Case) -> float:
        return abs(math.log(other.count / case.count)) + abs(math.log(other.shape[1] / case.shape[1]))

    return dataclasses.replace(case, shape=min(shapes, key=distance).shape)


def _program(case: Case) -> tuple[Hashable, ...]:
    return case.norm, case.operation, case.dtype, case.param, case.eps, case.steps


def _shape(case: Case) -> tuple[int, ...]:
    return case.shape[0] * case.repeat, *case.shape[1:]
