"""Regret against what was extracted, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

#: What is paid, and how its axis is called.
AXES = {"forward": "part of all forward work", "checkpoints": "part of all checkpoints"}


def figure(curves: pd.DataFrame, path: str | Path, *, title: str = "") -> None:
    """Mean simple regret against forward work and checkpoints paid for, as PNG, SVG or PDF.

    Args:
        curves: of :func:`batchsweep.bandit.replay_extraction.replay_extraction`, of any number of
            seeds. A method is drawn from where all seeds know something.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(fig)
    for axis, (by, label) in zip(fig.subplots(1, 2), AXES.items(), strict=True):
        for k, (name, mine) in enumerate(curves.groupby("method", sort=False)):
            grid, mean = _mean(mine, by)
            style = {"marker": "o", "linestyle": "--"} if name == "every_nth" else {}
            axis.plot(grid, 100 * mean, color=f"C{k}", label=name, linewidth=1.6, **style)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("simple regret (points)")
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    if title:
        fig.suptitle(title)
    fig.savefig(path, dpi=130)


def _mean(curves: pd.DataFrame, by: str) -> tuple[np.ndarray, np.ndarray]:
    """(parts paid for, mean regret over seeds of what was known by then)."""
    seeds = [one.sort_values(by, kind="stable") for _, one in curves.groupby("seed")]
    first = max(float(one[by].iloc[0]) for one in seeds)
    last = max(float(one[by].iloc[-1]) for one in seeds)
    if curves["method"].iloc[0] == "every_nth":
        grid = np.unique(seeds[0][by].to_numpy(dtype=float))
    else:
        grid = np.geomspace(first, max(last, first * 1.001), 60)
    grid = grid[grid >= first - 1e-12]
    rows = []
    for one in seeds:
        at = np.searchsorted(one[by].to_numpy(dtype=float), grid + 1e-12, side="right") - 1
        rows.append(one["regret"].to_numpy(dtype=float)[np.maximum(at, 0)])
    return grid, np.array(rows).mean(axis=0)
