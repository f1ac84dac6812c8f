"""What a corpus says of itself: FORMAT.md, 8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from batchsweep.errors import StoreCorrupt
from batchsweep.store.validation import MAX_TASKS, MAX_TEXTS, name_fault, parsed

DIGEST_BYTES = 16
#: Chunks of one array; with chunks of 4 MiB that is 4 TiB.
_MAX_CHUNKS = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What the attributes say of one array."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    chunk_rows: int = 1

    @property
    def row_bytes(self) -> int:
        """Of one row along the first axis."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class CorpusAttributes:
    """The attributes of a corpus's group."""

    digest: str
    texts: int
    tasks: tuple[str, ...]
    tokenizers: tuple[str, ...]
    arrays: dict[str, Entry]
    extra: dict[str, Any]

    @classmethod
    def of(cls, value: dict[str, Any], *, where: str) -> CorpusAttributes:
        """Read them.

        Raises:
            StoreCorrupt: they say what no corpus can be.
        """
        try:
            attributes = parsed(cls, value)
            attributes._check()
        except ValueError as error:
            raise StoreCorrupt(
                f"{where}: its attributes are damaged ({error}); "
                "run 'batchsweep verify --repair', then 'batchsweep prepare'"
            ) from None
        return attributes

    def _check(self) -> None:
        if not 0 <= self.texts <= MAX_TEXTS:
            raise ValueError(f"texts must be 0 to {MAX_TEXTS}, got {self.texts}")
        of_texts: dict[str, tuple[str, tuple[int, ...]]] = {}
        of_texts["text_offsets"] = ("int64", (self.texts + 1,))
        of_texts["digests"] = ("uint8", (self.texts, DIGEST_BYTES))
        lists = {"text_bytes": "uint8"}
        if fault := name_fault([*map(quoted, self.tasks)], most=MAX_TASKS):
            raise ValueError(f"tasks: {fault}")
        if fault := name_fault([*map(quoted, self.tokenizers)]):
            raise ValueError(f"tokenizers: {fault}")
        for task in self.tasks:
            lists[task_array(task)] = "int64"
        for tokenizer in self.tokenizers:
            ids_name, offsets_name = token_arrays(tokenizer)
            lists[ids_name] = "int32"
            of_texts[offsets_name] = ("int64", (self.texts + 1,))
        if odd := self.arrays.keys() ^ (lists.keys() | of_texts.keys()):
            raise ValueError(f"arrays: {min(odd)[:80]!r} is missing, or none that a corpus has")
        for name, entry in self.arrays.items():
            dtype, shape = of_texts.get(name) or (lists[name], entry.shape[:1])
            if (entry.dtype, entry.shape) != (dtype, shape) or shape[0] < 0:
                raise ValueError(f"arrays: {name} is {entry.dtype} {list(entry.shape)}")
            if entry.chunk_rows < 1 or shape[0] > entry.chunk_rows * _MAX_CHUNKS:
                raise ValueError(f"arrays: {name} has chunks of {entry.chunk_rows} rows")


def task_array(task: str) -> str:
    """The array that holds a task's rows."""
    return f"tasks/{quoted(task)}"


def token_arrays(tokenizer: str) -> tuple[str, str]:
    """The arrays that hold a tokenizer's ids, and where each text's begin."""
    folder = f"tokens/{quoted(tokenizer)}"
    return f"{folder}/ids", f"{folder}/offsets"


def quoted(name: str) -> str:
    """A name of anybody's choice as one part of a path (RFC 3986)."""
    return quote(name, safe="")
