"""Replay of a search that pays for extraction: regret against the pairs that it asked for.

A complete table of scores stands for the store: a wave's pairs are there once they are paid for.
The search is :func:`batchsweep.bandit.loop.run` with the very waves of ``batchsweep run``. Beside
it: the same search with its pairs chosen by chance, or by expected improvement alone; and what one
does without a search, extracting every n-th checkpoint and scoring all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.bandit import loop
from batchsweep.bandit.chooser import Believer, Chooser, Fits, Visit, improvement
from batchsweep.bandit.costs import PairBudget, PairCosts
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.policies import Policy
from batchsweep.bandit.policies.base import Bools, Floats
from batchsweep.bandit.score_table import ScoreTable
from batchsweep.bandit.waves import Wave, Waves, well_read
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

#: What is compared: mean main scores.
RAW = RewardsConfig(scale="raw")
#: Tasks of a checkpoint that chance asks for at once.
RANDOM_TASKS = 8
#: Every n-th checkpoint, counted back from the last of each model.
EVERY = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class RandomChooser(Chooser):
    """Pairs by chance."""

    def next(self, policy: Believer, there: Bools, number: int, fits: Fits) -> list[Visit]:
        rng = np.random.default_rng([self.seed, number])
        wave = there.copy()
        visits: list[Visit] = []
        for row in rng.permutation(len(wave)).tolist():
            if len(visits) == self.width:
                break
            order = [t for t in rng.permutation(wave.shape[1]).tolist() if not wave[row, t]]
            if tasks := self._affordable(row, order[:RANDOM_TASKS], wave, fits):
                visits.append(self._visit(row, tasks, "by chance"))
        return visits


class ImprovementChooser(Chooser):
    """The checkpoints of the arms with the largest expected improvement."""

    def next(self, policy: Believer, there: Bools, number: int, fits: Fits) -> list[Visit]:
        mean, sd = policy.believed()
        leader = int(np.argmax(mean))
        better = improvement(policy.posterior, mean, sd, leader)
        scratch, wave = copy.deepcopy(policy.posterior), there.copy()
        visits: dict[int, Visit] = {}
        for arm in np.argsort(-better, kind="stable").tolist():
            row = int(self.costs.of[arm])
            if len(visits) == self.width or better[arm] <= 0:
                break
            if row not in visits:
                tasks = self._worth(scratch, {arm: 1.0, leader: -1.0}, arm, wave, fits)
                if tasks:
                    visits[row] = self._visit(row, tasks, "largest expected improvement")
        return list(visits.values())


#: Name -> who chooses the pairs.
CHOOSERS: dict[str, type[Chooser]] = {
    "search": Chooser,
    "improvement": ImprovementChooser,
    "random": RandomChooser,
}
METHODS = (*CHOOSERS, "every_nth")


class Paid:
    """A table whose pairs are there once they were asked for.

    Attributes:
        pairs: [checkpoint, task] those that were.
        visits: [checkpoint] how often something was.
        waves: so many so far.
    """

    def __init__(self, costs: PairCosts, tasks: Sequence[str]) -> None:
        self.pairs = np.zeros((len(costs.checkpoints), len(tasks)), dtype=bool)
        self.visits = np.zeros(len(costs.checkpoints), dtype=np.int64)
        self._rows = {key: row for row, key in enumerate(costs.checkpoints)}
        self._columns = {task: column for column, task in enumerate(tasks)}
        self.waves = 0

    def recall(self, number: int) -> Wave | None:
        return None

    def extract(self, wave: Wave) -> None:
        self.waves = wave.number
        for visit in wave.visits:
            self.visits[self._rows[visit.key]] += 1
            self.pairs[self._rows[visit.key], [self._columns[t] for t in visit.tasks]] = True

    def there(self, waves: int) -> Bools:
        return self.pairs.copy()


def replay_extraction(
    table: ScoreTable,
    costs: PairCosts,
    *,
    seed: int,
    methods: Sequence[str] = METHODS,
    forward: float | None = 0.05,
    checkpoints: float | None = None,
    width: int = 4,
    config: BanditConfig,
) -> pd.DataFrame:
    """What each way to choose pairs knew after it had paid for so many.

    Args:
        forward, checkpoints: the budget, as parts of all forward work and of all checkpoints.
        width: checkpoints a wave.
        config: pulls, stop, final check; rewards are the main scores. Its policy must be one with
            a model.

    Returns:
        One row a pull, and a last one (``final``) with the answer. Columns: method, seed, wave,
        pulls, forward, checkpoints, pairs (parts of all), regret (in mean main score), within (of
        0.5 % of the best arm's mean score), final. Of ``every_nth`` one row each n, scored in full.

    Raises:
        UsageError: an unknown method.
    """
    import pandas as pd

    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise UsageError(f"no way to choose pairs '{unknown[0]}'; valid: {', '.join(METHODS)}")
    rows: list[tuple[Any, ...]] = []
    for method in methods:
        if method in CHOOSERS:
            chooser = CHOOSERS[method](table.problem, costs, width=width, seed=seed)
            budget = PairBudget(
                costs,
                store_bytes=None if forward is None else forward * float(costs.store_bytes.sum()),
                checkpoints=None if checkpoints is None else checkpoints * len(costs.checkpoints),
            )
            rows += _searched(
                table, chooser, budget, method, config.model_copy(update={"seed": seed})
            )
        else:
            rows += _every_nth(table, costs, seed)
    columns = ["method", "seed", "wave", "pulls", "forward", "checkpoints", "pairs", "regret"]
    return pd.DataFrame(rows, columns=[*columns, "within", "final"])


def search_table(
    table: ScoreTable,
    chooser: Chooser,
    budget: PairBudget,
    config: BanditConfig,
    rewards: RewardsConfig,
    *,
    paid: Paid | None = None,
    heard: Callable[[Policy, int, float], None] | None = None,
) -> tuple[Outcome, Paid]:
    """The live search on a table: its outcome, and the pairs that it asked for.

    Args:
        paid: what it asks, for callers that look while it goes on.
        heard: as ``on_observe`` of :func:`batchsweep.bandit.loop.run`.
    """
    problem, score = table.problem, table.score_fn(config.seed)
    paid = paid or Paid(chooser.costs, problem.tasks)
    waves = Waves(chooser, paid, budget)
    outcome = loop.run(problem, score, config, rewards, waves=waves, on_observe=heard, quiet=True)
    return outcome, paid


def _searched(
    table: ScoreTable,
    chooser: Chooser,
    budget: PairBudget,
    method: str,
    config: BanditConfig,
) -> list[tuple[Any, ...]]:
    problem, costs = table.problem, chooser.costs
    regret, within = table.regret(RAW)
    paid = Paid(costs, problem.tasks)
    rows: list[tuple[Any, ...]] = []

    def row(arm: int, pulls: int, *, final: bool) -> None:
        parts = _parts(paid.pairs, costs)
        at = float(regret[arm])
        rows.append((method, config.seed, paid.waves, pulls, *parts, at, at <= within, final))

    def heard(policy: Policy, pulls: int, seconds: float) -> None:
        # What would be answered now.
        policy.answerable, before = well_read(paid.pairs, costs), policy.answerable
        row(policy.leader(), pulls, final=False)
        policy.answerable = before

    outcome, _ = search_table(table, chooser, budget, config, RAW, paid=paid, heard=heard)
    row(problem.arms.index(outcome.answer.arm), outcome.budget.spent_pulls, final=True)
    return rows


def _every_nth(table: ScoreTable, costs: PairCosts, seed: int) -> list[tuple[Any, ...]]:
    problem = table.problem
    regret, within = table.regret(RAW)
    rows = []
    for n in EVERY:
        pairs = np.zeros((len(costs.checkpoints), len(problem.tasks)), dtype=bool)
        for model in problem.models:
            mine = problem.of_model(model)
            steps: Floats = np.unique(problem.step[mine])[::-1][::n]
            pairs[np.unique(costs.of[mine & np.isin(problem.step, steps)])] = True
        scored: Bools = np.all(pairs, axis=1)[costs.of]
        at = float(regret[scored].min())
        pulls = int(scored.sum()) * len(problem.tasks)
        parts = _parts(pairs, costs)
        rows.append(("every_nth", seed, n, pulls, *parts, at, at <= within, True))
    return rows


def _parts(pairs: Bools, costs: PairCosts) -> tuple[float, float, float]:
    """The parts of all forward work, checkpoints and pairs."""
    forward = float((costs.seconds * pairs).sum() / costs.seconds.sum())
    return forward, float(pairs.any(axis=1).mean()), float(pairs.mean())


def at_forward(curves: pd.DataFrame, parts: Iterable[float]) -> pd.DataFrame:
    """What each method and seed knew for at most these parts of the forward work.

    A method that can't be had so cheaply, such as every n-th checkpoint, has no row there.
    """
    import pandas as pd

    found = []
    for part in parts:
        known = curves[curves["forward"] <= part + 1e-9]
        known = known.sort_values("forward", kind="stable")
        found.append(known.groupby(["method", "seed"], sort=False).tail(1).assign(at=part))
    return pd.concat(found, ignore_index=True)
