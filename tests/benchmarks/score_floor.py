"""The floor of scoring: public calls of numpy, scipy and scikit-learn on arrays that lie ready.

No labels are read, no subsets drawn, no texts looked up and nothing is put together outside of the
calls that are timed; vectors lie ready as float16, and become float32, which is what a stored arm
costs at least. What each kind of task takes:

- STS: three distances and a product of each pair, Pearson's and Spearman's correlation of each;
- pair classification: the same and a second product, a sort and the average precision of each;
- classification: ``fit`` and ``predict`` of each of the ten training sets, and the accuracy;
- clustering: of each mini-batch k-means that scikit-learn ran, the products alone (those of its
  start in float64), rows gathered, nearest centres, and the V-measure: less than its ``fit``, which
  also updates centres, draws, and checks, and is measured beside it;
- reranking: products of each query with its candidates, and a sort; no metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import torch
from real_sizes import Vectors
from scipy.stats import pearsonr, spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import accuracy_score, average_precision_score, v_measure_score
from sklearn.metrics.pairwise import (
    paired_cosine_distances,
    paired_euclidean_distances,
    paired_manhattan_distances,
)

from batchsweep.tasks.evaluators.base import column, evaluations, values
from batchsweep.tasks.evaluators.classification import _training_sets

#: Pairs at once: in a processor's cache.
PAIRS = 1024


class Clock:
    """Processor seconds inside of its blocks; and, beside them, in scikit-learn's ``fit``."""

    seconds = 0.0
    fits = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


def floor(task: Any, vectors: Vectors) -> Clock:
    """The floor of one arm on a task with data; of clusterings also what their fits take."""
    clock = Clock()
    for split, _, data in evaluations(task):
        _FLOORS[task.metadata.type](task, data, split, _Halves(vectors), clock)
    return clock


class _Halves:
    """Vectors of texts as they lie in a store: each different text once, in float16."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        different, which = np.unique(texts, return_inverse=True)
        return self._vectors(different.tolist()).astype(np.float16), which


def _read(half: np.ndarray) -> np.ndarray:
    single: np.ndarray = torch.from_numpy(half).float().numpy()
    return single


def _pairs(halves: list[tuple[np.ndarray, np.ndarray]], dots: int) -> list[np.ndarray]:
    """Four or five measures of all pairs."""
    (one, which_one), (two, which_two) = ((_read(half), which) for half, which in halves)
    found: list[list[np.ndarray]] = []
    for start in range(0, len(which_one), PAIRS):
        a, b = (x[w[start : start + PAIRS]] for x, w in ((one, which_one), (two, which_two)))
        measures = [
            paired_cosine_distances(a, b),
            paired_manhattan_distances(a, b),
            paired_euclidean_distances(a, b),
        ]
        found.append(measures + [np.einsum("ij,ij->i", a, b) for _ in range(dots)])
    return [np.concatenate(one) for one in zip(*found, strict=True)]


def _sts(task: Any, data: Any, split: str, read: Any, clock: Clock) -> None:
    sides = [read(values(data[split], name)) for name in task.column_names]
    gold = np.array(values(data[split], "score"))
    with clock:
        for measure in _pairs(sides, 1):
            pearsonr(gold, measure)
            spearmanr(gold, measure)


def _pair_classification(task: Any, data: Any, split: str, read: Any, clock: Clock) -> None:
    names = task.input1_column_name, task.input2_column_name
    sides = [read(values(data[split], name)) for name in names]
    labels = np.array(values(data[split], task.label_column_name))
    with clock:
        for measure in _pairs(sides, 2):
            np.argsort(measure)
            average_precision_score(labels, measure)


def _classification(task: Any, data: Any, split: str, read: Any, clock: Clock) -> None:
    train, test = data[task.train_split], data[split]
    labels = np.array(values(train, task.label_column_name))
    gold = np.array(values(test, task.label_column_name))
    texts = column(train, task.input_column_name)
    sets = [np.array(rows) for rows in _training_sets(labels.tolist(), task)]
    union = np.unique(np.concatenate(sets))
    half, place = read(texts.take(union).to_pylist())
    shown, which = read(values(test, task.input_column_name))
    with clock, sklearn.config_context(assume_finite=True):
        known, asked = _read(half), _read(shown)
        if len(asked) < len(which):
            asked = asked[which]
        for rows in sets:
            task.evaluator_model.fit(known[place[np.searchsorted(union, rows)]], labels[rows])
            accuracy_score(gold, task.evaluator_model.predict(asked))


def _clustering(task: Any, data: Any, split: str, read: Any, clock: Clock) -> None:
    batch, seed = 500, 42
    listed = values(data[split], task.label_column_name)
    for row, texts in enumerate(values(data[split], task.input_column_name)):
        half, which = read(texts)
        names, labels = np.unique(listed[row], return_inverse=True)
        size = len(names)
        full = _read(half)[which]
        start = time.process_time()
        model = MiniBatchKMeans(size, batch_size=batch, n_init=1, random_state=seed).fit(full)
        clock.fits += time.process_time() - start
        rng = np.random.default_rng(seed)
        centres = model.cluster_centers_
        first = rng.integers(0, len(full), min(max(3 * batch, size), len(full)))
        trials = 2 + int(np.log(size))
        tried = rng.integers(0, len(first), (size - 1, trials))
        batches = rng.integers(0, len(full), (model.n_steps_, batch))
        del full
        with clock:
            vectors = _read(half)
            if len(half) < len(which):
                vectors = vectors[which]
            exact = vectors[first].astype(np.float64)
            turned = np.ascontiguousarray(exact.T)
            for some in tried:
                exact[some] @ turned
            for rows in batches:
                np.argmin(vectors[rows] @ centres.T, axis=1)
            assigned = np.argmin(vectors @ centres.T, axis=1)
            v_measure_score(labels, assigned)


def _reranking(task: Any, data: Any, split: str, read: Any, clock: Clock) -> None:
    rows = data[split]
    documents, which = read(values(rows["corpus"], "text"))
    asked, which_asked = read(values(rows["queries"], "text"))
    number = {name: i for i, name in enumerate(values(rows["corpus"], "id"))}
    names = values(rows["queries"], "id")
    shown = [which[[number[d] for d in rows["top_ranked"][name]]] for name in names]
    with clock:
        candidates, queries = (
            torch.nn.functional.normalize(torch.from_numpy(_read(half)), dim=1).numpy()
            for half in (documents, asked)
        )
        for query, listed in zip(which_asked.tolist(), shown, strict=True):
            np.argsort(candidates[listed] @ queries[query])


_FLOORS: dict[str, Callable[[Any, Any, str, Any, Clock], None]] = {
    "STS": _sts,
    "PairClassification": _pair_classification,
    "Classification": _classification,
    "Clustering": _clustering,
    "Reranking": _reranking,
}
