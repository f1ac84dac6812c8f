"""Halves: the two seeded subsets of a task that a pull scores instead of the whole task.

They are drawn independently of each other, so that how far they lie apart tells how far their
mean lies from the whole (:mod:`batchsweep.bandit.pull_noise`). What is drawn is among what the
whole task asks for: only those texts are in a store.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy

from batchsweep.tasks.evaluators.base import column, values
from batchsweep.tasks.evaluators.caps import (
    RELEVANT_PART,
    Cap,
    cap_of,
    cap_retrieval,
    filled,
    make_smaller,
    stratified,
)

#: Documents per label that a clustering of a half should have: with few, everything is clustered
#: well, and arms no longer differ.
DOCUMENTS_PER_LABEL = 10


@dataclass(frozen=True)
class Half:
    """One of the two: how many texts it takes, about, and its seed."""

    texts: int
    seed: int

    def share(self, task: Any) -> int:
        """Texts for each split and subset of the task."""
        return max(self.texts // (len(task.eval_splits) * len(task.hf_subsets)), 4)

    def rng(self, split: str, subset: str) -> random.Random:
        """The source of what is drawn from one split and subset."""
        return random.Random(f"half {self.seed} {split} {subset}")


@dataclass(frozen=True)
class Halves:
    """What decides the examples of a pull, the same for every arm and in every process.

    Attributes:
        texts: of both halves together. A task that asks for no more is scored whole.
        seed: of the draws.
    """

    texts: int
    seed: int

    @property
    def both(self) -> tuple[Half, Half]:
        """The two halves."""
        return Half(self.texts // 2, 2 * self.seed), Half(self.texts // 2, 2 * self.seed + 1)


def smaller_copies(task: Any, halves: Halves) -> list[Any] | None:
    """The two halves of a task whose data are loaded, as tasks of their own.

    None if it has no more texts than they take, or is of a class that can't be divided by its
    rows: a classifier's training sets and the documents of a clustering are drawn by the task, and
    their shortcuts draw from those.
    """
    cap: Cap | None = cap_of(task)
    if isinstance(task, AbsTaskClusteringLegacy):
        cap = _some_sets
    elif isinstance(task, AbsTaskRetrieval):
        cap = _some_queries
    elif isinstance(task, AbsTaskClassification | AbsTaskClustering):
        cap = None
    if cap is None or not make_smaller(_copy(task), cap, halves.texts, 0):
        return None
    copies = []
    for half in halves.both:
        smaller = _copy(task)
        make_smaller(smaller, cap, half.texts, half.seed)
        copies.append(smaller)
    return copies


def _copy(task: Any) -> Any:
    """A task whose splits can be replaced without touching the original's."""
    other = copy.copy(task)
    other.dataset = copy.copy(task.dataset)
    for name, part in other.dataset.items():
        if isinstance(part, dict):
            other.dataset[name] = copy.copy(part)
    return other


def _some_queries(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    """As many queries as a cap leaves, but against the whole corpus.

    Among fewer documents everything is easier to find, and more so for the better arms: a subset
    of the corpus would stretch the differences between arms, which no two halves would show.
    """
    data = holder[split]
    if data["top_ranked"] is not None:
        return cap_retrieval(task, holder, split, share, rng)
    names, relevant = column(data["queries"], "id").to_pylist(), data["relevant_docs"]
    judged = [i for i, name in enumerate(names) if relevant.get(name)]
    if len(names) + len(data["corpus"]) <= share:
        return False
    sizes = [1 + len(relevant[names[i]]) for i in judged]
    chosen = [judged[k] for k in filled(sizes, int(share * RELEVANT_PART), rng)]
    if len(chosen) == len(judged):
        return False
    holder[split] = {
        **data,
        "queries": data["queries"].select(chosen),
        "relevant_docs": {names[i]: relevant[names[i]] for i in chosen},
    }
    return True


def _some_sets(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    """As many of the sets to cluster as leave each enough documents per label."""
    texts = values(holder[split], task.input_column_name)
    labels = values(holder[split], task.label_column_name)
    if sum(map(len, texts)) <= share:
        return False
    # A set of one label is always clustered well: it tells no arms apart.
    several = [i for i, row in enumerate(labels) if len(set(row)) > 1]
    if not several:
        return False
    usual = sorted(len(set(labels[i])) for i in several)[len(several) // 2]
    count = min(max(share // (DOCUMENTS_PER_LABEL * usual), 1), len(several))
    chosen = sorted(rng.sample(several, count))
    rows = {i: stratified(labels[i], max(share // count, 2), rng) for i in chosen}
    holder[split] = Dataset.from_dict(
        {
            task.input_column_name: [[texts[i][r] for r in rows[i]] for i in chosen],
            task.label_column_name: [[labels[i][r] for r in rows[i]] for i in chosen],
        }
    )
    return True
