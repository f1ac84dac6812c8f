"""Named byte strings, written whole: the layer below the formats, for local disks.

``objects.py`` has the same for URLs. A reader sees a blob's old bytes, its new bytes, or none; it
never sees half of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from batchsweep.errors import StoreCorrupt, StoreError, StoreFull, TryAgain
from batchsweep.store.places.blobs import DOCUMENTS, R, T, map_in_threads

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Temporary files older than this many seconds belong to nobody.
ABANDONED_AFTER = 3600.0
# Of a blob that is read whole: a document, a chunk of the corpus, a coordinate.
_MAX_BYTES = 1 << 30
# What flock answers where there is none: NFS without its lock service, Lustre and FUSE as mounted.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalBlobs:
    """Files below one directory.

    A write goes to ``tmp/``, is synced to disk, and renamed into place. So a kill at any moment
    leaves no half file under a real name, and a seal that is written after its block is on the
    disk after it, power loss included.
    """

    #: Some wait for the disk while others copy and check.
    threads = 4
    documents = DOCUMENTS

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        # Folders of which it is known that no link leads out of the store.
        self._inside: set[Path] = set()

    def place(self, path: str) -> Path:
        """Where a blob lies on the disk.

        Raises:
            StoreCorrupt: that is outside the store, by a link or by ``..``, or can't be a name.
        """
        if not path.isprintable():
            raise StoreCorrupt(f"{self.url}: {path!r} can't be a name in a store")
        place = self.root / path
        folder = place if place.name == ".." else place.parent
        if folder not in self._inside:
            self._check_inside(folder, path)
            self._inside.add(folder)
        return place

    def _check_inside(self, place: Path, path: str) -> None:
        if not place.resolve().is_relative_to(self.root.resolve()):
            raise StoreCorrupt(
                f"{self.url}: {path} lies outside the store; a store has no links to elsewhere: "
                "copy it with what they point to (cp -rL)"
            )

    def _folder(self, prefix: str) -> Path:
        return self.place(f"{prefix}/x").parent if prefix else self.root

    def _open(self, path: str) -> io.FileIO:
        """A regular file, for reading; whatever else has its name would be waited for, or worse."""
        place = self.place(path)
        if place.is_symlink():
            self._check_inside(place, path)
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreCorrupt(f"{self.url}: {path} is no regular file; remove it, then try again")
        return io.FileIO(descriptor)

    def read(self, path: str) -> bytes | None:
        try:
            with self._open(path) as file:
                if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                    raise StoreCorrupt(
                        f"{self.url}: {path} is larger than anything that is read whole "
                        f"({_MAX_BYTES >> 20} MiB); run 'batchsweep verify --repair'"
                    )
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise store_error(error, self.url, path) from None

    def read_range(self, path: str, start: int, length: int) -> bytes | None:
        stored = self.read_ranges(path, [(start, length)])
        return None if stored is None else stored[0]

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        try:
            with self._open(path) as file:
                if len(ranges) > 1 and hasattr(os, "posix_fadvise"):
                    # Else the kernel would read on after each.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                return [os.pread(file.fileno(), length, start) for start, length in ranges]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise store_error(error, self.url, path) from None

    def pieces(
        self, path: str, start: int, length: int, piece: int, space: memoryview[int], tail: int = 0
    ) -> Iterator[memoryview[int]]:
        try:
            file = self._open(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise store_error(error, self.url, path) from None
        lengths = [min(piece, length - at) for at in range(0, length, piece)]
        position = start
        with file:
            # The disk fetches what follows while a piece is copied and looked at.
            _prefetch(file.fileno(), start, length + tail)
            for size in [*lengths, *([tail] if tail else [])]:
                at = position - start
                if at == length:
                    part = memoryview(bytearray(tail))
                else:
                    part = space[at : at + size] if len(space) >= length else space[:size]
                done = 0
                while done < size:
                    try:
                        read = os.preadv(file.fileno(), [part[done:]], position + done)
                    except OSError as error:
                        raise store_error(error, self.url, path) from None
                    if read == 0:
                        return
                    done += read
                position += size
                yield part

    def write(self, path: str, parts: Iterable[Buffer]) -> None:
        with self.replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    view = view[file.write(view) :]

    @contextmanager
    def replacing(self, path: str) -> Iterator[Path]:
        """Yield a temporary file name; what is there at the end replaces ``path``, durably."""
        temporary = self.temporary(path)
        try:
            yield temporary
            self.into_place(temporary, path)
        except OSError as error:
            raise store_error(error, self.url, path) from None
        finally:
            with contextlib.suppress(OSError):  # A disk that is read-only removes nothing either.
                temporary.unlink(missing_ok=True)

    def temporary(self, path: str) -> Path:
        """A new temporary file name for what will be ``path``."""
        folder = self._folder(self._temporary)
        try:
            self._make_folder(folder)
        except OSError as error:
            raise store_error(error, self.url, path) from None
        return folder / f"{_flat_name(path)}.{uuid.uuid4().hex[:12]}"

    def into_place(self, temporary: Path, path: str) -> None:
        """Sync a temporary file and give it its real name."""
        target = self.place(path)
        self._make_folder(target.parent)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)

    def delete(self, path: str) -> None:
        try:
            self.place(path).unlink(missing_ok=True)
        except OSError as error:
            raise store_error(error, self.url, path) from None

    def delete_tree(self, prefix: str) -> None:
        try:
            shutil.rmtree(self.place(prefix))
        except FileNotFoundError:
            return
        except OSError as error:
            raise store_error(error, self.url, prefix) from None

    def files(self, prefix: str) -> dict[str, int]:
        try:
            with os.scandir(self._folder(prefix)) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def folders(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self._folder(prefix)) as entries:
                return sorted(e.name for e in entries if e.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, prefix: str) -> list[str]:
        top = self._folder(prefix)
        return sorted(p.relative_to(self.root).as_posix() for p in top.rglob("*") if p.is_file())

    def stamps(self, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        folders = [prefix]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._folder(folder)) as listed:
                    entries = list(listed)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise store_error(error, self.url, folder) from None
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                    continue
                with contextlib.suppress(FileNotFoundError):  # Removed just now.
                    s = entry.stat()
                    if stat.S_ISREG(s.st_mode):
                        # The time of change of the inode can't be set, and a rename moves it.
                        stamp = (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
                        found[path] = "-".join(f"{number:x}" for number in stamp)
        return found

    def clean(self, prefix: str) -> None:
        for name in self.files(self._temporary):
            if name.startswith(_flat_name(f"{prefix}/")):
                self.delete(f"{self._temporary}/{name}")

    def clean_abandoned(self) -> None:
        for name in self.files(self._temporary):
            path = self.root / self._temporary / name
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                    path.unlink()

    @contextmanager
    def lease(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """As every place's; with ``wait``, wait for the holder instead of raising TryAgain."""
        # The kernel releases a flock when its process ends, however it ends. The file stays, since
        # removing it would let two processes lock two files of one name.
        lock = f"{self.documents}leases/{_flat_name(name)}.lock"
        path = self.place(lock)
        try:
            self._make_folder(path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            file = io.FileIO(os.open(path, flags, 0o666), "a+")
        except OSError as error:
            raise store_error(error, self.url, lock) from None
        with file:
            try:
                take_lock(file, self.url, wait=wait)
            except BlockingIOError:
                file.seek(0)
                raise TryAgain(f"{self.url}: {busy(name, file.read())}") from None
            try:
                file.truncate(0)
                file.write(holder().encode())
            except OSError as error:
                raise store_error(error, self.url, lock) from None
            try:
                yield
            finally:
                file.truncate(0)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return map_in_threads(function, items, self.threads)

    @property
    def _temporary(self) -> str:
        return f"{self.documents}tmp"

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for child in reversed(missing):
            child.mkdir(exist_ok=True)
            _sync(child.parent)


def take_lock(file: IO[Any], where: str, *, wait: bool = False) -> None:
    """Be the only process that has this open file locked, until it is closed.

    Args:
        file: open for writing.
        where: the folder that it guards, for messages.
        wait: wait for the process that has it.

    Raises:
        BlockingIOError: another process has it.
        StoreError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise store_error(error, where, "a lock") from None
        raise StoreError(
            f"{where}: this file system has no locks (flock: {error.strerror}), so that two "
            "processes could write one thing: mount it with them (Lustre: -o flock, NFS: "
            "vers=4), or use a local disk or s3://, gs://, az://, which need none"
        ) from None


def holder() -> str:
    """This process, as a lease names it."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()})


def busy(name: str, text: str | bytes) -> str:
    """The message for a lease that another process holds."""
    try:
        who: dict[str, Any] = json.loads(text)
        said = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        said = "another process"
    return f"{name} is being written by {said}; try again when it is done"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _prefetch(descriptor: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):  # macOS has none.
        # This and no more: the kernel's own guess reads up to 8 MiB of what follows.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


def _flat_name(path: str) -> str:
    # One folder for all temporary files; names stay below the usual limit of 255 bytes.
    return path.replace("/", "+")[:180]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def store_error(error: OSError, url: str, path: str) -> StoreError:
    """The error for a failed file operation, with its remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(
            f"{url}: no space left for {path} ({error.strerror}); everything sealed is safe: "
            "free some space and run the same command again"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return StoreError(
            f"{url}: can't hold {path}, because there is a file in its way; use another store.path"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{url}: can't access {path}: {error.strerror}; make it writable for this user, or use "
            "another store.path"
        )
    return StoreError(f"{url}: can't access {path}: {error.strerror or error}")
