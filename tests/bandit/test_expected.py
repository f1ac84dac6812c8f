"""What a search is expected to need, before anything is extracted."""

import json

import pytest

from batchsweep.bandit.costs import estimated_costs
from batchsweep.bandit.expected import expected
from batchsweep.bandit.problem import planned_problem
from batchsweep.bandit.surfaces import FAMILIES, simulated
from batchsweep.checkpoints.audit import nominal
from batchsweep.cli.expected_table import expected_table
from batchsweep.cli.main import main
from batchsweep.config import parse
from batchsweep.corpus.size import CorpusSize, TaskSize
from batchsweep.errors import UsageError
from batchsweep.plan.estimate import estimate
from batchsweep.plan.plan import make_plan
from batchsweep.plan.space import space

PYTHIAS = [f"EleutherAI/pythia-{size}" for size in ("14m", "70m")]
SIZE = CorpusSize(
    tuple(TaskSize(f"task{n}", 1000 * n**3, 60_000.0 * n**3) for n in range(1, 9)),
    texts=1_296_000,
    tokens=18e6,
    exact=False,
)


def sweep(tmp_path, **sections):
    """(config, plan, costs) of 2 models x 8 checkpoints x 6 layers on eight tasks."""
    document = {"models": PYTHIAS, "revisions": {"strategy": "sparse"}, "tasks": ["STS12"]}
    path = {"store": {"path": str(tmp_path / "store.zarr")}}
    config = parse(json.dumps({**document, **path, **sections}), source="test.yaml")
    plan = make_plan(config, nominal(config))
    return config, plan, estimate(plan, config, SIZE)


def searched(tmp_path, searches=2, **sections):
    """What searches of one of the models need."""
    config, plan, costs = sweep(tmp_path, models=PYTHIAS[:1], **sections)
    return expected(plan, config, costs, searches=searches), costs


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """What they need without a budget."""
    return searched(tmp_path_factory.mktemp("free"))


def test_a_search_needs_a_part_of_everything_and_the_same_each_time(free, tmp_path) -> None:
    found, costs = free
    assert found is not None and len(found.searches) == 2
    for one in found.searches:
        assert 0 < one.pairs < 8 * 8
        assert 0 < one.checkpoints <= 8
        assert costs.corpus_bytes < one.store_bytes < costs.store_bytes
        assert 0 < one.download_bytes <= costs.download_bytes
        assert one.regret >= 0
    assert searched(tmp_path)[0] == found


def test_the_budget_bounds_what_is_expected(free, tmp_path) -> None:
    unbounded, costs = free
    embeddings = costs.store_bytes - costs.corpus_bytes
    limit = embeddings // 12
    found, _ = searched(tmp_path, bandit={"budget": {"bytes": limit}})
    assert max(one.store_bytes for one in found.searches) <= limit + costs.corpus_bytes
    assert found.span("store_bytes")[1] < unbounded.span("store_bytes")[1]
    few, _ = searched(tmp_path, bandit={"budget": {"checkpoints": 3}})
    assert few.span("checkpoints")[2] <= 3


def test_the_pairs_together_cost_what_the_plan_says(tmp_path) -> None:
    config, plan, costs = sweep(tmp_path)
    problem = planned_problem(plan, config, tasks=[task.name for task in SIZE.tasks])
    prices = estimated_costs(plan, problem, config, SIZE, speed=costs.speed)
    assert prices.store_bytes.sum() == pytest.approx(costs.store_bytes - costs.corpus_bytes)
    assert prices.exhaustive_seconds == pytest.approx(costs.gpu_seconds, rel=0.01)


def test_no_other_search_begins_once_the_time_is_over(tmp_path) -> None:
    config, plan, costs = sweep(tmp_path)
    found = expected(plan, config, costs, searches=5, seconds=0)
    assert len(found.searches) == 1


def test_where_run_extracts_everything_nothing_is_simulated(tmp_path) -> None:
    found, costs = searched(tmp_path, bandit={"policy": "halving"})
    assert found is None
    assert "bandit.policy can't say" in expected_table(costs, found, None)


def test_rewards_that_name_nothing_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"rewards.baseline 'step7'"):
        searched(tmp_path, rewards={"baseline": "step7"})


@pytest.mark.parametrize("family", FAMILIES)
def test_surfaces_are_complete_and_of_their_seed(tmp_path, family) -> None:
    config, plan, _ = sweep(tmp_path)
    problem = planned_problem(plan, config, tasks=["a", "b", "c"])
    table = simulated(problem, family, 1)
    assert table.scores.shape == (96, 3)
    assert ((table.scores > -0.5) & (table.scores < 1.5)).all()
    assert (table.scores == simulated(problem, family, 1).scores).all()
    assert (table.scores != simulated(problem, family, 2).scores).any()


def test_one_checkpoint_without_a_step_has_a_surface_too(tmp_path) -> None:
    config, plan, _ = sweep(tmp_path, revisions=["main"])
    problem = planned_problem(plan, config, tasks=["a"])
    assert simulated(problem, "mid", 0).scores.shape == (12, 1)


def test_the_table_shows_both_sides_and_the_money(tmp_path) -> None:
    config, plan, costs = sweep(tmp_path)
    found = expected(plan, config, costs, searches=2)
    text = expected_table(costs, found, space(plan, config, costs), gpu_price=36)
    for title in ("pairs", "checkpoints", "store", "downloads", "time on one h100", "cost"):
        assert title in text
    assert f"{costs.gpu_seconds / 100:.2f}" in text
    assert "Of 2 searches" in text


def test_the_command_shows_it_where_it_is_asked_to(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("batchsweep.plan.preview.corpus_size", lambda *_: SIZE)
    document = {"models": PYTHIAS[:1], "revisions": {"strategy": "sparse"}, "tasks": ["STS12"]}
    (tmp_path / "c.yaml").write_text(json.dumps(document))
    arguments = ["plan", "--config", str(tmp_path / "c.yaml")]
    assert main(arguments) == 0
    plain = " ".join(capsys.readouterr().out.split())
    assert "'batchsweep plan --search' simulates how much that is" in plain
    assert "exhaustive search range" not in plain
    assert main([*arguments, "--search", "--gpu-price", "2"]) == 0
    both = " ".join(capsys.readouterr().out.split())
    assert "exhaustive search range" in both and "at 2 a GPU hour" in both
    assert main([*arguments, "--search", "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["search"]
    assert set(first) == {
        *("pairs", "checkpoints", "store_bytes", "download_bytes", "gpu_seconds", "regret"),
    }
