"""How long extraction took, as the store remembers it: estimates can be corrected by it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass

from batchsweep.errors import StoreCorrupt
from batchsweep.store import Store


@dataclass(frozen=True)
class Timing:
    """The sums over all runs that computed something of one checkpoint."""

    runs: int = 0
    start_seconds: float = 0.0
    """Weights fetched, checked and loaded."""
    tokens: int = 0
    """Forward tokens of what was sealed, padding not counted."""
    seconds: float = 0.0
    """From the first of these tokens to the last block's seal; writing included."""


def timings(store: Store) -> dict[str, Timing]:
    """Checkpoint key -> what was measured there."""
    found = {}
    for path in store.list_json("timings"):
        value = store.read_json(path)
        if value is not None:
            key = path.removeprefix("timings/").removesuffix(".json")
            found[key] = Timing(**value)
    return found


def add_timing(store: Store, key: str, run: Timing) -> None:
    """Add a run to what the store remembers; called by the one that writes the group."""
    path = f"timings/{key}.json"
    there = Timing()
    with suppress(StoreCorrupt):  # It is only a help: the next one is right again.
        there = Timing(**(store.read_json(path) or {}))
    summed = {name: value + getattr(there, name) for name, value in asdict(run).items()}
    store.write_json(path, summed)
