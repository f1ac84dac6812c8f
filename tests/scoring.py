"""A live encoder, its vectors in a store, and tasks of every class: what scoring is tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.write import write_corpus
from batchsweep.store import GroupSpec, Store, create_store
from batchsweep.tasks.local import from_columns

HIDDEN = 24
KEY = "tests--live/step8"


def vector(text: str, layer: int = 1) -> np.ndarray:
    """A vector that depends on the text and, so that tasks can be solved a little, its words."""
    total = np.zeros(HIDDEN)
    for word in [f"{text} whole", *text.split()]:
        seed = hashlib.blake2b(f"{layer} {word}".encode(), digest_size=8).digest()
        total += np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(HIDDEN)
    return (total / 3).astype(np.float32)


class LiveEncoder(AbsEncoder):
    """The live model that a store stands in for."""

    def __init__(self, layer: int = 1, dtype: str = "float32", prefix: str = "") -> None:
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "tests/live"})
        self.layer, self.dtype, self.prefix = layer, dtype, prefix
        self.texts: list[str] = []

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        texts = [self.prefix + text for text in inputs.dataset[:]["text"]]
        self.texts += texts
        vectors = np.stack([vector(text, self.layer) for text in texts])
        return vectors.astype(self.dtype).astype(np.float32)


def live_score(task: Any, encoder: LiveEncoder | None = None) -> Any:
    """mteb's own result for the live encoder, from a task in its first state."""
    result = mteb.evaluate(
        encoder or LiveEncoder(), task, co2_tracker=False, cache=None, show_progress_bar=False
    )
    return result[0]


def store_of(
    path: Path,
    tasks: Iterable[Any],
    *,
    dtype: str = "float32",
    layers: tuple[int, ...] = (1, 2),
    keys: tuple[str, ...] = (KEY,),
    corpus: CorpusConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    corpus_digest: str | None = None,
) -> Store:
    """A store with the live encoder's vectors for all texts of the tasks."""
    store = create_store(path)
    write_corpus(
        store,
        list(tasks),
        {},
        embedding=embedding or EmbeddingConfig(),
        corpus=corpus or CorpusConfig(),
    )
    fill(store, dtype=dtype, layers=layers, keys=keys, corpus_digest=corpus_digest)
    return store


def fill(
    store: Store,
    *,
    dtype: str = "float32",
    layers: tuple[int, ...] = (1, 2),
    keys: tuple[str, ...] = (KEY,),
    corpus_digest: str | None = None,
) -> None:
    corpus = store.corpus()
    assert corpus is not None
    texts = corpus.texts()
    spec = GroupSpec(
        layers=layers,
        poolings=("mean",),
        texts=len(texts),
        hidden=HIDDEN,
        dtype=dtype,
        block_texts=64,
        provenance={
            "model": "tests/live",
            "revision": "step8",
            "step": 8,
            "corpus_digest": corpus_digest or corpus.digest,
        },
    )
    states = np.stack([[vector(text, layer) for text in texts] for layer in layers])
    for key in keys:
        with store.writer(key, spec) as writer:
            for block in range(spec.blocks):
                writer.write_block(block, {"mean": states[:, spec.block_rows(block)]})
            writer.finish()


WORDS = (
    "river stone cloud maple engine copper window garden silver thunder paper lantern "
    "harbor meadow candle bridge falcon orchard pebble marble"
).split(" ")


def sentences(n: int, seed: int, topics: int = 4) -> tuple[list[str], list[int]]:
    """Sentences with a topic each; some repeat."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, topics, n)
    texts = [
        " ".join(rng.choice(WORDS[5 * t : 5 * t + 5], 2)) + " " + rng.choice(WORDS) for t in topic
    ]
    return texts, topic.tolist()


@cache
def local_columns() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> kind and columns of one task of every local type."""
    one, topic1 = sentences(120, 1)
    two, topic2 = sentences(120, 2)
    train, train_topic = sentences(200, 3)
    same = [int(a == b) for a, b in zip(topic1, topic2, strict=True)]
    graded = [2.0 * s + i % 3 for i, s in enumerate(same)]
    queries, query_topic = sentences(20, 4)
    positive = [sentences(2, 100 + i)[0] for i in range(20)]
    negative = [sentences(9, 200 + i)[0] for i in range(20)]
    texts, topics = sentences(150, 5)
    qrels = [(q, d) for q in range(20) for d in range(150) if query_topic[q] == topics[d]]
    names = ["sea", "sky", "mine", "farm"]
    return {
        "sts": ("sts", {"sentence1": one, "sentence2": two, "score": graded}),
        "pairs": ("pair_classification", {"sentence1": one, "sentence2": two, "label": same}),
        "classes": (
            "classification",
            {
                "train": {"text": train, "label": [names[t] for t in train_topic]},
                "test": {"text": one, "label": [names[t] for t in topic1]},
            },
        ),
        "binary": (
            "classification",
            {
                "train": {"text": train, "label": [t % 2 for t in train_topic]},
                "test": {"text": one, "label": [t % 2 for t in topic1]},
            },
        ),
        "labels": (
            "multilabel_classification",
            {
                "train": {"text": train, "label": [[t, 4 + t % 2] for t in train_topic]},
                "test": {"text": one, "label": [[t, 4 + t % 2] for t in topic1]},
            },
        ),
        "clusters": ("clustering", {"text": texts, "label": topics}),
        "rerank": (
            "reranking",
            {"query": queries, "positive": positive, "negative": negative},
        ),
        "search": (
            "retrieval",
            {
                "corpus": {
                    "id": [f"d{i}" for i in range(150)],
                    "text": texts,
                    "title": [f" {names[t]} " if i % 3 else "" for i, t in enumerate(topics)],
                },
                "queries": {"id": [f"q{i}" for i in range(20)], "text": queries},
                "qrels": {
                    "query-id": [f"q{q}" for q, _ in qrels],
                    "corpus-id": [f"d{d}" for _, d in qrels],
                    "score": [1 + (q + d) % 3 for q, d in qrels],
                },
            },
        ),
        "bitext": ("bitext_mining", {"sentence1": one[:60], "sentence2": two[:60]}),
        "summaries": (
            "summarization",
            {
                "text": one[:8],
                "human_summaries": [sentences(3, 300 + i)[0] for i in range(8)],
                "machine_summaries": [sentences(6, 400 + i)[0] for i in range(8)],
                "relevance": [[float((i * j) % 5) for j in range(6)] for i in range(8)],
            },
        ),
    }


def local_tasks(*names: str) -> list[Any]:
    """Fresh tasks of these names, or all of :func:`local_columns`."""
    return [from_columns(name, *local_columns()[name]) for name in names or local_columns()]
