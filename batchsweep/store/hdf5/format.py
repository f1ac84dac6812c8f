"""Groups as HDF5: one file per checkpoint, one master file with links to all of them.

HDF5's own writing isn't safe against a kill: it changes metadata in place. So a file gets its whole
structure at once (temporary file, then rename) with the space of every array reserved, and blocks
are then written straight into that space. The HDF5 metadata never changes after that.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.store import documents
from batchsweep.store.format import (
    FORMAT_VERSION,
    SEAL_BYTES,
    Float64,
    corrupt_at,
    metric_seal,
    piece_bytes,
)
from batchsweep.store.hdf5.corpus import PATH as CORPUS
from batchsweep.store.hdf5.corpus import Hdf5Sink, Hdf5Source, read_attributes
from batchsweep.store.hdf5.files import check_metadata, make, opened, reserve
from batchsweep.store.places.local import Blobs, LocalBlobs, store_error
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, as_bytes, stored_dtype
from batchsweep.store.zarr.v3 import CRC_BYTES, crc32c, damaged

if TYPE_CHECKING:
    from typing_extensions import Buffer

MASTER = "sweep.h5"
_SEAL_ROW = SEAL_BYTES + CRC_BYTES


class Hdf5Format:
    """See FORMAT.md, "HDF5"."""

    name = "hdf5"

    def __init__(self, blobs: Blobs) -> None:
        if not isinstance(blobs, LocalBlobs):
            raise StoreError(
                f"{blobs.url}: HDF5 needs a local directory; set store.format: zarr for URLs"
            )
        self.blobs: LocalBlobs = blobs
        # Where each array's bytes begin in a group's file: fixed when the file is made.
        self._offsets: dict[str, dict[str, int]] = {}

    def create(self) -> None:
        self._write_master()

    def version(self) -> int | None:
        check_metadata(self.blobs, MASTER)
        with opened(self.blobs, MASTER) as file:
            version = file.attrs.get("batchsweep_format")
            # Whether the links can be read is a matter of the root, too.
            for group in file["checkpoints"].values():
                for revision in group:
                    group.get(revision, getlink=True)
        return None if version is None else int(version)

    def keys(self) -> list[str]:
        return sorted(
            f"{model}/{name.removesuffix('.h5')}"
            for model in self.blobs.folders("checkpoints")
            for name in self.blobs.files(f"checkpoints/{model}")
            if name.endswith(".h5")
        )

    def noted_keys(self) -> list[str]:
        with opened(self.blobs, MASTER) as file:
            return [f"{m}/{r}" for m, models in file["checkpoints"].items() for r in models]

    def folder(self, key: str) -> str:
        return f"checkpoints/{key}.h5"

    def attributes(self, key: str) -> dict[str, Any] | None:
        path = self.folder(key)
        if not self._path(path).exists():
            return None
        with opened(self.blobs, path) as file:
            text = file.attrs.get("spec")
            if text is None:
                raise corrupt_at(self.blobs, path, "not a checkpoint's file")
            count, complete, checksum = _marks(file)
            try:
                attributes = documents.decode_checked(text)
            except ValueError as error:
                raise corrupt_at(self.blobs, path, f"torn or changed ({error})") from None
            return {
                **attributes,
                # Until the checksum is there, the rest is about to be written.
                "complete": complete and checksum == _marks_checksum(count),
                "metric_count": count,
            }

    def start_group(self, key: str, spec: GroupSpec) -> None:
        if spec.compression != "none":
            raise StoreError(
                f"{self.blobs.url}: store.compression '{spec.compression}' isn't there with hdf5; "
                "valid: none (or store.format: zarr)"
            )
        metrics = os.path.relpath(f"metrics/{key}.h5", Path(self.folder(key)).parent)

        def fill(file: h5py.File) -> None:
            # Of fixed length: it lies in the root's header, which has a checksum. HDF5's heap has
            # none, and a flipped bit there can make it loop for ever.
            file.attrs["spec"] = np.bytes_(documents.encode_checked(spec.to_json()))
            for name, value in sorted(spec.provenance.items()):
                if isinstance(value, str | int | float):
                    file.attrs[name] = value
            layer = file.create_dataset("layer", data=np.asarray(spec.layers, np.int64))
            layer.make_scale("layer")
            text = file.create_dataset("text", data=np.arange(spec.texts, dtype=np.int32))
            text.make_scale("text")
            for name in spec.arrays:
                vector = (spec.hidden,) if name in spec.poolings else ()
                shape = (len(spec.layers), spec.texts, *vector)
                dataset = reserve(file, name, shape, stored_dtype(spec.dtype, name))
                for axis, (scale, label) in enumerate([(layer, "layer"), (text, "text")]):
                    dataset.dims[axis].label = label
                    dataset.dims[axis].attach_scale(scale)
                if len(shape) == 3:
                    dataset.dims[2].label = "hidden"
                grid = (spec.blocks, len(spec.layers))
                reserve(file, f"{name}_crc32c", grid, np.dtype("<u4"))
            reserve(file, "seals", (spec.blocks, _SEAL_ROW), np.dtype("u1"))
            reserve(file, "complete", (1,), np.dtype("u1"))
            reserve(file, "metric_count", (1,), np.dtype("<u4"))
            reserve(file, "complete_crc32c", (1,), np.dtype("<u4"))
            file["metrics"] = h5py.ExternalLink(metrics, "/")

        self._offsets.pop(key, None)
        make(self.blobs, self.folder(key), fill)
        self._write_master()

    def mark(self, key: str, spec: GroupSpec, *, complete: bool) -> None:
        # Last when it becomes complete, first when it no longer is: a kill in between leaves a
        # group that isn't.
        count = len(self.metrics(key, spec)) if complete else 0
        steps = {
            "metric_count": struct.pack("<I", count),
            "complete": bytes([complete]),
            "complete_crc32c": _marks_checksum(count) if complete else bytes(CRC_BYTES),
        }
        for name in steps if complete else reversed(steps):
            if name in self._places(key):
                self._put(key, name, 0, steps[name])
        if complete and not self._is_linked(key):
            # A kill between making the file and linking it.
            self._write_master()

    def drop_group(self, key: str) -> None:
        self._offsets.pop(key, None)
        self.blobs.delete(self.folder(key))
        self.blobs.delete(f"metrics/{key}.h5")
        self._write_master()

    def write_array(
        self, key: str, spec: GroupSpec, name: str, block: int, layers: Iterable[Array]
    ) -> bytes:
        checksums = []
        offset, table = self._offset(key, name), self._offset(key, f"{name}_crc32c")
        try:
            with self._path(self.folder(key)).open("r+b", buffering=0) as file:
                for layer, values in enumerate(layers):
                    body = as_bytes(values)
                    checksums.append(struct.pack("<I", crc32c(body)))
                    _write_at(file, offset + _start(spec, name, block, layer), body)
                joined = b"".join(checksums)
                _write_at(file, table + block * len(joined), joined)
                os.fsync(file.fileno())
        except OSError as error:
            raise store_error(error, self.blobs.url, self.folder(key)) from None
        return joined

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
        size = (rows.stop - rows.start) * _row_bytes(spec, name)
        piece = piece_bytes(_row_bytes(spec, name))
        if space is None or len(space) != size:
            space = np.empty(min(piece, size), np.uint8).data
        table = self._get(
            key, f"{name}_crc32c", (block * len(spec.layers) + layer) * CRC_BYTES, CRC_BYTES
        )
        start = self._offset(key, name) + _start(spec, name, block, layer)
        seen = checksum = 0
        for part in self.blobs.pieces(self.folder(key), start, size, piece, space):
            checksum = crc32c(part, checksum)
            seen += len(part)
            yield _values(spec, name, part)
        if seen != size:
            raise corrupt_at(self.blobs, self.folder(key), f"{name}: cut short or missing")
        if struct.pack("<I", checksum) != table:
            raise self._damaged(key, spec, name, block, layer)

    def chunks(
        self, key: str, spec: GroupSpec, name: str, block: int
    ) -> Iterator[tuple[Array, bytes]]:
        table = self.checksums(key, spec, name, block)
        for layer in range(len(spec.layers)):
            stored = self._chunk(key, spec, name, block, layer)
            checksum = table[layer * CRC_BYTES : (layer + 1) * CRC_BYTES]
            if struct.pack("<I", crc32c(stored)) != checksum:
                raise self._damaged(key, spec, name, block, layer)
            yield _values(spec, name, stored), checksum

    def checksums(self, key: str, spec: GroupSpec, name: str, block: int) -> bytes:
        size = len(spec.layers) * CRC_BYTES
        return self._get(key, f"{name}_crc32c", block * size, size)

    def metadata_faults(self, key: str, spec: GroupSpec) -> list[str]:
        path = self.folder(key)
        check_metadata(self.blobs, path)
        with opened(self.blobs, path) as file:
            wanted = {"layer": np.asarray(spec.layers), "text": np.arange(spec.texts)}
            for name, values in wanted.items():
                if name not in file or not np.array_equal(file[name][()], values):
                    raise corrupt_at(self.blobs, path, f"{name} is missing or changed")
            names = (*spec.arrays, *(f"{n}_crc32c" for n in spec.arrays), "seals")
            for name in names:
                if name not in file or file[name].id.get_offset() is None:
                    raise corrupt_at(self.blobs, path, f"{name} is missing")
            count, complete, checksum = _marks(file)
        sound = complete and checksum == _marks_checksum(count)
        if any(checksum) and not sound:
            return [f"{path}: complete or metric_count is changed"]
        # A writer that was killed early may go without a link until it is complete.
        if sound and not self._is_linked(key):
            return [f"{MASTER} has no link to {path}"]
        return []

    def restore_metadata(self, key: str, spec: GroupSpec) -> None:
        self.mark(key, spec, complete=False)
        self._write_master()

    def has_seals(self, key: str) -> bool:
        # Attributes and seals are one file: without the one there are none of the other.
        return False

    def recover_spec(self, key: str) -> GroupSpec | None:
        # The file's metadata is one piece: where it is damaged, nothing says where blocks lie.
        return None

    def drop_block(self, key: str, spec: GroupSpec, block: int) -> None:
        self.write_seal(key, spec, block, None)

    def drop_metrics(self, key: str) -> None:
        self.blobs.delete(f"metrics/{key}.h5")

    def drop_corpus(self) -> None:
        self.blobs.delete(CORPUS)

    def missing(self, key: str, spec: GroupSpec) -> set[int]:
        # All blocks lie in one file; what a cut file lacks, its checksums tell.
        return set()

    def write_seal(self, key: str, spec: GroupSpec, block: int, seal: bytes | None) -> None:
        row = bytes(_SEAL_ROW) if seal is None else seal + struct.pack("<I", crc32c(seal))
        self._put(key, "seals", block * _SEAL_ROW, row)

    def seals(
        self, key: str, spec: GroupSpec, blocks: Iterable[int] | None = None
    ) -> dict[int, bytes]:
        table = self._get(key, "seals", 0, spec.blocks * _SEAL_ROW)
        wanted = range(spec.blocks) if blocks is None else blocks
        rows = {i: table[i * _SEAL_ROW : (i + 1) * _SEAL_ROW] for i in wanted}
        return {block: _seal_in(row) for block, row in rows.items() if any(row)}

    def count_sealed(self, key: str, spec: GroupSpec) -> int:
        table = np.frombuffer(self._get(key, "seals", 0, spec.blocks * _SEAL_ROW), np.uint8)
        return int(np.count_nonzero(table.reshape(-1, _SEAL_ROW).any(axis=1)))

    def write_metrics(self, key: str, spec: GroupSpec, metrics: Mapping[str, Float64]) -> None:
        def fill(file: h5py.File) -> None:
            layer = file.create_dataset("layer", data=np.asarray(spec.layers, np.int64))
            layer.make_scale("layer")
            for name, values in sorted(metrics.items()):
                dataset = file.create_dataset(name, data=values, fletcher32=True, chunks=True)
                dataset.dims[0].label = "layer"
                dataset.dims[0].attach_scale(layer)

            file.attrs["seal"] = np.bytes_(metric_seal(key, spec, metrics))

        make(self.blobs, f"metrics/{key}.h5", fill)

    def metrics(self, key: str, spec: GroupSpec) -> dict[str, Float64]:
        path = f"metrics/{key}.h5"
        if not self._path(path).exists():
            return {}
        check_metadata(self.blobs, path)
        with opened(self.blobs, path) as file:
            names = sorted(n for n in file if file[n].dtype == np.float64)
            found = {name: file[name][()] for name in names}
            seal = file.attrs.get("seal")
        # Older versions wrote no seal.
        if seal is not None and seal != metric_seal(key, spec, found).encode():
            raise corrupt_at(self.blobs, path, "these aren't the metrics of this checkpoint")
        return found

    def corpus_sink(self) -> Hdf5Sink:
        return Hdf5Sink(self.blobs)

    def corpus_source(self) -> Hdf5Source | None:
        attributes = read_attributes(self.blobs)
        return None if attributes is None else Hdf5Source(self.blobs, attributes)

    def _path(self, path: str) -> Path:
        return self.blobs.root / path

    def _write_master(self) -> None:
        # Made anew from what is there, one process at a time, so that none forgets another's link.
        with self.blobs.lease(MASTER, wait=True):
            keys = self.keys()

            def fill(file: h5py.File) -> None:
                file.attrs["batchsweep_format"] = FORMAT_VERSION
                file["corpus"] = h5py.ExternalLink("corpus/corpus.h5", "/")
                file.create_group("checkpoints")
                for key in keys:
                    model, revision = key.split("/")
                    # Named, since HDF5 dates the groups that it makes on the way to a link.
                    group = file.require_group(f"checkpoints/{model}")
                    group[revision] = h5py.ExternalLink(self.folder(key), "/")

            make(self.blobs, MASTER, fill)

    def _is_linked(self, key: str) -> bool:
        with opened(self.blobs, MASTER) as file:
            link = file.get(f"checkpoints/{key}", getlink=True)
        return getattr(link, "filename", None) == self.folder(key)

    def _places(self, key: str) -> dict[str, int]:
        """Where each array's bytes begin in the group's file."""
        if key not in self._offsets:
            with opened(self.blobs, self.folder(key)) as file:
                names = [n for n in file if n not in ("metrics", "layer", "text")]
                found = {n: file[n].id.get_offset() for n in names}
            self._offsets[key] = {n: offset for n, offset in found.items() if offset is not None}
        return self._offsets[key]

    def _offset(self, key: str, name: str) -> int:
        try:
            return self._places(key)[name]
        except KeyError:
            raise corrupt_at(self.blobs, self.folder(key), f"no array {name}") from None

    def _put(self, key: str, name: str, start: int, stored: bytes) -> None:
        try:
            with self._path(self.folder(key)).open("r+b", buffering=0) as file:
                _write_at(file, self._offset(key, name) + start, stored)
                os.fsync(file.fileno())
        except OSError as error:
            raise store_error(error, self.blobs.url, self.folder(key)) from None

    def _get(self, key: str, name: str, start: int, length: int) -> bytes:
        path = self.folder(key)
        stored = self.blobs.read_range(path, self._offset(key, name) + start, length)
        if stored is None or len(stored) != length:
            raise corrupt_at(self.blobs, path, f"{name}: cut short or missing")
        return stored

    def _chunk(self, key: str, spec: GroupSpec, name: str, block: int, layer: int) -> bytes:
        rows = spec.block_rows(block)
        length = (rows.stop - rows.start) * _row_bytes(spec, name)
        return self._get(key, name, _start(spec, name, block, layer), length)

    def _damaged(
        self, key: str, spec: GroupSpec, name: str, block: int, layer: int
    ) -> StoreCorrupt:
        where = f"{self.folder(key)}, {name}, block {block}, layer {spec.layers[layer]}"
        return damaged(f"{self.blobs.url}: {where}")


def _marks(file: h5py.File) -> tuple[int, bool, bytes]:
    """metric_count, complete and their checksum; files of before it are as if it were right."""
    count, complete = int(file["metric_count"][0]), bool(file["complete"][0])
    if "complete_crc32c" not in file:
        return count, complete, _marks_checksum(count) if complete else bytes(CRC_BYTES)
    return count, complete, struct.pack("<I", file["complete_crc32c"][0])


def _marks_checksum(count: int) -> bytes:
    """What says that a group is complete, with that many metrics."""
    return struct.pack("<I", crc32c(struct.pack("<IB", count, True)))


def _write_at(file: io.FileIO, start: int, stored: Buffer) -> None:
    rest = memoryview(stored)
    file.seek(start)
    while rest:
        rest = rest[file.write(rest) :]


def _values(spec: GroupSpec, name: str, stored: bytes | memoryview[int]) -> Array:
    shape = (-1, spec.hidden) if name in spec.poolings else (-1,)
    return np.frombuffer(stored, stored_dtype(spec.dtype, name)).reshape(shape)


def _seal_in(row: bytes) -> bytes:
    """The seal in a row of ``seals``; empty if it is torn."""
    seal, checksum = row[:SEAL_BYTES], row[SEAL_BYTES:]
    return seal if struct.pack("<I", crc32c(seal)) == checksum else b""


def _row_bytes(spec: GroupSpec, name: str) -> int:
    size: int = stored_dtype(spec.dtype, name).itemsize
    return size * spec.hidden if name in spec.poolings else size


def _start(spec: GroupSpec, name: str, block: int, layer: int) -> int:
    """Where a layer's part of a block begins, counted from the array's first byte."""
    row: int = layer * spec.texts + spec.block_rows(block).start
    return row * _row_bytes(spec, name)
