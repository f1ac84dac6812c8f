"""One conformance suite that every policy passes, and what each one is for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulated import play, problem_of, surface

from batchsweep.bandit.policies import POLICIES, Problem, make_policy
from batchsweep.errors import UsageError

ALL = sorted(POLICIES)
PULLING = [n for n in ALL if POLICIES[n].pulls]


@pytest.mark.parametrize("name", ALL)
def test_pulls_are_distinct_reasoned_and_exhaustible(name):
    problem = problem_of()
    policy = make_policy(name, problem, seed=3, budget=60)
    made = play(policy, surface(problem), pulls=10_000)
    cells = [(a, t) for a, t, _ in made]
    assert len(cells) == len(set(cells)) <= 60
    assert all(reason for _, _, reason in made)
    assert policy.ask(2) == []
    if POLICIES[name].pulls:
        assert len(cells) >= 20


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 4])
def test_same_seed_same_pulls_same_answer(name, batch):
    problem = problem_of()
    scores = surface(problem)
    first, second = (make_policy(name, problem, seed=7, budget=30) for _ in range(2))
    assert play(first, scores, 30, batch) == play(second, scores, 30, batch)
    one, two = first.best(), second.best()
    assert (one.arm, one.mean, one.interval, one.p_best) == (
        two.arm,
        two.mean,
        two.interval,
        two.p_best,
    )
    np.testing.assert_array_equal(one.mean_of, two.mean_of)


@pytest.mark.parametrize("name", ALL)
def test_asking_for_the_answer_changes_nothing(name):
    problem = problem_of()
    scores = surface(problem)
    nosy, blind = (make_policy(name, problem, seed=1, budget=24) for _ in range(2))
    made = []
    for _ in range(24):
        made += play(nosy, scores, 1)
        nosy.best()
        nosy.leaders(3)
        nosy.plane()
        nosy.sure(1e-9)
    assert made == play(blind, scores, 24)


@pytest.mark.parametrize("name", ALL)
def test_names_of_arms_mean_nothing(name):
    problem = problem_of()
    renamed = dataclasses.replace(problem, arms=tuple(f"x{i:03d}" for i in range(20))[::-1])
    scores = surface(problem)
    a = play(make_policy(name, problem, seed=2, budget=30), scores, 30)
    b = play(make_policy(name, renamed, seed=2, budget=30), scores, 30)
    assert [c[:2] for c in a] == [c[:2] for c in b]


@pytest.mark.parametrize("name", PULLING)
def test_batches_are_distinct_cells(name):
    problem = problem_of(steps=5, layers=6)
    policy = make_policy(name, problem, seed=0, budget=80)
    scores = surface(problem)
    play(policy, scores, 20, batch=5)
    asked = policy.ask(6)
    assert len({(p.arm, p.task) for p in asked}) == len(asked) > 0


@pytest.mark.parametrize("name", PULLING)
def test_cells_told_from_outside_are_not_asked(name):
    problem = problem_of()
    scores = surface(problem)
    policy = make_policy(name, problem, seed=0, budget=60)
    for t, task in enumerate(problem.tasks):
        policy.observe(problem.arms[17], task, scores[17, t], 1.0)
    made = play(policy, scores, 60)
    assert made
    assert all(a != 17 for a, _, _ in made)


@pytest.mark.parametrize("name", PULLING)
def test_with_everything_scored_the_answer_is_the_truth(name):
    problem = problem_of()
    scores = surface(problem, noise=0.05)
    policy = make_policy(name, problem, seed=0, budget=60)
    for a, arm in enumerate(problem.arms):
        for t, task in enumerate(problem.tasks):
            policy.observe(arm, task, scores[a, t], 1.0)
    answer = policy.best()
    assert problem.arms.index(answer.arm) == np.argmax(scores.mean(axis=1))
    assert answer.pulled.tolist() == [3] * 20


@pytest.mark.parametrize("name", ALL)
def test_answer_is_well_formed_at_any_time(name):
    problem = problem_of(models=2)
    scores = surface(problem)
    policy = make_policy(name, problem, seed=0, budget=40)
    for _ in range(8):
        answer = policy.best()
        assert answer.arm in problem.arms
        assert answer.basis
        assert answer.mean_of.shape == answer.sd_of.shape == answer.pulled.shape == (40,)
        assert np.isfinite(answer.mean)
        assert answer.interval[0] <= answer.mean <= answer.interval[1]
        assert answer.p_best is None or 0 <= answer.p_best <= 1
        assert answer.arm not in [c.arm for c in answer.runners_up]
        assert policy.leaders(3)[0] == policy.leader()
        assert np.isfinite(policy.plane()).all()
        play(policy, scores, 5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_tiny_problems(name, shape):
    problem = problem_of(*shape)
    policy = make_policy(name, problem, seed=0, budget=4)
    scores = surface(problem)
    play(policy, scores, 100)
    assert policy.best().arm in problem.arms


@pytest.mark.parametrize("name", PULLING)
def test_constant_scores_break_nothing(name):
    problem = problem_of()
    policy = make_policy(name, problem, seed=0, budget=60)
    play(policy, np.full(problem.shape, 0.5), 40)
    answer = policy.best()
    assert np.isfinite(answer.mean)
    assert answer.mean == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ALL)
def test_refuses_what_it_was_not_asked_to_know(name):
    problem = problem_of()
    policy = make_policy(name, problem, seed=0)
    policy.observe(problem.arms[0], "task0", 0.5)
    with pytest.raises(UsageError, match="observed before"):
        policy.observe(problem.arms[0], "task0", 0.5)
    with pytest.raises(UsageError, match="no arm 'nobody'"):
        policy.observe("nobody", "task0", 0.5)
    with pytest.raises(UsageError, match="no task 'nothing'"):
        policy.observe(problem.arms[0], "nothing", 0.5)
    with pytest.raises(UsageError, match="only finite"):
        policy.observe(problem.arms[0], "task1", float("nan"))


@pytest.mark.parametrize("name", sorted(set(PULLING) - {"random", "linucb_disjoint", "exhaustive"}))
def test_learns_more_than_chance(name):
    """With a third of the cells, the found arm beats the mean arm on an easy surface."""
    problem = problem_of(steps=6, layers=8, tasks=6)
    regret = []
    for seed in range(5):
        scores = surface(problem, seed)
        policy = make_policy(name, problem, seed=seed, budget=96)
        play(policy, scores, 96)
        truth = scores.mean(axis=1)
        found = problem.arms.index(policy.best().arm)
        regret.append((truth.max() - truth[found]) / (truth.max() - truth.mean()))
    assert np.mean(regret) < 0.5


def test_unknown_policy_and_option_list_the_valid_ones():
    with pytest.raises(UsageError, match=r"no policy 'randon'; did you mean 'random'.*ucb_e"):
        make_policy("randon", problem_of())
    with pytest.raises(UsageError, match="policy 'ucb' has no option 'widht'; its options: width"):
        make_policy("ucb", problem_of(), widht=2)


def test_exhaustive_pulls_everything():
    problem = problem_of()
    assert len(play(make_policy("exhaustive", problem), surface(problem), 10_000)) == 60


def test_heuristic_is_the_last_checkpoint_at_70_per_cent_depth():
    problem = problem_of(steps=3, layers=10, models=2)
    answer = make_policy("heuristic", problem).best()
    assert answer.arm == "m1/step100#7"
    assert answer.p_best is None


def test_heuristic_takes_the_deepest_model():
    problem = Problem(
        arms=("deep-1", "deep-2", "deep-3", "flat-1"),
        tasks=("t",),
        model=("deep", "deep", "deep", "flat"),
        step=np.zeros(4),
        depth=np.array([1 / 3, 2 / 3, 1.0, 1.0]),
    )
    assert make_policy("heuristic", problem).best().arm == "deep-2"


def test_sequential_halving_halves():
    problem = problem_of(steps=4, layers=4, tasks=8)
    policy = make_policy("sequential_halving", problem, budget=64)
    made = play(policy, surface(problem), 64)
    arms_at = [len({a for a, t, r in made if r.endswith(f" {n} arms left")}) for n in (16, 8, 4, 2)]
    assert arms_at == [16, 8, 4, 2]


def test_halving_starts_with_whole_checkpoints_on_the_same_few_tasks():
    problem = problem_of(steps=10, layers=6, tasks=8)
    policy = make_policy("halving", problem, budget=96)
    made = play(policy, surface(problem), 96)
    first = [(a, t) for a, t, r in made if r == "halving: 12 arms left"]
    assert len(first) == 12 * 4 and len({t for _, t in first}) == 4
    assert len({problem.arms[a].split("#")[0] for a, _ in first}) == 2
    assert problem.default_arm() in dict(first)
    arms_at = [len({a for a, _, r in made if r.endswith(f" {n} arms left")}) for n in (12, 6)]
    assert arms_at == [12, 6]


def test_halving_spreads_a_small_budget_over_depth():
    problem = problem_of(steps=1, layers=24, tasks=32)
    policy = make_policy("halving", problem, budget=12)
    first = [a for a, _, r in play(policy, surface(problem), 12) if r == "halving: 6 arms left"]
    layers = sorted(int(problem.arms[a].split("#")[1]) for a in first)
    assert len(layers) == 6 and layers[0] <= 4 and layers[-1] >= 20


def test_linucb_disjoint_scores_whole_arms_once():
    problem = problem_of()
    made = play(make_policy("linucb_disjoint", problem, budget=9), surface(problem), 9)
    arms = [a for a, _, _ in made]
    assert arms == [arms[0]] * 3 + [arms[3]] * 3 + [arms[6]] * 3
    assert len(set(arms)) == 3


def test_problem_refuses_what_does_not_fit():
    good = problem_of()
    with pytest.raises(UsageError, match="there twice"):
        dataclasses.replace(good, tasks=("a", "a"))
    with pytest.raises(UsageError, match="depth has 3 values for 20 arms"):
        dataclasses.replace(good, depth=np.ones(3))
    with pytest.raises(UsageError, match="at least one arm"):
        dataclasses.replace(good, arms=())
    with pytest.raises(UsageError, match="baseline"):
        dataclasses.replace(good, baseline=np.zeros(20, dtype=bool))
