"""Classification and multilabel classification."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import DatasetDict
from mteb._evaluators.classification_metrics import hamming_score
from mteb.abstasks import AbsTaskClassification, AbsTaskMultilabelClassification
from mteb.abstasks.abstask import _multilabel_subsampling
from mteb.abstasks.multilabel_classification import _evaluate_classifier
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import MultiLabelBinarizer

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
from batchsweep.tasks.evaluators.split_halves import Half

Labels = npt.NDArray[Any]


def prepare_classification(task: AbsTaskClassification, half: Half | None = None) -> PreparedTask:
    """As ``AbsTaskClassification._evaluate_subset`` does, with all training sets drawn once."""
    if "random_state" in task.evaluator_model.get_params():
        task.evaluator_model = task.evaluator_model.set_params(random_state=task.seed)
    parts = []
    for split, subset, data in evaluations(task):
        train, test = data[task.train_split], data[split]
        labels = values(train, task.label_column_name)
        experiments = _training_sets(labels, task)
        if half is not None:
            experiments, test = _drawn(task, half, split, subset, experiments, test)
        union = sorted(set(itertools.chain.from_iterable(experiments)))
        position = {row: i for i, row in enumerate(union)}
        requests = [
            Request(column(train.select(union), task.input_column_name)),
            Request(column(test, task.input_column_name)),
        ]
        fits = [
            (np.array([position[i] for i in chosen]), np.asarray([labels[i] for i in chosen]))
            for chosen in experiments
        ]
        gold = np.asarray(values(test, task.label_column_name))
        parts.append(Part(split, subset, requests, _classification(task, requests, fits, gold)))
    return PreparedTask.of(task, parts)


def _training_sets(labels: list[Any], task: AbsTaskClassification) -> list[list[int]]:
    """The rows of each experiment: ``AbsTaskClassification._undersample_data``, on a list."""
    order = list(range(len(labels)))
    experiments = []
    for _ in range(task.n_experiments):
        # Each experiment shuffles what the one before left, from the same seed.
        np.random.RandomState(task.seed).shuffle(order)
        taken: dict[Any, int] = defaultdict(int)
        chosen = []
        for row in order:
            label = labels[row]
            if taken[label] < task.samples_per_label:
                chosen.append(row)
                taken[label] += 1
        experiments.append(chosen)
    return experiments


def _classification(
    task: AbsTaskClassification,
    requests: list[Request],
    fits: list[tuple[npt.NDArray[np.int64], Labels]],
    gold: Labels,
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        train, test = (fetch(request) for request in requests)
        experiments = []
        for positions, labels in fits:
            task.evaluator_model.fit(train[positions], labels)
            experiments.append(_counted(gold, task.evaluator_model.predict(test)))
        return dict(task._calculate_avg_scores(experiments))

    return scores


def _counted(gold: Labels, predicted: Labels) -> dict[str, Any]:
    """``AbsTaskClassification._calculate_scores`` of how often each (gold, predicted) pair occurs.

    The metrics depend on nothing else, and sums of whole numbers are exact: the same scores from a
    table of counts as from hundreds of thousands of rows. A label that was never predicted has a
    precision of 0.
    """
    classes, codes = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
    n = len(classes)
    pairs = codes[: len(gold)].astype(np.int64) * n + codes[len(gold) :]
    counts = np.bincount(pairs, minlength=n**2).reshape(n, n)
    hits, in_gold, in_predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    scores: dict[str, Any] = {"accuracy": float(hits.sum() / len(gold))}
    for name, part, of in (
        ("f1", 2 * hits, in_gold + in_predicted),
        ("precision", hits, in_predicted),
        ("recall", hits, in_gold),
    ):
        by_class = np.divide(part, of, out=np.zeros(n), where=of > 0)
        scores[name] = float(np.average(by_class))
        scores[f"{name}_weighted"] = float(np.average(by_class, weights=in_gold))
    scores["ap"] = scores["ap_weighted"] = None
    if np.count_nonzero(in_gold) == 2:
        true, guess = np.nonzero(counts)
        weight = counts[true, guess]
        # Of two labels there is one average precision, however labels are averaged.
        scores["ap"] = scores["ap_weighted"] = average_precision_score(
            classes[true], classes[guess], sample_weight=weight
        )
    return scores


def _drawn(
    task: Any, half: Half, split: str, subset: str, experiments: list[list[int]], test: Any
) -> tuple[list[list[int]], Any]:
    """Some of the task's own training sets and of its test examples, half of the texts each.

    Other training sets than the task's own would ask for texts that no store has.
    """
    rng = half.rng(split, subset)
    share = half.share(task) // 2
    # Both halves together never fit more often than the whole task, whose time is mostly that.
    fits = max(min(share // len(experiments[0]), len(experiments) // 2), 1)
    chosen = sorted(rng.sample(range(len(experiments)), fits))
    labels = values(test, task.label_column_name)
    if isinstance(labels[0], list):
        labels = [0] * len(labels)
    return [experiments[i] for i in chosen], test.select(stratified(labels, share, rng))


def prepare_multilabel(
    task: AbsTaskMultilabelClassification, half: Half | None = None
) -> PreparedTask:
    """As ``AbsTaskMultilabelClassification._evaluate_subset`` does.

    The training sets come from the task's own random state: subsets go on where the one before
    stopped, and every arm starts from the same.
    """
    parts = []
    for split, subset, data in evaluations(task):
        train, test = data[task.train_split], data[split]
        labels = values(train, task.label_column_name)
        experiments = [
            task._undersample_data_indices(labels, task.samples_per_label, None)[0]
            for _ in range(task.n_experiments)
        ]
        if task.max_eval_samples is not None and len(test) > task.max_eval_samples:
            test = _multilabel_subsampling(
                DatasetDict({split: test}),
                seed=task.seed,
                splits=[split],
                label=task.label_column_name,
                n_samples=task.max_eval_samples,
            )[split]
        if half is not None:
            experiments, test = _drawn(task, half, split, subset, experiments, test)
        union = list(set(itertools.chain.from_iterable(experiments)))
        position = {row: i for i, row in enumerate(union)}
        binarizer = MultiLabelBinarizer()
        gold = binarizer.fit_transform(values(test, task.label_column_name))
        fits = [
            (
                np.array([position[i] for i in chosen]),
                binarizer.transform([labels[i] for i in chosen]),
            )
            for chosen in experiments
        ]
        requests = [
            Request(column(train.select(union), task.input_column_name)),
            Request(column(test, task.input_column_name)),
        ]
        parts.append(Part(split, subset, requests, _multilabel(task, requests, fits, gold)))
    return PreparedTask.of(task, parts)


def _multilabel(
    task: AbsTaskMultilabelClassification,
    requests: list[Request],
    fits: list[tuple[npt.NDArray[np.int64], Labels]],
    gold: Labels,
) -> Callable[[Fetch], dict[str, Any]]:
    def scores(fetch: Fetch) -> dict[str, Any]:
        train, test = (fetch(request) for request in requests)
        experiments = []
        for positions, labels in fits:
            predicted, classifier = _evaluate_classifier(
                train[positions], labels, test, task.evaluator_model
            )
            if isinstance(classifier, KNeighborsClassifier):
                experiments.append(_neighbours_scores(gold, predicted))
            else:
                experiments.append(task._calculate_scores(gold, predicted, test, classifier))
        means = {name: np.mean([e[name] for e in experiments]) for name in experiments[0]}
        return {"scores_per_experiment": experiments, **means}

    return scores


def _neighbours_scores(gold: Labels, predicted: Labels) -> dict[str, float]:
    """``_calculate_scores`` of a k-nearest-neighbour classifier.

    mteb asks the classifier for its accuracy, which finds all neighbours a second time; the
    accuracy of what was predicted is the same number.
    """
    return {
        "accuracy": accuracy_score(gold, predicted),
        "lrap": label_ranking_average_precision_score(gold, predicted),
        "f1": f1_score(gold, predicted, average="macro"),
        "hamming": hamming_score(gold, predicted),
    }
