"""Waves: the search asks for what is extracted.

A search over arms most of which have no embeddings yet. Scoring a cell whose pair (checkpoint,
task) is extracted is cheap; any other cell costs its pair's forward work, and the first of a
checkpoint a download. So pairs come in *waves*, a few checkpoints each: after one, the search
scores the better part of what the wave made cheap, and then asks for the next. The expected regret
that ends it counts all arms, extracted or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from batchsweep.bandit.chooser import Believer, Chooser, Fits, Visit
from batchsweep.bandit.costs import PairBudget, PairCosts
from batchsweep.bandit.policies.base import Bools, Ints, Policy
from batchsweep.errors import UsageError
from batchsweep.plan.estimate import gib
from batchsweep.progress import duration

#: Of the cells that a wave made cheap, the part that is scored before the next, and how many at
#: most for each of its visits.
SCORED_SHARE = 0.5
SCORED_A_VISIT = 48
#: The part of the budget that is held back for the finalists, the front and its rival: best arms
#: differ by less than a few tasks tell. When nothing else can be had it goes to them, a part of
#: their tasks at a time: once those are scored, others may be the finalists.
FINAL_SHARE = 1 / 2
FINAL_TASKS = 1 / 4
#: What whole checkpoints are asked for, beside what the search itself asks for.
REFERENCE = "reference: baseline layer, for the z-scale"
IN_FULL = "finalist, in full"


@dataclass(frozen=True)
class Wave:
    """What the search asks for at once.

    Attributes:
        number: 1 for the first.
        visits: one index of a job each.
        expected_regret: of the answer before it; None while nothing can be said.
        document: the number of ``waves/0001.json`` in the store, once it is written there.
    """

    number: int
    visits: tuple[Visit, ...]
    expected_regret: float | None
    document: int | None = None


class Extraction(Protocol):
    """Where pairs come from: a store that is filled, or a table that is paid for."""

    def recall(self, number: int) -> Wave | None:
        """The wave of this number, if this search asked for it before it was cut short."""

    def extract(self, wave: Wave) -> None:
        """Have the pairs extracted, as far as that goes."""

    def there(self, waves: int) -> Bools:
        """[checkpoint, task] the pairs that were extracted after so many waves."""


class Waves:
    """Asks for pairs while a search runs.

    Args:
        budget: what they may take in all, and what they cost.
        now: the same as far as is known now, asked for before each wave; default: as at first.

    Attributes:
        there: [checkpoint, task] the pairs that the search may use.
    """

    def __init__(
        self,
        chooser: Chooser,
        extraction: Extraction,
        budget: PairBudget,
        now: Callable[[], PairBudget] | None = None,
    ) -> None:
        self._now = now
        self._chooser, self._extraction, self._budget = chooser, extraction, budget
        self._costs = chooser.costs
        self._rows = {key: row for row, key in enumerate(self._costs.checkpoints)}
        self._columns = {task: column for column, task in enumerate(chooser.problem.tasks)}
        self._before = self.there = extraction.there(0)
        self._visits: Ints = np.zeros(len(self._rows), dtype=np.int64)
        self._number = 0
        self._last_look = False
        self._refused = np.zeros_like(self.there)
        self._till = 0  # observed cells at which the next wave is due

    @property
    def cells(self) -> Bools:
        """[arm, task] the cells that can be scored."""
        return self.there[self._costs.of]

    @property
    def well_read(self) -> Bools:
        """[arm] those that may be the answer: see :func:`well_read`."""
        return well_read(self.there, self._costs)

    def is_there(self, arm: int, task: int) -> bool:
        """Whether this cell can be scored."""
        return bool(self.there[self._costs.of[arm], task])

    def due(self, policy: Policy) -> bool:
        """Whether enough of what the last wave brought was scored, or nothing is left to score."""
        return bool(policy.taken.all()) or _observed(policy) >= self._till

    def to_score(self, policy: Policy) -> int:
        """Cells that are to be scored before the next wave is due."""
        return max(0, min(self._till - _observed(policy), int((~policy.taken).sum())))

    def next(self, policy: Policy) -> bool:
        """Ask for the next wave and wait for it; False when there is no more to do.

        Once no pair is left, all cells may be scored; once the budget takes none, as many again
        as were.

        Raises:
            UsageError: the policy has no model of what isn't scored; or the budget takes no pair
                at all.
        """

        def choose() -> list[Visit]:
            if not isinstance(policy, Believer):
                raise UsageError(
                    f"bandit.policy '{policy.name}' can't say what should be extracted; valid: "
                    "toptwo_gp, gp_ucb, thompson"
                )
            if not self._number:
                visits = self._chooser.first(self._not_to_ask, self._fits())
                if visits:
                    return visits
            fits = self._fits(self._held(policy))
            visits = self._chooser.next(policy, self._not_to_ask, self._number + 1, fits)
            # What was held back, while there are pulls yet to score it with.
            most = max(3, round(FINAL_TASKS * len(self._columns)))
            return visits or self._chooser.finals(policy, self._not_to_ask, self._fits(), most)

        observed = _observed(policy)
        if not self._number and not observed and self.there.any():
            # What was there before is scored first, as after a wave.
            policy.restrict(self.cells)
            self._till = _worth_scoring(self.cells, int(self.there.any(axis=1).sum()))
            return True
        if not self._last_look and self._ask(policy, choose):
            return True
        if not self.there.any():
            raise self._too_little()
        if self._last_look or policy.taken.all():
            return False
        # No pair more can be had. What is there costs next to nothing to know better.
        self._last_look = True
        self._till = self.cells.size if self.there.all() else 2 * observed
        return True

    def _too_little(self) -> UsageError:
        costs = self._costs
        seconds = (costs.seconds.min(axis=1) + costs.start + costs.download).min()
        return UsageError(
            "the limits on extraction allow not even the first wave of the search: its smallest "
            f"pair takes about {duration(math.ceil(seconds))} and {gib(costs.store_bytes.min())}; "
            "raise bandit.budget (or --max-cost); 'batchsweep plan --search' says what a search "
            "needs that has enough"
        )

    def complete(self, policy: Policy, arms: list[int], reason: str) -> None:
        """Have all pairs of these arms' checkpoints, as far as the budget goes.

        Args:
            reason: REFERENCE or IN_FULL.
        """

        def choose() -> list[Visit]:
            return self._chooser.rest(arms, self._not_to_ask, self._fits(), reason)

        self._ask(policy, choose, reason)

    def _ask(
        self, policy: Policy, choose: Callable[[], list[Visit]], reason: str | None = None
    ) -> bool:
        number = self._number + 1
        wave = self._extraction.recall(number)
        if wave is not None and wave.visits and _whole(wave) != reason:
            return False  # Nothing was asked for here: that wave comes later.
        if wave is None:
            if self._now is not None:
                self._budget = self._now()
                self._chooser.costs = self._costs = self._budget.costs
            visits = choose()
            if not visits:
                return False
            regret = policy.best().expected_regret if self._number else None
            wave = Wave(number, tuple(visits), regret)
        before = self.cells
        self._extraction.extract(wave)
        self._number = number
        for visit in wave.visits:
            row = self._rows[visit.key]
            self._visits[row] += 1
            self._refused[row, [self._columns[task] for task in visit.tasks]] = True
        self.there = self._extraction.there(number)
        self._refused &= ~self.there
        policy.restrict(self.cells)
        fresh = self.cells & ~before
        self._till = _observed(policy) + _worth_scoring(fresh, len(wave.visits))
        return True

    @property
    def _not_to_ask(self) -> Bools:
        """[checkpoint, task] pairs that are there, and those that a wave asked for in vain."""
        return self.there | self._refused

    # -- the budget ----------------------------------------------------------------------------

    def _part(self, pairs: Bools) -> float:
        """The part of the budget that is spent once these pairs are there as well."""
        pairs = pairs & ~self._refused
        more = (pairs & ~self.there).any(axis=1)
        return self._budget.part(pairs | self.there, self._visits + more, self._before, self.there)

    def _fits(self, held: Bools | None = None) -> Fits:
        """Whether the budget takes pairs, beside those that are held back."""
        return lambda pairs: self._part(pairs if held is None else pairs | held) <= 1

    def _held(self, policy: Believer) -> Bools:
        """Pairs that the finalists lack, as many as FINAL_SHARE of the budget pays for."""
        before = self._part(self.there)
        visits = self._chooser.finals(
            policy, self._not_to_ask, lambda pairs: self._part(pairs) - before <= FINAL_SHARE
        )
        held = np.zeros_like(self.there)
        for visit in visits:
            held[self._rows[visit.key], [self._columns[task] for task in visit.tasks]] = True
        return held


def well_read(there: Bools, costs: PairCosts) -> Bools:
    """[arm] those whose checkpoint was read on half as many tasks as any, or on more.

    What is believed of the others rests on the model alone.

    Args:
        there: [checkpoint, task] pairs that are extracted.
    """
    tasks = there.sum(axis=1)
    return np.asarray(2 * tasks >= tasks.max())[costs.of]


def _whole(wave: Wave) -> str | None:
    """What the wave has whole checkpoints for; None if it is the search's own."""
    why = wave.visits[0].reason
    return next((r for r in (REFERENCE, IN_FULL) if why.startswith(f"{r}: ")), None)


def _worth_scoring(cells: Bools, visits: int) -> int:
    """How many of the cells that so many visits made cheap are scored before the next wave."""
    return max(1, round(min(SCORED_SHARE * int(cells.sum()), SCORED_A_VISIT * visits)))


def _observed(policy: Policy) -> int:
    return int((~np.isnan(policy.observed)).sum())
