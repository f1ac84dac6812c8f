"""How long the pass waits for the disk: extract's loop, with a pass and a disk that sleep.

    python tests/benchmarks/stalls.py [--blocks 50] [--pass-ms 500]

The loop is ``seal_blocks`` itself. The pass sleeps as long as a block's computing takes; the disk
takes one block after the other, at a rate at which it needs the given share of the pass's time.
``plan`` reckons with the larger of both times, so up to 100 % nothing should wait; what a disk that
takes no time makes it wait is the processor's, where others use it. An uneven disk
has the same rate on average, but every tenth block takes four times as long as the others.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import measured
import numpy as np

from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import Config
from batchsweep.extract.blocks import Work, seal_blocks
from batchsweep.extract.figures import Figures
from batchsweep.extract.kept import Kept
from batchsweep.forward import forward
from batchsweep.plan.plan import PlanEntry
from batchsweep.signals import StopRequest
from batchsweep.store import GroupSpec, GroupWriter, create_store

LAYERS, HIDDEN, BLOCK_TEXTS = 4, 16, 8
#: The disk's time for a block, of the pass's.
SHARES = (0.0, 0.5, 0.9, 1.0, 1.25)
#: One block in so many takes so many times as long as another.
EVERY, SLOWER = 10, 4
COLUMNS = [
    measured.column("the disk needs, of the pass's time", "{share:.0%}"),
    measured.column("its pace", "{pace}"),
    measured.column("the pass waits", "{stalled:.1%}"),
]


class Disk:
    """Takes one block after the other."""

    def __init__(self, seconds: float, *, uneven: bool) -> None:
        usual = seconds * EVERY / (EVERY - 1 + SLOWER)
        self._seconds = (usual, SLOWER * usual) if uneven else (seconds, seconds)
        self._lock = threading.Lock()

    def write(self, block: int) -> None:
        seconds = self._seconds[block % EVERY == EVERY - 1]
        with self._lock:
            time.sleep(seconds)


def work(folder: Path, blocks: int) -> Work:
    store = create_store(folder / "store.zarr")
    texts = blocks * BLOCK_TEXTS
    with store.corpus_writer() as writer:
        writer.add_texts([f"text {row}" for row in range(texts)])
        writer.add_tokens("words", [np.array([1, 2], np.int32)] * texts)
        writer.add_task("Task", range(texts))
        writer.finish({})
    corpus = store.corpus()
    assert corpus is not None
    config = Config.model_validate({"models": ["m"], "tasks": ["Task"]})
    layers = tuple(range(1, LAYERS + 1))
    entry = PlanEntry(
        0, Checkpoint("m", "main"), layers, Shape(LAYERS, HIDDEN, 4 * HIDDEN, 100), "words"
    )
    spec = GroupSpec(
        layers=layers,
        poolings=("mean",),
        texts=texts,
        hidden=HIDDEN,
        block_texts=BLOCK_TEXTS,
        provenance={},
    )
    kept = Kept(store, entry.key, spec, config.embedding.batch_tokens)
    return Work(store.writer(entry.key, spec), corpus, config, entry, Figures(entry.key), kept)


def stalled(pass_seconds: float, share: float, blocks: int, *, uneven: bool) -> float:
    """Seconds that the passes waited, over theirs."""
    disk = Disk(share * pass_seconds, uneven=uneven)
    ended = 0.0

    def passes(loaded: object, token_ids: list[object], **_: object) -> Iterator[object]:
        nonlocal ended
        time.sleep(pass_seconds)
        ended = time.perf_counter()
        states = np.zeros((LAYERS, len(token_ids), HIDDEN), np.float32)
        yield np.arange(len(token_ids)), {"mean": states}

    own = GroupWriter.write_block

    def write(writer: GroupWriter, block: int, states: dict[str, np.ndarray]) -> None:
        disk.write(block)
        own(writer, block, states)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(forward, "reduced_states", passes),
        mock.patch.object(GroupWriter, "write_block", write),
    ):
        job = work(Path(folder), blocks)
        with job.writer:
            start = time.perf_counter()
            seal_blocks(job, None, range(blocks), StopRequest(3600), "")
    # Until the last pass ended: what is written after it stalls nothing.
    return (ended - start) / (blocks * pass_seconds) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--pass-ms", type=float, default=500)
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "stalls.json")
    given = parser.parse_args()
    rows = []
    for share in SHARES:
        for uneven in (False, True):
            seconds = given.pass_ms / 1000
            row = {
                "share": share,
                "pace": "uneven" if uneven else "even",
                "stalled": stalled(seconds, share, given.blocks, uneven=uneven),
            }
            rows.append(row)
            print(
                f"the disk needs {share:.0%} of the pass's time, {row['pace']}: the pass waits "
                f"{row['stalled']:.1%}",
                flush=True,
            )
    figures = {"blocks": given.blocks, "pass_ms": given.pass_ms, "columns": COLUMNS, "rows": rows}
    measured.write(given.json, figures)


if __name__ == "__main__":
    main()
