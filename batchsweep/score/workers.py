"""Scoring in processes of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from batchsweep.config import Config, CorpusConfig, LocalTask
from batchsweep.score.scorer import Scorer
from batchsweep.store import open_store
from batchsweep.tasks.evaluators import Halves
from batchsweep.tasks.resolve import resolve


@dataclass(frozen=True)
class ScoreFunction:
    """``(arm, task) -> (main score, seconds, record)`` for the bandit; can go to other processes.

    Each process opens the store and prepares its tasks by itself, once.
    """

    store_url: str
    tasks: tuple[str | LocalTask, ...]
    corpus: CorpusConfig
    halves: Halves | None = None

    @classmethod
    def of(cls, config: Config) -> ScoreFunction:
        """For a config's store and tasks, whole or as much of them as a pull takes."""
        texts = config.bandit.texts_per_pull
        halves = None if texts is None else Halves(texts, config.bandit.seed)
        return cls(config.store_url, config.tasks, config.corpus, halves)

    @property
    def in_full(self) -> ScoreFunction:
        """The same on whole tasks."""
        return replace(self, halves=None)

    def __call__(self, arm: str, task: str) -> tuple[float, float, dict[str, Any]]:
        name = repr(self.in_full)
        scorer = _SCORERS.get(name)
        if scorer is None:
            store = open_store(self.store_url)
            scorer = _SCORERS[name] = Scorer(store, resolve(self.tasks), corpus=self.corpus)
        result = scorer.score(arm, task, self.halves)
        return result.main_score, result.seconds, result.record


#: This process's scorers; prepared tasks are too costly to make for every pull.
_SCORERS: dict[str, Scorer] = {}


def score_processes(workers: int) -> ProcessPoolExecutor:
    """Processes to score in, one thread each. Use it as a context manager."""
    import multiprocessing

    # Not fork: torch's and OpenMP's threads don't survive it.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Left alone by a parent that was killed (-9), a worker would wait for work for ever."""
    import multiprocessing
    import os
    import threading

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
