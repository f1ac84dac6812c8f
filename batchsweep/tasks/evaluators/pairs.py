"""Semantic similarity and pair classification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from mteb.abstasks import AbsTaskPairClassification, AbsTaskSTS
from mteb.similarity_functions import pairwise_cos_sim
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import (
    paired_cosine_distances,
    paired_euclidean_distances,
    paired_manhattan_distances,
)

from batchsweep.tasks.evaluators.base import (
    Fetch,
    Part,
    PreparedTask,
    Request,
    column,
    evaluations,
    values,
)

Floats = npt.NDArray[np.float64]

#: Pairs whose vectors are looked at together.
PAIRS = 1024


def prepare_sts(task: AbsTaskSTS) -> PreparedTask:
    """As ``AbsTaskSTS`` and ``AnySTSEvaluator`` do, with the columns read once."""
    parts = []
    for split, subset, data in evaluations(task):
        requests = _requests(task, data[split], *task.column_names)
        gold = [task._normalize(score) for score in values(data[split], "score")]
        parts.append(Part(split, subset, requests, _sts_scores(task, requests, gold)))
    return PreparedTask.of(task, parts)


def _requests(task: Any, data: Any, name1: str, name2: str) -> list[Request]:
    def prompt(kind: Any) -> str | None:
        return None if kind is None else str(kind.value)

    return [
        Request(column(data, name1), prompt(task.input1_prompt_type)),
        Request(column(data, name2), prompt(task.input2_prompt_type)),
    ]


class _Measures:
    """The similarities and distances of all pairs, float32 [pair] each.

    Each is of one pair alone, so that pairs can be taken some at a time: in a cache, instead of in
    gigabytes of copies of all pairs' vectors.
    """

    def __init__(self, fetch: Fetch, requests: list[Request], *, dots: bool) -> None:
        """``dots``: the fifth too, the product, which STS has no use for."""
        (one, which_one), (two, which_two) = (fetch.indexed(request) for request in requests)
        n = len(which_one)
        self.cosine, self.manhattan, self.euclidean, self.similarity, self.dot = (
            np.empty(n, np.float32) for _ in range(5)
        )
        for start in range(0, n, PAIRS):
            part = slice(start, start + PAIRS)
            a, b = one[which_one[part]], two[which_two[part]]
            self.cosine[part] = 1 - paired_cosine_distances(a, b)
            self.manhattan[part] = paired_manhattan_distances(a, b)
            self.euclidean[part] = paired_euclidean_distances(a, b)
            self.similarity[part] = pairwise_cos_sim(a, b).numpy()
            if dots:
                # Pair by pair, as mteb's np.dot: a product of many would round differently.
                self.dot[part] = np.vecdot(a, b)


def _sts_scores(
    task: AbsTaskSTS, requests: list[Request], gold: list[float]
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        measures = _Measures(fetch, requests, dots=False)
        return dict(
            task._calculate_scores(
                {
                    "cosine_scores": measures.cosine.tolist(),
                    "manhattan_distances": (-measures.manhattan).tolist(),
                    "euclidean_distances": (-measures.euclidean).tolist(),
                    "similarity_scores": measures.similarity.tolist(),
                },
                gold,
            )
        )

    return scores


def prepare_pair_classification(task: AbsTaskPairClassification) -> PreparedTask:
    """As ``AbsTaskPairClassification`` and its evaluator do."""
    parts = []
    for split, subset, data in evaluations(task):
        rows = data[split]
        if len(rows) == 1:  # the form of version 1: all pairs in one row
            rows = Dataset.from_dict(rows[0])
        requests = _requests(task, rows, task.input1_column_name, task.input2_column_name)
        labels = np.asarray(values(rows, task.label_column_name), dtype=np.int64)
        parts.append(Part(split, subset, requests, _pair_scores(requests, labels)))
    return PreparedTask.of(task, parts)


def _pair_scores(
    requests: list[Request], labels: npt.NDArray[np.int64]
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        closeness = _Measures(fetch, requests, dots=True)
        measures = {
            "similarity": (closeness.similarity, True),
            "cosine": (closeness.cosine, True),
            "manhattan": (closeness.manhattan, False),
            "euclidean": (closeness.euclidean, False),
            "dot": (closeness.dot, True),
        }
        found: dict[str, float] = {}
        best: dict[str, list[float]] = defaultdict(list)
        for name, (measured, higher_is_closer) in measures.items():
            for metric, value in _metrics(measured.astype(float), labels, higher_is_closer).items():
                found[f"{name}_{metric}"] = value
                best[metric].append(value)
        # max(), not np.max: that is what decides where a value is not a number.
        return {**found, **{f"max_{metric}": max(found_by) for metric, found_by in best.items()}}

    return scores


def _metrics(
    scores: Floats, labels: npt.NDArray[np.int64], higher_is_closer: bool
) -> dict[str, float]:
    """Accuracy and F1 at the best threshold, and average precision.

    Thresholds lie between neighbours in order of score, never inside a tie, and not after the last
    pair: the rules of ``AbsTaskPairClassification._find_best_acc_and_threshold`` and
    ``_find_best_f1_and_threshold``, for all thresholds at once.
    """
    towards = scores if higher_is_closer else -scores
    order = np.argsort(-towards, kind="stable")
    ordered = scores[order]
    positive = np.cumsum(labels[order] == 1)[:-1]
    taken = np.arange(1, len(scores))
    allowed = ordered[:-1] != ordered[1:]
    accuracy = f1 = precision = recall = 0.0
    if allowed.any():
        negative_left = int((labels == 0).sum()) - (taken - positive)
        accuracy = float(((positive + negative_left) / len(labels))[allowed].max(initial=0.0))
        usable = allowed & (positive > 0)
        if usable.any():
            precisions = positive[usable] / taken[usable]
            recalls = positive[usable] / labels.sum()
            f1s = 2 * precisions * recalls / (precisions + recalls)
            top = int(np.argmax(f1s))  # the first of equals, as a loop with > finds it
            f1, precision, recall = float(f1s[top]), float(precisions[top]), float(recalls[top])
    return {
        "accuracy": accuracy,
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "ap": float(average_precision_score(labels, towards)),
    }
