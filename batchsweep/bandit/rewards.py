"""Rewards: how main scores of different tasks become comparable, and one number per arm.

A main score of 0.5 is good on one task and poor on another, and tasks differ tenfold in how far
their scores spread. ``scale`` makes the cells comparable, ``aggregate`` makes one number of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchsweep.errors import UsageError

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Part of the tasks that ``robust_mean`` leaves out at each end.
TRIMMED = 0.1


@dataclass(frozen=True, eq=False)
class Scale:
    """reward = (score - centre) / spread, per task.

    Attributes:
        kind: ``z`` or ``raw``.
        centre, spread: [task]; 0 and 1 for ``raw``.
        layers: how many baseline layers they rest on.
    """

    kind: Literal["z", "raw"]
    centre: Floats
    spread: Floats
    layers: int

    def reward(self, score: float, task: int) -> float:
        """One task's main score to a reward."""
        return float((score - self.centre[task]) / self.spread[task])

    def rewards(self, score_AT: Floats) -> Floats:
        """[..., task] main scores to rewards."""
        return (score_AT - self.centre) / self.spread

    def score(self, reward_AT: Floats) -> Floats:
        """[..., task] rewards back to main scores."""
        return reward_AT * self.spread + self.centre

    @property
    def unit(self) -> float:
        """Rewards per unit of mean main score: 1 for ``raw``."""
        return float(np.mean(1 / self.spread))


def raw_scale(tasks: int) -> Scale:
    """Rewards are the main scores themselves."""
    return Scale("raw", np.zeros(tasks), np.ones(tasks), 0)


def z_scale(baseline_AT: Floats) -> Scale:
    """Mean 0 and about unit spread per task over all layers of the baseline checkpoint.

    A task's variance is averaged with that of the median task. Where all layers score alike, a
    difference too small to matter would otherwise outweigh all other tasks; so none counts more
    than 1.4 times as much as with the median's spread.

    Args:
        baseline_AT: [arm, task] main scores of the baseline's layers.
    """
    variance = baseline_AT.var(axis=0)
    usual = float(np.median(variance)) or float(variance.mean()) or 1.0
    spread = np.sqrt((variance + usual) / 2)
    return Scale("z", baseline_AT.mean(axis=0), spread, len(baseline_AT))


def aggregate(plane_AT: Floats, how: str) -> Floats:
    """[arm] one number per arm from [arm, task] rewards without gaps.

    ``mean``; ``robust_mean``: the mean without the highest and lowest 10 % of an arm's tasks;
    ``rank``: the mean over tasks of the part of the other arms that the arm beats (0 to 1, ties
    count half).
    """
    arms, tasks = plane_AT.shape
    if how == "mean":
        return np.asarray(plane_AT.mean(axis=1))
    if how == "robust_mean":
        cut = int(np.ceil(TRIMMED * tasks)) if tasks > 2 else 0
        return np.asarray(np.sort(plane_AT, axis=1)[:, cut : tasks - cut].mean(axis=1))
    if how == "rank":
        from scipy.stats import rankdata

        return np.asarray((rankdata(plane_AT, axis=0) - 1).mean(axis=1) / max(arms - 1, 1))
    raise UsageError(f"no aggregate '{how}'; valid: mean, robust_mean, rank")


def describe(scale: str, how: str, target: str | None, tasks: Sequence[str]) -> str:
    """One line that says what the reward is, for reports."""
    cells = "main scores" if scale == "raw" else "main scores, z-scored against the baseline layers"
    which = f"{len(tasks)} tasks" if target is None else f"{len(tasks)} {target} tasks"
    return f"{how.replace('_', ' ')} over {which} of {cells}"
