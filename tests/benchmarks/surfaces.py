"""Families of synthetic time-layer planes with known truth, for benchmarks of policies.

None is fitted to a published table. What they share with published ones: scores rise with the log
of the step and level off, depth matters less than training, neighbours resemble each other, tasks
differ in level, in spread and in how far they go along with the common surface.
"""

from __future__ import annotations

import numpy as np

from batchsweep.bandit.policies import Problem
from batchsweep.bandit.replay import ScoreTable

#: arms -> (models, checkpoints, layers, tasks)
SHAPES = {
    48: (1, 8, 6, 12),
    96: (1, 12, 8, 24),
    288: (1, 12, 24, 32),
    1080: (3, 15, 24, 32),
    5544: (3, 154, 12, 32),
}
FAMILIES = ("mid", "late", "rugged", "misleading")


def make(family: str, arms: int, seed: int, *, noise: float = 0.0, metrics: bool = True):
    """One random plane of a family.

    ``mid``: the optimum lies in the middle of the depth; ``late``: at the last layers and steps;
    ``rugged``: layers, checkpoints and arms have large terms of their own; ``misleading``: as
    ``mid``, with label-free metrics that point the wrong way near the top. In the others two of
    four metrics follow the quality loosely and two are noise.
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

    quality = np.zeros(len(step))
    top_level = np.sort(rng.normal(0, 0.02, models))
    for m in range(models):
        mine = model == m
        quality[mine] = top_level[m] + _one_model(rng, family, u[mine], depth[mine], layers)
    scores = _tasks(rng, quality, u, depth, tasks, family)
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
        model=tuple(f"m{m}" for m in model),
        step=step,
        depth=depth,
        metrics=_metrics(rng, family, truth, u, depth) if metrics else {},
    )
    return ScoreTable(problem, scores, seconds, noise)


def _one_model(rng, family, u, depth, layers):
    start, sharp = rng.uniform(0.4, 0.65), rng.uniform(8, 16)
    growth = 1 / (1 + np.exp(-sharp * (u - start)))
    peak = {"late": rng.uniform(0.9, 1.15)}.get(family, rng.uniform(0.35, 0.85))
    drift = rng.uniform(-0.15, 0.15)
    width, height = rng.uniform(0.3, 0.7), rng.uniform(0.03, 0.1)
    bump = -height * ((depth - peak - drift * (u - 1)) / width) ** 2
    decay = 0.0 if family == "late" else rng.uniform(0, 0.03)
    turn = rng.uniform(0.85, 1.0)
    forget = -decay * np.maximum(u - turn, 0) / (1 - turn + 1e-9) * depth
    big = 2.5 if family == "rugged" else 1.0
    layer = rng.normal(0, 0.003 * big, layers)[np.round(depth * layers).astype(int) - 1]
    distinct, at = np.unique(u, return_inverse=True)
    checkpoint = rng.normal(0, 0.002 * big, len(distinct))[at]
    arm = rng.normal(0, 0.001 * big, len(u))
    wave = _smooth(rng, u, depth, 0.25) * 0.006
    return 0.22 * growth + growth * (bump + layer + checkpoint + wave) + forget * growth + arm


def _smooth(rng, u, depth, length):
    """A random smooth function of (u, depth) with about unit variance (random Fourier features)."""
    k = 40
    frequency = rng.normal(0, 1 / length, (2, k))
    phase = rng.uniform(0, 2 * np.pi, k)
    waves = np.cos(np.column_stack([u, depth]) @ frequency + phase)
    return waves @ rng.normal(size=k) * np.sqrt(2 / k)


def _tasks(rng, quality, u, depth, tasks, family):
    level = rng.uniform(0.05, 0.5, tasks)
    slope = np.exp(rng.normal(-0.1, 0.6, tasks))
    slope = slope / slope.mean()
    grown = np.clip((quality - quality.min()) / np.ptp(quality), 0, 1)[:, None]
    common = np.column_stack([_smooth(rng, u, depth, 0.35) for _ in range(2)])
    follows = rng.normal(0, 0.005, (2, tasks))
    size = np.exp(rng.normal(np.log(0.008), 0.6, tasks))
    own = np.column_stack([_smooth(rng, u, depth, 0.35) for _ in range(tasks)]) * size
    rough = np.exp(rng.normal(np.log(0.004), 0.5, tasks)) * (1.5 if family == "rugged" else 1.0)
    cell = rng.normal(size=(len(u), tasks)) * rough
    return level + quality[:, None] * slope + grown * (common @ follows + own) + cell


def _metrics(rng, family, truth, u, depth):
    spread = np.std(truth)
    loose = truth + 0.5 * spread * _smooth(rng, u, depth, 0.3)
    other = -truth + 0.7 * spread * _smooth(rng, u, depth, 0.3)
    if family == "misleading":
        top = truth > np.quantile(truth, 0.6)
        # Right about training, upside down where it matters.
        loose = np.where(top, np.quantile(truth, 0.6) * 2 - truth, truth)
        other = np.where(top, truth, -truth) * 3 + 0.2 * spread * _smooth(rng, u, depth, 0.3)
    return {
        "entropy": np.exp(3 * loose),
        "curvature": other,
        "lidar": _smooth(rng, u, depth, 0.3),
        "infonce": rng.normal(size=len(u)),
    }
