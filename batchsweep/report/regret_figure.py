"""Regret against pulls, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from batchsweep.bandit.rewards import Floats

LABELS = (
    "simple regret (score)",
    "share of seeds at the best arm; dotted: stated P(best)",
    "share of seeds within 0.5 %",
)


def figure(curves: pd.DataFrame, path: str | Path, *, title: str = "") -> None:
    """Simple regret and what part of the seeds found the best arm, against pulls and seconds.

    Dotted, beside the part of the seeds: the P(best) that the policy states, where it states one.
    As PNG, SVG or PDF.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(2, 3)
    names = list(dict.fromkeys(curves["policy"]))
    for row, axis in enumerate(("pulls", "seconds")):
        top = float(curves[axis].max())
        grid = np.unique(np.geomspace(max(1.0, top / 500), max(top, 2.0), 60))
        for k, name in enumerate(names):
            mine = curves[curves["policy"] == name]
            for column, what in enumerate(("regret", "best", "within")):
                values = _on_grid(mine, axis, what, grid)
                mean = values.mean(axis=0)
                error = 1.96 * values.std(axis=0) / np.sqrt(len(values))
                colour = f"C{k % 10}"
                style = "-" if k < 10 else "--"
                ax = axes[row][column]
                ax.plot(grid, mean, color=colour, linestyle=style, label=name, linewidth=1.6)
                if what == "best" and mine["p_best"].notna().any():
                    stated = _on_grid(mine.dropna(subset=["p_best"]), axis, "p_best", grid)
                    ax.plot(grid, stated.mean(axis=0), color=colour, linestyle=":", linewidth=1.4)
                low = np.maximum(mean - error, 0.0)
                ax.fill_between(grid, low, mean + error, color=colour, alpha=0.12, linewidth=0)
        for column, label in enumerate(LABELS):
            ax = axes[row][column]
            ax.set_xscale("log")
            ax.set_xlabel(axis)
            ax.set_ylabel(label)
            ax.grid(alpha=0.25)
            if column:
                ax.set_ylim(-0.02, 1.02)
            else:
                ax.set_yscale("symlog", linthresh=1e-3)
                ax.set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8)
    if title:
        fig.suptitle(title)
    fig.savefig(path, dpi=130)


def _on_grid(curves: pd.DataFrame, axis: str, what: str, grid: Floats) -> Floats:
    """[seed, grid] the last value known at each point of the grid; the first one before it."""
    out = []
    for _, one in curves.groupby("seed", sort=False):
        x, y = one[axis].to_numpy(dtype=float), one[what].to_numpy(dtype=float)
        at = np.searchsorted(x, grid, side="right") - 1
        out.append(y[np.maximum(at, 0)])
    return np.array(out)
