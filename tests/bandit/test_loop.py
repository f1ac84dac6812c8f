"""The budgeted loop: billing, the ledger, resuming, parallel pulls, rewards."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from json_store import FolderStore
from simulated import problem_of, surface
from threadpoolctl import threadpool_limits

from batchsweep.bandit.identity import run_digest
from batchsweep.bandit.ledger import MemoryLedger, StoreLedger
from batchsweep.bandit.loop import run
from batchsweep.bandit.policies import POLICIES, Problem
from batchsweep.bandit.policies.baselines.simple import Random
from batchsweep.bandit.rewards import aggregate, raw_scale, z_scale
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig
from batchsweep.errors import StoreMismatch, UsageError
from batchsweep.score.record import Score
from batchsweep.tasks.resolve import tasks_of

RAW = RewardsConfig(scale="raw")
Z = RewardsConfig(scale="z")


@pytest.fixture
def problem() -> Problem:
    steps, layers = 5, 6
    return Problem(
        arms=tuple(f"m/step{10**s}#{k}" for s in range(steps) for k in range(1, layers + 1)),
        tasks=("low", "high", "wide", "narrow"),
        model=("m",) * steps * layers,
        step=np.repeat([10.0**s for s in range(steps)], layers),
        depth=np.tile(np.arange(1, layers + 1) / layers, steps),
    )


class Scores:
    """A table that counts what it is asked, and can die before the n-th score."""

    def __init__(self, problem: Problem, dies_at: int | None = None) -> None:
        rng = np.random.default_rng(0)
        late = np.log1p(problem.step) / 10
        quality = 0.3 * late - 0.4 * (problem.depth - 0.6) ** 2
        spread = np.array([1.0, 1.0, 2.0, 0.1])
        level = np.array([0.1, 0.7, 0.4, 0.5])
        noise = rng.normal(size=problem.shape) * 0.02
        self.table = level + (quality[:, None] + noise) * spread
        self.problem, self.dies_at = problem, dies_at
        self.asked: list[tuple[str, str]] = []

    def __call__(self, arm: str, task: str) -> Score:
        if self.dies_at is not None and len(self.asked) >= self.dies_at:
            raise KeyboardInterrupt
        self.asked.append((arm, task))
        a, t = self.problem.arms.index(arm), self.problem.tasks.index(task)
        return Score(float(self.table[a, t]), [0.1, 1.0, 10.0, 0.5][t])


def same(a, b) -> bool:
    return json.dumps(a.to_json()) == json.dumps(b.to_json()) and a.observations == b.observations


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("dies_at", [0, 1, 17, 40])
def test_killed_and_restarted_ends_as_if_uninterrupted(problem, policy, dies_at):
    config = BanditConfig(policy=policy, budget=PullBudget(pulls=45), seed=5, stop_at_regret=0)
    whole = run(problem, Scores(problem), config, Z, quiet=True)
    store = FolderStore()
    first = Scores(problem, dies_at=dies_at)
    if whole.budget.spent_pulls > dies_at:
        with pytest.raises(KeyboardInterrupt):
            run(problem, first, config, Z, ledger=StoreLedger(store, "r"), quiet=True)
    second = Scores(problem)
    resumed = run(problem, second, config, Z, ledger=StoreLedger(store, "r"), quiet=True)
    assert same(resumed, whole)
    assert len(first.asked) + len(second.asked) == whole.budget.spent_pulls
    assert not set(first.asked) & set(second.asked)


def test_a_pull_is_in_the_ledger_before_the_policy_hears_of_it(problem):
    ledger = MemoryLedger()
    seen = []

    def heard(policy, pulls, seconds):
        observed = {
            (problem.arms[a], problem.tasks[t]) for a, t in np.argwhere(~np.isnan(policy.observed))
        }
        written = {(r["arm"], r["task"]) for r in ledger.records()[1:]}
        assert observed == written
        seen.append(pulls)

    config = BanditConfig(policy="random", budget=PullBudget(pulls=9), final_check=0)
    run(problem, Scores(problem), config, RAW, ledger=ledger, on_observe=heard, quiet=True)
    assert seen == list(range(1, 10))


def test_a_ledger_of_another_run_is_refused(problem):
    ledger = MemoryLedger()
    config = BanditConfig(policy="random", budget=PullBudget(pulls=5), seed=1)
    run(problem, Scores(problem), config, RAW, ledger=ledger, quiet=True)
    other = config.model_copy(update={"seed": 2})
    with pytest.raises(StoreMismatch, match="seed 1, not 2"):
        run(problem, Scores(problem), other, RAW, ledger=ledger, quiet=True)
    assert run_digest(problem, config, RAW) != run_digest(problem, other, RAW)
    assert run_digest(problem, config, RAW) != run_digest(problem, config, Z)


@pytest.mark.parametrize("policy", ["random", "sequential_halving", "ucb", "linucb"])
@pytest.mark.parametrize("scale", ["raw", "z"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_budget_is_never_exceeded_and_references_are_billed(problem, policy, scale, workers):
    config = BanditConfig(
        policy=policy, budget=10, workers=workers, stop_at_regret=0, final_check=2
    )
    scores = Scores(problem)
    outcome = run(problem, scores, config, RewardsConfig(scale=scale), quiet=True)
    assert outcome.budget.pulls == 40
    assert len(scores.asked) == len(set(scores.asked)) == outcome.budget.spent_pulls <= 40
    kinds = [r.kind for r in outcome.observations]
    assert kinds.count("reference") == (24 if scale == "z" else 0)


def test_the_machines_threads_decide_no_bit():
    problem = problem_of(steps=12, layers=24, tasks=32, models=1)
    scores = surface(problem)

    def score(arm, task):
        return Score(float(scores[problem.arms.index(arm), problem.tasks.index(task)]), 1.0)

    config = BanditConfig(budget=PullBudget(pulls=150), stop_at_regret=0, final_check=0)
    outcomes = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            outcomes.append(run(problem, score, config, RAW, quiet=True))
    assert same(*outcomes)


def test_budget_in_arms_pulls_and_seconds(problem):
    def spend(budget):
        config = BanditConfig(policy="random", budget=budget, stop_at_regret=0, final_check=0)
        return run(problem, Scores(problem), config, RAW, quiet=True).budget

    assert spend(2.5).spent_pulls == 10
    assert spend(PullBudget(pulls=7)).spent_pulls == 7
    assert spend(1e6).spent_pulls == 120
    assert spend(1e6).left == 0
    timed = spend(PullBudget(seconds=30))
    # The last pull may go over by its own cost, no more.
    assert 30 <= timed.spent_seconds < 40
    assert timed.pulls is None
    assert timed.left == 0


class Spent(Exception):
    """The seconds are gone, for a search that doesn't know of them."""


def test_a_budget_in_seconds_is_spent_on_what_tells_most_per_second():
    problem = problem_of(steps=6, layers=12, tasks=12, models=1)
    price = np.geomspace(1, 400, 12)
    limit = 6 * price.sum()
    regrets: dict[str, list[float]] = {"knows": [], "blind": []}
    per_pull: dict[str, list[float]] = {"knows": [], "blind": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scores = surface(problem, seed, noise=0.05)
        costs = rng.permutation(price) * np.exp(rng.normal(0, 0.1, problem.shape))
        regret = scores.mean(axis=1).max() - scores.mean(axis=1)
        last: dict = {}

        def score(arm, task, scores=scores, costs=costs):
            cell = problem.arms.index(arm), problem.tasks.index(task)
            return Score(float(scores[cell]), float(costs[cell]))

        def heard(policy, pulls, seconds, last=last):
            if seconds > limit:
                raise Spent
            last.update(arm=policy.leader(), pulls=pulls, seconds=seconds)

        common: dict[str, Any] = {"stop_at_regret": 0, "final_check": 0, "seed": seed}
        config = BanditConfig(budget=PullBudget(seconds=limit), **common)
        outcome = run(problem, score, config, RAW, quiet=True)
        assert outcome.budget.spent_seconds - limit <= outcome.observations[-1].seconds
        regrets["knows"].append(regret[problem.arms.index(outcome.answer.arm)])
        per_pull["knows"].append(outcome.budget.spent_seconds / outcome.budget.spent_pulls)
        blind = BanditConfig(budget=PullBudget(pulls=problem.shape[0] * 12), **common)
        with pytest.raises(Spent):
            run(problem, score, blind, RAW, on_observe=heard, quiet=True)
        regrets["blind"].append(regret[last["arm"]])
        per_pull["blind"].append(last["seconds"] / last["pulls"])
    assert np.mean(per_pull["knows"]) < 0.75 * np.mean(per_pull["blind"])
    assert np.mean(regrets["knows"]) < 0.5 * np.mean(regrets["blind"])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("policy", ["toptwo_gp", "random", "ucb"])
def test_no_more_seconds_than_the_running_pulls(problem, policy, workers):
    for seconds in (1, 10, 60):
        budget = PullBudget(seconds=seconds)
        config = BanditConfig(policy=policy, budget=budget, workers=workers, stop_at_regret=0)
        outcome = run(problem, Scores(problem), config, RAW, quiet=True)
        running = sum(r.seconds for r in outcome.observations[-workers:])
        assert outcome.budget.spent_seconds - running < seconds


def test_final_check_completes_the_top_arms(problem):
    def check(n):
        config = BanditConfig(
            policy="random", budget=PullBudget(pulls=60), seed=1, final_check=n, stop_at_regret=0
        )
        outcome = run(problem, Scores(problem), config, RAW, quiet=True)
        assert outcome.budget.spent_pulls == 60
        kinds = [r.kind for r in outcome.observations]
        return outcome.answer.pulled[problem.arms.index(outcome.answer.arm)], kinds.count("check")

    assert check(0) == (3, 0)
    pulled, checks = check(2)
    assert pulled == 4
    assert 0 < checks <= 12


def test_exhaustive_finds_the_truth_and_says_so(problem):
    scores = Scores(problem)
    config = BanditConfig(policy="exhaustive", budget=1e9)
    outcome = run(problem, scores, config, RAW, quiet=True)
    truth = scores.table.mean(axis=1)
    assert outcome.answer.arm == problem.arms[int(truth.argmax())]
    assert outcome.answer.mean == pytest.approx(truth.max())
    assert outcome.answer.p_best == 1.0
    np.testing.assert_allclose(outcome.plane, scores.table)


@pytest.mark.parametrize("budget", [1, PullBudget(pulls=5), PullBudget(seconds=0.001)])
def test_exhaustive_scores_every_cell_whatever_the_budget(problem, budget):
    scores = Scores(problem)
    outcome = run(problem, scores, BanditConfig(policy="exhaustive", budget=budget), quiet=True)
    assert outcome.budget.spent_pulls == len(set(scores.asked)) == scores.table.size
    assert outcome.answer.expected_regret == 0


def test_the_default_reward_is_the_mean_main_score(problem):
    scores = Scores(problem)
    outcome = run(problem, scores, BanditConfig(policy="exhaustive"), RewardsConfig(), quiet=True)
    np.testing.assert_allclose(outcome.answer.mean_of, scores.table.mean(axis=1))
    assert outcome.answer.mean == pytest.approx(outcome.plane.mean(axis=1).max())


def test_exhaustive_z_uses_all_baseline_layers(problem):
    scores = Scores(problem)
    outcome = run(problem, scores, BanditConfig(policy="exhaustive", budget=1e9), Z, quiet=True)
    last = scores.table[-6:]
    spread = np.sqrt((last.var(axis=0) + np.median(last.var(axis=0))) / 2)
    z = (scores.table - last.mean(axis=0)) / spread
    assert outcome.scale.layers == 6
    np.testing.assert_allclose(outcome.answer.mean_of, z.mean(axis=1))
    assert outcome.answer.arm == problem.arms[int(z.mean(axis=1).argmax())]


def test_heuristic_costs_nothing(problem):
    scores = Scores(problem)
    outcome = run(problem, scores, BanditConfig(policy="heuristic"), Z, quiet=True)
    assert scores.asked == []
    assert outcome.budget.spent_pulls == 0
    assert outcome.budget.left == 1
    assert outcome.answer.arm == "m/step10000#4"


@pytest.mark.parametrize("policy", ["random", "sequential_halving", "ucb_e"])
def test_parallel_pulls_give_the_outcome_of_the_same_batches_in_turn(problem, policy):
    config = BanditConfig(policy=policy, budget=PullBudget(pulls=50), workers=4, seed=3)
    alone = run(problem, Scores(problem), config, Z, quiet=True)
    with ThreadPoolExecutor(4) as pool:
        together = run(problem, Scores(problem), config, Z, executor=pool, quiet=True)
    assert same(alone, together)


def test_killed_in_the_middle_of_a_batch(problem):
    config = BanditConfig(policy="random", budget=PullBudget(pulls=40), workers=8, seed=3)
    whole = run(problem, Scores(problem), config, RAW, quiet=True)
    store = FolderStore()
    with pytest.raises(KeyboardInterrupt):
        run(problem, Scores(problem, dies_at=11), config, RAW, ledger=StoreLedger(store, "x"))
    assert len(StoreLedger(store, "x").records()) == 1 + 11
    again = run(problem, Scores(problem), config, RAW, ledger=StoreLedger(store, "x"), quiet=True)
    assert same(whole, again)


@pytest.mark.parametrize("lost", [[0], [3, 5], [0, 1, 19]])
def test_dropped_records_are_made_again_in_their_places(problem, lost):
    config = BanditConfig(policy="random", budget=PullBudget(pulls=20), seed=3)
    store = FolderStore()
    whole = run(problem, Scores(problem), config, RAW, ledger=StoreLedger(store, "x"), quiet=True)
    records = StoreLedger(store, "x").records()
    paths = sorted(store.list_json("bandit/x/pulls"))
    for number in lost:
        store.files.pop(paths[number])
    scores = Scores(problem)
    again = run(problem, scores, config, RAW, ledger=StoreLedger(store, "x"), quiet=True)
    assert same(whole, again)
    assert len(scores.asked) == len(set(lost) - {0})
    assert StoreLedger(store, "x").records() == records


def test_an_undefined_score_counts_as_zero_and_is_marked(problem, caplog):
    def undefined(arm, task):
        return Score(float("nan"), 1.0)

    config = BanditConfig(policy="random", budget=PullBudget(pulls=3), final_check=0)
    outcome = run(problem, undefined, config, RAW, quiet=True)
    assert [(r.score, r.undefined) for r in outcome.observations] == [(0.0, True)] * 3
    assert "score is nan" in caplog.text


@pytest.mark.parametrize("how", ["robust_mean", "rank"])
def test_other_aggregates_choose_by_the_plane(problem, how):
    scores = Scores(problem)
    # One task on which a bad arm is absurdly good: it wins the mean, and nothing else.
    scores.table[0, 2] = 50.0
    rewards = RewardsConfig(scale="raw", aggregate=how)
    config = BanditConfig(policy="exhaustive", budget=1e9)
    outcome = run(problem, scores, config, rewards, quiet=True)
    assert run(problem, scores, config, RAW, quiet=True).answer.arm == problem.arms[0]
    assert outcome.answer.arm == problem.arms[int(aggregate(scores.table, how).argmax())]
    assert outcome.answer.arm != problem.arms[0]
    json.dumps(outcome.to_json(), allow_nan=False)
    assert how.replace("_", " ") in outcome.reward


def test_aggregates_by_hand():
    plane = np.array([[1.0, 2.0, 9.0], [2.0, 2.0, 3.0], [3.0, 0.0, 0.0]])
    np.testing.assert_allclose(aggregate(plane, "mean"), [4, 7 / 3, 1])
    np.testing.assert_allclose(aggregate(plane, "robust_mean"), [2, 2, 0])
    # Task 2 is a tie of the first two: each beats one arm and half of the other.
    np.testing.assert_allclose(aggregate(plane, "rank"), [(0 + 0.75 + 1) / 3, 1.75 / 3, 1 / 3])


def test_z_scale_by_hand():
    scale = z_scale(np.array([[0.1, 0.5, 0.3], [0.3, 0.5, 0.4]]))
    np.testing.assert_allclose(scale.centre, [0.2, 0.5, 0.35])
    # Variances 0.01, 0 and 0.0025, each averaged with their median.
    np.testing.assert_allclose(scale.spread**2, [0.00625, 0.00125, 0.0025])
    assert scale.reward(0.2 + 0.00625**0.5, 0) == pytest.approx(1.0)
    np.testing.assert_allclose(scale.score(np.array([[0.0, 0.0, 2.0]])), [[0.2, 0.5, 0.45]])
    assert raw_scale(3).unit == 1.0
    assert z_scale(np.full((2, 2), 0.5)).spread.tolist() == [0.5**0.5] * 2


@pytest.mark.parametrize("budget", [6, 8.5, 1e9])
def test_z_rewards_are_defined_by_the_baseline_and_not_by_the_budget(problem, budget):
    scores = Scores(problem)
    config = BanditConfig(policy="random", budget=budget, stop_at_regret=0)
    outcome = run(problem, scores, config, Z, quiet=True)
    whole = z_scale(scores.table[-6:])
    assert outcome.scale.spread.tolist() == whole.spread.tolist()
    assert outcome.scale.centre.tolist() == whole.centre.tolist()
    kinds = [o.kind for o in outcome.observations]
    assert kinds[:24] == ["reference"] * 24 and kinds.count("reference") == 24


def test_z_rewards_that_the_budget_can_not_pay_for_are_refused(problem):
    scores = Scores(problem)
    config = BanditConfig(budget=PullBudget(pulls=23))
    with pytest.raises(UsageError, match=r"all 6 layers .* on 4 tasks: 24 pulls.* is 23 pulls"):
        run(problem, scores, config, Z, quiet=True)
    assert scores.asked == []
    config = BanditConfig(budget=PullBudget(seconds=30))
    with pytest.raises(UsageError, match=r"24 pulls, and the budget is 30 s, enough for \d+;"):
        run(problem, scores, config, Z, quiet=True)


def test_a_task_that_supplies_most_of_a_z_reward_is_named(problem):
    scores = Scores(problem)
    scores.table[2, 2] += 5.0
    config = BanditConfig(policy="exhaustive")
    outcome = run(problem, scores, config, Z, quiet=True)
    assert outcome.answer.arm == problem.arms[2]
    assert "wide alone supplies most of its reward" in outcome.answer.basis
    scores.table = scores.table[:, :1] * np.array([1.0, 1.0, 2.0, 0.1])  # All tasks agree.
    assert "alone" not in run(problem, scores, config, Z, quiet=True).answer.basis


class Unsettled(Random):
    """Sure after 20 pulls, no longer so after the check that follows, and again after 40."""

    def sure(self, regret):
        seen = np.isfinite(self.observed).sum()
        return seen == 20 or seen >= 40


def test_a_check_that_unsettles_the_answer_is_followed_by_more_search(problem, monkeypatch):
    monkeypatch.setitem(POLICIES, "random", Unsettled)
    kinds = {}
    for pulls in (100, 30):
        config = BanditConfig(policy="random", budget=PullBudget(pulls=pulls), final_check=2)
        outcome = run(problem, Scores(problem), config, RAW, quiet=True)
        kinds[pulls] = [(k, len([*g])) for k, g in groupby(o.kind for o in outcome.observations)]
        assert outcome.stopped == {100: "regret", 30: "budget"}[pulls]
    first, check, more, *_ = kinds[100]
    assert first == ("search", 20)
    assert check[0] == "check" and more == ("search", 20 - check[1])
    assert kinds[30][:2] == [first, check]
    assert sum(n for _, n in kinds[30]) == 30


def test_target_selects_a_category():
    types = {"STS12": "STS", "Emotion": "Classification", "Sprint": "PairClassification"}
    assert tasks_of(None, types) == ("STS12", "Emotion", "Sprint")
    assert tasks_of("sts", types) == ("STS12",)
    assert tasks_of("pair_classification", types) == ("Sprint",)
    with pytest.raises(Exception, match="valid: Classification, PairClassification, STS"):
        tasks_of("retrieval", types)
