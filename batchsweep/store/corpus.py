"""The corpus: texts, digests, task -> rows, and tokens, written as a stream and sealed at the end.

Texts are one array of UTF-8 bytes and one of offsets, so that every Zarr or HDF5 reader can read
them; nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.store.corpus_attributes import (
    DIGEST_BYTES,
    CorpusAttributes,
    quoted,
    task_array,
    token_arrays,
)
from batchsweep.store.rows import row_numbers
from batchsweep.store.validation import MAX_TASKS, name_fault
from batchsweep.store.values import Array, as_bytes

#: Bytes that one read of texts takes at most, if its rows allow it.
READ_BYTES = 8 << 20


def digest_of(text: str) -> bytes:
    """The 16-byte blake2b digest of a text's UTF-8: its name in the store."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


class ArraySink(Protocol):
    """Arrays that grow along the first axis, in one format; nothing is there until ``commit``."""

    def append(self, name: str, values: Array) -> None: ...

    def commit(self, attributes: dict[str, Any]) -> None:
        """Write what is buffered, then ``attributes``: from here on the corpus is there."""

    def close(self) -> None:
        """Let go of what is open; without ``commit`` there is no corpus."""


class ArraySource(Protocol):
    """The same arrays, for reading."""

    attributes: dict[str, Any]

    def read(self, name: str, start: int, stop: int) -> Array:
        """Values [start, stop) along the first axis; checksums verified."""

    def metadata_faults(self) -> list[tuple[str, str]]:
        """(document, what is wrong with it) for each damaged document besides the attributes."""


class CorpusWriter:
    """Writes a corpus in bounded memory; a context manager.

    Texts come in the order of their rows. Without ``finish``, an exception or a kill leaves no
    corpus, and the next writer starts over.
    """

    def __init__(self, sink: ArraySink) -> None:
        self._sink = sink
        self._shapes: dict[str, list[int]] = {}
        self._hashes: dict[str, Any] = {}
        self._dtypes: dict[str, str] = {}
        self._text_bytes = 0
        self._token_ends: dict[str, int] = {}
        self._tasks: list[str] = []
        self._append("text_offsets", np.zeros(1, np.int64))
        for name, empty in {
            "text_bytes": np.empty(0, np.uint8),
            "digests": np.empty((0, DIGEST_BYTES), np.uint8),
        }.items():
            self._append(name, empty)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._sink.close()

    @property
    def texts(self) -> int:
        """Rows so far."""
        return self._shapes["digests"][0]

    def add_texts(self, texts: Sequence[str]) -> None:
        """Append rows."""
        if not texts:
            return
        encoded = [text.encode() for text in texts]
        ends = self._text_bytes + np.cumsum([len(e) for e in encoded], dtype=np.int64)
        self._append("text_bytes", np.frombuffer(b"".join(encoded), np.uint8))
        self._append("text_offsets", ends)
        self._text_bytes = int(ends[-1])
        digests = b"".join(digest_of(text) for text in texts)
        self._append("digests", np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES))

    def add_tokens(self, tokenizer: str, ids: Sequence[npt.ArrayLike]) -> None:
        """Append the token ids of the next rows, one array a text, for one tokenizer."""
        ids_name, offsets_name = token_arrays(tokenizer)
        if tokenizer not in self._token_ends:
            self._token_ends[tokenizer] = 0
            self._append(offsets_name, np.zeros(1, np.int64))
            self._append(ids_name, np.empty(0, np.int32))
        if not len(ids):
            return
        arrays = [np.asarray(one, np.int32) for one in ids]
        ends = self._token_ends[tokenizer] + np.cumsum([len(a) for a in arrays], dtype=np.int64)
        self._append(ids_name, np.concatenate(arrays))
        self._append(offsets_name, ends)
        self._token_ends[tokenizer] = int(ends[-1])

    def add_task(self, task: str, rows: npt.ArrayLike) -> None:
        """Set the corpus rows of a task, ascending."""
        if fault := name_fault([*map(quoted, [*self._tasks, task])], most=MAX_TASKS):
            raise StoreError(f"corpus: task {task!r}: {fault}")
        self._tasks.append(task)
        self._append(task_array(task), np.asarray(rows, np.int64))

    def finish(self, attributes: Mapping[str, Any] | None = None) -> str:
        """Seal the corpus and return its digest.

        Args:
            attributes: plain JSON values to keep with it.

        Raises:
            StoreError: tokens of a tokenizer don't match the texts, or a task names a row that
                isn't there.
        """
        for tokenizer in self._token_ends:
            rows = self._shapes[token_arrays(tokenizer)[1]][0] - 1
            if rows != self.texts:
                raise StoreError(
                    f"corpus: tokens of {tokenizer} are for {rows} texts, there are {self.texts}"
                )
        digest = self._hashes["digests"].hexdigest()
        arrays = {
            name: {
                "shape": shape,
                "dtype": self._dtypes[name],
                "sha256": self._hashes[name].hexdigest(),
            }
            for name, shape in self._shapes.items()
        }
        own = {
            "complete": True,
            "digest": digest,
            "texts": self.texts,
            "tasks": self._tasks,
            "tokenizers": list(self._token_ends),
            "arrays": arrays,
        }
        self._sink.commit({"extra": dict(attributes or {}), **own})
        return str(digest)

    def _append(self, name: str, values: Array) -> None:
        if name not in self._shapes:
            self._shapes[name] = [0, *values.shape[1:]]
            self._hashes[name] = hashlib.sha256()
            self._dtypes[name] = values.dtype.name
        self._shapes[name][0] += len(values)
        self._hashes[name].update(as_bytes(values))
        self._sink.append(name, values)


class Corpus:
    """The corpus of a store; texts and tokens are read when they are asked for."""

    def __init__(self, source: ArraySource, *, where: str) -> None:
        self._source = source
        self._where = where
        self._attributes = CorpusAttributes.of(source.attributes, where=where)
        self._offsets: npt.NDArray[np.int64] | None = None

    @property
    def n_texts(self) -> int:
        """Number of rows."""
        return self._attributes.texts

    @property
    def digest(self) -> str:
        """sha256 (hex) of the texts' digests in the order of their rows."""
        return self._attributes.digest

    @property
    def attributes(self) -> dict[str, Any]:
        """What the writer kept with it."""
        return dict(self._attributes.extra)

    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self._attributes.tasks)

    def tokenizers(self) -> list[str]:
        """Tokenizers that there are tokens of."""
        return list(self._attributes.tokenizers)

    def digests(self) -> npt.NDArray[np.uint8]:
        """The texts' digests, uint8 [text, 16]."""
        return self._all("digests").astype(np.uint8, copy=False)

    def rows_of(self, task: str) -> npt.NDArray[np.int64]:
        """The corpus rows of a task, ascending.

        Raises:
            StoreError: no such task.
            StoreCorrupt: there are rows that no text has.
        """
        self._check(task, self.tasks(), "task")
        rows = self._all(task_array(task)).astype(np.int64, copy=False)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.n_texts and _ascend(rows)):
            raise self._corrupt(f"the rows of task {task} aren't rows of texts")
        return rows

    def tokens(self, tokenizer: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Token ids [token] of all texts, and offsets [text + 1] into them.

        Raises:
            StoreError: no such tokenizer.
        """
        ids_name, offsets_name = self._arrays_of(tokenizer)
        ids = self._all(ids_name).astype(np.int32, copy=False)
        return ids, self._all_offsets(offsets_name, len(ids))

    def token_counts(self, tokenizer: str) -> npt.NDArray[np.int64]:
        """Tokens of each text, int64 [text].

        Raises:
            StoreError: no such tokenizer.
        """
        ids_name, offsets_name = self._arrays_of(tokenizer)
        return np.diff(self._all_offsets(offsets_name, self._attributes.arrays[ids_name].shape[0]))

    def token_ids(self, tokenizer: str, rows: slice) -> list[npt.NDArray[np.int32]]:
        """Token ids of a run of rows, one array a text; only these rows' tokens are read.

        Raises:
            StoreError: no such tokenizer.
        """
        ids_name, offsets_name = self._arrays_of(tokenizer)
        start, stop, _ = rows.indices(self.n_texts)
        offsets = self._source.read(offsets_name, start, stop + 1).astype(np.int64, copy=False)
        tokens = self._attributes.arrays[ids_name].shape[0]
        if not (offsets[0] >= 0 and offsets[-1] <= tokens and _ascend(offsets)):
            raise self._corrupt(f"{offsets_name} don't ascend")
        ids = self._source.read(ids_name, int(offsets[0]), int(offsets[-1]))
        return np.split(ids.astype(np.int32, copy=False), offsets[1:-1] - offsets[0])

    def texts(self, rows: slice | npt.ArrayLike | None = None) -> list[str]:
        """Texts in the order of ``rows`` (all, a slice, or row numbers)."""
        wanted = row_numbers(rows, self.n_texts, where=self._where)
        if self._offsets is None:
            size = self._attributes.arrays["text_bytes"].shape[0]
            self._offsets = self._all_offsets("text_offsets", size)
        offsets = self._offsets
        unique = np.unique(wanted)
        found: dict[int, str] = {}
        first = 0
        while first < len(unique):
            # As many rows at once as lie within one read.
            start = offsets[unique[first]]
            reach = np.searchsorted(offsets[unique + 1], start + READ_BYTES, side="right")
            last = max(first + 1, int(reach))
            span = self._source.read("text_bytes", int(start), int(offsets[unique[last - 1] + 1]))
            joined = span.tobytes()
            for row in unique[first:last].tolist():
                stored = joined[offsets[row] - start : offsets[row + 1] - start]
                try:
                    found[row] = stored.decode()
                except UnicodeDecodeError:
                    raise self._corrupt(f"text {row} isn't UTF-8") from None
            first = last
        return [found[row] for row in wanted.tolist()]

    def verify(self) -> list[tuple[str, str]]:
        """Read everything; (part, what is wrong with it) for each damaged part."""
        faults = self._source.metadata_faults()
        for name, entry in self._attributes.arrays.items():
            hashed = hashlib.sha256()
            step = max(1, READ_BYTES // entry.row_bytes)
            try:
                for start in range(0, entry.shape[0], step):
                    values = self._source.read(name, start, min(start + step, entry.shape[0]))
                    hashed.update(as_bytes(values))
            except StoreCorrupt as error:
                faults.append((name, str(error)))
                continue
            if hashed.hexdigest() != entry.sha256:
                faults.append((name, "sha256 differs"))
        return faults

    def _arrays_of(self, tokenizer: str) -> tuple[str, str]:
        """The names of a tokenizer's ids and offsets."""
        self._check(tokenizer, self.tokenizers(), "tokenizer")
        return token_arrays(tokenizer)

    def _all(self, name: str) -> Array:
        return self._source.read(name, 0, self._attributes.arrays[name].shape[0])

    def _all_offsets(self, name: str, end: int) -> npt.NDArray[np.int64]:
        """Offsets [text + 1] into an array of ``end`` values."""
        offsets = self._all(name).astype(np.int64, copy=False)
        if offsets[0] != 0 or offsets[-1] != end or not _ascend(offsets):
            raise self._corrupt(f"{name} don't ascend from 0 to {end}")
        return offsets

    def _corrupt(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self._where}: {what}; run 'batchsweep verify --repair', then 'batchsweep prepare'"
        )

    def _check(self, name: str, known: Iterable[str], what: str) -> None:
        if name not in known:
            raise StoreError(
                f"{self._where}: no {what} '{name}'; valid: {', '.join(known) or 'none'}"
            )


def _ascend(numbers: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(numbers) >= 0).all())
