"""The demo's answer has the regret that it states: against an exhaustive pass over its cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchsweep import demo
from batchsweep.bandit.loop import run
from batchsweep.bandit.score_table import ScoreTable, read_scores
from batchsweep.cli import main as cli
from batchsweep.config import BanditConfig, load
from batchsweep.demo import suite
from batchsweep.demo.suite import Training
from batchsweep.score.record import Score
from batchsweep.store import open_store

#: All cells of the demo as it is, written by the exhaustive pass below with suite seed 0.
SCORES = Path(__file__).parents[1] / "data" / "demo_scores.csv"


def regrets(table: ScoreTable, config: BanditConfig, seed: int) -> tuple[float, float]:
    """(true, stated) regret of a search with this seed."""
    problem, truth = table.problem, table.counted.mean(axis=1)

    def score(arm: str, task: str) -> Score:
        cell = problem.arms.index(arm), problem.tasks.index(task)
        return Score(float(table.counted[cell]), 1.0)

    config = config.model_copy(update={"seed": seed})
    answer = run(problem, score, config, quiet=True).answer
    assert answer.expected_regret is not None
    return float(truth.max() - truth[problem.arms.index(answer.arm)]), answer.expected_regret


def check(table: ScoreTable, config: BanditConfig, seeds: range) -> None:
    true, stated = np.array([regrets(table, config, seed) for seed in seeds]).T
    error = true.std() / np.sqrt(len(seeds))
    assert true.mean() <= stated.mean() + 2 * error, (true, stated)
    assert true.max() < 0.01
    assert stated.max() <= config.stop_at_regret


def test_the_regret_is_as_stated_on_the_demos_table() -> None:
    config = load(Path(__file__).parents[2] / "configs" / "demo.yaml").bandit
    check(read_scores(SCORES), config, range(4))


@pytest.mark.torture
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_regret_is_as_stated_for_any_seed_of_the_suite(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains the suite, extracts it whole, and scores all of its 480 cells: minutes."""

    def make(folder: Path) -> None:
        suite.build(folder, Training(seed=seed))

    monkeypatch.setattr(demo, "make_suite", make)
    out = tmp_path / "demo"
    demo.run(out)
    store = open_store(out / "store.zarr")
    (answer_at,) = [p for p in store.list_json("bandit") if p.endswith("answer.json")]
    answer = store.read_json(answer_at)
    assert answer is not None
    found = f"suite/{answer['best']['arm']}"  # A table has the model as the config spells it.
    monkeypatch.chdir(out)
    assert cli.main(["extract", "--config", "demo.yaml", "--all"]) == 0
    assert cli.main(["bandit", "--config", "demo.yaml", "--policy", "exhaustive"]) == 0
    table = read_scores(out / "store.zarr")
    truth = table.counted.mean(axis=1)
    assert truth.max() - truth[table.problem.arms.index(found)] < 0.01
    check(table, load(out / "demo.yaml").bandit, range(6))
