"""MindSmallReranking at its real size, ours only: stock mteb takes 40 GB for it."""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from real_sizes import FILLER, KEY, Vectors, make_store, peak

from batchsweep.score.scorer import Scorer
from batchsweep.tasks.evaluators import large_reranking
from batchsweep.tasks.resolve import resolve


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


def _score(hidden: int, folder: Path) -> None:
    """In a process of its own, so that the memory measured is that of scoring."""
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


def score_mindsmall(impressions: int, hidden: int, folder: Path | None) -> None:
    """Write the data and score, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        context = multiprocessing.get_context("spawn")
        for step in (
            functools.partial(mind_small, impressions),
            functools.partial(_score, hidden),
        ):
            process = context.Process(target=step, args=(Path(place),))
            process.start()
            process.join()
