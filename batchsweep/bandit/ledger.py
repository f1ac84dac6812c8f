"""The ledger: every pull, appended before it counts. What a killed bandit goes on from."""

from __future__ import annotations

from itertools import count
from typing import Any, Protocol

Record = dict[str, Any]


class Ledger(Protocol):
    """An append-only list of JSON objects. ``append`` returns once the record is safe."""

    def append(self, record: Record) -> None: ...

    def records(self) -> list[Record]: ...


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

    def list_json(self, prefix: str) -> Any: ...


class StoreLedger:
    """One small object per record below ``bandit/<run>/``, written whole.

    Object stores can't append, and a file that is appended to can tear; small objects named by
    their number do neither. A number that is missing (a damaged record that ``verify --repair``
    dropped) is the next one to be used: its pull is the next one that is made again.
    """

    def __init__(self, store: JsonStore, run: str) -> None:
        self._store = store
        self._prefix = f"bandit/{run}/pulls"
        self._records: dict[str, Record] = {}
        for path in sorted(str(p) for p in store.list_json(self._prefix)):
            record = store.read_json(path)
            if record is not None:
                self._records[path] = record

    def append(self, record: Record) -> None:
        paths = (f"{self._prefix}/{number:06d}.json" for number in count())
        path = next(path for path in paths if path not in self._records)
        self._store.write_json(path, record)
        self._records[path] = dict(record)

    def records(self) -> list[Record]:
        return [dict(record) for _, record in sorted(self._records.items())]
