"""Whether a sweep's store fits on its disk, and the smallest changes with which it would."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchsweep.config import Config, EveryLayers, local_path
from batchsweep.corpus.size import CorpusSize
from batchsweep.errors import UsageError
from batchsweep.plan.estimate import Estimate, estimate, gib, relayered
from batchsweep.plan.plan import Plan
from batchsweep.store import Store

#: Texts of a task, from the cap that changes least.
_CAPS = (20_000, 5000, 1000, 200)


@dataclass(frozen=True)
class Space:
    """A sweep's store and the disk that it is on, in bytes."""

    url: str
    folder: Path
    """The lowest folder of the store's path that is there."""
    needed: int
    """What is still to be written."""
    free: int
    fits: bool
    """While the texts are an estimate, a fifth of ``needed`` has the benefit of the doubt."""
    changes: tuple[str, ...]
    """Lines for the config with which it would fit; empty if it does, or if nothing helps."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "folder": str(self.folder), "changes": list(self.changes)}

    def __str__(self) -> str:
        return f"{gib(self.needed)} for {self.url}, and {gib(self.free)} are free on {self.folder}"


def space(plan: Plan, config: Config, costs: Estimate, store: Store | None = None) -> Space | None:
    """What the store takes and what its disk has; None for an object store.

    Args:
        store: the store, if it is there: what is extracted already needs no space.
    """
    folder = disk_of(config)
    if folder is None:
        return None
    there = {s.key: s.sealed / max(s.blocks, 1) for s in store.status()} if store else {}
    needed = sum(e.store_bytes * (1 - there.get(e.key, 0.0)) for e in costs.entries)
    if store is None or store.corpus() is None:
        needed += costs.corpus_bytes
    free = shutil.disk_usage(folder).free
    fits = needed * (1.0 if costs.size.exact else 0.8) <= free
    changes = () if fits else _changes_that_fit(plan, config, costs.size, free)
    return Space(config.store_url, folder, int(needed), free, fits, changes)


def disk_of(config: Config) -> Path | None:
    """A folder on the disk that the store is or will be on; None for an object store."""
    folder = local_path(config.store_url)
    if folder is None:
        return None
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_space(found: Space | None) -> None:
    """Refuse a sweep that the disk under the store can't take.

    Raises:
        UsageError: with what is needed, what is free, and what would fit.
    """
    if found is not None and not found.fits:
        smaller = f", or make it smaller: {'; '.join(found.changes)}" if found.changes else ""
        raise UsageError(
            f"the sweep needs {found}; use another store.path{smaller} "
            "('batchsweep plan' lists more)"
        )


@dataclass(frozen=True)
class _Change:
    """One line of a config that makes its store smaller."""

    section: str
    key: str
    text: str
    """The value as YAML."""
    value: Any
    cap: int | None = None
    """Texts of a task, where this is what changes."""

    def __str__(self) -> str:
        return f"{self.section}: {{{self.key}: {self.text}}}"


def _changes_that_fit(plan: Plan, config: Config, size: CorpusSize, free: int) -> tuple[str, ...]:
    """Lines for the config with which the whole store takes at most ``free`` bytes.

    They are tried in the order of how little they change what is found, one added to the other;
    those that turn out not to be needed are left out again.
    """
    chosen: list[_Change] = []
    for change in _changes(config, size):
        # A smaller cap stands for a larger one.
        chosen = [c for c in chosen if (c.section, c.key) != (change.section, change.key)]
        chosen.append(change)
        if _bytes(plan, config, size, chosen) <= free:
            break
    else:
        return ()
    for change in chosen[:-1]:
        rest = [c for c in chosen if c is not change]
        if _bytes(plan, config, size, rest) <= free:
            chosen = rest
    return tuple(map(str, chosen))


def _changes(config: Config, size: CorpusSize) -> list[_Change]:
    found = []
    dtypes = ("float32", "float16", "int8")
    if config.store.dtype in dtypes:
        smaller = dtypes[dtypes.index(config.store.dtype) + 1 :]
        found += [_Change("store", "dtype", dtype, dtype) for dtype in smaller]
    largest = max((task.texts for task in size.tasks), default=0)
    caps = [
        _Change("corpus", "max_texts_per_task", str(cap), cap, cap)
        for cap in _CAPS
        if cap < largest
    ]
    found += caps[:1]
    if config.embedding.layers == "all":
        found.append(_Change("embedding", "layers", "{every: 2}", EveryLayers(every=2)))
    if len(config.embedding.pooling) > 1:
        first = config.embedding.pooling[:1]
        found.append(_Change("embedding", "pooling", f"[{first[0]}]", first))
    return found + caps[1:]


def _bytes(plan: Plan, config: Config, size: CorpusSize, changes: list[_Change]) -> int:
    for change in changes:
        section = getattr(config, change.section).model_copy(update={change.key: change.value})
        config = config.model_copy(update={change.section: section})
        size = size if change.cap is None else size.capped(change.cap)
    entries = tuple(relayered(entry, config) for entry in plan.entries)
    return estimate(replace(plan, entries=entries), config, size).store_bytes
