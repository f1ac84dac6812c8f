"""What is extracted of a frozen plan, pair by pair, and what other pairs would take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchsweep.config import Config
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.plan.speed import stored_bytes
from batchsweep.store import Store
from batchsweep.store.pairs import TaskBlocks


@dataclass(frozen=True)
class Missing:
    """What extracting some pairs of one checkpoint takes, beyond what is sealed."""

    blocks: tuple[int, ...]
    """Ascending; empty where all of it is there."""
    texts: int
    tokens: int
    """Forward tokens of these texts, padding not counted."""
    store_bytes: int
    """What their embeddings take."""
    flops: float
    """Floating-point operations of their forward pass."""


class Pairs:
    """The pairs of a frozen plan, as they were when they were last looked at.

    Example:
        >>> pairs = Pairs(store, frozen_plan(store, config), config)
        >>> pairs.ready(plan.entry(3))
        ('STS12', 'STS13')
        >>> pairs.missing(plan.entry(3), ["SciFact"]).tokens
        1183040
    """

    def __init__(self, store: Store, plan: Plan, config: Config) -> None:
        """Read which blocks are sealed; no embeddings are read.

        Raises:
            TryAgain: there is no corpus yet.
        """
        corpus = store.awaited_corpus()
        self.plan = plan
        self._store = store
        self.config = config
        self._blocks = TaskBlocks(corpus, config.store.block_texts)
        #: Tokenizer -> [block] tokens of its texts.
        self._tokens: dict[str, npt.NDArray[np.int64]] = {}
        starts = np.arange(0, corpus.n_texts, config.store.block_texts)
        self._texts = np.diff(starts, append=corpus.n_texts)
        for tokenizer in corpus.tokenizers():
            counts = corpus.token_counts(tokenizer)
            self._tokens[tokenizer] = np.add.reduceat(counts, starts)
        #: Tokenizer -> task -> blocks, texts and tokens of the task alone.
        self._alone: dict[str, dict[str, tuple[tuple[int, ...], int, int]]] = {}
        self._sealed: dict[str, frozenset[int]] = {}
        self.refresh()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of the corpus, in its order."""
        return self._blocks.tasks

    def refresh(self) -> None:
        """Look again which blocks are sealed."""
        store = self._store
        self._sealed = {
            entry.key: store.reader(entry.key).sealed
            for entry in self.plan.entries
            if entry.key in store
        }

    def ready(self, entry: PlanEntry) -> tuple[str, ...]:
        """The tasks that can be scored on this checkpoint."""
        return self._blocks.ready(self._sealed.get(entry.key, frozenset()))

    def missing(self, entry: PlanEntry, tasks: Collection[str] | None = None) -> Missing:
        """What is left to extract for some tasks (all by default) of one checkpoint.

        Tasks that share blocks take less together than one by one.

        Raises:
            UsageError: a task that the corpus doesn't have.
        """
        wanted = self._blocks.of(tasks) - self._sealed.get(entry.key, frozenset())
        return self._missing(entry, *self._counted(entry.tokenizer, wanted))

    def whole(self, entry: PlanEntry, tasks: Collection[str] | None = None) -> Missing:
        """What extracting them takes where nothing is sealed.

        Raises:
            UsageError: a task that the corpus doesn't have.
        """
        return self._missing(entry, *self._counted(entry.tokenizer, self._blocks.of(tasks)))

    def each(self, entry: PlanEntry) -> dict[str, Missing]:
        """What extracting each task alone takes where nothing is sealed."""
        if entry.tokenizer not in self._alone:
            # The same for all checkpoints that share a tokenizer, of which there are hundreds.
            self._alone[entry.tokenizer] = {
                task: self._counted(entry.tokenizer, self._blocks.of([task])) for task in self.tasks
            }
        return {t: self._missing(entry, *it) for t, it in self._alone[entry.tokenizer].items()}

    def mean_length(self, entry: PlanEntry) -> float:
        """Tokens a text, over the whole corpus."""
        return float(self._tokens[entry.tokenizer].sum()) / max(int(self._texts.sum()), 1)

    def _counted(self, tokenizer: str, wanted: frozenset[int]) -> tuple[tuple[int, ...], int, int]:
        """These blocks in their order, their texts, and their tokens."""
        blocks = np.array(sorted(wanted), np.int64)
        tokens = self._tokens[tokenizer][blocks].sum()
        return tuple(blocks.tolist()), int(self._texts[blocks].sum()), int(tokens)

    def _missing(
        self, entry: PlanEntry, blocks: tuple[int, ...], texts: int, tokens: int
    ) -> Missing:
        return Missing(
            blocks=blocks,
            texts=texts,
            tokens=tokens,
            store_bytes=stored_bytes(entry, self.config, texts),
            flops=entry.shape.flops(tokens, tokens / max(texts, 1)),
        )
