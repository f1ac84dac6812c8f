"""Groups as Zarr v3: one group per checkpoint, one shard per block and array."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.errors import StoreCorrupt
from batchsweep.store import zarr3
from batchsweep.store.blobs import Blobs
from batchsweep.store.group import SEAL_BYTES, Float64, corrupt_at
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, stored_dtype
from batchsweep.store.zarr_corpus import ZarrSink, ZarrSource, read_attributes

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT_VERSION = 1
_SEAL_CHUNK = (1, SEAL_BYTES)


class ZarrFormat:
    """See FORMAT.md, "Zarr"."""

    name = "zarr"

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def create(self) -> None:
        self._write_if_absent("zarr.json", zarr3.group({"batchsweep_format": FORMAT_VERSION}))
        self._write_if_absent("checkpoints/zarr.json", zarr3.group({}))

    def version(self) -> int | None:
        attributes = self._group_attributes("zarr.json")
        if attributes is None:
            return None
        version = attributes.get("batchsweep_format")
        return version if isinstance(version, int) else None

    def keys(self) -> list[str]:
        models = self.blobs.folders("checkpoints")
        revisions = self.blobs.map(lambda m: self.blobs.folders(f"checkpoints/{m}"), models)
        return sorted(f"{m}/{r}" for m, rs in zip(models, revisions, strict=True) for r in rs)

    def folder(self, key: str) -> str:
        return f"checkpoints/{key}"

    def attributes(self, key: str) -> dict[str, Any] | None:
        return self._group_attributes(f"{self.folder(key)}/zarr.json")

    def start_group(self, key: str, spec: GroupSpec) -> None:
        folder = self.folder(key)
        parent = folder.rsplit("/", 1)[0]
        self._write_if_absent(f"{parent}/zarr.json", zarr3.group({}))
        # The convention by which xarray takes an array for a coordinate.
        coordinates = "step" if "step" in _coordinates(spec) else ""
        for name in spec.arrays:
            scale = name not in spec.poolings
            chunk = _chunk(spec, name)
            shape = (len(spec.layers), spec.texts, *chunk[2:])
            attributes = {"coordinates": coordinates} if coordinates else {}
            if spec.dtype == "int8" and not scale:
                attributes["scale"] = f"{name}_scale"
            metadata = zarr3.array(
                shape,
                stored_dtype(spec.dtype, name),
                chunk,
                shard=(len(spec.layers), *chunk[1:]),
                dimensions=("layer", "text", "hidden")[: len(chunk)],
                compression=spec.compression,
                attributes=attributes,
            )
            self._write(f"{folder}/{name}/zarr.json", metadata)
        for name, (values, dimensions) in _coordinates(spec).items():
            self._write_small(f"{folder}/{name}", values, dimensions)
        seals = zarr3.array(
            (spec.blocks, SEAL_BYTES), np.dtype("u1"), _SEAL_CHUNK, dimensions=("block", "byte")
        )
        self._write(f"{folder}/seals/zarr.json", seals)
        # Last: a group is there once its own document is.
        self._write(f"{folder}/zarr.json", zarr3.group({**spec.to_json(), "complete": False}))

    def complete_group(self, key: str, spec: GroupSpec) -> None:
        # What was recorded at the start (versions) stays as it was.
        attributes = {**(self.attributes(key) or spec.to_json()), "complete": True}
        self._write(f"{self.folder(key)}/zarr.json", zarr3.group(attributes))

    def drop_group(self, key: str) -> None:
        # The group's own document goes first, so that no half group is ever taken for a whole.
        self.blobs.delete(f"{self.folder(key)}/zarr.json")
        self.blobs.delete_tree(self.folder(key))

    def write_array(
        self, key: str, spec: GroupSpec, name: str, block: int, layers: Iterable[Array]
    ) -> bytes:
        chunk = _chunk(spec, name)
        lengths: list[int] = []
        checksums: list[bytes] = []

        def parts() -> Iterator[Buffer]:
            for values in layers:
                body, checksum = zarr3.encode_chunk(values[None], chunk, spec.compression)
                lengths.append(memoryview(body).nbytes + zarr3.CRC_BYTES)
                checksums.append(bytes(checksum))
                yield body
                yield checksum
            yield zarr3.shard_index(lengths)

        self.blobs.write(self._shard(key, spec, name, block), parts())
        return b"".join(checksums)

    def read_chunk(self, key: str, spec: GroupSpec, name: str, block: int, layer: int) -> Array:
        path = self._shard(key, spec, name, block)
        chunk = _chunk(spec, name)
        dtype = stored_dtype(spec.dtype, name)
        if spec.compression == "none":
            length = _chunk_bytes(spec, name)
            start = layer * length
        else:
            start, length = map(int, self._index(path, spec)[layer])
        stored = self.blobs.read_range(path, start, length)
        if stored is None:
            raise corrupt_at(self.blobs, path, "missing")
        where = f"{self.blobs.url}: {path}, layer {spec.layers[layer]}"
        values: Array = zarr3.decode_chunk(
            stored, chunk, dtype, where=where, compression=spec.compression
        )[0]
        rows = spec.block_rows(block)
        return values[: rows.stop - rows.start]

    def checksums(self, key: str, spec: GroupSpec, name: str, block: int) -> bytes:
        path = self._shard(key, spec, name, block)
        index = self._index(path, spec)
        found = []
        for layer, (start, length) in enumerate(index.tolist()):
            stored = self.blobs.read_range(path, start, length)
            if stored is None:
                raise corrupt_at(self.blobs, path, "missing")
            where = f"{self.blobs.url}: {path}, layer {spec.layers[layer]}"
            zarr3.decode_chunk(
                stored,
                _chunk(spec, name),
                stored_dtype(spec.dtype, name),
                where=where,
                compression=spec.compression,
            )
            found.append(stored[-zarr3.CRC_BYTES :])
        return b"".join(found)

    def missing(self, key: str, spec: GroupSpec) -> set[int]:
        absent = set()
        for name in spec.arrays:
            sizes = self.blobs.files(f"{self.folder(key)}/{name}")
            whole = len(spec.layers) * _chunk_bytes(spec, name)
            whole += zarr3.shard_index_bytes(len(spec.layers))
            for block in range(spec.blocks):
                size = sizes.get(_shard_key(spec, name, block))
                if size is None or (spec.compression == "none" and size != whole):
                    absent.add(block)
        return absent

    def write_seal(self, key: str, spec: GroupSpec, block: int, seal: bytes | None) -> None:
        path = f"{self.folder(key)}/seals/{zarr3.chunk_key(block, 0)}"
        if seal is None:
            self.blobs.delete(path)
            return
        values = np.frombuffer(seal, np.uint8)[None]
        self.blobs.write(path, zarr3.encode_chunk(values, _SEAL_CHUNK))

    def seals(self, key: str, spec: GroupSpec) -> dict[int, bytes]:
        folder = f"{self.folder(key)}/seals"
        names = self.blobs.files(folder)
        blocks = [b for b in range(spec.blocks) if zarr3.chunk_key(b, 0) in names]

        def one(block: int) -> bytes | None:
            path = f"{folder}/{zarr3.chunk_key(block, 0)}"
            try:
                stored = self.blobs.read(path) or b""
                return zarr3.decode_chunk(stored, _SEAL_CHUNK, np.dtype("u1"), where=path).tobytes()
            except StoreCorrupt:
                return None

        found = zip(blocks, self.blobs.map(one, blocks), strict=True)
        return {block: seal for block, seal in found if seal is not None}

    def count_sealed(self, key: str, spec: GroupSpec) -> int:
        return sum(name.startswith("c.") for name in self.blobs.files(f"{self.folder(key)}/seals"))

    def write_metrics(self, key: str, spec: GroupSpec, metrics: Mapping[str, Float64]) -> None:
        folder = f"{self.folder(key)}/metrics"
        self.blobs.delete(f"{folder}/zarr.json")
        self.blobs.delete_tree(folder)
        layer = np.asarray(spec.layers, np.int64)
        for name, values in {"layer": layer, **metrics}.items():
            self._write_small(f"{folder}/{name}", values, ("layer",))
        self._write(f"{folder}/zarr.json", zarr3.group({"names": sorted(metrics)}))

    def metrics(self, key: str, spec: GroupSpec) -> dict[str, Float64]:
        folder = f"{self.folder(key)}/metrics"
        names = (self._group_attributes(f"{folder}/zarr.json") or {}).get("names", [])

        def one(name: str) -> Float64:
            path = f"{folder}/{name}/{zarr3.chunk_key(0)}"
            stored = self.blobs.read(path)
            if stored is None:
                raise corrupt_at(self.blobs, path, "missing")
            shape = (len(spec.layers),)
            return zarr3.decode_chunk(stored, shape, np.dtype("<f8"), where=path).astype(np.float64)

        return dict(zip(names, self.blobs.map(one, names), strict=True))

    def corpus_sink(self) -> ZarrSink:
        return ZarrSink(self.blobs)

    def corpus_source(self) -> ZarrSource | None:
        attributes = read_attributes(self.blobs)
        return None if attributes is None else ZarrSource(self.blobs, attributes)

    def _index(self, path: str, spec: GroupSpec) -> Any:
        size = zarr3.shard_index_bytes(len(spec.layers))
        whole = self.blobs.files(path.rsplit("/", 1)[0]).get(path.rsplit("/", 1)[1])
        stored = None if whole is None else self.blobs.read_range(path, max(whole - size, 0), size)
        if stored is None:
            raise corrupt_at(self.blobs, path, "missing")
        where = f"{self.blobs.url}: {path}"
        return zarr3.parse_shard_index(stored, len(spec.layers), where=where)

    def _shard(self, key: str, spec: GroupSpec, name: str, block: int) -> str:
        return f"{self.folder(key)}/{name}/{_shard_key(spec, name, block)}"

    def _group_attributes(self, path: str) -> dict[str, Any] | None:
        stored = self.blobs.read(path)
        if stored is None:
            return None
        try:
            attributes = json.loads(stored)["attributes"]
        except (ValueError, KeyError, TypeError):
            attributes = None
        if not isinstance(attributes, dict):
            raise corrupt_at(self.blobs, path, "not a Zarr v3 group document")
        return attributes

    def _write(self, path: str, stored: bytes) -> None:
        self.blobs.write(path, [stored])

    def _write_if_absent(self, path: str, stored: bytes) -> None:
        if self.blobs.read(path) is None:
            self._write(path, stored)

    def _write_small(self, path: str, values: Array, dimensions: tuple[str, ...]) -> None:
        """A one-chunk array: coordinates and metrics."""
        metadata = zarr3.array(values.shape, values.dtype, values.shape, dimensions=dimensions)
        key = zarr3.chunk_key(*[0] * values.ndim)
        self.blobs.write(f"{path}/{key}", zarr3.encode_chunk(values, values.shape))
        self._write(f"{path}/zarr.json", metadata)


def _coordinates(spec: GroupSpec) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """xarray's coordinates: the layers' numbers, the corpus rows, and the step where known."""
    coordinates: dict[str, tuple[Array, tuple[str, ...]]] = {
        "layer": (np.asarray(spec.layers, np.int64), ("layer",)),
        "text": (np.arange(spec.texts, dtype=np.int32), ("text",)),
    }
    step = spec.provenance.get("step")
    if isinstance(step, int):
        coordinates["step"] = (np.asarray(step, np.int64), ())
    return coordinates


def _chunk(spec: GroupSpec, name: str) -> tuple[int, ...]:
    return (1, spec.chunk_texts, spec.hidden) if name in spec.poolings else (1, spec.chunk_texts)


def _chunk_bytes(spec: GroupSpec, name: str) -> int:
    """Stored size of a chunk that isn't compressed."""
    values = int(np.prod(_chunk(spec, name)))
    return values * stored_dtype(spec.dtype, name).itemsize + zarr3.CRC_BYTES


def _shard_key(spec: GroupSpec, name: str, block: int) -> str:
    return zarr3.chunk_key(0, block, *([0] if name in spec.poolings else []))
