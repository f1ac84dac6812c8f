"""Families of synthetic time-layer planes with known truth, for benchmarks of policies.

Those that ``plan --search`` simulates with, one that misleads, and label-free metrics.
"""

from __future__ import annotations

import numpy as np

from batchsweep.bandit.policies import Problem
from batchsweep.bandit.score_table import ScoreTable
from batchsweep.bandit.surfaces import FAMILIES as PLAIN
from batchsweep.bandit.surfaces import qualities, scores_of, smooth

#: arms -> (models, checkpoints, layers, tasks)
SHAPES = {
    48: (1, 8, 6, 12),
    96: (1, 12, 8, 24),
    288: (1, 12, 24, 32),
    1080: (3, 15, 24, 32),
    5544: (3, 154, 12, 32),
}
FAMILIES = (*PLAIN, "misleading")


def make(family: str, arms: int, seed: int, *, noise: float = 0.0, metrics: bool = True):
    """One random plane of a family.

    ``misleading``: as ``mid``, with label-free metrics that point the wrong way near the top. In
    the others two of four metrics follow the quality loosely and two are noise.
    """
    models, checkpoints, layers, tasks = SHAPES[arms]
    rng = np.random.default_rng([FAMILIES.index(family), arms, seed])
    steps = np.unique(np.round(np.geomspace(1, 143_000, checkpoints * 3)))
    steps = steps[np.linspace(0, len(steps) - 1, checkpoints).round().astype(int)]
    if checkpoints > 100:  # as published: powers of two, then every thousand
        steps = np.array([0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)])
    step = np.tile(np.repeat(steps, layers), models).astype(float)
    depth = np.tile(np.arange(1, layers + 1) / layers, checkpoints * models)
    model = np.repeat(np.arange(models), checkpoints * layers)
    u = np.log1p(step) / np.log1p(step.max())

    names = tuple(f"m{m}" for m in model)
    quality = qualities(rng, family, names, u, depth)
    scores = scores_of(rng, family, quality, u, depth, tasks)
    seconds = np.exp(rng.normal(2.5, 1.5, tasks))[None, :] * np.exp(
        rng.normal(0, 0.1, scores.shape)
    )
    truth = scores.mean(axis=1)
    problem = Problem(
        arms=tuple(
            f"m{m}/step{int(s)}#{round(d * layers)}"
            for m, s, d in zip(model, step, depth, strict=True)
        ),
        tasks=tuple(f"task{t}" for t in range(tasks)),
        model=names,
        step=step,
        depth=depth,
        metrics=_metrics(rng, family, truth, u, depth) if metrics else {},
    )
    return ScoreTable(problem, scores, seconds, noise)


def _metrics(rng, family, truth, u, depth):
    spread = np.std(truth)
    loose = truth + 0.5 * spread * smooth(rng, u, depth, 0.3)
    other = -truth + 0.7 * spread * smooth(rng, u, depth, 0.3)
    if family == "misleading":
        top = truth > np.quantile(truth, 0.6)
        # Right about training, upside down where it matters.
        loose = np.where(top, np.quantile(truth, 0.6) * 2 - truth, truth)
        other = np.where(top, truth, -truth) * 3 + 0.2 * spread * smooth(rng, u, depth, 0.3)
    return {
        "entropy": np.exp(3 * loose),
        "curvature": other,
        "lidar": smooth(rng, u, depth, 0.3),
        "infonce": rng.normal(size=len(u)),
    }
