"""Groups as Zarr v3: one group per checkpoint, one shard per block and array."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.store.format import (
    FORMAT_VERSION,
    Float64,
    corrupt_at,
    metric_seal,
    piece_bytes,
)
from batchsweep.store.places.blobs import DOCUMENTS, DOCUMENTS_SINCE, Blobs
from batchsweep.store.spec import GroupSpec
from batchsweep.store.validation import is_key, name_fault
from batchsweep.store.values import Array, stored_dtype
from batchsweep.store.zarr import v3
from batchsweep.store.zarr.corpus import ZarrSink, ZarrSource, read_attributes
from batchsweep.store.zarr.group_documents import (
    SEAL_CHUNK,
    array_documents,
    chunk_bytes,
    chunk_shape,
    group_coordinates,
    group_members,
    metric_arrays,
    shard_key,
    wanted_metadata,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Says that the documents' folder is an array without elements: below one, Zarr's readers look for
# nothing, while of each document in a group they warn that it is none of its members.
_DOCUMENTS = f"{DOCUMENTS}zarr.json"
_NO_ELEMENTS = v3.array((0,), np.dtype("u1"), (1,), dimensions=("no_element",))


class ZarrFormat:
    """See FORMAT.md, "Zarr"."""

    name = "zarr"
    newest = FORMAT_VERSION
    #: The last version whose documents lay beside the arrays.
    last_without_documents = 1
    #: What the root says besides the version.
    root_attributes: ClassVar[dict[str, Any]] = {}
    #: Bytes of a shard that come before its chunks.
    lead = 0

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def create(self) -> None:
        self._write("checkpoints/zarr.json", v3.group({}))
        if self.blobs.documents:
            self._write(_DOCUMENTS, _NO_ELEMENTS)
        root = {"batchsweep_format": self.written, **self.root_attributes}
        self._write("zarr.json", v3.group(root))

    def check_writable(self) -> None:
        return

    @property
    def written(self) -> int:
        """The version of this store: an older one stays what it is."""
        return self.newest if self.blobs.documents else self.last_without_documents

    def version(self) -> object:
        root = self.blobs.read("zarr.json")
        if root is None:
            return None
        attributes = self._attributes("zarr.json", root)
        if not v3.same_layout(root, v3.group({})):
            raise corrupt_at(self.blobs, "zarr.json", "torn or changed")
        version = attributes.get("batchsweep_format")
        if isinstance(version, int) and version >= DOCUMENTS_SINCE:
            stored = self.blobs.read(_DOCUMENTS)
            if stored is None or not v3.same_layout(stored, _NO_ELEMENTS):
                what = "missing" if stored is None else "torn or changed"
                raise corrupt_at(self.blobs, _DOCUMENTS, what)
        return version

    def keys(self) -> list[str]:
        models = self.blobs.folders("checkpoints")
        revisions = self.blobs.map(lambda m: self.blobs.folders(f"checkpoints/{m}"), models)
        keys = (f"{m}/{r}" for m, rs in zip(models, revisions, strict=True) for r in rs)
        return sorted(key for key in keys if is_key(key))

    def noted_keys(self) -> list[str]:
        # One note a group: with one index of all, pods would have to wait for one another.
        notes = f"{self.blobs.documents}groups"
        keys = (
            f"{model}/{name}"
            for model in self.blobs.folders(notes)
            for name in self.blobs.files(f"{notes}/{model}")
        )
        return [key for key in keys if is_key(key)]

    def folder(self, key: str) -> str:
        return f"checkpoints/{key}"

    def attributes(self, key: str) -> dict[str, Any] | None:
        return self._group_attributes(f"{self.folder(key)}/zarr.json")

    def start_group(self, key: str, spec: GroupSpec) -> None:
        folder = self.folder(key)
        parent = folder.rsplit("/", 1)[0]
        self._write_if_absent(f"{parent}/zarr.json", v3.group({}))
        for name, (values, _) in group_coordinates(spec).items():
            self._write_only_chunk(f"{folder}/{name}", values)
        for name, stored in array_documents(spec).items():
            self._write(f"{folder}/{name}/zarr.json", stored)
        # Last: a group is there once its own document is.
        self.write_attributes(key, {**spec.to_json(), "complete": False, "metric_count": 0})
        self._write_if_absent(self._note(key), b"")

    def mark(self, key: str, spec: GroupSpec, *, complete: bool) -> None:
        # What was recorded at the start (versions) stays as it was.
        metrics = self._metric_attributes(key) if complete else {}
        attributes = {
            **(self.attributes(key) or spec.to_json()),
            "complete": complete,
            "metric_count": len(metrics.get("names", ())),
        }
        self.write_attributes(key, attributes, group_members(spec, metrics) if complete else None)
        if complete:
            # A kill between making the group and noting it.
            self._write_if_absent(self._note(key), b"")

    def drop_group(self, key: str) -> None:
        self.blobs.delete(self._note(key))
        # The group's own document goes first, so that no half group is ever taken for a whole.
        self.blobs.delete(f"{self.folder(key)}/zarr.json")
        self.blobs.delete_tree(f"{self.folder(key)}/seals")
        self.blobs.delete_tree(self.folder(key))

    def write_array(
        self, key: str, spec: GroupSpec, name: str, block: int, layers: Iterable[Array]
    ) -> bytes:
        chunk = chunk_shape(spec, name)
        lengths: list[int] = []
        checksums: list[bytes] = []

        def parts() -> Iterator[Buffer]:
            yield self.head(spec, name)
            for values in layers:
                body, checksum = v3.encode_chunk(values[None], chunk, spec.compression)
                lengths.append(memoryview(body).nbytes + v3.CRC_BYTES)
                checksums.append(bytes(checksum))
                yield body
                yield checksum
            yield v3.shard_index(lengths, self.lead)

        self.blobs.write(self._shard(key, spec, name, block), parts())
        return b"".join(checksums)

    def pieces(
        self,
        key: str,
        spec: GroupSpec,
        name: str,
        block: int,
        layer: int,
        space: memoryview[int] | None = None,
    ) -> Iterator[Array]:
        path = self._shard(key, spec, name, block)
        if spec.compression != "none":
            start, length = self._index(path, spec)[layer]
            stored = self.blobs.read_range(path, start, length) or b""
            yield self._decoded(stored, path, spec, name, block, layer)
            return
        chunk = chunk_shape(spec, name)
        dtype = stored_dtype(spec.dtype, name)
        where = f"{self.blobs.url}: {path}, layer {spec.layers[layer]}"
        rows = spec.block_rows(block)
        size = chunk_bytes(spec, name) - v3.CRC_BYTES
        piece = piece_bytes(size // chunk[1])
        if space is None or len(space) != size:
            space = np.empty(min(piece, size), np.uint8).data
        start = self.lead + layer * (size + v3.CRC_BYTES)
        seen = checksum = 0
        sound = False
        for part in self.blobs.pieces(path, start, size, piece, space, v3.CRC_BYTES):
            if seen == size:
                sound = bytes(part) == struct.pack("<I", checksum)
                break
            checksum = v3.crc32c(part, checksum)
            first = rows.start + seen * chunk[1] // size
            seen += len(part)
            # Not the rows that fill up the last chunk.
            yield np.frombuffer(part, dtype).reshape(-1, *chunk[2:])[: max(rows.stop - first, 0)]
        if seen == 0 and self.blobs.read_range(path, 0, 1) is None:
            raise corrupt_at(self.blobs, path, "missing")
        if not sound:
            raise v3.damaged(where)

    def chunks(
        self, key: str, spec: GroupSpec, name: str, block: int
    ) -> Iterator[tuple[Array, bytes]]:
        path = self._shard(key, spec, name, block)
        for layer, (start, length) in enumerate(self._index(path, spec)):
            stored = self.blobs.read_range(path, start, length)
            if stored is None:
                raise corrupt_at(self.blobs, path, "missing")
            values = self._decoded(stored, path, spec, name, block, layer)
            yield values, stored[-v3.CRC_BYTES :]

    def _decoded(
        self, stored: bytes, path: str, spec: GroupSpec, name: str, block: int, layer: int
    ) -> Array:
        """The rows of a block in one layer's chunk."""
        chunk, dtype = chunk_shape(spec, name), stored_dtype(spec.dtype, name)
        where = f"{self.blobs.url}: {path}, layer {spec.layers[layer]}"
        values = v3.decode_chunk(stored, chunk, dtype, where=where, compression=spec.compression)
        rows = spec.block_rows(block)
        return values[0, : rows.stop - rows.start]

    def checksums(self, key: str, spec: GroupSpec, name: str, block: int) -> bytes:
        path = self._shard(key, spec, name, block)
        if spec.compression == "none":
            size = chunk_bytes(spec, name)
            ends = [self.lead + (n + 1) * size for n in range(len(spec.layers))]
        else:
            ends = [start + length for start, length in self._index(path, spec)]
        ranges = [(end - v3.CRC_BYTES, v3.CRC_BYTES) for end in ends]
        stored = self.blobs.read_ranges(path, ranges)
        if stored is None:
            raise corrupt_at(self.blobs, path, "missing")
        return b"".join(stored)

    def metadata_faults(self, key: str, spec: GroupSpec) -> list[str]:
        # Metrics that don't read at all are another kind of fault.
        metrics = self._metric_attributes(key)
        attributes = self.attributes(key) or {}
        wanted, chunks = wanted_metadata(self.folder(key), spec, attributes, metrics)
        paths = list(wanted)
        stored = self.blobs.map(self.blobs.read, paths)
        faults = [
            f"{path} is {'missing' if there is None else 'torn or changed'}"
            for path, there in zip(paths, stored, strict=True)
            if there is None or not v3.same_layout(there, wanted[path])
        ]
        for array, values in chunks.items():
            path = f"{array}/{v3.chunk_key(*[0] * values.ndim)}"
            if self.blobs.read(path) != b"".join(v3.encode_chunk(values, values.shape)):
                faults.append(f"{path} is missing or changed")
        return faults

    def restore_metadata(self, key: str, spec: GroupSpec) -> None:
        for group in ("checkpoints", self.folder(key).rsplit("/", 1)[0]):
            self._write(f"{group}/zarr.json", v3.group({}))
        if metrics := self._metric_attributes(key):
            self._write_metric_documents(key, spec, metrics)
        self.start_group(key, spec)

    def has_seals(self, key: str) -> bool:
        return any(n.startswith("c.") for n in self.blobs.files(f"{self.folder(key)}/seals"))

    def recover_spec(self, key: str) -> GroupSpec | None:
        path = f"{self.folder(key)}/seals/zarr.json"
        stored = self.blobs.read(path)
        if stored is None:
            return None
        try:
            return GroupSpec.from_json(v3.attributes_of(stored), source=path)
        except (ValueError, StoreError):
            return None

    def drop_block(self, key: str, spec: GroupSpec, block: int) -> None:
        self.write_seal(key, spec, block, None)
        for name in spec.arrays:
            self.blobs.delete(self._shard(key, spec, name, block))

    def drop_metrics(self, key: str) -> None:
        folder = f"{self.folder(key)}/metrics"
        self.blobs.delete(f"{folder}/zarr.json")
        self.blobs.delete_tree(folder)

    def drop_corpus(self) -> None:
        self.blobs.delete("corpus/zarr.json")
        self.blobs.delete_tree("corpus")

    def missing(self, key: str, spec: GroupSpec) -> set[int]:
        there = set(range(spec.blocks))
        for name in spec.arrays:
            sizes = self.blobs.files(f"{self.folder(key)}/{name}")
            whole = self.lead + len(spec.layers) * chunk_bytes(spec, name)
            whole += v3.shard_index_bytes(len(spec.layers))
            for block in tuple(there):
                size = sizes.get(shard_key(spec, name, block))
                if size is None or (spec.compression == "none" and size != whole):
                    there.remove(block)
        return set(range(spec.blocks)) - there

    def write_seal(self, key: str, spec: GroupSpec, block: int, seal: bytes | None) -> None:
        path = f"{self.folder(key)}/seals/{v3.chunk_key(block, 0)}"
        if seal is None:
            self.blobs.delete(path)
            return
        values = np.frombuffer(seal, np.uint8)[None]
        self.blobs.write(path, v3.encode_chunk(values, SEAL_CHUNK))

    def seals(
        self, key: str, spec: GroupSpec, blocks: Iterable[int] | None = None
    ) -> dict[int, bytes]:
        folder = f"{self.folder(key)}/seals"
        if blocks is None:
            names = self.blobs.files(folder)
            blocks = (b for b in range(spec.blocks) if v3.chunk_key(b, 0) in names)

        def one(block: int) -> tuple[int, bytes] | None:
            path = f"{folder}/{v3.chunk_key(block, 0)}"
            stored = self.blobs.read(path)
            if stored is None:
                return None
            try:
                seal = v3.decode_chunk(stored, SEAL_CHUNK, np.dtype("u1"), where=path).tobytes()
            except StoreCorrupt:
                seal = b""
            return block, seal

        return dict(found for found in self.blobs.map(one, blocks) if found is not None)

    def count_sealed(self, key: str, spec: GroupSpec) -> int:
        return sum(name.startswith("c.") for name in self.blobs.files(f"{self.folder(key)}/seals"))

    def write_metrics(self, key: str, spec: GroupSpec, metrics: Mapping[str, Float64]) -> None:
        self.drop_metrics(key)
        for name, values in metrics.items():
            self._write_only_chunk(f"{self.folder(key)}/metrics/{name}", values)
        attributes = {"names": sorted(metrics), "seal": metric_seal(key, spec, metrics)}
        self._write_metric_documents(key, spec, attributes)

    def metrics(self, key: str, spec: GroupSpec) -> dict[str, Float64]:
        attributes = self._metric_attributes(key)
        names = attributes.get("names", [])

        def one(name: str) -> Float64:
            path = f"{self.folder(key)}/metrics/{name}/{v3.chunk_key(0)}"
            stored = self.blobs.read(path)
            if stored is None:
                raise corrupt_at(self.blobs, path, "missing")
            shape = (len(spec.layers),)
            return v3.decode_chunk(stored, shape, np.dtype("<f8"), where=path).astype(np.float64)

        found = dict(zip(names, self.blobs.map(one, names), strict=True))
        # Older versions wrote no seal.
        if "seal" in attributes and attributes["seal"] != metric_seal(key, spec, found):
            folder = f"{self.folder(key)}/metrics"
            raise corrupt_at(self.blobs, folder, "these aren't the metrics of this checkpoint")
        return found

    def _write_metric_documents(
        self, key: str, spec: GroupSpec, attributes: dict[str, Any]
    ) -> None:
        folder = f"{self.folder(key)}/metrics"
        self._write_only_chunk(f"{folder}/layer", np.asarray(spec.layers, np.int64))
        arrays = metric_arrays(spec, attributes["names"])
        for name, stored in arrays.items():
            self._write(f"{folder}/{name}/zarr.json", stored)
        self._write(f"{folder}/zarr.json", v3.group(attributes, arrays))

    def _metric_attributes(self, key: str) -> dict[str, Any]:
        """``names`` and ``seal`` of the metrics; empty if there are none."""
        path = f"{self.folder(key)}/metrics/zarr.json"
        attributes = self._group_attributes(path)
        if attributes is None:
            return {}
        names = attributes.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise corrupt_at(self.blobs, path, "no list of names")
        if fault := name_fault(names, reserved=("layer",)):
            raise corrupt_at(self.blobs, path, fault)
        return attributes

    def corpus_sink(self) -> ZarrSink:
        return ZarrSink(self.blobs)

    def corpus_source(self) -> ZarrSource | None:
        attributes = read_attributes(self.blobs)
        return None if attributes is None else ZarrSource(self.blobs, attributes)

    def _index(self, path: str, spec: GroupSpec) -> list[tuple[int, int]]:
        size = v3.shard_index_bytes(len(spec.layers))
        whole = self.blobs.files(path.rsplit("/", 1)[0]).get(path.rsplit("/", 1)[1])
        stored = None if whole is None else self.blobs.read_range(path, max(whole - size, 0), size)
        if whole is None or stored is None:
            raise corrupt_at(self.blobs, path, "missing")
        where = f"{self.blobs.url}: {path}"
        return v3.parse_shard_index(stored, len(spec.layers), whole=whole, where=where)

    def write_attributes(
        self, key: str, attributes: dict[str, Any], members: dict[str, bytes] | None = None
    ) -> None:
        """Write the group's own document."""
        self._write(f"{self.folder(key)}/zarr.json", v3.group(attributes, members))

    def head(self, spec: GroupSpec, name: str) -> bytes:
        """The ``lead`` bytes."""
        return b""

    def _shard(self, key: str, spec: GroupSpec, name: str, block: int) -> str:
        return f"{self.folder(key)}/{name}/{shard_key(spec, name, block)}"

    def _group_attributes(self, path: str) -> dict[str, Any] | None:
        stored = self.blobs.read(path)
        return None if stored is None else self._attributes(path, stored)

    def _attributes(self, path: str, stored: bytes) -> dict[str, Any]:
        try:
            return v3.attributes_of(stored)
        except ValueError as error:
            raise corrupt_at(self.blobs, path, f"torn or changed ({error})") from None

    def _note(self, key: str) -> str:
        """What tells a group that is gone from one that was never begun."""
        return f"{self.blobs.documents}groups/{key}"

    def _write(self, path: str, stored: bytes) -> None:
        self.blobs.write(path, [stored])

    def _write_if_absent(self, path: str, stored: bytes) -> None:
        if self.blobs.read(path) is None:
            self._write(path, stored)

    def _write_only_chunk(self, path: str, values: Array) -> None:
        key = v3.chunk_key(*[0] * values.ndim)
        self.blobs.write(f"{path}/{key}", v3.encode_chunk(values, values.shape))
