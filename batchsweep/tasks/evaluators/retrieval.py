"""Retrieval and reranking: which documents come out on top, without dictionaries of them.

mteb keeps a dictionary of every query's documents and scores. Here candidates are flat arrays, one
block of queries at a time, so that MindSmallReranking (2.4 million queries with 41 candidates
each) takes megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from mteb._evaluators.retrieval_metrics import max_over_subqueries
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval import _filter_queries_without_positives
from mteb.similarity_functions import cos_sim

from batchsweep.tasks.evaluators.base import Fetch, Part, PreparedTask, Request, column, evaluations
from batchsweep.tasks.evaluators.qrels import Judged, Relevant, judged_of
from batchsweep.tasks.evaluators.ranking_metrics import Found, confidence, places, retrieval_scores

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

#: Documents that ``SearchEncoderWrapper`` compares with the queries at once.
CORPUS_CHUNK = 50_000
#: Candidates of one block of queries.
BLOCK = 4_000_000
#: Two ways to multiply the same unit vectors differ by less than this (measured: 4e-7).
NEAR = 2e-6


def prepare_retrieval(task: AbsTaskRetrieval) -> PreparedTask | None:
    """As ``AbsTaskRetrieval`` with ``SearchEncoderWrapper`` do; None if it asks for more.

    More is: queries that are conversations, negative relevance, scores of the task's own (but
    ``max_over_subqueries`` is known).
    """
    over_subqueries = asks_for_subqueries(task)
    if over_subqueries is None or task.skip_first_result:
        return None
    parts = []
    for split, subset, data in evaluations(task):
        rows = data[split]
        relevant, queries = _filter_queries_without_positives(
            rows["relevant_docs"], rows["queries"]
        )
        judged = judged_of(queries, rows["corpus"], relevant, rows["top_ranked"])
        part = None
        if judged is not None:
            part = part_of(task, split, subset, queries, rows["corpus"], judged)
        if part is None:
            return None
        parts.append(part)
    return PreparedTask.of(task, parts)


def asks_for_subqueries(task: AbsTaskRetrieval) -> bool | None:
    """Whether the task also scores queries merged over subqueries; None if something else."""
    own = type(task).task_specific_scores
    if own is AbsTaskRetrieval.task_specific_scores:
        return False
    # MindSmallReranking's is one call, whose names tell what it is.
    names = own.__code__.co_names
    uses = own.__globals__.get("max_over_subqueries") is max_over_subqueries
    return True if uses and names == ("max_over_subqueries", "k_values") else None


def part_of(
    task: AbsTaskRetrieval, split: str, subset: str, queries: Any, corpus: Any, judged: Judged
) -> Part | None:
    """One split and subset; ``queries`` are those that are judged."""
    texts = _query_texts(queries)
    if texts is None:
        return None
    requests = [Request(texts, "query"), Request(_document_texts(corpus), "document")]
    merged = None
    if asks_for_subqueries(task):
        merged = _Subqueries.of(judged)
        if merged is None:
            return None
    search: _Search
    if judged.lists is None:
        search = _FullSearch(requests, task._top_k, judged, own=not task.ignore_identical_ids)
    elif task.ignore_identical_ids or judged.lists.sizes.max() > task._top_k:
        return None
    else:
        search = _Rerank(requests, judged, merged)
    relevant = judged.relevant

    def scores(fetch: Fetch) -> dict[str, Any]:
        found, found_merged = search(fetch)
        result = retrieval_scores(found, relevant, task.k_values)
        if merged is not None and found_merged is not None:
            best = retrieval_scores(found_merged, merged.relevant, task.k_values)
            result |= {f"max_over_subqueries_{name}": value for name, value in best.items()}
        return result

    return Part(split, subset, requests, scores)


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


_Search = Callable[[Fetch], tuple[Found, Found | None]]


class _FullSearch:
    """Every query against the whole corpus, as ``chunked_full_corpus_search`` does."""

    def __init__(self, requests: list[Request], top_k: int, judged: Judged, *, own: bool) -> None:
        """``own``: the document of the query's own name counts."""
        self._queries, self._documents = requests
        self._top_k = top_k
        self._judged = judged
        self._own = own

    def __call__(self, fetch: Fetch) -> tuple[Found, None]:
        queries = fetch(self._queries)
        found: list[tuple[Values, Ints]] = []
        for start in range(0, len(self._documents), CORPUS_CHUNK):
            which = self._documents.which[start : start + CORPUS_CHUNK].astype(np.int64)
            positions, index = np.unique(which, return_inverse=True)
            # A chunk at a time is also what keeps a corpus of millions out of memory.
            similarity = cos_sim(queries, fetch.some(self._documents, positions)[index])
            # One more than needed, as in mteb, which matters where similarities are equal.
            top = torch.topk(similarity, min(self._top_k + 1, similarity.shape[1]), dim=1)
            found.append((top.values.numpy(), top.indices.numpy() + start))
        values = np.hstack([one[0] for one in found])
        documents = np.hstack([one[1] for one in found])
        names = self._judged.rank_of_name
        if values.shape[1] > self._top_k:
            best = np.lexsort((-names[documents], -values), axis=1)[:, : self._top_k]
            values = np.take_along_axis(values, best, axis=1)
            documents = np.take_along_axis(documents, best, axis=1)
        keep = np.ones(documents.shape, bool)
        if not self._own:
            keep = documents != self._judged.own_document[:, None]
        ends = np.cumsum(np.r_[0, keep.sum(axis=1)])
        query = np.repeat(np.arange(len(queries)), np.diff(ends))
        document, value = documents[keep], values[keep]
        hits, grades = self._judged.relevant.positions_in(query, document, self._judged.documents)
        place, _ = places(value, names[document], ends, query[hits], hits, near=0)
        return Found(query[hits], place, grades, *confidence(value, ends)), None


@dataclass(frozen=True)
class _Subqueries:
    """Queries ``name_0``, ``name_1`` ... merged into one: mteb's ``max_over_subqueries``.

    Attributes:
        relevant: judgements of the merged queries: those of the last of their subqueries.
        list_of: the list of candidates of each merged query.
        query_of: the merged query of each list.
    """

    relevant: Relevant
    list_of: Ints
    query_of: Ints

    @classmethod
    def of(cls, judged: Judged) -> _Subqueries | None:
        """None unless all subqueries of one query, and only they, share their candidates."""
        if judged.lists is None or len(judged.in_order) != judged.relevant.queries:
            return None
        numbers: dict[str, int] = {}
        names, of_query = judged.queries.listed(), judged.lists.of_query
        merged = np.empty(len(names), np.int64)
        for query in judged.in_order.tolist():
            merged[query] = numbers.setdefault(names[query].rpartition("_")[0], len(numbers))
        if len(numbers) != len(judged.lists.sizes):
            return None
        list_of, query_of = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        list_of[merged], query_of[of_query] = of_query, merged
        if (list_of[merged] != of_query).any() or (query_of[of_query] != merged).any():
            return None
        last = np.empty(len(numbers), np.int64)
        last[merged[judged.in_order]] = judged.in_order  # the last write stays
        relevant = judged.relevant
        rows = last[merged[relevant.query]] == relevant.query
        triples = merged[relevant.query], relevant.document, relevant.grade
        kept = Relevant.of(len(numbers), *(values[rows] for values in triples))
        return cls(kept, list_of, query_of)


@dataclass(frozen=True)
class _Hits:
    """Relevant documents among the candidates, ascending by row.

    Attributes:
        row: the query (or merged query) as a row of candidates.
        position: where among all rows' candidates.
        grade: how relevant.
    """

    row: Ints
    position: Ints
    grade: Ints

    @classmethod
    def of(cls, judged: Judged, relevant: Relevant, rows: Ints, lists: Ints, ends: Ints) -> _Hits:
        """``rows`` and ``lists``: the row and the list of each query of ``relevant``; ``ends``:
        where each row's candidates start."""
        assert judged.lists is not None
        numbers = np.repeat(np.arange(len(judged.lists.sizes)), judged.lists.sizes)
        keys = numbers * judged.documents + judged.lists.documents
        order = np.argsort(keys)
        keys = keys[order]
        query, document = relevant.query, relevant.document
        wanted = np.where(document < 0, -1, lists[query] * judged.documents + document)
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = np.flatnonzero(keys[place] == wanted) if len(keys) else np.empty(0, np.int64)
        query = query[there]
        position = order[place[there]] - judged.lists.ends[lists[query]] + ends[rows[query]]
        by_row = np.argsort(rows[query], kind="stable")
        return cls(rows[query][by_row], position[by_row], relevant.grade[there][by_row])

    def between(self, first: int, last: int) -> slice:
        """The hits of rows [first, last)."""
        return slice(*np.searchsorted(self.row, [first, last]))


class _Rerank:
    """Every query against its own candidates, as ``rerank_top_ranked_documents`` does.

    Rows are queries in the order of their lists, so that the queries of a list lie together and
    take one matrix product.
    """

    def __init__(self, requests: list[Request], judged: Judged, merged: _Subqueries | None) -> None:
        assert judged.lists is not None
        self._queries, self._documents = requests
        self._lists, self._merged = judged.lists, merged
        self._names = judged.rank_of_name[judged.lists.documents]
        of_query, n_lists = judged.lists.of_query, len(judged.lists.sizes)
        self._query = np.argsort(of_query, kind="stable")  # of each row
        list_of_row = of_query[self._query]
        self._rows_of = np.searchsorted(list_of_row, np.arange(n_lists + 1))
        self._ends = np.cumsum(np.r_[0, judged.lists.sizes[list_of_row]])
        row = np.empty(len(self._query), np.int64)
        row[self._query] = np.arange(len(row))
        self._hits = _Hits.of(judged, judged.relevant, row, of_query, self._ends)
        if merged is not None:
            ends = judged.lists.ends
            self._merged_hits = _Hits.of(
                judged, merged.relevant, merged.list_of, merged.list_of, ends
            )

    def __call__(self, fetch: Fetch) -> tuple[Found, Found | None]:
        # Normalised once: each row becomes what mteb's normalising it per query makes of it.
        given = [fetch.indexed(request) for request in (self._queries, self._documents)]
        units = {
            key: torch.nn.functional.normalize(torch.from_numpy(matrix), p=2, dim=1)
            for key, matrix in {id(matrix): matrix for matrix, _ in given}.items()
        }
        self._vectors = [(units[id(matrix)], index) for matrix, index in given]
        place = np.empty(len(self._hits.row), np.int64)
        sure = [np.zeros(len(self._query)) for _ in range(3)]
        merged_place, merged_sure = np.empty(0, np.int64), [np.empty(0)]
        if self._merged is not None:
            merged_place = np.empty(len(self._merged_hits.row), np.int64)
            merged_sure = [np.zeros(len(self._lists.sizes)) for _ in range(3)]
        for first, last in self._blocks():
            rows = slice(self._rows_of[first], self._rows_of[last])
            values, names = self._values(first, last)
            hits = self._hits.between(rows.start, rows.stop)
            place[hits] = self._places(values, names, first, last, hits)
            ends = self._ends[rows.start : rows.stop + 1] - self._ends[rows.start]
            for target, found in zip(sure, confidence(values, ends), strict=True):
                target[self._query[rows]] = found
            if self._merged is not None:
                best = self._best(values, first, last)
                hits = self._merged_hits.between(first, last)
                merged_place[hits] = self._merged_places(best, values, first, last, hits)
                ends = self._lists.ends[first : last + 1] - self._lists.ends[first]
                for target, found in zip(merged_sure, confidence(best, ends), strict=True):
                    target[first:last] = found
        del self._vectors
        result = Found(self._query[self._hits.row], place, self._hits.grade, *sure)
        if self._merged is None:
            return result, None
        query = self._merged.query_of[self._merged_hits.row]
        in_order = [values[self._merged.list_of] for values in merged_sure]
        return result, Found(query, merged_place, self._merged_hits.grade, *in_order)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of lists with no more than some million candidates."""
        ends = self._ends[self._rows_of]
        first = 0
        while first < len(ends) - 1:
            reach = int(np.searchsorted(ends, ends[first] + BLOCK, side="right")) - 1
            last = max(first + 1, reach)
            yield first, last
            first = last

    def _values(self, first: int, last: int) -> tuple[Values, npt.NDArray[np.int32]]:
        """Similarities of the candidates of some lists' rows, and the ranks of their names."""
        start, stop = self._ends[self._rows_of[[first, last]]]
        values = np.empty(stop - start, np.float32)
        names = np.empty(stop - start, np.int32)
        for one in range(first, last):
            rows = slice(self._rows_of[one], self._rows_of[one + 1])
            span = slice(self._ends[rows.start] - start, self._ends[rows.stop] - start)
            if span.stop > span.start:
                values[span] = self._product(one, rows).reshape(-1)
                listed = self._names[self._lists.ends[one] : self._lists.ends[one + 1]]
                names[span] = np.tile(listed, rows.stop - rows.start)
        return values, names

    def _product(self, one: int, rows: slice) -> Values:
        """Similarities [row, candidate] of rows of one list."""
        (queries, of_query), (documents, of_document) = self._vectors
        which = self._lists.documents[self._lists.ends[one] : self._lists.ends[one + 1]]
        chosen = documents[of_document[which]]
        asked = queries[of_query[self._query[rows]]]
        similarities: Values = (asked @ chosen.transpose(0, 1)).numpy()
        return similarities

    def _alone(self, values: Values, first: int, row: int, one: int) -> None:
        """Put the product that mteb makes, of one query alone, in place of the joint one."""
        start = self._ends[self._rows_of[first]]
        span = slice(self._ends[row] - start, self._ends[row + 1] - start)
        values[span] = self._product(one, slice(row, row + 1))[0]

    def _places(
        self, values: Values, names: npt.NDArray[np.int32], first: int, last: int, hits: slice
    ) -> Ints:
        base = self._rows_of[first]
        ends = self._ends[base : self._rows_of[last] + 1] - self._ends[base]
        row, position = self._hits.row[hits] - base, self._hits.position[hits] - self._ends[base]
        place, unsure = places(values, names, ends, row, position, near=NEAR)
        one = np.searchsorted(self._rows_of, row + base, side="right") - 1
        unsure &= self._rows_of[one + 1] - self._rows_of[one] > 1
        for query, of in dict(zip(row[unsure].tolist(), one[unsure].tolist(), strict=True)).items():
            self._alone(values, first, query + base, of)
        place[unsure], _ = places(values, names, ends, row[unsure], position[unsure], near=0)
        return place

    def _best(self, values: Values, first: int, last: int) -> Values:
        """The largest similarity of each list's candidates to any of its queries."""
        start = self._ends[self._rows_of[first]]
        best = np.empty(self._lists.ends[last] - self._lists.ends[first], np.float32)
        for one in range(first, last):
            rows = slice(self._rows_of[one], self._rows_of[one + 1])
            span = slice(self._ends[rows.start] - start, self._ends[rows.stop] - start)
            own = values[span].reshape(rows.stop - rows.start, -1)
            at = self._lists.ends[one : one + 2] - self._lists.ends[first]
            best[at[0] : at[1]] = own.max(axis=0)
        return best

    def _merged_places(
        self, best: Values, values: Values, first: int, last: int, hits: slice
    ) -> Ints:
        ends = self._lists.ends[first : last + 1] - self._lists.ends[first]
        names = self._names[self._lists.ends[first] : self._lists.ends[last]]
        row = self._merged_hits.row[hits] - first
        position = self._merged_hits.position[hits] - self._lists.ends[first]
        place, unsure = places(best, names, ends, row, position, near=NEAR)
        for one in np.unique(row[unsure]).tolist():
            for query in range(self._rows_of[first + one], self._rows_of[first + one + 1]):
                self._alone(values, first, query, first + one)
            best[ends[one] : ends[one + 1]] = self._best(
                values[self._ends[self._rows_of[first + one]] - self._ends[self._rows_of[first]] :],
                first + one,
                first + one + 1,
            )
        place[unsure], _ = places(best, names, ends, row[unsure], position[unsure], near=0)
        return place
