"""Scores from the store are mteb's own scores of the live model, in any order and process."""

from __future__ import annotations

import logging
import math
import random
import warnings
from pathlib import Path
from typing import Any

import mteb
import mteb.mocks.mock_tasks as mocks
import numpy as np
import pytest
from mteb.abstasks import AbsTaskRetrieval
from scoring import HIDDEN, KEY, LiveEncoder, live_score, local_tasks, store_of
from scoring_tasks import NAMES, SHORT, Subqueries, all_tasks, fresh_task, hub_layout
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from batchsweep.arm import Arm
from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.errors import ConfigError, StoreError, StoreMismatch, UsageError
from batchsweep.score import scorer as scorer_module
from batchsweep.score.encoder import StoreEncoder
from batchsweep.score.record import ScoreRecord
from batchsweep.score.scorer import Scorer
from batchsweep.store import Store
from batchsweep.tasks import evaluators
from batchsweep.tasks.evaluators import Halves
from batchsweep.tasks.local import from_columns


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("store") / "x.zarr", all_tasks().values())


@pytest.fixture(scope="module")
def scorer(store: Store) -> Scorer:
    return Scorer(store, list(all_tasks().values()), keep=False)


@pytest.fixture(scope="module")
def scored(scorer: Scorer) -> dict[tuple[int, str], ScoreRecord]:
    """(layer, task) -> its score, made in this order by one scorer."""
    pulls = [(layer, name) for layer in (1, 2) for name in NAMES]
    return {pull: scorer.score(f"{KEY}#{pull[0]}", pull[1]) for pull in pulls}


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal to 1e-6, all the way down; null stands for nan."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for i, value in enumerate(theirs):
            assert_same(ours[i], value, f"{path}/{i}")
    elif isinstance(theirs, float):
        if math.isnan(theirs):
            assert ours is None, path
        else:
            assert ours == pytest.approx(theirs, abs=1e-6), path
    else:
        assert ours == theirs, path


@pytest.mark.parametrize("name", NAMES)
def test_score_is_that_of_the_live_model(
    scored: dict[tuple[int, str], ScoreRecord], name: str
) -> None:
    live = live_score(fresh_task(name))
    result = scored[1, name]
    assert result.main_score == live.get_score() or math.isnan(live.get_score())
    assert math.isnan(result.main_score) == math.isnan(live.get_score())
    assert_same(result.document["result"]["scores"], live.to_dict()["scores"])
    assert result.document["result"]["task_name"] == name
    assert result.document["dataset_revision"] == live.dataset_revision
    assert result.document["mteb_version"] == live.mteb_version


def test_tasks_of_common_classes_take_the_shortcut(scorer: Scorer) -> None:
    shortcut = {name for name in NAMES if not scorer.prepared(name)[0].needs_data}
    assert {
        *SHORT,
        "LegacySets",
        "Hierarchy",
        "Subqueries",
        "Gaps",
        "Equal",
        "OwnNames",
    } <= shortcut
    assert {"bitext", "summaries", "OwnScore", "MockRegressionTask"}.isdisjoint(shortcut)


@pytest.mark.parametrize("name", NAMES)
def test_float16_is_the_rounded_live_model(
    name: str, tmp_path_factory: pytest.TempPathFactory, half_scorer: Scorer
) -> None:
    live = live_score(fresh_task(name), LiveEncoder(dtype="float16"))
    result = half_scorer.score(f"{KEY}#1", name)
    assert result.main_score == pytest.approx(live.get_score(), abs=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def half_scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    path = tmp_path_factory.mktemp("half") / "x.zarr"
    half = store_of(path, all_tasks().values(), dtype="float16")
    return Scorer(half, list(all_tasks().values()), keep=False)


def test_any_order_gives_the_same_numbers(
    scored: dict[tuple[int, str], ScoreRecord], store: Store
) -> None:
    other = Scorer(store, list(all_tasks().values()), keep=False)
    pulls = list(scored)
    for seed in (1, 2):
        random.Random(seed).shuffle(pulls)
        for layer, name in pulls:
            again = other.score(f"{KEY}#{layer}", name).main_score
            first = scored[layer, name].main_score
            assert again == first or (math.isnan(again) and math.isnan(first)), (layer, name)


def test_global_random_state_does_not_matter(scorer: Scorer) -> None:
    scores = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        scores.append([scorer.score(f"{KEY}#1", name).main_score for name in SHORT])
    assert scores[0] == scores[1]


@pytest.mark.parametrize("rows", [0, 25, 60])
def test_what_is_kept_in_memory_does_not_matter(
    rows: int,
    store: Store,
    scored: dict[tuple[int, str], ScoreRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing fits, some of the texts that are asked for twice, all of some tasks.
    monkeypatch.setattr("batchsweep.score.scorer.KEPT_BYTES", rows * 4 * HIDDEN)
    monkeypatch.setattr("batchsweep.tasks.evaluators.retrieval.CORPUS_CHUNK", 40)
    small = Scorer(store, list(all_tasks().values()), keep=False)
    for name in ("pairs", "labels", "clusters", "rerank", "search", "LegacySets", "OwnNames"):
        expected = scored[2, name].main_score
        assert small.score(f"{KEY}#2", name).main_score == expected, name


def test_a_pull_is_kept_and_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = local_tasks("sts")
    store = store_of(tmp_path / "x.zarr", tasks)
    first = Scorer(store, tasks).score(f"{KEY}#1", "sts")
    with monkeypatch.context() as patch:  # Not even made ready to be scored.
        patch.setattr(scorer_module, "prepare_task", None)
        assert Scorer(store, tasks).score(f"{KEY}#1", "sts").document == first.document
    [path] = store.list_json("scores")
    record = store.read_json(path)
    assert record["layer"] == 1 and record["pooling"] == "mean" and record["step"] == 8
    assert record["cap"] is None and record["seconds"] > 0
    # A record of other vectors or another mteb is not believed.
    record["origin"]["mteb"] = "1.0"
    record["main_score"] = 0.5
    store.write_json(path, record)
    assert Scorer(store, tasks).score(f"{KEY}#1", "sts").main_score == first.main_score


def test_store_encoder_in_mteb_itself(store: Store) -> None:
    live = live_score(fresh_task("search"))
    encoder = StoreEncoder(store, KEY, 1)
    [result] = mteb.evaluate(
        encoder,
        fresh_task("search"),
        co2_tracker=False,
        cache=None,
        show_progress_bar=False,
    )
    assert result.get_score() == pytest.approx(live.get_score(), abs=1e-6)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision) == ("tests/live", "step8")
    assert meta.experiment_name == "layer_1__pooling_mean"
    with pytest.raises(StoreError, match=r"task 'strange'.*'never seen'.*batchsweep prepare"):
        strange = {"sentence1": ["never seen", "b"], "sentence2": ["c", "d"], "score": [0, 1]}
        live_score(from_columns("strange", "sts", strange), encoder)


def test_a_prefix_by_prompt_type_is_part_of_the_text(tmp_path: Path) -> None:
    embedding = EmbeddingConfig(prefix={"query": "ask: ", "document": "answer: "})
    tasks = local_tasks("sts", "search")
    store = store_of(tmp_path / "x.zarr", tasks, embedding=embedding)
    corpus = store.corpus()
    assert corpus is not None
    searched = corpus.texts(corpus.rows_of("search"))
    assert {text.split(": ")[0] for text in searched} == {"ask", "answer"}
    assert not any(": " in text for text in corpus.texts(corpus.rows_of("sts")))

    class Prefixed(LiveEncoder):
        def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> np.ndarray:
            self.prefix = {"query": "ask: ", "document": "answer: "}[prompt_type.value]
            return super().encode(inputs, **kwargs)

    live = live_score(fresh_task("search"), Prefixed())
    ours = Scorer(store, tasks, keep=False).score(f"{KEY}#1", "search")
    assert ours.main_score == pytest.approx(live.get_score(), abs=1e-6)


def test_nan_is_null_in_the_store(tmp_path: Path) -> None:
    same = {"sentence1": ["a"] * 4, "sentence2": ["b"] * 4, "score": [0, 1, 2, 3]}
    task = from_columns("flat", "sts", same)
    store = store_of(tmp_path / "x.zarr", [task])
    with pytest.warns(match="constant"):
        result = Scorer(store, [task]).score(f"{KEY}#1", "flat")
    assert math.isnan(result.main_score)
    assert result.document["main_score"] is None
    assert math.isnan(Scorer(store, [task]).score(f"{KEY}#1", "flat").main_score)


def test_the_installed_mteb_is_the_one_that_shortcuts_were_tested_against() -> None:
    for shortcut in evaluators.SHORTCUTS:
        assert shortcut.source_now == shortcut.source, (
            f"mteb's {shortcut.base.__name__} has changed: compare it with the shortcut, run the "
            "tests, then state the new digest"
        )


def test_another_mteb_scores_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sts, *others = evaluators.SHORTCUTS
    changed = evaluators.Shortcut(**{**vars(sts), "source": "0" * 16})
    monkeypatch.setattr(evaluators, "SHORTCUTS", (changed, *others))
    with caplog.at_level(logging.WARNING):
        assert evaluators.prepare_task(local_tasks("sts")[0]).needs_data
    assert "AbsTaskSTS" in caplog.text


def test_a_task_that_changes_its_texts_is_found_out(tmp_path: Path) -> None:
    class Wandering(mocks.MockSummarizationTask):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            self.times = getattr(self, "times", 0) + 1
            rows = self.dataset["test"].select(range(1 + self.times % 2))
            return super().evaluate(*args, **kwargs) if self.times == 1 else self._less(rows, args)

        def _less(self, rows: Any, args: Any) -> Any:
            self.dataset["test"] = rows
            return super().evaluate(*args, encode_kwargs={})

    store = store_of(tmp_path / "x.zarr", [Wandering()])
    with pytest.raises((StoreError, ConfigError), match="texts changed"):
        Scorer(store, [Wandering()], keep=False).score(f"{KEY}#1", "MockSummarizationTask")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (f"{KEY}", "is not an arm"),
        (f"{KEY}#x", "is not an arm"),
        (f"{KEY}#1#mean#more", "is not an arm"),
        (f"{KEY}#7", "no layer 7; valid: 1, 2"),
        (f"{KEY}#1#max", "no pooling 'max'; valid: mean"),
        ("tests--live/step9#1", "no checkpoint tests--live/step9"),
    ],
)
def test_a_wrong_arm(scorer: Scorer, arm: str, message: str) -> None:
    with pytest.raises((UsageError, StoreError), match=message):
        scorer.score(arm, "sts")


def test_embeddings_of_another_corpus(tmp_path: Path) -> None:
    task = local_tasks("sts")[0]
    store = store_of(tmp_path / "x.zarr", [task], corpus_digest="0" * 64)
    with pytest.raises(StoreMismatch, match=r"tests--live/step8 are of another corpus"):
        Scorer(store, [task]).score(f"{KEY}#1", "sts")


def test_arm_of_several_poolings() -> None:
    assert Arm.parse("a--b/main#12#last") == Arm("a--b/main", 12, "last")
    assert Arm.parse("a--b/main#0") == Arm("a--b/main", 0)


def test_a_task_that_the_corpus_lacks(store: Store) -> None:
    more = from_columns(
        "more", "sts", {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0, 1]}
    )
    with pytest.raises(StoreError, match=r"no task 'more'; it has sts, pairs.*prepare"):
        Scorer(store, [more])
    with pytest.raises(UsageError, match="no task 'nothing'; valid: sts"):
        Scorer(store, local_tasks()).score(f"{KEY}#1", "nothing")


def test_a_text_that_the_corpus_lacks(store: Store) -> None:
    columns = {"sentence1": ["not in there", "b"], "sentence2": ["c", "d"], "score": [0, 1]}
    changed = from_columns("sts", "sts", columns)
    with pytest.raises(StoreError, match=r"task 'sts' asks for 2 texts.*'not in there'.*prepare"):
        Scorer(store, [changed]).score(f"{KEY}#1", "sts")


@pytest.mark.parametrize(
    "name",
    [
        "sts",
        "pairs",
        "classes",
        "labels",
        "clusters",
        "rerank",
        "search",
        "bitext",
        "summaries",
        "LegacySets",
    ],
)
def test_a_cap_is_a_subset_that_the_result_names(name: str, tmp_path: Path) -> None:
    corpus = CorpusConfig(max_texts_per_task=40, seed=3)
    store = store_of(tmp_path / "x.zarr", [fresh_task(name)], corpus=corpus)
    there = store.corpus()
    assert there is not None and there.n_texts <= 40
    result = Scorer(store, [fresh_task(name)], corpus=corpus).score(f"{KEY}#1", name)
    assert result.document["cap"] == {"max_texts_per_task": 40, "seed": 3}
    # The same subset anywhere: what mteb says of the capped task is what we say.
    capped = fresh_task(name)
    capped.load_data()
    evaluators.prepare_task(capped, corpus)
    assert result.main_score == pytest.approx(live_score(capped).get_score(), abs=1e-6)


def test_a_cap_above_the_size_changes_nothing(tmp_path: Path) -> None:
    corpus = CorpusConfig(max_texts_per_task=10_000)
    tasks = local_tasks()
    store = store_of(tmp_path / "x.zarr", tasks, corpus=corpus)
    result = Scorer(store, local_tasks(), corpus=corpus).score(f"{KEY}#1", "sts")
    assert result.document["cap"] is None
    assert result.main_score == pytest.approx(
        live_score(local_tasks("sts")[0]).get_score(), abs=1e-6
    )


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("batchsweep.tasks.evaluators.large_reranking.LARGE", 0)
    folder = hub_layout(tmp_path / "hub")

    class Large(Subqueries):
        metadata = Subqueries.metadata.model_copy(
            update={"name": "Large", "dataset": {"path": str(folder), "revision": "main"}}
        )
        load_data = AbsTaskRetrieval.load_data

    monkeypatch.setattr(
        type(Large.metadata), "n_samples", property(lambda self: {"test": 100}), raising=False
    )
    return Large


def test_a_large_reranking_task_is_never_loaded_as_dictionaries(
    large: type, tmp_path: Path
) -> None:
    task = large()
    store = store_of(tmp_path / "x.zarr", [task])
    result = Scorer(store, [task], keep=False).score(f"{KEY}#1", "Large")
    assert not task.data_loaded
    corpus = store.corpus()
    assert corpus is not None and "not judged" not in corpus.texts()
    live = live_score(large())
    assert_same(result.document["result"]["scores"], live.to_dict()["scores"])


def test_a_cap_of_a_large_reranking_task(large: type, tmp_path: Path) -> None:
    corpus = CorpusConfig(max_texts_per_task=30, seed=1)
    store = store_of(tmp_path / "x.zarr", [large()], corpus=corpus)
    there = store.corpus()
    assert there is not None and there.n_texts <= 30
    result = Scorer(store, [large()], corpus=corpus, keep=False).score(f"{KEY}#1", "Large")
    assert result.document["cap"] == {"max_texts_per_task": 30, "seed": 1}
    assert 0 < result.main_score <= 1


def test_halves_of_a_large_reranking_task(large: type, tmp_path: Path) -> None:
    task = large()
    store = store_of(tmp_path / "x.zarr", [task])
    scorer = Scorer(store, [task], keep=False)
    halves = Halves(50, seed=1)
    result = scorer.score(f"{KEY}#1", "Large", halves)
    one, two = scorer.prepared("Large", halves)
    asked = [sum(len(request) for request in part.requests) for part in (one, two)]
    assert not task.data_loaded and 0 < max(asked) <= 25
    assert len(result.document["halves"]) == 2
    assert "halves" not in scorer.score(f"{KEY}#1", "Large", Halves(10_000, seed=1)).document


def test_fits_that_mteb_ends_early_are_no_warnings(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-six of them, of eight lines each, once buried the progress of a search."""
    fitted = []

    def fit(self: LogisticRegression, *args: Any, **more: Any) -> LogisticRegression:
        fitted.append(self)
        warnings.warn("lbfgs failed to converge", ConvergenceWarning, stacklevel=2)
        return true(self, *args, **more)

    true = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", fit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(store, local_tasks(), keep=False).score(f"{KEY}#1", "classes")
    assert fitted
