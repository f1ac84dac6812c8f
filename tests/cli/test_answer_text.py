"""The answer as people read it: one unit, the arms that can't be told apart, no false certainty."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from simulated import problem_of, surface

from batchsweep.bandit.loop import run
from batchsweep.bandit.policies import Candidate
from batchsweep.cli.answer_text import summary
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig
from batchsweep.plan.plan import Plan
from batchsweep.score.record import Score

PLAN = Plan((), ("mean",), {})


def outcome_of(pulls, *, rewards=None, policy="toptwo_gp", seed=0):
    problem = problem_of(steps=5, layers=6, tasks=4)
    scores = surface(problem, seed)

    def score(arm, task):
        return Score(float(scores[problem.arms.index(arm), problem.tasks.index(task)]), 1.0)

    config = BanditConfig(policy=policy, budget=PullBudget(pulls=pulls), stop_at_regret=0)
    return run(problem, score, config, rewards, quiet=True), scores


def test_regret_means_and_answer_are_main_scores_in_any_scale():
    for rewards in (RewardsConfig(), RewardsConfig(scale="z")):
        outcome, _ = outcome_of(60, rewards=rewards)
        said = summary(outcome, PLAN)
        arm = outcome.problem.arms.index(outcome.answer.arm)
        assert f"mean main score {outcome.plane[arm].mean():.4f}" in said
        points = 100 * outcome.answer.expected_regret / outcome.scale.unit
        assert f"expected regret {points:.3f} points of main score" in said
        for one in outcome.answer.runners_up[:5]:
            mean = outcome.plane[outcome.problem.arms.index(one.arm)].mean()
            assert f"  {one.arm}: {mean:.4f}" in said


def test_a_search_that_is_too_small_says_so():
    assert "the search was too small to tell the arms apart: 3 of 120" in summary(
        outcome_of(3)[0], PLAN
    )
    assert "too small" not in summary(outcome_of(80)[0], PLAN)
    assert "too small" not in summary(outcome_of(1, policy="heuristic")[0], PLAN)


@pytest.mark.parametrize(("p", "said"), [(0.0, "below 0.01"), (0.997, "above 0.99"), (0.4, "0.40")])
def test_no_probability_is_printed_as_certainty(p, said):
    outcome, _ = outcome_of(60)
    answer = replace(outcome.answer, p_best=p, expected_regret=0.02)
    text = summary(replace(outcome, answer=answer), PLAN)
    assert f"P(best) {said}," in text
    assert ("too small" in text) == (p == 0.0)


def test_the_list_is_cut_and_counted():
    outcome, _ = outcome_of(60)
    many = tuple(Candidate(a, 0.5, (0.4, 0.6), 0.02) for a in outcome.problem.arms[:8])
    answer = replace(outcome.answer, runners_up=many)
    text = summary(replace(outcome, answer=answer), PLAN)
    assert "  and 3 more" in text


def test_listed_are_exactly_the_arms_that_may_be_better():
    """Arms that the interval of their difference leaves open, likeliest first."""
    outcome, scores = outcome_of(14)
    answer = outcome.answer
    listed = {one.arm for one in answer.runners_up}
    assert listed and answer.arm not in listed
    probable = [one.p_best for one in answer.runners_up]
    assert probable == sorted(probable, reverse=True)
    best = outcome.problem.arms[int(np.argmax(scores.mean(axis=1)))]
    assert best in listed | {answer.arm}
    exhaustive, _ = outcome_of(120, policy="exhaustive")
    assert not exhaustive.answer.runners_up
    assert re.search(r"P\(best\) 1\.00, expected regret 0\.000", summary(exhaustive, PLAN))
