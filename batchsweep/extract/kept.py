"""Batches of an open block, kept beside it: where a block takes minutes, a stop loses little.

A block is sealed as a whole. What a slow machine has computed of one is written to
``kept/<key>/<block>`` now and then, and read by whoever goes on with the block; so only what came
after it is computed again. The bytes of a block don't depend on it: its batches are the same ones.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time

import numpy as np
import numpy.typing as npt

from batchsweep.store import GroupSpec, Store
from batchsweep.store.zarr.v3 import CRC_BYTES, crc32c

#: Seconds of work between two writes: a block that takes less is never kept.
KEEP_SECONDS = 20.0

Bools = npt.NDArray[np.bool_]
#: By pooling, [layer, text, hidden].
States = dict[str, npt.NDArray[np.float32]]


class Kept:
    """What is kept of the open blocks of one checkpoint; used by the one that writes its group."""

    def __init__(self, store: Store, key: str, spec: GroupSpec, batch_tokens: int) -> None:
        self._store, self._spec = store, spec
        self._folder = f"kept/{key}"
        #: Whether it was said that a batch takes too long to lose little: once an index.
        self.said_slow = False
        #: Other batches would be other bytes.
        self._origin = spec.digest + struct.pack("<Q", batch_tokens)
        self._there = store.names(self._folder)
        self._written = time.monotonic()

    def begin(self, block: int, states: States) -> Bools:
        """Fill in what is kept of a block; which of its texts that are, bool [text]."""
        self._written = time.monotonic()
        done = np.zeros(next(iter(states.values())).shape[1], bool)
        stored = self._store.read_bytes(self._path(block)) if str(block) in self._there else None
        head = self._head(block)
        if stored is None or stored[:CRC_BYTES] != _crc(stored[CRC_BYTES:]):
            return done
        texts, values = CRC_BYTES + len(head), CRC_BYTES + len(head) + len(done)
        if stored[CRC_BYTES:texts] != head:
            return done
        found: Bools = np.frombuffer(stored[texts:values], np.uint8) == 1
        shape = (len(states), len(self._spec.layers), int(found.sum()), self._spec.hidden)
        if len(stored) != values + 4 * math.prod(shape):
            return done
        kept = np.frombuffer(stored, "<f4", offset=values).reshape(shape)
        for array, of_pooling in zip(states.values(), kept, strict=True):
            array[:, found] = of_pooling
        return found

    def keep(self, block: int, states: States, done: Bools, *, now: bool = False) -> None:
        """Write what is done of a block, if the last time is long ago, or ``now``."""
        if not now and time.monotonic() - self._written < KEEP_SECONDS:
            return
        start = bytes(CRC_BYTES) + self._head(block) + done.astype(np.uint8).tobytes()
        shape = (len(states), len(self._spec.layers), int(done.sum()), self._spec.hidden)
        # Filled layer by layer: states are what memory is full of, and this is their one copy.
        content = bytearray(len(start) + 4 * math.prod(shape))
        content[: len(start)] = start
        values = np.frombuffer(content, "<f4", offset=len(start)).reshape(shape)
        for pooling, array in enumerate(states.values()):
            for layer, of_layer in enumerate(array):
                values[pooling, layer] = of_layer[done]
        content[:CRC_BYTES] = _crc(memoryview(content)[CRC_BYTES:])
        self._store.write_bytes(self._path(block), content)
        self._there.add(str(block))
        self._written = time.monotonic()

    def drop(self, block: int) -> None:
        """Remove what is kept of a block that is sealed."""
        if str(block) in self._there:
            self._store.delete_json(self._path(block))
            self._there.discard(str(block))

    def _path(self, block: int) -> str:
        return f"{self._folder}/{block}"

    def _head(self, block: int) -> bytes:
        return hashlib.sha256(self._origin + struct.pack("<Q", block)).digest()


def _crc(body: bytes | memoryview[int]) -> bytes:
    return struct.pack("<I", crc32c(body))
