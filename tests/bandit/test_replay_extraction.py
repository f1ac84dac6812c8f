"""What replays say of a search that pays for its pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulated import problem_of, surface

from batchsweep.bandit.costs import even_costs
from batchsweep.bandit.replay_extraction import METHODS, at_forward, replay_extraction
from batchsweep.bandit.score_table import ScoreTable, read_scores
from batchsweep.cli.main import main
from batchsweep.config import BanditConfig, load
from batchsweep.errors import UsageError
from batchsweep.report.extraction_figure import figure

PROBLEM = problem_of(steps=6, layers=4, tasks=8)
SCORES = surface(PROBLEM)
TABLE = ScoreTable(PROBLEM, SCORES, np.ones(SCORES.shape))
COSTS = even_costs(PROBLEM, range(1, 9))
CONFIG = BanditConfig.model_validate(
    {"budget": {"pulls": 60}, "final_check": 0, "stop_at_regret": 0}
)


@pytest.fixture(scope="module")
def curves():
    return replay_extraction(TABLE, COSTS, seed=0, forward=0.5, config=CONFIG)


def test_each_way_pays_within_its_budget_and_never_gets_pairs_back(curves) -> None:
    assert set(curves["method"]) == set(METHODS)
    searched = curves[curves["method"] != "every_nth"]
    assert searched["forward"].max() <= 0.5
    for _, mine in searched.groupby("method"):
        for what in ("forward", "checkpoints", "pairs", "pulls"):
            assert mine[what].is_monotonic_increasing
        assert mine["final"].tolist() == [False] * (len(mine) - 1) + [True]
        assert len(mine) == mine["pulls"].max() + 1


def test_every_nth_checkpoint_is_scored_in_full(curves) -> None:
    """Six checkpoints: every 2nd counted back from the last is 3 of 6, and so on."""
    rows = curves[curves["method"] == "every_nth"].set_index("wave")
    assert rows.loc[1, "regret"] == 0
    assert rows.loc[[1, 2, 3, 6], "checkpoints"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 6])
    truth = SCORES.mean(axis=1)
    last = truth[PROBLEM.step == PROBLEM.step.max()].max()
    assert rows.loc[6, "regret"] == pytest.approx(truth.max() - last)


def test_what_was_known_for_a_part_of_the_work_is_the_last_that_it_paid_for(curves) -> None:
    found = at_forward(curves, [0.2]).set_index("method")
    mine = curves[(curves["method"] == "search") & (curves["forward"] <= 0.2)]
    assert found.loc["search", "regret"] == mine["regret"].iloc[-1]
    assert found.loc["every_nth", "checkpoints"] == pytest.approx(1 / 6)


def test_figure_shows_regret_against_what_was_paid(curves, tmp_path) -> None:
    figure(curves, tmp_path / "f.svg", title="one")
    text = (tmp_path / "f.svg").read_text()
    assert text.startswith("<?xml")


def test_the_demo_is_decided_with_half_of_its_pairs() -> None:
    """All cells of the demo, scored exhaustively: the same answer for half of what that took."""
    table = read_scores(Path(__file__).parents[1] / "data" / "demo_scores.csv")
    config = load(Path(__file__).parents[2] / "configs" / "demo.yaml").bandit
    for seed in range(3):
        curves = replay_extraction(
            table, even_costs(table.problem), seed=seed, methods=["search"], width=2,
            forward=None, config=config,
        )  # fmt: skip
        last = curves.iloc[-1]
        assert last["regret"] == 0
        assert last["pairs"] <= 0.5


def test_the_command_prints_a_table_and_writes_what_it_drew(tmp_path, capsys) -> None:
    rows = ["model,revision,step,layer,task,score"]
    for arm, scores in zip(PROBLEM.arms, SCORES, strict=True):
        key, layer = arm.split("#")
        model, revision = key.split("/")
        step = revision.removeprefix("step")
        for task, score in zip(PROBLEM.tasks, scores, strict=True):
            rows.append(f"{model},{revision},{step},{layer},{task},{score}")
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    options = ["--extraction", "--forward", "0.4", "--pulls", "40", "--seeds", "0:1"]
    out = tmp_path / "out"
    command = ["replay", "--scores", str(tmp_path / "scores.csv"), *options, "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)
    assert (out / "extraction.csv").exists()
    assert (out / "extraction.png").stat().st_size > 10_000
    assert main(command) == 2
    assert "has an earlier replay" in capsys.readouterr().err


def test_an_unknown_way_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"'best'; valid: search, improvement, random, every_nth"):
        replay_extraction(TABLE, COSTS, seed=0, methods=["best"], config=CONFIG)
