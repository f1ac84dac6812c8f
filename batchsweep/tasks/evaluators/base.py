"""What a prepared task is: which texts it asks for, and the score of their vectors.

mteb's evaluators prepare a task anew at each evaluation: they iterate over columns, draw subsets,
map data sets, ask for embeddings text by text. None of that depends on the embeddings. A prepared
task has it done once, keeps only what scoring needs (labels and row numbers, no texts) and is
shared by all arms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sklearn

from batchsweep.errors import StoreError

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Request:
    """The texts of one ``encode`` call: the different ones, and which one is asked at each place.

    It begins with the texts; :meth:`bind` puts corpus rows in their place.

    Attributes:
        prompt_type: ``query``, ``document`` or None, as ``encode`` receives it.
        which: int32 [text], position in the different texts.
    """

    def __init__(self, texts: Any, prompt_type: str | None = None) -> None:
        """``texts``: strings, as a sequence or as an Arrow array."""
        column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(list(texts))
        if isinstance(column, pa.ChunkedArray):
            # The offsets of a plain string array end at 2 GiB.
            column = column.cast(pa.large_string()).combine_chunks()
        if column.null_count:
            raise StoreError(f"row {column.is_null().to_pylist().index(True)} has no text")
        encoded = column.cast(pa.large_string()).dictionary_encode()
        self.prompt_type = prompt_type
        self.which: npt.NDArray[np.int32] = encoded.indices.to_numpy(zero_copy_only=False)
        self._different: pa.Array | Rows = encoded.dictionary

    def __len__(self) -> int:
        return len(self.which)

    def chunks(self, prefix: str, size: int = 10_000) -> Iterator[list[str]]:
        """The different texts as the model gets them, in order of first appearance."""
        texts = self._different
        if isinstance(texts, np.ndarray):
            raise RuntimeError("the texts are gone once rows are bound")
        for start in range(0, len(texts), size):
            yield [prefix + text for text in texts[start : start + size].to_pylist()]

    def bind(self, rows: Rows) -> None:
        """Put the corpus rows of the different texts in the place of the texts."""
        self._different = rows

    @property
    def rows(self) -> Rows:
        """int64 [different text], corpus rows."""
        if not isinstance(self._different, np.ndarray):
            raise RuntimeError("no rows are bound yet")
        return self._different


class Fetch(Protocol):
    """Gives vectors to a part that is being scored."""

    def different(self, request: Request) -> Float32:
        """The vectors of the request's different texts, [different text, hidden]."""

    def some(self, request: Request, positions: Rows) -> Float32:
        """Those of the different texts at some positions."""

    def __call__(self, request: Request) -> Float32:
        """The vectors of the request's texts, [text, hidden]."""

    def indexed(self, request: Request) -> tuple[Float32, Rows]:
        """A matrix and [text] indices into it that together are the vectors of the texts."""


@dataclass
class Part:
    """One split and subset of a task."""

    split: str
    subset: str
    requests: list[Request]
    #: Vectors to mteb's scores of the split and subset.
    scores: Callable[[Fetch], dict[str, Any]] = field(repr=False)


@dataclass(eq=False)
class PreparedTask:
    """A task whose data are read and whose subsets are drawn: ready for any number of arms.

    Attributes:
        requests: all texts it asks for.
        evaluate: vectors to split -> subset -> mteb's scores, ``main_score`` included.
        needs_data: the evaluation reads the task's data set again.
        cap: ``{"max_texts_per_task", "seed"}`` if the task was made smaller.
        half: ``{"texts_per_pull", "seed"}`` if it is a half, for a pull on a subset.
    """

    task: Any
    requests: list[Request]
    evaluate: Callable[[Fetch], dict[str, dict[str, Any]]] = field(repr=False)
    needs_data: bool = False
    cap: dict[str, int] | None = None
    half: dict[str, int] | None = None

    @property
    def name(self) -> str:
        return str(self.task.metadata.name)

    @classmethod
    def of(cls, task: Any, parts: list[Part]) -> PreparedTask:
        """From the parts of the task."""

        def evaluate(fetch: Fetch) -> dict[str, dict[str, Any]]:
            results: dict[str, dict[str, Any]] = {}
            # The store holds no inf or nan, and what is asked of scikit-learn is always the same:
            # to check both each time takes longer than many a metric.
            with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
                for part in parts:
                    scores = part.scores(fetch)
                    task._add_main_score(scores)
                    results.setdefault(part.split, {})[part.subset] = scores
            return results

        return cls(task, [request for part in parts for request in part.requests], evaluate)


@dataclass(frozen=True, eq=False)
class Kept:
    """Which vectors are read once for all requests of a task.

    Attributes:
        rows: their corpus rows, ascending.
        places: of each request, int64 [different text]: position in ``rows``, -1 if not there.
    """

    rows: Rows
    places: Mapping[Request, Rows]


def keep(parts: Sequence[PreparedTask], most: int) -> Kept:
    """Decide, once rows are bound, which vectors are read once for all parts: ``most`` at most.

    All of them, if they are few enough; else those of texts that are in several requests, which
    otherwise cost a block of the store each, again and again.
    """
    requests = [request for part in parts for request in part.requests]
    joined, times = np.unique(np.concatenate([r.rows for r in requests]), return_counts=True)
    if len(joined) > most:
        joined = joined[times > 1]
    kept = joined if len(joined) <= most else joined[:0]
    return Kept(kept, {request: _places(request.rows, kept) for request in requests})


def _places(rows: Rows, kept: Rows) -> Rows:
    if not len(kept):
        return np.full(len(rows), -1)
    place = np.minimum(np.searchsorted(kept, rows), len(kept) - 1)
    return np.where(kept[place] == rows, place, -1)


@dataclass(frozen=True)
class State:
    """A task's random state, to start every arm from the same."""

    rng: Any
    np_rng: Any

    @classmethod
    def of(cls, task: Any) -> State:
        return cls(task.rng_state.getstate(), task.np_rng.bit_generator.state)

    def restore(self, task: Any) -> None:
        """Give a task generators in this state, its own ones."""
        task.rng_state = random.Random()
        task.rng_state.setstate(self.rng)
        task.np_rng = np.random.default_rng()
        task.np_rng.bit_generator.state = self.np_rng


def evaluations(task: Any) -> Iterator[tuple[str, str, Any]]:
    """(split, subset, that part of the data set) in the order in which mteb evaluates them."""
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            data = task.dataset
            if not (subset not in data and subset == "default"):
                data = data[subset]
            yield split, subset, data


def column(dataset: Any, name: str) -> pa.ChunkedArray:
    """One column as Arrow, without making Python objects of it."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def values(dataset: Any, name: str) -> list[Any]:
    """One column as a list; iterating over the lazy column costs fifty times as much."""
    listed: list[Any] = column(dataset, name).to_pylist()
    return listed
