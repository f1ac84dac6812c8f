"""Retrieval and reranking: which documents come out on top, without dictionaries of them.

mteb keeps a dictionary of every query's documents and scores. Here candidates are flat arrays:
query by query, document number and score, so that MindSmallReranking (2.4 million candidates)
takes megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from mteb._evaluators.retrieval_metrics import max_over_subqueries
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval import _filter_queries_without_positives
from mteb.similarity_functions import cos_sim

from batchsweep.errors import StoreError
from batchsweep.prepared.base import Fetch, Part, PreparedTask, Request, column, evaluations
from batchsweep.prepared.ranking import Corpus, Judgements, Ranking, retrieval_scores

Ints = npt.NDArray[np.int64]

#: Documents that ``SearchEncoderWrapper`` compares with the queries at once.
CORPUS_CHUNK = 50_000


def prepare_retrieval(task: AbsTaskRetrieval) -> PreparedTask | None:
    """As ``AbsTaskRetrieval`` with ``SearchEncoderWrapper`` do; None if it asks for more.

    More is: queries that are conversations, negative relevance, scores of the task's own (but
    ``max_over_subqueries`` is known).
    """
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    over_subqueries = _asks_for_subqueries(task)
    if over_subqueries is None or task.skip_first_result:
        return None
    parts = []
    for split, subset, data in evaluations(task):
        part = _part(task, split, subset, data[split], over_subqueries)
        if part is None:
            return None
        parts.append(part)
    return PreparedTask.of(task, parts)


def _asks_for_subqueries(task: AbsTaskRetrieval) -> bool | None:
    """Whether the task also scores queries merged over subqueries; None if something else."""
    own = type(task).task_specific_scores
    if own is AbsTaskRetrieval.task_specific_scores:
        return False
    # MindSmallReranking's is one call; its name table tells, without naming the class.
    names = own.__code__.co_names
    uses = own.__globals__.get("max_over_subqueries") is max_over_subqueries
    return True if uses and names == ("max_over_subqueries", "k_values") else None


def _part(
    task: AbsTaskRetrieval, split: str, subset: str, data: Any, over_subqueries: bool
) -> Part | None:
    relevant, queries = _filter_queries_without_positives(data["relevant_docs"], data["queries"])
    texts = _query_texts(queries)
    names: list[str] = column(queries, "id").to_pylist()
    corpus = Corpus(column(data["corpus"], "id"))
    if texts is None or len(set(names)) < len(names) or not corpus.unique:
        return None
    if over_subqueries and set(relevant) != set(names):
        return None
    triples = _triples(names, relevant, corpus)
    if triples[2].size and triples[2].min() < 0:
        return None
    judgements = Judgements.of(len(names), corpus.size, *triples)
    requests = [Request(texts, "query"), Request(_document_texts(data["corpus"]), "document")]
    if data["top_ranked"] is None:
        rank: _Rank = _FullSearch(requests, task._top_k, corpus, judgements)
    else:
        rank = _Rerank(requests, task._top_k, corpus, judgements, names, data["top_ranked"])
    own = corpus.numbers_of(pa.array(names, pa.string())) if task.ignore_identical_ids else None
    merged = _Subqueries.of(names, list(relevant), triples, corpus) if over_subqueries else None
    corpus.drop_names()

    def scores(fetch: Fetch) -> dict[str, Any]:
        ranking = rank(fetch)
        if own is not None:
            ranking = ranking.where(ranking.document != own[ranking.query])
        found = retrieval_scores(ranking, judgements, task.k_values)
        if merged is not None:
            best = retrieval_scores(merged.best(ranking), merged.judgements, task.k_values)
            found |= {f"max_over_subqueries_{name}": value for name, value in best.items()}
        return found

    return Part(split, subset, requests, scores)


_Rank = Callable[[Fetch], Ranking]


def _query_texts(queries: Any) -> Any:
    """What mteb makes of the queries; None for conversations."""
    texts = column(queries, "text")
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return None
    if "instruction" not in queries.column_names:
        return texts
    instructions = column(queries, "instruction").to_pylist()
    return [
        text if instruction is None else f"{text} {instruction}"
        for text, instruction in zip(texts.to_pylist(), instructions, strict=True)
    ]


def _triples(
    names: list[str], relevant: dict[str, dict[str, int]], corpus: Corpus
) -> tuple[Ints, Ints, Ints]:
    """Query, document (-1 outside the corpus) and grade of every judgement."""
    counts = np.array([len(relevant[name]) for name in names], np.int64)
    judged = pa.array((doc for name in names for doc in relevant[name]), pa.string())
    grades = np.fromiter((g for name in names for g in relevant[name].values()), np.int64)
    return np.repeat(np.arange(len(names)), counts), corpus.numbers_of(judged), grades


@dataclass(frozen=True)
class _Subqueries:
    """Queries ``name_0``, ``name_1`` ... merged into one: mteb's ``max_over_subqueries``."""

    base: Ints
    judgements: Judgements
    rank_of_name: npt.NDArray[np.int32]

    @classmethod
    def of(
        cls,
        names: list[str],
        in_order: list[str],
        triples: tuple[Ints, Ints, Ints],
        corpus: Corpus,
    ) -> _Subqueries:
        numbers: dict[str, int] = {}
        last: dict[int, str] = {}
        for name in in_order:
            number = numbers.setdefault(name.rpartition("_")[0], len(numbers))
            last[number] = name  # whose judgements mteb takes for all
        base = np.array([numbers[name.rpartition("_")[0]] for name in names], np.int64)
        taken = np.array([last[int(b)] == name for b, name in zip(base, names, strict=True)])
        query, document, grade = (values[taken[triples[0]]] for values in triples)
        judgements = Judgements.of(len(numbers), corpus.size, base[query], document, grade)
        return cls(base, judgements, corpus.rank)

    def best(self, ranking: Ranking) -> Ranking:
        """Each document at its best similarity to any subquery."""
        query = self.base[ranking.query]
        order = np.lexsort((-ranking.value, ranking.document, query))
        query, document, value = query[order], ranking.document[order], ranking.value[order]
        first = np.r_[True, (query[1:] != query[:-1]) | (document[1:] != document[:-1])]
        query, document, value = query[first], document[first], value[first]
        grade = self.judgements.grades_of(query, document)
        return Ranking.of(query, document, grade, value, self.rank_of_name)


def _document_texts(corpus: Any) -> pa.Array:
    """What mteb's ``_corpus_to_dict`` makes of each document: title, space, text; stripped."""
    texts = column(corpus, "text").cast(pa.large_string()).combine_chunks().dictionary_encode()
    bodies = texts.dictionary.to_pylist()
    which = texts.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if "title" not in corpus.column_names:
        different = [body.strip() for body in bodies]
        return pa.array(different, pa.large_string()).take(pa.array(which))
    titles = column(corpus, "title").cast(pa.large_string()).combine_chunks().dictionary_encode()
    names = titles.dictionary.to_pylist()
    pairs = titles.indices.to_numpy(zero_copy_only=False).astype(np.int64) * len(bodies) + which
    # Python's strip, which Arrow's own differs from, on each different pair only.
    found, which = np.unique(pairs, return_inverse=True)
    different = []
    for pair in found.tolist():
        title, body = names[pair // len(bodies)], bodies[pair % len(bodies)]
        different.append(f"{title} {body}".strip() if title else body.strip())
    return pa.array(different, pa.large_string()).take(pa.array(which))


class _FullSearch:
    """Every query against the whole corpus, as ``chunked_full_corpus_search`` does."""

    def __init__(
        self, requests: list[Request], top_k: int, corpus: Corpus, judgements: Judgements
    ) -> None:
        self._queries, self._documents = requests
        self._top_k = top_k
        self._rank_of_name = corpus.rank
        self._judgements = judgements

    def __call__(self, fetch: Fetch) -> Ranking:
        queries = fetch(self._queries)
        different = fetch.different(self._documents)
        found: list[tuple[npt.NDArray[np.float32], Ints]] = []
        for start in range(0, len(self._documents), CORPUS_CHUNK):
            which = self._documents.which[start : start + CORPUS_CHUNK]
            similarity = cos_sim(queries, different[which])
            # One more than needed, as in mteb, which matters where similarities are equal.
            best = torch.topk(similarity, min(self._top_k + 1, similarity.shape[1]), dim=1)
            found.append((best.values.numpy(), best.indices.numpy() + start))
        value = np.hstack([one[0] for one in found])
        document = np.hstack([one[1] for one in found]).reshape(-1)
        query = np.repeat(np.arange(len(queries)), value.shape[1])
        grade = self._judgements.grades_of(query, document)
        ranking = Ranking.of(query, document, grade, value.reshape(-1), self._rank_of_name)
        return ranking.where(ranking.place < self._top_k)


class _Rerank:
    """Every query against its own candidates, as ``rerank_top_ranked_documents`` does."""

    def __init__(
        self,
        requests: list[Request],
        top_k: int,
        corpus: Corpus,
        judgements: Judgements,
        names: list[str],
        top_ranked: dict[str, list[str]],
    ) -> None:
        self._queries, self._documents = requests
        self._top_k = top_k
        self._rank_of_name = corpus.rank
        # A query without candidates stays one of the queries: it found nothing.
        listed = [top_ranked.get(name, []) for name in names]
        counts = np.array([len(one) for one in listed], np.int64)
        document = corpus.numbers_of(pa.array((d for one in listed for d in one), pa.string()))
        if document.size and document.min() < 0:
            raise StoreError("a candidate document is not in the corpus")
        query = np.repeat(np.arange(len(names)), counts)
        # A document that is listed twice counts once.
        _, first = np.unique(query * corpus.size + document, return_index=True)
        first.sort()
        self._query, self._document = query[first], document[first]
        self._grade = judgements.grades_of(self._query, self._document)
        self._ends = np.searchsorted(self._query, np.arange(len(names) + 1))

    def __call__(self, fetch: Fetch) -> Ranking:
        queries, documents = (
            # Normalised once: each row becomes what mteb's normalising it per query makes of it.
            torch.nn.functional.normalize(torch.from_numpy(fetch.different(request)), p=2, dim=1)
            for request in (self._queries, self._documents)
        )
        value = np.empty(len(self._document), np.float32)
        which = torch.from_numpy(self._documents.which.astype(np.int64)[self._document])
        ends = self._ends.tolist()
        for number, (start, stop) in enumerate(pairwise(ends)):
            if start < stop:
                place = int(self._queries.which[number])
                # One product a query, as in mteb: a product of many would round differently.
                product = queries[place : place + 1] @ documents[which[start:stop]].transpose(0, 1)
                value[start:stop] = product[0].numpy()
        ranking = Ranking.of(self._query, self._document, self._grade, value, self._rank_of_name)
        return ranking.where(ranking.place < self._top_k) if len(value) else ranking
