"""Simulated planes of scores with known truth: what a search would need before anything is scored.

None is fitted to a published table. What they share with published ones: scores rise with the log
of the step and level off, depth matters less than training, neighbours resemble each other, later
models are a little better, tasks differ in level, in spread and in how far they go along with the
common surface.
"""

from __future__ import annotations

import numpy as np

from batchsweep.bandit.policies.base import Floats, Problem
from batchsweep.bandit.score_table import ScoreTable

#: ``mid``: the optimum lies in the middle of the depth; ``late``: at the last layers and steps;
#: ``rugged``: layers, checkpoints and arms have large terms of their own.
FAMILIES = ("mid", "late", "rugged")


def simulated(problem: Problem, family: str, seed: int) -> ScoreTable:
    """A complete table of scores for a problem's arms and tasks; every cell takes a second."""
    rng = np.random.default_rng([FAMILIES.index(family), len(problem.arms), seed])
    time = np.log1p(problem.step) / max(float(np.log1p(problem.step.max())), 1e-9)
    quality = qualities(rng, family, problem.model, time, problem.depth)
    scores = scores_of(rng, family, quality, time, problem.depth, len(problem.tasks))
    return ScoreTable(problem, scores, np.ones(scores.shape))


def qualities(
    rng: np.random.Generator, family: str, model: tuple[str, ...], time: Floats, depth: Floats
) -> Floats:
    """[arm] the common surface, one for each model.

    Args:
        time: [arm] log of the step, 0 to 1.
        depth: [arm] part of the model's layers, up to 1.
    """
    models = list(dict.fromkeys(model))
    quality = np.zeros(len(model))
    top = np.sort(rng.normal(0, 0.02, len(models)))
    for level, name in zip(top, models, strict=True):
        mine = np.array([one == name for one in model])
        quality[mine] = level + _one_model(rng, family, time[mine], depth[mine])
    return quality


def _one_model(rng: np.random.Generator, family: str, time: Floats, depth: Floats) -> Floats:
    start, sharp = rng.uniform(0.4, 0.65), rng.uniform(8, 16)
    growth = 1 / (1 + np.exp(-sharp * (time - start)))
    last, middle = rng.uniform(0.9, 1.15), rng.uniform(0.35, 0.85)
    peak = last if family == "late" else middle
    drift = rng.uniform(-0.15, 0.15)
    width, height = rng.uniform(0.3, 0.7), rng.uniform(0.03, 0.1)
    bump = -height * ((depth - peak - drift * (time - 1)) / width) ** 2
    decay = 0.0 if family == "late" else rng.uniform(0, 0.03)
    turn = rng.uniform(0.85, 1.0)
    forget = -decay * np.maximum(time - turn, 0) / (1 - turn + 1e-9) * depth
    big = 2.5 if family == "rugged" else 1.0
    depths, layer = np.unique(depth, return_inverse=True)
    of_layer = rng.normal(0, 0.003 * big, len(depths))[layer]
    times, at = np.unique(time, return_inverse=True)
    of_checkpoint = rng.normal(0, 0.002 * big, len(times))[at]
    arm = rng.normal(0, 0.001 * big, len(time))
    wave = smooth(rng, time, depth, 0.25) * 0.006
    value = 0.22 * growth + growth * (bump + of_layer + of_checkpoint + wave)
    return np.asarray(value + forget * growth + arm)


def scores_of(
    rng: np.random.Generator, family: str, quality: Floats, time: Floats, depth: Floats, tasks: int
) -> Floats:
    """[arm, task] scores that follow a common surface more or less."""
    level = rng.uniform(0.05, 0.5, tasks)
    slope = np.exp(rng.normal(-0.1, 0.6, tasks))
    slope = slope / slope.mean()
    grown = (quality - quality.min()) / max(float(np.ptp(quality)), 1e-9)
    common = np.column_stack([smooth(rng, time, depth, 0.35) for _ in range(2)])
    follows = rng.normal(0, 0.005, (2, tasks))
    size = np.exp(rng.normal(np.log(0.008), 0.6, tasks))
    own = np.column_stack([smooth(rng, time, depth, 0.35) for _ in range(tasks)]) * size
    rough = np.exp(rng.normal(np.log(0.004), 0.5, tasks)) * (1.5 if family == "rugged" else 1.0)
    cell = rng.normal(size=(len(time), tasks)) * rough
    return np.asarray(
        level + quality[:, None] * slope + grown[:, None] * (common @ follows + own) + cell
    )


def smooth(rng: np.random.Generator, time: Floats, depth: Floats, length: float) -> Floats:
    """A random smooth function of (time, depth) with about unit variance (random Fourier
    features: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", 2007)."""
    count = 40
    frequency = rng.normal(0, 1 / length, (2, count))
    phase = rng.uniform(0, 2 * np.pi, count)
    waves = np.cos(np.column_stack([time, depth]) @ frequency + phase)
    return np.asarray(waves @ rng.normal(size=count) * np.sqrt(2 / count))
