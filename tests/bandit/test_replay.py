"""Replay: reading tables, the same loop as live, curves, figure."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from batchsweep.arm import Arm
from batchsweep.bandit import replay
from batchsweep.bandit.loop import run
from batchsweep.bandit.score_table import read_scores, table_of
from batchsweep.cli import replay_text
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig, load
from batchsweep.errors import UsageError
from batchsweep.report import regret_figure
from batchsweep.score.record import Score
from batchsweep.store import create_store

STEPS, LAYERS, TASKS = (1, 100, 1000), 4, ("A", "B", "C")


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for step in STEPS:
        for layer in range(LAYERS + 1):
            for k, task in enumerate(TASKS):
                quality = np.log1p(step) / 20 - 0.1 * (layer / LAYERS - 0.5) ** 2
                score = 0.2 * k + quality + 0.003 * rng.normal()
                revision = "main" if step == 1000 else f"step{step}"
                rows.append((revision, step, layer, task, score, 10.0**k))
    columns = ["revision", "step", "layer", "task", "main_score", "eval_seconds"]
    return pd.DataFrame(rows, columns=columns)


def check(table, frame):
    assert table.problem.shape == (15, 3)
    assert table.problem.tasks == TASKS
    for arm in (0, 7, 14):
        revision, layer = table.problem.arms[arm].rsplit("/", 1)[1].split("#")
        mine = frame[(frame.revision == revision) & (frame.layer == int(layer))]
        np.testing.assert_allclose(table.scores[arm], mine.main_score.to_numpy())
    assert table.problem.depth[:5].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert [
        table.problem.arms[i].rsplit("/", 1)[1] for i in np.flatnonzero(table.problem.baseline)
    ] == [f"main#{k}" for k in range(5)]


def test_reads_csv_and_parquet_alike_in_any_row_order(frame, tmp_path):
    frame.sample(frac=1, random_state=1).to_csv(tmp_path / "s.csv", index=False)
    renamed = frame.rename(columns={"main_score": "score", "eval_seconds": "seconds"})
    renamed.to_parquet(tmp_path / "s.parquet")
    for name in ("s.csv", "s.parquet"):
        table = read_scores(tmp_path / name)
        check(table, frame)
        assert table.seconds[3].tolist() == [1, 10, 100]
        assert table.problem.step[[0, 5, 10]].tolist() == [1, 100, 1000]


def test_steps_come_from_revisions_and_main_is_last(frame):
    table = table_of(frame.drop(columns="step"))
    check(table, frame)
    # The step of main isn't known; it comes after the last one that is.
    assert table.problem.step[10] == 101


def test_steps_in_revisions_are_read_as_everywhere():
    names = ["stage2-step1000", "main", "stage1-step_20k", "stage1-step5000"]
    rows = [("m", name, 0, "T", 0.5) for name in names] + [("n", "0000020000", 0, "T", 0.5)]
    table = table_of(pd.DataFrame(rows, columns=["model", "revision", "layer", "task", "score"]))
    order = [*(f"m/{names[i]}#0" for i in (3, 2, 0, 1)), "n/0000020000#0"]
    assert list(table.problem.arms) == order
    assert table.problem.step.tolist() == [5000, 20_000, 21_000, 21_001, 20_000]


def test_reads_a_folder_of_mteb_results(frame, tmp_path):
    for row in frame.itertuples():
        folder = tmp_path / "org__model" / f"{row.revision}" / f"layer_{row.layer}"
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "task_name": row.task,
            "evaluation_time": row.eval_seconds,
            "scores": {"test": [{"main_score": row.main_score, "languages": ["eng-Latn"]}]},
        }
        (folder / f"{row.task}.json").write_text(json.dumps(content))
        (folder / "model_meta.json").write_text("{}")
    table = read_scores(tmp_path)
    check(table, frame)
    assert table.problem.models == ("org__model",)
    assert table.seconds[0].tolist() == [1, 10, 100]


def test_an_undefined_score_is_nan_in_the_table_and_counts_as_zero(frame, tmp_path, caplog):
    frame.loc[0, "main_score"] = np.nan
    frame.to_csv(tmp_path / "scores.csv", index=False)
    table = read_scores(tmp_path / "scores.csv")
    assert "1 scores are empty or NaN; they count as 0" in caplog.text
    check(table, frame)
    assert np.isnan(table.scores).sum() == 1 and (table.counted == 0).sum() == 1
    truth, _ = table.truth(RewardsConfig(scale="raw"))
    np.testing.assert_allclose(truth, np.nan_to_num(table.scores).mean(axis=1))


def test_reads_an_exhaustively_scored_store(frame, tmp_path):
    from batchsweep.store import create_store

    store = create_store(str(tmp_path / "store.zarr"))
    for row in frame.itertuples():
        record = {
            "model": "org/model",
            "revision": row.revision,
            "step": row.step,
            "layer": row.layer,
            "pooling": "mean",
            "task": row.task,
            "main_score": row.main_score,
            "seconds": row.eval_seconds,
        }
        store.write_json(f"scores/m/{row.revision}/{row.layer}-mean/{row.task}.json", record)
    check(read_scores(tmp_path / "store.zarr"), frame)


def problem_of_poolings(folder, *poolings):
    """Of a store with a score of one layer in each of these poolings."""
    store = create_store(str(folder / "store.zarr"))
    for pooling in poolings:
        record = {"model": "m", "revision": "step1", "step": 1, "layer": 2, "pooling": pooling}
        record |= {"task": "T", "main_score": 0.5, "seconds": 1.0}
        store.write_json(f"scores/m/step1/2-{pooling}/T.json", record)
    return read_scores(folder / "store.zarr").problem


def test_arms_of_several_poolings_are_spelled_as_everywhere(tmp_path):
    arms = problem_of_poolings(tmp_path, "mean", "last").arms
    assert sorted(arms) == ["m/step1#2#last", "m/step1#2#mean"]
    assert [str(Arm.parse(arm)) for arm in arms] == list(arms)


def test_arms_of_a_transform_are_surfaces_of_their_own(tmp_path):
    problem = problem_of_poolings(tmp_path, "mean", "mean+center")
    assert problem.arms == ("m/step1#2", "m/step1#2#mean+center")
    # The default arm is an arm as stored.
    assert problem.default_arm() == 0


def test_metrics_become_features(frame, tmp_path):
    metrics = pd.DataFrame(
        [("main", k, "lidar", "raw", float(k)) for k in range(5)],
        columns=["revision", "layer", "metric", "key", "value"],
    )
    table = table_of(frame, metrics=metrics)
    column = table.problem.metrics["lidar_raw"]
    assert column[10:].tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(column[:10]).all()


def test_incomplete_and_malformed_tables_are_refused(frame, tmp_path):
    with pytest.raises(UsageError, match="1 of 45 cells"):
        table_of(frame.iloc[1:])
    with pytest.raises(UsageError, match="step1 layer 0 on A is there twice"):
        table_of(pd.concat([frame, frame.iloc[:1]]))
    with pytest.raises(UsageError, match="no column layer; needed: revision, layer"):
        table_of(frame.drop(columns="layer"))
    with pytest.raises(UsageError, match="no such file"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "s.txt").write_text("x")
    with pytest.raises(UsageError, match=r"valid: \.csv, \.parquet"):
        read_scores(tmp_path / "s.txt")


def test_replay_is_the_live_loop(frame):
    table = table_of(frame)
    arms, tasks = table.problem.arms, table.problem.tasks

    def score(arm, task):
        return Score(float(table.scores[arms.index(arm), tasks.index(task)]), 1.0)

    config = BanditConfig(
        policy="toptwo_gp", budget=PullBudget(pulls=25), seed=4, final_check=0, stop_at_regret=0
    )
    live = run(table.problem, score, config, quiet=True)
    curves = replay.replay(table, ["toptwo_gp"], config=config, seeds=[4])
    truth = table.scores.mean(axis=1)
    regret = truth.max() - truth[arms.index(live.answer.arm)]
    assert curves["pulls"].max() == live.budget.spent_pulls == 25
    assert curves["regret"].iloc[-1] == pytest.approx(regret, abs=1e-12)
    assert curves["p_best"].iloc[-1] == pytest.approx(live.answer.p_best)


def test_curves_and_summary(frame):
    table = table_of(frame)
    policies = ["exhaustive", "random", "heuristic"]
    config = BanditConfig(budget=1e9, final_check=0, stop_at_regret=0)
    curves = replay.replay(table, policies, config=config, seeds=range(3))
    last = replay.summary(curves, [45]).set_index("policy")
    assert last.loc["exhaustive", "regret"] == 0
    assert last.loc["random", "best"] == 1
    assert last.loc["heuristic", "regret"] > 0
    assert (last["seeds"] == 3).all()
    assert curves[curves.policy == "exhaustive"]["seconds"].max() == 15 * 111
    early = replay.summary(curves, [5]).set_index("policy")
    # Nothing but the first rows of the table is known: the policy can't have the answer.
    assert early.loc["exhaustive", "best"] == 0


def test_z_rewards_are_judged_by_the_true_z_scale(frame):
    table = table_of(frame)
    truth, unit = table.truth(RewardsConfig(scale="z"))
    last = table.scores[-5:]
    spread = np.sqrt((last.var(axis=0) + np.median(last.var(axis=0))) / 2)
    np.testing.assert_allclose(truth, ((table.scores - last.mean(axis=0)) / spread).mean(axis=1))
    assert unit == pytest.approx((1 / spread).mean())
    config = BanditConfig(budget=1e9, final_check=0, stop_at_regret=0)
    curves = replay.replay(
        table, ["exhaustive"], config=config, rewards=RewardsConfig(scale="z"), seeds=[0]
    )
    assert curves["regret"].iloc[-1] == 0


def test_seeds_draw_parts_of_the_table(frame):
    table = table_of(frame)
    one, two = table.subset(1, arms=0.5, tasks=0.7), table.subset(2, arms=0.5, tasks=0.7)
    assert one.problem.shape[1] == two.problem.shape[1] == 2
    assert one.problem.shape[0] in (8, 9)
    assert one.problem.arms != two.problem.arms
    assert one.problem.baseline.any()
    assert table.subset(1, arms=0.5, tasks=0.7).problem.arms == one.problem.arms
    for i, arm in enumerate(one.problem.arms):
        row = table.problem.arms.index(arm)
        columns = [table.problem.tasks.index(t) for t in one.problem.tasks]
        np.testing.assert_array_equal(one.scores[i], table.scores[row, columns])


def test_intervals_by_hand():
    low, high = replay.wilson(38, 40)
    assert (round(low, 3), round(high, 3)) == (0.835, 0.986)
    assert replay.wilson(0, 0) == (0.0, 1.0)
    stated = pd.DataFrame({"p_best": [0.9, 0.9, 0.2, np.nan], "best": [True, False, False, True]})
    table = replay.calibration(stated, (0, 0.5, 1))
    assert table["statements"].tolist() == [1, 2]
    assert table["happened"].tolist() == [0, 0.5]


def test_figure_shows_every_policy(frame, tmp_path):
    config = BanditConfig(budget=5, final_check=0, stop_at_regret=0)
    curves = replay.replay(
        table_of(frame), ["random", "ucb", "heuristic"], config=config, seeds=[0]
    )
    regret_figure.figure(curves, tmp_path / "f.svg", title="t")
    text = (tmp_path / "f.svg").read_text()
    assert "<svg" in text
    assert len(text) > 10_000


def test_seeds_and_text(frame):
    assert list(replay_text.seeds_of("2:5")) == [2, 3, 4]
    assert list(replay_text.seeds_of("7")) == [7]
    for wrong in ("5:2", "x", "", "-1"):
        with pytest.raises(UsageError, match="0:40"):
            replay_text.seeds_of(wrong)
    config = BanditConfig(budget=15, final_check=0, stop_at_regret=0)
    curves = replay.replay(table_of(frame), ["exhaustive"], config=config, seeds=range(2))
    lines = replay_text.text(curves, [45]).splitlines()
    assert lines[1].split()[:4] == ["exhaustive", "45", "2", "0.000"]
    assert "100%" in lines[1]
    best = table_of(frame).problem.arms[int(table_of(frame).scores.mean(axis=1).argmax())]
    found = next(line.split() for line in lines if best in line)
    assert found == ["exhaustive", best, "2", "of", "2", "0.000"]


def test_stated_probability_stands_beside_how_often_it_was_true():
    rows = [("gp", seed, 10, 1.0, f"a{seed}", 0.0, seed < 1, True, 0.9, 20) for seed in range(4)]
    curves = pd.DataFrame(rows, columns=replay.COLUMNS)
    lines = replay_text.text(curves, [10]).splitlines()
    assert next(line.split() for line in lines if "0.8 to" in line) == (
        ["gp", "0.8", "to", "0.95", "4", "0.90", "0.25"]
    )
    assert next(line.split() for line in lines if "others" in line)[:6] == (
        ["gp", "1", "others", "1", "of", "4"]
    )


def test_settings_are_the_configs_but_for_the_budget(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "models: [m]\ntasks: [STS12]\nrewards: {scale: z}\n"
        "bandit: {budget: 7, final_check: 2, stop_at_regret: 0.01}\n"
    )
    config = load(tmp_path / "c.yaml")
    assert replay_text.settings_of(config, None, None) == (config.bandit, config.rewards)
    bandit, _ = replay_text.settings_of(config, None, 12)
    assert bandit.budget == PullBudget(pulls=12) and bandit.final_check == 2
    assert replay_text.settings_of(None, 3.0, None)[0].stop_at_regret == 0
    for budget, pulls in ((0.0, None), (float("inf"), None), (float("nan"), None), (None, 0)):
        with pytest.raises(UsageError, match="give a number above 0"):
            replay_text.settings_of(None, budget, pulls)


def test_policies_are_named_or_refused():
    assert replay_text.names_of("ucb, random,ucb") == ["ucb", "random"]
    for wrong in ("ucb,best", "", ","):
        with pytest.raises(UsageError, match=r"no such policy; valid: .*toptwo_gp"):
            replay_text.names_of(wrong)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (7, "layer", 2.5, r"s\.csv: layer '2.5' in row 8 \(step1, layer 2.5, B\) is not a layer"),
        (7, "layer", -1, "is not a layer"),
        (3, "main_score", np.inf, r"score 'inf' in row 4 \(step1, layer 1, A\) is not a finite"),
        (3, "main_score", "good", "score 'good' in row 4"),
        (3, "step", "late", "step 'late' in row 4"),
    ],
)
def test_what_is_no_number_is_named_with_its_row(frame, tmp_path, row, column, value, message):
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    frame.to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(UsageError, match=message):
        read_scores(tmp_path / "s.csv")


def test_an_undefined_score_is_named_with_its_row(frame, caplog):
    frame.loc[4, "main_score"] = np.nan
    table_of(frame)
    assert "the first is in row 5 (model, step1, layer 1, B)" in caplog.text


def test_metrics_without_their_columns_or_numbers_are_refused(frame, tmp_path):
    frame.to_csv(tmp_path / "s.csv", index=False)
    metrics = pd.DataFrame(
        [("main", k, "lidar", float(k)) for k in range(5)],
        columns=["revision", "layer", "metric", "value"],
    )
    metrics.drop(columns="metric").to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(UsageError, match=r"m\.csv: no column metric; needed: revision, layer"):
        read_scores(tmp_path / "s.csv", metrics=tmp_path / "m.csv")
    metrics["value"] = metrics["value"].astype(object)
    metrics.loc[2, "value"] = "none"
    metrics.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(UsageError, match=r"value 'none' in row 3 \(main, layer 2, lidar\)"):
        read_scores(tmp_path / "s.csv", metrics=tmp_path / "m.csv")


@pytest.mark.parametrize("part", [0, -0.5, 1.5, float("inf"), float("nan")])
def test_parts_are_above_0_and_at_most_1(frame, part):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        replay.replay(table_of(frame), ["random"], arms=part)
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        replay.replay(table_of(frame), ["random"], tasks=part)


def test_the_baseline_is_the_configs(frame):
    table = table_of(frame)
    rewards = RewardsConfig(scale="z", baseline="step1")
    chosen = table.for_rewards(rewards)
    assert np.flatnonzero(chosen.problem.baseline).tolist() == [0, 1, 2, 3, 4]
    curves = replay.replay(table, ["exhaustive"], rewards=rewards, seeds=[0])
    truth, _ = chosen.truth(rewards)
    assert curves["arm"].iloc[-1] == table.problem.arms[int(truth.argmax())]
    with pytest.raises(UsageError, match=r"baseline 'step7'.*valid: step1, step100, main"):
        replay.replay(table, ["random"], rewards=RewardsConfig(baseline="step7"))


def test_only_the_targets_tasks_count(frame):
    names = {"A": "STS12", "B": "Banking77Classification", "C": "STS13"}
    table = table_of(frame.replace({"task": names}))
    chosen = table.for_rewards(RewardsConfig(target="sts"))
    assert chosen.problem.tasks == ("STS12", "STS13")
    np.testing.assert_array_equal(chosen.scores, table.scores[:, [1, 2]])


def test_which_arms_were_found_in_how_many_seeds(frame):
    curves = replay.replay(table_of(frame), ["exhaustive", "heuristic"], seeds=range(3))
    found = replay.found(curves)
    assert found["policy"].tolist() == ["exhaustive", "heuristic"]
    assert found["seeds"].tolist() == found["of"].tolist() == [3, 3]
    assert found["regret"].iloc[0] == 0
    assert found["arm"].tolist() == curves.groupby("policy")["arm"].last().tolist()
