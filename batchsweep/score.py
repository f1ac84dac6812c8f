"""(arm, task) -> MTEB main score and full result, from the store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from mteb.results import TaskResult
from threadpoolctl import ThreadpoolController

from batchsweep.config import Config, CorpusConfig, LocalTask
from batchsweep.corpus import CHUNK, TextIndex, prefix_of
from batchsweep.errors import StoreError, StoreMismatch, UsageError
from batchsweep.prepared import PreparedTask, Request, prepare
from batchsweep.prepared.base import Float32, Rows
from batchsweep.store import GroupReader, Store, open_store
from batchsweep.tasks import resolve

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

#: Version of the records below ``scores/``; a record of another version is scored again.
RECORD_VERSION = 1

#: Memory for vectors that a task asks for several times, as float32.
KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Arm:
    """A checkpoint's layer and pooling."""

    key: str
    layer: int
    pooling: str | None = None

    @classmethod
    def parse(cls, text: str) -> Arm:
        """From ``<checkpoint key>#<layer>[#<pooling>]``.

        Raises:
            UsageError: it is not of this form.
        """
        parts = text.split("#")
        if len(parts) not in (2, 3) or not parts[1].isdigit():
            raise UsageError(
                f"'{text}' is not an arm; an arm is like EleutherAI--pythia-14m/step1000#3"
            )
        return cls(parts[0], int(parts[1]), parts[2] if len(parts) == 3 else None)


@dataclass(frozen=True)
class ScoreResult:
    """One pull.

    Attributes:
        main_score: MTEB's main score, the mean over splits and subsets; nan where mteb gives nan.
        seconds: what scoring took, reading the vectors included.
        record: what the store keeps of it: plain JSON values, null for nan.
    """

    main_score: float
    seconds: float
    record: dict[str, Any]


class Scorer:
    """Scores arms on tasks. Tasks are prepared at their first use and kept for all arms.

    A pull's record is kept in the store, and taken from there when the same pull is asked again.
    Any order of pulls, in any process, gives the same numbers: tasks start each pull from the same
    random state, and each pull computes on one thread.

    Example:
        >>> scorer = Scorer(open_store("runs/quick/store.zarr"), resolve(["BIOSSES"]))
        >>> scorer.score("EleutherAI--pythia-14m/main#4", "BIOSSES").main_score
    """

    def __init__(
        self,
        store: Store,
        tasks: Sequence[AbsTask],
        *,
        corpus: CorpusConfig | None = None,
        keep: bool = True,
    ) -> None:
        """``corpus``: the caps, as at ``prepare``. ``keep``: keep records in the store.

        Raises:
            StoreError: the store has no corpus, or not that of a task; names the task.
        """
        self.store = store
        self.tasks = {task.metadata.name: task for task in tasks}
        self._corpus_config = corpus
        self._keep = keep
        self._index: TextIndex | None = None
        self._prepared: dict[str, PreparedTask] = {}
        self._kept_for: dict[str, int] = {}
        self._readers: dict[str, GroupReader] = {}
        # Once the numerical libraries are loaded, which the imports above see to.
        self._threads = ThreadpoolController()
        there = store.corpus()
        if there is None:
            raise StoreError(f"{store.url}: no corpus; run 'batchsweep prepare'")
        self._corpus_digest = there.digest
        if missing := [name for name in self.tasks if name not in there.tasks()]:
            raise StoreError(
                f"{store.url}: the corpus has no task '{missing[0]}'; it has "
                f"{', '.join(there.tasks())}. A new task needs 'batchsweep prepare' with a new "
                "store.path"
            )

    def score(self, arm: str | Arm, task: str) -> ScoreResult:
        """Score one arm on one task.

        Raises:
            UsageError: no such task, or the arm is not of the right form.
            StoreError: the arm, or a text of the task, is not in the store.
        """
        if task not in self.tasks:
            raise UsageError(f"no task '{task}'; valid: {', '.join(self.tasks)}")
        arm = Arm.parse(arm) if isinstance(arm, str) else arm
        reader = self._reader(arm.key)
        if arm.pooling is None and len(reader.poolings) > 1:
            raise UsageError(
                f"{arm.key}#{arm.layer}: which pooling? Add one of "
                + ", ".join(f"#{p}" for p in reader.poolings)
            )
        pooling = arm.pooling or reader.poolings[0]
        path = f"scores/{arm.key}/{arm.layer}-{pooling}/{quote(task, safe='')}.json"
        prepared = self._prepared.get(task)
        if self._keep:
            record = self.store.read_json(path)
            if record is not None and record.get("origin") == self._origin(reader, task):
                return _from_record(record)
        if prepared is None:
            prepared = self._prepare(task)
        kept = self._kept_rows(prepared, reader)
        start = time.perf_counter()
        with self._one_thread():
            scores = prepared.evaluate(_Vectors(reader, arm.layer, pooling, kept))
        seconds = time.perf_counter() - start
        record = self._record(reader, arm.layer, pooling, prepared, scores, seconds)
        if self._keep:
            self.store.write_json(path, record)
        return _from_record(record)

    def _reader(self, key: str) -> GroupReader:
        reader = self._readers.get(key)
        if reader is None or not reader.complete:
            reader = self.store.reader(key)
            made_of = reader.provenance.get("corpus_digest", self._corpus_digest)
            if made_of != self._corpus_digest:
                raise StoreMismatch(
                    f"{self.store.url}: the embeddings of {key} are of another corpus than the "
                    "store's; delete that group and run 'batchsweep extract' for it"
                )
            self._readers[key] = reader
        return reader

    def _prepare(self, name: str) -> PreparedTask:
        if self._index is None:
            self._index = TextIndex.of(self.store)
        prepared = prepare(self.tasks[name], self._corpus_config)
        for request in prepared.requests:
            prefix = prefix_of(self._index.prefix, request.prompt_type)
            chunks = request.chunks(prefix, CHUNK)
            rows = [self._index.rows(texts, task=name) for texts in chunks]
            request.bind(np.concatenate(rows) if rows else np.empty(0, np.int64))
        self._prepared[name] = prepared
        return prepared

    def _kept_rows(self, prepared: PreparedTask, reader: GroupReader) -> Rows:
        """The rows to read once for all of the task's requests; what fits depends on the model."""
        hidden = reader.hidden
        if self._kept_for.get(prepared.name) != hidden:
            prepared.keep(KEPT_BYTES // (4 * hidden))
            self._kept_for[prepared.name] = hidden
        return prepared.kept

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """One BLAS, OpenMP and torch thread: faster at these sizes, and always the same sums."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with self._threads.limit(limits=1):
                yield
        finally:
            torch.set_num_threads(before)

    def _origin(self, reader: GroupReader, task: str) -> dict[str, Any]:
        """What decides a score; a record of another origin is not used."""
        from importlib.metadata import version

        cap = self._corpus_config.max_texts_per_task if self._corpus_config else None
        seed = self._corpus_config.seed if self._corpus_config and cap else None
        return {
            "record": RECORD_VERSION,
            "group": reader.spec.digest.hex(),
            "mteb": version("mteb"),
            "dataset": str(self.tasks[task].metadata.revision),
            "splits": list(self.tasks[task].eval_splits),
            "subsets": list(self.tasks[task].hf_subsets),
            "source": getattr(self.tasks[task], "source_digest", None),
            "max_texts_per_task": cap,
            "cap_seed": seed,
        }

    def _record(
        self,
        reader: GroupReader,
        layer: int,
        pooling: str,
        prepared: PreparedTask,
        scores: dict[str, dict[str, Any]],
        seconds: float,
    ) -> dict[str, Any]:
        result = TaskResult.from_task_results(
            prepared.task, scores, evaluation_time=seconds, date=datetime.now(tz=UTC)
        )
        full = result.to_dict()
        full["date"] = full["date"].isoformat()
        origin = self._origin(reader, prepared.name)
        return {
            "main_score": _plain(float(result.get_score())),
            "seconds": seconds,
            "key": reader.key,
            "task": prepared.name,
            "model": reader.provenance.get("model"),
            "revision": reader.provenance.get("revision"),
            "step": reader.provenance.get("step"),
            "commit": reader.provenance.get("commit"),
            "layer": layer,
            "pooling": pooling,
            "mteb_version": origin["mteb"],
            "dataset_revision": origin["dataset"],
            "splits": origin["splits"],
            "subsets": origin["subsets"],
            "cap": prepared.cap,
            "result": _plain(full),
            "origin": origin,
        }


def _from_record(record: dict[str, Any]) -> ScoreResult:
    main_score = record["main_score"]
    return ScoreResult(
        math.nan if main_score is None else float(main_score), float(record["seconds"]), record
    )


def _plain(value: Any) -> Any:
    """Plain JSON values; JSON has no nan, which becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _Vectors:
    """Gives a prepared task the vectors of one arm: reads only the rows that are asked for."""

    def __init__(self, reader: GroupReader, layer: int, pooling: str, kept: Rows) -> None:
        self._reader, self._layer, self._pooling = reader, layer, pooling
        self._kept = reader.read(pooling, layer, kept)

    def different(self, request: Request) -> Float32:
        return self.some(request, slice(None))

    def some(self, request: Request, positions: slice | Rows) -> Float32:
        assert request.rows is not None and request.kept is not None
        kept, rows = request.kept[positions], request.rows[positions]
        if not len(kept):
            return np.empty((0, self._reader.hidden), np.float32)
        if kept[0] >= 0 and kept[-1] - kept[0] == len(kept) - 1 and (np.diff(kept) == 1).all():
            return self._kept[kept[0] : kept[-1] + 1]
        own = kept < 0
        if not own.any():
            return self._kept[kept]
        vectors = np.empty((len(kept), self._reader.hidden), np.float32)
        vectors[own] = self._reader.read(self._pooling, self._layer, rows[own])
        vectors[~own] = self._kept[kept[~own]]
        return vectors

    def __call__(self, request: Request) -> Float32:
        matrix, index = self.indexed(request)
        # Positions count up in order of first appearance: without repeats they change nothing.
        same = len(matrix) == len(index) and matrix is not self._kept
        return matrix if same else matrix[index]

    def indexed(self, request: Request) -> tuple[Float32, Rows]:
        kept = request.kept
        if kept is not None and len(kept) and kept.min() >= 0:
            return self._kept, kept[request.which]
        return self.different(request), request.which.astype(np.int64)


# Several processes


@dataclass(frozen=True)
class ScoreFunction:
    """``(arm, task) -> (main score, seconds, record)`` for the bandit; can go to other processes.

    Each process opens the store and prepares its tasks by itself, once.
    """

    store_url: str
    tasks: tuple[str | LocalTask, ...]
    corpus: CorpusConfig

    @classmethod
    def of(cls, config: Config) -> ScoreFunction:
        """For a config's store and tasks."""
        return cls(config.store_url, config.tasks, config.corpus)

    def __call__(self, arm: str, task: str) -> tuple[float, float, dict[str, Any]]:
        name = repr(self)
        scorer = _SCORERS.get(name)
        if scorer is None:
            store = open_store(self.store_url)
            scorer = _SCORERS[name] = Scorer(store, resolve(self.tasks), corpus=self.corpus)
        result = scorer.score(arm, task)
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
