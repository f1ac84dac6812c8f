"""A replay as people read it, and its options as they write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from batchsweep.bandit.policies import POLICIES
from batchsweep.bandit.replay import calibration, found, summary
from batchsweep.bandit.replay_extraction import at_forward
from batchsweep.config import BanditConfig, Config, PullBudget, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.table import Column, table_text

#: Arms that are named per policy.
NAMED = 3


def text(curves: pd.DataFrame, pulls: Sequence[int] | None = None) -> str:
    """Tables to print: regret in points (100 x score), arms found, and what was stated."""
    titles = ("pulls", "seeds", "regret, points", "best", "within 0.5 %")
    columns = [Column("policy"), *(Column(title, right=True) for title in titles)]
    rows = [
        (
            row.policy,
            str(row.pulls),
            str(row.seeds),
            f"{100 * row.regret:.3f} ({100 * row.regret_low:.3f} to {100 * row.regret_high:.3f})",
            f"{row.best:.0%}",
            f"{row.within:.0%} ({row.within_low:.0%} to {row.within_high:.0%})",
        )
        for row in summary(curves, pulls).itertuples(index=False)
    ]
    return "\n".join([table_text(columns, rows), _found(curves), _calibration(curves)]).rstrip("\n")


def _found(curves: pd.DataFrame) -> str:
    """Which arms the runs ended with, and in how many seeds."""
    rows = []
    for policy, arms in found(curves).groupby("policy", sort=False):
        for arm in arms.head(NAMED).itertuples(index=False):
            seeds = f"{arm.seeds} of {arm.of}"
            rows.append((str(policy), arm.arm, seeds, f"{100 * arm.regret:.3f}"))
        rest = arms[NAMED:]
        if len(rest):
            seeds = f"{rest['seeds'].sum()} of {rest['of'].iloc[0]}"
            regret = float((rest["regret"] * rest["seeds"]).sum() / rest["seeds"].sum())
            rows.append((str(policy), f"{len(rest)} others", seeds, f"{100 * regret:.3f}"))
    columns = [Column("policy"), Column("answer at the end"), Column("seeds", right=True)]
    return table_text([*columns, Column("regret, points", right=True)], rows)


def _calibration(curves: pd.DataFrame) -> str:
    """How often a stated P(best) was true, for each policy that states one."""
    rows = [
        (
            str(policy),
            f"{max(row.band.left, 0):g} to {row.band.right:g}",
            str(row.statements),
            f"{row.stated:.2f}",
            f"{row.happened:.2f}",
        )
        for policy, mine in curves.groupby("policy", sort=False)
        for row in calibration(mine).itertuples(index=False)
    ]
    if not rows:
        return ""
    titles = ("stated P(best)", "statements", "on average", "share that was true")
    return table_text([Column("policy"), *(Column(t, right=True) for t in titles)], rows)


def settings_of(
    config: Config | None, budget: float | None, pulls: int | None
) -> tuple[BanditConfig, RewardsConfig]:
    """What a replay runs with: the config's settings, and the budget of the command line.

    Raises:
        UsageError: a budget that is none.
    """
    for name, value in (("budget", budget), ("pulls", pulls)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} {value}: give a number above 0")
    if config is None:
        bandit, rewards = BanditConfig(budget=10, final_check=0, stop_at_regret=0), RewardsConfig()
    else:
        bandit, rewards = config.bandit, config.rewards
    spent = PullBudget(pulls=pulls) if pulls is not None else budget
    return bandit if spent is None else bandit.model_copy(update={"budget": spent}), rewards


def names_of(spelled: str) -> list[str]:
    """The policies of ``toptwo_gp,random``.

    Raises:
        UsageError: there is no such policy, or none is named.
    """
    names = list(dict.fromkeys(name.strip() for name in spelled.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        wrong = unknown[0] if unknown else spelled
        raise UsageError(f"--policy '{wrong}': no such policy; valid: {', '.join(POLICIES)}")
    return names


def extraction_text(curves: pd.DataFrame) -> str:
    """What each way to choose pairs knew for so much forward work, as a table to print."""
    top = float(curves.loc[curves["method"] != "every_nth", "forward"].max())
    parts = [top * share for share in (0.1, 0.25, 0.5, 1.0)]
    rows = []
    for (method, part), known in at_forward(curves, parts).groupby(["method", "at"], sort=False):
        regret = 100 * known["regret"]
        rows.append(
            (
                str(method),
                f"{part:.2%}",
                f"{known['checkpoints'].mean():.1%}",
                f"{known['pairs'].mean():.1%}",
                str(len(known)),
                f"{regret.mean():.3f}",
                f"{regret.max():.3f}",
                f"{known['within'].mean():.0%}",
            )
        )
    titles = ("forward", "checkpoints", "pairs", "seeds", "regret, points", "worst", "within 0.5 %")
    columns = [Column("pairs chosen by"), *(Column(title, right=True) for title in titles)]
    return table_text(columns, rows).rstrip("\n")


def seeds_of(spelled: str) -> range:
    """``0:40`` is seeds 0 to 39; ``7`` is seed 7 alone.

    Raises:
        UsageError: it is neither, or empty.
    """
    first, colon, end = spelled.partition(":")
    try:
        seeds = range(int(first), int(end) if colon else int(first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds or seeds.start < 0:
        raise UsageError(f"seeds '{spelled}': give a range such as 0:40, or one number")
    return seeds
