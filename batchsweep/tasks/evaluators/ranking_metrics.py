"""Retrieval metrics: what pytrec_eval and mteb compute, for all queries at once.

Nothing is sorted that needs no order: all metrics follow from the places of the relevant
documents, and a place is the number of candidates that are ahead.

Formulas: trec_eval (map_cut, ndcg_cut, recall, P, success; Järvelin and Kekäläinen 2002 for nDCG
with gain = grade), MRR, and the normalised area under the abstention curve (nAUC, Gisserot-Boukhlef
et al. 2024, arXiv:2402.12997) as mteb defines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from mteb._evaluators.retrieval_metrics import make_score_dict

from batchsweep.tasks.evaluators.qrels import Relevant

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]

#: Parts of the queries that nAUC abstains from.
ABSTENTION = np.linspace(0, 1, 11)[:-1]

#: Comparisons at once, when places are counted.
_PAIRS = 4_000_000


@dataclass(frozen=True)
class Found:
    """Where the relevant documents came out, and how sure the queries are.

    Attributes:
        query, place, grade: int64 [relevant document that was retrieved]; place 0 is the best.
        largest, spread, lead: float64 [query]; of the similarities of what was retrieved: the
            largest, the standard deviation, the first's lead over the second.
    """

    query: Ints
    place: Ints
    grade: Ints
    largest: Floats
    spread: Floats
    lead: Floats


def places(
    values: Values, names: npt.NDArray[np.int32], ends: Ints, query: Ints, hits: Ints, near: float
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """How many candidates of its query are ahead of each hit: a larger value, or a later name.

    Args:
        values: similarity of each candidate, query by query.
        names: rank of each candidate's name.
        ends: [query + 1], where each query's candidates start and end.
        query: the query of each hit.
        hits: positions among the candidates.
        near: a candidate this near to a hit, or nearer, makes the place unsure.

    Returns:
        The places, and which of them are unsure.
    """
    start, size = ends[query], ends[query + 1] - ends[query]
    place = np.zeros(len(hits), np.int64)
    unsure = np.zeros(len(hits), bool)
    for first, last in _runs(size):
        sizes = size[first:last]
        run_ends = np.cumsum(sizes)
        offset = np.arange(run_ends[-1]) - np.repeat(run_ends - sizes, sizes)
        other = np.repeat(start[first:last], sizes) + offset
        hit = np.repeat(hits[first:last], sizes)
        difference = values[other] - values[hit]
        ahead = (difference > 0) | ((difference == 0) & (names[other] > names[hit]))
        place[first:last] = np.add.reduceat(ahead, run_ends - sizes, dtype=np.int64)
        if near:
            close = (np.abs(difference) <= near) & (other != hit)
            unsure[first:last] = np.logical_or.reduceat(close, run_ends - sizes)
    return place, unsure


def _runs(sizes: Ints) -> Iterator[tuple[int, int]]:
    """Runs of hits with no more than some million comparisons together."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        yield first, last
        first = last


def confidence(values: Values, ends: Ints) -> tuple[Floats, Floats, Floats]:
    """mteb's ``confidence_scores`` of every query: largest, spread, lead; 0 without candidates."""
    sizes = np.diff(ends)
    largest, spread, lead = (np.zeros(len(sizes)) for _ in range(3))
    there = np.flatnonzero(sizes)
    if not len(there):
        return largest, spread, lead
    starts, counts = ends[:-1][there], sizes[there]
    exact = values.astype(np.float64)
    top = np.maximum.reduceat(exact, starts)
    deviation = exact - np.repeat(np.add.reduceat(exact, starts) / counts, counts)
    largest[there] = top
    spread[there] = np.sqrt(np.add.reduceat(deviation**2, starts) / counts)
    # The second largest: the largest once one of the largest is taken away.
    at_top = np.flatnonzero(exact == np.repeat(top, counts))
    owner = np.repeat(np.arange(len(there)), counts)[at_top]
    exact[at_top[np.r_[True, owner[1:] != owner[:-1]]]] = -np.inf
    second = np.maximum.reduceat(exact, starts)
    several = counts > 1
    lead[there[several]] = (top - second)[several]
    return largest, spread, lead


def retrieval_scores(found: Found, relevant: Relevant, k_values: Sequence[int]) -> dict[str, Any]:
    """The scores of ``AbsTaskRetrieval``, from mteb's ``calculate_retrieval_scores``."""
    tables = _Tables(found, relevant)
    abstention = _Abstention(found)
    means: dict[str, dict[str, float]] = {}
    nauc: dict[str, dict[str, float]] = {}
    for name in ("NDCG", "MAP", "Recall", "P", "HitRate", "MRR"):
        for k in k_values:
            row = tables.row(name, k)
            # Added up one after the other, as mteb does.
            means.setdefault(name, {})[f"{name}@{k}"] = float(np.cumsum(row)[-1]) / len(row)
            if name != "HitRate":
                nauc.setdefault(name, {}).update(abstention.areas(f"{name}@{k}", row))
    rounded = {
        name: {key: round(value, 5) for key, value in by_k.items()} for name, by_k in means.items()
    }
    scores: dict[str, Any] = make_score_dict(
        ndcg=rounded["NDCG"],
        _map=rounded["MAP"],
        recall=rounded["Recall"],
        precision=rounded["P"],
        mrr=means["MRR"],
        naucs={k: v for name in ("NDCG", "MAP", "Recall", "P") for k, v in nauc[name].items()},
        naucs_mrr=nauc["MRR"],
        hit_rate=rounded["HitRate"],
        task_scores={},
    )
    return scores


class _Tables:
    """One metric at one cutoff for all queries, made when asked: millions of queries fit."""

    def __init__(self, found: Found, relevant: Relevant) -> None:
        order = np.lexsort((found.place, found.query))
        self._query, self._place = found.query[order], found.place[order]
        self._n = relevant.queries
        before = np.searchsorted(self._query, self._query)
        self._precision = (np.arange(len(order)) - before + 1) / (self._place + 1)
        self._gain = found.grade[order] / np.log2(self._place + 2)
        self._none = relevant.counts == 0
        self._total = np.where(self._none, 1, relevant.counts)
        best_first = np.lexsort((-relevant.grade, relevant.query))
        self._ideal_query = relevant.query[best_first]
        start = np.searchsorted(self._ideal_query, self._ideal_query)
        self._ideal_place = np.arange(len(start)) - start
        self._ideal_gain = relevant.grade[best_first] / np.log2(self._ideal_place + 2)

    def row(self, name: str, k: int) -> Floats:
        within = self._place < k
        query = self._query[within]

        def total(weights: npt.NDArray[Any] | None) -> Floats:
            chosen = None if weights is None else weights[within]
            return np.bincount(query, weights=chosen, minlength=self._n).astype(np.float64)

        if name == "NDCG":
            ideal_within = self._ideal_place < k
            ideal = np.bincount(
                self._ideal_query[ideal_within],
                weights=self._ideal_gain[ideal_within],
                minlength=self._n,
            )
            return total(self._gain) / np.where(self._none, 1, ideal)
        if name == "MAP":
            return total(self._precision) / self._total
        if name == "Recall":
            return total(None) / self._total
        if name == "P":
            return total(None) / k
        if name == "HitRate":
            return (total(None) > 0).astype(np.float64)
        reciprocal = np.zeros(self._n)
        # Places ascend within a query, so that the last write of the reversed is the first hit.
        reciprocal[query[::-1]] = 1.0 / (self._place[within][::-1] + 1)
        return reciprocal


class _Abstention:
    """mteb's ``evaluate_abstention`` of one metric by each of the confidences."""

    def __init__(self, found: Found) -> None:
        self._orders = {
            name: _Order(values)
            for name, values in (
                ("max", found.largest),
                ("std", found.spread),
                ("diff1", found.lead),
            )
        }

    def areas(self, metric: str, row: Floats) -> dict[str, float]:
        # Ordered by the metric itself. Equal values are levelled too: of a constant metric, mteb's
        # ratio of two rounding errors is to be the same.
        ordered = np.sort(row)
        oracle = _curve(_levelled(ordered, *_groups(ordered)))
        oracle_area = np.trapezoid(oracle, ABSTENTION)
        flat = oracle[0] * (ABSTENTION[-1] - ABSTENTION[0])
        result = {}
        for name, order in self._orders.items():
            area = np.trapezoid(_curve(order.levelled(row)), ABSTENTION)
            same = oracle_area == flat
            value = np.nan if same else (area - flat) / (oracle_area - flat)
            result[f"nAUC_{metric}_{name}"] = float(value)
        return result


class _Order:
    """Queries from the least to the most confident, in groups of equal ones."""

    def __init__(self, confidence: Floats) -> None:
        self._order = np.argsort(confidence, kind="stable").astype(np.int32)
        self._groups = _groups(confidence[self._order])

    def levelled(self, row: Floats) -> Floats:
        """The metric in this order; equal queries count with their mean, whatever their order."""
        return _levelled(row[self._order], *self._groups)


def _groups(ordered: Floats) -> tuple[Ints, Ints]:
    """Starts and sizes of the runs of equal values."""
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return starts, np.diff(np.r_[starts, len(ordered)])


def _levelled(ordered: Floats, starts: Ints, sizes: Ints) -> Floats:
    if len(starts) == len(ordered):
        return ordered
    return np.repeat(np.add.reduceat(ordered, starts) / sizes, sizes)


def _curve(ordered: Floats) -> Floats:
    """The mean without the first 0 %, 10 % ... 90 %."""
    n = len(ordered)
    starts = [min(round(rate * n), n - 1) for rate in ABSTENTION]
    # What mean() does, without what it does around it.
    return np.array([np.add.reduce(ordered[start:]) / (n - start) for start in starts])
