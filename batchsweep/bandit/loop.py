"""The budgeted loop: ask a policy, score, write down, observe; and the answer at the end.

Live runs and replays go through :func:`run`. Every pull is in the ledger before the policy hears
of it, and a policy is deterministic, so that a run that was killed asks the same again, finds the
first answers in the ledger, and ends as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from batchsweep.bandit.final_check import after_full_check, by_aggregate
from batchsweep.bandit.ledger import Ledger, MemoryLedger, Record, StoreLedger
from batchsweep.bandit.outcome import VERSION, Outcome
from batchsweep.bandit.policies import Answer, Policy, Problem, Pull, make_policy
from batchsweep.bandit.pull_noise import SplitHalvesNoise
from batchsweep.bandit.pulls import Pulls, ScoreFn
from batchsweep.bandit.rewards import Floats, describe, raw_scale, z_scale
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.numerics import one_compute_thread
from batchsweep.progress import progress

__all__ = ["Ledger", "MemoryLedger", "Outcome", "StoreLedger", "run", "run_digest"]

logger = logging.getLogger(__name__)

#: Layers of the baseline checkpoint that z rewards rest on, unless everything is affordable.
REFERENCE_LAYERS = 5
#: Largest part of the budget that reference pulls, and the final check, may take.
REFERENCE_SHARE = 1 / 3
CHECK_SHARE = 0.2
CHECK_PASSES = 3


def run_digest(problem: Problem, config: BanditConfig, rewards: RewardsConfig) -> str:
    """sha256 (hex) of what decides the pulls: two runs with one digest are the same run."""
    text = json.dumps(_header(problem, config, rewards), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run(
    problem: Problem,
    score_fn: ScoreFn,
    config: BanditConfig,
    rewards: RewardsConfig | None = None,
    *,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
    options: dict[str, Any] | None = None,
    full_fn: ScoreFn | None = None,
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
        on_observe: called as (policy, pulls, seconds) each time the policy has heard all it was to.

    Raises:
        UsageError: unknown policy or option.
        StoreMismatch: the ledger belongs to another run; names what differs.
    """
    rewards = rewards or RewardsConfig(scale="raw")
    # One BLAS thread: the same sums, to the last bit, whatever the machine's setting; matrices of
    # this size are no quicker on several, and many times slower where others want the cores too.
    with one_compute_thread(), threadpool_limits(limits=1):
        header = _header(problem, config, rewards) | {"options": options or {}}
        made = Pulls(ledger or MemoryLedger(), header, score_fn, full_fn or score_fn, executor)
        loop = _Loop(problem, config, rewards, made, options or {})
        loop.on_observe = on_observe
        return loop.run(quiet=quiet)


class _Loop:
    def __init__(
        self,
        problem: Problem,
        config: BanditConfig,
        rewards: RewardsConfig,
        made: Pulls,
        options: dict[str, Any],
    ) -> None:
        self.problem, self.config, self.rewards, self.made = problem, config, rewards, made
        self.budget_pulls, self.budget_seconds = config.budget_for(*problem.shape)
        cells = int(np.prod(problem.shape))
        self.policy = make_policy(
            config.policy,
            problem,
            seed=config.seed,
            # What is beyond the cells is for the final check.
            budget=min(self.budget_pulls, cells) if self.budget_pulls is not None else None,
            **options,
        )
        self.on_observe: Callable[[Policy, int, float], None] | None = None
        self.scale = raw_scale(problem.shape[1])
        self.observed: list[Record] = []
        self.noise = SplitHalvesNoise(problem.tasks)
        #: Tasks that pulls score subsets of.
        self._divided: set[str] = set()
        #: Arms that were scored in full after a search on subsets: [task] main scores.
        self.checked: dict[int, Floats] = {}
        self.pulls, self.seconds = 0, 0.0
        self._task_index = {t: i for i, t in enumerate(problem.tasks)}

    # -- the phases ----------------------------------------------------------------------------

    def run(self, *, quiet: bool) -> Outcome:
        total = self.budget_pulls or int(np.prod(self.problem.shape))
        if quiet:
            stopped = self._phases(lambda n: None)
        else:
            with progress("bandit", total=total, unit="pulls") as bar:
                stopped = self._phases(bar.advance)
        answer, plane = self._answer()
        tasks = self.problem.tasks
        outcome = Outcome(
            problem=self.problem,
            answer=answer,
            reward=describe(
                self.rewards.scale,
                self.rewards.aggregate,
                self.rewards.target,
                self.problem.tasks,
            ),
            scale=self.scale,
            plane=self.scale.score(plane),
            records=tuple(self.observed),
            texts_per_pull=self.config.texts_per_pull,
            noise=np.array([self.noise.of(t) if t in self._divided else 0.0 for t in tasks]),
            checked=tuple(self.problem.arms[arm] for arm in self.checked),
            pulls=self.pulls,
            seconds=self.seconds,
            budget_pulls=self.budget_pulls,
            budget_seconds=self.budget_seconds,
            stopped=stopped,
        )
        if stopped == "regret":
            logger.info(
                "stopped early: expected regret is below %g in score; %.0f %% of budget is left",
                self.config.stop_at_regret,
                100 * outcome.left,
            )
        return outcome

    def _phases(self, advance: Callable[[int], None]) -> str:
        if self.rewards.scale == "z" and self.policy.pulls:
            self._reference(advance)
        stopped = self._search(advance)
        if self._divided:
            self._check_in_full(advance)
        else:
            self._check(advance)
        return stopped

    def _reference(self, advance: Callable[[int], None]) -> None:
        """Score baseline layers first: z rewards rest on them. They are billed like any pull."""
        arms, tasks = self.problem.shape
        n = arms if self._affords(arms * tasks) else REFERENCE_LAYERS
        cells = [
            Pull(self.problem.arms[a], task, "reference: baseline layer, for the z-scale")
            for a in self.problem.reference_arms(n)
            for task in self.problem.tasks
        ]
        if self.budget_pulls is not None and not self._affords(arms * tasks):
            cells = cells[: int(REFERENCE_SHARE * self.budget_pulls)]
        scores = np.full(self.problem.shape, np.nan)
        index = {a: i for i, a in enumerate(self.problem.arms)}
        records: list[Record] = []
        limit = None if self.budget_seconds is None else REFERENCE_SHARE * self.budget_seconds
        for batch in _batches(cells, self.config.workers):
            if limit is not None and self.seconds >= limit:
                break
            records += self._score(batch, "reference", advance)
        for record in records:
            scores[index[record["arm"]], self._task_index[record["task"]]] = record["score"]
        self.scale = z_scale(scores)
        self._observe(records)

    def _search(self, advance: Callable[[int], None]) -> str:
        regret = self.config.stop_at_regret * self.scale.unit
        while True:
            room = self._room()
            if room <= 0:
                return "budget"
            if regret > 0 and self.policy.sure(regret):
                return "regret"
            if self._must_check():
                return "budget"
            pulls = self.policy.ask(min(self.config.workers, room))
            if not pulls:
                return "exhausted"
            self._observe(self._score(pulls, "search", advance))

    def _check(self, advance: Callable[[int], None]) -> None:
        """Score the top arms on the tasks they lack, as far as the budget goes."""
        # A check may put another arm on top, which is then checked too; not for ever.
        for _ in range(CHECK_PASSES):
            for batch in _batches(self._unchecked(), self.config.workers):
                batch = batch[: self._room()]
                if not batch:
                    logger.info("the final check is cut short: the budget is spent")
                    return
                self._observe(self._score(batch, "check", advance))

    def _unchecked(self) -> list[Pull]:
        if not self.config.final_check or not self.policy.pulls:
            return []
        reason = "final check: a top arm on all tasks"
        return [
            Pull(self.problem.arms[arm], self.problem.tasks[task], reason)
            for arm in self.policy.leaders(self.config.final_check)
            for task in np.flatnonzero(np.isnan(self.policy.observed[arm]))
        ]

    def _check_in_full(self, advance: Callable[[int], None]) -> None:
        """Score the top arms on whole tasks, arm by arm; the policy, which knows subsets, does
        not observe them: whole tasks are another scale."""
        for arm, pulls in self._in_full(self._room() if self.budget_pulls is not None else None):
            scores = {r["task"]: r["score"] for r in self.observed if self._is_whole(r, arm)}
            for batch in _batches(pulls, self.config.workers):
                if not self._room():
                    logger.info("the final check is cut short: the budget is spent")
                    return
                records = self._score(batch, "check", advance, full=True)
                scores |= {r["task"]: r["score"] for r in records}
                self.observed += records
            self.checked[arm] = np.array([scores[task] for task in self.problem.tasks])

    def _in_full(self, room: float | None) -> list[tuple[int, list[Pull]]]:
        """As many of the top arms as ``room`` pulls score in full, each with the pulls it takes."""
        found: list[tuple[int, list[Pull]]] = []
        left = math.inf if room is None else room
        if not self.config.final_check or not self.policy.pulls:
            return found
        for arm in self.policy.leaders(self.config.final_check):
            known = {r["task"] for r in self.observed if self._is_whole(r, arm)}
            reason = "final check: a top arm on whole tasks"
            name = self.problem.arms[arm]
            pulls = [Pull(name, t, reason) for t in self.problem.tasks if t not in known]
            left -= len(pulls)
            if left < 0:
                break
            found.append((arm, pulls))
        return found

    def _is_whole(self, record: Record, arm: int) -> bool:
        return bool(record["arm"] == self.problem.arms[arm] and "halves" not in record)

    def _must_check(self) -> bool:
        """Whether what is left is just enough for the final check."""
        if not self.config.final_check:
            return False
        if self.budget_pulls is not None:
            left, share = self.budget_pulls - self.pulls, CHECK_SHARE * self.budget_pulls
            if left > share:
                return False
            if self._divided:
                return left <= sum(len(pulls) for _, pulls in self._in_full(share))
            return left <= len(self._unchecked())
        assert self.budget_seconds is not None
        rest = self.budget_seconds - self.seconds
        if rest > CHECK_SHARE * self.budget_seconds:
            return False
        if self._divided:  # What whole tasks cost isn't known.
            return True
        return rest <= len(self._unchecked()) * self.seconds / max(self.pulls, 1)

    # -- scoring and observing -----------------------------------------------------------------

    def _affords(self, pulls: int) -> bool:
        return self.budget_pulls is not None and self.budget_pulls >= pulls

    def _room(self) -> int:
        """Pulls that may still be made."""
        if self.budget_pulls is not None:
            return self.budget_pulls - self.pulls
        assert self.budget_seconds is not None
        return self.config.workers if self.seconds < self.budget_seconds else 0

    def _score(
        self, pulls: list[Pull], kind: str, advance: Callable[[int], None], *, full: bool = False
    ) -> list[Record]:
        """Records of the pulls, in their order, billed."""
        records = self.made.records(pulls, kind, full=full)
        advance(len(pulls))
        self.pulls += len(pulls)
        self.seconds += sum(record["seconds"] for record in records)
        return records

    def _observe(self, records: list[Record]) -> None:
        for record in records:
            task = record["task"]
            spread = self.scale.spread[self._task_index[task]]
            reward = self.scale.reward(record["score"], self._task_index[task])
            noise = record.get("noise", 0.0)
            if "halves" in record:
                # Measured here and not where it was scored: it depends on what was observed before.
                noise = self.noise.observe(task, record["halves"])
                self._divided.add(task)
            self.policy.observe(record["arm"], task, reward, record["seconds"], noise / spread)
            self.observed.append(record)
        if self.on_observe is not None:
            self.on_observe(self.policy, self.pulls, self.seconds)

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


def _header(problem: Problem, config: BanditConfig, rewards: RewardsConfig) -> Record:
    def digest(names: tuple[str, ...]) -> str:
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    settings = config.model_dump(mode="json")
    if settings["texts_per_pull"] is None:
        del settings["texts_per_pull"]  # The same search as before there was such a setting.
    return {
        "version": VERSION,
        **settings,
        "rewards": rewards.model_dump(mode="json"),
        "arms": digest(problem.arms),
        "tasks": list(problem.tasks),
    }


def _batches(pulls: list[Pull], size: int) -> list[list[Pull]]:
    return [pulls[i : i + size] for i in range(0, len(pulls), size)]
