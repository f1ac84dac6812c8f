"""The budgeted loop: ask a policy, score, write down, tell; and the answer at the end.

Live runs and replays go through :func:`run`. Every pull is in the ledger before the policy hears
of it, and a policy is deterministic, so that a run that was killed asks the same again, finds the
first answers in the ledger, and ends as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from batchsweep.config import BanditConfig, PullBudget, RewardsConfig
from batchsweep.errors import StoreMismatch
from batchsweep.ledger import Ledger, MemoryLedger, Record, StoreLedger
from batchsweep.policies import Answer, Policy, Problem, Pull, make_policy
from batchsweep.progress import progress
from batchsweep.rewards import Floats, Scale, aggregate, describe, raw_scale, z_scale

__all__ = ["Ledger", "MemoryLedger", "Outcome", "StoreLedger", "run", "run_digest"]

logger = logging.getLogger(__name__)

#: (arm, task) -> (main score, seconds, result). Of the result only ``result["noise"]`` is read, if
#: it is a mapping that has one: the score's standard deviation, for a pull on a subset of a task.
#: A score that is not finite (a constant embedding has no correlation) counts as 0.
ScoreFn = Callable[[str, str], tuple[float, float, Any]]

#: Layers of the baseline checkpoint that z rewards rest on, unless everything is affordable.
REFERENCE_LAYERS = 5
#: Largest part of the budget that reference pulls, and the final check, may take.
REFERENCE_SHARE = 1 / 3
CHECK_SHARE = 0.2
CHECK_PASSES = 3
#: Change when the pulls of a policy change: a ledger of another version is not resumed.
VERSION = 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found and what it spent.

    Attributes:
        answer: the best arm, in units of the reward.
        reward: one line that says what the reward is.
        scale: per-task centre and spread of the rewards.
        plane: [arm, task] believed main scores; measured ones where measured.
        records: every pull in the order told: kind, arm, task, score, seconds, reason.
        pulls, seconds: spent. budget_pulls, budget_seconds: what might have been (or None).
        stopped: ``budget``, ``regret`` (sure enough) or ``exhausted`` (nothing left to ask).
    """

    problem: Problem
    answer: Answer
    reward: str
    scale: Scale
    plane: Floats
    records: tuple[Record, ...]
    pulls: int
    seconds: float
    budget_pulls: int | None
    budget_seconds: float | None
    stopped: str

    @property
    def left(self) -> float:
        """Part of the budget that was not spent, 0 to 1."""
        if self.budget_pulls is not None:
            return max(0.0, 1 - self.pulls / self.budget_pulls)
        assert self.budget_seconds is not None
        return max(0.0, 1 - self.seconds / self.budget_seconds)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``answer.json``; the per-arm columns are in the problem's order."""
        answer = self.answer
        return {
            "version": VERSION,
            "reward": self.reward,
            "best": {
                "arm": answer.arm,
                "mean": answer.mean,
                "interval": [_finite(x) for x in answer.interval],
                "p_best": answer.p_best,
                "expected_regret": answer.expected_regret,
                "basis": answer.basis,
            },
            "runners_up": [asdict(c) for c in answer.runners_up],
            "pulls": self.pulls,
            "exhaustive_pulls": int(np.prod(self.problem.shape)),
            "seconds": self.seconds,
            "budget_pulls": self.budget_pulls,
            "budget_seconds": self.budget_seconds,
            "budget_left": self.left,
            "stopped": self.stopped,
            "scale": {
                "kind": self.scale.kind,
                "layers": self.scale.layers,
                "tasks": list(self.problem.tasks),
                "centre": self.scale.centre.tolist(),
                "spread": self.scale.spread.tolist(),
            },
            "arms": [
                {"arm": arm, "mean": mean, "sd": _finite(sd), "pulled": n}
                for arm, mean, sd, n in zip(
                    self.problem.arms,
                    answer.mean_of.tolist(),
                    answer.sd_of.tolist(),
                    answer.pulled.tolist(),
                    strict=True,
                )
            ],
            "plane": [[_finite(value) for value in row] for row in self.plane.tolist()],
        }


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
    on_tell: Callable[[Policy, int, float], None] | None = None,
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
        on_tell: called as (policy, pulls, seconds) each time the policy has heard all it was to.

    Raises:
        UsageError: unknown policy or option.
        StoreMismatch: the ledger belongs to another run; names what differs.
    """
    rewards = rewards or RewardsConfig(scale="raw")
    loop = _Loop(problem, score_fn, config, rewards, ledger or MemoryLedger(), executor, options)
    loop.on_tell = on_tell
    return loop.run(quiet=quiet)


class _Loop:
    def __init__(
        self,
        problem: Problem,
        score_fn: ScoreFn,
        config: BanditConfig,
        rewards: RewardsConfig,
        ledger: Ledger,
        executor: Executor | None,
        options: dict[str, Any] | None,
    ) -> None:
        self.problem, self.score_fn, self.config = problem, score_fn, config
        self.rewards, self.ledger, self.executor = rewards, ledger, executor
        self.budget_pulls, self.budget_seconds = budget_of(config, problem)
        self.policy = make_policy(
            config.policy,
            problem,
            seed=config.seed,
            budget=self.budget_pulls,
            **(options or {}),
        )
        self.on_tell: Callable[[Policy, int, float], None] | None = None
        self.scale = raw_scale(problem.shape[1])
        self.told: list[Record] = []
        self.pulls, self.seconds = 0, 0.0
        self._task_index = {t: i for i, t in enumerate(problem.tasks)}
        self._known = self._open_ledger(options or {})

    def _open_ledger(self, options: dict[str, Any]) -> dict[tuple[str, str], Record]:
        """What was pulled before, by cell; a new ledger gets its header."""
        header = _header(self.problem, self.config, self.rewards) | {"options": options}
        header = json.loads(json.dumps(header))
        records = self.ledger.records()
        old = next((r for r in records if r["kind"] == "header"), None)
        if old is None:
            # None yet, or one that was damaged and dropped: scores are the same without it.
            self.ledger.append({"kind": "header", **header})
            old = header
        for key, value in header.items():
            if old.get(key) != value:
                raise StoreMismatch(
                    f"the bandit's ledger was made with {key} {old.get(key)}, not {value}; "
                    "give this run another name, or the old settings to go on with it"
                )
        known = {(r["arm"], r["task"]): r for r in records if r["kind"] != "header"}
        if known:
            logger.info("going on from %d pulls in the ledger", len(known))
        return known

    # -- the phases ----------------------------------------------------------------------------

    def run(self, *, quiet: bool) -> Outcome:
        total = self.budget_pulls or int(np.prod(self.problem.shape))
        if quiet:
            stopped = self._phases(lambda n: None)
        else:
            with progress("bandit", total=total, unit="pulls") as bar:
                stopped = self._phases(bar.advance)
        answer = self._answer()
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
            plane=self.scale.score(self.policy.plane()),
            records=tuple(self.told),
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
        self._tell(records)

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
            self._tell(self._score(pulls, "search", advance))

    def _check(self, advance: Callable[[int], None]) -> None:
        """Score the top arms on the tasks they lack, as far as the budget goes."""
        # A check may put another arm on top, which is then checked too; not for ever.
        for _ in range(CHECK_PASSES):
            for batch in _batches(self._unchecked(), self.config.workers):
                batch = batch[: self._room()]
                if not batch:
                    logger.info("the final check is cut short: the budget is spent")
                    return
                self._tell(self._score(batch, "check", advance))

    def _unchecked(self) -> list[Pull]:
        if not self.config.final_check or not self.policy.pulls:
            return []
        reason = "final check: a top arm on all tasks"
        return [
            Pull(self.problem.arms[arm], self.problem.tasks[task], reason)
            for arm in self.policy.leaders(self.config.final_check)
            for task in np.flatnonzero(np.isnan(self.policy.told[arm]))
        ]

    def _must_check(self) -> bool:
        """Whether what is left is just enough for the final check."""
        if not self.config.final_check:
            return False
        if self.budget_pulls is not None:
            left = self.budget_pulls - self.pulls
            return left <= CHECK_SHARE * self.budget_pulls and left <= len(self._unchecked())
        assert self.budget_seconds is not None
        rest = self.budget_seconds - self.seconds
        if rest > CHECK_SHARE * self.budget_seconds:
            return False
        return rest <= len(self._unchecked()) * self.seconds / max(self.pulls, 1)

    # -- scoring and telling -------------------------------------------------------------------

    def _affords(self, pulls: int) -> bool:
        return self.budget_pulls is not None and self.budget_pulls >= pulls

    def _room(self) -> int:
        """Pulls that may still be made."""
        if self.budget_pulls is not None:
            return self.budget_pulls - self.pulls
        assert self.budget_seconds is not None
        return self.config.workers if self.seconds < self.budget_seconds else 0

    def _score(self, pulls: list[Pull], kind: str, advance: Callable[[int], None]) -> list[Record]:
        """Records of the pulls, in their order; each is in the ledger by then."""
        done: dict[Pull, Record] = {}
        fresh: list[Pull] = []
        for pull in pulls:
            record = self._known.get((pull.arm, pull.task))
            if record is None:
                fresh.append(pull)
            else:
                done[pull] = record
        for pull, (score, seconds, noise) in self._score_fresh(fresh):
            record = {
                "kind": kind,
                "arm": pull.arm,
                "task": pull.task,
                "score": score if math.isfinite(score) else 0.0,
                "seconds": seconds,
                "reason": pull.reason,
            }
            if noise:
                record["noise"] = noise
            if not math.isfinite(score):
                logger.warning("%s on %s: score is %s; counts as 0", pull.arm, pull.task, score)
                record["undefined"] = True
            self.ledger.append(record)
            done[pull] = record
        advance(len(pulls))
        self.pulls += len(pulls)
        self.seconds += sum(done[p]["seconds"] for p in pulls)
        return [done[p] for p in pulls]

    def _score_fresh(self, pulls: list[Pull]) -> Iterator[tuple[Pull, tuple[float, float, float]]]:
        if self.executor is None or len(pulls) < 2:
            for pull in pulls:
                yield pull, _plain(self.score_fn(pull.arm, pull.task))
            return
        futures = {self.executor.submit(self.score_fn, p.arm, p.task): p for p in pulls}
        for future in as_completed(futures):
            yield futures[future], _plain(future.result())

    def _tell(self, records: list[Record]) -> None:
        for record in records:
            reward = self.scale.reward(record["score"], self._task_index[record["task"]])
            noise = record.get("noise", 0.0) / self.scale.spread[self._task_index[record["task"]]]
            self.policy.tell(record["arm"], record["task"], reward, record["seconds"], noise)
            self.told.append(record)
        if self.on_tell is not None:
            self.on_tell(self.policy, self.pulls, self.seconds)

    def _answer(self) -> Answer:
        answer = self.policy.best()
        how = self.rewards.aggregate
        if how == "mean":
            return answer
        # Policies search by the mean; the other aggregates are taken of the plane they believe in.
        value = aggregate(self.policy.plane(), how)
        arm = int(np.argmax(value))
        return replace(
            answer,
            arm=self.problem.arms[arm],
            mean=float(value[arm]),
            interval=(math.nan, math.nan),
            p_best=None,
            expected_regret=None,
            runners_up=(),
            mean_of=value,
            sd_of=np.full(len(value), np.nan),
            basis=f"{answer.basis}; searched by the mean, chosen by {how}, which has no interval",
        )


def budget_of(config: BanditConfig, problem: Problem) -> tuple[int | None, float | None]:
    """(pulls, seconds): exactly one is set; pulls never exceed the number of cells."""
    arms, tasks = problem.shape
    if isinstance(config.budget, PullBudget):
        if config.budget.seconds is not None:
            return None, config.budget.seconds
        assert config.budget.pulls is not None
        return min(config.budget.pulls, arms * tasks), None
    return min(max(1, round(config.budget * tasks)), arms * tasks), None


def _header(problem: Problem, config: BanditConfig, rewards: RewardsConfig) -> Record:
    def digest(names: tuple[str, ...]) -> str:
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    return {
        "version": VERSION,
        **config.model_dump(mode="json"),
        "rewards": rewards.model_dump(mode="json"),
        "arms": digest(problem.arms),
        "tasks": list(problem.tasks),
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _batches(pulls: list[Pull], size: int) -> list[list[Pull]]:
    return [pulls[i : i + size] for i in range(0, len(pulls), size)]


def _plain(result: tuple[float, float, Any]) -> tuple[float, float, float]:
    """(score, seconds, noise)."""
    score, seconds, rest = result
    noise = rest.get("noise", 0.0) if isinstance(rest, Mapping) else 0.0
    return float(score), float(seconds), float(noise)
