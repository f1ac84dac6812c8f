"""The budgeted loop: ask a policy, score, write down, observe; and the answer at the end.

Live runs and replays go through :func:`run`. Every pull is in the ledger before the policy hears
of it, and a policy is deterministic, so that a run that was killed asks the same again, finds the
first answers in the ledger, and ends as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from batchsweep.bandit.budget import Budget
from batchsweep.bandit.final_check import after_full_check, by_aggregate, with_main_task
from batchsweep.bandit.identity import search_header
from batchsweep.bandit.ledger import (
    Kind,
    Ledger,
    MemoryLedger,
    Observation,
)
from batchsweep.bandit.outcome import Outcome, Stopped
from batchsweep.bandit.policies import Answer, Policy, Problem, Pull, make_policy
from batchsweep.bandit.pull_noise import SplitHalvesNoise
from batchsweep.bandit.pulls import Pulls, ScoreFn
from batchsweep.bandit.rewards import Floats, describe, raw_scale, z_scale
from batchsweep.bandit.scoring_view import ScoringView
from batchsweep.bandit.waves import IN_FULL, REFERENCE, Waves
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.numerics import one_compute_thread

logger = logging.getLogger(__name__)

#: Largest part of the budget that the final check may take.
CHECK_SHARE = 0.2
CHECK_PASSES = 3
#: Top arms whose checkpoints are extracted in full for the check, where waves extract.
FINALISTS = 2


def run(  # noqa: PLR0913 - what a search may be given; all but three are seldom given at all
    problem: Problem,
    score_fn: ScoreFn,
    config: BanditConfig,
    rewards: RewardsConfig | None = None,
    *,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
    options: dict[str, Any] | None = None,
    full_fn: ScoreFn | None = None,
    waves: Waves | None = None,
    imported: Sequence[Observation] = (),
    on_observe: Callable[[Policy, int, float], None] | None = None,
    quiet: bool = False,
) -> Outcome:
    """Spend the budget; give the best arm.

    Args:
        problem: arms and the tasks that count (``rewards.target`` is applied by the caller).
        score_fn: scores one cell; must be picklable if ``executor`` holds processes.
        config: policy, budget, seed, workers, ...
        rewards: default: raw mean.
        ledger: where the pulls go and are resumed from; default: in memory.
        executor: where the ``config.workers`` pulls of a batch run; default: here, one by one.
            The outcome depends on ``workers`` but not on which pull finishes first.
        options: options of the policy.
        full_fn: scores a cell in full, where ``score_fn`` scores subsets: for the final check.
        waves: has pairs extracted as the search asks for them; default: all arms can be scored.
        imported: pulls that are there already: observed before any other, and not billed.
        on_observe: called as (policy, pulls, seconds) each time the policy has heard all it was to.

    Raises:
        UsageError: unknown policy or option; z rewards that the budget can't pay for.
        StoreMismatch: the ledger belongs to another run; names what differs.
    """
    rewards = rewards or RewardsConfig(scale="raw")
    budget = Budget(*config.budget_for(*problem.shape))
    cells = int(np.prod(problem.shape))
    # One BLAS thread: the same sums, to the last bit, whatever the machine's setting; matrices of
    # this size are no quicker on several, and many times slower where others want the cores too.
    with one_compute_thread(), threadpool_limits(limits=1):
        header = search_header(problem, config, rewards, waves=waves is not None, imported=imported)
        header["options"] = options or {}
        made = Pulls(
            ledger or MemoryLedger(), header, score_fn, full_fn or score_fn, executor, imported
        )
        policy = make_policy(
            config.policy,
            problem,
            seed=config.seed,
            # What is beyond the cells is for the final check.
            budget=None if budget.pulls is None else min(budget.pulls, cells),
            **(options or {}),
        )
        loop = _Loop(problem, config, rewards, made, policy, budget, waves, imported)
        if on_observe is not None:
            loop.on_observe = on_observe
        with ScoringView(quiet=quiet) as loop.view:
            outcome = loop.run()
    if outcome.stopped == "regret" and not quiet:
        logger.info(
            "stopped early: the expected regret is at most stop_at_regret, %g in score; %.0f %% of "
            "the budget is left",
            config.stop_at_regret,
            100 * budget.left,
        )
    return outcome


class _Loop:
    """One run: its phases, what they may spend, and what the policy has observed."""

    def __init__(
        self,
        problem: Problem,
        config: BanditConfig,
        rewards: RewardsConfig,
        made: Pulls,
        policy: Policy,
        budget: Budget,
        waves: Waves | None,
        imported: Sequence[Observation],
    ) -> None:
        self.problem, self.config, self.rewards = problem, config, rewards
        self.made, self.policy, self.budget = made, policy, budget
        self.waves = waves
        self.view = ScoringView(quiet=True)
        self.imported = imported
        #: Called with (policy, pulls, seconds) each time the policy has heard all it was to.
        self.on_observe: Callable[[Policy, int, float], None] = _ignore
        self.scale = raw_scale(problem.shape[1])
        self.observed: list[Observation] = []
        self.noise = SplitHalvesNoise(problem.tasks)
        #: Tasks that pulls score subsets of.
        self._divided: set[str] = set()
        #: Arms that were scored in full after a search on subsets: [task] main scores.
        self.checked: dict[int, Floats] = {}
        self._task_index = {t: i for i, t in enumerate(problem.tasks)}

    def run(self) -> Outcome:
        if self.waves is None:
            self.view.begin("bandit", self.budget.pulls or int(np.prod(self.problem.shape)))
        if self.rewards.scale == "z" and self.policy.pulls:
            self._reference()
        # What defines the rewards was observed with them.
        known = {(one.arm, one.task) for one in self.observed}
        if rest := [one for one in self.imported if (one.arm, one.task) not in known]:
            self._observe(rest)
        stopped = self._search()
        if self._divided:
            self._check_in_full()
        else:
            self._check()
            # What the check found may unsettle the answer: what is left goes on searching.
            while stopped == "regret" and not self.policy.sure(self._regret):
                stopped = self._search()
                self._check()
        answer, plane = self._answer()
        if self.scale.kind == "z":
            answer = with_main_task(answer, self.problem, plane)
        tasks = self.problem.tasks
        return Outcome(
            problem=self.problem,
            answer=answer,
            reward=describe(self.rewards.scale, self.rewards.aggregate, self.rewards.target, tasks),
            scale=self.scale,
            plane=self.scale.score(plane),
            observations=tuple(self.observed),
            texts_per_pull=self.config.texts_per_pull,
            noise=np.array([self.noise.of(t) if t in self._divided else 0.0 for t in tasks]),
            checked=tuple(self.problem.arms[arm] for arm in self.checked),
            budget=self.budget,
            stopped=stopped,
        )

    @property
    def _regret(self) -> float:
        """The expected regret to stop at, in units of the reward."""
        return self.config.stop_at_regret * self.scale.unit

    # -- the phases ----------------------------------------------------------------------------

    def _reference(self) -> None:
        """Score all layers of the baseline checkpoint: z rewards are defined by them.

        They are billed like any pull.

        Raises:
            UsageError: the budget can't pay for them.
        """
        assert self.problem.baseline is not None
        arms = np.flatnonzero(self.problem.baseline)
        there = {(one.arm, one.task) for one in self.imported}
        defining = [(self.problem.arms[arm], task) for arm in arms for task in self.problem.tasks]
        unpaid = sum(cell not in there for cell in defining)
        # Before anything is extracted for it.
        if self.budget.pulls is not None and unpaid > self.budget.pulls:
            raise self._too_dear(unpaid, len(arms), f"{self.budget.pulls} pulls")
        self._complete(arms.tolist(), REFERENCE)
        cells = [
            Pull(self.problem.arms[arm], self.problem.tasks[task], REFERENCE)
            for arm in arms
            for task in range(self.problem.shape[1])
            if self._is_there(int(arm), task)
        ]
        if len(cells) < len(defining):
            raise UsageError(
                "rewards.scale z is defined by all layers of the baseline checkpoint on all tasks, "
                "which could not all be extracted; give a larger bandit.budget, or rewards: "
                "{scale: raw}"
            )
        cells.sort(key=lambda cell: (cell.arm, cell.task) not in there)
        observed: list[Observation] = []
        for batch in _batches(cells, self.config.workers):
            if not self.budget.room(len(batch)):
                raise self._too_dear(
                    len(cells), len(arms), f"{self.budget.seconds:g} s, enough for {len(observed)}"
                )
            observed += self._make(batch, "reference")
        scores = np.full(self.problem.shape, np.nan)
        index = {a: i for i, a in enumerate(self.problem.arms)}
        for one in observed:
            scores[index[one.arm], self._task_index[one.task]] = one.score
        self.scale = z_scale(scores[arms])
        self._observe(observed)

    def _too_dear(self, pulls: int, layers: int, budget: str) -> UsageError:
        return UsageError(
            f"rewards.scale z is defined by all {layers} layers of the baseline checkpoint on "
            f"{len(self.problem.tasks)} tasks: {pulls} pulls, and the budget is {budget}; give "
            "a larger bandit.budget, or rewards: {scale: raw}"
        )

    def _search(self) -> Stopped:
        self.policy.answerable = None
        while True:
            room = self.budget.room(self.config.workers)
            if room <= 0:
                return "budget"
            if self._regret > 0 and self.policy.sure(self._regret):
                return "regret"
            if self._must_check():
                return "budget"
            if self.waves is not None and self.waves.due(self.policy):
                self.view.end()
                if not self.waves.next(self.policy):
                    return "exhausted" if self.waves.there.all() else "budget"
                self.view.begin("search", min(self.waves.to_score(self.policy), room))
                continue
            pulls = self.policy.ask(min(self.config.workers, room))
            if not pulls:
                return "exhausted"
            self._observe(self._make(pulls, "search"))

    def _check(self) -> None:
        """Score the top arms on the tasks they lack, as far as the budget goes."""
        # A check may put another arm on top, which is then checked too; not for ever.
        for _ in range(CHECK_PASSES):
            self._extract_finalists()
            self._begin_check(len(self._unchecked()))
            for batch in _batches(self._unchecked(), self.config.workers):
                batch = batch[: self.budget.room(self.config.workers)]
                if not batch:
                    logger.info("the final check is cut short: the budget is spent")
                    return
                self._observe(self._make(batch, "check"))

    def _check_in_full(self) -> None:
        """Score the top arms on whole tasks, arm by arm; the policy, which knows subsets, does
        not observe them: whole tasks are another scale."""
        self._extract_finalists()
        limited = self.budget.pulls is not None
        room = self.budget.room(self.config.workers) if limited else None
        self._begin_check(sum(len(pulls) for _, pulls in self._in_full(room)))
        for arm, pulls in self._in_full(room):
            scores = self._whole(arm)
            for batch in _batches(pulls, self.config.workers):
                if not self.budget.room(self.config.workers):
                    logger.info("the final check is cut short: the budget is spent")
                    return
                made = self._make(batch, "check", full=True)
                scores |= {one.task: one.score for one in made}
                self.observed += made
            self.checked[arm] = np.array([scores[task] for task in self.problem.tasks])

    # -- what the final check takes ------------------------------------------------------------

    def _must_check(self) -> bool:
        """Whether what is left is just enough for the final check."""
        if not self.config.final_check:
            return False
        if self.budget.pulls is not None:
            left, share = (
                self.budget.pulls - self.budget.spent_pulls,
                CHECK_SHARE * self.budget.pulls,
            )
            if left > share:
                return False
            if self._divided:
                return left <= sum(len(pulls) for _, pulls in self._in_full(share))
            return left <= len(self._unchecked())
        assert self.budget.seconds is not None
        rest = self.budget.seconds - self.budget.spent_seconds
        if rest > CHECK_SHARE * self.budget.seconds:
            return False
        if self._divided:  # What whole tasks cost isn't known.
            return True
        return rest <= len(self._unchecked()) * self.budget.spent_seconds / max(
            self.budget.spent_pulls, 1
        )

    def _leaders(self) -> list[int]:
        wanted = self.config.final_check if self.policy.pulls else 0
        return self.policy.leaders(wanted) if wanted else []

    def _unchecked(self) -> list[Pull]:
        """What the top arms lack."""
        reason = "final check: a top arm on all tasks"
        return [
            Pull(self.problem.arms[arm], self.problem.tasks[task], reason)
            for arm in self._leaders()
            for task in np.flatnonzero(np.isnan(self.policy.observed[arm]))
            if self._is_there(arm, int(task))
        ]

    def _in_full(self, room: float | None) -> list[tuple[int, list[Pull]]]:
        """As many of the top arms as ``room`` pulls score in full, each with the pulls it takes."""
        reason = "final check: a top arm on whole tasks"
        found: list[tuple[int, list[Pull]]] = []
        left = math.inf if room is None else room
        for arm in self._leaders():
            if self.waves is not None and not self.waves.cells[arm].all():
                continue
            known, name = self._whole(arm), self.problem.arms[arm]
            pulls = [Pull(name, t, reason) for t in self.problem.tasks if t not in known]
            left -= len(pulls)
            if left < 0:
                break
            found.append((arm, pulls))
        return found

    def _whole(self, arm: int) -> dict[str, float]:
        """Task -> main score of the tasks that the arm was scored on as a whole."""
        name = self.problem.arms[arm]
        return {o.task: o.score for o in self.observed if o.arm == name and o.halves is None}

    def _extract_finalists(self) -> None:
        """Have the checkpoints of the front and of its runner-up in full, where waves extract."""
        if self.waves is None or not (leaders := self._leaders()):
            return
        front = int(np.argmax(self.policy.believed()[0]))
        finalists = list(dict.fromkeys([front, *leaders]))[:FINALISTS]
        self._complete(finalists, IN_FULL)
        # The budget may not pay for a front that few tasks speak for; then it isn't the answer.
        self.policy.answerable = self.waves.well_read

    def _complete(self, arms: list[int], reason: str) -> None:
        """Have all pairs of these arms' checkpoints, where waves extract."""
        if self.waves is not None:
            self.view.end()
            self.waves.complete(self.policy, arms, reason)

    def _begin_check(self, pulls: int) -> None:
        """Show the check as work of its own, where extraction has broken off what was shown."""
        if self.waves is not None:
            self.view.begin("final check", pulls)

    def _is_there(self, arm: int, task: int) -> bool:
        return self.waves is None or self.waves.is_there(arm, task)

    # -- scoring and observing -----------------------------------------------------------------

    def _make(self, pulls: list[Pull], kind: Kind, *, full: bool = False) -> list[Observation]:
        """The pulls with their scores, in their order, billed unless they were imported."""
        made = self.made.make(pulls, kind, full=full)
        billed = [one for one in made if one.kind != "imported"]
        for one in billed:
            self.budget.bill(one.seconds)
        self.view.advance(len(billed))
        return made

    def _observe(self, made: list[Observation]) -> None:
        for one in made:
            task = self._task_index[one.task]
            noise = one.noise
            if one.halves is not None:
                # Measured here and not where it was scored: it depends on what was observed before.
                noise = self.noise.observe(one.task, one.halves)
                self._divided.add(one.task)
            reward = self.scale.reward(one.score, task)
            spread = self.scale.spread[task]
            self.policy.observe(one.arm, one.task, reward, one.seconds, noise / spread)
            self.observed.append(one)
        self.on_observe(self.policy, self.budget.spent_pulls, self.budget.spent_seconds)

    def _answer(self) -> tuple[Answer, Floats]:
        """The answer and the plane of rewards [arm, task] that goes with it."""
        answer, plane = self.policy.best(), self.policy.plane()
        how = self.rewards.aggregate
        if how != "mean":
            # Policies search by the mean; other aggregates are taken of the plane they believe in.
            answer = by_aggregate(answer, self.problem, plane, how)
        if not self._divided:
            return answer, plane
        if answer.expected_regret == 0:
            # Certain, says a policy without a model once it has all cells; of subsets nobody is.
            answer = replace(answer, p_best=None, expected_regret=None)
        rewards = {arm: self.scale.rewards(scores) for arm, scores in self.checked.items()}
        return after_full_check(answer, self.problem, plane, rewards, how)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def _batches(pulls: list[Pull], size: int) -> list[list[Pull]]:
    return [pulls[i : i + size] for i in range(0, len(pulls), size)]
