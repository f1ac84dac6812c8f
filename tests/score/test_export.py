"""What export writes is read back by mteb and by pandas, arm by arm."""

from __future__ import annotations

import json
from pathlib import Path

import mteb
import pandas as pd
import pytest
from scoring import KEY, live_score, local_tasks, store_of

from batchsweep.bandit.score_table import read_scores
from batchsweep.config import CorpusConfig
from batchsweep.errors import StoreError, UsageError
from batchsweep.score.export import COLUMNS, export, table
from batchsweep.score.scorer import Scorer
from batchsweep.store import Store
from batchsweep.tasks.local import from_columns

OTHER = "tests--live/main"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """To be read only."""
    flat = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "score": [0, 1, 2, 3]}
    tasks = [*local_tasks("sts", "pairs", "classes"), from_columns("flat", "sts", flat)]
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    store = store_of(path, tasks, keys=(KEY, OTHER))
    scorer = Scorer(store, tasks, corpus=CorpusConfig())
    for key in (KEY, OTHER):
        for layer in (1, 2):
            for name in ("sts", "classes"):
                scorer.score(f"{key}#{layer}", name)
    with pytest.warns(match="constant"):
        scorer.score(f"{KEY}#1", "flat")
    return store


def test_tidy_table(store: Store, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out")
    assert done.pulls == 9
    for frame in (pd.read_csv(done.table), pd.read_parquet(done.table.with_suffix(".parquet"))):
        assert tuple(frame.columns) == COLUMNS
        assert len(frame) == 9
        of_sts = frame[(frame.task == "sts") & (frame.layer == 1)]
        assert of_sts.score.tolist() == pytest.approx(
            [live_score(local_tasks("sts")[0]).get_score()] * 2
        )
        assert frame[frame.task == "flat"].score.isna().all()
        assert set(frame.pooling) == {"mean"} and (frame.seconds > 0).all()


def test_mteb_reads_checkpoints_as_models_and_arms_as_experiments(
    store: Store, tmp_path: Path
) -> None:
    done = export(store, tmp_path / "out")
    cache = mteb.ResultCache(done.results)
    everything = cache.load_results(include_remote=False, load_experiments="match_name")
    found = [(r.model_name, r.model_revision, r.experiment_name) for r in everything.model_results]
    assert sorted(found) == [
        ("tests/live", revision, f"layer_{layer}__pooling_mean")
        for revision in ("main", "step8")
        for layer in (1, 2)
    ]
    assert not cache.load_results(include_remote=False).model_results, "no arm is taken for a model"
    scored = {}
    scorer = Scorer(store, local_tasks("sts"))
    for layer in (1, 2):
        # mteb's data frames take the mean over experiments: one at a time keeps layers apart.
        results = cache.load_results(
            include_remote=False,
            load_experiments="match_kwargs",
            experiment_kwargs={"layer": layer, "pooling": "mean"},
        )
        frame = results.to_dataframe(format="long", include_model_revision=True)
        frame = frame[frame.task_name == "sts"].set_index("model_revision").score
        for key, revision in ((KEY, "step8"), (OTHER, "main")):
            ours = scorer.score(f"{key}#{layer}", "sts").main_score
            assert frame[revision] == pytest.approx(ours, abs=1e-6)
            scored[revision, layer] = frame[revision]
    assert scored["step8", 1] != scored["step8", 2]


def test_a_replay_reads_what_was_exported_as_it_reads_the_store(
    store: Store, tmp_path: Path
) -> None:
    done = export(store, tmp_path / "out")
    (
        done.results / "results/tests__live/step8/experiments/layer_1__pooling_mean/flat.json"
    ).unlink()
    table = read_scores(done.results)
    assert table.problem.arms == tuple(
        f"tests__live/{revision}#{layer}" for revision in ("step8", "main") for layer in (1, 2)
    )
    assert table.problem.step.tolist()[:2] == [8, 8] and table.problem.depth.tolist()[:2] == [
        0.5,
        1,
    ]
    scorer = Scorer(store, local_tasks("sts", "pairs", "classes"))
    for row, (key, layer) in zip(
        table.scores, [(KEY, 1), (KEY, 2), (OTHER, 1), (OTHER, 2)], strict=True
    ):
        ours = [scorer.score(f"{key}#{layer}", task) for task in table.problem.tasks]
        assert row == pytest.approx([one.main_score for one in ours], abs=1e-6)
    broken = done.results / "results/tests__live/main/experiments/layer_1__pooling_mean/sts.json"
    broken.write_text("{")
    with pytest.raises(UsageError, match=r"sts\.json: can't be read as a result of MTEB"):
        read_scores(done.results)


def test_mteb_keeps_what_a_run_was_made_with(store: Store, tmp_path: Path) -> None:
    folder = export(store, tmp_path / "out").results / "results/tests__live/step8/experiments"
    lines = (folder / "layer_1__pooling_mean" / "run_settings.jsonl").read_text().splitlines()
    settings = [json.loads(line) for line in lines]
    assert {one["task"] for one in settings} == {"sts", "classes", "flat"}
    meta = json.loads((folder / "layer_1__pooling_mean" / "model_meta.json").read_text())
    assert meta["experiment_kwargs"] == {"layer": 1, "pooling": "mean"}


def test_scores_of_capped_tasks_are_experiments_of_their_own(tmp_path: Path) -> None:
    tasks = local_tasks("sts")
    corpus = CorpusConfig(max_texts_per_task=12)
    store = store_of(tmp_path / "x.zarr", tasks)
    Scorer(store, tasks, corpus=corpus).score(f"{KEY}#1", "sts")
    done = export(store, tmp_path / "out")
    [path] = done.results.glob("results/tests__live/step8/experiments/*/sts.json")
    assert path.parent.name == "layer_1__max_texts_12__pooling_mean"


def test_full_results_survive(store: Store, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out")
    arm = "results/tests__live/step8/experiments/layer_1__pooling_mean"
    result = mteb.TaskResult.from_disk(done.results / arm / "classes.json")
    live = live_score(local_tasks("classes")[0])
    [ours], [theirs] = result.scores["test"], live.scores["test"]
    assert ours["f1_weighted"] == pytest.approx(theirs["f1_weighted"], abs=1e-6)
    assert len(ours["scores_per_experiment"]) == 10
    assert result.evaluation_time is not None and result.evaluation_time > 0


def test_nothing_to_export(tmp_path: Path) -> None:
    store = store_of(tmp_path / "x.zarr", local_tasks("sts"))
    with pytest.raises(StoreError, match="no scores yet; run 'batchsweep bandit'"):
        export(store, tmp_path / "out")
    assert table(store).empty


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        export(store, tmp_path / "file" / "out")
