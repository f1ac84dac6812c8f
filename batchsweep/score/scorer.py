"""(arm, task) -> MTEB main score and full result, from the store."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.results import TaskResult
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController

from batchsweep.arm import Arm
from batchsweep.config import CorpusConfig
from batchsweep.corpus.lookup import CHUNK, TextIndex, prefix_of
from batchsweep.errors import StoreError, StoreMismatch, UsageError
from batchsweep.numerics import one_compute_thread
from batchsweep.score.record import ScoreRecord, path_of
from batchsweep.score.records import read_record
from batchsweep.score.transforms import ArmReader, origin_of
from batchsweep.score.vectors import Vectors
from batchsweep.store import GroupReader, Store
from batchsweep.tasks.evaluators import Halves, PreparedTask, prepare_halves, prepare_task
from batchsweep.tasks.evaluators.base import Kept, keep

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

#: Version of the records below ``scores/``; a record of another version is scored again.
RECORD_VERSION = 1

#: Memory for vectors that a task asks for several times, as float32.
KEPT_BYTES = 1 << 30


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
        #: By what is scored together: the last hidden size, and what is kept at that.
        self._kept: dict[tuple[PreparedTask, ...], tuple[int, Kept]] = {}
        self._readers: dict[str, GroupReader] = {}
        # Once the numerical libraries are loaded, which the imports above see to.
        self._threads = ThreadpoolController()
        there = store.require_corpus()
        self._corpus_digest = there.digest
        if missing := [name for name in self.tasks if name not in there.tasks()]:
            raise StoreError(
                f"{store.url}: the corpus has no task '{missing[0]}'; it has "
                f"{', '.join(there.tasks())}. A new task needs 'batchsweep prepare' with a new "
                "store.path"
            )

    def score(self, arm: str | Arm, task: str, halves: Halves | None = None) -> ScoreRecord:
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
        arm = Arm(arm.key, arm.layer, arm.pooling or reader.poolings[0])
        folder = "scores" if halves is None else f"subsets/{halves.texts}-{halves.seed}"
        path = path_of(arm, task, folder)
        origin = self._origin(reader, task, halves) | origin_of(str(arm.pooling))
        if self._keep:
            record = read_record(self.store, path)
            if record is not None and record.origin == origin:
                return record
        parts = self.prepared(task, halves)
        if halves is not None and len(parts) == 1:
            return self.score(arm, task)
        kept = self._kept_vectors(parts, reader.hidden)
        start = time.perf_counter()
        with self._one_thread(), warnings.catch_warnings():
            # MTEB's protocol ends a fit after so many steps: nothing that a user could act on.
            warnings.simplefilter("ignore", ConvergenceWarning)
            vectors = Vectors(ArmReader.of(self.store, reader, arm, task), kept)
            scores = [part.evaluate(vectors) for part in parts]
        seconds = time.perf_counter() - start
        document = self._document(reader, arm, parts, scores, seconds) | {"origin": origin}
        if self._keep:
            self.store.write_json(path, document)
        return ScoreRecord.at(path, document, where=self.store.url)

    def _reader(self, key: str) -> GroupReader:
        reader = self._readers.get(key)
        if reader is None:
            reader = self.store.reader(key)
            made_of = reader.provenance.get("corpus_digest", self._corpus_digest)
            if made_of != self._corpus_digest:
                raise StoreMismatch(
                    f"{self.store.url}: the embeddings of {key} are of another corpus than the "
                    "store's; delete that group and run 'batchsweep extract' for it"
                )
            self._readers[key] = reader
        return reader

    def prepared(self, task: str, halves: Halves | None = None) -> tuple[PreparedTask, ...]:
        """What of a task's evaluation doesn't depend on the arm, made once.

        Both halves where they are asked for and smaller than the task; else the whole task.
        """
        return (self._whole(task),) if halves is None else self._parts(task, halves)

    def _whole(self, name: str) -> PreparedTask:
        if name not in self._prepared:
            self._bind(prepared := prepare_task(self.tasks[name], self._corpus_config))
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

    def _kept_vectors(self, parts: tuple[PreparedTask, ...], hidden: int) -> Kept:
        """The vectors to read once for all requests; what fits depends on the model."""
        there = self._kept.get(parts)
        if there is None or there[0] != hidden:
            there = self._kept[parts] = hidden, keep(parts, KEPT_BYTES // (4 * hidden))
        return there[1]

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """One BLAS, OpenMP and torch thread: faster at these sizes, and always the same sums."""
        with one_compute_thread(), self._threads.limit(limits=1):
            yield

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

    def _document(
        self,
        reader: GroupReader,
        arm: Arm,
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
            "layer": arm.layer,
            "pooling": arm.pooling,
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


@cache
def _mteb_version() -> str:
    # Once: each time it reads mteb's long description.
    from importlib.metadata import version

    return version("mteb")


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
