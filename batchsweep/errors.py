"""The exceptions of batchsweep and the exit code that each one means.

Exit codes are an API: a Kubernetes Job's ``podFailurePolicy`` decides by them. Every error is one
line that says what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BatchsweepError(Exception):
    """Base of all errors that are the user's to mend. ``exit_code`` is the process's."""

    exit_code = 1


class UsageError(BatchsweepError):
    """Wrong command-line arguments: no retry can help, so the whole Job should fail at once."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file that is missing, malformed or contradictory."""


class IndexFailed(BatchsweepError):
    """This index can never succeed: for example, damaged weights, or NaN in a layer."""

    exit_code = 3


class Unavailable(IndexFailed):
    """A checkpoint that isn't there or has no weights: skipped with a warning unless --strict."""


class StoreError(BatchsweepError):
    """The store can't take or give what was asked: mismatch, corruption, a value out of range."""

    exit_code = 4


class NoStore(StoreError):
    """There is none yet."""


class StoreMismatch(StoreError):
    """The store was made for something else; the message names what differs."""


class StoreCorrupt(StoreError):
    """Bytes of the store are damaged or missing; the message names array, block and remedy."""


class StoreFull(StoreError):
    """No space is left: whatever else is tried will find none either."""


class TryAgain(BatchsweepError):
    """A passing fault (network, busy index, preemption): the same command may succeed later."""

    exit_code = 75


class Terminated(BatchsweepError):
    """SIGTERM or SIGINT arrived and the open block is sealed; the same command resumes."""

    exit_code = 143


@contextmanager
def writing(place: Path, remedy: str = "") -> Iterator[None]:
    """While files are written that people asked for.

    Raises:
        StoreError: they can't be; names the place.
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or error
        raise StoreError(f"{place}: can't be written: {said}{remedy}") from None


def first_line(error: BaseException, *, typed: bool = False) -> str:
    """What an error of a library says, in one line; its type where it says nothing.

    Args:
        typed: its type stands before what it says, too.
    """
    kind, said = type(error).__name__, str(error).strip()
    if not said:
        return kind
    return (f"{kind}: " if typed else "") + said.splitlines()[0]


def shortened(text: str, most: int = 40) -> str:
    """A text of anybody's, for a message: its beginning where it is long."""
    return text if len(text) <= most else text[: most - 3] + "..."
