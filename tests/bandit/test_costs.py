"""What pairs cost: by the plan's shapes, and as corrected by what extraction took."""

import numpy as np
import pytest
from tiny import make_suite, make_tasks, write_config

from batchsweep.bandit.costs import PairCosts, even_costs, planned_costs
from batchsweep.bandit.problem import planned_problem
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.pairs import Pairs
from batchsweep.plan.timings import Timing
from batchsweep.store import open_store


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Pairs and the problem of a prepared sweep."""
    folder = tmp_path_factory.mktemp("costs")
    path = write_config(
        folder / "sweep.yaml",
        models=[str(make_suite(folder / "tiny", ("step0", "main")))],
        revisions=["step0", "main"],
        tasks=make_tasks(folder / "tasks"),
        store={"path": str(folder / "store"), "block_texts": 8},
    )
    assert main(["prepare", "--config", str(path)]) == 0
    config = load(path)
    store = open_store(config.store_url)
    plan = frozen_plan(store, config)
    return Pairs(store, plan, config), planned_problem(plan, config)


def test_pairs_take_no_more_than_the_sum_of_what_each_takes(planned) -> None:
    pairs, problem = planned
    costs = planned_costs(pairs, problem, device="cpu")
    for row, key in enumerate(costs.checkpoints):
        entry = next(e for e in pairs.plan.entries if e.key == key)
        assert costs.store_bytes[row].sum() >= pairs.whole(entry).store_bytes
        assert costs.store_bytes[row, 0] == pairs.whole(entry, [problem.tasks[0]]).store_bytes
    assert (costs.seconds > 0).all()
    assert (costs.download == 0).all()  # Local models.


def test_what_extraction_took_corrects_what_was_thought(planned) -> None:
    pairs, problem = planned
    thought = planned_costs(pairs, problem, device="cpu")
    entry = pairs.plan.entries[0]
    everything = pairs.whole(entry)
    took = 1000.0
    measured = {
        entry.key: Timing(2, 14.0, everything.tokens, took),
        "gone/main": Timing(1, 9, 1, 1),
    }
    now = planned_costs(pairs, problem, device="cpu", measured=measured)
    assert now.start.tolist() == [7.0, 7.0]
    # All checkpoints, as far slower as this one was than had been thought.
    task = pairs.whole(entry, [problem.tasks[0]])
    assert now.seconds[0, 0] == pytest.approx(took * task.tokens / everything.tokens, rel=0.05)
    assert (now.seconds > thought.seconds).all()
    assert now.seconds[1, 0] == pytest.approx(now.seconds[0, 0])
    assert (now.store_bytes == thought.store_bytes).all()


def test_a_price_counts_time_and_disk_alike(planned) -> None:
    pairs, problem = planned
    costs = planned_costs(pairs, problem, device="cpu")
    untouched = np.zeros(len(costs.checkpoints), dtype=bool)
    assert costs.pair.sum() + costs.opening(untouched).sum() == pytest.approx(2.0)


def test_even_costs_follow_the_sizes(planned) -> None:
    _, problem = planned
    costs: PairCosts = even_costs(problem, [1, 3])
    assert costs.seconds[0].tolist() == pytest.approx([0.25, 0.75])
    assert costs.checkpoints == tuple(dict.fromkeys(arm.split("#")[0] for arm in problem.arms))
