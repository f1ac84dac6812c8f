"""mteb's own tasks with synthetic texts of the real number of rows, labels and repeats."""

from __future__ import annotations

import itertools
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.write import write_corpus
from batchsweep.store import GroupSpec, create_store

KEY = "synthetic--model/main"
#: Sets of documents of the older clustering tasks (from their data sets), labels in each set.
SETS = {
    "ArxivClusteringS2S": (31, 120),
    "BiorxivClusteringS2S": (10, 26),
    "MedrxivClusteringS2S": (10, 51),
    "RedditClustering": (25, 30),
    "StackExchangeClustering": (25, 30),
    "TwentyNewsgroupsClustering": (10, 20),
}
FILLER = " the quick study of several layers in a model and what they mean for text"


class Vectors:
    """text -> vector: 64 topics, noise of its own, and a direction that all share."""

    def __init__(self, hidden: int) -> None:
        rng = np.random.default_rng(0)
        self.noise = rng.standard_normal((50_021, hidden), dtype=np.float32)
        self._topics = rng.standard_normal((64, hidden), dtype=np.float32)
        self._shared = rng.standard_normal(hidden, dtype=np.float32)

    def __call__(self, texts: list[str]) -> np.ndarray:
        number = np.array([int(text[:8]) for text in texts])
        vectors = self.noise[number % len(self.noise)] + self._topics[number % 64]
        return (vectors + self._shared).astype(np.float16).astype(np.float32)


class Texts:
    """Synthetic texts; the number in front decides the vector."""

    def __init__(self) -> None:
        self._next = 0

    def make(self, rows: int, unique: int, length: float) -> tuple[list[str], np.ndarray]:
        """Texts, ``unique`` of them different, of about this length; and their numbers."""
        first, self._next = self._next, self._next + unique
        filler = (FILLER * 10)[: max(int(length) - 8, 1)]
        rng = np.random.default_rng(first)
        number = np.r_[np.arange(unique), rng.integers(0, unique, rows - unique)]
        number = first + rng.permutation(number)
        return [f"{n:08d}{filler}" for n in number.tolist()], number


def _statistics(task: Any, split: str) -> dict[str, Any]:
    found = (task.metadata.descriptive_stats or {}).get(split, {})
    by_subset = found.get("hf_subset_descriptive_stats", {})
    return by_subset.get(task.hf_subsets[0], found)


def fill(task: Any, texts: Texts) -> None:
    """Give a task synthetic data of its real sizes."""
    test = _statistics(task, "test")
    rng = np.random.default_rng(len(task.metadata.name))
    kind = task.metadata.type

    def side(name: str) -> list[str]:
        stats = test[f"{name}_statistics"]
        return texts.make(test["num_samples"], stats["unique_texts"], stats["average_text_length"])[
            0
        ]

    data: Any
    if kind == "STS":
        rows = {"sentence1": side("text1"), "sentence2": side("text2")}
        score = rng.uniform(0, 5, test["num_samples"]).tolist()
        names = dict(zip(rows, task.column_names, strict=True))
        data = {
            "test": Dataset.from_dict({**{names[k]: v for k, v in rows.items()}, "score": score})
        }
    elif kind == "PairClassification":
        label = (rng.random(test["num_samples"]) < 0.2).astype(int).tolist()
        data = {
            "test": Dataset.from_dict(
                {
                    task.input1_column_name: side("text1"),
                    task.input2_column_name: side("text2"),
                    task.label_column_name: label,
                }
            )
        }
    elif kind == "Classification":
        labels = test["label_statistics"]["unique_labels"]
        length = test["text_statistics"]["average_text_length"]
        data = {}
        for split in ("train", "test"):
            n = _statistics(task, split)["num_samples"]
            made, number = texts.make(n, n, length)
            data[split] = Dataset.from_dict(
                {
                    task.input_column_name: made,
                    task.label_column_name: (
                        number % 64 % labels if labels <= 64 else number % labels
                    ).tolist(),
                }
            )
    elif kind == "Clustering":
        sets, labels = SETS[task.metadata.name]
        stats = test["text_statistics"]
        made, number = texts.make(
            test["num_samples"], stats["unique_texts"], stats["average_text_length"]
        )
        cuts = np.linspace(0, len(made), sets + 1).astype(int)
        spans = list(itertools.pairwise(cuts))
        data = {
            "test": Dataset.from_dict(
                {
                    "sentences": [made[a:b] for a, b in spans],
                    "labels": [(number[a:b] % labels).tolist() for a, b in spans],
                }
            )
        }
    else:
        data = _reranking(task, test, texts, rng)
    task.dataset = DatasetDict(data) if kind != "Reranking" else {"default": {"test": data}}
    if task.hf_subsets != ["default"]:
        task.dataset = {task.hf_subsets[0]: task.dataset}
    task.data_loaded = True


def _reranking(task: Any, test: dict[str, Any], texts: Texts, rng: Any) -> dict[str, Any]:
    documents, queries = test["documents_text_statistics"], test["queries_text_statistics"]
    ranked = test["top_ranked_statistics"]["num_top_ranked"]
    n_queries = round(ranked / test["top_ranked_statistics"]["average_top_ranked_per_query"])
    each = ranked // n_queries
    relevant = round(test["relevant_docs_statistics"]["average_relevant_docs_per_query"])
    n_documents = each * n_queries
    asked, _ = texts.make(
        n_queries, min(queries["unique_texts"], n_queries), queries["average_text_length"]
    )
    shown, _ = texts.make(n_documents, documents["unique_texts"], documents["average_text_length"])
    names = [f"q{q}" for q in range(n_queries)]
    candidates = {name: [f"d{q * each + i}" for i in range(each)] for q, name in enumerate(names)}
    return {
        "corpus": Dataset.from_dict({"id": [f"d{i}" for i in range(n_documents)], "text": shown}),
        "queries": Dataset.from_dict({"id": names, "text": asked}),
        "relevant_docs": {
            name: {d: int(i < relevant) for i, d in enumerate(listed)}
            for name, listed in candidates.items()
        },
        "top_ranked": candidates,
    }


def make_store(path: Path, tasks: list[Any], vectors: Vectors, hidden: int) -> Any:
    """The corpus of the tasks and one checkpoint with one layer."""
    store = create_store(path)
    start = time.perf_counter()
    summary = write_corpus(store, tasks, {}, embedding=EmbeddingConfig(), corpus=CorpusConfig())
    seconds = time.perf_counter() - start
    print(
        f"corpus: {summary.asked} texts asked for, {summary.texts} unique, {seconds:.0f} s, "
        f"peak {peak():.1f} GB",
        flush=True,
    )
    corpus = store.corpus()
    spec = GroupSpec(
        layers=(1,),
        poolings=("mean",),
        texts=summary.texts,
        hidden=hidden,
        provenance={"model": "synthetic/model", "revision": "main"},
    )
    with store.writer(KEY, spec) as writer:
        for block in range(spec.blocks):
            states = vectors(corpus.texts(spec.block_rows(block)))
            writer.write_block(block, {"mean": states[None]})
        writer.finish()
    return store


def peak() -> float:
    """Largest memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
