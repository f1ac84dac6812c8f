"""A retrieval or reranking task's data as flat arrays of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchsweep.errors import StoreError
from batchsweep.tasks.evaluators.base import column

Ints = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]


class Names:
    """Names as numbers, and their order for breaking ties."""

    def __init__(self, names: Any) -> None:
        """``names``: Arrow strings, or an iterable of strings."""
        self._names = _strings(names)
        self.size = len(self._names)
        self.unique = pc.count_distinct(self._names).as_py() == self.size

    def numbers_of(self, names: Any) -> Ints:
        """The number of each name, -1 where there is none of that name."""
        found = pc.index_in(_strings(names), value_set=self._names)
        numbers: Ints = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers

    def ranks(self) -> Small:
        """Each name's rank in byte order of UTF-8: the order of pytrec_eval and of Python."""
        ranks = np.empty(self.size, np.int32)
        ranks[pc.sort_indices(self._names).to_numpy()] = np.arange(self.size, dtype=np.int32)
        return ranks

    def some(self, numbers: Ints) -> Names:
        """The names of these numbers, numbered anew."""
        return Names(self._names.take(pa.array(numbers)))

    def listed(self) -> list[str]:
        """The names as strings."""
        names: list[str] = self._names.to_pylist()
        return names


def _strings(names: Any) -> pa.Array:
    if isinstance(names, pa.ChunkedArray):
        return names.cast(pa.large_string()).combine_chunks()
    if isinstance(names, pa.Array):
        return names.cast(pa.large_string())
    return pa.array(names, pa.large_string())


@dataclass(frozen=True)
class Relevant:
    """Which documents are relevant (grade 1 or more) to which query.

    Attributes:
        queries: number of queries.
        query, document, grade: int64 [relevant], ascending by query; document -1 is one that the
            corpus lacks, which counts as never found.
    """

    queries: int
    query: Ints
    document: Ints
    grade: Ints

    @classmethod
    def of(cls, queries: int, query: Ints, document: Ints, grade: Ints) -> Relevant:
        """From triples in any order; grade 0 is left out."""
        hits = np.flatnonzero(grade > 0)
        hits = hits[np.argsort(query[hits], kind="stable")]
        return cls(queries, query[hits], document[hits], grade[hits])

    @property
    def counts(self) -> Ints:
        """Relevant documents of each query."""
        return np.bincount(self.query, minlength=self.queries)

    def positions_in(self, query: Ints, document: Ints, documents: int) -> tuple[Ints, Ints]:
        """Where (query, document) pairs are relevant: positions, ascending, and their grades."""
        keys = self.query * documents + self.document
        order = np.argsort(keys)
        keys, grades = keys[order], self.grade[order]
        wanted = query * documents + document
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = np.flatnonzero(keys[place] == wanted) if len(keys) else np.empty(0, np.int64)
        return found, grades[place[found]]


@dataclass(frozen=True)
class Lists:
    """Candidate documents; queries may share a list.

    Attributes:
        of_query: int64 [query], the list of each query.
        ends: int64 [list + 1], where each list starts and ends in ``documents``.
        documents: int32 [candidate], document numbers, none twice in a list.
    """

    of_query: Ints
    ends: Ints
    documents: Small

    @property
    def sizes(self) -> Ints:
        """Documents in each list."""
        return np.diff(self.ends)


class ListsBuilder:
    """Puts queries' candidates together, equal lists once."""

    def __init__(self, queries: int) -> None:
        self._of_query = np.full(queries, -1, np.int64)
        self._known: dict[bytes, int] = {}
        self._lists: list[Small] = []

    def add(self, query: int, documents: Ints) -> None:
        """A query's candidates, rows of the documents.

        Raises:
            StoreError: one of them is not in the corpus.
        """
        listed = documents.astype(np.int32)
        number = self._known.setdefault(listed.tobytes(), len(self._lists))
        if number == len(self._lists):
            if listed.size and listed.min() < 0:
                raise StoreError("a candidate document is not in the corpus")
            # A document that is listed twice counts once.
            _, first = np.unique(listed, return_index=True)
            self._lists.append(listed[np.sort(first)])
        self._of_query[query] = number

    def done(self) -> Lists:
        """The lists of all queries; one that got none has an empty list."""
        if (self._of_query < 0).any():  # queries without candidates have found nothing
            self._of_query[self._of_query < 0] = len(self._lists)
            self._lists.append(np.empty(0, np.int32))
        ends = np.cumsum([0, *(len(one) for one in self._lists)])
        return Lists(self._of_query, ends, np.concatenate(self._lists))


@dataclass(frozen=True)
class Judged:
    """Everything but the texts.

    Attributes:
        queries: names of the queries.
        documents: number of documents; ``rank_of_name`` breaks ties between them.
        own_document: the document of the query's own name, -1 if there is none.
        lists: candidates for reranking; None for a search of the whole corpus.
        in_order: the queries' numbers in the order in which judgements name them.
    """

    queries: Names
    documents: int
    rank_of_name: Small
    own_document: Ints
    relevant: Relevant
    lists: Lists | None
    in_order: Ints


def judged_of(
    queries: Any,
    corpus: Any,
    relevant_docs: Mapping[str, Mapping[str, int]],
    top_ranked: Mapping[str, Sequence[str]] | None,
) -> Judged | None:
    """From mteb's dictionaries; None if mteb's own evaluation is needed for them."""
    names, documents = Names(column(queries, "id")), Names(column(corpus, "id"))
    if not names.unique or not documents.unique:
        return None
    listed = names.listed()
    counts = np.array([len(relevant_docs[name]) for name in listed], np.int64)
    grade = np.fromiter((g for n in listed for g in relevant_docs[n].values()), np.int64)
    document = documents.numbers_of(d for n in listed for d in relevant_docs[n])
    if grade.size and grade.min() < 0:
        return None
    lists = None
    if top_ranked is not None:
        lists = _lists(
            len(listed), documents, ((i, top_ranked.get(n, ())) for i, n in enumerate(listed))
        )
    return Judged(
        queries=names,
        documents=documents.size,
        rank_of_name=documents.ranks(),
        own_document=documents.numbers_of(listed),
        relevant=Relevant.of(
            len(listed), np.repeat(np.arange(len(listed)), counts), document, grade
        ),
        lists=lists,
        in_order=names.numbers_of(relevant_docs),
    )


def _lists(
    queries: int, documents: Names, candidates: Iterable[tuple[int, Sequence[str]]]
) -> Lists:
    builder = ListsBuilder(queries)
    waiting: list[tuple[int, Sequence[str]]] = []

    def flush() -> None:
        numbers = documents.numbers_of(d for _, names in waiting for d in names)
        start = 0
        for query, names in waiting:
            builder.add(query, numbers[start : start + len(names)])
            start += len(names)
        waiting.clear()

    for one in candidates:
        waiting.append(one)
        if len(waiting) == 50_000:
            flush()
    if waiting:
        flush()
    return builder.done()


def judged_of_tables(
    queries: Any, corpus: Any, qrels: Any, top_ranked: Any
) -> tuple[Judged, Ints] | None:
    """From data sets as they are on the Hub, in bounded memory; and which queries are judged.

    The same as :func:`judged_of` of what ``RetrievalDatasetLoader`` makes of them; its
    dictionaries of strings take 40 GB for MindSmallReranking's 97 million candidates.
    """
    names, documents = Names(column(queries, "id")), Names(column(corpus, "id"))
    if not names.unique or not documents.unique:
        return None
    triples: list[tuple[Ints, Ints, Ints]] = []
    seen = np.zeros(names.size, bool)
    order: list[Ints] = []
    for batch in _batches(qrels, ("query-id", "corpus-id", "score")):
        query, grade = names.numbers_of(batch["query-id"]), batch["score"].to_numpy()
        if grade.min() < 0 or query.min() < 0:
            return None
        different, first = np.unique(query, return_index=True)
        fresh = ~seen[different]
        order.append(different[fresh][np.argsort(first[fresh])])
        seen[different] = True
        hits = np.flatnonzero(grade > 0)
        document = documents.numbers_of(batch["corpus-id"].take(pa.array(hits)))
        triples.append((query[hits], document, grade[hits].astype(np.int64)))
    kept = np.flatnonzero(seen)
    renumbered = np.cumsum(seen) - 1
    builder = ListsBuilder(len(kept))
    for batch in _batches(top_ranked, ("query-id", "corpus-ids"), rows=100_000):
        lists = batch["corpus-ids"].combine_chunks()
        numbers = documents.numbers_of(lists.flatten())
        ends = np.cumsum([0, *pc.fill_null(pc.list_value_length(lists), 0).to_pylist()])
        for row, query in enumerate(names.numbers_of(batch["query-id"]).tolist()):
            if query >= 0 and seen[query]:
                builder.add(int(renumbered[query]), numbers[ends[row] : ends[row + 1]])
    judged_names = names.some(kept)
    query, document, grade = (np.concatenate(parts) for parts in zip(*triples, strict=True))
    judged = Judged(
        queries=judged_names,
        documents=documents.size,
        rank_of_name=documents.ranks(),
        own_document=documents.numbers_of(judged_names._names),
        relevant=Relevant.of(len(kept), renumbered[query], document, grade),
        lists=builder.done(),
        in_order=renumbered[np.concatenate(order)],
    )
    return judged, kept


def capped(judged: Judged, most: int, seed: int) -> tuple[Judged, Ints, Ints] | None:
    """Lists of candidates with all their queries, drawn while there are ``most`` texts at most.

    Returns:
        The smaller task, the queries and the documents that it has of the larger one; None if that
        is small enough.
    """
    lists = judged.lists
    assert lists is not None
    n = judged.relevant.queries
    if n + judged.documents <= most:
        return None
    queries_of = np.bincount(lists.of_query, minlength=len(lists.sizes))
    taken = np.zeros(len(lists.sizes), bool)
    shown: set[int] = set()
    asked = 0
    for one in np.random.default_rng(seed).permutation(len(lists.sizes)).tolist():
        more = shown.union(lists.documents[lists.ends[one] : lists.ends[one + 1]].tolist())
        if taken.any() and asked + queries_of[one] + len(more) > most:
            continue
        shown, asked = more, asked + int(queries_of[one])
        taken[one] = True
        if asked + len(shown) >= most - 2:
            break
    queries, documents = np.flatnonzero(taken[lists.of_query]), np.array(sorted(shown), np.int64)
    query_now, document_now = np.full(n, -1), np.full(judged.documents + 1, -1)
    query_now[queries], document_now[documents] = np.arange(len(queries)), np.arange(len(documents))
    builder = ListsBuilder(len(queries))
    for now, query in enumerate(queries.tolist()):
        start, stop = lists.ends[lists.of_query[query] : lists.of_query[query] + 2]
        builder.add(now, document_now[lists.documents[start:stop]])
    relevant = judged.relevant
    mine = query_now[relevant.query] >= 0
    order = query_now[judged.in_order]
    smaller = Judged(
        queries=judged.queries.some(queries),
        documents=len(documents),
        rank_of_name=judged.rank_of_name[documents],
        own_document=document_now[judged.own_document[queries]],
        relevant=Relevant.of(
            len(queries),
            query_now[relevant.query[mine]],
            document_now[relevant.document[mine]],
            relevant.grade[mine],
        ),
        lists=builder.done(),
        in_order=order[order >= 0],
    )
    return smaller, queries, documents


def _batches(dataset: Any, names: Sequence[str], rows: int = 2_000_000) -> Iterator[Any]:
    table = dataset.select_columns(list(names)).with_format("arrow")
    for start in range(0, len(dataset), rows):
        yield table[start : start + rows]
