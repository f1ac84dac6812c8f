"""The order of the corpus's rows: a task's rows together, and texts of one length together.

Extraction works in blocks of consecutive rows, and for some tasks only in the blocks that hold
their rows. So the rows of a task should lie in few runs, a block on the border of two runs should
be cheap, and the texts of a block should be of one length, so that batches are large and without
padding however small the block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def ordered(tasks: Sequence[Rows], lengths: npt.ArrayLike) -> Rows:
    """The rows in the order in which they are stored.

    Rows that the same tasks ask for make one run. Runs are in reflected Gray code of who asks:
    of two tasks in a row, those of the first alone, of both, of the second alone. Within a run,
    lengths rise to the longest text and fall again: at its borders are its shortest.

    Args:
        tasks: the rows of each task, in any numbering from 0.
        lengths: [row], in whatever unit the work grows with.

    Returns:
        The rows, first stored first.
    """
    length = np.asarray(lengths, np.int64)
    runs = _runs(tasks, len(length))
    by_length = np.lexsort((np.arange(len(length)), length, runs))
    rank = np.empty(len(length), np.int64)  # within the run
    starts = np.flatnonzero(np.diff(runs[by_length], prepend=-1))
    sizes = np.diff(starts, append=len(length))
    rank[by_length] = np.arange(len(length)) - np.repeat(starts, sizes)
    # Every other one goes up, the rest comes down.
    place = np.where(rank % 2 == 0, rank, -rank)
    return np.lexsort((np.arange(len(length)), place, place < 0, runs)).astype(np.int64)


def _runs(tasks: Sequence[Rows], texts: int) -> Rows:
    """[row] the number of its run."""
    # Who asks for a row, as one number: a chance in 10^15 that two differ unseen, and then only
    # two runs are one.
    marks = np.random.default_rng(0).integers(1, 2**63, len(tasks), dtype=np.uint64)
    asked_by = np.zeros(texts, np.uint64)
    for mark, rows in zip(marks, tasks, strict=True):
        asked_by[rows] ^= mark
    _, example, kind = np.unique(asked_by, return_index=True, return_inverse=True)
    asks = np.zeros((len(tasks), len(example)), bool)
    for asking, rows in zip(asks, tasks, strict=True):
        asking[:] = np.isin(example, rows)
    # A Gray code's place is the running exclusive or of its digits; 1 comes first.
    place = ~np.bitwise_xor.accumulate(asks, axis=0)
    number = np.empty(len(example), np.int64)
    number[np.lexsort(place[::-1])] = np.arange(len(example))
    return number[kind]
