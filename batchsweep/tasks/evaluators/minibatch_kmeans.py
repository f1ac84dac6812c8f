"""sklearn's MiniBatchKMeans, step by step the same, without what its result doesn't need.

Most of mteb's clustering time is spent in ``MiniBatchKMeans.fit``, and half of that on work that
changes nothing for one initialisation and one thread: a check of all values, a copy of all
vectors, norms that are not used, float32 vectors made float64 again for each centre of k-means++,
probabilities summed up again for each batch, an inertia of all vectors. The labels here are bit by
bit those of sklearn, as a test says; with another sklearn than the one it was compared with, or
other settings, sklearn itself runs.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans, _kmeans
from sklearn.metrics import pairwise

logger = logging.getLogger(__name__)

Values = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

#: Rows that are labelled at once: a multiple of the 256 that sklearn multiplies together.
LABELLED = 4096

#: sha256 (16 hex digits) of the source of what this module stands for.
SOURCE = "1b18b05391ef7c46"


def source_now() -> str:
    """The same of the sklearn that is installed."""
    stood_for = (
        MiniBatchKMeans.fit,
        MiniBatchKMeans._check_params_vs_input,
        MiniBatchKMeans._init_centroids,
        _kmeans._kmeans_plusplus,
        _kmeans._labels_inertia,
        _kmeans._mini_batch_step,
        pairwise._euclidean_distances,
        pairwise._euclidean_distances_upcast,
    )
    return hashlib.sha256("".join(map(inspect.getsource, stood_for)).encode()).hexdigest()[:16]


@cache
def is_tested() -> bool:
    """Whether this sklearn is the one that the labels were compared with."""
    if source_now() == SOURCE and _kmeans.CHUNK_SIZE == 256:
        return True
    logger.warning(
        "this sklearn's MiniBatchKMeans is not the one that batchsweep knows: "
        "clustering tasks take twice as long"
    )
    return False


def labels_of(model: MiniBatchKMeans, matrix: Values, index: Indices) -> npt.NDArray[np.int32]:
    """The labels that ``model.fit(matrix[index])`` gives, ``matrix[index]`` never made as a whole.

    Args:
        model: with ``init="k-means++"`` and one initialisation.
        matrix: [vector, hidden], finite.
        index: [row], the vector of each row.
    """
    n = len(index)
    shape = np.broadcast_to(np.float32(0), (n, matrix.shape[1]))  # all that the check looks at
    if not is_tested() or matrix.dtype != np.float32:
        return np.asarray(model.fit(matrix[index]).labels_)
    model._check_params_vs_input(shape)
    if model._n_init != 1 or model.init != "k-means++" or model.tol > 0:
        return np.asarray(model.fit(matrix[index]).labels_)
    random = np.random.RandomState(model.random_state)
    random.randint(0, n, model._init_size)  # a validation set, which one initialisation ignores
    start = index
    if model._init_size < n:
        start = index[random.randint(0, n, model._init_size)]
    centers = _first_centers(matrix[start], model.n_clusters, random)
    return _labels(model, matrix, index, _improved(model, matrix, index, centers, random))


def _first_centers(vectors: Values, size: int, random: np.random.RandomState) -> Values:
    """``_kmeans_plusplus``, with the vectors made float64 once."""
    n = len(vectors)
    exact = vectors.astype(np.float64)
    squares = np.einsum("ij,ij->i", exact, exact)
    weight = np.ones(n, np.float32)
    trials = 2 + int(np.log(size))
    chosen = np.empty(size, np.int64)
    chosen[0] = random.choice(n, p=weight / weight.sum())
    closest = _distances(exact, squares, chosen[:1])
    potential = closest @ weight
    for c in range(1, size):
        drawn = random.uniform(size=trials) * potential
        candidates = np.searchsorted(np.cumsum(weight * closest), drawn)
        np.clip(candidates, None, closest.size - 1, out=candidates)
        distances = _distances(exact, squares, candidates)
        np.minimum(closest, distances, out=distances)
        potentials = distances @ weight.reshape(-1, 1)
        best = np.argmin(potentials)
        potential, closest = potentials[best], distances[best]
        chosen[c] = candidates[best]
    return vectors[chosen]


def _distances(
    exact: npt.NDArray[np.float64], squares: npt.NDArray[np.float64], rows: Indices
) -> Values:
    """``_euclidean_distances`` of some rows to all, squared: the same products, chunk by chunk."""
    n, hidden = exact.shape
    most = max(((len(rows) + n) * hidden + len(rows) * n) / 10, 10 * 2**17)
    chunk = max(int((-2 * hidden + math.sqrt((2 * hidden) ** 2 + 4 * most)) / 2), 1)
    distances = np.empty((len(rows), n), np.float32)
    for first in range(0, len(rows), chunk):
        mine = rows[first : first + chunk]
        for start in range(0, n, chunk):
            others = slice(start, start + chunk)
            product = -2 * (exact[mine] @ exact[others].T)
            product += squares[mine][:, None]
            product += squares[others][None, :]
            distances[first : first + chunk, others] = product
    return np.maximum(distances, 0, out=distances)


def _improved(
    model: MiniBatchKMeans,
    matrix: Values,
    index: Indices,
    centers: Values,
    random: np.random.RandomState,
) -> Values:
    """The batches of ``MiniBatchKMeans.fit``."""
    n = len(index)
    centers_new = np.empty_like(centers)
    model._counts = np.zeros(model.n_clusters, np.float32)
    model._ewa_inertia = model._ewa_inertia_min = None
    model._no_improvement = model._n_since_last_reassign = 0
    weight = np.ones(n, np.float32)
    # What RandomState.choice makes of the probabilities at every call.
    reached = (weight / np.sum(weight)).astype(np.float64).cumsum()
    reached /= reached[-1]
    ones = np.ones(model._batch_size, np.float32)
    batch = np.empty((model._batch_size, matrix.shape[1]), np.float32)
    steps = (model.max_iter * n) // model._batch_size
    for step in range(steps):
        rows = reached.searchsorted(random.random_sample(model._batch_size), side="right")
        np.take(matrix, index[rows], axis=0, out=batch, mode="clip")
        inertia = _kmeans._mini_batch_step(
            X=batch,
            sample_weight=ones,
            centers=centers,
            centers_new=centers_new,
            weight_sums=model._counts,
            random_state=random,
            random_reassign=model._random_reassign(),
            reassignment_ratio=model.reassignment_ratio,
            n_threads=1,
        )
        centers, centers_new = centers_new, centers
        if model._mini_batch_convergence(step, steps, n, 0, inertia):
            break
    return centers


def _labels(model: Any, matrix: Values, index: Indices, centers: Values) -> npt.NDArray[np.int32]:
    labels = np.empty(len(index), np.int32)
    rows = np.empty((min(LABELLED, len(index)), matrix.shape[1]), np.float32)
    ones = np.ones(len(rows), np.float32)
    for start in range(0, len(index), LABELLED):
        wanted = index[start : start + LABELLED]
        part = np.take(matrix, wanted, axis=0, out=rows[: len(wanted)], mode="clip")
        labels[start : start + len(wanted)] = _kmeans._labels_inertia(
            part, ones[: len(wanted)], centers, n_threads=1, return_inertia=False
        )
    return labels
