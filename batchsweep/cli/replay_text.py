"""A replay as people read it, and the seeds as they write them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from batchsweep.bandit.replay import summary
from batchsweep.errors import UsageError


def text(curves: pd.DataFrame, pulls: Sequence[int] | None = None) -> str:
    """The summary as a table to print: regret in points (100 x score) with its interval."""
    rows = summary(curves, pulls)
    lines = [
        f"{'policy':<20} {'pulls':>6} {'seeds':>6} {'regret, points':>22} {'best':>6} "
        f"{'within 0.5 %':>20}"
    ]
    for row in rows.itertuples(index=False):
        interval = f"{100 * row.regret:.3f} ({100 * row.regret_low:.3f} to "
        interval += f"{100 * row.regret_high:.3f})"
        within = f"{row.within:.0%} ({row.within_low:.0%} to {row.within_high:.0%})"
        lines.append(
            f"{row.policy:<20} {row.pulls:>6} {row.seeds:>6} {interval:>22} {row.best:>6.0%} "
            f"{within:>20}"
        )
    return "\n".join(lines)


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
