"""What a pair costs beyond its own texts, and how large batches are, by the size of blocks.

    python tests/benchmarks/pairs.py

The tasks of configs/mteb_layersweep.yaml with their real numbers of texts (mteb's statistics).
Made up are the lengths, lognormal about each task's mean, and what tasks share: STSBenchmark was
made from STS12 to STS16, and the two MTOP and the two Massive tasks ask about the same sentences.
"""

from __future__ import annotations

from pathlib import Path

import measured
import numpy as np

from batchsweep.config import load
from batchsweep.corpus.order import Rows, ordered
from batchsweep.corpus.size import CHARACTERS_PER_TOKEN, corpus_size
from batchsweep.forward.batching import make_batches

CONFIG = Path(__file__).parents[2] / "configs" / "mteb_layersweep.yaml"
SHARED = {
    "STSBenchmark": (("STS12", "STS13", "STS14", "STS15", "STS16"), 0.7),
    "STS14": (("STS12", "STS13"), 0.1),
    "STS16": (("STS14", "STS15"), 0.05),
    "MTOPIntentClassification": (("MTOPDomainClassification",), 0.35),
    "MassiveScenarioClassification": (("MassiveIntentClassification",), 0.9),
}


def corpus(rng: np.random.Generator) -> tuple[dict[str, Rows], Rows]:
    """The rows of each task as they come, and the length of each text."""
    rows: dict[str, Rows] = {}
    lengths: list[Rows] = []
    texts = 0
    for task in corpus_size(load(CONFIG)).tasks:
        others, share = SHARED.get(task.name, ((), 0.0))
        there = np.concatenate([np.empty(0, np.int64), *(rows[o] for o in others)])
        old = rng.choice(there, int(share * task.texts), replace=False)
        new = task.texts - len(old)
        mean = max(task.characters / task.texts / CHARACTERS_PER_TOKEN, 3)
        drawn = rng.lognormal(np.log(mean) - 0.125, 0.5, new)
        lengths.append(np.clip(np.rint(drawn), 1, 512).astype(np.int64))
        rows[task.name] = np.unique(np.concatenate([old, np.arange(texts, texts + new)]))
        texts += new
    return rows, np.concatenate(lengths)


def main() -> None:
    rng = np.random.default_rng(0)
    rows, lengths = corpus(rng)
    orders = {
        "as they come": np.arange(len(lengths)),
        "ordered": ordered(list(rows.values()), lengths),
    }
    found = []
    print(f"{len(lengths):,} texts, {len(rows)} tasks; beyond a pair's own tokens:")
    for name, order in orders.items():
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        for block in (4096, 1024, 512, 256, 128):
            starts = np.arange(0, len(order), block)
            tokens = np.add.reduceat(lengths[order], starts)
            own = np.array([lengths[mine].sum() for mine in rows.values()])
            taken = np.array([tokens[np.unique(place[r] // block)].sum() for r in rows.values()])
            more = taken / own - 1
            some = rng.choice(len(starts), min(200, len(starts)), replace=False)
            batches = sum(
                len(make_batches(lengths[order[a : a + block]], 16384)) for a in starts[some]
            )
            found.append(
                {
                    "order": name,
                    "block_texts": block,
                    "more": dict(zip(rows, more.tolist(), strict=True)),
                    "of_all_work": (taken - own).sum() / own.sum(),
                    "tokens_a_batch": tokens[some].sum() / batches,
                }
            )
            print(
                f"{name:12} blocks of {block:4}: mean {more.mean():6.1%}, median "
                f"{np.median(more):5.1%}, most {more.max():7.1%}, over 10 %: {sum(more > 0.1):2} "
                f"tasks; of all work {(taken - own).sum() / own.sum():5.1%}; "
                f"{tokens[some].sum() / batches:5.0f} tokens a batch"
            )
    measured.write(measured.FOLDER / "pairs.json", {"rows": found})


if __name__ == "__main__":
    main()
