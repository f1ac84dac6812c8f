"""Arms that nothing tells of: they are looked at, believed, and counted in what is stated."""

from __future__ import annotations

from typing import Any

import numpy as np
from simulated import play, problem_of, surface

from batchsweep.bandit.policies import make_policy
from batchsweep.bandit.policies.gp.kernel import NAMES
from batchsweep.bandit.policies.gp.posterior import Posterior


def shuffled(seed: int) -> tuple[Any, np.ndarray]:
    """A problem whose names, steps and depths tell nothing of the scores [arm, task]."""
    problem = problem_of(steps=8, layers=8, tasks=16)
    order = np.random.default_rng([seed, 1]).permutation(64)
    return problem, surface(problem, seed, noise=0.003)[order]


def test_an_arm_that_contradicts_its_neighbours_is_believed_and_they_are_not_moved():
    """An arm in the middle of its neighbours is 20 points better than all of them, on two tasks."""
    problem = problem_of(steps=6, layers=8, tasks=6)
    scores = surface(problem, noise=0.002)
    odd = 20
    rng = np.random.default_rng(0)
    cells = [divmod(int(c), 6) for c in rng.choice(scores.size, 90, replace=False)]
    cells = [c for c in cells if c[0] != odd] + [(odd, 0), (odd, 3)]
    found = {}
    for jump in (0.0, 0.2):
        model = Posterior(problem)
        for arm, task in cells:
            model.observe(arm, task, float(scores[arm, task]) + jump * (arm == odd))
        for _ in range(3):
            model.fit(scores.mean(axis=0), scores.std(axis=0))
        found[jump] = model
    usual, spiked = found[0.0], found[0.2]
    assert not usual.kernel.stranger.any()
    assert np.flatnonzero(spiked.kernel.stranger).tolist() == [odd]
    truth = scores.mean(axis=1)
    assert spiked.mean[odd] - truth[odd] > 0.12
    others = np.delete(np.abs(spiked.mean - truth), odd)
    assert others.mean() < 2 * np.delete(np.abs(usual.mean - truth), odd).mean() + 0.005


def test_arms_in_random_order_have_levels_of_their_own_and_are_stated_so():
    held, own = [], []
    for seed in range(4):
        problem, scores = shuffled(seed)
        policy: Any = make_policy("toptwo_gp", problem, seed=seed, budget=60)
        play(policy, scores, 60)
        mean, sd = policy.believed()
        unseen = np.isnan(policy.observed).all(axis=1)
        held += (np.abs(scores.mean(axis=1) - mean) <= 1.96 * sd)[unseen].tolist()
        own.append(np.exp(policy.posterior.hyper.log[NAMES.index("arm")]))
    # It was down to 0.02: what a task makes of the surface explained the arms away.
    assert np.median(own) > 0.3, own
    assert np.mean(held) > 0.85


def test_a_task_whose_few_cells_agree_is_not_taken_for_flat():
    """Most tasks were scored on two arms that are alike, two tasks on a good one and a bad one."""
    problem = problem_of(steps=8, layers=8, tasks=16)
    policy: Any = make_policy("toptwo_gp", problem, budget=60)
    for task in range(16):
        for arm, score in ((0, 0.3), (1, 0.5 if task < 2 else 0.301)):
            policy.posterior.observe(arm, task, score)
    _, spread = policy._scales()
    assert spread[2] > spread[0] / 2


def test_before_any_task_has_two_cells_differences_of_points_are_expected():
    problem = problem_of(steps=1, layers=8, tasks=16)
    policy: Any = make_policy("toptwo_gp", problem, budget=20)
    play(policy, surface(problem), 5)
    _, spread = policy._scales()
    np.testing.assert_allclose(spread, 0.03)


def looked(policy: Any, scores: np.ndarray, pulls: int) -> list[int]:
    """Arms that were pulled because nobody had looked at them."""
    made = play(policy, scores, pulls)
    return [arm for arm, _, reason in made if "nobody looked at" in reason]


def test_where_there_are_pulls_enough_every_arm_is_looked_at():
    problem = problem_of(steps=8, layers=8, tasks=16)
    scores = surface(problem)
    policy = make_policy("toptwo_gp", problem, budget=200)
    arms = looked(policy, scores, 200)
    assert len(arms) == len(set(arms)) > 0
    assert not np.isnan(policy.observed).all(axis=1).any()
    assert not looked(make_policy("toptwo_gp", problem, budget=100), scores, 100)


def test_only_arms_that_can_be_scored_are_looked_at():
    problem = problem_of(steps=8, layers=8, tasks=16)
    policy = make_policy("toptwo_gp", problem, budget=200)
    there = np.zeros(problem.shape, dtype=bool)
    there[problem.step > 1, :4] = True
    policy.restrict(there)
    arms = looked(policy, surface(problem), 120)
    assert arms and there[arms].any(axis=1).all()


def test_an_arm_that_stands_out_for_no_reason_is_found_once_every_arm_is_looked_at():
    found = []
    for seed in range(4):
        problem = problem_of(steps=8, layers=8, tasks=16)
        scores = surface(problem, seed, noise=0.003)
        arm = int(np.random.default_rng([seed, 5]).integers(64))
        scores[arm] = scores.mean(axis=0) + np.ptp(scores.mean(axis=1)) / 2 + 0.05
        policy = make_policy("toptwo_gp", problem, seed=seed, budget=200)
        play(policy, scores, 200)
        found.append(policy.leader() == int(scores.mean(axis=1).argmax()))
    assert np.mean(found) >= 0.75
