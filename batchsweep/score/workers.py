"""Scoring in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from batchsweep.config import Config, CorpusConfig, LocalTask
from batchsweep.errors import TryAgain
from batchsweep.score.record import ScoreRecord
from batchsweep.score.scorer import Scorer
from batchsweep.store import open_store
from batchsweep.tasks.evaluators import Halves
from batchsweep.tasks.resolve import resolve


@dataclass(frozen=True)
class ScoreFunction:
    """``(arm, task) -> score`` for the bandit; can go to other processes.

    Each process opens the store and prepares its tasks by itself, once.
    """

    store_url: str
    tasks: tuple[str | LocalTask, ...]
    corpus: CorpusConfig
    halves: Halves | None = None

    @classmethod
    def of(cls, config: Config) -> ScoreFunction:
        """For a config's store and tasks, whole or as much of them as a pull takes.

        A search asks once. What another one in this process has prepared is forgotten: the same
        name may be another store by now.
        """
        _scorer.cache_clear()
        texts = config.bandit.texts_per_pull
        halves = None if texts is None else Halves(texts, config.bandit.seed)
        return cls(config.store_url, config.tasks, config.corpus, halves)

    @property
    def in_full(self) -> ScoreFunction:
        """The same on whole tasks."""
        return replace(self, halves=None)

    def __call__(self, arm: str, task: str) -> ScoreRecord:
        return _scorer(self.in_full).score(arm, task, self.halves)


@cache
def _scorer(whole: ScoreFunction) -> Scorer:
    """This process's scorer of a store and tasks; prepared tasks are too costly to make anew for
    every pull."""
    store = open_store(whole.store_url)
    return Scorer(store, resolve(whole.tasks), corpus=whole.corpus)


@contextmanager
def score_processes(workers: int) -> Iterator[Executor]:
    """Processes to score in, one thread each; they end with the block, however it ends.

    Raises:
        TryAgain: one of them was killed.
    """
    import multiprocessing

    # Not fork: torch's and OpenMP's threads don't survive it.
    context = multiprocessing.get_context("spawn")
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BrokenExecutor:
        raise TryAgain(
            "a process that scores was killed, as a machine without memory left does; a smaller "
            "bandit.workers takes less, and the same command goes on from what is scored"
        ) from None
    except BaseException:
        # Who is told to stop doesn't wait for pulls that nobody would write down.
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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
