"""Replay: how policies would have done on a table of scores that is already complete.

The pulls go through :func:`batchsweep.bandit.loop.run`, the very loop of a live run; only the score
comes from the table. Many seeds give regret curves with intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.bandit import loop
from batchsweep.bandit.policies import Policy
from batchsweep.bandit.score_table import ScoreTable
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.progress import progress

if TYPE_CHECKING:
    import pandas as pd

#: Moments of a run at which the policy states its full answer (P(best)), evenly over the budget.
STATEMENTS = 20
COLUMNS = (
    "policy", "seed", "pulls", "seconds", "arm", "regret", "best", "within", "p_best", "cells"
)  # fmt: skip


def replay(
    table: ScoreTable,
    policies: Sequence[str],
    *,
    config: BanditConfig | None = None,
    rewards: RewardsConfig | None = None,
    seeds: Iterable[int] = range(10),
    arms: float = 1.0,
    tasks: float = 1.0,
) -> pd.DataFrame:
    """Run each policy with each seed; one row each time a policy has learned something.

    Args:
        config: budget, workers, ...; its policy and seed are replaced. The final check is off
            unless the config is given.
        arms, tasks: part of the arms and tasks that each seed draws at random.

    Returns:
        Columns policy, seed, pulls, seconds, arm (believed best), regret (in mean main score), best
        (whether that arm is the truly best), within (regret of at most 0.5 % of the best arm's mean
        score), p_best (stated; NaN between statements or without a model), cells (of the table).

    Raises:
        UsageError: pulls on subsets, of which a table knows nothing; a baseline that it lacks.
    """
    import pandas as pd

    config = config or BanditConfig(final_check=0, stop_at_regret=0.0)
    if config.texts_per_pull is not None:
        raise UsageError(
            "bandit.texts_per_pull: a table has scores of whole tasks only, of which no subset can "
            "be scored; leave it out of a replay"
        )
    rewards = rewards or RewardsConfig(scale="raw")
    table = table.for_rewards(rewards)
    rows: list[tuple[Any, ...]] = []
    seeds = list(seeds)
    with progress("replay", total=len(seeds) * len(policies), unit="runs") as bar:
        for seed in seeds:
            part = table.subset(seed, arms=arms, tasks=tasks) if (arms, tasks) != (1, 1) else table
            for name in policies:
                rows += _one(part, name, seed, config, rewards)
                bar.advance()
    return pd.DataFrame(rows, columns=COLUMNS)


def _one(
    table: ScoreTable, name: str, seed: int, config: BanditConfig, rewards: RewardsConfig
) -> list[tuple[Any, ...]]:
    problem = table.problem
    regret, within = table.regret(rewards)
    config = config.model_copy(update={"policy": name, "seed": seed})
    total = config.budget_for(*problem.shape)[0] or table.scores.size
    moments = {round(total * (k + 1) / STATEMENTS) for k in range(STATEMENTS)}
    rows: list[tuple[Any, ...]] = []
    cells = table.scores.size

    def row(arm: int, pulls: int, seconds: float, stated: float | None = None) -> None:
        at, said = regret[arm], float("nan") if stated is None else stated
        chosen = problem.arms[arm]
        rows.append((name, seed, pulls, seconds, chosen, at, at <= 0, at <= within, said, cells))

    def heard(policy: Policy, pulls: int, seconds: float) -> None:
        row(policy.leader(), pulls, seconds, policy.best().p_best if pulls in moments else None)

    score = table.score_fn(seed)
    outcome = loop.run(problem, score, config, rewards, on_observe=heard, quiet=True)
    if not rows:  # a policy that pulls nothing answers all the same
        row(problem.arms.index(outcome.answer.arm), 0, 0.0)
    return rows


# -- looking ---------------------------------------------------------------------------------------


def at_pulls(curves: pd.DataFrame, pulls: Sequence[int]) -> pd.DataFrame:
    """What each policy and seed believed after ``pulls`` pulls (or when it stopped before)."""
    import pandas as pd

    parts = []
    for k in pulls:
        known = curves[curves["pulls"] <= k].sort_values("pulls", kind="stable")
        last = known.groupby(["policy", "seed"], sort=False).tail(1)
        parts.append(last.assign(at=k))
    return pd.concat(parts, ignore_index=True)


def summary(curves: pd.DataFrame, pulls: Sequence[int] | None = None) -> pd.DataFrame:
    """Means over seeds with 95 % intervals, per policy and number of pulls.

    Columns: policy, pulls, seeds, regret, regret_low, regret_high (normal interval of the mean),
    best, within and within_low, within_high (Wilson intervals), all regrets in mean main score.
    """
    import pandas as pd

    if pulls is None:
        top = int(curves["pulls"].max())
        pulls = sorted({max(1, round(top * f)) for f in (0.1, 0.25, 0.5, 1.0)})
    rows = []
    for (policy, at), group in at_pulls(curves, pulls).groupby(["policy", "at"], sort=False):
        n = len(group)
        mean = float(group["regret"].mean())
        error = 1.96 * float(group["regret"].std(ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
        low, high = wilson(int(group["within"].sum()), n)
        rows.append(
            {
                "policy": policy,
                "pulls": at,
                "seeds": n,
                "regret": mean,
                "regret_low": max(0.0, mean - error),
                "regret_high": mean + error,
                "best": float(group["best"].mean()),
                "within": float(group["within"].mean()),
                "within_low": low,
                "within_high": high,
            }
        )
    return pd.DataFrame(rows).sort_values(["pulls", "regret"], ignore_index=True)


def found(curves: pd.DataFrame) -> pd.DataFrame:
    """Which arms the runs ended with: policy, arm, seeds (how many), of (all), regret of the arm.

    Most frequent first. The regret is the mean over those seeds, which may be of different parts of
    the table.
    """
    last = at_pulls(curves, [int(curves["pulls"].max())])
    counted = last.groupby(["policy", "arm"], sort=False).agg(
        seeds=("seed", "size"), regret=("regret", "mean")
    )
    counted["of"] = counted.groupby("policy")["seeds"].transform("sum")
    counted = counted.reset_index().sort_values(["seeds", "regret"], ascending=[False, True])
    order = {name: k for k, name in enumerate(dict.fromkeys(curves["policy"]))}
    return counted.sort_values("policy", key=lambda c: c.map(order), kind="stable").reset_index(
        drop=True
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def calibration(curves: pd.DataFrame, edges: Sequence[float] = (0, 0.5, 0.8, 0.95, 1.0)) -> Any:
    """Stated P(best) against how often the arm was the best, in bands of what was stated."""
    import pandas as pd

    stated = curves.dropna(subset=["p_best"])
    band = pd.cut(stated["p_best"], list(edges), include_lowest=True)
    grouped = stated.groupby(band, observed=True)
    return grouped.agg(
        statements=("p_best", "size"), stated=("p_best", "mean"), happened=("best", "mean")
    ).reset_index(names="band")
