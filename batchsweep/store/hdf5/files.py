"""HDF5 files as bytes, made in memory.

The HDF5 library never writes to a disk here: what it does on a full one is to crash. Nor does it
read: a file of a stranger may name files elsewhere, and a damaged one can make it loop for ever.
What these files show is stored beside them, in Zarr's documents and chunks, and read from there.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np

from batchsweep.store import documents
from batchsweep.store.format import Float64
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import stored_dtype
from batchsweep.store.zarr.group_documents import chunk_shape
from batchsweep.store.zarr.v3 import CRC_BYTES, chunk_key, crc32c

#: Bytes of a shard before its first chunk: the metadata that make an HDF5 file of it.
LEAD = 1536
#: The data set in a shard: a row for each chunk and the crc32c after it.
_IN_SHARD = "chunks"
#: Version 1.10 of the file format: its metadata have checksums.
_LIBVER = ("v110", "v110")
#: After the HDF5 file: crc32c of what it was made from, and of all bytes so far.
_TAIL_BYTES = 2 * CRC_BYTES


def head(spec: GroupSpec, name: str) -> bytes:
    """What comes before the chunks in a shard of a group's array."""
    return _head(_shard_shape(spec, name), stored_dtype(spec.dtype, name))


def head_of_one(chunk: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """What comes before the chunk in a shard of a single one."""
    return _head(chunk, dtype)


def is_whole_head(head: bytes) -> bool:
    """Whether a shard's head is as it was written."""
    return len(head) == LEAD and head[-CRC_BYTES:] == _crc(head[:-CRC_BYTES])


def checkpoint(attributes: dict[str, Any], metrics: dict[str, Float64]) -> bytes:
    """A group's arrays, each joined from its shards, with coordinates, attributes and metrics."""
    spec = GroupSpec.from_json(attributes, source="checkpoint.h5")

    def fill(file: h5py.File) -> None:
        # Not as a string of any length: damage to the heap, where such lie, has no checksum.
        file.attrs["spec"] = np.bytes_(documents.encode(spec.to_json()))
        file.attrs["complete"] = attributes["complete"]
        for name, value in sorted(spec.provenance.items()):
            if isinstance(value, str | int | float):
                file.attrs[name] = value
        layer = _scale(file, "layer", np.asarray(spec.layers, np.int64))
        text = _scale(file, "text", np.arange(spec.texts, dtype=np.int32))
        for name in spec.arrays:
            array = _joined_blocks(file, spec, name)
            for axis, scale in enumerate([layer, text]):
                array.dims[axis].label = ("layer", "text")[axis]
                array.dims[axis].attach_scale(scale)
            if array.ndim == 3:
                array.dims[2].label = "hidden"
        group = file.create_group("metrics")
        for name, values in sorted(metrics.items()):
            metric = group.create_dataset(name, data=values)
            metric.dims[0].label = "layer"
            metric.dims[0].attach_scale(layer)

    return _with_tail(_image(fill), _source(attributes, metrics))


def shows_checkpoint(
    stored: bytes, attributes: dict[str, Any], metrics: dict[str, Float64]
) -> bool:
    """Whether a file is whole, and the one that :func:`checkpoint` made from just this."""
    return _is_made_from(stored, _source(attributes, metrics))


def corpus(attributes: dict[str, Any]) -> bytes:
    """The corpus's arrays, each joined from its chunks."""

    def fill(file: h5py.File) -> None:
        # A data set, since an attribute holds 64 KiB at most.
        file["attributes"] = np.bytes_(documents.encode(attributes))
        for name, entry in attributes["arrays"].items():
            folder, _, last = name.rpartition("/")
            at = file.require_group(folder) if folder else file
            shape, rows = tuple(entry["shape"]), entry["chunk_rows"]
            parts = []
            for number in range(-(-shape[0] // rows)):
                start = number * rows
                parts.append(
                    _Part(
                        path=f"{name}/{chunk_key(number, *[0] * (len(shape) - 1))}",
                        shape=(rows, *shape[1:]),
                        taken=(min(rows, shape[0] - start), *shape[1:]),
                        start=(start, *[0] * (len(shape) - 1)),
                        count=(min(rows, shape[0] - start), *shape[1:]),
                    )
                )
            _virtual(at, last, shape, np.dtype(entry["dtype"]), parts)

    return _with_tail(_image(fill), documents.encode(attributes))


def shows_corpus(stored: bytes, attributes: dict[str, Any]) -> bool:
    """Whether a file is whole, and the one that :func:`corpus` made from just this."""
    return _is_made_from(stored, documents.encode(attributes))


def root(version: int, files: dict[str, str]) -> bytes:
    """The store as one tree: external links, and the paths that they lead to."""

    def fill(file: h5py.File) -> None:
        file.attrs["batchsweep_format"] = version
        for name, path in files.items():
            folder, _, last = name.rpartition("/")
            # Named, since HDF5 dates the groups that it makes on the way to a link.
            at = file.require_group(folder) if folder else file
            at[last] = h5py.ExternalLink(path, "/")
        file.require_group("checkpoints")

    return _with_tail(_image(fill), b"")


def has_tail(stored: bytes) -> bool:
    """Whether a file of several arrays is as it was written."""
    return len(stored) > _TAIL_BYTES and stored[-CRC_BYTES:] == _crc(stored[:-CRC_BYTES])


def has_link(stored: bytes, path: str) -> bool:
    """Whether there is a link to a path in what :func:`root` made."""
    # HDF5 keeps a link's path as it is, between zeros.
    return b"\0" + path.encode() + b"\0" in stored


@dataclass(frozen=True)
class _Part:
    """What a joined array takes from one file."""

    path: str
    #: Of the file's data set, and what is taken of it, from its first element.
    shape: tuple[int, ...]
    taken: tuple[int, ...]
    #: Where that comes in the joined array.
    start: tuple[int, ...]
    count: tuple[int, ...]


def _joined_blocks(file: h5py.File, spec: GroupSpec, name: str) -> h5py.Dataset:
    vector = (spec.hidden,) if name in spec.poolings else ()
    layers, width = len(spec.layers), int(np.prod(vector, dtype=int))
    parts = []
    for block in range(spec.blocks):
        rows = spec.block_rows(block)
        texts = rows.stop - rows.start
        parts.append(
            _Part(
                path=f"{name}/{chunk_key(0, block, *[0] * len(vector))}",
                shape=_shard_shape(spec, name),
                taken=(layers, texts * width),
                start=(0, rows.start, *[0] * len(vector)),
                count=(layers, texts, *vector),
            )
        )
    shape = (layers, spec.texts, *vector)
    return _virtual(file, name, shape, stored_dtype(spec.dtype, name), parts)


def _virtual(
    at: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    parts: Iterable[_Part],
) -> h5py.Dataset:
    """An array joined from others; where their files are missing, NaN, or 0 if it holds integers.

    h5py's own way, ``create_virtual_dataset``, would date it.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.asarray(np.nan if dtype.kind == "f" else 0, dtype))
    for part in parts:
        # In these names, % begins a pattern.
        path = part.path.replace("%", "%%").encode()
        source = _selected(part.shape, (0,) * len(part.shape), part.taken)
        target = _selected(shape, part.start, part.count)
        properties.set_virtual(target, path, _IN_SHARD.encode(), source)
    kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(at.id, name.encode(), kind, space, dcpl=properties))


def _selected(
    shape: tuple[int, ...], start: tuple[int, ...], count: tuple[int, ...]
) -> h5py.h5s.SpaceID:
    space = h5py.h5s.create_simple(shape)
    space.select_hyperslab(start, count)
    return space


def _scale(file: h5py.File, name: str, values: np.ndarray[Any, Any]) -> h5py.Dataset:
    scale = file.create_dataset(name, data=values)
    scale.make_scale(name)
    return scale


def _shard_shape(spec: GroupSpec, name: str) -> tuple[int, int]:
    """A row for each layer: its chunk, and the values that the bytes of its crc32c would be."""
    values = int(np.prod(chunk_shape(spec, name)))
    return len(spec.layers), values + CRC_BYTES // stored_dtype(spec.dtype, name).itemsize


@lru_cache(maxsize=64)
def _head(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """The start of an HDF5 file with one contiguous array; its values are never in memory."""

    def fill(file: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)
        kind = h5py.h5t.py_create(dtype, logical=True)
        space = h5py.h5s.create_simple(shape)
        array = h5py.h5d.create(file.id, _IN_SHARD.encode(), kind, space, dcpl=properties)
        if array.get_offset() != LEAD:
            raise AssertionError(f"HDF5 put the chunks at {array.get_offset()}, not at {LEAD}")

    # Two object headers, each at a multiple of a third of the head, then the values.
    stored = _image(fill, alignment_threshold=1, alignment_interval=LEAD // 3)
    stored = stored.ljust(LEAD - CRC_BYTES, b"\0")
    return stored + _crc(stored)


def _image(fill: Callable[[h5py.File], None], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_LIBVER, **options) as file:
        fill(file)

    return buffer.getvalue()


def _source(attributes: dict[str, Any], metrics: dict[str, Float64]) -> bytes:
    """What a checkpoint's file is made from."""
    values = [name.encode() + metrics[name].tobytes() for name in sorted(metrics)]
    return documents.encode(attributes) + b"".join(values)


def _is_made_from(stored: bytes, source: bytes) -> bool:
    return has_tail(stored) and stored[-_TAIL_BYTES:-CRC_BYTES] == _crc(source)


def _with_tail(image: bytes, source: bytes) -> bytes:
    stored = image + _crc(source)
    return stored + _crc(stored)


def _crc(body: bytes) -> bytes:
    return struct.pack("<I", crc32c(body))
