"""The search asks for what is extracted: which pairs, how many, and in what order."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import pytest
from simulated import problem_of, surface

from batchsweep.bandit import loop
from batchsweep.bandit.chooser import Chooser, Fits, Visit
from batchsweep.bandit.costs import PairBudget, PairCosts, even_costs
from batchsweep.bandit.ledger import MemoryLedger
from batchsweep.bandit.policies import make_policy
from batchsweep.bandit.policies.base import Bools
from batchsweep.bandit.policies.gp.policy import GPPolicy
from batchsweep.bandit.policies.gp.posterior import Posterior
from batchsweep.bandit.replay_extraction import ImprovementChooser
from batchsweep.bandit.waves import Wave, Waves, well_read
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.score.record import Score

#: Two models, six steps 1 to 1e5, four layers; eight tasks, of sizes 1 to 8.
PROBLEM = problem_of(steps=6, layers=4, tasks=8, models=2)
SCORES = surface(PROBLEM)


class Fake:
    """Pairs that are there once they were asked for, but for those that can't be."""

    def __init__(self, costs: PairCosts, *, broken: Set[str] = frozenset(), dies: int = 0) -> None:
        self.costs, self.broken, self.dies = costs, broken, dies
        self.pairs = np.zeros((len(costs.checkpoints), len(PROBLEM.tasks)), dtype=bool)
        self.waves: list[Wave] = []
        self.states: list[Bools] = [self.pairs.copy()]

    def recall(self, number: int) -> Wave | None:
        return self.waves[number - 1] if number <= len(self.waves) else None

    def extract(self, wave: Wave) -> None:
        if wave.number <= len(self.waves):
            return
        if wave.number == self.dies:
            raise KeyboardInterrupt
        for visit in wave.visits:
            if visit.key not in self.broken:
                row = self.costs.checkpoints.index(visit.key)
                self.pairs[row, [PROBLEM.tasks.index(t) for t in visit.tasks]] = True
        self.waves.append(wave)
        self.states.append(self.pairs.copy())

    def there(self, waves: int) -> Bools:
        return self.states[waves]


def costs_of(sizes=range(1, 9)) -> PairCosts:
    return even_costs(PROBLEM, sizes)


def search(
    fake, *, budget=None, seed=0, width=3, ledger=None, rewards=None, chooser=Chooser, **settings
):
    """The outcome, with every pull checked to be on a pair that is there."""
    given = {"budget": {"pulls": 150}, "final_check": 2, "seed": seed, **settings}
    config = BanditConfig.model_validate(given)
    arms = {arm: i for i, arm in enumerate(PROBLEM.arms)}
    columns = {task: i for i, task in enumerate(PROBLEM.tasks)}

    def score(arm: str, task: str) -> Score:
        assert fake.pairs[fake.costs.of[arms[arm]], columns[task]], f"{arm} on {task} isn't there"
        return Score(float(SCORES[arms[arm], columns[task]]), 1.0)

    waves = Waves(
        chooser(PROBLEM, fake.costs, width=width, seed=seed), fake, budget or PairBudget(fake.costs)
    )
    return loop.run(PROBLEM, score, config, rewards, ledger=ledger, waves=waves, quiet=True)


@pytest.mark.parametrize("seed", range(2))
def test_a_wave_asks_for_what_is_not_there_and_for_each_checkpoint_once(seed: int) -> None:
    fake = Fake(costs_of())
    search(fake, seed=seed)
    assert len(fake.waves) > 2
    for wave, before in zip(fake.waves, fake.states, strict=False):
        keys = [visit.key for visit in wave.visits]
        assert len(set(keys)) == len(keys) > 0
        for visit in wave.visits:
            row = fake.costs.checkpoints.index(visit.key)
            assert visit.tasks and visit.reason
            assert not before[row, [PROBLEM.tasks.index(t) for t in visit.tasks]].any()


def test_the_best_arm_is_found_with_part_of_the_pairs_and_is_extracted_in_full() -> None:
    fake = Fake(costs_of())
    outcome = search(fake)
    truth = SCORES.mean(axis=1)
    best = PROBLEM.arms.index(outcome.answer.arm)
    assert truth.max() - truth[best] < 0.005
    assert fake.pairs.mean() < 0.6
    assert fake.pairs[fake.costs.of[best]].all()
    assert outcome.answer.pulled[best] == len(PROBLEM.tasks)


def test_the_first_wave_is_spread_over_training_and_takes_cheap_tasks() -> None:
    fake = Fake(costs_of([100, *range(1, 8)]))
    search(fake)
    first = fake.waves[0]
    steps = sorted(int(visit.key.split("step")[1]) for visit in first.visits)
    assert steps[0] <= steps[-1] / 10
    assert steps[-1] == max(PROBLEM.step)
    for visit in first.visits:
        assert PROBLEM.tasks[0] not in visit.tasks
    assert first.expected_regret is None
    assert all(wave.expected_regret is not None for wave in fake.waves[2:])


def test_a_wave_spreads_over_checkpoints_that_may_be_best() -> None:
    """Neighbours of one another are what the next best points by expected improvement are."""
    dense = problem_of(steps=6, layers=4, tasks=6)
    steps = np.repeat(np.arange(1, 61) * 1000.0, 4)
    arms = tuple(f"m/step{int(s)}#{i % 4 + 1}" for i, s in enumerate(steps))
    problem = type(dense)(arms, dense.tasks, ("m",) * 240, steps, np.tile(np.arange(1, 5) / 4, 60))
    costs = even_costs(problem)
    policy = make_policy("toptwo_gp", problem, seed=0, budget=500)
    scores = surface(problem)
    there = np.zeros((60, 6), dtype=bool)
    there[[59, 29, 3]] = True
    policy.restrict(there[costs.of])
    for _ in range(60):
        (pull,) = policy.ask(1)
        cell = arms.index(pull.arm), problem.tasks.index(pull.task)
        policy.observe(pull.arm, pull.task, float(scores[cell]), 1.0)

    def span(chooser: Any, number: int) -> int:
        wave = chooser.next(policy, there, number, lambda pairs: True)
        rows = [costs.checkpoints.index(visit.key) for visit in wave]
        assert len(set(rows)) == len(rows) == 5
        return max(rows) - min(rows)

    for number in (2, 3, 4):
        assert span(ImprovementChooser(problem, costs, width=5), number) == 4
        assert span(Chooser(problem, costs, width=5), number) > 4


class Wasteful(Chooser):
    """Asks for all that it may of the checkpoints that hold no finalist."""

    def next(self, policy: Any, there: Bools, number: int, fits: Fits) -> list[Visit]:
        final = {visit.key for visit in self.finals(policy, np.zeros_like(there), lambda _: True)}
        wave, visits = there.copy(), []
        for row, key in enumerate(self.costs.checkpoints):
            tasks = [] if key in final else self._affordable(row, list(range(8)), wave, fits)
            if tasks:
                visits.append(self._visit(row, tasks, "waste"))
        return visits


def test_half_of_the_budget_is_left_for_the_finalists_a_part_at_a_time_and_is_scored() -> None:
    """A search that reads many checkpoints on few tasks can't tell the best two apart."""
    costs = costs_of([1] * 8)
    budget = PairBudget(costs, store_bytes=0.3 * float(costs.store_bytes.sum()))
    fake = Fake(costs)
    outcome = search(fake, budget=budget, stop_at_regret=0, chooser=Wasteful)
    waste = next(n for n, w in enumerate(fake.waves) if w.visits[0].reason == "waste")
    nowhere = np.zeros(12, dtype=np.int64)
    # What the first wave brought, and what the finalists have of it, aren't held back again.
    assert budget.part(fake.states[waste + 1], nowhere) < 0.75
    assert budget.part(fake.pairs, nowhere) > 0.95
    final = [w for w in fake.waves if w.visits[0].reason.startswith("finalist: ")]
    assert len(final) > 1
    for wave in final:
        assert len(wave.visits) <= 2
        assert all(len(visit.tasks) <= 3 for visit in wave.visits)
    # On what they brought other layers were scored as well, before the final check.
    brought = {(visit.key, task) for w in final for visit in w.visits for task in visit.tasks}
    found = [o for o in outcome.observations if (o.arm.rpartition("#")[0], o.task) in brought]
    assert sum(o.kind == "search" for o in found) > len(brought)


def test_an_arm_of_a_checkpoint_that_was_hardly_read_is_not_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is believed of it rests on the model alone: 10 points too much on a published table."""
    costs, wrong = costs_of([1] * 8), 0
    budget = PairBudget(costs, store_bytes=0.2 * float(costs.store_bytes.sum()))
    believed = GPPolicy.believed

    def misled(policy: GPPolicy) -> Any:
        policy.posterior.mean[wrong] = 2 * policy.posterior.mean.max()
        return believed(policy)

    def search_misled() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(GPPolicy, "believed", misled)
            # What is there is all that there is: nothing more can be read of the wrong arm.
            patch.setattr(Chooser, "next", lambda *_: [])
            patch.setattr(Chooser, "rest", lambda *_: [])
            patch.setattr(Chooser, "finals", lambda *_: [])
            return str(search(Fake(costs), budget=budget, stop_at_regret=0).answer.arm)

    assert PROBLEM.arms[wrong].startswith("m0/step1#")
    assert not search_misled().startswith("m0/step1#")
    monkeypatch.setattr(Waves, "well_read", np.ones(len(PROBLEM.arms), dtype=bool))
    assert search_misled() == PROBLEM.arms[wrong]


def test_a_checkpoint_is_well_read_on_half_as_many_tasks_as_any() -> None:
    costs = costs_of()
    there = np.zeros((12, 8), dtype=bool)
    there[2, :5] = there[3, :3] = there[4, :2] = True
    assert set(costs.of[well_read(there, costs)].tolist()) == {2, 3}


def test_finalists_are_read_on_the_same_tasks() -> None:
    chooser = Chooser(PROBLEM, costs_of(), width=3)
    policy: Any = make_policy("toptwo_gp", PROBLEM)
    there = np.zeros((12, 8), dtype=bool)
    there[[3, 5]] = True
    for arm, task in zip(*np.nonzero(there[chooser.costs.of]), strict=True):
        policy.observe(PROBLEM.arms[arm], PROBLEM.tasks[task], float(SCORES[arm, task]))
    there[:] = False
    front, rival = chooser.finals(policy, there, lambda pairs: bool(pairs.sum() <= 7), most=4)
    assert PROBLEM.arms[int(np.argmax(policy.believed()[0]))].startswith(front.key)
    assert rival.key != front.key
    assert front.tasks == PROBLEM.tasks[:4]
    assert rival.tasks == PROBLEM.tasks[:3]


def test_the_model_is_not_asked_about_pairs_that_the_budget_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer takes a product of all cells, for each of the draws that a wave is chosen by."""
    chooser = Chooser(PROBLEM, costs_of(), width=3)
    policy: Any = make_policy("toptwo_gp", PROBLEM)
    there = np.zeros((12, 8), dtype=bool)
    there[::3, :4] = True
    for arm, task in zip(*np.nonzero(there[chooser.costs.of]), strict=True):
        policy.observe(PROBLEM.arms[arm], PROBLEM.tasks[task], float(SCORES[arm, task]))
    asked = []
    gains = Posterior.gains

    def counted(posterior: Posterior, *of: Any) -> Any:
        asked.append(of)
        return gains(posterior, *of)

    monkeypatch.setattr(Posterior, "gains", counted)
    one = np.zeros(there.shape, dtype=bool)
    one[11, 7] = True
    assert chooser.next(policy, there, 2, lambda pairs: False) == []
    assert not asked
    (visit,) = chooser.next(policy, there, 2, lambda pairs: not (pairs & ~there & ~one).any())
    assert (visit.key, visit.tasks) == (chooser.costs.checkpoints[11], (PROBLEM.tasks[7],))
    assert len(asked) == 1


@pytest.mark.parametrize("limit", ["store_bytes", "seconds", "checkpoints"])
def test_a_budget_is_never_exceeded_and_leaves_an_answer(limit: str) -> None:
    costs = costs_of()
    whole = {
        "store_bytes": float(costs.store_bytes.sum()),
        "seconds": costs.exhaustive_seconds,
        "checkpoints": len(costs.checkpoints),
    }
    budget = PairBudget(costs, **{limit: 0.34 * whole[limit]})
    fake = Fake(costs)
    outcome = search(fake, budget=budget, stop_at_regret=0)
    visits = np.zeros(len(costs.checkpoints), dtype=np.int64)
    for wave, after in zip(fake.waves, fake.states[1:], strict=True):
        visits += [key in {v.key for v in wave.visits} for key in costs.checkpoints]
        assert budget.part(after, visits) <= 1
    assert budget.part(fake.pairs, visits) > 0.5
    assert outcome.answer.arm in PROBLEM.arms
    assert outcome.stopped == "budget"


def test_pairs_that_were_there_before_cost_no_time_but_take_their_bytes() -> None:
    costs = costs_of()
    there = np.zeros((len(costs.checkpoints), 8), dtype=bool)
    there[0] = True
    nowhere = np.zeros(len(costs.checkpoints), dtype=np.int64)
    assert PairBudget(costs, seconds=1.0).part(there, nowhere, there) == 0
    half = PairBudget(costs, store_bytes=2 * float(costs.store_bytes[0].sum()))
    assert half.part(there, nowhere, there) == pytest.approx(0.5)


def test_the_same_seed_asks_the_same() -> None:
    runs = []
    for seed in (0, 0, 1):
        fake = Fake(costs_of())
        outcome = search(fake, seed=seed)
        runs.append((fake.waves, [(o.arm, o.task) for o in outcome.observations]))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("dies", [1, 3])
def test_a_search_that_died_in_a_wave_ends_as_if_nothing_had_happened(dies: int) -> None:
    whole = Fake(costs_of())
    expected = search(whole)
    fake, ledger = Fake(costs_of(), dies=dies), MemoryLedger()
    with pytest.raises(KeyboardInterrupt):
        search(fake, ledger=ledger)
    fake.dies = 0
    outcome = search(fake, ledger=ledger)
    assert fake.waves == whole.waves
    assert outcome.to_json() == expected.to_json()


@pytest.mark.parametrize("lost", range(3))
def test_waves_beyond_a_spent_budget_are_gone_on_with_where_they_were_asked_for(lost: int) -> None:
    """While the search takes its last look there is no wave; the final check's came after it."""
    costs = costs_of()
    budget = PairBudget(costs, store_bytes=0.34 * float(costs.store_bytes.sum()))
    whole = Fake(costs)
    expected = search(whole, budget=budget, stop_at_regret=0)
    fake, known = Fake(costs), len(whole.waves) - lost
    fake.waves, fake.states = whole.waves[:known], [s.copy() for s in whole.states[: known + 1]]
    fake.pairs = fake.states[-1].copy()
    outcome = search(fake, budget=budget, stop_at_regret=0)
    assert fake.waves == whole.waves
    assert outcome.to_json() == expected.to_json()


def test_a_checkpoint_that_fails_is_not_asked_for_again() -> None:
    broken = "m0/step100000"
    fake = Fake(costs_of(), broken={broken})
    outcome = search(fake, stop_at_regret=0)
    asked = [task for w in fake.waves for v in w.visits if v.key == broken for task in v.tasks]
    assert asked
    assert len(set(asked)) == len(asked)
    assert outcome.answer.pulled.sum() > 50


def test_a_store_that_has_everything_is_searched_as_ever() -> None:
    fake = Fake(costs_of())
    fake.pairs[:] = True
    fake.states = [fake.pairs.copy()]
    outcome = search(fake, stop_at_regret=0)
    assert fake.waves == []
    assert outcome.budget.spent_pulls == 150
    assert outcome.observations[0].kind == "search"


def test_what_was_there_before_is_scored_before_anything_is_asked_for() -> None:
    fake = Fake(costs_of())
    there = fake.costs.checkpoints.index("m0/step1000")
    fake.pairs[there] = True
    fake.states = [fake.pairs.copy()]
    outcome = search(fake)
    first = outcome.observations[0].arm
    assert first.startswith("m0/step1000#")
    for wave in fake.waves:
        assert "m0/step1000" not in {visit.key for visit in wave.visits}


def test_z_rewards_have_the_baseline_extracted_first() -> None:
    fake = Fake(costs_of())
    search(fake, rewards=RewardsConfig(scale="z"))
    assert {visit.key for visit in fake.waves[0].visits} == {"m0/step100000", "m1/step100000"}
    assert all(visit.tasks == PROBLEM.tasks for visit in fake.waves[0].visits)


def test_a_policy_without_a_model_can_not_say_what_to_extract() -> None:
    with pytest.raises(UsageError, match="can't say what should be extracted; valid: toptwo_gp"):
        search(Fake(costs_of()), policy="random")


def test_cells_that_can_be_scored_again_are_asked_for() -> None:
    policy = make_policy("random", PROBLEM, seed=0)
    cells = np.zeros(PROBLEM.shape, dtype=bool)
    cells[0, 0] = True
    policy.restrict(cells)
    assert [(p.arm, p.task) for p in policy.ask(5)] == [(PROBLEM.arms[0], PROBLEM.tasks[0])]
    cells[1, :2] = True
    policy.restrict(cells)
    assert {(p.arm, p.task) for p in policy.ask(5)} == {
        (PROBLEM.arms[1], PROBLEM.tasks[0]),
        (PROBLEM.arms[1], PROBLEM.tasks[1]),
    }
