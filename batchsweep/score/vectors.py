"""The vectors of one arm, as the evaluators ask for them."""

from __future__ import annotations

import numpy as np

from batchsweep.score.transforms import ArmReader
from batchsweep.tasks.evaluators import Request
from batchsweep.tasks.evaluators.base import Float32, Kept, Rows


class Vectors:
    """Gives a prepared task the vectors of one arm: reads only the rows that are asked for."""

    def __init__(self, reader: ArmReader, kept: Kept) -> None:
        self._reader = reader
        self._places = kept.places
        self._kept = reader.read(kept.rows)

    def different(self, request: Request) -> Float32:
        return self.some(request, slice(None))

    def some(self, request: Request, positions: slice | Rows) -> Float32:
        kept, rows = self._places[request][positions], request.rows[positions]
        if not len(kept):
            return np.empty((0, self._reader.hidden), np.float32)
        own = kept < 0
        if not own.any():
            return _rows_of(self._kept, kept)
        if own.all():
            return self._reader.read(rows)
        vectors = np.empty((len(kept), self._reader.hidden), np.float32)
        vectors[own] = self._reader.read(rows[own])
        vectors[~own] = self._kept[kept[~own]]
        return vectors

    def __call__(self, request: Request) -> Float32:
        kept, which = self._places[request], request.which
        own = kept < 0
        if own.all() or not own.any():
            return _rows_of(*self.indexed(request))
        # Some of both: put where they are asked for at once, with no matrix of each text between.
        number = np.maximum(np.cumsum(own) - 1, 0)
        vectors: Float32 = self._reader.read(request.rows[own])[number[which]]
        others = np.flatnonzero(~own[which])
        vectors[others] = self._kept[kept[which[others]]]
        return vectors

    def indexed(self, request: Request) -> tuple[Float32, Rows]:
        kept = self._places[request]
        if len(kept) and kept.min() >= 0:
            return self._kept, kept[request.which]
        return self.different(request), request.which.astype(np.int64)


def _rows_of(matrix: Float32, index: Rows) -> Float32:
    """``matrix[index]``; without a copy where these are rows one after the other."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return matrix[index[0] : index[-1] + 1]
    return matrix[index]
