"""Zarr v3 documents and chunks as bytes, to the public specification.

Only what FORMAT.md uses: regular grids, ``bytes``, ``zstd``, ``crc32c`` and ``sharding_indexed``
codecs. Going by the specification instead of through a library keeps the bytes the same from run
to run and lets a block be one durable write. The tests read all of it with zarr, xarray and
tensorstore.

Specification: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from batchsweep.errors import StoreCorrupt
from batchsweep.store.documents import checked, encode, parse, with_checksum
from batchsweep.store.values import Array, as_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

CRC_BYTES = 4
_ZSTD_LEVEL = 3
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
# The spec's sharding index marks a chunk that isn't there by this offset and length.
_ABSENT = 2**64 - 1


def group(attributes: dict[str, Any], members: dict[str, bytes] | None = None) -> bytes:
    """The ``zarr.json`` of a group; its attributes carry a checksum unless there are none.

    Args:
        attributes: plain JSON values.
        members: ``zarr.json`` of each node below, by relative path, to be repeated in this one
            (zarr-python's "consolidated metadata", which other readers may ignore).
    """
    value: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": with_checksum(attributes) if attributes else {},
    }
    if members is not None:
        value["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {path: json.loads(stored) for path, stored in sorted(members.items())},
        }
    return encode(value)


def attributes_of(stored: bytes) -> dict[str, Any]:
    """The attributes in a ``zarr.json``, without their checksum.

    Raises:
        ValueError: not such a document, or the checksum differs.
    """
    value = parse(stored)
    if not isinstance(value, dict) or not isinstance(value.get("attributes"), dict):
        raise ValueError("not a Zarr v3 document")
    attributes: dict[str, Any] = checked(value["attributes"])
    return attributes


def array(
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    chunk: tuple[int, ...],
    *,
    dimensions: tuple[str, ...],
    shard: tuple[int, ...] | None = None,
    compression: str = "none",
    attributes: dict[str, Any] | None = None,
) -> bytes:
    """The ``zarr.json`` of an array; a missing chunk reads as NaN, or as 0 if it holds integers.

    With ``shard``, each stored object is a shard of that shape, made of chunks.
    """
    codecs: list[dict[str, Any]] = [*([_ZSTD] if compression == "zstd" else []), _CRC32C]
    codecs.insert(0, _BYTES)
    if shard is not None:
        sharding = {
            "chunk_shape": list(chunk),
            "codecs": codecs,
            "index_codecs": [_BYTES, _CRC32C],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    grid = {"name": "regular", "configuration": {"chunk_shape": list(shard or chunk)}}
    return encode(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": grid,
            # With dots, a chunk's key is one file name: a listing of one folder shows all blocks.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if dtype.kind == "f" else 0,
            "codecs": codecs,
            "dimension_names": list(dimensions),
            "attributes": with_checksum(attributes) if attributes else {},
        }
    )


def same_layout(stored: bytes, wanted: bytes) -> bool:
    """Whether a ``zarr.json`` says what ``wanted`` says of type, shape, chunks and codecs.

    Attributes may differ by what another version of batchsweep notes there, but must be whole.
    """
    try:
        attributes_of(stored)
        there, here = parse(stored), parse(wanted)
    except ValueError:
        return False
    return all(there.get(k) == v for k, v in here.items() if k != "attributes")


def chunk_key(*indexes: int) -> str:
    """The file name of a chunk or shard (``c.0.12.0``), for the separator ``.``."""
    return ".".join(["c", *map(str, indexes)])


def encode_chunk(values: Array, chunk: tuple[int, ...], compression: str = "none") -> list[Buffer]:
    """The parts of one stored chunk: values (padded to the chunk's shape), then their crc32c."""
    if values.shape != chunk:
        fill = np.nan if values.dtype.kind == "f" else 0
        padded = np.full(chunk, fill, dtype=values.dtype)
        padded[tuple(slice(n) for n in values.shape)] = values
        values = padded
    body = as_bytes(values)
    if compression == "zstd":
        from numcodecs.zstd import Zstd  # Which most stores never need.

        body = memoryview(Zstd(level=_ZSTD_LEVEL).encode(body))
    return [body, struct.pack("<I", crc32c(body))]


def decode_chunk(
    stored: bytes,
    chunk: tuple[int, ...],
    dtype: np.dtype[np.generic],
    *,
    where: str,
    compression: str = "none",
) -> Array:
    """The values of one stored chunk.

    Raises:
        StoreCorrupt: too short, the crc32c differs, or it isn't of the chunk's size.
    """
    body = memoryview(stored)[:-CRC_BYTES]
    check(body, stored[-CRC_BYTES:], where=where)
    size = dtype.itemsize * math.prod(chunk)
    if compression == "zstd":
        body = _decompressed(body, size, where=where)
    if len(body) != size:
        raise StoreCorrupt(f"{where}: {len(body)} bytes don't make a chunk of {chunk} {dtype}")
    return np.frombuffer(body, dtype=dtype).reshape(chunk)


def _decompressed(body: memoryview[int], size: int, *, where: str) -> memoryview[int]:
    """What is compressed, if it is ``size`` bytes: what it says of its size may be anything."""
    from pyarrow import Codec

    try:
        # Unlike numcodecs, it takes no more than this, and refuses less.
        return memoryview(Codec("zstd").decompress(body, size))
    except OSError as error:
        raise StoreCorrupt(f"{where}: isn't {size} bytes compressed by zstd ({error})") from None


def check(body: memoryview[int], checksum: bytes, *, where: str) -> None:
    """Verify a chunk against its stored checksum; a chunk that is cut short has none.

    Raises:
        StoreCorrupt: they don't agree.
    """
    if len(body) == 0 or struct.pack("<I", crc32c(body)) != checksum:
        raise damaged(where)


def damaged(where: str) -> StoreCorrupt:
    """The error for bytes that don't agree with their checksum."""
    return StoreCorrupt(
        f"{where}: checksum differs (torn or changed bytes); run 'batchsweep verify --repair', "
        "then extract again"
    )


def crc32c(body: bytes | memoryview[int], before: int = 0) -> int:
    """crc32c (Castagnoli) of the bytes, after those whose crc32c is ``before``."""
    if isinstance(body, memoryview) and not body.readonly:
        # The library takes no memoryview; what ctypes lays over it spares the copy.
        return int(google_crc32c.extend(before, (ctypes.c_char * body.nbytes).from_buffer(body)))
    return int(google_crc32c.extend(before, bytes(body)))


def shard_index(lengths: list[int], lead: int = 0) -> bytes:
    """The index at a shard's end: chunks lie in order, without gaps, after ``lead`` bytes."""
    ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(lead)
    pairs = np.stack([ends - np.asarray(lengths, np.uint64), np.asarray(lengths, np.uint64)], 1)
    body = pairs.astype("<u8").tobytes()
    return body + struct.pack("<I", crc32c(body))


def shard_index_bytes(chunks: int) -> int:
    """Size of the index of a shard with that many chunks."""
    return 16 * chunks + CRC_BYTES


def parse_shard_index(
    stored: bytes, chunks: int, *, whole: int, where: str
) -> list[tuple[int, int]]:
    """Offset and length of each chunk of a shard of ``whole`` bytes.

    Raises:
        StoreCorrupt: the index is cut, changed, marks a chunk as absent, or points elsewhere.
    """
    index = decode_chunk(stored, (chunks, 2), np.dtype("<u8"), where=f"{where}: index")
    if (index == _ABSENT).any():
        raise StoreCorrupt(f"{where}: a chunk is absent")
    places: list[tuple[int, int]] = [(start, length) for start, length in index.tolist()]
    if any(length < CRC_BYTES or start + length > whole for start, length in places):
        raise StoreCorrupt(f"{where}: the index points to what isn't a chunk")
    return places
