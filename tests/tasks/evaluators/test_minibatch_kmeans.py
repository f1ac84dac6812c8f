"""Clustering labels are sklearn's own, bit by bit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from batchsweep.tasks.evaluators import minibatch_kmeans as kmeans


def data(rows: int, hidden: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with topics and a direction in common, some of them asked for several times."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((7, hidden))
    matrix = rng.standard_normal((rows * 2 // 3 + 1, hidden)) + 3 * rng.standard_normal(hidden)
    matrix += topics[rng.integers(0, 7, len(matrix))]
    return matrix.astype(np.float32), rng.integers(0, len(matrix), rows)


@pytest.mark.parametrize(
    ("rows", "hidden", "clusters", "batch"),
    [
        (5000, 256, 20, 500),  # more rows than one piece of labelling
        (4097, 8, 3, 512),  # a last piece of one row
        (400, 64, 30, 500),  # fewer rows than a batch
        (1600, 700, 120, 500),  # distances in several chunks
        (300, 16, 299, 500),  # almost as many clusters as rows: reassignments
        (60, 5, 1, 500),
    ],
)
@pytest.mark.parametrize("seed", [0, 42])
def test_labels_are_sklearn_s(rows: int, hidden: int, clusters: int, batch: int, seed: int) -> None:
    matrix, index = data(rows, hidden, seed)

    def model() -> MiniBatchKMeans:
        return MiniBatchKMeans(clusters, batch_size=batch, n_init="auto", random_state=seed)

    with threadpool_limits(1):
        theirs = model().fit(matrix[index]).labels_
        ours = kmeans.labels_of(model(), matrix, index)
    assert (ours == theirs).all()


def test_equal_vectors() -> None:
    matrix = np.ones((3, 4), np.float32)
    index = np.zeros(50, np.int64)
    with threadpool_limits(1):
        theirs = MiniBatchKMeans(4, n_init=1, random_state=1).fit(matrix[index]).labels_
        ours = kmeans.labels_of(MiniBatchKMeans(4, n_init=1, random_state=1), matrix, index)
    assert (ours == theirs).all()


def test_the_installed_sklearn_is_the_one_that_was_compared() -> None:
    assert kmeans.source_now() == kmeans.SOURCE, (
        "sklearn's MiniBatchKMeans has changed: compare, run this file, state the new digest"
    )


def test_another_sklearn_runs_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kmeans, "SOURCE", "0" * 16)
    kmeans.is_tested.cache_clear()
    fits = []
    fit = MiniBatchKMeans.fit
    monkeypatch.setattr(MiniBatchKMeans, "fit", lambda self, X: fits.append(len(X)) or fit(self, X))
    matrix, index = data(100, 8, 1)
    with caplog.at_level(logging.WARNING):
        kmeans.labels_of(MiniBatchKMeans(3, n_init=1, random_state=1), matrix, index)
    kmeans.is_tested.cache_clear()
    assert fits == [100] and "MiniBatchKMeans" in caplog.text


def test_settings_that_the_shortcut_lacks_go_to_sklearn() -> None:
    matrix, index = data(200, 8, 1)
    for settings in ({"n_init": 3}, {"init": "random", "n_init": 1}, {"tol": 0.1, "n_init": 1}):
        with threadpool_limits(1):
            theirs = MiniBatchKMeans(3, random_state=1, **settings).fit(matrix[index]).labels_
            ours = kmeans.labels_of(MiniBatchKMeans(3, random_state=1, **settings), matrix, index)
        assert (ours == theirs).all()
