"""What export writes is read back by mteb and by pandas, arm by arm."""

from __future__ import annotations

from pathlib import Path

import mteb
import pandas as pd
import pytest
from scoring import KEY, live_score, local_tasks, store_of

from batchsweep.config import CorpusConfig
from batchsweep.errors import StoreError
from batchsweep.score.export import COLUMNS, export, table
from batchsweep.score.scorer import Scorer
from batchsweep.store import Store
from batchsweep.tasks.local import from_columns

OTHER = "tests--live/main"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    flat = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "score": [0, 1, 2, 3]}
    tasks = [*local_tasks()[:3], from_columns("flat", "sts", flat)]
    store = store_of(tmp_path / "x.zarr", tasks, keys=(KEY, OTHER))
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
            [live_score(local_tasks()[0]).get_score()] * 2
        )
        assert frame[frame.task == "flat"].score.isna().all()
        assert set(frame.pooling) == {"mean"} and (frame.seconds > 0).all()


def test_mteb_reads_the_results_and_keeps_arms_apart(store: Store, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out")
    results = mteb.ResultCache(done.results).load_results(include_remote=False)
    assert len(results.model_results) == 4
    frame = results.to_dataframe(format="long")  # mteb's default, which joins revisions
    frame = frame[frame.task_name == "sts"].set_index("model_name").score
    ours = table(store)
    for key, layer, revision in (
        (KEY, 1, "step8"),
        (KEY, 2, "step8"),
        (OTHER, 1, "main"),
        (OTHER, 2, "main"),
    ):
        name = f"tests/live-{revision}-layer{layer}-mean"
        scored = Scorer(store, local_tasks()[:1]).score(f"{key}#{layer}", "sts").main_score
        assert frame[name] == pytest.approx(scored, abs=1e-6)
    assert len(ours) == 9
    assert frame["tests/live-step8-layer1-mean"] != frame["tests/live-step8-layer2-mean"]


def test_full_results_survive(store: Store, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out")
    [path] = done.results.glob("results/tests__live-step8-layer1-mean/*/classes.json")
    result = mteb.TaskResult.from_disk(path)
    live = live_score(local_tasks()[2])
    [ours], [theirs] = result.scores["test"], live.scores["test"]
    assert ours["f1_weighted"] == pytest.approx(theirs["f1_weighted"], abs=1e-6)
    assert len(ours["scores_per_experiment"]) == 10
    assert result.evaluation_time is not None and result.evaluation_time > 0


def test_nothing_to_export(tmp_path: Path) -> None:
    store = store_of(tmp_path / "x.zarr", local_tasks()[:1])
    with pytest.raises(StoreError, match="no scores yet; run 'batchsweep bandit'"):
        export(store, tmp_path / "out")
    assert table(store).empty


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        export(store, tmp_path / "file" / "out")
