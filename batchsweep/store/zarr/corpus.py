"""The corpus as Zarr v3 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.store.format import corrupt_at
from batchsweep.store.places.blobs import Blobs
from batchsweep.store.values import Array
from batchsweep.store.zarr import v3

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Bytes of one chunk of a long array.
CHUNK_BYTES = 4 << 20
#: xarray wants one size for one dimension name in a group.
_DIMENSIONS = {
    "digests": ("text", "digest_byte"),
    "text_bytes": ("byte",),
    "text_offsets": ("text_end",),
    "ids": ("token",),
    "offsets": ("token_end",),
}


class ZarrSink:
    """Buffers each array up to a chunk, writes chunks as they fill, and metadata at the end."""

    #: Whether each chunk lies in a shard of its own.
    sharded = False

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._pending: dict[str, list[Array]] = {}
        self._pending_rows: dict[str, int] = {}
        self._written: dict[str, int] = {}
        # The group's own document goes first: from here on there is no corpus.
        blobs.delete("corpus/zarr.json")
        blobs.delete_tree("corpus")
        blobs.clean("corpus")

    def append(self, name: str, values: Array) -> None:
        self._pending.setdefault(name, []).append(values)
        self._pending_rows[name] = self._pending_rows.get(name, 0) + len(values)
        rows = _chunk_rows(values)
        if self._pending_rows[name] < rows:
            return
        joined = np.concatenate(self._pending[name])
        while len(joined) >= rows:
            self._write_chunk(name, joined[:rows], rows)
            joined = joined[rows:]
        self._pending[name] = [joined.copy()]
        self._pending_rows[name] = len(joined)

    def commit(self, attributes: dict[str, Any]) -> None:
        arrays = attributes["arrays"]
        for name, pending in self._pending.items():
            rest = np.concatenate(pending)
            # An array of one chunk isn't padded to a whole one. A chunk has at least one row.
            rows = _chunk_rows(rest) if self._written.get(name, 0) else max(len(rest), 1)
            if len(rest):
                self._write_chunk(name, rest, rows)
            arrays[name]["chunk_rows"] = rows
        documents = _documents(arrays, sharded=self.sharded) | self.further_documents(attributes)
        for path, stored in documents.items():
            self._blobs.write(path, [stored])
        self._blobs.write("corpus/zarr.json", [v3.group(attributes)])

    def close(self) -> None:
        self._pending.clear()

    def further_documents(self, attributes: dict[str, Any]) -> dict[str, bytes]:
        """What the format has besides Zarr's documents, by path."""
        return {}

    def encoded(self, values: Array, chunk: tuple[int, ...]) -> list[Buffer]:
        """The parts of a chunk's file."""
        return v3.encode_chunk(values, chunk)

    def _write_chunk(self, name: str, values: Array, rows: int) -> None:
        number = self._written.get(name, 0)
        self._written[name] = number + 1
        path = f"corpus/{name}/{v3.chunk_key(number, *[0] * (values.ndim - 1))}"
        self._blobs.write(path, self.encoded(values, (rows, *values.shape[1:])))


class ZarrSource:
    """Reads chunks and keeps the last one of each array: reads tend to go on where they ended."""

    #: As of the sink.
    sharded = False

    def __init__(self, blobs: Blobs, attributes: dict[str, Any]) -> None:
        self._blobs = blobs
        self._last: dict[str, tuple[int, Array]] = {}
        self.attributes = attributes

    def read(self, name: str, start: int, stop: int) -> Array:
        entry = self.attributes["arrays"][name]
        dtype, inner = np.dtype(entry["dtype"]), tuple(entry["shape"][1:])
        if start >= stop:
            return np.empty((0, *inner), dtype)
        rows = entry["chunk_rows"]
        numbers = range(start // rows, (stop - 1) // rows + 1)

        def chunk(number: int) -> Array:
            last = self._last.get(name)
            if last is not None and last[0] == number:
                return last[1]
            path = f"corpus/{name}/{v3.chunk_key(number, *[0] * len(inner))}"
            stored = self._blobs.read(path)
            if stored is None:
                raise corrupt_at(self._blobs, path, "missing")
            where = f"{self._blobs.url}: {path}"
            return self.decoded(stored, (rows, *inner), dtype, where)

        chunks = self._blobs.map(chunk, numbers)
        self._last[name] = (numbers[-1], chunks[-1])
        joined = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        base = numbers[0] * rows
        return joined[start - base : stop - base]

    def decoded(
        self, stored: bytes, chunk: tuple[int, ...], dtype: np.dtype[np.generic], where: str
    ) -> Array:
        """The values in a chunk's file."""
        return v3.decode_chunk(stored, chunk, dtype, where=where)

    def metadata_faults(self) -> list[tuple[str, str]]:
        faults = []
        documents = _documents(self.attributes["arrays"], sharded=self.sharded)
        documents["corpus/zarr.json"] = v3.group(self.attributes)
        for path, wanted in documents.items():
            stored = self._blobs.read(path)
            if stored is None or not v3.same_layout(stored, wanted):
                what = "missing" if stored is None else "torn or changed"
                faults.append((path.removeprefix("corpus/"), what))
        return faults


def read_attributes(blobs: Blobs) -> dict[str, Any] | None:
    """The corpus's attributes; None if there is no complete corpus."""
    stored = blobs.read("corpus/zarr.json")
    if stored is None:
        return None
    try:
        attributes = v3.attributes_of(stored)
    except ValueError as error:
        raise corrupt_at(blobs, "corpus/zarr.json", f"torn or changed ({error})") from None
    return attributes if attributes.get("complete") is True else None


def _documents(arrays: dict[str, Any], *, sharded: bool) -> dict[str, bytes]:
    """``zarr.json`` of every node below ``corpus``, by path."""
    documents = {}
    for name, entry in arrays.items():
        chunk = (entry["chunk_rows"], *entry["shape"][1:])
        last = name.rsplit("/", 1)[-1]
        documents[f"corpus/{name}/zarr.json"] = v3.array(
            tuple(entry["shape"]),
            np.dtype(entry["dtype"]),
            chunk,
            shard=chunk if sharded else None,
            dimensions=_DIMENSIONS.get(last, (f"{last}_row",)),
        )
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            group = "/".join(parts[: depth + 1])
            documents[f"corpus/{group}/zarr.json"] = v3.group({})
    return documents


def _chunk_rows(values: Array) -> int:
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=int))
    return max(1, CHUNK_BYTES // row_bytes)
