"""Tasks that try what scoring gets wrong most easily, one class each; and mteb's own mocks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mteb.mocks.mock_tasks as mocks
import pandas as pd
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb._evaluators.retrieval_metrics import max_over_subqueries
from mteb.abstasks import AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from scoring import local_columns, local_tasks, sentences


def _metadata(name: str, type: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="",
        type=type,
        eval_langs=["eng-Latn"],
        main_score=main_score,
        dataset={"path": "local/x", "revision": "1"},
    )


class LegacySets(AbsTaskClusteringLegacy):
    """Three sets of documents to cluster, one of them of one label only."""

    metadata = _metadata("LegacySets", "Clustering", "v_measure")

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        texts, topics = sentences(90, 7)
        sets = [texts[:40], texts[40:85], texts[85:]]
        labels = [topics[:40], topics[40:85], [3] * 5]
        data = Dataset.from_dict({"sentences": sets, "labels": labels})
        self.dataset = DatasetDict({"test": data})
        self.data_loaded = True


class Hierarchy(AbsTaskClustering):
    """A part of the documents is drawn by the task's own random state; two levels of labels."""

    metadata = _metadata("Hierarchy", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = 0.6
    max_documents_per_cluster = 50
    n_clusters = 3

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        texts, topics = sentences(120, 8)
        labels = [[f"t{t}", f"t{t}{i % 2}"] if i % 7 else [f"t{t}"] for i, t in enumerate(topics)]
        data = Dataset.from_dict({"sentences": texts, "labels": labels})
        self.dataset = DatasetDict({"test": data})
        self.data_loaded = True


class Subqueries(AbsTaskRetrieval):
    """Like MindSmallReranking: several queries share their candidates and are merged."""

    metadata = _metadata("Subqueries", "Reranking", "max_over_subqueries_map_at_1000")

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        rng = random.Random(1)
        documents = sorted(set(sentences(60, 9)[0]))
        corpus = Dataset.from_dict(
            {"id": [f"N{i}" for i in range(len(documents))], "text": documents}
        )
        history, _ = sentences(30, 10)
        queries: dict[str, list[str]] = {"id": [], "text": []}
        relevant: dict[str, dict[str, int]] = {}
        ranked: dict[str, list[str]] = {}
        for impression in range(12):
            shown = rng.sample(range(len(documents)), 9)
            clicked = rng.sample(shown, 2)
            for i in range(rng.randint(1, 5)):
                name = f"imp{impression}_{i}"
                queries["id"].append(name)
                queries["text"].append(rng.choice(history))
                relevant[name] = {f"N{d}": int(d in clicked) for d in shown}
                ranked[name] = [f"N{d}" for d in shown]
        self.dataset = {
            "default": {
                "test": {
                    "corpus": corpus,
                    "queries": Dataset.from_dict(queries),
                    "relevant_docs": relevant,
                    "top_ranked": ranked,
                }
            }
        }
        self.data_loaded = True

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> dict[str, float]:
        return max_over_subqueries(qrels, results, self.k_values)


class Gaps(Subqueries):
    """A query without candidates, one with none left, and one that lists some twice."""

    metadata = _metadata("Gaps", "Reranking", "map_at_1000")
    task_specific_scores = AbsTaskRetrieval.task_specific_scores

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        super().load_data()
        data = self.dataset["default"]["test"]
        names, ranked = data["queries"]["id"], data["top_ranked"]
        del ranked[names[0]]
        ranked[names[1]] = []
        ranked[names[2]] = [*ranked[names[2]], *ranked[names[2]][:2]]


class Equal(Gaps):
    """All documents are equally near: names decide."""

    metadata = _metadata("Equal", "Retrieval", "ndcg_at_10")

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        super().load_data()
        data = self.dataset["default"]["test"]
        names = data["corpus"]["id"]
        data["corpus"] = Dataset.from_dict({"id": names, "text": ["the same"] * len(names)})
        data["top_ranked"] = None


class OwnNames(AbsTaskRetrieval):
    """Queries are documents too, and a document is not to find itself (ArguAna, Quora)."""

    metadata = _metadata("OwnNames", "Retrieval", "ndcg_at_10")
    ignore_identical_ids = True
    k_values = (1, 3, 10)

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        texts, topics = sentences(80, 11)
        corpus = Dataset.from_dict({"id": [str(i) for i in range(80)], "text": texts})
        relevant = {
            str(q): {str(d): 1 for d in range(80) if d != q and topics[d] == topics[q] and d % 3}
            for q in range(15)
        }
        relevant["3"] = {"missing from the corpus": 1}
        relevant["4"] = {"5": 0}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": corpus,
                    "queries": corpus.select(range(15)),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class OwnScore(AbsTaskSTS):
    """Overrides what a shortcut stands for, so that mteb itself must score it."""

    metadata = _metadata("OwnScore", "STS", "agreement")

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        one, two = sentences(20, 12)[0], sentences(20, 13)[0]
        scores = [float(i % 6) for i in range(20)]
        self.dataset = DatasetDict(
            {"test": Dataset.from_dict({"sentence1": one, "sentence2": two, "score": scores})}
        )
        self.data_loaded = True

    def _evaluate_subset(self, *args: Any, **kwargs: Any) -> Any:
        scores = super()._evaluate_subset(*args, **kwargs)
        return {**scores, "agreement": scores["pearson"] ** 2}


OWN = (LegacySets, Hierarchy, Subqueries, Gaps, Equal, OwnNames, OwnScore)
#: mteb's own: several subsets and splits, instructions, conversations, further classes.
MOCKS = (
    mocks.MockMultilingualSTSTask,
    mocks.MockMultilingualPairClassificationTask,
    mocks.MockMultilingualClassificationTask,
    mocks.MockMultilingualMultilabelClassification,
    mocks.MockMultilingualClusteringFastTask,
    mocks.MockMultilingualRerankingTask,
    mocks.MockMultilingualRetrievalTask,
    mocks.MockMultilingualParallelBitextMiningTask,
    mocks.MockInstructionReranking,
    mocks.MockRetrievalDialogTask,
    mocks.MockRegressionTask,
    mocks.MockTextZeroShotClassificationTask,
)
SHORT = ("sts", "pairs", "classes", "binary", "labels", "clusters", "rerank", "search")


CLASSES = {cls.metadata.name: cls for cls in (*OWN, *MOCKS)}
NAMES = (*local_columns(), *CLASSES)


def fresh_task(name: str) -> Any:
    """A fresh object: a task that mteb has evaluated once may be in another state."""
    return CLASSES[name]() if name in CLASSES else local_tasks(name)[0]


def all_tasks() -> dict[str, Any]:
    """Fresh objects of all of them."""
    return {name: fresh_task(name) for name in NAMES}


def hub_layout(folder: Path) -> Path:
    """The Subqueries task as a data set in the layout that mteb's own data sets have."""
    task = Subqueries()
    task.load_data()
    data = task.dataset["default"]["test"]
    parts = {
        "corpus": data["corpus"].to_pandas().rename(columns={"id": "_id"}),
        "queries": pd.DataFrame(
            {
                "_id": [*data["queries"]["id"], "imp99_0"],  # one that nothing is known of
                "text": [*data["queries"]["text"], "not judged"],
            }
        ),
        "qrels": pd.DataFrame(
            [(q, d, g) for q, docs in data["relevant_docs"].items() for d, g in docs.items()],
            columns=["query-id", "corpus-id", "score"],
        ),
        "top_ranked": pd.DataFrame(
            {
                "query-id": [*data["top_ranked"], "imp99_0"],
                "corpus-ids": [*data["top_ranked"].values(), ["N1"]],
            }
        ),
    }
    parts["corpus"]["title"] = ""
    lines = ["---", "configs:"]
    for name, frame in parts.items():
        (folder / name).mkdir(parents=True)
        frame.to_parquet(folder / name / "test.parquet")
        lines += [
            f"- config_name: {'default' if name == 'qrels' else name}",
            "  data_files:",
            "  - split: test",
            f"    path: {name}/test.parquet",
        ]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder
