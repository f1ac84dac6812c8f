"""Tasks of your own from files: JSONL, Parquet, or a Python file of yours.

A task of one part is one file; a task of several parts is a folder with one file per part
(``train.jsonl``, ``test.jsonl``; ``corpus.parquet``, ...). Which type has which parts and columns:
:mod:`batchsweep.tasks.local`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask

from batchsweep.config import LocalTask
from batchsweep.errors import ConfigError, Terminated, first_line
from batchsweep.tasks.local import KINDS, from_columns


def load(entry: LocalTask) -> AbsTask:
    """The mteb task that a config's local task describes.

    Raises:
        ConfigError: a missing file, column or part, or a value of the wrong type, with its place.
    """
    if entry.type == "python":
        return _from_python(entry)
    kind = KINDS[entry.type]
    path = entry.path
    if len(kind.needs) == 1:
        if path.is_dir():
            raise ConfigError(
                f"{path}: task '{entry.name}' ({entry.type}) needs a file, not a folder"
            )
        files = {next(iter(kind.needs)): path}
    else:
        files = {part: _part_file(entry, part, tuple(kind.needs)) for part in kind.needs}
    parts, rows = {}, {}
    for part, file in files.items():
        columns, rows[part] = _read(file, entry.name)
        parts[part] = _renamed(columns, entry, file)
    return from_columns(entry.name, entry.type, parts, where=str(path), rows=rows)


def _part_file(entry: LocalTask, part: str, parts: tuple[str, ...]) -> Path:
    if not entry.path.is_dir():
        what = "is a file" if entry.path.exists() else "does not exist"
        raise ConfigError(
            f"{entry.path}: {what}; task '{entry.name}' ({entry.type}) needs a folder with "
            f"{', '.join(f'{p}.jsonl' for p in parts)} (or .parquet)"
        )
    for suffix in (".jsonl", ".parquet"):
        file = entry.path / f"{part}{suffix}"
        if file.exists():
            return file
    raise ConfigError(
        f"{entry.path}: task '{entry.name}' ({entry.type}) has no {part}.jsonl or {part}.parquet"
    )


def _renamed(columns: dict[str, list[Any]], entry: LocalTask, file: Path) -> dict[str, list[Any]]:
    """The columns under the names that the task type gives them."""
    for ours, theirs in entry.columns.items():
        if theirs in columns:
            columns[ours] = columns.pop(theirs)
        elif len(KINDS[entry.type].needs) == 1:
            raise ConfigError(
                f"{file}: task '{entry.name}': no column '{theirs}' (for '{ours}'); "
                f"it has {', '.join(columns)}"
            )
    return columns


def _read(path: Path, name: str) -> tuple[dict[str, list[Any]], list[str]]:
    """All columns of a JSONL or Parquet file, and where each row is, for messages.

    A key that a line lacks is None there.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                numbered = [(n, _row(line, f"{path}:{n}")) for n, line in enumerate(lines, start=1)]
            rows = [(n, row) for n, row in numbered if row is not None]
            keys = dict.fromkeys(key for _, row in rows for key in row)
            columns = {key: [row.get(key) for _, row in rows] for key in keys}
            return columns, [f"{path}:{n}" for n, _ in rows]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (task '{name}')") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read (task '{name}'): {first_line(error)}") from None
    raise ConfigError(f"{path}: task '{name}': a data file ends in .jsonl or .parquet")


def _read_parquet(path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns: dict[str, list[Any]] = table.to_pydict()
    except (pa.ArrowException, TypeError, LookupError, MemoryError) as error:
        # Damage shows as any of them.
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return columns, [f"{path}: row {row}" for row in range(table.num_rows)]


def _row(line: bytes, where: str) -> dict[str, Any] | None:
    """The object on a line; None if there is nothing."""
    try:
        text = line.decode("utf-8-sig")
        row = json.loads(text) if text.strip() else None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not valid UTF-8") from None
    except (ValueError, RecursionError):  # Thousands of digits, or of brackets.
        raise ConfigError(f"{where}: a number too long or values nested too deep") from None
    if row is not None and not isinstance(row, dict):
        raise ConfigError(f"{where}: a line is one JSON object")
    return row


def _from_python(entry: LocalTask) -> AbsTask:
    """The task named ``entry.name`` that a Python file of the user's defines."""
    if not entry.path.is_file():
        raise ConfigError(f"{entry.path}: no such file (task '{entry.name}')")
    place = hashlib.sha256(str(entry.path.resolve()).encode()).hexdigest()
    module_name = f"batchsweep_tasks_{place[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, entry.path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{entry.path}: task '{entry.name}' of type python needs a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            if isinstance(error, SystemExit) and error.code == Terminated.exit_code:
                raise  # SIGTERM came while the file ran: that is not the file's doing.
            raise ConfigError(
                f"{entry.path}: {type(error).__name__} while it was run: {error}"
            ) from error
    found = {}
    for value in vars(module).values():
        own = isinstance(value, type) and issubclass(value, AbsTask)
        own = own and value.__module__ == module_name
        if (own or isinstance(value, AbsTask)) and getattr(value, "metadata", None) is not None:
            found[value.metadata.name] = value
    if entry.name not in found:
        raise ConfigError(
            f"{entry.path}: defines no mteb task named '{entry.name}'; it has "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    task = found[entry.name]
    task = task() if isinstance(task, type) else task
    # A change of the code is a change of the task, whatever revision it states.
    task.source_digest = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    return task
