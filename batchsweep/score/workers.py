"""Scoring in processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

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


class ScoreProcesses(Executor):
    """Processes to score in, one thread each.

    A pull goes to an idle process, to one that has prepared its task if there is one: a task's data
    are read once, and once more only where all that have it are at work.
    """

    def __init__(self, workers: int) -> None:
        # Not fork: torch's and OpenMP's threads don't survive it.
        context = multiprocessing.get_context("spawn")
        self._processes = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
            for _ in range(workers)
        ]
        self._tasks: list[set[str]] = [set() for _ in range(workers)]
        #: Of each process, the pulls that it isn't known to have finished.
        self._pulls: list[list[Future[Any]]] = [[] for _ in range(workers)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """``fn(arm, task)`` in one of the processes; anything else is of no task."""
        task = str(args[1:2])
        for pulls in self._pulls:
            pulls[:] = [pull for pull in pulls if not pull.done()]
        chosen = min(
            range(len(self._processes)),
            key=lambda i: (len(self._pulls[i]), task not in self._tasks[i], len(self._tasks[i])),
        )
        self._tasks[chosen].add(task)
        pull = self._processes[chosen].submit(fn, *args, **kwargs)
        self._pulls[chosen].append(pull)
        return pull

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for process in self._processes:
            process.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            for process in self._processes:
                process.shutdown(wait=True)


@contextmanager
def score_processes(workers: int) -> Iterator[Executor]:
    """Processes to score in, one thread each; they end with the block, however it ends.

    Raises:
        TryAgain: one of them was killed.
    """
    others = {*multiprocessing.active_children()}
    pool = ScoreProcesses(workers)
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

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
