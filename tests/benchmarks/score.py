# ruff: noqa: E402 - the number of threads must be set before numpy is imported
"""How much faster than mteb itself: one arm on 31 tasks of the layer-by-layer study, side by side.

    python tests/benchmarks/score.py                        # all of it: 20 minutes, 10 GB of disk
    python tests/benchmarks/score.py --tasks STS12 SICK-R
    python tests/benchmarks/score.py --mindsmall            # ours only: stock mteb takes 40 GB

The tasks are mteb's own objects with synthetic texts of the real number of rows, labels and
repeats (from the statistics that mteb ships). Both sides see the same float16-rounded vectors and
use one thread. Times are of the processor, which other work on the machine disturbs little; mteb's
is without its ``encode`` calls, ours includes reading the store.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import measured
import mteb
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.write import write_corpus
from batchsweep.score.scorer import Scorer
from batchsweep.store import GroupSpec, create_store
from batchsweep.tasks.evaluators import large_reranking
from batchsweep.tasks.resolve import LAYER_BY_LAYER_32, resolve

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


class Stock(AbsEncoder):
    """The live model of mteb's own evaluation; its time is not mteb's."""

    def __init__(self, vectors: Vectors) -> None:
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "synthetic/model"})
        self._vectors = vectors
        self.seconds = 0.0

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        start = time.process_time()
        vectors = self._vectors(inputs.dataset[:]["text"])
        self.seconds += time.process_time() - start
        return vectors


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


def side_by_side(names: list[str], hidden: int, folder: Path) -> list[dict[str, Any]]:
    tasks = resolve(names)
    texts, vectors = Texts(), Vectors(hidden)
    for task in tasks:
        fill(task, texts)
    store = make_store(folder / "store.zarr", tasks, vectors, hidden)
    scorer = Scorer(store, tasks, keep=False)
    rows = []
    for task in tasks:
        name = task.metadata.name
        start = time.process_time()
        scorer.score(f"{KEY}#1", name)
        first = time.process_time() - start
        start = time.process_time()
        result = scorer.score(f"{KEY}#1", name)
        ours = time.process_time() - start
        stock = Stock(vectors)
        start = time.process_time()
        [live] = mteb.evaluate(stock, task, co2_tracker=False, cache=None, show_progress_bar=False)
        theirs = time.process_time() - start - stock.seconds
        difference = abs(result.main_score - live.get_score())
        rows.append(
            {
                "task": name,
                "stock": theirs,
                "ours": ours,
                "wall": result.seconds,
                "first": first,
                "difference": difference,
            }
        )
        print(
            f"{name:40} mteb {theirs:8.2f} s   ours {ours:7.3f} s   {theirs / ours:6.1f}x   "
            f"score {result.main_score:.6f} (differs by {difference:.1e})",
            flush=True,
        )
    return rows


def _arrow(path: Path, schema: Any, batches: Any) -> Dataset:
    """A data set on the disk, as the Hub's are once they are downloaded."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch(batch, schema=schema))
    return Dataset.from_file(str(path))


def mind_small(impressions: int, folder: Path) -> dict[str, Dataset]:
    """MindSmallReranking's four data sets at their real size: impressions of MIND-small's
    development part, with a query for each click of the reader's history."""
    rng = np.random.default_rng(0)
    documents, texts = 5_277, 37_162
    history = rng.geometric(1 / 32.3, impressions)
    shown = np.clip(rng.geometric(1 / 41, impressions), 2, 295)
    text, pair = pa.string(), pa.list_(pa.string())
    names = np.array([f"N{i}" for i in range(documents)])
    lists = [rng.choice(documents, n, replace=False) for n in shown]

    def queries() -> Any:
        for first in range(0, impressions, 2000):
            ids = [
                f"{i}_{j}"
                for i in range(first, min(first + 2000, impressions))
                for j in range(history[i])
            ]
            asked = rng.integers(0, texts, len(ids)).tolist()
            yield [pa.array(ids), pa.array([f"{t:08d}{FILLER}" for t in asked])]

    def qrels() -> Any:
        for i in range(0, impressions, 200):
            ids, docs, grades = [], [], []
            for one in range(i, min(i + 200, impressions)):
                listed = names[lists[one]].tolist()
                clicked = [1, 1] + [0] * (len(listed) - 2)
                for j in range(history[one]):
                    ids += [f"{one}_{j}"] * len(listed)
                    docs += listed
                    grades += clicked
            yield [pa.array(ids), pa.array(docs), pa.array(grades, pa.int32())]

    def ranked() -> Any:
        for i in range(0, impressions, 200):
            spans = range(i, min(i + 200, impressions))
            yield [
                pa.array([f"{one}_{j}" for one in spans for j in range(history[one])]),
                pa.array(
                    [names[lists[one]].tolist() for one in spans for _ in range(history[one])], pair
                ),
            ]

    corpus = [
        pa.array(names.tolist()),
        pa.array([""] * documents),
        pa.array([f"{texts + i:08d}{FILLER}" for i in range(documents)]),
    ]
    return {
        "corpus": _arrow(
            folder / "corpus", pa.schema({"id": text, "title": text, "text": text}), [corpus]
        ),
        "queries": _arrow(folder / "queries", pa.schema({"id": text, "text": text}), queries()),
        "qrels": _arrow(
            folder / "qrels",
            pa.schema({"query-id": text, "corpus-id": text, "score": pa.int32()}),
            qrels(),
        ),
        "top_ranked": _arrow(
            folder / "top_ranked", pa.schema({"query-id": text, "corpus-ids": pair}), ranked()
        ),
    }


def score_mind_small(hidden: int, folder: Path) -> None:
    """Write the data in a process of its own, so that the memory measured is that of scoring."""
    [task] = resolve(["MindSmallReranking"])
    if not (folder / "top_ranked").exists():
        raise SystemExit("the data sets were not written")
    found = {
        name: Dataset.from_file(str(folder / name))
        for name in ("corpus", "queries", "qrels", "top_ranked")
    }
    print({name: len(data) for name, data in found.items()}, flush=True)

    class Loader:
        dataset_configs = ("default", "corpus", "queries", "top_ranked")

        def __init__(self, **kwargs: Any) -> None: ...

        def _load_queries(self, num_proc: Any) -> Dataset:
            return found["queries"]

        def _load_corpus(self, num_proc: Any) -> Dataset:
            return found["corpus"]

        def _load_dataset_split(self, name: str, num_proc: Any) -> Dataset:
            return found["qrels" if name == "default" else name]

    vars(large_reranking)["RetrievalDatasetLoader"] = Loader
    vectors = Vectors(hidden)
    store = make_store(folder / "store.zarr", [task], vectors, hidden)
    scorer = Scorer(store, [task], keep=False)
    start = time.perf_counter()
    first = scorer.score(f"{KEY}#1", "MindSmallReranking")
    print(f"prepared and scored: {time.perf_counter() - start:.1f} s")
    start = time.process_time()
    again = scorer.score(f"{KEY}#1", "MindSmallReranking")
    spent = time.process_time() - start
    assert again.main_score == first.main_score
    print(
        f"MindSmallReranking: {again.seconds:.1f} s an arm ({spent:.1f} s of processor), "
        f"score {again.main_score}, peak {peak():.2f} GB with the vectors of this benchmark "
        f"({vectors.noise.nbytes / 1e9:.2f} GB) and what is read of the data sets"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=None, help="where the store goes")
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "score.json")
    parser.add_argument("--mindsmall", action="store_true", help="only MindSmallReranking, ours")
    parser.add_argument("--impressions", type=int, default=73_152, help="of MindSmallReranking")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    if args.mindsmall:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            context = multiprocessing.get_context("spawn")
            for step in (
                functools.partial(mind_small, args.impressions),
                functools.partial(score_mind_small, args.hidden),
            ):
                process = context.Process(target=step, args=(Path(folder),))
                process.start()
                process.join()
        return
    names = args.tasks or [n for n in LAYER_BY_LAYER_32 if n != "MindSmallReranking"]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = side_by_side(names, args.hidden, Path(folder))
    stock, ours = (sum(row[side] for row in rows) for side in ("stock", "ours"))
    print(
        f"{len(rows)} tasks, one arm: mteb {stock:.1f} s, ours {ours:.1f} s: "
        f"{stock / ours:.1f} times; largest difference of a main score "
        f"{max(row['difference'] for row in rows):.1e}; first arm "
        f"{sum(row['first'] for row in rows):.1f} s; peak {peak():.1f} GB"
    )
    measured.write(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
