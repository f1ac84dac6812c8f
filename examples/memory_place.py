"""A place of a store that is this process's memory: what `docs/extend/store-backend.md` asks for.

python examples/memory_place.py
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from batchsweep.errors import TryAgain
from batchsweep.store import GroupSpec, Store
from batchsweep.store.places.blobs import DOCUMENTS, Blobs
from batchsweep.store.places.pieces import pieces_of
from batchsweep.store.zarr.format import ZarrFormat

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
R = TypeVar("R")


class MemoryBlobs:
    """Bytes by path. A blob is replaced by one assignment, so that nobody sees half of it."""

    documents = DOCUMENTS

    def __init__(self, name: str) -> None:
        self.url = f"memory://{name}"
        self._blobs: dict[str, bytes] = {}
        self._held: set[str] = set()

    def read(self, path: str) -> bytes | None:
        return self._blobs.get(path)

    def read_range(self, path: str, start: int, length: int) -> bytes | None:
        blob = self._blobs.get(path)
        return None if blob is None else blob[start : start + length]

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        blob = self._blobs.get(path)
        return None if blob is None else [blob[s : s + length] for s, length in ranges]

    def pieces(
        self, path: str, start: int, length: int, piece: int, space: memoryview[int], tail: int = 0
    ) -> Iterator[memoryview[int]]:
        yield from pieces_of(
            self.read_range(path, start, length + tail) or b"", length, piece, tail
        )

    def write(self, path: str, parts: Iterable[Buffer]) -> None:
        self._blobs[path] = b"".join(bytes(part) for part in parts)

    def delete(self, path: str) -> None:
        self._blobs.pop(path, None)

    def delete_tree(self, prefix: str) -> None:
        for path in self.walk(prefix):
            self.delete(path)

    def files(self, prefix: str) -> dict[str, int]:
        return {n: len(self._blobs[p]) for n, p in self._below(prefix) if "/" not in n}

    def folders(self, prefix: str) -> list[str]:
        return sorted({n.split("/")[0] for n, _ in self._below(prefix) if "/" in n})

    def walk(self, prefix: str) -> list[str]:
        return sorted(path for _, path in self._below(prefix))

    def stamps(self, prefix: str) -> dict[str, str]:
        found = {path: self._blobs[path] for path in self.walk(prefix)}
        return {path: hashlib.sha256(blob).hexdigest() for path, blob in found.items()}

    def clean(self, prefix: str) -> None:
        """Nothing to do: a write that doesn't end leaves nothing."""

    def clean_abandoned(self) -> None:
        """Nothing to do, as in :meth:`clean`."""

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[None]:
        if name in self._held:
            raise TryAgain(f"{self.url}: {name} is being written; try again when it is done")
        self._held.add(name)
        try:
            yield
        finally:
            self._held.remove(name)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return [function(item) for item in items]

    def _below(self, prefix: str) -> list[tuple[str, str]]:
        """(name below the prefix, path) of each blob below it."""
        start = f"{prefix}/" if prefix else ""
        return [(p.removeprefix(start), p) for p in self._blobs if p.startswith(start)]


def memory_store(name: str) -> Store:
    """An empty store in memory; in the package, `open_blobs` would choose the place by its URL."""
    place: Blobs = MemoryBlobs(name)
    made = ZarrFormat(place)
    made.create()
    return Store(made)


def main() -> None:
    """Write a group of random vectors, read one row of one layer back."""
    store = memory_store("example")
    spec = GroupSpec(layers=(1, 2), poolings=("mean",), texts=10, hidden=4, block_texts=5)
    vectors = np.random.default_rng(0).standard_normal((2, 10, 4), dtype=np.float32)
    with store.writer("mine/main", spec) as writer:
        for block in range(spec.blocks):
            writer.write_block(block, {"mean": vectors[:, spec.block_rows(block)]})
        writer.finish()
    print(store.status())
    print(store.reader("mine/main").read("mean", 2, [7]))


if __name__ == "__main__":
    main()
