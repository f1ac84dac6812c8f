"""Caps: a seeded, label-preserving subset of a task."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
    AbsTaskSummarization,
)
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy

from batchsweep.errors import ConfigError
from batchsweep.tasks.evaluators.base import column, values

#: Of a retrieval task's texts, the part that queries and their relevant documents may take.
RELEVANT_PART = 0.5


#: (task, what holds the split, split, most texts, generator) -> whether it was made smaller
Cap = Callable[[Any, Any, str, int, random.Random], bool]


def cap_task(task: Any, max_texts: int, seed: int) -> dict[str, int] | None:
    """Make a task's data smaller, so that it asks for ``max_texts`` texts at most.

    Rows are drawn with ``seed``; each label keeps its share, and at least one row where the cap
    allows. A query of reranking keeps its candidates, one of retrieval its relevant documents, so
    that a single one may exceed the cap. Splits and subsets share the cap evenly.

    Returns:
        What a result must say; None if the task was small enough.

    Raises:
        ConfigError: a class of task that can't be capped.
    """
    capped: dict[str, int] | None = getattr(task, "batchsweep_cap", None)
    if capped is not None:
        return capped
    if (cap := cap_of(task)) is not None:
        if not make_smaller(task, cap, max_texts, seed):
            return None
        capped = {"max_texts_per_task": max_texts, "seed": seed}
        vars(task)["batchsweep_cap"] = capped
        return capped
    raise ConfigError(
        f"corpus.max_texts_per_task: '{task.metadata.name}' ({task.metadata.type}) "
        "can't be capped; leave the task out, or the cap"
    )


def forget_cap(task: Any) -> None:
    """The task's data are let go of: when they are loaded again, they are whole."""
    vars(task).pop("batchsweep_cap", None)


def cap_of(task: Any) -> Cap | None:
    """What makes a task of this class smaller; None if nothing does."""
    return next((cap for base, cap in _CAPS if isinstance(task, base)), None)


def make_smaller(task: Any, cap: Cap, max_texts: int, seed: int) -> bool:
    """Apply ``cap`` to each split and subset; whether any had to be made smaller."""
    places = [(split, subset) for split in task.eval_splits for subset in task.hf_subsets]
    share = max(max_texts // len(places), 2)
    done = set()
    changed = False
    for split, subset in places:
        # Of parallel texts (bitext mining) one data set has all subsets, as columns.
        holder = task.dataset.get(subset, task.dataset)
        if (id(holder), split) not in done:
            done.add((id(holder), split))
            changed |= cap(task, holder, split, share, random.Random(f"{seed} {split} {subset}"))
    return changed


def stratified(labels: Sequence[Any], size: int, rng: random.Random) -> list[int]:
    """``size`` positions, ascending, with each label at its share (largest remainder).

    Every label keeps one position while there are enough of them.
    """
    if size >= len(labels):
        return list(range(len(labels)))
    by_label: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    wanted = {label: len(rows) * size / len(labels) for label, rows in by_label.items()}
    counts = {label: int(share) for label, share in wanted.items()}
    if size >= len(by_label):
        counts = {label: max(count, 1) for label, count in counts.items()}
    # Nearest to its share first; the order of appearance breaks ties.
    while sum(counts.values()) < size:
        short = max(counts, key=lambda label: wanted[label] - counts[label])
        counts[short] += 1
    while sum(counts.values()) > size:
        over = max((c for c in counts if counts[c] > 1), key=lambda c: counts[c] - wanted[c])
        counts[over] -= 1
    return sorted(p for label, rows in by_label.items() for p in rng.sample(rows, counts[label]))


def _select(holder: Any, split: str, chosen: list[int]) -> bool:
    if len(chosen) == len(holder[split]):
        return False
    holder[split] = holder[split].select(chosen)
    return True


def _pairs(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    rows = len(holder[split])
    return _select(holder, split, stratified([0] * rows, share // 2, rng))


def _labelled_pairs(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    if len(holder[split]) == 1:  # the form of version 1: all pairs in one row
        holder[split] = Dataset.from_dict(holder[split][0])
    labels = values(holder[split], task.label_column_name)
    return _select(holder, split, stratified(labels, share // 2, rng))


def _classification(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    # Half for training; of several splits with one training set, the first one caps it.
    changed = False
    for part in dict.fromkeys((task.train_split, split)):
        labels = values(holder[part], task.label_column_name)
        if isinstance(labels[0], list):  # multilabel: by the rarest label of each row
            counts: dict[Any, int] = {}
            for row in labels:
                for label in row:
                    counts[label] = counts.get(label, 0) + 1
            labels = [min(row, key=lambda x: (counts[x], x), default=None) for row in labels]
        changed |= _select(holder, part, stratified(labels, share // 2, rng))
    return changed


def _clustering(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    fraction = task.max_fraction_of_documents_to_embed
    rows = share if fraction is None else int(share / fraction)
    listed = values(holder[split], task.label_column_name)
    labels = [tuple(x) if isinstance(x, list) else x for x in listed]
    return _select(holder, split, stratified(labels, rows, rng))


def _legacy_clustering(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    texts = values(holder[split], task.input_column_name)
    labels = values(holder[split], task.label_column_name)
    if sum(map(len, texts)) <= share:
        return False
    each = max(share // len(texts), 2)
    chosen = [stratified(row, each, rng) for row in labels]
    holder[split] = Dataset.from_dict(
        {
            task.input_column_name: [
                [row[i] for i in rows] for row, rows in zip(texts, chosen, strict=True)
            ],
            task.label_column_name: [
                [row[i] for i in rows] for row, rows in zip(labels, chosen, strict=True)
            ],
        }
    )
    return True


def _summarization(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    human = values(holder[split], task.human_summaries_column_name)
    machine = values(holder[split], task.machine_summaries_column_name)
    sizes = [len(h) + len(m) for h, m in zip(human, machine, strict=True)]
    return _select(holder, split, filled(sizes, share, rng))


def filled(sizes: Sequence[int], most: int, rng: random.Random) -> list[int]:
    """Positions, ascending, drawn one by one while their sizes fit; at least one."""
    order = rng.sample(range(len(sizes)), len(sizes))
    chosen: list[int] = []
    left = most
    for position in order:
        if chosen and sizes[position] > left:
            continue
        chosen.append(position)
        left -= sizes[position]
    return sorted(chosen)


def cap_retrieval(task: Any, holder: Any, split: str, share: int, rng: random.Random) -> bool:
    """Queries with their candidates, or with their relevant documents and some others."""
    data = holder[split]
    if len(data["queries"]) + len(data["corpus"]) <= share:
        return False
    names = column(data["queries"], "id").to_pylist()
    documents = column(data["corpus"], "id").to_pylist()
    relevant, top_ranked = data["relevant_docs"], data["top_ranked"]
    judged = [i for i, name in enumerate(names) if relevant.get(name)]
    if top_ranked is None:
        known = set(documents)
        needs = [[d for d in relevant[names[i]] if d in known] for i in judged]
        budget = int(share * RELEVANT_PART)
    else:
        needs = [list(top_ranked.get(names[i], [])) for i in judged]
        budget = share
    taken = filled([1 + len(set(one)) for one in needs], budget, rng)
    queries = [judged[t] for t in taken]
    keep = {d for t in taken for d in needs[t]}
    if top_ranked is None:
        others = [d for d in documents if d not in keep]
        room = max(share - len(queries) - len(keep), 0)
        keep.update(rng.sample(others, min(room, len(others))))
    kept_names = {names[i] for i in queries}
    holder[split] = {
        **data,
        "queries": data["queries"].select(queries),
        "corpus": data["corpus"].select([i for i, d in enumerate(documents) if d in keep]),
        "relevant_docs": {name: docs for name, docs in relevant.items() if name in kept_names},
        "top_ranked": None
        if top_ranked is None
        else {name: docs for name, docs in top_ranked.items() if name in kept_names},
    }
    return True


_CAPS: tuple[tuple[type, Cap], ...] = (
    (AbsTaskSTS, _pairs),
    (AbsTaskBitextMining, _pairs),
    (AbsTaskPairClassification, _labelled_pairs),
    (AbsTaskMultilabelClassification, _classification),
    (AbsTaskClassification, _classification),
    (AbsTaskClustering, _clustering),
    (AbsTaskClusteringLegacy, _legacy_clustering),
    (AbsTaskSummarization, _summarization),
    (AbsTaskRetrieval, cap_retrieval),
)
