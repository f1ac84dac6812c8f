"""HDF5 files that are made whole, and whose metadata a checksum of ours covers.

HDF5 checks its object headers, but neither what an attribute keeps in the file's heap nor small
arrays. Once made, such a file changes only inside its reserved arrays: so one checksum of all the
other bytes tells whether anything else changed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from batchsweep.store.format import corrupt_at
from batchsweep.store.places.local import LocalBlobs
from batchsweep.store.zarr.v3 import crc32c

#: Version 1.10 of the file format has checksums on object headers.
LIBVER = ("v110", "v110")
_CHECKSUM = "metadata_crc32c"
_PIECE = 1 << 20


@contextmanager
def opened(blobs: LocalBlobs, path: str) -> Iterator[h5py.File]:
    """The file, to be read.

    Raises:
        StoreCorrupt: it, or what is done with it, makes no sense.
    """
    try:
        with h5py.File(blobs.root / path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        # h5py's ways to say that bytes make no sense.
        raise corrupt_at(blobs, path, f"can't be read as HDF5 ({error})") from None


def make(blobs: LocalBlobs, path: str, fill: Callable[[h5py.File], None]) -> None:
    """Replace the file by a new one that ``fill`` fills, durably and at once."""
    with blobs.replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=LIBVER, locking=False) as file:
            fill(file)
            reserve(file, _CHECKSUM, (1,), np.dtype("<u4"))
        with h5py.File(temporary, "r", locking=False) as file:
            places = _reserved(file)
        checksum = _checksum(temporary, places)
        with temporary.open("r+b", buffering=0) as raw:
            raw.seek(places[_CHECKSUM][0])
            raw.write(struct.pack("<I", checksum))


def reserve(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> h5py.Dataset:
    """A contiguous data set whose space is set aside now and filled later (until then: zeros)."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=properties))


def check_metadata(blobs: LocalBlobs, path: str) -> None:
    """Nothing but reserved arrays has changed since the file was made.

    Raises:
        StoreCorrupt: something has.
    """
    with opened(blobs, path) as file:
        if _CHECKSUM not in file:
            # Made by a version before this checksum.
            return
        wanted, places = int(file[_CHECKSUM][0]), _reserved(file)
        if _checksum(blobs.root / path, places) != wanted:
            raise corrupt_at(blobs, path, "its metadata are changed")


def _reserved(file: h5py.File) -> dict[str, tuple[int, int]]:
    """First byte and size of each reserved array."""
    there = (n for n in file if isinstance(file.get(n, getlink=True), h5py.HardLink))
    found = {n: file[n].id for n in there if isinstance(file[n], h5py.Dataset)}
    return {
        name: (array.get_offset(), array.get_storage_size())
        for name, array in found.items()
        if array.get_create_plist().get_fill_time() == h5py.h5d.FILL_TIME_NEVER
    }


def _checksum(path: Path, places: dict[str, tuple[int, int]]) -> int:
    checksum = position = 0
    with path.open("rb") as raw:
        for start, size in [*sorted(places.values()), (path.stat().st_size, 0)]:
            raw.seek(position)
            while position < start:
                piece = raw.read(min(_PIECE, start - position))
                if not piece:
                    break
                checksum = crc32c(piece, checksum)
                position += len(piece)
            position = start + size
    return checksum
