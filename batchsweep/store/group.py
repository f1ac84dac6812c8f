"""One checkpoint's embeddings: written in whole blocks, read one layer at a time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch
from batchsweep.store.format import Float64, Format, corrupt_at, spec_of
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, Float32, as_bytes, decode, encode, stored_dtype

#: Layers that are encoded ahead of the one being written.
_LOOKAHEAD = 2
_DIGEST_BYTES = 32


def seal_of(key: str, spec: GroupSpec, block: int, checksums: Iterable[bytes]) -> bytes:
    """The 64 bytes that seal a block: the spec's digest, then one of its chunks and its place."""
    return spec.digest + _content_digest(checksums, f"{key}#{block}")


def is_sealed_by(
    seal: bytes, key: str, spec: GroupSpec, block: int, checksums: Sequence[bytes]
) -> bool:
    """Whether a seal is that of these chunks at this place."""
    # Older versions sealed without the place.
    of_old = spec.digest + _content_digest(checksums, "")
    return seal in (seal_of(key, spec, block, checksums), of_old)


def _content_digest(checksums: Iterable[bytes], place: str) -> bytes:
    return hashlib.sha256(b"".join(checksums) + place.encode()).digest()


def sealed_blocks(fmt: Format, key: str, spec: GroupSpec) -> frozenset[int]:
    """Blocks whose seal is of this spec and whose bytes are there."""
    seals = fmt.seals(key, spec)
    of_this = {block for block, seal in seals.items() if seal[:_DIGEST_BYTES] == spec.digest}
    return frozenset(of_this - fmt.missing(key, spec))


class GroupWriter:
    """Writes one checkpoint's group; a context manager that holds the group's lease.

    Attributes:
        sealed: blocks that are done, from earlier runs too.
        complete: whether ``finish`` was reached, by an earlier run too.

    Raises:
        TryAgain: another process writes this group; names it.
        StoreMismatch: the group there was made from something else; names what differs.
    """

    def __init__(self, fmt: Format, key: str, spec: GroupSpec) -> None:
        self.key = key
        self.spec = spec
        self.sealed: frozenset[int] = frozenset()
        self.complete = False
        self._format = fmt
        self._stack = ExitStack()
        self._marks = Lock()

    def __enter__(self) -> Self:
        fmt, key, spec = self._format, self.key, self.spec
        with ExitStack() as stack:
            stack.enter_context(fmt.blobs.lease(fmt.folder(key)))
            fmt.blobs.clean(fmt.folder(key))
            there = spec_of(fmt, key)
            self.complete = there is not None and there[1]
            if there is None:
                fmt.start_group(key, spec)
            elif differences := there[0].differences(spec):
                raise StoreMismatch(
                    f"{fmt.blobs.url}: {fmt.folder(key)} was made from something else: "
                    f"{'; '.join(differences)}. Use another store.path, or delete that group"
                )
            self.sealed = sealed_blocks(fmt, key, spec)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def block_rows(self, block: int) -> slice:
        """The corpus rows of a block."""
        return self.spec.block_rows(block)

    def write_block(self, block: int, states: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Write a block whole, then seal it. Several threads may write one block each.

        Args:
            block: its number.
            states: for each pooling, [layer, text, hidden]: all layers, the block's rows.

        Raises:
            StoreError: wrong poolings or shape; a value that the dtype can't hold (names layer and
                row); no space left. Blocks that were sealed stay so.
        """
        fmt, key, spec = self._format, self.key, self.spec
        rows = spec.block_rows(block)
        shape = (len(spec.layers), rows.stop - rows.start, spec.hidden)
        if set(states) != set(spec.poolings):
            raise StoreError(
                f"{fmt.folder(key)}: block {block} has poolings {sorted(states)}, "
                f"the group has {sorted(spec.poolings)}"
            )
        for pooling, values in states.items():
            if values.shape != shape:
                raise StoreError(
                    f"{fmt.folder(key)}: block {block} of {pooling} is {values.shape}, "
                    f"must be {shape} (layer, text, hidden)"
                )
        arrays: dict[str, Iterable[Array]] = {}
        for pooling in spec.poolings:
            # The scales are there once the vectors that they belong to are written.
            scales: list[Array] = []
            arrays[pooling] = self._encoded(states[pooling], pooling, rows.start, scales)
            if spec.dtype == "int8":
                arrays[f"{pooling}_scale"] = scales
        self.write_stored(block, arrays)

    def write_stored(self, block: int, arrays: Mapping[str, Iterable[Array]]) -> None:
        """Write a block that is in its stored form already, then seal it.

        Args:
            block: its number.
            arrays: for each of ``spec.arrays``, its layers, [text, hidden] or [text] each.

        Raises:
            StoreError: no space left. Blocks that were sealed stay so.
        """
        fmt, key, spec = self._format, self.key, self.spec
        with self._marks:
            if self.complete:
                fmt.mark(key, spec, complete=False)
                self.complete = False
            if block in self.sealed:
                fmt.write_seal(key, spec, block, None)
                self.sealed -= {block}
        checksums = [fmt.write_array(key, spec, n, block, arrays[n]) for n in spec.arrays]
        fmt.write_seal(key, spec, block, seal_of(key, spec, block, checksums))
        with self._marks:
            self.sealed |= {block}

    def _encoded(
        self,
        states: npt.NDArray[np.floating],
        pooling: str,
        first_row: int,
        scales: list[Array],
    ) -> Iterator[Array]:
        """Each layer in its stored form, made a little ahead of the writing."""

        def one(position: int) -> tuple[Array, Array | None]:
            where = f"{self.key}: {pooling}, layer {self.spec.layers[position]}"
            return encode(states[position], self.spec.dtype, where=where, first_row=first_row)

        waiting: deque[Future[tuple[Array, Array | None]]] = deque()
        with ThreadPoolExecutor(_LOOKAHEAD) as pool:
            for position in range(len(states)):
                waiting.append(pool.submit(one, position))
                if len(waiting) > _LOOKAHEAD:
                    yield _taken(waiting, scales)
            while waiting:
                yield _taken(waiting, scales)

    def has_metrics(self) -> bool:
        """Whether label-free metrics are there, and sound."""
        try:
            return bool(self._format.metrics(self.key, self.spec))
        except StoreCorrupt:
            return False

    def write_metrics(self, metrics: Mapping[str, npt.ArrayLike]) -> None:
        """Write label-free metrics, one float64 per layer each, replacing all that were there.

        Comes before :meth:`finish`.

        Raises:
            StoreError: a metric isn't [layer].
        """
        arrays = {name: np.asarray(values, np.float64) for name, values in metrics.items()}
        for name, values in arrays.items():
            if values.shape != (len(self.spec.layers),):
                raise StoreError(
                    f"{self.key}: metric {name} is {values.shape}, "
                    f"must be [{len(self.spec.layers)}], one value a layer"
                )
        if self.complete:
            self._format.mark(self.key, self.spec, complete=False)
            self.complete = False
        self._format.write_metrics(self.key, self.spec, arrays)

    def finish(self) -> None:
        """Mark the group complete.

        Raises:
            StoreError: a block isn't sealed.
        """
        if missing := sorted(set(range(self.spec.blocks)) - self.sealed):
            raise StoreError(f"{self.key}: blocks {_listed(missing)} aren't sealed yet")
        self._format.mark(self.key, self.spec, complete=True)
        self.complete = True


def _taken(waiting: deque[Future[tuple[Array, Array | None]]], scales: list[Array]) -> Array:
    stored, scale = waiting.popleft().result()
    if scale is not None:
        scales.append(scale)
    return stored


class GroupReader:
    """Reads one checkpoint's group. Cheap to make: one document is read.

    Attributes:
        spec: shape and provenance.
        complete: whether ``finish`` was reached.
    """

    def __init__(self, fmt: Format, key: str) -> None:
        there = spec_of(fmt, key)
        if there is None:
            known = fmt.keys()
            raise StoreError(
                f"{fmt.blobs.url}: no checkpoint {key}; there are {len(known)}"
                + (f", for example {known[0]}" if known else ": run 'batchsweep extract'")
            )
        self.key = key
        self.spec, self.complete = there
        self._format = fmt
        self._sealed: frozenset[int] | None = None
        #: Blocks whose seal was held against their chunks' checksums.
        self._checked: set[int] = set()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.spec.layers

    @property
    def poolings(self) -> tuple[str, ...]:
        return self.spec.poolings

    @property
    def texts(self) -> int:
        return self.spec.texts

    @property
    def hidden(self) -> int:
        return self.spec.hidden

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    @property
    def provenance(self) -> dict[str, Any]:
        return self.spec.provenance

    @property
    def sealed(self) -> frozenset[int]:
        """Blocks that are done: all of a complete group. Of one that was open when it was first
        asked, those of then; :meth:`read` looks again before it says that a block isn't there.
        """
        if self.complete:
            return frozenset(range(self.spec.blocks))
        if self._sealed is None:
            self._sealed = sealed_blocks(self._format, self.key, self.spec)
        return self._sealed

    def read(
        self,
        pooling: str,
        layer: int,
        rows: slice | npt.ArrayLike | None = None,
    ) -> Float32:
        """Vectors of one layer, float32 [text, hidden], in the order of ``rows``.

        Only the chunks of this layer that hold some of the rows are read, and the checksum of each
        is verified; so is, once for each block, that its checksums are the ones that were sealed.

        Args:
            pooling: one of ``poolings``.
            layer: one of ``layers`` (the layer's number, not its position).
            rows: corpus rows: all by default, a slice, or row numbers.

        Raises:
            StoreError: no such pooling, layer or row; or a block isn't sealed yet.
            StoreCorrupt: bytes are damaged or missing; names array and block.
        """
        vectors: Float32 = self._read(pooling, layer, rows, np.dtype(np.float32))
        return vectors

    def read_stored(
        self,
        pooling: str,
        layer: int,
        rows: slice | npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.floating]:
        """As :meth:`read`, in the type that is stored: half the memory where that is float16.

        Raises:
            StoreError: also for int8, which means nothing without its scales.
        """
        if self.spec.dtype == "int8":
            raise StoreError(f"{self.key}: int8 vectors mean nothing without scales: use read")
        vectors: npt.NDArray[np.floating] = self._read(
            pooling, layer, rows, stored_dtype(self.spec.dtype, pooling)
        )
        return vectors

    def _read(
        self,
        pooling: str,
        layer: int,
        rows: slice | npt.ArrayLike | None,
        dtype: np.dtype[Any],
    ) -> Any:
        spec = self.spec
        if pooling not in spec.poolings:
            raise StoreError(
                f"{self.key}: no pooling '{pooling}'; valid: {', '.join(spec.poolings)}"
            )
        if layer not in spec.layers:
            raise StoreError(
                f"{self.key}: no layer {layer}; valid: {', '.join(map(str, spec.layers))}"
            )
        position = spec.layers.index(layer)
        if rows is None or isinstance(rows, slice):
            wanted = np.arange(*(rows or slice(None)).indices(spec.texts))
        else:
            wanted = np.asarray(rows, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < spec.texts):
            raise StoreError(f"{self.key}: rows must be 0 to {spec.texts - 1}")
        stored = stored_dtype(spec.dtype, pooling)
        of_block = wanted // spec.block_texts
        blocks = np.flatnonzero(np.bincount(of_block))
        if not self.sealed.issuperset(blocks.tolist()):
            self._sealed = None
        if absent := sorted(set(blocks.tolist()) - self.sealed):
            raise StoreError(
                f"{self.key}: blocks {_listed(absent)} aren't there yet; "
                "run 'batchsweep extract' for this checkpoint and task"
            )

        # Before memory is taken for them: the bytes of these blocks are there.
        self._format.blobs.map(self._check_seal, blocks.tolist())
        try:
            out = np.empty((len(wanted), spec.hidden), dtype)
        except MemoryError:
            raise StoreError(
                f"{self.key}: {len(wanted)} vectors of {spec.hidden} don't fit into memory; "
                "read fewer rows at once"
            ) from None

        def fill(block: int) -> None:
            places = np.flatnonzero(of_block == block)
            local = wanted[places] - block * spec.block_texts
            # The common case, a run of rows into a run of the result, needs no copy more.
            run = _consecutive(places) and _consecutive(local)
            target = out[places[0] : places[-1] + 1]
            space = None
            if run and len(local) == spec.chunk_texts and out.dtype == stored:
                space = as_bytes(target)
            scale = self._scale(pooling, block, position)
            first = 0
            for piece in self._format.pieces(self.key, spec, pooling, block, position, space):
                end = first + len(piece)
                if run:
                    rows_here = slice(max(local[0], first), max(min(local[-1] + 1, end), first))
                    here = slice(rows_here.start - local[0], rows_here.stop - local[0])
                    part = piece[rows_here.start - first : rows_here.stop - first]
                    if here.start < here.stop and not np.may_share_memory(part, target):
                        decode(part, None if scale is None else scale[rows_here], target[here])
                else:
                    inside = (local >= first) & (local < end)
                    chosen = local[inside]
                    vectors = np.empty((len(chosen), spec.hidden), out.dtype)
                    decode(piece[chosen - first], None if scale is None else scale[chosen], vectors)
                    out[places[inside]] = vectors
                first = end

        self._format.blobs.map(fill, blocks.tolist())
        return out

    def _check_seal(self, block: int) -> None:
        """Refuse a block that was sealed with other bytes, or at another place.

        Its chunks' checksums are read, not the chunks: those are held against them as they come.
        """
        if block in self._checked:
            return
        fmt, key, spec = self._format, self.key, self.spec
        seal = fmt.seals(key, spec, [block]).get(block, b"")
        checksums = [fmt.checksums(key, spec, name, block) for name in spec.arrays]
        if not is_sealed_by(seal, key, spec, block, checksums):
            what = f"block {block} isn't what was sealed there"
            raise corrupt_at(fmt.blobs, fmt.folder(key), what)
        self._checked.add(block)

    def _scale(self, pooling: str, block: int, position: int) -> Float32 | None:
        """The scales [text] of one layer of a block of int8 vectors; None for other types."""
        if self.spec.dtype != "int8":
            return None
        name = f"{pooling}_scale"
        pieces = self._format.pieces(self.key, self.spec, name, block, position)
        return np.concatenate([piece.astype(np.float32) for piece in pieces])

    def metrics(self) -> dict[str, Float64]:
        """Label-free metrics, [layer] each; empty if none were written."""
        return self._format.metrics(self.key, self.spec)


def _consecutive(numbers: npt.NDArray[np.int64]) -> bool:
    return bool(numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all())


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} ... ({len(numbers)} in all)"
