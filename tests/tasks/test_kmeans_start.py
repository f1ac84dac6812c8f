"""The start of k-means: scikit-learn's own clusters to the last bit, or its own start."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from batchsweep.tasks.evaluators import kmeans_start
from batchsweep.tasks.evaluators.kmeans_start import mini_batch_k_means, starts_alike

#: Rows, dimensions, clusters.
SIZES = [(3000, 48, 25), (700, 300, 40), (40, 16, 39), (9, 4, 2), (5, 3, 1)]


def sample(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Some topics, a direction that all share, and texts that come up twice."""
    rng = np.random.default_rng(seed)
    topics = 2 * rng.standard_normal((7, dimensions), dtype=np.float32)
    vectors = rng.standard_normal((rows, dimensions), dtype=np.float32)
    vectors += topics[rng.integers(0, 7, rows)] + topics[0]
    vectors[rows // 2 : rows // 2 + rows // 8] = vectors[: rows // 8]
    if seed % 2:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "dimensions", "clusters"), SIZES)
def test_clusters_are_scikit_learns_to_the_last_bit(
    rows: int, dimensions: int, clusters: int, seed: int
) -> None:
    assert starts_alike()
    vectors = sample(rows, dimensions, seed)
    theirs = MiniBatchKMeans(clusters, batch_size=500, n_init="auto", random_state=42).fit(vectors)
    ours = mini_batch_k_means(clusters, batch_size=500, seed=42).fit(vectors)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)


def test_products_that_round_otherwise_are_made_as_scikit_learn_makes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, dimensions, clusters = 700, 300, 40
    vectors = sample(rows, dimensions, 0)
    known = {(rows, dimensions, 2 + int(np.log(clusters))): False}
    monkeypatch.setattr(kmeans_start, "_ALIKE", known)
    exact = vectors.astype(np.float64)
    assert kmeans_start._columns_that_round_alike(exact, 5).base is exact
    theirs = MiniBatchKMeans(clusters, batch_size=500, n_init=1, random_state=42).fit(vectors)
    ours = mini_batch_k_means(clusters, batch_size=500, seed=42).fit(vectors)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)


def test_another_start_of_scikit_learns_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = kmeans_start.k_means_plus_plus
    monkeypatch.setattr(kmeans_start, "k_means_plus_plus", lambda v, n, random_state: v[:n])
    assert not starts_alike.__wrapped__()
    monkeypatch.setattr(kmeans_start, "starts_alike", lambda: False)
    assert mini_batch_k_means(3, batch_size=9, seed=1).init == "k-means++"
    monkeypatch.setattr(kmeans_start, "k_means_plus_plus", own)
    monkeypatch.setattr(kmeans_start, "starts_alike", lambda: True)
    assert mini_batch_k_means(3, batch_size=9, seed=1).init is own
