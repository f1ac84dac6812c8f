"""Small stores for the tests: known values, written through the public interface; and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from batchsweep.store import GroupSpec, Store, create_store

KEY = "EleutherAI--pythia-14m/step1000"
OTHER = "EleutherAI--pythia-14m/main"
TEXTS = ["a", "Ünïcödé ☃", "", "a longer text with 'quotes'\nand lines", *map(str, range(246))]
TASKS = {"STSBenchmark": [0, 1, 2, 249], "Bank/77:en": list(range(5, 120)), "empty": []}


def spec(**changes: Any) -> GroupSpec:
    values: dict[str, Any] = {
        "layers": (1, 2, 4),
        "poolings": ("mean", "last"),
        "texts": 250,
        "hidden": 16,
        "block_texts": 100,
        "provenance": {
            "model": "EleutherAI/pythia-14m",
            "revision": "step1000",
            "step": 1000,
            "commit": "0" * 40,
            "config_digest": "c",
            "weights_digest": "w",
            "layer_output": "final_norm",
            "versions": {"torch": "2"},
        },
    }
    return GroupSpec(**{**values, **changes})


def states(of: GroupSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """For each pooling, [layer, text, hidden]; the same for the same seed."""
    shape = (len(of.layers), of.texts, of.hidden)
    return {
        pooling: np.random.default_rng([seed, n]).standard_normal(shape, dtype=np.float32)
        for n, pooling in enumerate(of.poolings)
    }


def block(values: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {pooling: array[:, rows] for pooling, array in values.items()}


def write_group(store: Store, key: str, of: GroupSpec, *, order: Any = None, seed: int = 0) -> None:
    """Write a whole group; blocks that are sealed already are left alone."""
    values = states(of, seed)
    with store.writer(key, of) as writer:
        for number in range(of.blocks) if order is None else order:
            if number not in writer.sealed:
                writer.write_block(number, block(values, of.block_rows(number)))
        writer.write_metrics({"entropy": np.arange(len(of.layers)) / 3, "lidar": [np.nan] * 3})
        writer.finish()


def write_corpus(store: Store) -> str:
    with store.corpus_writer() as writer:
        for start in range(0, len(TEXTS), 64):
            some = TEXTS[start : start + 64]
            writer.add_texts(some)
            writer.add_tokens("gpt-neox/20b", [np.frombuffer(t.encode(), np.uint8) for t in some])
        for task, rows in TASKS.items():
            writer.add_task(task, rows)
        return writer.finish({"max_texts_per_task": 250})


def tree(root: Path) -> dict[str, bytes]:
    """All files of a store and their bytes; who held which lease and when isn't content."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    named = {p.relative_to(root).as_posix(): p for p in files}
    return {n: p.read_bytes() for n, p in named.items() if not n.startswith("documents/leases/")}


def make_again(path: Path, format: str = "zarr") -> Store:
    """What the user's commands do after a repair: write what is missing."""
    store = create_store(path, format=format)
    if store.corpus() is None:
        write_corpus(store)
    corpus = store.corpus()
    assert corpus is not None
    for key in (KEY, OTHER):
        of = spec()
        write_group(store, key, spec(provenance={**of.provenance, "corpus_digest": corpus.digest}))
    for path_, value in {
        "plan.json": {"entries": [1, 2]},
        "scores/a.json": {"score": 0.71},
    }.items():
        if store.read_json(path_) is None:
            store.write_json(path_, value)
    return store


def stored(store: Path) -> dict[str, bytes]:
    """The bytes of every array of the corpus, the embeddings and the metrics, and of documents.

    Of an HDF5 file, its arrays: where they lie is no promise.
    """
    roots = [store / name for name in ("corpus", "checkpoints", "metrics")]
    found = {}
    for path in (p for root in roots for p in sorted(root.rglob("*")) if p.is_file()):
        name = path.relative_to(store).as_posix()
        if path.suffix != ".h5":
            found[name] = path.read_bytes()
            continue
        with h5py.File(path) as file:
            arrays: list[tuple[str, h5py.Dataset]] = []
            file.visititems(lambda n, item, to=arrays: to.append((n, item)))
            for inside, item in arrays:
                if isinstance(item, h5py.Dataset):
                    value = item[()]
                    body = value if isinstance(value, bytes) else value.tobytes()
                    found[f"{name}/{inside}"] = body
    return found
