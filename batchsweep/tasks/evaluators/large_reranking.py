"""Reranking tasks too large for mteb's loader: MindSmallReranking.

Its 97 million (query, document) pairs become dictionaries of strings in mteb's loader, 40 GB of
them. Here the data sets stay on the disk and are read a piece at a time.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader

from batchsweep.config import CorpusConfig
from batchsweep.tasks.evaluators.base import PreparedTask
from batchsweep.tasks.evaluators.qrels import Judged, capped, judged_of_tables
from batchsweep.tasks.evaluators.retrieval import asks_for_subqueries, part_of
from batchsweep.tasks.evaluators.split_halves import Halves

#: Texts from which on a reranking task is large.
LARGE = 1_000_000


def is_large(task: Any) -> bool:
    """Whether the task is for :func:`prepare_large`: by mteb's statistics, and not loaded yet."""
    sizes = task.metadata.n_samples or {}
    return (
        isinstance(task, AbsTaskRetrieval)
        and not task.data_loaded
        and task.metadata.type == "Reranking"
        and not task.metadata.is_multilingual
        and max((sizes.get(split, 0) for split in task.eval_splits), default=0) > LARGE
        and asks_for_subqueries(task) is not None
        and not task.skip_first_result
        and all(
            inspect.getattr_static(type(task), name)
            is inspect.getattr_static(AbsTaskRetrieval, name)
            for name in ("load_data", "dataset_transform")
        )
    )


@dataclass(frozen=True)
class Tables:
    """A task's data sets, on the disk; ``top_ranked`` is None where mteb's loader is needed."""

    queries: Any
    corpus: Any
    qrels: Any
    top_ranked: Any


#: Name, queries, documents, and who is relevant to whom.
Split = tuple[str, Any, Any, Judged]


def tables(task: Any, split: str) -> Tables:
    """Download the data sets of a large task, or find them in the cache; nothing is read."""
    loader = RetrievalDatasetLoader(
        hf_repo=task.metadata.dataset["path"],
        revision=task.metadata.dataset["revision"],
        trust_remote_code=task.metadata.dataset.get("trust_remote_code", False),
        split=split,
    )
    names = loader.dataset_configs
    ranked = "top_ranked" in names and "instruction" not in names
    return Tables(
        queries=loader._load_queries(None),
        corpus=loader._load_corpus(None),
        qrels=loader._load_dataset_split("default" if "default" in names else "qrels", None),
        top_ranked=loader._load_dataset_split("top_ranked", None) if ranked else None,
    )


def prepare_large(
    task: Any, corpus: CorpusConfig | None, halves: Halves | None = None
) -> tuple[PreparedTask, ...] | None:
    """As ``prepare_retrieval`` of what ``AbsTaskRetrieval.load_data`` loads.

    Two tasks if ``halves`` are asked for and the task has more texts than they take; else one.
    None for what only mteb's own evaluation knows, such as instructions.
    """
    cap = None
    splits: list[Split] = []
    for split in task.eval_splits:
        whole = _judged_split(task, split)
        if whole is None:
            return None
        splits.append(whole)
        if corpus is not None and corpus.max_texts_per_task is not None:
            most = corpus.max_texts_per_task // len(task.eval_splits)
            splits[-1] = _capped(whole, most, corpus.seed)
            if splits[-1] is not whole:
                cap = {"max_texts_per_task": corpus.max_texts_per_task, "seed": corpus.seed}
    if halves is None or all(
        len(queries) + len(documents) <= halves.texts // len(splits)
        for _, queries, documents, _ in splits
    ):
        drawn = [splits]
    else:
        drawn = [
            [_capped(split, half.texts // len(splits), half.seed) for split in splits]
            for half in halves.both
        ]
    found_all = []
    for pieces in drawn:
        parts = []
        for split, queries, documents, judged in pieces:
            part = part_of(task, split, "default", queries, documents, judged)
            if part is None:
                return None
            parts.append(part)
        prepared = PreparedTask.of(task, parts)
        prepared.cap = cap
        found_all.append(prepared)
    return tuple(found_all)


def _judged_split(task: Any, split: str) -> Split | None:
    """A split's queries that are judged, its documents and the judgements; None: not known here."""
    there = tables(task, split)
    if there.top_ranked is None:
        return None
    found = judged_of_tables(there.queries, there.corpus, there.qrels, there.top_ranked)
    if found is None:
        return None
    judged, kept = found
    queries = there.queries.select(kept) if len(kept) < len(there.queries) else there.queries
    return split, queries, there.corpus, judged


def _capped(whole: Split, most: int, seed: int) -> Split:
    """The split with at most so many texts; itself if it has no more."""
    split, queries, documents, judged = whole
    smaller = capped(judged, most, seed)
    if smaller is None:
        return whole
    judged, chosen, shown = smaller
    return split, queries.select(chosen), documents.select(shown), judged
