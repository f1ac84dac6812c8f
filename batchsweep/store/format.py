"""What a format must do: the interface between the store and Zarr or HDF5."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreCorrupt
from batchsweep.store.corpus import ArraySink, ArraySource
from batchsweep.store.places.blobs import Blobs
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, as_bytes

Float64 = npt.NDArray[np.float64]

#: Version of FORMAT.md that this code writes; it reads all up to this one.
FORMAT_VERSION = 3

#: A seal: the spec's digest, then the digest of the block's checksums; 32 bytes each.
SEAL_BYTES = 64

# Bytes that are read at once: a part of a core's cache, so that the checksum and the cast, which
# come next, find them there.
PIECE_BYTES = 512 << 10


class Format(Protocol):
    """What Zarr and HDF5 do differently. A group is named by its key, an array by its name."""

    name: str
    #: The version that it writes in a new store, and the newest that it reads.
    newest: int

    @property
    def blobs(self) -> Blobs:
        """Where it is."""

    def create(self) -> None:
        """Make the (empty) root, if it isn't there."""

    def check_writable(self) -> None:
        """Raise StoreError, with the remedy, where stores of this version are only read."""

    def version(self) -> object:
        """The format version that the store claims (an int, if it is sound); None: no store."""

    def keys(self) -> list[str]:
        """Keys of all groups, sorted."""

    def noted_keys(self) -> list[str]:
        """Keys that the root knows of, whether or not their groups are there."""

    def folder(self, key: str) -> str:
        """Where the group is, for messages and temporary files."""

    def attributes(self, key: str) -> dict[str, Any] | None:
        """The spec's members, ``complete`` and ``metric_count``; None if there is no such group."""

    def start_group(self, key: str, spec: GroupSpec) -> None:
        """Make the group's metadata; no block is sealed."""

    def mark(self, key: str, spec: GroupSpec, *, complete: bool) -> None:
        """Set ``complete``, and with it the number of metrics."""

    def drop_group(self, key: str) -> None:
        """Remove the group."""

    def write_array(
        self, key: str, spec: GroupSpec, name: str, block: int, layers: Iterable[Array]
    ) -> bytes:
        """Write one array's part of a block, a layer at a time; the checksums of its chunks."""

    def pieces(
        self,
        key: str,
        spec: GroupSpec,
        name: str,
        block: int,
        layer: int,
        space: memoryview[int] | None = None,
    ) -> Iterator[Array]:
        """One layer (by position) of one block, some rows at a time: [text, hidden] or [text].

        The checksum is verified at the end: what was yielded is good if nothing is raised by
        then. A piece stays as it is until the next one. What isn't compressed is read into
        ``space``, if it is given and has the chunk's size.
        """

    def chunks(
        self, key: str, spec: GroupSpec, name: str, block: int
    ) -> Iterator[tuple[Array, bytes]]:
        """Each layer of one block as in ``read_chunk``, with its stored checksum, verified."""

    def checksums(self, key: str, spec: GroupSpec, name: str, block: int) -> bytes:
        """The stored checksums of all layers of one block, joined; no chunk is read.

        They are those that ``pieces`` and ``chunks`` hold the chunks against.
        """

    def metadata_faults(self, key: str, spec: GroupSpec) -> list[str]:
        """What is damaged besides attributes, blocks and metrics, and follows from the spec."""

    def restore_metadata(self, key: str, spec: GroupSpec) -> None:
        """Write again what follows from the spec; blocks and seals stay; not complete."""

    def has_seals(self, key: str) -> bool:
        """Whether there is a seal, even if the group has no attributes."""

    def recover_spec(self, key: str) -> GroupSpec | None:
        """The spec of a group whose attributes are damaged, if there is a copy."""

    def drop_block(self, key: str, spec: GroupSpec, block: int) -> None:
        """Remove a block's seal, then its bytes."""

    def drop_metrics(self, key: str) -> None:
        """Remove the metrics."""

    def drop_corpus(self) -> None:
        """Remove the corpus."""

    def missing(self, key: str, spec: GroupSpec) -> set[int]:
        """Blocks with bytes that are plainly not there: found without reading them."""

    def write_seal(self, key: str, spec: GroupSpec, block: int, seal: bytes | None) -> None:
        """Write a block's seal, or remove it."""

    def seals(
        self, key: str, spec: GroupSpec, blocks: Iterable[int] | None = None
    ) -> dict[int, bytes]:
        """The seal of each block that has one (of ``blocks``, if given); empty for a torn one."""

    def count_sealed(self, key: str, spec: GroupSpec) -> int:
        """Number of seals, found without reading them."""

    def write_metrics(self, key: str, spec: GroupSpec, metrics: Mapping[str, Float64]) -> None:
        """Write the metrics, [layer] each, with their seal, replacing all that were there."""

    def metrics(self, key: str, spec: GroupSpec) -> dict[str, Float64]:
        """The metrics, empty if there are none; their seal is verified."""

    def corpus_sink(self) -> ArraySink:
        """Where a new corpus goes; the old one is gone from here on."""

    def corpus_source(self) -> ArraySource | None:
        """The corpus; None if none was written to completion."""


def metric_seal(key: str, spec: GroupSpec, metrics: Mapping[str, Float64]) -> str:
    """What ties metrics to their group: sha256 (hex) of its spec digest and key, and of them."""
    hashed = hashlib.sha256(spec.digest + key.encode())
    for name, values in sorted(metrics.items()):
        hashed.update(f"#{name}#".encode() + as_bytes(values.astype("<f8")))
    return hashed.hexdigest()


def piece_bytes(row_bytes: int) -> int:
    """The size of a piece of whole rows."""
    return max(PIECE_BYTES // row_bytes, 1) * row_bytes


def spec_of(fmt: Format, key: str) -> tuple[GroupSpec, bool] | None:
    """The group's spec and whether it is complete; None if there is no group."""
    attributes = fmt.attributes(key)
    if attributes is None:
        return None
    spec = GroupSpec.from_json(attributes, source=f"{fmt.blobs.url}: {fmt.folder(key)}")
    return spec, attributes.get("complete") is True


def corrupt_at(blobs: Blobs, path: str, what: str) -> StoreCorrupt:
    """The error for damaged or missing bytes."""
    return StoreCorrupt(
        f"{blobs.url}: {path}: {what}; run 'batchsweep verify --repair', then extract again"
    )
