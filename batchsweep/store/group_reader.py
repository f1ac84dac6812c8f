"""One checkpoint's embeddings, read one layer at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreError
from batchsweep.store.format import Float64, Format, corrupt_at, spec_of
from batchsweep.store.rows import row_numbers
from batchsweep.store.seals import is_sealed_by, listed, sealed_blocks
from batchsweep.store.values import Float32, as_bytes, decode, stored_dtype

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]


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
        """Block numbers, ascending; 0 is the embedding."""
        return self.spec.layers

    @property
    def poolings(self) -> tuple[str, ...]:
        return self.spec.poolings

    @property
    def texts(self) -> int:
        return self.spec.texts

    @property
    def hidden(self) -> int:
        """Numbers in a vector."""
        return self.spec.hidden

    @property
    def dtype(self) -> str:
        """What vectors are stored as: ``store.dtype``."""
        return self.spec.dtype

    @property
    def provenance(self) -> dict[str, Any]:
        """What its bytes were made from and by."""
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
        position = self._position(pooling, layer)
        wanted = row_numbers(rows, self.spec.texts, where=self.key)
        of_block = wanted // self.spec.block_texts
        blocks = np.flatnonzero(np.bincount(of_block)).tolist()
        if not self.sealed.issuperset(blocks):
            self._sealed = None
        if absent := sorted(set(blocks) - self.sealed):
            raise StoreError(
                f"{self.key}: blocks {listed(absent)} aren't there yet; "
                "run 'batchsweep extract' for this checkpoint and task"
            )

        # Before memory is taken for them: the bytes of these blocks are there.
        self._format.blobs.map(self._check_seal, blocks)
        try:
            out = np.empty((len(wanted), self.spec.hidden), dtype)
        except MemoryError:
            raise StoreError(
                f"{self.key}: {len(wanted)} vectors of {self.spec.hidden} don't fit into memory; "
                "read fewer rows at once"
            ) from None

        def fill(block: int) -> None:
            places = np.flatnonzero(of_block == block)
            local = wanted[places] - block * self.spec.block_texts
            self._fill(out, places, local, block, pooling, position)

        self._format.blobs.map(fill, blocks)
        return out

    def _position(self, pooling: str, layer: int) -> int:
        """Of a layer on the first axis, once it is known that there is such a vector."""
        spec = self.spec
        if pooling not in spec.poolings:
            raise StoreError(
                f"{self.key}: no pooling '{pooling}'; valid: {', '.join(spec.poolings)}"
            )
        if layer not in spec.layers:
            raise StoreError(
                f"{self.key}: no layer {layer}; valid: {', '.join(map(str, spec.layers))}"
            )
        return spec.layers.index(layer)

    def _fill(
        self, out: Floats, places: Rows, local: Rows, block: int, pooling: str, position: int
    ) -> None:
        """Some rows of a block into ``out[places]``."""
        spec = self.spec
        # The common case, a run of rows into a run of the result, needs no copy more.
        run = _consecutive(places) and _consecutive(local)
        target = out[places[0] : places[-1] + 1]
        space = None
        stored = stored_dtype(spec.dtype, pooling)
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
                chosen, here_rows = local[inside], places[inside]
                straight = len(here_rows) and _consecutive(here_rows)
                vectors = (
                    out[here_rows[0] : here_rows[-1] + 1]
                    if straight
                    else np.empty((len(chosen), spec.hidden), out.dtype)
                )
                decode(piece[chosen - first], None if scale is None else scale[chosen], vectors)
                if not straight:
                    out[here_rows] = vectors
            first = end

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


def _consecutive(numbers: Rows) -> bool:
    return bool(numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all())
