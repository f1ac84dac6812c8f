"""HDF5 stores of version 1, which are read and no longer written.

They had one file a checkpoint that was filled in place. The HDF5 library is asked where arrays lie
and for small ones, after a look at each: an array may be anywhere else, in a file that a stranger
named. The vectors are read without it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import h5py
import numpy as np

from batchsweep.errors import StoreError
from batchsweep.store import documents
from batchsweep.store.format import SEAL_BYTES, Float64, corrupt_at, metric_seal
from batchsweep.store.hdf5 import files
from batchsweep.store.places.local import LocalBlobs
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, stored_dtype
from batchsweep.store.zarr.v3 import CRC_BYTES, crc32c, damaged

_ROOT = "sweep.h5"
_CORPUS = "corpus/corpus.h5"
_SEAL_ROW = SEAL_BYTES + CRC_BYTES
_CRC = np.dtype("<u4")


def of(blobs: LocalBlobs) -> Hdf5Version1 | None:
    """The store with this ``sweep.h5``; None if that is a newer one's, whose root is gone."""
    return None if files.has_tail(blobs.read(_ROOT) or b"") else Hdf5Version1(blobs)


class Hdf5Version1:
    """See FORMAT.md, "HDF5, version 1"."""

    name = "hdf5"
    newest = 1

    def __init__(self, blobs: LocalBlobs) -> None:
        self.blobs = blobs
        # Where each array's bytes begin in a group's file.
        self._offsets: dict[str, dict[str, int]] = {}

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StoreError(
            f"{self.blobs.url}: an HDF5 store of version 1 is read and no longer written: run "
            f"'batchsweep convert {self.blobs.url} NEW --format hdf5' and go on with NEW"
        )

    check_writable = create = start_group = mark = drop_group = write_array = restore_metadata = (
        _refuse
    )
    drop_block = drop_metrics = drop_corpus = write_seal = write_metrics = corpus_sink = _refuse

    def version(self) -> int | None:
        with _opened(self.blobs, _ROOT) as file:
            version = file.attrs.get("batchsweep_format")
        return int(version) if isinstance(version, np.integer) else None

    def keys(self) -> list[str]:
        return sorted(
            f"{model}/{name.removesuffix('.h5')}"
            for model in self.blobs.folders("checkpoints")
            for name in self.blobs.files(f"checkpoints/{model}")
            if name.endswith(".h5")
        )

    def noted_keys(self) -> list[str]:
        return []

    def folder(self, key: str) -> str:
        return f"checkpoints/{key}.h5"

    def attributes(self, key: str) -> dict[str, Any] | None:
        path = self.folder(key)
        if not self._is_there(path):
            return None
        with _opened(self.blobs, path) as file:
            if "spec" not in file.attrs or not _is_text(h5py.h5a.open(file.id, b"spec")):
                raise corrupt_at(self.blobs, path, "not a checkpoint's file")
            attributes: dict[str, Any] = documents.decode_checked(file.attrs["spec"])
            complete, count = (
                int(_plain(file, name, (1,), np.dtype(dtype))[0])
                for name, dtype in (("complete", "u1"), ("metric_count", _CRC))
            )
            marks = struct.pack("<I", crc32c(struct.pack("<IB", count, True)))
            if "complete_crc32c" in file:
                # Until it is there, the rest is about to be written.
                complete &= _plain(file, "complete_crc32c", (1,), _CRC)[:].tobytes() == marks
            return {**attributes, "complete": complete == 1, "metric_count": count}

    def pieces(
        self,
        key: str,
        spec: GroupSpec,
        name: str,
        block: int,
        layer: int,
        space: memoryview[int] | None = None,
    ) -> Iterator[Array]:
        rows = spec.block_rows(block)
        vector = (spec.hidden,) if name in spec.poolings else ()
        dtype = stored_dtype(spec.dtype, name)
        row_bytes = dtype.itemsize * int(np.prod(vector, dtype=int))
        start = (layer * spec.texts + rows.start) * row_bytes
        stored = self._read(key, spec, name, start, (rows.stop - rows.start) * row_bytes)
        table = self.checksums(key, spec, name, block)
        if struct.pack("<I", crc32c(stored)) != table[layer * CRC_BYTES :][:CRC_BYTES]:
            where = f"{self.folder(key)}, {name}, block {block}, layer {spec.layers[layer]}"
            raise damaged(f"{self.blobs.url}: {where}")
        yield np.frombuffer(stored, dtype).reshape(-1, *vector)

    def chunks(
        self, key: str, spec: GroupSpec, name: str, block: int
    ) -> Iterator[tuple[Array, bytes]]:
        table = self.checksums(key, spec, name, block)
        for layer in range(len(spec.layers)):
            (values,) = self.pieces(key, spec, name, block, layer)
            yield values, table[layer * CRC_BYTES :][:CRC_BYTES]

    def checksums(self, key: str, spec: GroupSpec, name: str, block: int) -> bytes:
        size = len(spec.layers) * CRC_BYTES
        return self._read(key, spec, f"{name}_crc32c", block * size, size)

    def seals(
        self, key: str, spec: GroupSpec, blocks: Iterable[int] | None = None
    ) -> dict[int, bytes]:
        table = self._read(key, spec, "seals", 0, spec.blocks * _SEAL_ROW)
        wanted = range(spec.blocks) if blocks is None else blocks
        rows = {block: table[block * _SEAL_ROW : (block + 1) * _SEAL_ROW] for block in wanted}
        return {block: _seal_in(row) for block, row in rows.items() if any(row)}

    def count_sealed(self, key: str, spec: GroupSpec) -> int:
        return len(self.seals(key, spec))

    def missing(self, key: str, spec: GroupSpec) -> set[int]:
        # All blocks lie in one file; what a cut file lacks, its checksums tell.
        return set()

    def metadata_faults(self, key: str, spec: GroupSpec) -> list[str]:
        # HDF5 verifies those that it reads.
        return []

    def has_seals(self, key: str) -> bool:
        # Attributes and seals are one file: without the one there are none of the other.
        return False

    def recover_spec(self, key: str) -> GroupSpec | None:
        return None

    def metrics(self, key: str, spec: GroupSpec) -> dict[str, Float64]:
        path = f"metrics/{key}.h5"
        if not self._is_there(path):
            return {}
        with _opened(self.blobs, path) as file:
            # The rest is the layers' numbers and a checksum.
            names = sorted(set(file) - {"layer", "metadata_crc32c"})
            shape = (len(spec.layers),)
            found = {name: _plain(file, name, shape, np.dtype("<f8"))[:] for name in names}
            seal = file.attrs.get("seal")
        if seal is not None and seal != metric_seal(key, spec, found).encode():
            raise corrupt_at(self.blobs, path, "these aren't the metrics of this checkpoint")
        return found

    def corpus_source(self) -> _Source | None:
        if not self._is_there(_CORPUS):
            return None
        with _opened(self.blobs, _CORPUS) as file:
            attributes = _plain(file, "attributes")
            if not _is_text(attributes):
                raise corrupt_at(self.blobs, _CORPUS, "not a corpus")
            return _Source(self.blobs, documents.decode_checked(attributes[()]))

    def _is_there(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self.blobs.files(folder)

    def _offset(self, key: str, spec: GroupSpec, name: str) -> int:
        """Where an array's bytes begin in the group's file."""
        if key not in self._offsets:
            self._offsets[key] = self._places(key, spec)
        return self._offsets[key][name]

    def _places(self, key: str, spec: GroupSpec) -> dict[str, int]:
        layers = len(spec.layers)
        wanted: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {
            "seals": ((spec.blocks, _SEAL_ROW), np.dtype("u1"))
        }
        for name in spec.arrays:
            vector = (spec.hidden,) if name in spec.poolings else ()
            wanted[name] = ((layers, spec.texts, *vector), stored_dtype(spec.dtype, name))
            wanted[f"{name}_crc32c"] = ((spec.blocks, layers), np.dtype(_CRC))
        places = {}
        with _opened(self.blobs, self.folder(key)) as file:
            for name, (shape, dtype) in wanted.items():
                offset = _plain(file, name, shape, dtype).id.get_offset()
                if offset is None:
                    raise corrupt_at(self.blobs, self.folder(key), f"{name} has no bytes")
                places[name] = int(offset)
        return places

    def _read(self, key: str, spec: GroupSpec, name: str, start: int, length: int) -> bytes:
        path = self.folder(key)
        stored = self.blobs.read_range(path, self._offset(key, spec, name) + start, length)
        if stored is None or len(stored) != length:
            raise corrupt_at(self.blobs, path, f"{name}: cut short or missing")
        return stored


class _Source:
    """The corpus; HDF5 verifies the checksums (fletcher32)."""

    def __init__(self, blobs: LocalBlobs, attributes: dict[str, Any]) -> None:
        self._blobs = blobs
        self.attributes = attributes

    def read(self, name: str, start: int, stop: int) -> Array:
        entry = self.attributes["arrays"][name]
        with _opened(self._blobs, _CORPUS) as file:
            array = _plain(file, name, tuple(entry["shape"]), np.dtype(entry["dtype"]))
            values: Array = array[start:stop]
        return values

    def metadata_faults(self) -> list[tuple[str, str]]:
        return []


@contextmanager
def _opened(blobs: LocalBlobs, path: str) -> Iterator[h5py.File]:
    """The file, to be read.

    Raises:
        StoreCorrupt: it, or what is done with it, makes no sense.
    """
    # Refuses a link to elsewhere, and what would be waited for.
    blobs.read_range(path, 0, 1)
    try:
        with h5py.File(blobs.place(path), "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # h5py's ways to say that bytes make no sense.
        raise corrupt_at(blobs, path, f"can't be read as HDF5 ({error})") from None


def _plain(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[np.generic] | None = None,
) -> h5py.Dataset:
    """An array whose bytes lie in this very file, all of them.

    Raises:
        ValueError: they lie elsewhere (by a link, as a virtual data set, in external storage), or
            it has another shape or type than it must have.
    """
    at = file
    for part in name.split("/"):
        if not isinstance(at, h5py.Group):
            raise ValueError(f"{name} is missing")
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} lies in another file")
        at = at[part]
    if not isinstance(at, h5py.Dataset):
        raise ValueError(f"{name} isn't an array")
    made = at.id.get_create_plist()
    filters = {made.get_filter(n)[0] for n in range(made.get_nfilters())}
    if (
        made.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED)
        or made.get_external_count()
        or not filters <= {h5py.h5z.FILTER_FLETCHER32}
    ):
        raise ValueError(f"{name} lies in another file, or behind a filter")
    if (shape is not None and at.shape != shape) or (dtype is not None and at.dtype != dtype):
        raise ValueError(f"{name} is {at.dtype} {at.shape}, must be {dtype} {shape}")
    # Nothing was ever left out or compressed: so no small file makes a large array.
    if at.id.get_storage_size() < at.nbytes:
        raise ValueError(f"{name} isn't all there")
    return at


def _is_text(there: h5py.Dataset | h5py.h5a.AttrID) -> bool:
    return there.shape == () and h5py.check_string_dtype(there.dtype) is not None


def _seal_in(row: bytes) -> bytes:
    """The seal in a row of ``seals``; empty if it is torn."""
    seal, checksum = row[:SEAL_BYTES], row[SEAL_BYTES:]
    return seal if struct.pack("<I", crc32c(seal)) == checksum else b""
