"""Open or create a store, whatever its format and place."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from batchsweep.config import local_path
from batchsweep.errors import NoStore, StoreCorrupt, StoreError, TryAgain
from batchsweep.store import documents
from batchsweep.store.corpus import Corpus, CorpusWriter
from batchsweep.store.format import Format, spec_of
from batchsweep.store.group_reader import GroupReader
from batchsweep.store.group_writer import GroupWriter
from batchsweep.store.places.blobs import DOCUMENTS, DOCUMENTS_SINCE, Blobs
from batchsweep.store.places.local import LocalBlobs
from batchsweep.store.spec import GroupSpec
from batchsweep.store.validation import check_version, is_key
from batchsweep.store.zarr import v3
from batchsweep.store.zarr.format import ZarrFormat

T = TypeVar("T")
R = TypeVar("R")

FORMATS = ("zarr", "hdf5")

#: Folders beside documents that hold something else; arrays, in a store of an older version.
_NOT_DOCUMENTS = ("checkpoints", "corpus", "metrics", "tmp", "leases", "kept")


@dataclass(frozen=True)
class GroupStatus:
    """How far one checkpoint is."""

    key: str
    blocks: int
    sealed: int
    complete: bool


class Store:
    """A store: JSON documents, the corpus, and one group per checkpoint key.

    Get one from :func:`create_store` or :func:`open_store`.
    """

    def __init__(self, fmt: Format) -> None:
        #: For this package only.
        self.backend = fmt
        self._blobs = fmt.blobs

    @property
    def url(self) -> str:
        """The folder, or the URL."""
        return self._blobs.url

    @property
    def format(self) -> str:
        """``zarr`` or ``hdf5``."""
        return self.backend.name

    # Documents

    def read_json(self, path: str) -> Any | None:
        """The document at a path such as ``plan.json``; None if there is none.

        Raises:
            StoreCorrupt: it isn't JSON.
        """
        stored = self.read_bytes(path)
        if stored is None:
            return None
        try:
            value = documents.decode_checked(stored)
            if value is None:
                raise ValueError("null")
        except ValueError as error:
            raise StoreCorrupt(
                f"{self.url}: {self._place(path)} is torn or changed ({error}); "
                "run 'batchsweep verify --repair', then the command that makes it"
            ) from None
        return value

    def read_jsons(self, paths: Iterable[str]) -> list[Any | None]:
        """:meth:`read_json` of each path, several at a time, in their order."""
        return self.map(self.read_json, paths)

    def write_json(self, path: str, value: Any) -> None:
        """Replace a document at once; when this returns, it is on the disk.

        An object gets one more member in the file, ``crc32c``, which :meth:`read_json` verifies
        and leaves out.
        """
        self.write_bytes(path, documents.encode_checked(value))

    def read_bytes(self, path: str) -> bytes | None:
        """What lies beside the documents, such as a table; None if there is nothing."""
        return self._blobs.read(self._place(path))

    def write_bytes(self, path: str, content: bytes | bytearray) -> None:
        """Replace it at once."""
        self._blobs.write(self._place(path), [content])

    def names(self, folder: str) -> set[str]:
        """Names of what lies directly in a folder beside the documents."""
        return set(self._blobs.files(self._place(folder)))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``function`` of each item, as many at a time as the place can take, in their order."""
        return self._blobs.map(function, items)

    def stamps(self, prefix: str) -> dict[str, str]:
        """Path -> stamp of all documents below ``prefix/``.

        As long as a document's stamp is the same, so are its bytes: on a disk it is size, times of
        change and inode, on an object store the ETag.
        """
        found = self._blobs.stamps(self._place(prefix.rstrip("/")))
        stamps = {self._of_place(place): stamp for place, stamp in found.items()}
        return {path: stamp for path, stamp in stamps.items() if path.endswith(".json")}

    def delete_json(self, path: str) -> None:
        """Remove a document if it is there."""
        self._blobs.delete(self._place(path))

    def list_json(self, prefix: str) -> list[str]:
        """Paths of all documents below ``prefix/``, sorted."""
        places = self._blobs.walk(self._place(prefix.rstrip("/")))
        return [self._of_place(place) for place in places if place.endswith(".json")]

    @contextmanager
    def lease(self, path: str) -> Iterator[None]:
        """Be the only process that works on ``path`` while the block runs.

        Raises:
            TryAgain: another process does; names it.
        """
        with self._blobs.lease(path):
            yield

    def documents(self) -> list[str]:
        """Paths of all JSON documents, sorted."""
        top = self._place("").rstrip("/")
        folders = [f for f in self._blobs.folders(top) if f not in _NOT_DOCUMENTS]
        own = sorted(n for n in self._blobs.files(top) if n.endswith(".json") and n != "zarr.json")
        return own + [path for folder in folders for path in self.list_json(folder)]

    def _place(self, path: str) -> str:
        """Where a document lies in the store."""
        return posixpath.join(self._blobs.documents, path)

    def _of_place(self, place: str) -> str:
        return place.removeprefix(self._blobs.documents)

    # Corpus

    def corpus(self) -> Corpus | None:
        """The corpus; None if none was written to completion."""
        source = self.backend.corpus_source()
        return None if source is None else Corpus(source, where=f"{self.url}: corpus")

    def require_corpus(self) -> Corpus:
        """The corpus.

        Raises:
            StoreError: there is none.
        """
        corpus = self.corpus()
        if corpus is None:
            raise StoreError(f"{self.url}: no corpus; run 'batchsweep prepare'")
        return corpus

    def awaited_corpus(self) -> Corpus:
        """The corpus, for a process that comes again where ``prepare`` hasn't ended.

        Raises:
            TryAgain: there is none yet.
        """
        corpus = self.corpus()
        if corpus is None:
            raise TryAgain(f"{self.url}: no corpus yet; run 'batchsweep prepare' first")
        return corpus

    @contextmanager
    def corpus_writer(self) -> Iterator[CorpusWriter]:
        """Write the corpus anew, as the only process that does.

        Raises:
            TryAgain: another process writes it.
        """
        with self._blobs.lease("corpus"), CorpusWriter(self.backend.corpus_sink()) as writer:
            yield writer

    # Groups

    def writer(self, key: str, spec: GroupSpec) -> GroupWriter:
        """A writer of one checkpoint's group, to be used as a context manager."""
        _check_key(key)
        self.backend.check_writable()
        return GroupWriter(self.backend, key, spec)

    def reader(self, key: str) -> GroupReader:
        """A reader of one checkpoint's group.

        Raises:
            StoreError: there is no such group.
        """
        _check_key(key)
        return GroupReader(self.backend, key)

    def __contains__(self, key: str) -> bool:
        """Whether the checkpoint has a group; one that a kill left half made is none."""
        _check_key(key)
        return self.backend.attributes(key) is not None

    def keys(self) -> list[str]:
        """Keys of all checkpoints that have a group, sorted.

        A damaged group is one; one that a kill left half made is none.
        """

        def is_there(key: str) -> bool:
            try:
                return key in self
            except StoreError:
                return True

        keys = self.backend.keys()
        return [key for key, there in zip(keys, self.map(is_there, keys), strict=True) if there]

    def status(self) -> list[GroupStatus]:
        """Blocks sealed of each checkpoint; reads no embeddings and verifies nothing."""

        def one(key: str) -> GroupStatus | None:
            there = spec_of(self.backend, key)
            if there is None:
                return None
            spec, complete = there
            sealed = spec.blocks if complete else self.backend.count_sealed(key, spec)
            return GroupStatus(key, spec.blocks, sealed, complete)

        return [s for s in self._blobs.map(one, self.backend.keys()) if s is not None]


def create_store(url: str | Path, *, format: str = "zarr") -> Store:
    """Make an empty store, or open the one that is there.

    Args:
        url: a directory, or a URL such as ``s3://bucket/path``.
        format: ``zarr``, or ``hdf5`` (local directories only).

    Raises:
        StoreError: unknown format, a store of the other format is there, or no permission.
    """
    if format not in FORMATS:
        raise StoreError(f"store.format '{format}' isn't known; valid: {', '.join(FORMATS)}")
    blobs = open_blobs(str(url))
    there = _detect(blobs)
    if there is None:
        blobs.documents = DOCUMENTS
        there = _format(blobs, format)
        there.create()
    elif there.name != format:
        raise StoreError(
            f"{blobs.url} is a store of format {there.name}, not {format}; "
            f"set store.format: {there.name}, use another store.path, or 'batchsweep convert'"
        )
    return _checked(there)


def open_store(url: str | Path, *, repair_root: bool = False, format: str = "zarr") -> Store:
    """Open a store that is there; the format is detected.

    Args:
        url: a directory or URL.
        repair_root: write the root document (or HDF5's master file) again if it is damaged, or
            missing while checkpoints or a corpus are there.
        format: of a root that is written again where nothing else shows which it was.

    Raises:
        NoStore: there is none.
        StoreError: a newer batchsweep made it.
        StoreCorrupt: the root is damaged.
    """
    blobs = open_blobs(str(url))
    there = _detect(blobs)
    if repair_root:
        if there is None and (blobs.folders("checkpoints") or blobs.folders("corpus")):
            there = _format(blobs, "hdf5" if _has_hdf5(blobs) else format)
        if there is not None and _is_damaged(there):
            there.create()
    if there is None:
        raise NoStore(f"{blobs.url}: no store there; 'batchsweep prepare' makes one")
    return _checked(there)


def open_blobs(url: str) -> Blobs:
    """The place that a path or URL names."""
    path = local_path(url)
    if path is not None:
        return LocalBlobs(path)
    from batchsweep.store.places.objects import ObjectBlobs

    return ObjectBlobs(url)


def _format(blobs: Blobs, name: str) -> Format:
    if name == "zarr":
        return ZarrFormat(blobs)
    from batchsweep.store.hdf5.format import Hdf5Format

    return Hdf5Format(blobs)


def _detect(blobs: Blobs) -> Format | None:
    root = blobs.read("zarr.json")
    blobs.documents = DOCUMENTS if _has_documents(blobs, root) else ""
    if not isinstance(blobs, LocalBlobs):
        return None if root is None else ZarrFormat(blobs)
    shown = "sweep.h5" in blobs.files("")
    if root is not None:
        return _format(blobs, "hdf5" if shown or b'"hdf5"' in root else "zarr")
    if shown:
        from batchsweep.store.hdf5 import version1

        return version1.of(blobs)
    return None


def _has_documents(blobs: Blobs, root: bytes | None) -> bool:
    """Whether documents have a folder of their own: up to version 2, they lay beside the arrays."""
    try:
        version = v3.attributes_of(root or b"").get("batchsweep_format")
    except ValueError:
        version = None
    if type(version) is int and version > 0:
        return version >= DOCUMENTS_SINCE
    # Until the root is repaired, what is there shows which it was.
    return DOCUMENTS.rstrip("/") in blobs.folders("")


def _has_hdf5(blobs: Blobs) -> bool:
    return isinstance(blobs, LocalBlobs) and (
        "corpus.h5" in blobs.files("corpus")
        or any(
            "checkpoint.h5" in blobs.files(f"checkpoints/{model}/{revision}")
            for model in blobs.folders("checkpoints")
            for revision in blobs.folders(f"checkpoints/{model}")
        )
    )


def _is_damaged(fmt: Format) -> bool:
    try:
        version = fmt.version()
    except StoreCorrupt:
        return True
    return type(version) is not int or version < 1


def _checked(fmt: Format) -> Store:
    version = fmt.version()
    if version is None:
        raise StoreError(f"{fmt.blobs.url}: there is a {fmt.name} group, but no batchsweep store")
    check_version(version, fmt.newest, where=fmt.blobs.url, what="format version")
    return Store(fmt)


def _check_key(key: str) -> None:
    if not is_key(key):
        raise StoreError(f"{key!r} isn't a checkpoint key; it is like EleutherAI--pythia-14m/main")
