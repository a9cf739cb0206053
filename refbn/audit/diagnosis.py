"""Why a result is off: which classic mistake gives the same numbers, and the smallest case that shows it.

The candidates are the members of the zoo (`refbn.audit.adapters.zoo`): each is a batch norm with one mistake, asked the
same case under the adapter's own dialect. (Named conventions have been tried before: they give the verdict
``dialect``.) Errors are measured per element in units of the largest exact magnitude of the channel, as the audit does.

**The rule for a mistake whose numbers are determined.** It *fits* a result if both are finite at the same elements
and one of these holds:

F1. *digits*: the result is at least `CLOSER` times nearer to the mistake's numbers than to the truth, at the worst
    element of each;
F2. *bits*: the mistake's rounded numbers differ from the correctly rounded truth in at least `TELLING` elements of the
    group, and its results have the mistake's bits in nine of ten of them, and in nine of ten of all. (Where the error
    is a few ulps, rounding alone forbids F1.) Were each agreement a coin, chance would do this once in a hundred times;
F3. *pattern*: the result is finite in other places than the truth, and where it is finite, F1 holds or the error
    relative to the mistake is within 8 ulps.

A finding is explained by a mistake that fits it and at least `SEVERAL` cases of the same framework, operation, output
and check (F2: of the same dtype and family too). Where there are fewer, the first case of that dtype and family is
asked again with other seeds, and must be off and fit there too. A mistake is out if it would show, well beyond the
bound, in as many cases that the framework gets right as it fits. Of several mistakes the one with the fewest such
contradictions is told, then the one that fits most cases of the same dtype and family, then the one with the fewest
contradictions in other operations, then one that does not depend on the order, then the one that fits most cases
anywhere, then one that the zoo means for the family, then the one with most digits. (A framework may make two mistakes:
what fits elsewhere, too, is no better a reason here.)

**The rule for a mistake that depends on the order of summation**, or of roundings (`Control.depends_on_order`). Another
program with the same mistake has other numbers. So the mistake is run on several orders of the batch. In each channel
in which its errors exceed the bound, E is the root mean square of the result's errors and S that of the mistake's, the
median over the orders. It is *consistent with* the group if, over at least `CHANNELS` channels of at least `SEVERAL`
cases, the geometric mean of E/S lies between 1/3 and 3, and nine of ten single ratios between 1/10 and 10. A channel in
which the result is not finite counts as one of those ten if some order leaves the mistake not finite there too, and
against it if none does. The words are "consistent with", never more: errors of one size may have another cause.

**The smallest case.** Findings of one framework, operation, output, check and verdict with one explanation are shrunk
once (unexplained ones once for each family), from their case with the fewest elements: fewer repetitions, axes,
channels, samples; plain layout, parameters, data, offset, scale. A change is kept if verdict and explanation stay, and
if the exact result does not cancel to less than a competent implementation's error; the first that is kept begins
another round. The number of trials is bounded, and so is the time for all, a worker's included.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._errors import DomainError
from refbn._formats import format_of, round_to
from refbn.audit import truth
from refbn.audit.adapters._protocol import Adapter, Inputs, Unsupported, kind_and_groups, norms_of
from refbn.audit.cases import Case, make_inputs, parse
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.reproduce import case_of, script
from refbn.audit.runner import Finding, run_case, run_cases
from refbn.audit.threads import thread_of
from refbn.audit.truth import Conventions, Expected

__all__ = [
    "CHANNELS",
    "CLOSER",
    "OFF",
    "SEVERAL",
    "TELLING",
    "Bits",
    "Diagnosis",
    "Evidence",
    "Fit",
    "fit",
    "reproduce",
    "same_bits",
    "script",
    "shrink",
]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Answer = Mapping[str, Array]

OFF: frozenset[Verdict] = frozenset({"lossy", "nonfinite", "raises", "wrong"})
"""The verdicts that ask for a reason."""

CLOSER = 100.0
"""F1: how many times nearer to the mistake than to the truth."""
TELLING = 8
"""F2: how many elements must tell mistake and truth apart."""
SEVERAL = 2
"""How many cases a mistake must fit."""
CHANNELS = 6
"""How many channels the rule of sizes needs."""

_LARGE = 2**20  # elements; beyond, only the mistake that needs so many is tried
_ONLY_LARGE = "serial-sums"
_ORDERS = 2
_SMALL, _KEPT = 4096, 4000  # of how few elements answers are kept, and how many
_SEEDS = 3
_FINE = 12
_SHOWS = 30.0  # times the bound: less might be luck
_TRIALS = 40


@dataclass(frozen=True, slots=True)
class Fit:
    """How a mistake fits one result.

    Attributes
    ----------
    how : {"digits", "bits", "pattern"}
        Which clause of the rule.
    digits : float or None
        Decimal digits that result and mistake share, at most the format's; None if no element is finite.
    """

    how: str
    digits: float | None


@dataclass(frozen=True, slots=True)
class Bits:
    """How often a result has a mistake's bits.

    Attributes
    ----------
    told, telling : int
        Of the elements in which the mistake's rounded numbers differ from the rounded truth: those that agree, and all.
    same, real : int
        The same of all elements.
    """

    told: int
    telling: int
    same: int
    real: int

    def __add__(self, other: Bits) -> Bits:
        return Bits(
            self.told + other.told, self.telling + other.telling, self.same + other.same, self.real + other.real
        )

    @property
    def fits(self) -> bool:
        """Whether F2 holds."""
        return self.telling >= TELLING and self.told >= 0.9 * self.telling and self.same >= 0.9 * self.real


_NO_BITS = Bits(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """For one result and one mistake that depends on the order: ratios E/S, and channels that are not finite."""

    ratios: tuple[float, ...]
    agreeing: int
    against: int


@dataclass(slots=True)
class Evidence:
    """What is known about one finding that is off, by mistake: how it fits, its bits, the sizes of its errors."""

    fits: dict[str, Fit] = field(default_factory=dict)
    bits: dict[str, Bits] = field(default_factory=dict)
    sizes: dict[str, _Sizes] = field(default_factory=dict)


# ---- one result ----------------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def fit(got: Array, mistaken: Array, expected: Expected) -> Fit | None:
    """Return how a mistake's numbers fit a result that is off, or None."""
    if got.shape != expected.full_shape or mistaken.shape != got.shape or got.size == 0:
        return None
    form = expected.output_format(format_of(got.dtype))
    got, mistaken = (_period(a, expected) for a in (got, mistaken))
    asked = ~expected.free | expected.stays
    finite = np.isfinite(got)
    if np.any(asked & (finite != np.isfinite(mistaken))):
        return None
    real = asked & finite & ~expected.nonfinite & ~expected.free
    scale = _scale(expected, np.where(np.isfinite(mistaken), np.abs(mistaken), 0.0))
    off = _largest(got - expected.high - expected.low, real, scale)
    apart = _largest(got - mistaken, asked & finite, scale)
    digits = None
    if (asked & finite).any():
        most = form.precision * math.log10(2)
        digits = most if apart == 0 else min(max(-math.log10(apart), 0.0), most)
    if np.any(asked & (finite == expected.nonfinite)) or (expected.stays and not finite.all()):
        near = apart * CLOSER <= off or apart <= 16 * form.unit_roundoff
        return Fit("pattern", digits) if near else None
    if off == 0:
        return None
    return Fit("digits", digits) if apart * CLOSER <= off else None


@np.errstate(all="ignore")
def same_bits(got: Array, mistaken: Array, expected: Expected) -> Bits:
    """Count the elements in which a result has the bits of a mistake, and those that tell it from the truth."""
    if got.shape != expected.full_shape or mistaken.shape != got.shape or got.size == 0:
        return Bits(0, 0, 0, 0)
    form = expected.output_format(format_of(got.dtype))
    got, mistaken = _period(got, expected), _period(mistaken, expected)
    real = np.isfinite(got) & np.isfinite(mistaken) & ~expected.nonfinite & ~expected.free
    stored = round_to(np.where(real, mistaken, 0.0), form.dtype).astype(np.float64)
    rounded = expected.rounded(form)
    same, telling = real & (got == stored), real & (stored != rounded)
    return Bits(int((same & telling).sum()), int(telling.sum()), int(same.sum()), int(real.sum()))


@np.errstate(all="ignore")
def _sizes(got: Array, mistaken: Sequence[Array], expected: Expected) -> _Sizes | None:
    """Compare the sizes of errors, channel by channel."""
    if got.shape != expected.full_shape or got.size == 0 or any(a.shape != got.shape for a in mistaken):
        return None
    form = expected.output_format(format_of(got.dtype))
    got = _period(got, expected)
    others = np.stack([_period(a, expected) for a in mistaken])
    asked = ~expected.free & ~expected.nonfinite
    geometry = expected.geometry
    rows = np.arange(expected.high.size if expected.is_vector else geometry.groups)
    if expected.is_vector:
        channel = rows.reshape(expected.high.shape)
    else:
        channel = geometry.ungrouped(np.broadcast_to(rows[:, None], (geometry.groups, geometry.count)))
    limit = expected.limit(form)
    ratios, agreeing, against = [], 0, 0
    for c in rows:
        here = asked & (channel == c)
        if not here.any():
            continue
        own, theirs = got[here], others[:, here]
        lost = ~np.isfinite(theirs).all(axis=1)
        if not np.isfinite(own).all():
            agreeing, against = agreeing + int(lost.any()), against + int(not lost.any())
            continue
        if lost.all():
            against += 1
            continue
        truth_here = expected.high[here]
        errors = theirs[~lost] - truth_here - expected.low[here]
        if not np.any(np.abs(errors) > limit[here]):
            continue
        own_errors = own - truth_here - expected.low[here]
        unit = float(np.max(np.abs(errors)))  # squares must stay in range
        size = float(np.median(np.sqrt(np.mean((errors / unit) ** 2, axis=1))))
        own_size = float(np.sqrt(np.mean((own_errors / unit) ** 2)))
        if size > 0:
            ratios.append(own_size / size)
    return _Sizes(tuple(ratios), agreeing, against) if ratios or agreeing or against else None


def _period(array: Array, expected: Expected) -> Doubles:
    """Return one repetition, in binary64."""
    return array[: len(expected.high)].astype(np.float64)


def _scale(expected: Expected, otherwise: Doubles) -> Doubles:
    """Return each channel's largest exact magnitude; where it is 0, the size of its terms, then what came."""
    scale = expected.channel_max(np.where(expected.nonfinite | expected.free, 0.0, np.abs(expected.high)))
    size = expected.channel_max(np.where(np.isfinite(expected.size), expected.size, 0.0))
    scale = np.where(scale > 0, scale, np.where(size > 0, size, expected.channel_max(otherwise)))
    return np.where(scale > 0, scale, 1.0)


def _largest(error: Doubles, mask: npt.NDArray[np.bool_], scale: Doubles) -> float:
    relative = np.where(mask, np.abs(error) / scale, 0.0)
    return float(np.nanmax(relative, initial=0.0))


# ---- all results of a run ------------------------------------------------------------------------------------------


class Diagnosis:
    """Collects evidence while a run goes on, and concludes when it is over.

    Parameters
    ----------
    seconds : float
        How long `conclude` may ask further cases (other seeds, smaller ones) for each framework.

    Attributes
    ----------
    evidence : dict
        From a finding's id to the `Evidence` on it: what `look` has collected and `conclude` draws on.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self.evidence: dict[str, Evidence] = {}
        self._memory = _Memory()
        self._shown_elsewhere: dict[tuple[str, ...], int] = {}

    def look(self, adapter: Adapter, case: Case, findings: Iterable[Finding], answer: Answer) -> None:
        """Take note of one case's findings and of the answer that they are about, as `run_case` gives them."""
        for finding in findings:
            if finding.verdict in OFF:
                self.evidence[finding.id] = self._examine(adapter, case, finding, answer)

    def conclude(self, findings: Sequence[Finding], adapters: Iterable[Adapter]) -> list[Finding]:
        """Return the findings with explanation, smallest case and thread."""
        by_name = {adapter.name: adapter for adapter in adapters}
        explained: dict[str, tuple[str, str]] = {}  # id → mistake, words
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in findings:
            if finding.id in self.evidence:
                key = (*_asked(finding), finding.check, finding.family)
                groups.setdefault(key, []).append(finding)
        deadlines: dict[str, float] = {}
        fine: dict[tuple[str, ...], list[Finding]] = {}
        for finding in findings:
            if finding.verdict in ("exact", "accurate") and not finding.check:
                fine.setdefault(_asked(finding), []).append(finding)
        alike: dict[tuple[str, ...], list[Evidence]] = {}  # whatever the dtype and the family
        for group in groups.values():
            found_here = alike.setdefault((*_asked(group[0])[:3], group[0].check), [])
            found_here += [self.evidence[finding.id] for finding in group]
        for group in groups.values():
            name = group[0].framework
            deadlines.setdefault(name, time.monotonic() + self._seconds / 2)
            others = [f for key, found in fine.items() if key[::3] == (name, group[0].dtype) for f in found]
            around = fine.get(_asked(group[0]), ()), others, alike[(*_asked(group[0])[:3], group[0].check)]
            explained |= self._explain(group, *around, by_name[name], deadlines[name])
        smallest = self._smallest(findings, explained, by_name)
        return [self._told(finding, explained, smallest) for finding in findings]

    def _told(self, finding: Finding, explained: Mapping[str, tuple[str, str]], smallest: Mapping[str, str]) -> Finding:
        if finding.verdict == "dialect" and finding.note.startswith("matches "):
            return dataclasses.replace(finding, explanation=finding.note)
        if finding.verdict not in OFF:
            return finding
        mistake, words = explained.get(finding.id, ("", ""))
        return dataclasses.replace(
            finding,
            explanation=words,
            smallest=smallest.get(finding.id, ""),
            thread=thread_of(finding, mistake),
        )

    # ---- evidence ----------------------------------------------------------------------------------------------

    def _examine(
        self, adapter: Adapter, case: Case, finding: Finding, answer: Answer, mistakes: Sequence[str] | None = None
    ) -> Evidence:
        """Return how each mistake, or each of some, does on a finding."""
        evidence = Evidence()
        mistakes = _candidates(case) if mistakes is None else mistakes
        if finding.verdict == "raises":
            return evidence
        expected = _expected(adapter, case).get(finding.output)
        if case.check == "unmodified":
            for name in mistakes:
                if self._memory.note(name, adapter, case) == finding.note:
                    evidence.fits[name] = Fit("pattern", None)
            return evidence
        if expected is None or finding.output not in answer:
            return evidence
        got = answer[finding.output]
        for name in mistakes:
            runs = self._memory.answers(name, adapter, case)
            of_output = [run[finding.output] for run in runs if finding.output in run]
            if not of_output:
                continue
            determined = of_output[: len(_zoo()[name].variants)]
            fits = [found for a in determined if (found := fit(got, a, expected)) is not None]
            if fits:
                evidence.fits[name] = max(fits, key=lambda found: found.digits or 0.0)
            if not case.check and finding.verdict != "nonfinite":
                evidence.bits[name] = max(
                    (same_bits(got, a, expected) for a in determined), key=lambda b: (b.told - b.telling, b.same)
                )
            if _zoo()[name].depends_on_order and not case.check:
                sizes = _sizes(got, of_output, expected)
                if sizes is not None:
                    evidence.sizes[name] = sizes
        return evidence

    def _again(
        self, adapter: Adapter, case: Case, finding: Finding, mistakes: Sequence[str] | None = None
    ) -> tuple[Verdict | None, Evidence]:
        """Ask a variation of a finding's case; return the verdict on the same output, and evidence if it is off."""
        answer: dict[str, Array] = {}
        for other in run_case(adapter, case, answer):
            if other.output == finding.output:
                if other.verdict in OFF:
                    return other.verdict, self._examine(adapter, case, other, answer, mistakes)
                return other.verdict, Evidence()
        return None, Evidence()

    # ---- explanations ------------------------------------------------------------------------------------------

    def _explain(
        self,
        group: Sequence[Finding],
        fine: Sequence[Finding],
        others: Sequence[Finding],
        alike: Sequence[Evidence],
        adapter: Adapter,
        deadline: float,
    ) -> dict[str, tuple[str, str]]:
        """Return the mistake and the words for each finding of a group that is explained."""
        own = {finding.id: self.evidence[finding.id] for finding in group}
        every = list(own.values())
        if not any(sum(name in one.fits for one in alike) >= SEVERAL for first in every for name in first.fits):
            every += self._with_other_seeds(group, adapter, deadline)
        names = dict.fromkeys(name for one in every for name in (*one.fits, *one.bits, *one.sizes))
        mine = {id(one) for one in own.values()}
        whole = [*every, *(one for one in alike if id(one) not in mine)]
        counts, here = ({name: sum(name in e.fits for e in some) for name in names} for some in (whole, every))

        @cache
        def against(name: str) -> int:
            return self._contradictions(name, fine, adapter)

        told: dict[str, tuple[str, str]] = {}
        for finding in group:
            evidence = own[finding.id]
            fitting = [n for n in evidence.fits if counts[n] >= SEVERAL and against(n) < counts[n]]
            if fitting:
                first = min((against(n), -here[n]) for n in fitting)
                fitting = [n for n in fitting if (against(n), -here[n]) == first]
                ranks = {n: self._rank(n, finding.family, evidence.fits[n], counts[n]) for n in fitting}
                if len(fitting) > 1:
                    ranks = {n: (self._elsewhere(n, others, adapter), *rank) for n, rank in ranks.items()}
                best = min(fitting, key=ranks.__getitem__)
                told[finding.id] = (
                    best,
                    _words(best, evidence.fits[best], counts[best], len(whole), parse(finding.case)),
                )
        by_bits = self._by_bits(every, against)
        by_size = self._consistent(every, against)
        for finding in (f for f in group if f.id not in told):
            evidence = own[finding.id]
            if by_bits is not None and evidence.bits.get(by_bits[0], _NO_BITS).telling:
                told[finding.id] = by_bits
            elif by_size is not None and by_size[0] in evidence.sizes:
                told[finding.id] = by_size
        return told

    @staticmethod
    def _rank(name: str, family: str, fit: Fit, count: int) -> tuple[float, ...]:
        member = _zoo()[name]
        return member.depends_on_order, -count, member.family != family, -(fit.digits or 0.0)

    def _elsewhere(self, name: str, others: Sequence[Finding], adapter: Adapter) -> int:
        """Count contradictions in a framework's other operations."""
        key = (name, adapter.name, others[0].dtype if others else "")
        if key not in self._shown_elsewhere:
            self._shown_elsewhere[key] = self._contradictions(name, others, adapter)
        return self._shown_elsewhere[key]

    def _with_other_seeds(self, group: Sequence[Finding], adapter: Adapter, deadline: float) -> Iterator[Evidence]:
        """Yield evidence of a small group's first case with other seeds, where that is off too."""
        if len(group) > SEVERAL or group[0].verdict == "raises":
            return
        case = parse(group[0].case)
        for seed in range(case.seed + 101, case.seed + 101 + _SEEDS):
            if time.monotonic() < deadline and _elements(case)[0] <= _LARGE:
                verdict, evidence = self._again(adapter, dataclasses.replace(case, seed=seed), group[0])
                if verdict in OFF:
                    yield evidence

    @staticmethod
    def _by_bits(evidence: Sequence[Evidence], against: Callable[[str], int]) -> tuple[str, str] | None:
        """Return the mistake whose bits a group has, and the words for it (F2); `against` counts contradictions."""
        found: list[tuple[float, int, str, str]] = []
        for name in dict.fromkeys(name for own in evidence for name in own.bits):
            here = [own.bits[name] for own in evidence if name in own.bits and own.bits[name].telling]
            total = sum(here, _NO_BITS)
            if len(here) >= SEVERAL and total.fits and against(name) < len(here):
                words = (
                    f"{name}, the same bits in {total.told} of the {total.telling} elements that tell it from the truth"
                )
                found.append((-total.told / total.telling, -total.telling, name, f"{words}, {len(here)} cases: "))
        if not found:
            return None
        _, _, name, words = min(found)
        return name, words + _phrase(name)

    def _contradictions(self, name: str, fine: Sequence[Finding], adapter: Adapter) -> int:
        """Count cases, of up to a dozen, that the framework gets right and in which the mistake would show."""
        count = 0
        for finding in fine[:: max(len(fine) // _FINE, 1)][:_FINE]:
            case = parse(finding.case)
            if _elements(case)[0] > _LARGE:
                continue
            mine, right = (self._memory.answers(n, adapter, case) for n in (name, "control"))
            if not right or finding.output not in right[0]:
                continue
            exact = right[0][finding.output].astype(np.float64)
            scale = float(np.max(np.abs(exact), where=np.isfinite(exact), initial=0.0))
            scaled, ratio = finding.max_scaled_ulp or 0.0, finding.bound_ratio or 0.0
            allowed = max(8.0, scaled / ratio if ratio else 0.0) * 2 * case.format.unit_roundoff * scale
            shown = []
            for run in mine:
                if finding.output in run:
                    got = run[finding.output].astype(np.float64)
                    with np.errstate(invalid="ignore"):
                        apart = np.where(np.isfinite(exact), np.abs(got - exact), 0.0)
                    shown.append(bool(np.any(~(apart <= _SHOWS * allowed))))
            count += bool(shown) and all(shown)
        return count

    @staticmethod
    def _consistent(evidence: Sequence[Evidence], against: Callable[[str], int]) -> tuple[str, str] | None:
        """Return the mistake whose errors have the size of the group's, and the words for it."""
        found: list[tuple[float, float, str, str]] = []
        for name in dict.fromkeys(name for own in evidence for name in own.sizes):
            sizes = [own.sizes[name] for own in evidence if name in own.sizes]
            ratios = [ratio for one in sizes for ratio in one.ratios]
            agreeing, contrary = sum(one.agreeing for one in sizes), sum(one.against for one in sizes)
            channels = len(ratios) + agreeing
            cases = sum(bool(one.ratios or one.agreeing) for one in sizes)
            near = sum(0.1 <= ratio <= 10 for ratio in ratios) + agreeing
            if channels < CHANNELS or cases < SEVERAL or near < 0.9 * (channels + contrary):
                continue
            mean = math.exp(np.mean(np.log([r for r in ratios if r > 0]))) if any(ratios) else 1.0
            if not 1 / 3 <= mean <= 3 or against(name) >= cases:
                continue
            words = (
                f"consistent with {name}: errors of its size ({mean:.2g} times, {channels} channels of {cases} cases): "
            )
            found.append((against(name), abs(math.log(mean)), name, words + _phrase(name)))
        if not found:
            return None
        _, _, name, words = min(found)
        return name, words

    # ---- smallest cases ----------------------------------------------------------------------------------------

    def _smallest(
        self, findings: Sequence[Finding], explained: Mapping[str, tuple[str, str]], adapters: Mapping[str, Adapter]
    ) -> dict[str, str]:
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in findings:
            if finding.id in self.evidence:
                mistake = explained.get(finding.id, ("", ""))[0]
                reason = mistake or f" {finding.family}"
                same = (finding.framework, finding.operation, finding.output, finding.check, finding.verdict, reason)
                groups.setdefault(same, []).append(finding)
        deadlines: dict[str, float] = {}
        smallest: dict[str, str] = {}
        # What is worst first, in case time runs out.
        for key in sorted(groups, key=lambda key: -VERDICTS.index(groups[key][0].verdict)):
            group, mistake = groups[key], key[-1] if not key[-1].startswith(" ") else ""
            deadline = deadlines.setdefault(key[0], time.monotonic() + self._seconds / 2)
            if time.monotonic() > deadline:
                continue
            case = shrink(
                min((parse(f.case) for f in group), key=_elements),
                self._shows(adapters[key[0]], group[0], mistake),
                deadline,
            )
            smallest |= dict.fromkeys((f.id for f in group), str(case))
        return smallest

    def _shows(self, adapter: Adapter, finding: Finding, mistake: str) -> Callable[[Case], bool]:
        """Return whether a case gives the finding's verdict, and whether the mistake still fits or is as large."""
        posed = _well_posed(adapter, parse(finding.case), finding.output)

        def still(case: Case) -> bool:
            if posed and not _well_posed(adapter, case, finding.output):
                return False
            verdict, evidence = self._again(adapter, case, finding, [mistake] if mistake else [])
            if verdict != finding.verdict:
                return False
            bits = evidence.bits.get(mistake, _NO_BITS)
            if not mistake or mistake in evidence.fits or (bits.telling and bits.told >= 0.9 * bits.telling):
                return True
            sizes = evidence.sizes.get(mistake)
            return sizes is not None and not sizes.against and all(0.1 <= ratio <= 10 for ratio in sizes.ratios)

        return still


def reproduce(adapter: Adapter, name: str) -> str:
    """Return the script of the finding that an id, or a case's descriptor, stands for.

    Where several outputs are off, it is the worst one's; where none is, the script shows that.

    Raises
    ------
    DomainError
        If there is no such finding, or no script for it.
    """
    case, output = case_of(name, adapter.name)
    findings = run_cases([adapter], [case], None, Diagnosis())
    findings = [f for f in findings if output in ("", f.output)] or findings
    try:
        return script(max(findings, key=lambda f: (f.verdict in OFF, VERDICTS.index(f.verdict))), adapter)
    except Unsupported as error:
        raise DomainError(f"reproduce: {name}: {error}", argument="reproduce") from error


class _Memory:
    """The zoo's latest answers to small cases, for all adapters of one dialect."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, Case, str, bool], list[dict[str, Array]]] = {}

    def answers(self, name: str, adapter: Adapter, case: Case) -> list[dict[str, Array]]:
        """Return a mistake's answers: each variant's, then, if it depends on the order, those to permutations."""
        key = (name, case, adapter.dialect.name, adapter.differentiates_statistics)
        if key not in self._answers:
            answers = list(_ask(name, adapter, case))
            if _elements(case)[0] > _SMALL:
                return answers
            if len(self._answers) >= _KEPT:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answers
        return self._answers[key]

    def note(self, name: str, adapter: Adapter, case: Case) -> str:
        """Return what a check says of a mistake."""
        return " ".join(finding.note for finding in run_case(_member(name, adapter), case))


def _ask(name: str, adapter: Adapter, case: Case) -> Iterator[dict[str, Array]]:
    member = _member(name, adapter)
    if case.operation not in member.operations or kind_and_groups(case.norm)[0] not in norms_of(member):
        return
    if case.check:
        answer: dict[str, Array] = {}
        run_case(member, case, answer)
        yield answer
        return
    inputs = _inputs(case)
    if not adapter.differentiates_statistics:
        nothing = np.zeros_like(inputs.mean)
        inputs = dataclasses.replace(inputs, mean_dot=nothing, var_dot=nothing)
    runs: list[tuple[Any, npt.NDArray[np.intp] | None]] = [
        (_member(name, adapter, **variant), None) for variant in member.variants
    ]
    if member.depends_on_order and inputs.x.size <= _LARGE:
        count = case.shape[0] * case.repeat
        orders = (np.argsort(np.random.PCG64(k).random_raw(count), kind="stable") for k in range(_ORDERS))
        runs += [(member, order) for order in orders]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for variant, order in runs:
            try:
                answer = variant.run(case.operation, inputs if order is None else _reordered(inputs, order))
            except Exception:  # a mistake that cannot be asked this explains nothing
                return
            yield answer if order is None else _restored(answer, order, inputs)


@lru_cache(maxsize=2 * _FINE)
def _inputs(case: Case) -> Inputs:
    """Return a case's inputs for any number of mistakes, none of which can write into them."""
    inputs = make_inputs(case)
    for array in (*(getattr(inputs, f.name) for f in dataclasses.fields(inputs)), *inputs.batches):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return inputs


def _reordered(inputs: Inputs, order: npt.NDArray[np.intp]) -> Inputs:
    moved = {name: getattr(inputs, name)[order] for name in ("x", "dy", "w", "x_dot")}
    return dataclasses.replace(inputs, **moved, batches=tuple(b[order] for b in inputs.batches))


def _restored(answer: Answer, order: npt.NDArray[np.intp], inputs: Inputs) -> dict[str, Array]:
    back = np.argsort(order)
    return {n: a[back] if truth.has_samples(n, inputs.norm) else a for n, a in answer.items()}


def _member(name: str, adapter: Adapter, **variant: int) -> Any:
    member = _zoo()[name](**variant)
    member.dialect = adapter.dialect
    return member


@lru_cache(maxsize=1)
def _zoo() -> dict[str, Any]:
    from refbn.audit.adapters.zoo import ZOO

    return dict(ZOO)


def _candidates(case: Case) -> list[str]:
    if math.prod(case.shape) * case.repeat > _LARGE:
        return [_ONLY_LARGE]
    kind = kind_and_groups(case.norm)[0]
    return [name for name, member in _zoo().items() if name != "control" and kind in norms_of(member)]


def _asked(finding: Finding) -> tuple[str, ...]:
    """Return what cases are alike in, whose results are."""
    return finding.framework, finding.operation, finding.output, finding.dtype


def _well_posed(adapter: Adapter, case: Case, output: str) -> bool:
    """Whether a competent implementation keeps a third of the digits: what cancels to next to nothing shows little."""
    expected = _expected(adapter, case).get(output)
    if expected is None or expected.high.size == 0:
        return True
    asked = ~expected.free & ~expected.nonfinite
    form = expected.param_form if expected.is_vector else expected.form
    limit = np.where(asked, expected.limit(form), 0.0)
    return bool(np.all(limit <= 2.0 ** (-form.precision / 3) * _scale(expected, np.zeros_like(limit))))


def _expected(adapter: Adapter, case: Case) -> dict[str, Expected]:
    return truth.expect(case, Conventions.of(adapter.dialect, adapter.differentiates_statistics))


def _phrase(name: str) -> str:
    return str(_zoo()[name].__doc__).partition("\n")[0]


def _words(name: str, fit: Fit, cases: int, of: int, case: Case) -> str:
    if fit.digits is None:
        how = "the same elements are not finite" if not case.check else "the same traces"
    else:
        how = f"to {fit.digits:.1f} of {case.format.precision * math.log10(2):.1f} digits"
    return f"{name}, {how}, in {cases} of {max(of, cases)} cases: {_phrase(name)}"


# ---- shrinking -----------------------------------------------------------------------------------------------------


def _elements(case: Case) -> tuple[int, str]:
    return math.prod(case.shape) * case.repeat * case.steps, str(case)


def shrink(case: Case, still: Callable[[Case], bool], deadline: float = math.inf, trials: int = _TRIALS) -> Case:
    """Return the smallest case that greedy simplification reaches while ``still`` holds.

    Parameters
    ----------
    case : Case
        Where to begin; it is taken to fulfil ``still``.
    still : callable
        What must stay true.
    deadline : float
        In the sense of `time.monotonic`: no trial begins after it.
    trials : int
        How many cases may be tried.
    """
    tried = {case}
    improved = True
    while improved:
        improved = False
        for candidate in _simpler(case):
            if candidate in tried:
                continue
            if len(tried) > trials or time.monotonic() > deadline:
                return case
            tried.add(candidate)
            if still(candidate):
                case, improved = candidate, True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Yield simpler cases, the greatest simplifications first."""

    def changed(**fields: Any) -> Case:
        return dataclasses.replace(case, **fields)

    count, channels, *space = case.shape
    if case.repeat > 1:
        yield changed(repeat=1)
        yield changed(repeat=case.repeat // 2)
    if space:
        yield changed(shape=(count, channels))
        yield changed(shape=(count, channels, *space[:-1]))
        for axis, size in enumerate(space):
            if size > 1:
                yield changed(shape=(count, channels, *space[:axis], 1, *space[axis + 1 :]))
    fewest = kind_and_groups(case.norm)[1]
    if channels > fewest:
        yield changed(shape=(count, fewest, *space))
    for fewer in dict.fromkeys((1, 2, 3, 4, count // 2)):
        if 0 < fewer < count:
            yield changed(shape=(fewer, channels, *space))
    plain = Case(case.family, case.operation, case.dtype, case.shape, norm=case.norm)
    for name in ("layout", "param", "steps", "momentum", "eps", "seed", "dy", "var", "offset", "scale"):
        if getattr(case, name) != getattr(plain, name) and not (name == "layout" and case.check == "layout"):
            yield changed(**{name: getattr(plain, name)})
    if case.data not in ("ramp", "constant"):
        yield changed(data="ramp")
