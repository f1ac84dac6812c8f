"""The corpus as one HDF5 file."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from batchsweep.store import documents
from batchsweep.store.format import corrupt_at
from batchsweep.store.places.local import LocalBlobs, store_error
from batchsweep.store.values import Array

PATH = "corpus/corpus.h5"
# A chunk is the least that an array takes.
_CHUNK_BYTES = 64 << 10


class Hdf5Sink:
    """Appends to a temporary file, which takes its real name at ``commit``."""

    def __init__(self, blobs: LocalBlobs) -> None:
        blobs.delete(PATH)
        blobs.clean("corpus")
        self._blobs = blobs
        self._temporary = blobs.temporary(PATH)
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"), locking=False)

    def append(self, name: str, values: Array) -> None:
        if name not in self._file:
            row = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=int))
            self._file.create_dataset(
                name,
                shape=(0, *values.shape[1:]),
                maxshape=(None, *values.shape[1:]),
                chunks=(max(1, _CHUNK_BYTES // row), *values.shape[1:]),
                dtype=values.dtype,
                fletcher32=True,
            )
        if len(values):
            dataset = self._file[name]
            end = len(dataset)
            try:
                dataset.resize(end + len(values), axis=0)
                dataset[end:] = values
            except OSError as error:
                raise store_error(error, self._blobs.url, PATH) from None

    def commit(self, attributes: dict[str, Any]) -> None:
        # A data set, since an attribute holds 64 KiB at most; of fixed length, since damage to the
        # heap, where other strings lie, can make HDF5 loop for ever.
        self._file["attributes"] = np.bytes_(documents.encode_checked(attributes))
        try:
            self._file.close()
            self._blobs.into_place(self._temporary, PATH)
        except OSError as error:
            raise store_error(error, self._blobs.url, PATH) from None

    def close(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class Hdf5Source:
    """Reads slices; HDF5 verifies the checksums (fletcher32)."""

    def __init__(self, blobs: LocalBlobs, attributes: dict[str, Any]) -> None:
        self._blobs = blobs
        self.attributes = attributes

    def read(self, name: str, start: int, stop: int) -> Array:
        try:
            with h5py.File(self._blobs.root / PATH, "r", locking=False) as file:
                values: Array = file[name][start:stop]
        except (OSError, KeyError, RuntimeError, TypeError) as error:
            raise corrupt_at(self._blobs, f"{PATH}, {name}", f"can't be read ({error})") from None
        return values

    def metadata_faults(self) -> list[tuple[str, str]]:
        """None: HDF5 verifies its metadata as it opens the file."""
        return []


def read_attributes(blobs: LocalBlobs) -> dict[str, Any] | None:
    """The corpus's attributes; None if there is no complete corpus."""
    if "corpus.h5" not in blobs.files("corpus"):
        return None
    try:
        with h5py.File(blobs.root / PATH, "r", locking=False) as file:
            attributes: dict[str, Any] = documents.decode_checked(file["attributes"][()])
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise corrupt_at(blobs, PATH, f"can't be read ({error})") from None
    return attributes
