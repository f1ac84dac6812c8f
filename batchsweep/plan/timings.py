"""How long extraction took, as the store remembers it: estimates can be corrected by it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, astuple, dataclass

from batchsweep.errors import StoreCorrupt
from batchsweep.store import Store
from batchsweep.store.validation import parsed

#: No sum of seconds or tokens is as large.
_MOST = 1e18


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


def timings(store: Store) -> dict[str, Timing]:
    """Checkpoint key -> what was measured there.

    Raises:
        StoreCorrupt: a document is damaged, or no timing.
    """
    found = {}
    for path in store.list_json("timings"):
        timing = _read(store, path)
        if timing is not None:
            found[path.removeprefix("timings/").removesuffix(".json")] = timing
    return found


def recorded_seconds(store: Store) -> dict[str, float]:
    """Checkpoint key -> all that its extraction took.

    Raises:
        StoreCorrupt: as :func:`timings`.
    """
    return {key: one.start_seconds + one.seconds for key, one in timings(store).items()}


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
        if set(value) != set(asdict(timing)):
            raise ValueError(f"it has {', '.join(map(str, value)) or 'nothing'}")
        if not all(0 <= x < _MOST for x in astuple(timing)):
            raise ValueError("a sum is negative, or larger than any")
    except ValueError as error:
        raise StoreCorrupt(
            f"{store.url}: {path} says no timing ({error}); remove it, it is only a help"
        ) from None
    return timing
