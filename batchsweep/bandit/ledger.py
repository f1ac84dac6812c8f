"""The ledger: every pull, appended before it counts. What a killed bandit goes on from."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from batchsweep.bandit.policies import Pull
from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.score.record import Score
from batchsweep.store.validation import parsed

Record = dict[str, Any]
Kind = Literal["reference", "search", "check", "imported"]

#: Begins the reason of an imported pull; its file comes after it.
IMPORTED = "imported from "
#: Digits of a spec digest that a pull keeps.
GROUP_DIGITS = 16
#: Pulls that are joined in one document. A restart reads a document for each segment, and up to so
#: many single ones.
SEGMENT = 500


#: What to do about a ledger that says what none says.
_REMEDY = "remove that search's folder below bandit/ and run 'batchsweep bandit' again"
#: No score, and no time, is as large.
_MOST = 1e15


@dataclass(frozen=True)
class Observation:
    """A pull with what it scored, as the ledger keeps it.

    Attributes:
        kind: why it was made: as a reference for z rewards, by the search, by the final check; or
            ``imported``: it was there before, and cost nothing.
        arm, task, reason: as in :class:`~batchsweep.bandit.policies.Pull`.
        score: main score as it counts: 0 where undefined.
        seconds: what it cost.
        halves: of a pull on a subset, the score of each half; None for one that is undefined.
        noise: standard deviation of ``score``, where that was known beforehand.
        full: a whole task, after a search on subsets.
        undefined: MTEB could not define the score.
        group: how the spec digest (hex) of the vectors begins that were scored.
    """

    kind: Kind
    arm: str
    task: str
    score: float
    seconds: float
    reason: str
    halves: tuple[float | None, float | None] | None = None
    noise: float = 0.0
    full: bool = False
    undefined: bool = False
    group: str | None = None

    @classmethod
    def of(cls, pull: Pull, scored: Score, kind: Kind, *, full: bool = False) -> Observation:
        """What the ledger keeps of a score."""
        defined = math.isfinite(scored.main_score)
        halves = None
        if scored.halves is not None:
            one, two = (float(x) if math.isfinite(x) else None for x in scored.halves)
            halves = (one, two)
        return cls(
            kind=kind,
            arm=pull.arm,
            task=pull.task,
            score=float(scored.main_score) if defined else 0.0,
            seconds=float(scored.seconds),
            reason=pull.reason,
            halves=halves,
            noise=0.0 if halves else float(scored.noise),
            full=full,
            undefined=not defined,
            group=None if scored.group is None else scored.group[:GROUP_DIGITS],
        )

    @classmethod
    def from_json(cls, record: Record) -> Observation:
        """From an entry of a ledger.

        Raises:
            StoreError: it is none.
        """
        try:
            if set(record) - set(cls.__dataclass_fields__):
                raise ValueError("it says more than a pull does")
            one = parsed(cls, record)
            numbers = (one.score, one.seconds, one.noise, *(one.halves or ()))
            if not all(x is None or abs(x) < _MOST for x in numbers):
                raise ValueError("scores and seconds are numbers")
        except ValueError:
            raise StoreError(
                f"the bandit's ledger has an entry that is no pull: {sorted(record)}; {_REMEDY}"
            ) from None
        return one

    def to_json(self) -> Record:
        """Plain values for the ledger; what is as usual is left out."""
        usual = {f.name: f.default for f in fields(self)}
        said = {name: value for name, value in vars(self).items() if value != usual[name]}
        return said if self.halves is None else {**said, "halves": list(self.halves)}


class Ledger(Protocol):
    """An append-only list of JSON objects: a header of the kind ``header``, and observations.

    ``append`` returns once the record is safe.
    """

    def append(self, record: Record) -> None: ...

    def records(self) -> list[Record]:
        """All records in their order: the header first, then pulls and notes."""
        ...


def header_of(records: Iterable[Record]) -> Record | None:
    """What a search was run with, from its ledger; None if that says nothing (yet)."""
    return next((record for record in records if record["kind"] == "header"), None)


def observations(records: Iterable[Record]) -> Iterator[Observation]:
    """The pulls of a ledger, in its order."""
    return (Observation.from_json(record) for record in records if record["kind"] != "header")


def digest_of(imported: Iterable[Observation]) -> str:
    """Names what was imported, wherever it came from: a search with other scores is another one."""
    cells = sorted((one.arm, one.task, one.score) for one in imported)
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def read_header(store: JsonStore, run: str) -> Record | None:
    """What a search was run with; None if that isn't there. Reads none of its pulls' documents.

    Raises:
        StoreCorrupt: what is there is no ledger's beginning.
    """
    folder = f"bandit/{run}/pulls"
    segment = store.read_json(f"{folder}/segments/{0:06d}.json")
    first = store.read_json(f"{folder}/{0:06d}.json") if segment is None else None
    try:
        if segment is not None:
            first = dict(segment["pulls"][0])
        return None if first is None else header_of([dict(first)])
    except (KeyError, IndexError, TypeError, ValueError):
        raise StoreCorrupt(f"{folder} doesn't begin as a ledger does; {_REMEDY}") from None


class MemoryLedger:
    """A ledger for replays and tests; it dies with the process."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def append(self, record: Record) -> None:
        self._records.append(dict(record))

    def records(self) -> list[Record]:
        return [dict(r) for r in self._records]


class JsonStore(Protocol):
    """The part of a store that the ledger needs."""

    def read_json(self, path: str) -> Any: ...

    def write_json(self, path: str, value: Any) -> Any: ...

    def read_jsons(self, paths: Iterable[str]) -> list[Any]: ...

    def list_json(self, prefix: str) -> Any: ...

    def delete_json(self, path: str) -> Any: ...


class StoreLedger:
    """A small document a record below ``bandit/<run>/pulls/``, joined :data:`SEGMENT` at a time.

    Object stores can't append, and a file that is appended to can tear; small documents named by
    their number, written whole, do neither: a kill loses the pull that is being written, at most.
    Once all numbers of a segment are there, they are written as one document, and only then are the
    small ones removed; what a kill leaves between the two says the same twice. So an append costs
    the same whatever the ledger's length, and a restart reads a few hundred documents.

    A number that is missing (a damaged record that ``verify --repair`` dropped) is the next one to
    be used: its pull is the next one that is made again.
    """

    def __init__(self, store: JsonStore, run: str) -> None:
        self._store = store
        self._prefix = f"bandit/{run}/pulls"
        #: By number, the single ones among them, and those that a kill left of joining a segment.
        self._records: dict[int, Record] = {}
        self._single: set[int] = set()
        self._left_over: set[int] = set()
        self._next = 0
        while not self._read():
            pass
        self._tidy = False

    def append(self, record: Record) -> None:
        while self._next in self._records:
            self._next += 1
        number = self._next
        self._store.write_json(self._path(number), record)
        self._records[number] = dict(record)
        self._single.add(number)
        if self._tidy:
            self._join(number // SEGMENT)
            return
        # Only a writer may: others read a search that is running.
        self._remove(self._left_over)
        for segment in sorted({n // SEGMENT for n in self._single}):
            self._join(segment)
        self._tidy = True

    def records(self) -> list[Record]:
        return [dict(self._records[number]) for number in sorted(self._records)]

    def _read(self) -> bool:
        """Read everything; False if some went while it was read, because a writer joined it."""
        listed = [str(path) for path in self._store.list_json(self._prefix)]
        single = {n: path for path in listed if (n := _number(path, "")) is not None}
        segments = {n: path for path in listed if (n := _number(path, "segments/")) is not None}
        self._records = {}
        for number, content in zip(
            segments, self._store.read_jsons(segments.values()), strict=True
        ):
            if content is None:
                return False
            pulls = content.get("pulls") if isinstance(content, dict) else None
            if not isinstance(pulls, list):
                raise StoreCorrupt(f"{segments[number]} is no segment of a ledger; {_REMEDY}")
            self._records.update(enumerate(pulls, start=number * SEGMENT))
        self._left_over = single.keys() & self._records.keys()
        self._single = single.keys() - self._left_over
        paths = [single[number] for number in self._single]
        for number, record in zip(self._single, self._store.read_jsons(paths), strict=True):
            if record is None:
                return False
            self._records[number] = record
        for number, record in self._records.items():
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise StoreCorrupt(f"{self._path(number)} is no entry of a ledger; {_REMEDY}")
        return True

    def _join(self, segment: int) -> None:
        """Make one document of a segment's, if all are there."""
        numbers = range(segment * SEGMENT, (segment + 1) * SEGMENT)
        if not all(number in self._single for number in reversed(numbers)):
            return
        pulls = [self._records[number] for number in numbers]
        self._store.write_json(f"{self._prefix}/segments/{segment:06d}.json", {"pulls": pulls})
        self._remove(numbers)
        self._single.difference_update(numbers)

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._store.delete_json(self._path(number))

    def _path(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.json"


def _number(path: str, folder: str) -> int | None:
    """The number of a document of ``pulls/<folder>``; None if it is not there."""
    found = re.search(rf"/pulls/{folder}(\d+)\.json$", path)
    return int(found[1]) if found else None
