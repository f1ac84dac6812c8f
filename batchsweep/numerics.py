"""One numerical state for all that is stored: the same sums, to the last bit, in any process.

How a sum is split over threads decides its rounding, and a process's thread counts are a matter of
its history: torch, its own MKL and OpenMP keep one each, and whoever sets one may leave the others
behind (``threadpoolctl`` does not know torch's MKL, and torch reports OpenMP's count as its own).
So what is stored is computed by threads that were each set to one compute thread, all counts at
once. Cores are used by whole batches beside each other, which moves no bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: What every group says in its provenance.
COMPUTE_THREADS = 1
#: The same: raised when the pass's operations, and so the last bits of what they give, change. An
#: unfinished group of another number is refused, so that no group has the bits of two.
ARITHMETIC = 4


@contextmanager
def one_compute_thread() -> Iterator[None]:
    """This thread's torch, MKL and OpenMP compute on one thread; afterwards as before.

    Sets the count even where it is 1 already: torch reads OpenMP's, and MKL's may be another. Does
    nothing where torch was never imported. Enter it before any ``threadpool_limits``: inside one,
    the count that is read, and given back at the end, is the limit's.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(COMPUTE_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many threads may compute at once: ``OMP_NUM_THREADS``, else the process's processors."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0))
