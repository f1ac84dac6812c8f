"""Which rows of the corpus are meant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreError


def row_numbers(
    rows: slice | npt.ArrayLike | None, count: int, *, where: str
) -> npt.NDArray[np.int64]:
    """Row numbers [row]: all of ``count`` by default, a slice's, or those that are given.

    Raises:
        StoreError: one of them isn't there; names ``where``.
    """
    if rows is None or isinstance(rows, slice):
        return np.arange(*(rows or slice(None)).indices(count))
    wanted = np.asarray(rows, np.int64).reshape(-1)
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < count):
        raise StoreError(f"{where}: rows must be 0 to {count - 1}")
    return wanted
