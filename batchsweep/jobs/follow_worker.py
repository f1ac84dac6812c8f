"""One running worker: its output shown and kept, whatever becomes of either, and its exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from batchsweep.errors import TryAgain, first_line

logger = logging.getLogger(__name__)


class Worker(Protocol):
    """One running extraction."""

    def lines(self) -> Iterator[str]:
        """Its output, line by line, until it ends."""

    def wait(self) -> int:
        """Its exit code, once it has ended (128 + n when signal n killed it)."""

    def stop(self) -> None:
        """Send SIGTERM: seal the open block and leave."""

    def kill(self) -> None:
        """End it at once."""


def follow_worker(worker: Worker, log: Path, show: Callable[[str], None]) -> int:
    """See a worker to its end; its exit code.

    Its output is a help. Where it can be kept no more (a full disk), or nobody looks at it any
    more, that is said once, and the worker is followed all the same. One that can't be followed
    (an engine that went away) counts as a passing fault.

    Args:
        log: is appended to.
        show: gets each line.
    """
    kept = _Log(log)
    try:
        for line in worker.lines():
            kept.write(line)
            with suppress(OSError):
                show(line)
        return worker.wait()
    except Exception as error:  # noqa: BLE001 - whatever its engine raises, the worker may go on
        logger.warning("%s: can't be followed: %s", log.stem, first_line(error, typed=True))
        return TryAgain.exit_code
    finally:
        kept.close()


class _Log:
    """A file of lines, made with the first one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._lost = False

    def write(self, line: str) -> None:
        if self._lost:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._file.write(f"{line}\n".encode())
        except OSError as error:
            self._lost = True
            logger.warning(
                "%s: can't be written: %s; this worker's output is only shown from here on",
                self._path,
                error.strerror,
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
