"""Clustering: ``AbsTaskClustering``, and the older ``AbsTaskClusteringLegacy``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from mteb.abstasks import AbsTaskClustering
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from sklearn.metrics.cluster import adjusted_mutual_info_score, v_measure_score

from batchsweep.tasks.evaluators.base import (
    Fetch,
    Part,
    PreparedTask,
    Request,
    column,
    evaluations,
    values,
)
from batchsweep.tasks.evaluators.caps import stratified
from batchsweep.tasks.evaluators.kmeans_start import mini_batch_k_means
from batchsweep.tasks.evaluators.split_halves import DOCUMENTS_PER_LABEL, Half

Indices = npt.NDArray[np.int64]

#: ``Evaluator``'s seed, which ``ClusteringEvaluator`` takes over, and its batch size.
LEGACY_SEED = 42
LEGACY_BATCH = 500


def prepare_clustering(task: AbsTaskClustering, half: Half | None = None) -> PreparedTask:
    """As ``AbsTaskClustering._evaluate_subset`` and ``_evaluate_clustering_bootstrapped`` do.

    Which documents are embedded, and which are drawn for each clustering, comes from the task's
    own random state and not from the embeddings.
    """
    parts = []
    for split, subset, data in evaluations(task):
        documents = data[split]
        if task.max_fraction_of_documents_to_embed is not None:
            most = int(task.max_fraction_of_documents_to_embed * len(documents))
        else:
            most = task.max_document_to_embed
        if most is not None:
            chosen = task.rng_state.sample(range(len(documents)), k=min(len(documents), most))
            documents = documents.select(chosen)
        times, each = task.n_clusters, task.max_documents_per_cluster
        if half is not None:
            # Of those that the whole task embeds: no store has the others.
            names = [str(x) for x in values(documents, task.label_column_name)]
            enough = min(DOCUMENTS_PER_LABEL * len(set(names)), len(names) // 2)
            share = max(half.share(task), enough)
            documents = documents.select(stratified(names, share, half.rng(split, subset)))
            times, each = max(times // 2, 1), min(each, len(documents))
        request = Request(column(documents, task.input_column_name))
        listed = values(documents, task.label_column_name)
        labels = [x if isinstance(x, list) else [x] for x in listed]
        levels = [_level(task, labels, level, times, each) for level in range(_depth(task, labels))]
        parts.append(Part(split, subset, [request], _clustering(task, request, levels)))
    return PreparedTask.of(task, parts)


def _depth(task: AbsTaskClustering, labels: list[list[Any]]) -> int:
    deepest = max(map(len, labels))
    return deepest if task.max_depth is None else min(task.max_depth, deepest)


def _level(
    task: AbsTaskClustering, labels: list[list[Any]], level: int, times: int, each: int
) -> list[tuple[Indices, Indices, int]]:
    """The clusterings of one level, ``times`` of ``each`` documents: documents drawn, their labels
    as numbers, number of labels."""
    # mteb marks a document that ends above this level by -1, and leaves out what equals -1.
    names = np.array([row[level] if len(row) > level else -1 for row in labels])
    there = np.flatnonzero([name != -1 for name in names])
    classes, numbers = np.unique(names[there], return_inverse=True)
    drawn = []
    for _ in range(times):
        picked = task.rng_state.choices(range(len(there)), k=each)
        drawn.append((there[picked], numbers[picked], classes.size))
    return drawn


def _clustering(
    task: AbsTaskClustering, request: Request, levels: list[list[tuple[Indices, Indices, int]]]
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        matrix, index = fetch.indexed(request)
        found: dict[str, dict[str, list[float]]] = {"v_measure": {}, "ami": {}}
        for level, clusterings in enumerate(levels):
            for documents, labels, size in clusterings:
                model = mini_batch_k_means(size, batch_size=task.k_mean_batch_size, seed=task.seed)
                assigned = model.fit(matrix[index[documents]]).labels_
                for name, metric in (
                    ("v_measure", v_measure_score),
                    ("ami", adjusted_mutual_info_score),
                ):
                    score = float(metric(labels, assigned))
                    found[name].setdefault(f"Level {level}", []).append(score)
        result: dict[str, Any] = {}
        for name, by_level in found.items():
            flat = list(itertools.chain.from_iterable(by_level.values()))
            result["v_measures" if name == "v_measure" else f"{name}_scores"] = by_level
            result[name] = float(np.mean(flat))
            result[f"{name}_std"] = float(np.std(flat))
        return result

    return scores


def prepare_legacy_clustering(task: AbsTaskClusteringLegacy) -> PreparedTask:
    """As ``AbsTaskClusteringLegacy`` and ``ClusteringEvaluator`` do: one clustering a row."""
    parts = []
    for split, subset, data in evaluations(task):
        sets: list[tuple[Request, Indices] | None] = []
        documents = column(data[split], task.input_column_name)
        for row, listed in enumerate(values(data[split], task.label_column_name)):
            classes, numbers = np.unique(np.asarray(listed), return_inverse=True)
            # One label: v-measure is 1 whatever the vectors, and mteb asks for none.
            sets.append((Request(documents[row].values), numbers) if len(classes) > 1 else None)
        requests = [one[0] for one in sets if one is not None]
        parts.append(Part(split, subset, requests, _legacy_clustering(sets)))
    return PreparedTask.of(task, parts)


def _legacy_clustering(
    sets: list[tuple[Request, Indices] | None],
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        found = []
        for one in sets:
            if one is None:
                found.append(1.0)
                continue
            request, labels = one
            size = int(labels.max()) + 1
            model = mini_batch_k_means(size, batch_size=LEGACY_BATCH, seed=LEGACY_SEED)
            found.append(v_measure_score(labels, model.fit(fetch(request)).labels_))
        return {
            "v_measure": np.mean(found),
            "v_measure_std": np.std(found),
            "v_measures": found,
        }

    return scores
