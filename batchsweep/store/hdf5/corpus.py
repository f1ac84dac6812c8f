"""The corpus of an HDF5 store: Zarr's, each chunk in a shard of its own that is an HDF5 file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.store.hdf5 import files
from batchsweep.store.values import Array
from batchsweep.store.zarr import v3
from batchsweep.store.zarr.corpus import ZarrSink, ZarrSource

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATH = "corpus/corpus.h5"


class Hdf5Sink(ZarrSink):
    """Adds the file that shows all arrays."""

    sharded = True

    def further_documents(self, attributes: dict[str, Any]) -> dict[str, bytes]:
        return {PATH: files.corpus(attributes)}

    def encoded(self, values: Array, chunk: tuple[int, ...]) -> list[Buffer]:
        body, checksum = v3.encode_chunk(values, chunk)
        length = memoryview(body).nbytes + v3.CRC_BYTES
        index = v3.shard_index([length], files.LEAD)
        return [files.head_of_one(chunk, values.dtype), body, checksum, index]


class Hdf5Source(ZarrSource):
    """Reads the chunks; HDF5's own metadata are looked at by their checksums alone."""

    sharded = True

    def decoded(
        self, stored: bytes, chunk: tuple[int, ...], dtype: np.dtype[np.generic], where: str
    ) -> Array:
        end = len(stored) - v3.shard_index_bytes(1)
        index = v3.shard_index([max(end - files.LEAD, 0)], files.LEAD)
        if not files.is_whole_head(stored[: files.LEAD]) or stored[end:] != index:
            raise v3.damaged(where)
        return v3.decode_chunk(stored[files.LEAD : end], chunk, dtype, where=where)

    def metadata_faults(self) -> list[tuple[str, str]]:
        faults = super().metadata_faults()
        stored = self._blobs.read(PATH)
        if stored is None or not files.shows_corpus(stored, self.attributes):
            what = "missing" if stored is None else "torn or changed"
            faults.append((PATH.removeprefix("corpus/"), what))
        return faults
