"""The Gaussian process: the incremental posterior against textbook algebra, and what it is for."""

from __future__ import annotations

import dataclasses
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.linalg import solve_triangular
from simulated import play, problem_of, surface

from batchsweep.bandit.policies import make_policy
from batchsweep.bandit.policies.gp.kernel import LOG_SD, NAMES, OFFSET_SD, TASK_LOG_SD, Hyper
from batchsweep.bandit.policies.gp.policy import MISFIT
from batchsweep.bandit.policies.gp.posterior import JITTER, Posterior


@pytest.fixture
def problem():
    return problem_of(steps=4, layers=5, tasks=3, models=2)


@pytest.fixture
def filled(problem):
    scores = surface(problem)
    rng = np.random.default_rng(0)
    model = Posterior(problem)
    hyper = Hyper.prior(3)
    model.hyper = Hyper(
        hyper.log + 0.2 * rng.normal(size=len(NAMES)),
        0.3 * rng.normal(size=3),
        0.3 * rng.normal(size=3),
    )
    model.spread[:] = (0.1, 0.2, 0.05)
    model.centre[:] = (0.3, 0.5, 0.4)
    model.rebuild()
    cells = rng.choice(scores.size, 30, replace=False)
    for cell in cells:
        arm, task = divmod(int(cell), 3)
        model.observe(arm, task, float(scores[arm, task]), noise=0.01 * (task == 1))
    return model, scores, cells


def textbook(model, scores, cells):
    """Posterior mean [arm] and covariance [arm, arm] of rewards, by one dense solve."""
    arms, tasks = scores.shape
    every = np.arange(arms)
    shared, own = model.kernel.between(every, every)
    load, ratio = np.exp(model.hyper.loading), np.exp(model.hyper.residual)
    cell_term = np.exp(2 * model.hyper.log[NAMES.index("own_cell")]) * np.eye(arms)
    a, t = np.divmod(np.arange(arms * tasks), tasks)
    own_full = (own + cell_term)[np.ix_(a, a)] * (t[:, None] == t[None, :]) * ratio[t] ** 2
    unit = np.outer(load[t], load[t]) * (shared[np.ix_(a, a)] + own_full)
    unit += OFFSET_SD**2 * (t[:, None] == t[None, :])
    cov = unit * np.outer(model.spread[t], model.spread[t])
    mean = model.centre[t] + model.spread[t] * load[t] * model.kernel.mean[a]
    noise = JITTER * model.spread[t[cells]] ** 2 + (0.01 * (t[cells] == 1)) ** 2
    gain = np.linalg.solve(cov[np.ix_(cells, cells)] + np.diag(noise), cov[cells]).T
    post_mean = mean + gain @ (scores.ravel()[cells] - mean[cells])
    post = cov - gain @ cov[cells]
    average = np.kron(np.eye(arms), np.full((1, tasks), 1 / tasks))
    return average @ post_mean, average @ post @ average.T, post_mean, post


def test_incremental_posterior_is_the_textbook_posterior(filled):
    model, scores, cells = filled
    mean, cov, cell_mean, cell_cov = textbook(model, scores, cells)
    every = np.arange(len(mean))
    np.testing.assert_allclose(model.mean, mean, atol=1e-8)
    np.testing.assert_allclose(model.var, np.diag(cov), atol=1e-8)
    np.testing.assert_allclose(model.covariance(every, every), cov, atol=1e-8)
    np.testing.assert_allclose(model.covariance_row(4), cov[4], atol=1e-8)
    np.testing.assert_allclose(model.plane().ravel(), cell_mean, atol=1e-8)
    contrast = model.gains({3: 1.0, 11: -1.0}, every)
    average = np.full(3, 1 / 3)
    by_arm = cell_cov.reshape(len(mean), 3, -1).transpose(0, 2, 1) @ average
    expected = (by_arm[3] - by_arm[11]).reshape(len(mean), 3) / model.spread
    np.testing.assert_allclose(contrast, expected, atol=1e-7)
    arm, task = np.array([0, 5, 9]), np.array([0, 1, 2])
    np.testing.assert_allclose(
        model.cell_variance(arm, task),
        np.maximum(np.diag(cell_cov)[arm * 3 + task] / model.spread[task] ** 2, JITTER),
        atol=1e-6,
    )


def test_solving_copies_no_part_of_the_factor(problem):
    """To the last bit what scipy says, which copies the factor each time: 128 MB at 4,000 cells."""
    model, n = Posterior(problem), 700
    model._grow(1000)
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(scale=0.02, size=(n, n))) + 2 * np.eye(n)
    model._chol[:n, :n] = factor
    for right in (rng.normal(size=n), rng.normal(size=(5, n)).T):
        for back in (False, True):
            expected = solve_triangular(factor, right, lower=True, trans=int(back))
            tracemalloc.start()
            solved = model._solve(n, right, back=back)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            np.testing.assert_array_equal(solved, expected)
            assert peak < factor.nbytes / 10


def test_covariances_that_are_asked_for_again_are_those_of_now(filled) -> None:
    model, scores, cells = filled
    every = np.arange(len(scores))
    arm, task = divmod(int(np.setdiff1d(np.arange(scores.size), cells)[0]), scores.shape[1])
    changes = [
        lambda: model.observe(arm, task, None),
        lambda: model.observe(arm, task, 0.4, noise=0.05),
        lambda: model.observe(arm, (task + 1) % 3, 0.4),
        lambda: model.fit(model.centre, model.spread),
    ]
    for change in changes:
        before = model.covariance_row(4).copy()
        change()
        now = model.covariance_row(4)
        assert not np.allclose(before, now, rtol=1e-6, atol=0)
        np.testing.assert_allclose(now, model.covariance(every, every)[4], atol=1e-10)


def test_rebuilding_changes_nothing(filled):
    model, _, _ = filled
    mean, var = model.mean.copy(), model.var.copy()
    model.rebuild()
    np.testing.assert_allclose(model.mean, mean, atol=1e-10)
    np.testing.assert_allclose(model.var, var, atol=1e-10)


def test_pending_cells_shrink_variance_only_and_may_be_told_in_any_order(problem):
    scores = surface(problem)
    straight, batched = Posterior(problem), Posterior(problem)
    cells = [(0, 0), (3, 1), (7, 2), (12, 0), (20, 1)]
    for a, t in cells:
        straight.observe(a, t, float(scores[a, t]))
    before = batched.mean.copy()
    for a, t in cells:
        batched.observe(a, t, None)
    np.testing.assert_array_equal(batched.mean, before)
    np.testing.assert_allclose(batched.var, straight.var, atol=1e-12)
    assert batched.pending == 5
    for a, t in reversed(cells):
        batched.observe(a, t, float(scores[a, t]))
    np.testing.assert_allclose(batched.mean, straight.mean, atol=1e-12)
    assert batched.pending == 0


def fitted(model, centre, spread):
    """The model with hyperparameters fitted to its cells."""
    model.fit(centre, spread)


def test_gradient_of_the_likelihood(filled):
    model, _, _ = filled
    objective = model.prepare_fit(model.centre, model.spread).objective
    at = 0.3 * np.random.default_rng(1).normal(size=len(model.hyper.flat()))
    gradient = objective(at)[1]
    step = 1e-5 * np.eye(len(at))
    numeric = [(objective(at + s)[0] - objective(at - s)[0]) / 2e-5 for s in step]
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_likelihood_is_the_textbook_likelihood(filled):
    """With the prior's part taken off: of a normal distribution with the model's own covariance."""
    from scipy.stats import multivariate_normal

    model, scores, cells = filled
    fit = model.prepare_fit(model.centre, model.spread)
    tasks = scores.shape[1]
    width = np.concatenate([[LOG_SD[name] for name in NAMES], np.full(2 * tasks, TASK_LOG_SD)])
    x = (model.hyper.flat() - Hyper.prior(tasks).flat()) / width
    arm, task = np.divmod(cells, scores.shape[1])
    every = np.arange(scores.shape[0])
    shared, own = model.kernel.between(every, every)
    same = task[:, None] == task[None, :]
    unit = np.outer(model.load[task], model.load[task]) * shared[np.ix_(arm, arm)]
    cell = model.kernel.var["own_cell"] * (arm[:, None] == arm[None, :])
    own_part = np.outer(model.own[task], model.own[task]) * (own[np.ix_(arm, arm)] + cell)
    unit += same * (own_part + OFFSET_SD**2)
    noise = JITTER + (0.01 * (task == 1) / model.spread[task]) ** 2
    value = (scores.ravel()[cells] - model.centre[task]) / model.spread[task]
    normal = multivariate_normal(model.load[task] * model.kernel.mean[arm], unit + np.diag(noise))
    expected = -normal.logpdf(value) - len(cells) / 2 * np.log(2 * np.pi) + 0.5 * x @ x
    np.testing.assert_allclose(fit.objective(x)[0], expected, rtol=1e-8)


def test_fit_learns_that_a_task_goes_its_own_way(problem):
    """A task of pure noise gets a smaller loading or a larger residual than the others."""
    rng = np.random.default_rng(0)
    scores = surface(problem_of(6, 8, 4), noise=0.001)
    scores[:, 2] = 0.5 + 0.05 * rng.normal(size=len(scores))
    big = problem_of(6, 8, 4)
    model = Posterior(big)
    for cell in rng.choice(scores.size, 100, replace=False):
        arm, task = divmod(int(cell), 4)
        model.observe(arm, task, float(scores[arm, task]))
    fitted(model, scores.mean(axis=0), scores.std(axis=0))
    assert np.argmax(model.hyper.residual) == 2


def test_useless_metrics_are_shrunk():
    """Metrics of pure noise end with a smaller amplitude than metrics that tell the quality."""
    fits = {}
    for kind in ("noise", "quality"):
        base = problem_of(6, 8, 4)
        rng = np.random.default_rng(0)
        noise = rng.normal(size=48)
        # Quality that steps and depths can't explain: only the metric does.
        scores = surface(base, noise=0.001) + 0.05 * noise[:, None]
        mine = noise if kind == "quality" else rng.normal(size=48)
        model = Posterior(dataclasses.replace(base, metrics={"m": mine}))
        for cell in rng.choice(scores.size, 120, replace=False):
            model.observe(*divmod(int(cell), 4), float(scores.ravel()[cell]))
        fitted(model, scores.mean(axis=0), scores.std(axis=0))
        fits[kind] = np.exp(model.hyper.log[NAMES.index("metrics")])
    assert fits["quality"] > 2 * fits["noise"]


def test_top_two_finds_the_best_with_a_tenth_of_the_cells():
    problem = problem_of(steps=8, layers=12, tasks=10)
    for seed in range(3):
        scores = surface(problem, seed, noise=0.003)
        policy = make_policy("toptwo_gp", problem, seed=seed, budget=96)
        play(policy, scores, 96)
        truth = scores.mean(axis=1)
        assert truth.max() - truth[policy.leader()] < 0.003


def test_never_leaves_the_default_arm_without_evidence():
    problem = problem_of(steps=8, layers=12, tasks=10)
    scores = surface(problem)
    policy = make_policy("toptwo_gp", problem, budget=100)
    usual = problem.default_arm()
    assert policy.leader() == usual
    play(policy, scores, 3)
    assert policy.leader() == usual


def test_small_problems_leave_a_bad_default_arm():
    """A tenth of one checkpoint's cells: fewer than there were tasks in the old threshold."""
    regrets = []
    for seed in range(6):
        problem = problem_of(steps=1, layers=12, tasks=20)
        scores = surface(problem, seed, noise=0.003)
        scores -= 0.8 * np.maximum(problem.depth - 0.4, 0)[:, None]  # The early layers are best.
        policy = make_policy("toptwo_gp", problem, seed=seed, budget=24)
        play(policy, scores, 24)
        truth = scores.mean(axis=1)
        regrets.append(truth.max() - truth[policy.leader()])
        assert truth.max() - truth[problem.default_arm()] > 0.08
    assert np.mean(regrets) < 0.01


def test_pulls_are_spent_on_the_leader_against_the_default_arm_until_it_is_refuted():
    problem = problem_of(steps=1, layers=12, tasks=20)
    scores = surface(problem, 3, noise=0.03)
    policy = make_policy("toptwo_gp", problem, seed=3, budget=120)
    reasons, passed = [], []
    for _ in range(120):
        reasons += [reason for _, _, reason in play(policy, scores, 1)]
        passed.append(policy.leader() == int(np.argmax(policy.believed()[0])))
    direct = ["against the default arm" in reason for reason in reasons]
    assert any(direct)
    # A pull is chosen on what was believed before it.
    assert not any(d and p for d, p in zip(direct[1:], passed, strict=False))


def test_says_when_it_is_sure():
    problem = problem_of(steps=6, layers=8, tasks=6)
    scores = surface(problem, noise=0.002)
    policy = make_policy("toptwo_gp", problem, budget=288)
    assert not policy.sure(0.001)
    pulls = 0
    while not policy.sure(0.001):
        pulls += len(play(policy, scores, 1))
    assert pulls < 144
    truth = scores.mean(axis=1)
    assert truth.max() - truth[policy.leader()] < 0.003
    assert policy.best().expected_regret < 0.001


def test_a_budget_in_seconds_prefers_cheap_tasks():
    """Tasks cost 1 to 10 000 seconds and tell about the same: the dear ones are asked less."""
    problem = problem_of(steps=6, layers=8, tasks=5)
    scores = surface(problem, noise=0.002)
    counts = {}
    for budget in (None, 200):
        policy = make_policy("toptwo_gp", problem, budget=budget)
        made = 0
        while made < 80:
            for pull in policy.ask(1):
                a, t = problem.arms.index(pull.arm), problem.tasks.index(pull.task)
                policy.observe(pull.arm, pull.task, scores[a, t], seconds=10.0**t)
                made += 1
        counts[budget] = (~np.isnan(policy.observed)).sum(axis=0)
    assert counts[None][4] < counts[200][4]
    assert counts[None][0] > 2 * counts[None][4]


def test_a_batch_spreads():
    problem = problem_of(steps=8, layers=12, tasks=10)
    policy = make_policy("toptwo_gp", problem, budget=200)
    scores = surface(problem)
    play(policy, scores, 90)
    batch = policy.ask(8)
    assert len({(p.arm, p.task) for p in batch}) == 8
    assert len({p.task for p in batch}) >= 4 and len({p.arm for p in batch}) >= 3


def test_fits_are_made_as_cells_grow_and_not_with_every_pull(monkeypatch):
    from batchsweep.bandit.policies.gp.fit import Fit

    made = []
    run = Fit.run

    def counted(self):
        made.append(self)
        return run(self)

    monkeypatch.setattr(Fit, "run", counted)
    problem = problem_of(steps=8, layers=12, tasks=10)
    scores = surface(problem)
    policy = make_policy("toptwo_gp", problem, budget=160)
    at = []
    for pull in range(160):
        before = len(made)
        play(policy, scores, 1)
        at += [pull] * (len(made) - before)
    assert 5 < len(at) < 30
    assert all(b >= 1.15 * a for a, b in pairwise(at) if a)


def test_noise_may_turn_out_otherwise_than_was_guessed(problem):
    scores = surface(problem)
    known, guessed = Posterior(problem), Posterior(problem)
    for a, t, noise in [(0, 0, 0.1), (3, 1, 0.0), (7, 2, 0.3)]:
        known.observe(a, t, float(scores[a, t]), noise)
        guessed.observe(a, t, None, 0.05)
        guessed.observe(a, t, float(scores[a, t]), noise)
    np.testing.assert_allclose(guessed.mean, known.mean, atol=1e-10)
    np.testing.assert_allclose(guessed.var, known.var, atol=1e-10)


def doubt_after(jumps):
    """Doubt after so many pulls, each of which is off by its jump."""
    problem = problem_of(steps=8, layers=12, tasks=10)
    rng = np.random.default_rng(0)
    scores = surface(problem, noise=0.002)
    policy: Any = make_policy("toptwo_gp", problem, budget=300)
    play(policy, scores, 100)
    for jump in jumps:
        play(policy, scores + jump * rng.normal(size=scores.shape), 1)
    _, sd = policy.believed()
    return float(np.median(sd**2 / policy.posterior.var))


def test_doubt_is_learned_from_surprises():
    """Cells that lie further from their predictions than stated widen what is stated."""
    calm = doubt_after([0.0] * 60)
    wild = doubt_after([0.04] * 60)
    assert wild > 2 * calm


def test_one_spike_does_not_raise_the_doubt_for_ever():
    calm = doubt_after([0.0] * 60)
    at_once = doubt_after([0.5])
    later = doubt_after([0.5] + [0.0] * 59)
    # The largest that counts is 4 standard deviations; it was some 100.
    assert at_once < calm + 1.5
    assert later < 1.5 * calm


def test_the_level_of_a_task_without_cells_is_as_uncertain_as_levels_differ(problem):
    levels = np.array([0.1, 0.7, 0.4])
    scores = surface(problem, noise=0.001)
    scores = levels + 0.05 * (scores - scores.mean(axis=0))
    model = Posterior(problem)
    for cell in range(8):
        model.observe(cell, cell % 2, float(scores[cell, cell % 2]))
    centre, spread = np.array([0.1, 0.7, 0.4]), np.full(3, 0.01)
    model.fit(centre, spread)
    # Half of the distance of the two that are known; theirs is found from their own cells.
    np.testing.assert_allclose(model.offset * spread, [0.03, 0.03, 0.3])
    assert np.sqrt(model.var.min()) > 0.3 / 3
    model.observe(0, 2, float(scores[0, 2]))
    assert np.sqrt(model.var.min()) < 0.01


def test_the_model_is_never_certain_of_arms_that_were_not_scored():
    problem = problem_of(steps=4, layers=6, tasks=5)
    scores = surface(problem, noise=0.002)
    policy = make_policy("toptwo_gp", problem, budget=120)
    play(policy, scores, 30)
    unknown = np.isnan(policy.observed)
    part = unknown.mean() + unknown.all(axis=1).mean()
    assert unknown.all(axis=1).any()
    assert policy.best().p_best <= 1 - MISFIT * part * 23 / 24 + 1e-9
    play(policy, scores, 90)
    assert policy.best().p_best == 1


def test_finds_the_best_of_arms_that_have_nothing_to_do_with_each_other():
    """Every arm is a model of its own: nothing tells of an arm but its cells."""
    from batchsweep.bandit.policies import Problem

    arms, tasks = 60, 12
    problem = Problem(
        arms=tuple(f"m{k}/main#1" for k in range(arms)),
        tasks=tuple(f"task{t}" for t in range(tasks)),
        model=tuple(f"m{k}" for k in range(arms)),
        step=np.full(arms, np.nan),
        depth=np.ones(arms),
    )
    regrets = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scores = rng.uniform(0.2, 0.6, tasks) + 0.1 * rng.normal(size=(arms, 1))
        scores = scores + 0.01 * rng.normal(size=(arms, tasks))
        policy = make_policy("toptwo_gp", problem, seed=seed, budget=90)
        made = play(policy, scores, 90)
        opening = [(a, t) for a, t, reason in made if reason.startswith("opening")]
        # Half of the budget, one cell an arm.
        assert len({a for a, _ in opening}) == len(opening) == 45
        truth = scores.mean(axis=1)
        regrets.append(truth.max() - truth[policy.leader()])
    assert np.mean(regrets) < 0.01


def test_the_opening_looks_at_the_default_arm_and_at_arms_by_chance_on_every_task():
    problem = problem_of(steps=8, layers=12, tasks=10)
    policy = make_policy("toptwo_gp", problem, budget=100)
    made = play(policy, surface(problem), 100)
    opening = [(a, t) for a, t, reason in made if reason.startswith("opening")]
    usual = problem.default_arm()
    assert [a for a, _ in opening[:10]] == [usual] * 10
    others = [a for a, _ in opening[10:]]
    assert len(others) == len(set(others)) == 20
    assert {t for _, t in opening[10:20]} == {t for _, t in opening[20:]} == set(range(10))
    assert len(set(problem.step[others])) > 4


def test_the_opening_takes_other_arms_for_those_that_cannot_be_scored_yet():
    problem = problem_of(steps=8, layers=12, tasks=10)
    policy = make_policy("toptwo_gp", problem, budget=100)
    there = np.zeros(problem.shape, dtype=bool)
    there[problem.step == 1] = True
    policy.restrict(there)
    made = play(policy, surface(problem), 20)
    assert len({a for a, _, _ in made}) > 6
    assert all(there[a, t] and reason.startswith("opening") for a, t, reason in made)


def test_what_a_task_makes_of_a_rise_that_was_not_seen_there_is_uncertain():
    """Tasks differ threefold in how far they rise; only one cell tells of the rise."""
    problem = problem_of(steps=8, layers=6, tasks=8)
    late = np.flatnonzero(problem.step == problem.step.max())
    first = int(np.flatnonzero(problem.step == problem.step.min())[0])
    model = Posterior(problem)
    scores = surface(problem, noise=0.002)
    for k, arm in enumerate(late):
        for task in range(8):
            if (k + task) % 2:
                model.observe(int(arm), task, float(scores[arm, task]))
    model.observe(first, 0, float(scores[first, 0]) - 0.3)
    told = np.array([scores[late, t].mean() for t in range(8)])
    model.fit(told, np.full(8, 0.02))
    model.fit(told, np.full(8, 0.02))
    believed, sd = model.mean[late].mean() - model.mean[first], np.sqrt(model.var[first])
    assert believed > 0.1
    # A fifth of the rise or more on each task that was not seen to rise; it was a fortieth.
    assert sd > 0.2 * believed / np.sqrt(8)
