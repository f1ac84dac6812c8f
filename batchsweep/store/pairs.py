"""Pairs of (checkpoint, task): the blocks that hold a task's rows, and what is there whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from batchsweep.errors import UsageError
from batchsweep.store.corpus import Corpus
from batchsweep.store.group_reader import GroupReader
from batchsweep.store.store import Store


class TaskBlocks:
    """The blocks that each task's rows lie in, for one corpus and one size of blocks.

    A block is extracted whole. What it holds of other tasks comes with it: a pair that was never
    asked for may be ready.
    """

    def __init__(self, corpus: Corpus, block_texts: int) -> None:
        self._corpus = corpus
        self.block_texts = block_texts
        self.tasks = tuple(corpus.tasks())

    def of(self, tasks: Iterable[str] | None = None) -> frozenset[int]:
        """The blocks that hold some row of the tasks; all blocks by default.

        Raises:
            UsageError: a task that the corpus doesn't have; names those that it has.
        """
        if tasks is None:
            return frozenset(range(-(-self._corpus.n_texts // self.block_texts)))
        wanted = list(dict.fromkeys(tasks))
        if unknown := [task for task in wanted if task not in self.tasks]:
            raise UsageError(
                f"no task '{unknown[0]}' in the store's corpus; valid: {', '.join(self.tasks)}"
            )
        return frozenset().union(*(self._blocks[task].tolist() for task in wanted))

    def ready(self, sealed: frozenset[int]) -> tuple[str, ...]:
        """The tasks whose rows all lie in these blocks, in the corpus's order.

        A task without rows is ready when all blocks are sealed.
        """
        everything = sealed.issuperset(self.of())
        return tuple(
            task
            for task, blocks in self._blocks.items()
            if everything or (len(blocks) and sealed.issuperset(blocks.tolist()))
        )

    @cached_property
    def _blocks(self) -> dict[str, npt.NDArray[np.int64]]:
        return {
            task: np.unique(self._corpus.rows_of(task) // self.block_texts) for task in self.tasks
        }


def ready_tasks(store: Store, keys: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
    """Checkpoint key -> the tasks that can be scored there, in the corpus's order.

    Of these keys, or of all that have a group.

    A task is ready once all blocks that hold some of its rows are sealed. Seals of groups that
    aren't complete are read, no embeddings. A group of another corpus than the store's has none.
    """
    corpus = store.corpus()
    blocks: dict[int, TaskBlocks] = {}

    def of(reader: GroupReader) -> tuple[str, ...]:
        if corpus is None or not _is_of(reader, corpus):
            return ()
        size = reader.spec.block_texts
        if size not in blocks:
            blocks[size] = TaskBlocks(corpus, size)
        return blocks[size].tasks if reader.complete else blocks[size].ready(reader.sealed)

    keys = store.keys() if keys is None else [key for key in keys if key in store]
    return {key: of(store.reader(key)) for key in keys}


def _is_of(reader: GroupReader, corpus: Corpus) -> bool:
    made_of = reader.provenance.get("corpus_digest", corpus.digest)
    return reader.texts == corpus.n_texts and made_of == corpus.digest
