"""What a search is expected to have extracted: the live search, on simulated scores of its size."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from batchsweep.bandit.chooser import Chooser
from batchsweep.bandit.costs import PairCosts, estimated_costs
from batchsweep.bandit.policy_names import WITH_A_MODEL
from batchsweep.bandit.problem import planned_problem
from batchsweep.bandit.replay_extraction import Paid, search_table
from batchsweep.bandit.search import pair_budget
from batchsweep.bandit.surfaces import FAMILIES, simulated
from batchsweep.config import Config
from batchsweep.plan.estimate import Estimate
from batchsweep.plan.plan import Plan
from batchsweep.plan.speed import download_bytes

#: Searches, and seconds after which no other one is begun.
SEARCHES = 6
SECONDS = 30.0


@dataclass(frozen=True)
class Needs:
    """What one search had extracted."""

    pairs: int
    checkpoints: int
    store_bytes: float
    """The corpus included."""
    download_bytes: float
    gpu_seconds: float
    """Forward passes and writing, downloads, and a start for each visit."""
    regret: float
    """By how much the answer's mean main score was below the best arm's."""


@dataclass(frozen=True)
class Expected:
    """What simulated searches had extracted, one each seed."""

    searches: tuple[Needs, ...]

    def span(self, what: str) -> tuple[float, float, float]:
        """(least, median, most) of a field of :class:`Needs`."""
        values = [float(getattr(one, what)) for one in self.searches]
        return min(values), median(values), max(values)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [asdict(one) for one in self.searches]


def expected(
    plan: Plan,
    config: Config,
    costs: Estimate,
    *,
    searches: int = SEARCHES,
    seconds: float = SECONDS,
) -> Expected | None:
    """Search simulated surfaces of this size, each of another family and seed.

    Policy, budget, waves and prices are those of ``batchsweep run``; only the scores are made up.
    What is extracted already counts as if it weren't.

    Args:
        costs: of the whole plan; says the speed and the tasks' sizes.
        seconds: after which no other search is begun; the first always is.

    Returns:
        None where ``run`` extracts everything: the policy has no model of what isn't scored, or a
        task's size isn't known.

    Raises:
        UsageError: ``rewards`` name nothing in the sweep, or the budget can't pay for z rewards.
    """
    if config.bandit.policy not in WITH_A_MODEL or costs.size.unknown:
        return None
    names = [task.name for task in costs.size.tasks]
    problem = planned_problem(plan, config, tasks=names)
    prices = estimated_costs(plan, problem, config, costs.size, speed=costs.speed)
    downloads = {entry.key: download_bytes(entry) for entry in plan.entries}
    found: list[Needs] = []
    until = time.monotonic() + seconds
    for seed in range(searches):
        if found and time.monotonic() > until:
            break
        table = simulated(problem, FAMILIES[seed % len(FAMILIES)], seed)
        bandit = config.bandit.model_copy(update={"seed": seed})
        chooser = Chooser(problem, prices, seed=seed)
        limits = pair_budget(config, prices)
        outcome, paid = search_table(table, chooser, limits, bandit, config.rewards)
        truth = table.scores.mean(axis=1)
        regret = float(truth.max() - truth[problem.arms.index(outcome.answer.arm)])
        found.append(_needs(paid, prices, downloads, costs.corpus_bytes, regret))
    return Expected(tuple(found))


def _needs(
    paid: Paid, prices: PairCosts, downloads: dict[str, int], corpus: float, regret: float
) -> Needs:
    touched = np.flatnonzero(paid.visits)
    return Needs(
        pairs=int(paid.pairs.sum()),
        checkpoints=len(touched),
        store_bytes=corpus + float((prices.store_bytes * paid.pairs).sum()),
        download_bytes=float(sum(downloads[prices.checkpoints[row]] for row in touched)),
        gpu_seconds=float(
            (prices.seconds * paid.pairs).sum()
            + (prices.start * paid.visits).sum()
            + prices.download[touched].sum()
        ),
        regret=regret,
    )
