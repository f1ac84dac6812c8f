"""Records that wait on disk until it is known in which order they belong."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from batchsweep.errors import UsageError


class Spool:
    """Byte strings in a temporary file: appended one after the other, read in any order.

    Memory holds eight bytes a record. A context manager: the file is gone when it is left, or when
    the process is killed.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._ends: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, records: Sequence[bytes]) -> None:
        """Put records behind those that are there.

        Raises:
            UsageError: the temporary folder has no space left.
        """
        if not records:
            return
        end = self._ends[-1][-1]
        self._ends.append(end + np.cumsum([len(r) for r in records], dtype=np.int64))
        rest = memoryview(b"".join(records))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UsageError(
                f"{tempfile.gettempdir()}: {error.strerror}; all texts and tokens are kept there "
                "while they are put in order: set TMPDIR to a folder with more space"
            ) from None

    def read(self, numbers: Iterable[int]) -> list[bytes]:
        """Records by number, in the order in which they are asked for."""
        if len(self._ends) > 1:
            self._ends = [np.concatenate(self._ends)]
        (ends,) = self._ends
        handle = self._file.fileno()
        return [os.pread(handle, int(ends[n + 1] - ends[n]), int(ends[n])) for n in numbers]
