"""How an index ended without being sealed, as the store notes it: ``outcomes/KEY.json``.

``skipped`` and ``failed`` stay until a later success overrules them. ``refused`` is a run that
ended as wrong usage (exit code 2: no token, no such device), or because no space is left: for that
all indexes stop, and it is over once ``prepare`` or the index is run again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from batchsweep.errors import StoreCorrupt
from batchsweep.store.store import Store

Ending = Literal["skipped", "failed", "refused"]


@dataclass(frozen=True)
class Note:
    """One document."""

    ending: Ending
    message: str
    tasks: tuple[str, ...] | None
    """What was asked for; None: all tasks."""
    exit_code: int | None = None
    """The process's; None: of an earlier version."""


def noted(store: Store) -> set[str]:
    """Paths of all notes."""
    return set(store.list_json("outcomes"))


def note_path(key: str) -> str:
    """Where the note of a checkpoint's key is."""
    return f"outcomes/{key}.json"


def write_note(
    store: Store,
    key: str,
    ending: Ending,
    message: str,
    *,
    tasks: Collection[str] | None,
    **about: str | int,
) -> None:
    """Note how an index ended, and for readers what ``about`` says of it."""
    asked = None if tasks is None else sorted(set(tasks))
    store.write_json(note_path(key), {"state": ending, **about, "tasks": asked, "message": message})


def read_note(store: Store, path: str) -> Note | None:
    """A note; None where there is none any more.

    Raises:
        StoreCorrupt: it isn't one.
    """
    value = store.read_json(path)
    if value is None:
        return None
    try:
        ending, message, tasks = value["state"], value["message"], value.get("tasks")
        if ending not in get_args(Ending) or not isinstance(message, str):
            raise ValueError("no such state, or no message")
        if tasks is not None and not all(isinstance(task, str) for task in tasks):
            raise ValueError("its tasks are no names")
        exit_code = value.get("exit_code")
        if exit_code is not None and type(exit_code) is not int:
            raise ValueError("its exit code is none")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"{store.url}: {path} doesn't say how an index ended ({error}); remove it, then run "
            "'batchsweep extract' again"
        ) from None
    return Note(ending, message, None if tasks is None else tuple(tasks), exit_code)


def forget_refusals(store: Store, *keys: str) -> None:
    """Remove the notes of wrong usage of these checkpoints."""
    for path in noted(store) & {note_path(key) for key in keys}:
        with suppress(StoreCorrupt):  # Whoever asks for the state hears of that.
            note = read_note(store, path)
            if note is not None and note.ending == "refused":
                store.delete_json(path)
