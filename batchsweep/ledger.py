"""The ledger: every pull, appended before it counts. What a killed bandit goes on from."""

from __future__ import annotations

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
    their number do neither.
    """

    def __init__(self, store: JsonStore, run: str) -> None:
        self._store = store
        self._prefix = f"bandit/{run}/pulls"
        self._records: list[Record] = []
        for path in sorted(str(p) for p in store.list_json(self._prefix)):
            record = store.read_json(path)
            if record is not None:
                self._records.append(record)

    def append(self, record: Record) -> None:
        path = f"{self._prefix}/{len(self._records):06d}.json"
        self._store.write_json(path, record)
        self._records.append(dict(record))

    def records(self) -> list[Record]:
        return [dict(r) for r in self._records]
