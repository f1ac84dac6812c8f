"""Named byte strings at a URL (``s3://``, ``gs://``, ``az://`` ...), through obstore.

Credentials and endpoints come from the environment, as for the providers' own tools
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS`` ...).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from batchsweep.errors import StoreError, TryAgain, first_line, shortened
from batchsweep.store.places.blobs import DOCUMENTS, R, T, map_in_threads
from batchsweep.store.places.local import busy, holder
from batchsweep.store.places.pieces import pieces_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

logger = logging.getLogger(__name__)

#: Seconds after its last renewal that a lease may be taken over, and between renewals.
LEASE_SECONDS = 120.0
RENEW_SECONDS = 30.0

# Leases that this process holds: one of ours that isn't here belongs to a process before us that
# had our host name and process id (a restarted container).
_held: set[str] = set()


class ObjectBlobs:
    """Objects below one prefix. A put is whole and durable by itself."""

    #: Requests wait for the network, not for a core.
    threads = 32
    documents = DOCUMENTS

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        retries: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
        try:
            self._store: Any = from_url(self.url, retry_config=retries)
        except (BaseError, ValueError) as error:
            raise StoreError(
                f"{url}: can't be opened ({_said(error)}); "
                "valid: a directory, s3://, gs:// or az://"
            ) from None

    def read(self, path: str) -> bytes | None:
        with self._errors(path), contextlib.suppress(NotFoundError, FileNotFoundError):
            return bytes(obstore.get(self._store, path).bytes())
        return None

    def read_range(self, path: str, start: int, length: int) -> bytes | None:
        with self._errors(path), contextlib.suppress(NotFoundError, FileNotFoundError):
            return bytes(obstore.get_range(self._store, path, start=start, length=length))
        return None

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        starts, lengths = zip(*ranges, strict=True)
        with self._errors(path), contextlib.suppress(NotFoundError, FileNotFoundError):
            found = obstore.get_ranges(self._store, path, starts=starts, lengths=lengths)
            return [bytes(part) for part in found]
        return None

    def pieces(
        self, path: str, start: int, length: int, piece: int, space: memoryview[int], tail: int = 0
    ) -> Iterator[memoryview[int]]:
        yield from pieces_of(
            self.read_range(path, start, length + tail) or b"", length, piece, tail
        )

    def write(self, path: str, parts: Iterable[Buffer]) -> None:
        with self._errors(path):
            # A sequence is put in one request; obstore goes over to parts where it is large.
            obstore.put(self._store, path, b"".join(bytes(part) for part in parts))

    def delete(self, path: str) -> None:
        with self._errors(path), contextlib.suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, path)

    def delete_tree(self, prefix: str) -> None:
        if paths := self.walk(prefix):
            with self._errors(prefix):
                obstore.delete(self._store, paths)

    def files(self, prefix: str) -> dict[str, int]:
        with self._errors(prefix):
            found = obstore.list_with_delimiter(self._store, prefix or None)
        return {o["path"].rsplit("/", 1)[-1]: o["size"] for o in found["objects"]}

    def folders(self, prefix: str) -> list[str]:
        with self._errors(prefix):
            found = obstore.list_with_delimiter(self._store, prefix or None)
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in found["common_prefixes"])

    def walk(self, prefix: str) -> list[str]:
        with self._errors(prefix):
            pages = obstore.list(self._store, prefix or None)
            return sorted(entry["path"] for page in pages for entry in page)

    def stamps(self, prefix: str) -> dict[str, str]:
        with self._errors(prefix):
            pages = obstore.list(self._store, prefix or None)
            return {o["path"]: f"{o['size']}-{_stamp(o)}" for page in pages for o in page}

    def clean(self, prefix: str) -> None:
        """Nothing to do: a put that doesn't end leaves nothing that a listing shows."""

    def clean_abandoned(self) -> None:
        """Nothing to do, likewise."""

    @contextmanager
    def lease(self, name: str) -> Iterator[None]:
        # A conditional put makes or takes the lease; the holder renews it until it is done. Should
        # two ever write one group (a holder asleep for minutes), they write the same bytes.
        path = f"{self.documents}leases/{name.replace('/', '+')}.json"
        with self._errors(path):
            tag = self._take(path, name)
        _held.add(f"{self.url}/{path}")
        done = threading.Event()
        renewals = threading.Thread(target=self._renew, args=(path, tag, done), daemon=True)
        renewals.start()
        try:
            yield
        finally:
            done.set()
            renewals.join()
            _held.discard(f"{self.url}/{path}")
            self.delete(path)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return map_in_threads(function, items, self.threads)

    def _take(self, path: str, name: str) -> Any:
        body = _lease_body()
        try:
            return obstore.put(self._store, path, body, mode="create")
        except AlreadyExistsError:
            pass
        try:
            there = obstore.get(self._store, path)
        except (NotFoundError, FileNotFoundError):
            raise TryAgain(f"{self.url}: {busy(name, '')}") from None
        said = bytes(there.bytes())
        age = (datetime.now(UTC) - there.meta["last_modified"]).total_seconds()
        if age < LEASE_SECONDS and not _is_dead(f"{self.url}/{path}", said):
            raise TryAgain(f"{self.url}: {busy(name, said)}")
        try:
            return obstore.put(self._store, path, body, mode=_if_same(there.meta))
        except PreconditionError:
            raise TryAgain(f"{self.url}: {busy(name, '')}") from None

    def _renew(self, path: str, tag: Any, done: threading.Event) -> None:
        while not done.wait(RENEW_SECONDS):
            try:
                tag = obstore.put(self._store, path, _lease_body(), mode=_if_same(tag))
            except PreconditionError:
                logger.warning("%s: %s was taken over by another process", self.url, path)
                return
            except BaseError as error:
                logger.warning("%s: can't renew %s: %s", self.url, path, _said(error))

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError):
            raise
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise StoreError(
                f"{self.url}: no permission for {path} ({_said(error)}); "
                "check the credentials in the environment"
            ) from None
        except BaseError as error:
            raise TryAgain(f"{self.url}: {path}: {_said(error)}; try again") from None


def _stamp(entry: Any) -> str:
    """What an object store says of an object's content; of one without ETags, when it was put."""
    return str(entry.get("e_tag") or entry["last_modified"])


def _lease_body() -> bytes:
    return json.dumps({**json.loads(holder()), "id": uuid.uuid4().hex}).encode()


def _if_same(tag: Any) -> Any:
    return {name: tag[name] for name in ("e_tag", "version") if tag.get(name)}


def _is_dead(name: str, said: bytes) -> bool:
    """Whether the holder is certainly gone, since it was on this host."""
    try:
        who = json.loads(said)
        host, pid = who["host"], int(who["pid"])
    except (ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return False
    if pid == os.getpid():
        return name not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # It is somebody else's.
    return False


def _said(error: BaseException) -> str:
    return shortened(first_line(error), 200)
