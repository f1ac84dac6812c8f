# ruff: noqa: E402 - the number of threads must be set before numpy is imported
"""How far storing float16 moves a main score, against float32, for every type of task.

    python tests/benchmarks/precision.py --draws 8

The tasks are those of the tests, one of each class that mteb has: some hundreds of texts at most,
so that a pair of near ties weighs more than in a real task. The vectors are made of the words of a
text, once as they are and once beside a common vector ten times as long, as layers of language
models have one. A draw is a layer: other vectors for the same texts. The largest difference of all
draws and tasks of a type is shown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import measured
import numpy as np
from scoring import HIDDEN, KEY, local_tasks, vector
from scoring_tasks import OWN

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.write import write_corpus
from batchsweep.score.scorer import Scorer
from batchsweep.store import GroupSpec, Store, create_store


def tasks() -> dict[str, Any]:
    """Fresh objects by name."""
    return {task.metadata.name: task for task in [*local_tasks(), *(cls() for cls in OWN)]}


#: Length of the common vector, in lengths of a text's own.
COMMON = 10.0


def store_of(path: Path, dtype: str, common: float, draws: int) -> Store:
    """A store of the tasks' texts whose layers are the draws."""
    store = create_store(path)
    write_corpus(
        store, list(tasks().values()), {}, embedding=EmbeddingConfig(), corpus=CorpusConfig()
    )
    corpus = store.corpus()
    assert corpus is not None
    texts = corpus.texts()
    layers = tuple(range(1, draws + 1))
    spec = GroupSpec(
        layers=layers,
        poolings=("mean",),
        texts=len(texts),
        hidden=HIDDEN,
        dtype=dtype,
        block_texts=1024,
        provenance={"model": "tests/live", "revision": "step8", "corpus_digest": corpus.digest},
    )
    states = np.stack([[vector(text, layer) for text in texts] for layer in layers])
    length = np.linalg.norm(states, axis=2).mean()
    shared = np.random.default_rng(0).standard_normal(HIDDEN)
    states += np.float32(common * length) * (shared / np.linalg.norm(shared)).astype(np.float32)
    with store.writer(KEY, spec) as writer:
        for block in range(spec.blocks):
            writer.write_block(block, {"mean": states[:, spec.block_rows(block)]})
        writer.finish()
    return store


def scores(store: Store, draws: int) -> dict[str, Any]:
    """Task -> [draw] main scores."""
    scorer = Scorer(store, list(tasks().values()), keep=False)
    return {
        name: np.array([scorer.score(f"{KEY}#{n}", name).main_score for n in range(1, draws + 1)])
        for name in scorer.tasks
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "precision.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    types = {name: str(task.metadata.type) for name, task in tasks().items()}
    moved: dict[str, dict[str, float]] = {}
    for what, common in (("plain", 0.0), ("common", COMMON)):
        with tempfile.TemporaryDirectory() as folder:
            one, two = (
                scores(store_of(Path(folder) / f"{t}.zarr", t, common, given.draws), given.draws)
                for t in ("float32", "float16")
            )
        for name, kind in types.items():
            worst = float(np.nanmax(np.abs(one[name] - two[name]), initial=0.0))
            row = moved.setdefault(kind, {"plain": 0.0, "common": 0.0})
            row[what] = max(row[what], worst)
    rows = [
        {"type": kind, "tasks": sum(t == kind for t in types.values()), **row}
        for kind, row in sorted(moved.items(), key=lambda item: -max(item[1].values()))
    ]
    columns = [
        measured.column("type of task", "{type}"),
        measured.column("tasks", "{tasks}"),
        measured.column("largest move", "{plain:.1e}"),
        measured.column(f"beside a common vector {COMMON:.0f} times as long", "{common:.1e}"),
    ]
    measured.write(given.json, {"draws": given.draws, "columns": columns, "rows": rows})
    for line in rows:
        print(f"{line['type']:28} {line['tasks']:3} {line['plain']:.1e} {line['common']:.1e}")


if __name__ == "__main__":
    main()
