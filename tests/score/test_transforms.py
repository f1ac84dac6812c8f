"""Arms whose vectors are transformed when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import mteb
import numpy as np
import pytest
from scoring import HIDDEN, KEY, LiveEncoder, live_score, store_of, vector
from scoring_tasks import fresh_task

from batchsweep.config.models import Transform as TransformName
from batchsweep.errors import UsageError
from batchsweep.score import transforms
from batchsweep.score.encoder import StoreEncoder
from batchsweep.score.scorer import Scorer
from batchsweep.score.transforms import TRANSFORMS, Transform
from batchsweep.store import Store
from batchsweep.sweep import Sweep
from batchsweep.tasks.evaluators import Halves

TYPES = ("sts", "classes", "clusters", "rerank", "search", "summaries")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    tasks = [fresh_task(name) for name in TYPES]
    return store_of(tmp_path_factory.mktemp("store") / "x.zarr", tasks)


def by_the_paper(name: str, vectors: np.ndarray, of: np.ndarray) -> np.ndarray:
    """``unit``, or algorithm 1 of Mu & Viswanath (2018), in float64 and by the singular vectors."""
    if name == "unit":
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = of.astype(np.float64) - of.astype(np.float64).mean(axis=0)
    out = vectors - of.astype(np.float64).mean(axis=0)
    if name == "all_but_the_top":
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        for direction in directions[: max(1, round(of.shape[1] / 100))]:
            out = out - np.outer(out @ direction, direction)
    return out


def test_the_config_lists_what_there_is() -> None:
    assert get_args(TransformName) == ("stored", *TRANSFORMS)


@pytest.mark.parametrize("name", TRANSFORMS[1:])
@pytest.mark.parametrize("shape", [(500, 30), (40, 260), (3, 5)])
def test_the_definition(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    wide = rng.standard_normal(shape).astype(np.float32) * np.linspace(9, 1, shape[1])
    vectors = (wide + 5).astype(np.float32)
    ours = Transform.of(name, vectors)
    assert ours.mean.dtype == ours.components.dtype == np.float32
    expected = by_the_paper(name, vectors, vectors)
    np.testing.assert_allclose(ours(vectors), expected, atol=2e-4)


def test_equal_texts_have_nothing_but_a_mean() -> None:
    same = np.ones((6, 4), np.float32)
    np.testing.assert_array_equal(Transform.of("all_but_the_top", same)(same), np.zeros((6, 4)))


class Transformed(LiveEncoder):
    """The live model, with the transform of a task's texts applied by hand."""

    def __init__(self, store: Store, task: str, name: str) -> None:
        super().__init__()
        corpus = store.corpus()
        assert corpus is not None
        texts = corpus.texts(corpus.rows_of(task))
        self.of, self.name = np.stack([vector(text) for text in texts]), name

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        live = super().encode(inputs, **kwargs)
        return by_the_paper(self.name, live, self.of).astype(np.float32)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("task", TYPES)
def test_scores_are_those_of_the_live_model_with_the_transform(
    store: Store, task: str, name: str
) -> None:
    live = live_score(fresh_task(task), Transformed(store, task, name))
    scorer = Scorer(store, [fresh_task(task)], keep=False)
    ours = scorer.score(f"{KEY}#1#mean+{name}", task)
    assert ours.main_score == pytest.approx(live.get_score(), abs=1e-6)
    assert ours.document["pooling"] == f"mean+{name}"
    plain = scorer.score(f"{KEY}#1", task)
    # A linear classifier with an intercept sees no mean, nor do distances, nor cosines lengths.
    alike = {"unit": ("sts", "rerank", "search", "summaries")}.get(name, ("classes", "clusters"))
    assert task in alike or plain.main_score != ours.main_score
    assert "transform" not in plain.origin
    assert name == "unit" or ours.origin["transform"]["texts"] == 4096


def test_mteb_itself_with_a_transformed_layer(store: Store) -> None:
    encoder = StoreEncoder(store, KEY, 1, "mean+center")
    [result] = mteb.evaluate(
        encoder, fresh_task("sts"), co2_tracker=False, cache=None, show_progress_bar=False
    )
    live = live_score(fresh_task("sts"), Transformed(store, "sts", "center"))
    assert result.get_score() == pytest.approx(live.get_score(), abs=1e-6)
    name = encoder.mteb_model_meta.experiment_name
    assert name == "layer_1__pooling_mean__transform_center"


def test_records_are_kept_apart_and_found_again(tmp_path: Path) -> None:
    tasks = [fresh_task("sts")]
    store = store_of(tmp_path / "x.zarr", tasks)
    scorer = Scorer(store, tasks)
    plain, centred = (scorer.score(f"{KEY}#1{tail}", "sts") for tail in ("", "#mean+center"))
    assert store.list_json("scores") == [
        f"scores/{KEY}/1-mean+center/sts.json",
        f"scores/{KEY}/1-mean/sts.json",
    ]
    again = Scorer(store, tasks)
    assert again.score(f"{KEY}#1#mean+center", "sts").document == centred.document
    data = Sweep(store).to_xarray()
    assert data["arm"].values.tolist() == [
        f"{KEY}#{layer}{tail}" for layer in (1, 2) for tail in ("", "#mean+center")
    ]
    assert data["score"].values[:2, 0].tolist() == [plain.main_score, centred.main_score]
    assert Sweep(store).scores.sizes["pooling"] == 2


def test_a_pull_on_halves_has_the_statistics_of_the_whole_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    of = Transform.of

    def watched(name: str, vectors: np.ndarray) -> Transform:
        seen.append(vectors)
        return of(name, vectors)

    monkeypatch.setattr(Transform, "of", watched)
    tasks = [fresh_task("sts")]
    scorer = Scorer(store_of(tmp_path / "x.zarr", tasks), tasks, keep=False)
    halves = scorer.score(f"{KEY}#1#mean+center", "sts", Halves(40, 0))
    whole = scorer.score(f"{KEY}#1#mean+center", "sts")
    assert halves.halves is not None and halves.main_score != whole.main_score
    first, second = seen
    np.testing.assert_array_equal(first, second)


def test_of_many_texts_a_seeded_sample_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "SAMPLE", 30)
    sweep = Sweep(store)
    stored = np.asarray(sweep.embeddings(f"{KEY}#1", "sts"))
    rows = np.random.default_rng(transforms.SEED).choice(len(stored), 30, replace=False)
    centred = np.asarray(sweep.embeddings(f"{KEY}#1#mean+center", "sts"))
    np.testing.assert_allclose(centred, stored - stored[rows].mean(axis=0), atol=1e-5)


def test_what_is_no_transform_is_named(store: Store) -> None:
    scorer = Scorer(store, [fresh_task("sts")], keep=False)
    with pytest.raises(
        UsageError, match=r"no transform 'centre' .* mean, mean\+unit, mean\+center,"
    ):
        scorer.score(f"{KEY}#1#mean+centre", "sts")
    with pytest.raises(UsageError, match="name the task"):
        Sweep(store).embeddings(f"{KEY}#1#mean+center")
    assert Sweep(store).embeddings(f"{KEY}#1#+center", "sts").shape[1] == HIDDEN
