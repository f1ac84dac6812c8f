"""A replay as people read it, and the seeds as they write them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from batchsweep.bandit.replay import summary
from batchsweep.errors import UsageError
from batchsweep.table import Column, table_text


def text(curves: pd.DataFrame, pulls: Sequence[int] | None = None) -> str:
    """The summary as a table to print: regret in points (100 x score) with its interval."""
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
