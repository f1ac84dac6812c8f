"""One checkpoint's embeddings, written in whole blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock
from typing import Self

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch
from batchsweep.store.format import Format, spec_of
from batchsweep.store.seals import listed, seal_of, sealed_blocks
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, encode

#: Layers that are encoded ahead of the one being written.
_LOOKAHEAD = 2


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

    def write_block(self, block: int, states: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Write a block whole, then seal it. Several threads may write one block each.

        Args:
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
            raise StoreError(f"{self.key}: blocks {listed(missing)} aren't sealed yet")
        self._format.mark(self.key, self.spec, complete=True)
        self.complete = True


def _taken(waiting: deque[Future[tuple[Array, Array | None]]], scales: list[Array]) -> Array:
    stored, scale = waiting.popleft().result()
    if scale is not None:
        scales.append(scale)
    return stored
