"""What the formats need of a place where bytes lie: named byte strings, written whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
R = TypeVar("R")

#: Where what is no array lies, since this version of the format.
DOCUMENTS = "documents/"
DOCUMENTS_SINCE = 3


class Blobs(Protocol):
    """What the formats need of a place. Paths are relative, with ``/``."""

    url: str
    #: Begins the paths of leases, temporary files and documents: ``DOCUMENTS``, or nothing in a
    #: store of an older version.
    documents: str

    def read(self, path: str) -> bytes | None:
        """All bytes, or None if there is no such blob."""

    def read_range(self, path: str, start: int, length: int) -> bytes | None:
        """``length`` bytes from ``start`` (fewer at the end), or None if there is no such blob."""

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """As ``read_range``, of several (start, length) at once."""

    def pieces(
        self, path: str, start: int, length: int, piece: int, space: memoryview[int], tail: int = 0
    ) -> Iterator[memoryview[int]]:
        """The ``length`` bytes from ``start`` in pieces, then the ``tail`` bytes after them.

        Each piece has ``piece`` bytes (the last one the rest); where bytes are missing, there are
        no more. A piece may lie in ``space``: at its place if the space has ``length`` bytes,
        otherwise at the beginning, in place of the piece before.
        """

    def write(self, path: str, parts: Iterable[Buffer]) -> None:
        """Replace the blob by the joined parts, durably and at once."""

    def delete(self, path: str) -> None:
        """Remove the blob if it is there."""

    def delete_tree(self, prefix: str) -> None:
        """Remove every blob below ``prefix/``."""

    def files(self, prefix: str) -> dict[str, int]:
        """Name and size of each blob directly below ``prefix/``."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below ``prefix/``, sorted."""

    def walk(self, prefix: str) -> list[str]:
        """Paths of all blobs below ``prefix/``, sorted."""

    def stamps(self, prefix: str) -> dict[str, str]:
        """Path -> stamp of all blobs below ``prefix/``; a blob with other bytes has another one."""

    def clean(self, prefix: str) -> None:
        """Remove what killed writers left of blobs below ``prefix/``; only its one writer may."""

    def clean_abandoned(self) -> None:
        """Remove what killed writers left, of any blob, an hour ago or more."""

    def lease(self, name: str) -> AbstractContextManager[None]:
        """Be the only one that holds ``name``, or TryAgain naming the holder."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``function`` of each item, several at a time, in order."""


def map_in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """``function`` of each item, so many at a time, in order."""
    work = list(items)
    if len(work) < 2:
        return [function(item) for item in work]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, work))
