"""Retrieval metrics on flat arrays: what pytrec_eval and mteb compute, for all queries at once.

Formulas: trec_eval (map_cut, ndcg_cut, recall, P, success; Järvelin and Kekäläinen 2002 for nDCG
with gain = grade), MRR, and the normalised area under the abstention curve (nAUC, Gisserot-Boukhlef
et al. 2024, arXiv:2402.12997) as mteb defines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from mteb._evaluators.retrieval_metrics import make_score_dict

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Parts of the queries that nAUC abstains from.
ABSTENTION = np.linspace(0, 1, 11)[:-1]


class Corpus:
    """Document names as numbers, and their order for breaking ties."""

    def __init__(self, names: pa.ChunkedArray) -> None:
        self._names: pa.Array | None = names.cast(pa.large_string()).combine_chunks()
        self.size = len(self._names)
        self.unique = pc.count_distinct(self._names).as_py() == self.size
        # Byte order of UTF-8, which pytrec_eval and Python's strings agree on.
        self.rank = np.empty(self.size, np.int32)
        self.rank[pc.sort_indices(self._names).to_numpy()] = np.arange(self.size, dtype=np.int32)

    def numbers_of(self, names: pa.Array) -> Ints:
        """The number of each name, -1 where there is no such document."""
        found = pc.index_in(names.cast(pa.large_string()), value_set=self._names)
        numbers: Ints = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers

    def drop_names(self) -> None:
        """Let go of the names; numbers and ranks stay."""
        self._names = None


@dataclass(frozen=True)
class Judgements:
    """Which documents are how relevant to which query.

    Attributes:
        queries: number of queries.
        keys: int64, ``query * documents + document``, ascending; judged documents of the corpus.
        grades: int64, the grade of each key.
        relevant: int64 [query], documents of grade 1 or more, also those outside the corpus.
        ideal: int64 [judged], all grades above 0, query by query, descending.
    """

    queries: int
    documents: int
    keys: Ints
    grades: Ints
    relevant: Ints
    ideal: tuple[Ints, Ints]

    @classmethod
    def of(
        cls, queries: int, documents: int, query: Ints, document: Ints, grade: Ints
    ) -> Judgements:
        """From (query, document or -1, grade) triples."""
        inside = document >= 0
        keys = query[inside] * documents + document[inside]
        order = np.argsort(keys)
        hits = grade > 0
        best_first = np.lexsort((-grade[hits], query[hits]))
        return cls(
            queries=queries,
            documents=documents,
            keys=keys[order],
            grades=grade[inside][order],
            relevant=np.bincount(query[hits], minlength=queries),
            ideal=(query[hits][best_first], grade[hits][best_first]),
        )

    def grades_of(self, query: Ints, document: Ints) -> Ints:
        """The grade of each (query, document), 0 where it was not judged."""
        if not len(self.keys):
            return np.zeros(len(query), np.int64)
        wanted = query * self.documents + document
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.grades[place], 0)


@dataclass(frozen=True)
class Ranking:
    """Retrieved documents, in order: query by query, best first, equal ones by name descending.

    Attributes:
        query, document, grade: int64 [retrieved].
        value: float32 [retrieved], the similarity.
    """

    query: Ints
    document: Ints
    grade: Ints
    value: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        query: Ints,
        document: Ints,
        grade: Ints,
        value: npt.NDArray[np.float32],
        rank_of_name: npt.NDArray[np.int32],
    ) -> Ranking:
        """Put candidates of any order into order."""
        order = np.lexsort((-rank_of_name[document], -value, query))
        return cls(query[order], document[order], grade[order], value[order])

    @property
    def place(self) -> Ints:
        """0 for the best document of each query, 1 for the next ..."""
        starts = np.flatnonzero(np.r_[True, self.query[1:] != self.query[:-1]])
        sizes = np.diff(np.r_[starts, len(self.query)])
        return np.arange(len(self.query)) - np.repeat(starts, sizes)

    def where(self, keep: npt.NDArray[np.bool_]) -> Ranking:
        """Some of the documents."""
        if keep.all():
            return self
        return Ranking(self.query[keep], self.document[keep], self.grade[keep], self.value[keep])


def retrieval_scores(
    ranking: Ranking, judgements: Judgements, k_values: Sequence[int]
) -> dict[str, Any]:
    """The scores of ``AbsTaskRetrieval``, from mteb's ``calculate_retrieval_scores``."""
    if not len(ranking.query):
        place = hits = np.empty(0, np.int64)
    else:
        place, hits = ranking.place, (ranking.grade > 0).astype(np.int64)
    query, n = ranking.query, judgements.queries

    def per_query(weights: npt.NDArray[Any], chosen: npt.NDArray[np.bool_]) -> Floats:
        weights = weights[chosen].astype(np.float64)
        return np.bincount(query[chosen], weights=weights, minlength=n).astype(np.float64)

    found_before = np.cumsum(hits) - hits
    starts = np.searchsorted(query, query)
    found_here = found_before - found_before[starts] + hits if len(query) else hits
    precision_here = hits * found_here / (place + 1)
    gain = np.where(hits == 1, ranking.grade, 0) / np.log2(place + 2)
    ideal_query, ideal_grade = judgements.ideal
    ideal_start = np.searchsorted(ideal_query, ideal_query)
    ideal_place = np.arange(len(ideal_query)) - ideal_start
    ideal_gain = ideal_grade / np.log2(ideal_place + 2)
    none = judgements.relevant == 0
    total = np.where(none, 1, judgements.relevant)
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, query[hits == 1], place[hits == 1])

    names = ("NDCG", "MAP", "Recall", "P")
    metrics: dict[str, dict[str, Floats]] = {name: {} for name in (*names, "HitRate", "MRR")}
    for k in k_values:
        within = place < k
        count = per_query(hits, within)
        ideal_within = ideal_place < k
        best = np.bincount(ideal_query[ideal_within], weights=ideal_gain[ideal_within], minlength=n)
        reached = per_query(gain, within)
        metrics["NDCG"][f"NDCG@{k}"] = np.where(none, 0, reached / np.where(none, 1, best))
        metrics["MAP"][f"MAP@{k}"] = np.where(none, 0, per_query(precision_here, within) / total)
        metrics["Recall"][f"Recall@{k}"] = np.where(none, 0, count / total)
        metrics["P"][f"P@{k}"] = count / k
        metrics["HitRate"][f"HitRate@{k}"] = (count > 0).astype(float)
        metrics["MRR"][f"MRR@{k}"] = np.where(first < k, 1.0 / (first + 1.0), 0.0)

    # Summed one after the other and rounded, as mteb does.
    means = {
        name: {key: sum(values.tolist()) / n for key, values in by_k.items()}
        for name, by_k in metrics.items()
    }
    rounded = {
        name: {key: round(value, 5) for key, value in by_k.items()} for name, by_k in means.items()
    }
    confidence = _confidence(ranking, n)
    abstention = _nauc(confidence, {k: v for name in names for k, v in metrics[name].items()})
    scores: dict[str, Any] = make_score_dict(
        ndcg=rounded["NDCG"],
        _map=rounded["MAP"],
        recall=rounded["Recall"],
        precision=rounded["P"],
        mrr=means["MRR"],
        naucs=abstention,
        naucs_mrr=_nauc(confidence, metrics["MRR"]),
        hit_rate=rounded["HitRate"],
        task_scores={},
    )
    return scores


def _confidence(ranking: Ranking, queries: int) -> dict[str, Floats]:
    """Per query: the largest similarity, the spread, and the lead of the first over the second."""
    result = {name: np.zeros(queries) for name in ("max", "std", "diff1")}
    if not len(ranking.query):
        return result
    starts = np.flatnonzero(np.r_[True, ranking.query[1:] != ranking.query[:-1]])
    sizes = np.diff(np.r_[starts, len(ranking.query)])
    there = ranking.query[starts]
    values = ranking.value.astype(float)
    result["max"][there] = values[starts]
    mean = np.add.reduceat(values, starts) / sizes
    squares = (values - np.repeat(mean, sizes)) ** 2
    result["std"][there] = np.sqrt(np.add.reduceat(squares, starts) / sizes)
    several = sizes > 1
    result["diff1"][there[several]] = (
        values[starts[several]] - values[np.minimum(starts[several] + 1, len(values) - 1)]
    )
    return result


def _nauc(confidence: dict[str, Floats], metrics: dict[str, Floats]) -> dict[str, float]:
    """mteb's ``evaluate_abstention``: each metric by each confidence."""
    table = np.array(list(metrics.values()))
    oracle = np.array([_curve(row, row[None])[0] for row in table])
    oracle_area = _area(oracle)
    flat = oracle[:, 0] * (ABSTENTION[-1] - ABSTENTION[0])
    result = {}
    areas = {name: _area(_curve(values, table)) for name, values in confidence.items()}
    for i, metric in enumerate(metrics):
        for name, area in areas.items():
            same = oracle_area[i] == flat[i]
            value = np.nan if same else (area[i] - flat[i]) / (oracle_area[i] - flat[i])
            result[f"nAUC_{metric}_{name}"] = float(value)
    return result


def _area(curves: npt.NDArray[np.float64]) -> Floats:
    return np.asarray(np.trapezoid(curves, ABSTENTION, axis=1))


def _curve(confidence: Floats, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of each row of ``table`` [metric, query] without the least confident queries.

    Queries of equal confidence count with their mean, so that their order doesn't matter.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    levelled = np.repeat(np.add.reduceat(table[:, order], starts, axis=1) / sizes, sizes, axis=1)
    cuts = [min(round(rate * len(ordered)), len(ordered) - 1) for rate in ABSTENTION]
    return np.stack([levelled[:, cut:].mean(axis=1) for cut in cuts], axis=1)
