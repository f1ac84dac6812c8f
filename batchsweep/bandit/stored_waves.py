"""Waves as documents of the store, ``waves/0001.json``: what a search asked for, and why.

A wave is written once and never changed. A search that is gone on with follows the waves that it
asked for before, and knows of each what was there when it asked.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from batchsweep.bandit.chooser import Visit
from batchsweep.bandit.costs import PairCosts
from batchsweep.bandit.policies.base import Bools
from batchsweep.bandit.waves import Wave
from batchsweep.errors import (
    BatchsweepError,
    StoreCorrupt,
    StoreFull,
    TryAgain,
    UsageError,
    shortened,
)
from batchsweep.extract.status import index_statuses
from batchsweep.plan.plan import Plan
from batchsweep.store import Store
from batchsweep.store.notes import note_path, read_note
from batchsweep.store.pairs import ready_tasks
from batchsweep.store.validation import parsed

logger = logging.getLogger(__name__)

#: Of the documents. A reader refuses a version that it doesn't know.
VERSION = 1
FOLDER = "waves"
_NAME = re.compile(rf"{FOLDER}/\d{{4,}}\.json")
#: How often, and how many seconds apart, a number is asked for while another search takes one.
TRIES, PAUSE = 100, 0.1

#: Extracts a wave's pairs: plan index -> tasks.
Extract = Callable[[Wave, dict[int, tuple[str, ...]]], None]


class CheckpointsLost(BatchsweepError):
    """Checkpoints turned out not to be extractable: a search goes on without them."""


class StoredWaves:
    """The extraction of one search on a store, as its documents tell it.

    Args:
        search: the search's name; another one's waves are not its own.
        costs, tasks: what rows and columns of pairs mean.
        extract: has pairs extracted; what it could not have is not there afterwards.

    Raises:
        StoreCorrupt: a wave's document is not what FORMAT.md says.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        search: str,
        costs: PairCosts,
        tasks: Sequence[str],
        extract: Extract,
    ) -> None:
        self._store, self._plan, self._search = store, plan, search
        self._rows = {key: row for row, key in enumerate(costs.checkpoints)}
        self._columns = {task: column for column, task in enumerate(tasks)}
        self._indexes = {entry.key: entry.index for entry in plan.entries}
        self._extract = extract
        #: Its waves, each with what was ready when it was asked for: key -> tasks.
        self._mine: list[tuple[Wave, dict[str, list[str]]]] = []
        for path in _paths(store):
            search_name, wave, there = _read(store, path)
            if search_name == search:
                strange = {t for v in wave.visits for t in v.tasks} - self._columns.keys()
                if strange:
                    raise StoreCorrupt(
                        f"{store.url}: {path} is not a wave's document (it asks for "
                        f"{min(strange)!r}, which is no task of its search)"
                    )
                self._mine.append((wave, there))
        numbers = [wave.number for wave, _ in self._mine]
        if numbers != sorted({n for n in numbers if n > 0}):
            raise StoreCorrupt(
                f"{store.url}: the waves of {search} are numbered {shortened(str(numbers))}, which "
                f"no search does; restore them below {FOLDER}/, or search with another bandit.seed"
            )
        self._last = max(numbers, default=0)
        if self._last > len(numbers):
            lost = next(n for n in count(1) if n not in numbers)
            logger.warning(
                "%s: wave %d of %s is missing below %s/; the search goes on without it, what it "
                "brought counts as there",
                store.url,
                lost,
                search,
                FOLDER,
            )
        # From here on a wave's number is its place among those that are there.
        self._mine = [
            (replace(wave, number=n), there) for n, (wave, there) in enumerate(self._mine, 1)
        ]

    def recall(self, number: int) -> Wave | None:
        """The wave of this number, if the search asked for it before it was cut short."""
        if number > len(self._mine):
            return None
        wave, _ = self._mine[number - 1]
        # What has been lost since takes no part.
        visits = tuple(visit for visit in wave.visits if visit.key in self._rows)
        return replace(wave, visits=visits)

    def extract(self, wave: Wave) -> None:
        """Write the wave down, unless it is, and have extracted what it asked for.

        Raises:
            CheckpointsLost: some of its checkpoints can't be extracted.
            StoreFull, UsageError: no space is left for them; or wrong usage, as a job of them said.
            TryAgain: nothing of it could be had, this time.
        """
        if wave.number > len(self._mine):
            wave = self._write(wave)
        elif wave.number < len(self._mine):
            return  # It was over when the next one was asked for.
        ready = ready_tasks(self._store)
        left = {
            self._indexes[visit.key]: tuple(
                t for t in visit.tasks if t not in ready.get(visit.key, ())
            )
            for visit in wave.visits
        }
        left = {index: tasks for index, tasks in left.items() if tasks}
        if not left:
            return
        self._extract(wave, left)
        for index in left:
            note = read_note(self._store, note_path(self._plan.entry(index).key))
            if note is not None and note.ending == "refused":
                full = note.exit_code == StoreFull.exit_code
                raise (StoreFull if full else UsageError)(note.message)
        lost = lost_checkpoints(self._store, self._plan).keys() & self._rows.keys()
        if lost:
            raise CheckpointsLost(", ".join(sorted(lost)))
        now = ready_tasks(self._store)
        if not any(set(visit.tasks) & set(now.get(visit.key, ())) for visit in wave.visits):
            keys = ", ".join(self._plan.entry(index).key for index in left)
            raise TryAgain(
                f"wave {wave.number} brought nothing: none of {keys} could be extracted "
                "this time; the workers' logs say why, and the same command goes on from there"
            )

    def there(self, waves: int) -> Bools:
        """[checkpoint, task] the pairs that were ready after so many waves."""
        return self._as_pairs(self._mine[waves][1]) if waves < len(self._mine) else self.now()

    def now(self) -> Bools:
        """[checkpoint, task] the pairs that are ready."""
        return self._as_pairs(ready_tasks(self._store))

    def _as_pairs(self, ready: Mapping[str, Sequence[str]]) -> Bools:
        pairs = np.zeros((len(self._rows), len(self._columns)), dtype=bool)
        for key, tasks in ready.items():
            if key in self._rows:
                pairs[self._rows[key], [self._columns[t] for t in tasks if t in self._columns]] = (
                    True
                )
        return pairs

    def _write(self, wave: Wave) -> Wave:
        """The wave with its place in the store."""
        there = {k: sorted(tasks) for k, tasks in ready_tasks(self._store).items() if tasks}
        document = {
            "version": VERSION,
            "search": self._search,
            "number": self._last + 1,
            "expected_regret": wave.expected_regret,
            "there": there,
            "visits": [
                {
                    "index": self._indexes[visit.key],
                    "key": visit.key,
                    "tasks": list(visit.tasks),
                    "reason": visit.reason,
                }
                for visit in wave.visits
            ],
        }
        for _ in range(TRIES):
            try:
                with self._store.lease(FOLDER):
                    taken = [_number(path) for path in _paths(self._store)]
                    wave = replace(wave, document=max(taken, default=0) + 1)
                    self._store.write_json(_path(wave.document), document)
                break
            except TryAgain:
                time.sleep(PAUSE)
        else:
            raise TryAgain(f"{self._store.url}: another search holds {FOLDER}/; run it again")
        self._mine.append((wave, there))
        self._last += 1
        return wave


def wave_of(store: Store, document: int) -> Wave:
    """A wave by its place in the store, whichever search asked for it.

    Raises:
        UsageError: there is none.
        StoreCorrupt: it isn't what FORMAT.md says.
    """
    path = _path(document)
    if path not in _paths(store):
        raise UsageError(f"{store.url}: no wave {document} ({path}) is there")
    return _read(store, path)[1]


def lost_checkpoints(store: Store, plan: Plan) -> dict[str, str]:
    """Checkpoints of the plan that extraction has noted as skipped or failed: key -> why."""
    return {
        plan.entry(row.index).key: row.note
        for row in index_statuses(store, plan)
        if row.index is not None and row.state in ("skipped", "failed")
    }


def _path(document: int | None) -> str:
    return f"{FOLDER}/{document:04d}.json"


def _number(path: str) -> int:
    return int(path.split("/")[1][:-5])


def _paths(store: Store) -> list[str]:
    paths = sorted(str(path) for path in store.list_json(FOLDER))
    if stranger := next((path for path in paths if not _NAME.fullmatch(path)), None):
        raise StoreCorrupt(f"{store.url}: {stranger} has no wave's name, 0001.json; remove it")
    return paths


@dataclass(frozen=True)
class _Visit:
    key: str
    tasks: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Document:
    version: int
    search: str
    number: int
    expected_regret: float | None
    there: dict[str, tuple[str, ...]]
    visits: tuple[_Visit, ...]


def _read(store: Store, path: str) -> tuple[str, Wave, dict[str, list[str]]]:
    """(search, wave, what was there when it was asked for) of a document.

    Raises:
        StoreCorrupt: it isn't what FORMAT.md says.
    """
    value: Any = store.read_json(path)
    try:
        document = parsed(_Document, value)
        if document.version != VERSION:
            raise ValueError(f"version {document.version}, and only {VERSION} is known")
        visits = tuple(Visit(v.key, v.tasks, v.reason) for v in document.visits)
        if not visits or not all(visit.tasks for visit in visits):
            raise ValueError("a wave without visits, or a visit without tasks")
    except ValueError as error:
        raise StoreCorrupt(f"{store.url}: {path} is not a wave's document ({error})") from None
    there = {key: list(tasks) for key, tasks in document.there.items()}
    regret = document.expected_regret
    wave = Wave(document.number, visits, regret, document=_number(path))
    return document.search, wave, there
