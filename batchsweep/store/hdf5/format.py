"""Groups as HDF5: Zarr's tree, in which each shard is an HDF5 file, and files that join them.

A file for each checkpoint shows its arrays, joined from their shards by virtual data sets, and
``sweep.h5`` shows all of them. These files are made anew from what they show, in memory, and
replaced whole; nothing is read from them. So what holds of a Zarr store holds of this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.store.format import corrupt_at
from batchsweep.store.hdf5 import files
from batchsweep.store.hdf5.corpus import PATH as CORPUS
from batchsweep.store.hdf5.corpus import Hdf5Sink, Hdf5Source
from batchsweep.store.places.blobs import Blobs
from batchsweep.store.places.local import LocalBlobs
from batchsweep.store.spec import GroupSpec
from batchsweep.store.zarr.corpus import read_attributes
from batchsweep.store.zarr.format import ZarrFormat

#: The file that shows the whole store.
ROOT = "sweep.h5"
#: In a group's folder, the file that shows the group.
GROUP = "checkpoint.h5"
#: Bytes of a shard that are in memory while it gets a new head.
_COPIED = 8 << 20


class Hdf5Format(ZarrFormat):
    """See FORMAT.md, "HDF5"."""

    name = "hdf5"
    last_without_documents = 2
    root_attributes: ClassVar[dict[str, Any]] = {"hdf5": True}
    lead = files.LEAD

    def __init__(self, blobs: Blobs) -> None:
        if not isinstance(blobs, LocalBlobs):
            raise StoreError(
                f"{blobs.url}: HDF5 needs a local directory; set store.format: zarr for URLs"
            )
        super().__init__(blobs)
        self._local = blobs

    def create(self) -> None:
        self._write_root()
        # Last: with it, there is a store.
        super().create()

    def version(self) -> object:
        version = super().version()
        stored = self.blobs.read(ROOT)
        if stored is None or not files.has_tail(stored):
            raise corrupt_at(self.blobs, ROOT, "missing" if stored is None else "torn or changed")
        return version

    def start_group(self, key: str, spec: GroupSpec) -> None:
        if spec.compression != "none":
            raise StoreError(
                f"{self.blobs.url}: store.compression '{spec.compression}' isn't there with hdf5; "
                "valid: none (or store.format: zarr)"
            )
        super().start_group(key, spec)
        self._write_root()

    def write_attributes(
        self, key: str, attributes: dict[str, Any], members: dict[str, bytes] | None = None
    ) -> None:
        spec = GroupSpec.from_json(attributes, source=self.folder(key))
        # What shows the group is there before it, and never shows less than there is.
        metrics = self.metrics(key, spec) if attributes["complete"] else {}
        self._write(_shown(key), files.checkpoint(attributes, metrics))
        super().write_attributes(key, attributes, members)

    def mark(self, key: str, spec: GroupSpec, *, complete: bool) -> None:
        super().mark(key, spec, complete=complete)
        if complete and not self._is_linked(key):
            # A kill between making the group and linking it.
            self._write_root()

    def drop_group(self, key: str) -> None:
        super().drop_group(key)
        self._write_root()

    def head(self, spec: GroupSpec, name: str) -> bytes:
        return files.head(spec, name)

    def metadata_faults(self, key: str, spec: GroupSpec) -> list[str]:
        faults = super().metadata_faults(key, spec)
        attributes = self.attributes(key) or {}
        complete = attributes.get("complete") is True
        try:
            stored = self.blobs.read(_shown(key)) or b""
        except StoreCorrupt:
            # No file of the store's own: it is replaced as a damaged one is.
            stored = b""
        # A kill may leave one that shows the group complete a moment before it is.
        sound = files.has_tail(stored)
        if complete:
            sound = files.shows_checkpoint(stored, attributes, self.metrics(key, spec))
        if not sound:
            faults.append(f"{_shown(key)} is missing, torn or changed")
        if complete and not self._is_linked(key):
            faults.append(f"{ROOT} has no link to {_shown(key)}")
        broken = self._broken_heads(key, spec)
        return faults + [f"{path}: the head of its HDF5 file is changed" for path, _ in broken]

    def restore_metadata(self, key: str, spec: GroupSpec) -> None:
        super().restore_metadata(key, spec)
        for path, name in self._broken_heads(key, spec):
            self.blobs.write(path, chain([files.head(spec, name)], self._after_head(path)))

    def corpus_sink(self) -> Hdf5Sink:
        return Hdf5Sink(self.blobs)

    def corpus_source(self) -> Hdf5Source | None:
        attributes = read_attributes(self.blobs)
        return None if attributes is None else Hdf5Source(self.blobs, attributes)

    def _write_root(self) -> None:
        # Made anew from what is there, one process at a time, so that none forgets another's link.
        with self._local.lease(ROOT, wait=True):
            links = {f"checkpoints/{key}": _shown(key) for key in self.keys()}
            stored = files.root(self.written, {"corpus": CORPUS, **links})
            self._write(ROOT, stored)

    def _is_linked(self, key: str) -> bool:
        return files.has_link(self.blobs.read(ROOT) or b"", _shown(key))

    def _broken_heads(self, key: str, spec: GroupSpec) -> list[tuple[str, str]]:
        """Path and array of each shard that the HDF5 library may not read."""
        shards = [
            (f"{self.folder(key)}/{name}/{file}", name)
            for name in spec.arrays
            for file in sorted(self.blobs.files(f"{self.folder(key)}/{name}"))
            if file.startswith("c.")
        ]

        def is_broken(shard: tuple[str, str]) -> bool:
            try:
                head = self.blobs.read_range(shard[0], 0, self.lead) or b""
            except StoreCorrupt:
                # What can't be read at all is the block's fault.
                return False
            return not files.is_whole_head(head)

        broken = self.blobs.map(is_broken, shards)
        return [shard for shard, it_is in zip(shards, broken, strict=True) if it_is]

    def _after_head(self, path: str) -> Iterator[bytes]:
        at = self.lead
        while part := self.blobs.read_range(path, at, _COPIED):
            yield part
            at += len(part)


def _shown(key: str) -> str:
    """The file that shows a group."""
    return f"checkpoints/{key}/{GROUP}"
