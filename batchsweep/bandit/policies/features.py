"""Features of arms that policies share."""

from __future__ import annotations

import numpy as np

from batchsweep.bandit.policies.base import Floats, Problem


def standardise(column: Floats) -> Floats:
    """Zero mean, unit standard deviation; NaN and constant columns become 0."""
    known = np.isfinite(column)
    if not known.any():
        return np.zeros_like(column)
    centred = np.where(known, column - column[known].mean(), 0.0)
    spread = float(np.sqrt((centred[known] ** 2).mean()))
    return centred / spread if spread > 1e-12 else np.zeros_like(column)


def rank_normalise(column: Floats) -> Floats:
    """Ranks mapped to -1..1 (ties share their mean rank); NaN becomes 0, the middle.

    Metrics have wild scales and outliers (an untrained checkpoint's entropy); only their order
    carries over between models.
    """
    known = np.isfinite(column)
    out = np.zeros_like(column)
    if known.sum() > 1:
        from scipy.stats import rankdata

        ranks = rankdata(column[known])
        out[known] = 2 * (ranks - 1) / (known.sum() - 1) - 1
    return out


def log_step(problem: Problem) -> Floats:
    """[arm] log(1 + step), scaled to 0..1 over the problem."""
    value = np.log1p(np.maximum(problem.step, 0.0))
    top = float(value.max())
    return value / top if top > 0 else value
