"""The one reader of the score records of a store, and the columnar table beside them.

A record is a document of some kilobytes, mteb's full result included; whoever wants the scores of
thousands reads a table of a few numbers each, ``tables/scores.parquet``. It is derived: a row of it
counts only as long as the record is the very file (or object) that the row was read from, and all
others are read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch
from batchsweep.score.record import REMEDY, ScoreRecord
from batchsweep.store import Fault, GroupSpec, Store
from batchsweep.store.spec import COMPRESSIONS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

#: The table, and the document that says what it is.
TABLE, TABLE_NOTE = "tables/scores.parquet", "tables/scores.json"
#: Of the table; one of another version is made anew.
TABLE_VERSION = 1


def read_record(store: Store, path: str) -> ScoreRecord | None:
    """The record at a path; None if there is none.

    Raises:
        StoreMismatch: it is another arm's or task's.
        StoreCorrupt: it is damaged.
    """
    document = store.read_json(path)
    return None if document is None else ScoreRecord.at(path, document, where=store.url)


def records(store: Store) -> Iterator[ScoreRecord]:
    """The record of each whole task that was scored, one by one: all of each.

    Raises:
        StoreMismatch: one is another arm's or task's, or of other vectors than the store has.
        StoreCorrupt: one is damaged.
    """
    origins = Origins(store)
    for path in store.list_json("scores"):
        record = read_record(store, path)
        if record is not None:
            origins.check(record.key, record.group, path)
            yield record


def score_rows(store: Store) -> pd.DataFrame:
    """One row a record below ``scores/``: who, and the numbers; sorted by path.

    Columns: ``path``, ``key``, ``layer``, ``pooling``, ``task``, ``model``, ``revision``, ``step``,
    ``commit``, ``score`` (NaN where undefined), ``seconds``, ``mteb_version``,
    ``dataset_revision``, ``max_texts``, ``group``.

    Raises:
        StoreMismatch: a record is another arm's or task's, or of other vectors than the store has.
        StoreCorrupt: one is damaged.
    """
    stamps = store.stamps("scores")
    known, fresh = _known(store, stamps)
    rows = store.map(lambda path: _row(store, path), fresh)
    new = [(path, stamps[path], *row) for path, row in zip(fresh, rows, strict=True) if row]
    table = _joined(known, new)
    if len(table) != (0 if known is None else len(known)):
        # A store that can't be written is read all the same, only less quickly.
        with contextlib.suppress(StoreError):
            _keep(store, table)
    frame: pd.DataFrame = table.drop_columns(["stamp"]).to_pandas()
    origins = Origins(store)
    for row in frame.drop_duplicates(["key", "group"]).itertuples():
        origins.check(str(row.key), row.group if isinstance(row.group, str) else None, row.path)
    _warn_of_mixtures(store, frame)
    return frame.astype({"step": "Int64", "max_texts": "Int64"})


def _warn_of_mixtures(store: Store, rows: pd.DataFrame) -> None:
    """Say so where arms were scored on a task by unlike means: which is best may hang on it."""
    decides = ["mteb_version", "dataset_revision", "max_texts"]
    several = rows.groupby("task")[decides].nunique(dropna=False).max(axis=1)
    mixed = several.index[several > 1].tolist()
    if mixed:
        shown = ", ".join(mixed[:3]) + (" ..." if len(mixed) > 3 else "")
        logger.warning(
            "%s: some arms were scored with another mteb, data revision or cap than others, and "
            "can't be compared with them, on %d tasks: %s; 'batchsweep bandit' scores what it "
            "pulls again",
            store.url,
            len(mixed),
            shown,
        )


def misplaced(store: Store) -> list[Fault]:
    """The records that a reader refuses, for ``batchsweep verify``.

    Documents that are torn are not among them: :func:`batchsweep.store.verify` finds those.
    """
    found = []
    origins = Origins(store)
    for path in [*store.list_json("scores"), *store.list_json("subsets")]:
        try:
            document = store.read_json(path)
        except StoreCorrupt:
            continue
        if document is None:
            continue
        try:
            record = ScoreRecord.at(path, document, where=store.url)
            origins.check(record.key, record.group, path)
        except StoreError as error:
            what = str(error).partition(f"; {REMEDY}")[0].removeprefix(f"{store.url}: ")
            found.append(Fault("document", what, path=path))
    return found


class Origins:
    """Which vectors the store has now, to hold records against."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._groups: dict[str, frozenset[str]] = {}

    def are(self, key: str, group: str | None) -> bool:
        """Whether these are a checkpoint's vectors: a spec digest, or how it begins.

        One that doesn't say (None) passes, and so does one whose vectors are gone.
        """
        if key not in self._groups:
            there = key in self._store
            self._groups[key] = digests(self._store.reader(key).spec) if there else frozenset()
        now = self._groups[key]
        return group is None or not now or any(digest.startswith(group) for digest in now)

    def check(self, key: str, group: str | None, path: str) -> None:
        """Refuse a record of other vectors."""
        if not self.are(key, group):
            raise StoreMismatch(
                f"{self._store.url}: {path} was computed from other vectors (spec "
                f"{str(group)[:12]}) than {key} has now; {REMEDY}"
            )


def digests(spec: GroupSpec) -> frozenset[str]:
    """Spec digests (hex) of groups with the same vectors: compression changes none."""
    return frozenset(replace(spec, compression=how).digest.hex() for how in COMPRESSIONS)


# The table


#: Column -> (its type, what a record says there); before them stand ``path`` and ``stamp``.
_COLUMNS: dict[str, tuple[str, Callable[[ScoreRecord], Any]]] = {
    "key": ("string", lambda r: r.key),
    "layer": ("int64", lambda r: r.layer),
    "pooling": ("string", lambda r: r.pooling),
    "task": ("string", lambda r: r.task),
    "model": ("string", lambda r: r.model),
    "revision": ("string", lambda r: r.revision),
    "step": ("int64", lambda r: r.step),
    "commit": ("string", lambda r: r.commit),
    "score": ("float64", lambda r: r.main_score),
    "seconds": ("float64", lambda r: r.seconds),
    "mteb_version": ("string", lambda r: r.document.get("mteb_version")),
    "dataset_revision": ("string", lambda r: r.document.get("dataset_revision")),
    "max_texts": ("int64", lambda r: r.max_texts),
    "group": ("string", lambda r: r.group),
}


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"path": "string", "stamp": "string"} | {n: kind for n, (kind, _) in _COLUMNS.items()}
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])


def _row(store: Store, path: str) -> tuple[Any, ...] | None:
    """A record's row, less path and stamp; None if it is gone."""
    record = read_record(store, path)
    return None if record is None else tuple(said(record) for _, said in _COLUMNS.values())


def _known(store: Store, stamps: dict[str, str]) -> tuple[pa.Table | None, list[str]]:
    """The rows of the kept table that still hold, and the paths of all other records."""
    import pyarrow as pa

    # Rows whose records are gone are welcome, but not without end: a store may be a stranger's.
    kept = _kept(store, 2 * len(stamps) + 1000)
    if kept is None:
        return None, sorted(stamps)
    paths = kept["path"].to_pylist()
    holds = [stamps.get(p) == s for p, s in zip(paths, kept["stamp"].to_pylist(), strict=True)]
    there = {path for path, same in zip(paths, holds, strict=True) if same}
    known = kept if all(holds) else kept.filter(pa.array(holds, pa.bool_()))
    return known, sorted(stamps.keys() - there)


def _joined(known: pa.Table | None, new: Iterable[tuple[Any, ...]]) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    columns = list(zip(*new, strict=True)) or [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    if known is None:
        return table
    return pa.concat_tables([known, table]).sort_by("path") if len(table) else known


def _kept(store: Store, most: int) -> pa.Table | None:
    """The table beside the records, of ``most`` rows; None if there is none that is sound."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        note = store.read_json(TABLE_NOTE)
    except StoreError:
        return None
    if not isinstance(note, dict) or note.get("version") != TABLE_VERSION:
        return None
    content = store.read_bytes(TABLE)
    if content is None or hashlib.sha256(content).hexdigest() != note.get("sha256"):
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.metadata.num_rows > most or not _is_plain(file.metadata):
            return None
        table = file.read()
    except (pa.ArrowException, OSError):
        return None
    return table if table.schema.equals(_schema()) else None


def _is_plain(metadata: Any) -> bool:
    """Whether nothing is compressed: then the table takes little more memory than the file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return all(
        group.column(number).compression == "UNCOMPRESSED"
        for group in groups
        for number in range(group.num_columns)
    )


def _keep(store: Store, table: pa.Table) -> None:
    """Write the table beside the records; the note last, without which it doesn't count."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content, compression="none")
    stored = content.getvalue()
    store.write_bytes(TABLE, stored)
    digest = hashlib.sha256(stored).hexdigest()
    store.write_json(TABLE_NOTE, {"version": TABLE_VERSION, "sha256": digest, "rows": len(table)})
