"""A small problem for policies, with scores of a known shape."""

from __future__ import annotations

import numpy as np

from batchsweep.bandit.policies import Policy, Problem


def problem_of(steps: int = 4, layers: int = 5, tasks: int = 3, models: int = 1) -> Problem:
    arms, model, step, depth = [], [], [], []
    for m in range(models):
        for s in range(steps):
            for layer in range(1, layers + 1):
                arms.append(f"m{m}/step{10**s}#{layer}")
                model.append(f"m{m}")
                step.append(10.0**s)
                depth.append(layer / layers)
    metric = np.array(depth) + 0.1 * np.log1p(step)
    metric[0] = np.nan
    return Problem(
        arms=tuple(arms),
        tasks=tuple(f"task{t}" for t in range(tasks)),
        model=tuple(model),
        step=np.array(step),
        depth=np.array(depth),
        metrics={"entropy": metric, "constant": np.ones(len(arms))},
    )


def surface(problem: Problem, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """[arm, task] scores with a peak at the last step, 60 % depth, on tasks of unlike levels."""
    rng = np.random.default_rng(seed)
    late = np.log1p(problem.step) / np.log1p(problem.step.max())
    quality = 0.3 * late - 0.5 * (problem.depth - 0.6) ** 2
    spread = rng.uniform(0.3, 1.5, problem.shape[1])
    level = rng.uniform(0.2, 0.8, problem.shape[1])
    return level + quality[:, None] * spread + noise * rng.normal(size=problem.shape)


def play(
    policy: Policy, scores: np.ndarray, pulls: int, batch: int = 1
) -> list[tuple[int, int, str]]:
    """Tell what is asked, until ``pulls`` are made or nothing is left to ask."""
    arms = {a: i for i, a in enumerate(policy.problem.arms)}
    tasks = {t: i for i, t in enumerate(policy.problem.tasks)}
    made: list[tuple[int, int, str]] = []
    while len(made) < pulls:
        asked = policy.ask(min(batch, pulls - len(made)))
        if not asked:
            break
        assert len(asked) <= batch
        for pull in asked:
            a, t = arms[pull.arm], tasks[pull.task]
            policy.observe(pull.arm, pull.task, float(scores[a, t]), seconds=1.0 + t)
            made.append((a, t, pull.reason))
    return made
