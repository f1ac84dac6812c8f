"""(arm, task) -> MTEB main score and full result, from the store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from batchsweep.prepared import Halves, PreparedTask, Request, prepare, prepare_halves
from batchsweep.prepared.base import Float32, Rows, keep
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
            Of a pull on a subset, the mean of both halves.
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
        self._halves: dict[tuple[str, Halves], tuple[PreparedTask, ...]] = {}
        self._kept_for: dict[int, int] = {}
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

    def score(self, arm: str | Arm, task: str, halves: Halves | None = None) -> ScoreResult:
        """Score one arm on one task, or on two subsets of it.

        Args:
            halves: what is scored instead of the whole task, if that is larger. The record is
                then kept apart from those of whole tasks, and has the score of each half.

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
        path = f"{arm.key}/{arm.layer}-{pooling}/{quote(task, safe='')}.json"
        if halves is None:
            path = f"scores/{path}"
        else:
            path = f"subsets/{halves.texts}-{halves.seed}/{path}"
        if self._keep:
            record = self.store.read_json(path)
            if record is not None and record.get("origin") == self._origin(reader, task, halves):
                return _from_record(record)
        parts = (self._whole(task),) if halves is None else self._parts(task, halves)
        if halves is not None and len(parts) == 1:
            return self.score(arm, task)
        kept = self._kept_rows(parts, reader)
        start = time.perf_counter()
        with self._one_thread():
            vectors = _Vectors(reader, arm.layer, pooling, kept)
            scores = [part.evaluate(vectors) for part in parts]
        seconds = time.perf_counter() - start
        record = self._record(reader, arm.layer, pooling, parts, scores, seconds)
        record["origin"] = self._origin(reader, task, halves)
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

    def _whole(self, name: str) -> PreparedTask:
        if name not in self._prepared:
            self._bind(prepared := prepare(self.tasks[name], self._corpus_config))
            self._prepared[name] = prepared
        return self._prepared[name]

    def _parts(self, name: str, halves: Halves) -> tuple[PreparedTask, ...]:
        """Both halves, or the whole task if it is small."""
        if (name, halves) not in self._halves:
            parts = prepare_halves(self.tasks[name], self._corpus_config, halves)
            for part in parts:
                self._bind(part)
            if len(parts) == 1:
                [self._prepared[name]] = parts
            self._halves[name, halves] = parts
        return self._halves[name, halves]

    def _bind(self, prepared: PreparedTask) -> None:
        if self._index is None:
            self._index = TextIndex.of(self.store)
        for request in prepared.requests:
            prefix = prefix_of(self._index.prefix, request.prompt_type)
            chunks = request.chunks(prefix, CHUNK)
            rows = [self._index.rows(texts, task=prepared.name) for texts in chunks]
            request.bind(np.concatenate(rows) if rows else np.empty(0, np.int64))

    def _kept_rows(self, parts: tuple[PreparedTask, ...], reader: GroupReader) -> Rows:
        """The rows to read once for all requests; what fits depends on the model."""
        hidden = reader.hidden
        if self._kept_for.get(id(parts[0])) != hidden:
            keep(parts, KEPT_BYTES // (4 * hidden))
            self._kept_for[id(parts[0])] = hidden
        return parts[0].kept

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

    def _origin(self, reader: GroupReader, task: str, halves: Halves | None) -> dict[str, Any]:
        """What decides a score; a record of another origin is not used."""
        cap = self._corpus_config.max_texts_per_task if self._corpus_config else None
        seed = self._corpus_config.seed if self._corpus_config and cap else None
        origin = {
            "record": RECORD_VERSION,
            "group": reader.spec.digest.hex(),
            "mteb": _mteb_version(),
            "dataset": str(self.tasks[task].metadata.revision),
            "splits": list(self.tasks[task].eval_splits),
            "subsets": list(self.tasks[task].hf_subsets),
            "source": getattr(self.tasks[task], "source_digest", None),
            "max_texts_per_task": cap,
            "cap_seed": seed,
        }
        if halves is not None:
            origin |= {"texts_per_pull": halves.texts, "subset_seed": halves.seed}
        return origin

    def _record(
        self,
        reader: GroupReader,
        layer: int,
        pooling: str,
        parts: tuple[PreparedTask, ...],
        scores: list[dict[str, dict[str, Any]]],
        seconds: float,
    ) -> dict[str, Any]:
        now = datetime.now(tz=UTC)
        results = [
            TaskResult.from_task_results(part.task, one, evaluation_time=seconds, date=now)
            for part, one in zip(parts, scores, strict=True)
        ]
        full = [result.to_dict() | {"date": now.isoformat()} for result in results]
        main = [float(result.get_score()) for result in results]
        task = parts[0].task
        record = {
            "main_score": _plain(sum(main) / len(main)),
            "seconds": seconds,
            "key": reader.key,
            "task": parts[0].name,
            "model": reader.provenance.get("model"),
            "revision": reader.provenance.get("revision"),
            "step": reader.provenance.get("step"),
            "commit": reader.provenance.get("commit"),
            "layer": layer,
            "pooling": pooling,
            "mteb_version": _mteb_version(),
            "dataset_revision": str(task.metadata.revision),
            "splits": list(task.eval_splits),
            "subsets": list(task.hf_subsets),
            "cap": parts[0].cap,
        }
        if len(parts) == 1:
            return record | {"result": _plain(full[0])}
        return record | {
            "half": parts[0].half,
            "halves": _plain(main),
            "results": _plain(full),
        }


def _mteb_version() -> str:
    from importlib.metadata import version

    return version("mteb")


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
