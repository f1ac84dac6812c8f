"""Tasks of your own: MTEB task objects made of columns, JSONL or Parquet files, or Python code.

A local task is an ordinary ``mteb`` task, so that mteb's own evaluators score it; only its data
come from here instead of the Hub. What each type needs:

| type | parts | columns |
| --- | --- | --- |
| ``sts`` | test | sentence1, sentence2, score |
| ``pair_classification`` | test | sentence1, sentence2, label (0 or 1) |
| ``classification`` | train, test | text, label |
| ``multilabel_classification`` | train, test | text, label (a list) |
| ``clustering`` | test | text, label |
| ``reranking`` | test | query, positive (a list of texts), negative (a list of texts) |
| ``retrieval`` | corpus | id, text, title (optional) |
|  | queries | id, text |
|  | qrels | query-id, corpus-id, score (optional, a whole number) |
| ``bitext_mining`` | test | sentence1, sentence2 (row by row translations) |
| ``summarization`` | test | text, human_summaries, machine_summaries, relevance (lists) |

How they are laid out in files: :mod:`batchsweep.tasks.local_files`.
"""

# mypy: disallow-subclassing-any=False
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import (
    AbsTask,
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
    AbsTaskSummarization,
)

from batchsweep.errors import ConfigError, first_line
from batchsweep.tasks.columns import Columns, check_columns


class _Local(AbsTask):
    """What all local tasks share: their data are given, never downloaded."""

    kind: str
    mteb_type: str
    main_score: str
    #: part -> columns that it must have
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, name: str, parts: Mapping[str, Columns], where: str) -> None:
        self._parts = {part: dict(parts[part]) for part in self.needs}
        self._where = where
        self.metadata = TaskMetadata(
            name=name,
            description=f"Local {self.kind} task.",
            type=self.mteb_type,
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=self.main_score,
            dataset={"path": f"local/{name}", "revision": _digest(self._parts)},
        )
        super().__init__()
        self.load_data()

    def unload_data(self) -> None:
        # mteb's own also drops the instance's metadata, which here describe nothing but this data.
        self.dataset = None
        self.data_loaded = False

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Make mteb's data set of the columns; nothing is read or downloaded."""
        if not self.data_loaded:
            self.dataset = self._make()
            self.data_loaded = True

    def _make(self) -> Any:
        return DatasetDict({"test": Dataset.from_dict(self._parts["test"])})

    def _labelled(self, labels: Callable[[Any], Any]) -> Any:
        """Of texts with labels: each part with what ``labels`` makes of each row's."""
        return DatasetDict(
            {
                part: Dataset.from_dict(
                    {"text": columns["text"], "label": [labels(x) for x in columns["label"]]}
                )
                for part, columns in self._parts.items()
            }
        )

    def _wrong(self, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}: task '{self.metadata.name}': {problem}")


class LocalSTS(_Local, AbsTaskSTS):
    """Pairs of texts with how alike they are."""

    kind, mteb_type, main_score = "sts", "STS", "cosine_spearman"
    needs: ClassVar = {"test": ("sentence1", "sentence2", "score")}

    def _make(self) -> Any:
        if len(set(self._parts["test"]["score"])) < 2:
            raise self._wrong("all scores are equal; a correlation needs at least two values")
        return super()._make()


class LocalPairClassification(_Local, AbsTaskPairClassification):
    """Pairs of texts that mean the same (1) or not (0)."""

    kind, mteb_type, main_score = "pair_classification", "PairClassification", "max_ap"
    needs: ClassVar = {"test": ("sentence1", "sentence2", "label")}
    label_column_name = "label"

    def _make(self) -> Any:
        if set(self._parts["test"]["label"]) != {0, 1}:
            raise self._wrong("column 'label' must hold 0 (different) and 1 (same), both of them")
        return super()._make()


class LocalClassification(_Local, AbsTaskClassification):
    """Texts with a label each, a part to train on and one to test."""

    kind, mteb_type, main_score = "classification", "Classification", "accuracy"
    needs: ClassVar = {"train": ("text", "label"), "test": ("text", "label")}

    def _make(self) -> Any:
        train, test = (self._parts[part]["label"] for part in ("train", "test"))
        if len(set(train)) < 2:
            raise self._wrong("the train part has fewer than two different labels")
        number = _numbers([*train, *test])
        return self._labelled(lambda label: number[label])


class LocalMultilabelClassification(_Local, AbsTaskMultilabelClassification):
    """Texts with several labels each, a part to train on and one to test."""

    kind, mteb_type, main_score = "multilabel_classification", "MultilabelClassification", "f1"
    needs: ClassVar = {"train": ("text", "label"), "test": ("text", "label")}

    def _make(self) -> Any:
        labels = [x for part in self._parts.values() for row in part["label"] for x in row]
        if len(set(labels)) < 2:
            raise self._wrong("there are fewer than two different labels")
        number = _numbers(labels)
        return self._labelled(lambda row: [number[label] for label in row])


class LocalClustering(_Local, AbsTaskClustering):
    """Texts with the cluster that each belongs to."""

    kind, mteb_type, main_score = "clustering", "Clustering", "v_measure"
    needs: ClassVar = {"test": ("text", "label")}
    input_column_name, label_column_name = "text", "label"
    # All texts take part; mteb's default of 4 % is meant for data sets of a hundred thousand.
    max_fraction_of_documents_to_embed = None

    def _make(self) -> Any:
        columns = self._parts["test"]
        if len(set(columns["label"])) < 2:
            raise self._wrong("there are fewer than two different labels")
        # mteb draws this many with replacement, ten times; more than there are adds only time.
        self.max_documents_per_cluster = min(16_384, len(columns["text"]))
        number = _numbers(columns["label"])
        return self._labelled(lambda label: number[label])


class LocalBitextMining(_Local, AbsTaskBitextMining):
    """Pairs of texts that are each other's translation."""

    kind, mteb_type, main_score = "bitext_mining", "BitextMining", "f1"
    needs: ClassVar = {"test": ("sentence1", "sentence2")}


class LocalSummarization(_Local, AbsTaskSummarization):
    """Texts with summaries of people and of machines, and how good the latter are."""

    kind, mteb_type, main_score = "summarization", "Summarization", "cosine_spearman"
    needs: ClassVar = {"test": ("text", "human_summaries", "machine_summaries", "relevance")}

    def _make(self) -> Any:
        columns = self._parts["test"]
        for row, (machine, relevance) in enumerate(
            zip(columns["machine_summaries"], columns["relevance"], strict=True)
        ):
            if len(machine) != len(relevance):
                raise self._wrong(
                    f"row {row}: {len(machine)} machine_summaries, {len(relevance)} relevance"
                )
        scores = [x for row in columns["relevance"] for x in row]
        if len(set(scores)) < 2:
            raise self._wrong("all relevance scores are equal; a correlation needs two values")
        self.min_score, self.max_score = min(scores), max(scores)
        return super()._make()


class LocalRetrieval(_Local, AbsTaskRetrieval):
    """Documents, queries, and which documents answer them."""

    kind, mteb_type, main_score = "retrieval", "Retrieval", "ndcg_at_10"
    needs: ClassVar = {
        "corpus": ("id", "text"),
        "queries": ("id", "text"),
        "qrels": ("query-id", "corpus-id"),
    }

    def _make(self) -> Any:
        corpus, queries, qrels = (dict(self._parts[p]) for p in ("corpus", "queries", "qrels"))
        for part, columns in (("corpus", corpus), ("queries", queries)):
            columns["id"] = [str(x) for x in columns["id"]]
            if len(set(columns["id"])) < len(columns["id"]):
                twice = next(x for x in columns["id"] if columns["id"].count(x) > 1)
                raise self._wrong(f"{part}: the id '{twice}' is there twice")
        known = {"query-id": set(queries["id"]), "corpus-id": set(corpus["id"])}
        relevant: dict[str, dict[str, int]] = {}
        scores = qrels.get("score", [1] * len(qrels["query-id"]))
        for row, (query, doc, score) in enumerate(
            zip(qrels["query-id"], qrels["corpus-id"], scores, strict=True)
        ):
            for column, value in (("query-id", str(query)), ("corpus-id", str(doc))):
                if value not in known[column]:
                    raise self._wrong(f"qrels row {row}: {column} '{value}' is nowhere defined")
            relevant.setdefault(str(query), {})[str(doc)] = int(score)
        return _retrieval(corpus, queries, relevant)


class LocalReranking(_Local, AbsTaskRetrieval):
    """Queries, each with texts that answer it and texts that don't."""

    kind, mteb_type, main_score = "reranking", "Reranking", "map_at_1000"
    needs: ClassVar = {"test": ("query", "positive", "negative")}

    def _make(self) -> Any:
        rows = self._parts["test"]
        ids: list[str] = []
        texts: list[str] = []
        relevant: dict[str, dict[str, int]] = {}
        ranked: dict[str, list[str]] = {}
        for row, (positive, negative) in enumerate(
            zip(rows["positive"], rows["negative"], strict=True)
        ):
            if not positive or not negative:
                raise self._wrong(f"row {row}: needs at least one positive and one negative text")
            candidates = [(f"q{row}p{i}", text, 1) for i, text in enumerate(positive)]
            candidates += [(f"q{row}n{i}", text, 0) for i, text in enumerate(negative)]
            ids.extend(c[0] for c in candidates)
            texts.extend(c[1] for c in candidates)
            relevant[f"q{row}"] = {c[0]: c[2] for c in candidates}
            ranked[f"q{row}"] = [c[0] for c in candidates]
        queries = {"id": list(ranked), "text": rows["query"]}
        return _retrieval({"id": ids, "text": texts}, queries, relevant, ranked)


def _retrieval(
    corpus: Columns,
    queries: Columns,
    relevant: Mapping[str, Mapping[str, int]],
    ranked: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """The one split of a retrieval or reranking task, in mteb's own form."""
    split = {
        "corpus": Dataset.from_dict(dict(corpus)),
        "queries": Dataset.from_dict(dict(queries)),
        "relevant_docs": relevant,
        "top_ranked": ranked,
    }
    return {"default": {"test": split}}


KINDS: dict[str, type[_Local]] = {
    cls.kind: cls
    for cls in (
        LocalSTS,
        LocalPairClassification,
        LocalClassification,
        LocalMultilabelClassification,
        LocalClustering,
        LocalReranking,
        LocalRetrieval,
        LocalBitextMining,
        LocalSummarization,
    )
}


def from_columns(
    name: str,
    kind: str,
    parts: Mapping[str, Any],
    *,
    where: str = "columns",
    rows: Mapping[str, Sequence[str]] | None = None,
) -> AbsTask:
    """An mteb task of columns that are in memory.

    Args:
        name: the task's name in tables and in the store.
        kind: one of :data:`KINDS`.
        parts: part -> column -> values, as in the table at the top of this module. A task of one
            part may be given as that part's columns alone.
        where: what error messages call the source of the columns.
        rows: what they call each row of a part, such as ``file.jsonl:7``; by default its number.

    Raises:
        ConfigError: unknown kind, missing part or column, unequal lengths, a value of the wrong
            type, with the row.

    Example:
        >>> task = from_columns(
        ...     "pets", "sts",
        ...     {"sentence1": ["a cat", "a dog"], "sentence2": ["one cat", "rain"],
        ...      "score": [5.0, 0.0]},
        ... )
        >>> task.metadata.name
        'pets'
    """
    if kind not in KINDS:
        raise ConfigError(
            f"{where}: task '{name}': unknown type '{kind}'; valid: {', '.join(KINDS)}"
        )
    cls = KINDS[kind]
    if len(cls.needs) == 1 and not set(parts) & set(cls.needs):
        parts = {next(iter(cls.needs)): parts}
    for part, needed in cls.needs.items():
        if part not in parts:
            raise ConfigError(
                f"{where}: task '{name}' ({kind}) has no part '{part}'; "
                f"it needs {', '.join(cls.needs)}"
            )
        place = where if len(cls.needs) == 1 else f"{where} ({part})"
        named = (rows or {}).get(part) or [f"{place}: row {i}" for i in range(_rows(parts[part]))]
        lists = kind == "multilabel_classification"
        check_columns(parts[part], needed, place, name, named, lists=lists)
    try:
        return cls(name, parts, where)
    except (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        # Of pyarrow, where a column mixes types, or a number is larger than any.
        raise ConfigError(f"{where}: task '{name}': no data set: {first_line(error)}") from None


def _rows(columns: Columns) -> int:
    return max(map(len, columns.values()), default=0)


def _numbers(labels: Sequence[Any]) -> dict[Any, int]:
    """Label -> number: sklearn's metrics of two classes need numbers, not names."""
    return {
        label: i for i, label in enumerate(sorted(set(labels), key=lambda x: (str(type(x)), x)))
    }


def _digest(parts: Mapping[str, Columns]) -> str:
    """Stands for a Hub revision in results: sha256 (first 40 hex digits) of the task's data."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        for column in sorted(parts[part]):
            digest.update(f"\0{part}\0{column}\0".encode())
            for value in parts[part][column]:
                digest.update(json.dumps(value, default=str, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:40]
