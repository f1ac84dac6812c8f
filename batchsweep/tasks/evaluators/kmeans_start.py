"""The first centres of scikit-learn's k-means, the same bits in less time.

Its k-means++ turns the same float32 vectors into float64, and squares their norms, anew for each
centre that it looks for: half of what the start takes, and a fifth or more of a mini-batch k-means.
A start of one's own is a part of its interface; ours draws the same random numbers and computes the
same distances, with the vectors and norms in float64 once. It is tried on small numbers first:
where another scikit-learn starts in another way, its own start it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import MiniBatchKMeans

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

#: (rows, dimensions, trials) -> whether products of these sizes round alike, either way.
_ALIKE: dict[tuple[int, ...], bool] = {}


def mini_batch_k_means(n_clusters: int, *, batch_size: int, seed: int) -> MiniBatchKMeans:
    """``MiniBatchKMeans`` from one start by k-means++, as mteb has it."""
    init = k_means_plus_plus if starts_alike() else "k-means++"
    return _model(init, n_clusters, batch_size, seed)


def _model(
    init: str | Callable[..., Float32], n_clusters: int, batch_size: int, seed: int
) -> MiniBatchKMeans:
    return MiniBatchKMeans(
        n_clusters=n_clusters, batch_size=batch_size, init=init, n_init=1, random_state=seed
    )


@cache
def starts_alike() -> bool:
    """Whether this scikit-learn's own start gives the very same clusters."""
    vectors = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    own, ours = (_model(init, 12, 50, 1).fit(vectors) for init in ("k-means++", k_means_plus_plus))
    return np.array_equal(own.cluster_centers_, ours.cluster_centers_)


def k_means_plus_plus(vectors: Float32, n_clusters: int, random_state: Any) -> Float32:
    """Greedy k-means++ (Arthur and Vassilvitskii, 2007), as scikit-learn draws and rounds it.

    Each next centre is the best of some that are drawn with a probability proportional to the
    squared distance from the centres so far.

    Args:
        vectors: float32 [row, dimension].
        n_clusters: how many centres.
        random_state: numpy's ``RandomState``.

    Returns:
        float32 [centre, dimension], rows of ``vectors``.
    """
    exact = vectors.astype(np.float64)
    columns = _columns_that_round_alike(exact, 2 + int(np.log(n_clusters)))
    norms = np.einsum("ij,ij->i", exact, exact)
    # Its weights of rows, all the same, take part in how it rounds.
    weights = np.ones(len(vectors), vectors.dtype)

    def squared_distances(rows: Any) -> Float32:
        """From some rows to all: computed in float64, as which they cancel out less."""
        found = -2 * (exact[rows] @ (exact.T if len(rows) == 1 else columns))
        found += norms[rows, None]
        found += norms
        distances: Float32 = np.maximum(found.astype(vectors.dtype), 0)
        return distances

    trials = 2 + int(np.log(n_clusters))
    chosen = [random_state.choice(len(vectors), p=weights / weights.sum())]
    nearest = squared_distances(chosen)
    total = nearest @ weights
    for _ in range(1, n_clusters):
        drawn = random_state.uniform(size=trials) * total
        tried = np.searchsorted(np.cumsum(weights * nearest), drawn)
        tried = np.minimum(tried, nearest.size - 1)
        with_each = np.minimum(nearest, squared_distances(tried))
        totals = with_each @ weights[:, None]
        best = int(np.argmin(totals))
        total, nearest = totals[best], with_each[best]
        chosen.append(tried[best])
    centres: Float32 = vectors[chosen]
    return centres


def _columns_that_round_alike(exact: Float64, trials: int) -> Float64:
    """``exact.T`` with its rows together in memory, which halves the time of the products.

    How a product rounds hangs on the order of its sums, and that on its shape alone. So it is tried
    once for each shape, on numbers of which any other order would give others; plain ``exact.T``
    where it does.
    """
    shape = (*exact.shape, trials)
    if shape not in _ALIKE:
        tried = np.random.default_rng(0).standard_normal(exact.shape)
        some = tried[:trials]
        _ALIKE[shape] = np.array_equal(some @ tried.T, some @ np.ascontiguousarray(tried.T))
    # torch turns a matrix around block by block, in a third of numpy's time.
    return torch.from_numpy(exact).T.contiguous().numpy() if _ALIKE[shape] else exact.T
