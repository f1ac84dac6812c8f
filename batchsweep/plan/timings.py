"""How long extraction took, as the store remembers it: estimates can be corrected by it."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass

from batchsweep.errors import StoreCorrupt
from batchsweep.store import Store
from batchsweep.store.validation import parsed

logger = logging.getLogger(__name__)

#: No sum of seconds or tokens is as large.
_MOST = 1e18
#: Between two times that a running index writes down what it took.
RECORD_SECONDS = 60.0
#: Members that every version wrote.
_FIRST = {"runs", "start_seconds", "tokens", "seconds"}


@dataclass(frozen=True)
class Timing:
    """The sums over all runs that computed something of one checkpoint."""

    runs: int = 0
    start_seconds: float = 0.0
    """What doesn't grow with the texts: from the process's start, or the end of the index before,
    to weights that are fetched, checked and loaded; and the label-free metrics."""
    tokens: int = 0
    """Forward tokens of what was sealed, padding not counted."""
    seconds: float = 0.0
    """From the first of these tokens to the last block's seal; writing included."""
    waited_start_seconds: float = 0.0
    """Of ``start_seconds`` on a CPU, those that no core worked for it: others had the cores, or
    the disk was waited for. Of checkpoints that may have to be fetched, and on a GPU: 0."""
    waited_seconds: float = 0.0
    """The same of ``seconds``."""

    @property
    def all_seconds(self) -> float:
        """All that the checkpoint's extraction took."""
        return self.start_seconds + self.seconds


class Stopwatch:
    """The seconds since it was made, and how many of them this process was kept waiting."""

    def __init__(self) -> None:
        self._begun, self._worked = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def waited(self, cores: int) -> float:
        """Seconds less those in which so many cores could have done what the process did."""
        return max(self.seconds - (time.process_time() - self._worked) / cores, 0.0)


class Record:
    """Writes down what an index takes while it takes it: what a killed one took was paid, too.

    Args:
        cores: what it computes on; 0 on a GPU, where nothing is known of waiting.
    """

    def __init__(self, store: Store, key: str, cores: int) -> None:
        self._store, self._key, self._cores = store, key, cores
        self._watch, self._written = Stopwatch(), Timing()

    def add(self, tokens: int, *, now: bool = False) -> None:
        """Write down the time since the last time, if that is long ago, or ``now``.

        Args:
            tokens: sealed since this was made.
        """
        seconds, before = self._watch.seconds, self._written
        if not now and seconds - before.seconds < RECORD_SECONDS:
            return
        waited = self._watch.waited(self._cores) if self._cores else 0.0
        more = Timing(
            tokens=tokens - before.tokens,
            seconds=seconds - before.seconds,
            waited_seconds=max(waited - before.waited_seconds, 0.0),
        )
        add_timing(self._store, self._key, more)
        self._written = Timing(tokens=tokens, seconds=seconds, waited_seconds=waited)


def timings(store: Store, *, strict: bool = False) -> dict[str, Timing]:
    """Checkpoint key -> what was measured there.

    Args:
        strict: a damaged document is an error, and not left out with a warning: where what was
            spent is held against a limit.

    Raises:
        StoreCorrupt: with ``strict``, a document is damaged, or no timing.
    """
    found = {}
    for path in store.list_json("timings"):
        try:
            timing = _read(store, path)
        except StoreCorrupt as error:
            if strict:
                raise
            logger.warning("%s", error)
            continue
        if timing is not None:
            found[path.removeprefix("timings/").removesuffix(".json")] = timing
    return found


def add_timing(store: Store, key: str, run: Timing) -> None:
    """Add a run to what the store remembers; called by the one that writes the group."""
    path = f"timings/{key}.json"
    there = Timing()
    with suppress(StoreCorrupt):  # It is only a help: the next one is right again.
        there = _read(store, path) or there
    summed = {name: value + getattr(there, name) for name, value in asdict(run).items()}
    store.write_json(path, summed)


def _read(store: Store, path: str) -> Timing | None:
    value = store.read_json(path)
    if value is None:
        return None
    try:
        timing = parsed(Timing, value)
        if not _FIRST <= set(value) <= set(asdict(timing)):
            raise ValueError(f"it has {', '.join(map(str, value)) or 'nothing'}")
        if not all(0 <= x < _MOST for x in astuple(timing)):
            raise ValueError("a sum is negative, or larger than any")
    except ValueError as error:
        raise StoreCorrupt(
            f"{store.url}: {path} says no timing ({error}); remove it, it is only a help"
        ) from None
    return timing
