"""How far each index is: from the plan, the seals, and the notes of those that gave up."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from batchsweep.config import Config
from batchsweep.errors import (
    IndexFailed,
    NoStore,
    StoreError,
    StoreMismatch,
    TryAgain,
    UsageError,
)
from batchsweep.plan.frozen import check_frozen, load_plan
from batchsweep.plan.plan import Plan
from batchsweep.store import Store, open_store
from batchsweep.store.notes import note_path, noted, read_note
from batchsweep.store.pairs import ready_tasks

logger = logging.getLogger(__name__)

#: Between two looks at indexes that are waited for.
POLL_SECONDS = 10.0

State = Literal["sealed", "open", "waiting", "skipped", "failed"]


@dataclass(frozen=True)
class IndexStatus:
    """One row of ``batchsweep status``."""

    index: int | None
    """None: skipped when the plan was made, and so without an index."""
    model: str
    revision: str
    aliases: tuple[str, ...]
    state: State
    """``sealed`` to the end; ``open``: some blocks are; ``waiting``: none; ``skipped``,
    ``failed``: see ``note``."""
    sealed: int
    """Blocks sealed."""
    blocks: int
    """Blocks in all; 0 where nobody has begun."""
    ready: tuple[str, ...] = ()
    """Tasks whose rows are all sealed: the pairs that can be scored."""
    note: str = ""
    refused: bool = False
    """The last run of it ended as wrong usage (exit code 2): no index can go on as it is."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "aliases": list(self.aliases), "ready": list(self.ready)}


def index_statuses(store: Store, plan: Plan, *, pairs: bool = True) -> list[IndexStatus]:
    """The state of every index, then of the checkpoints that got none.

    Args:
        pairs: find out which tasks are ready, too: it reads the seals of all open groups, which is
            too much for somebody who looks every few seconds.
    """
    groups = {group.key: group for group in store.status()}
    notes = noted(store)
    gave_up = [key for key in groups if note_path(key) in notes and not groups[key].complete]
    ready = ready_tasks(store, None if pairs else gave_up)
    rows = []
    for entry in plan.entries:
        group = groups.get(entry.key)
        state: State = "waiting"
        note, refused = "", False
        if group is not None and group.complete:
            state = "sealed"
        elif group is not None:
            state = "open"
        mine = ready.get(entry.key, ())
        if state != "sealed" and note_path(entry.key) in notes:
            outcome = read_note(store, note_path(entry.key))
            # What was asked for may have been made since.
            asked = () if outcome is None else outcome.tasks
            if outcome is not None and (asked is None or not set(asked) <= set(mine)):
                note = outcome.message
                if outcome.ending == "refused":
                    refused = True
                else:
                    state = outcome.ending
        rows.append(
            IndexStatus(
                index=entry.index,
                model=entry.checkpoint.model,
                revision=entry.checkpoint.revision,
                aliases=entry.checkpoint.aliases,
                state=state,
                sealed=group.sealed if group is not None else 0,
                blocks=group.blocks if group is not None else 0,
                ready=mine,
                note=note,
                refused=refused,
            )
        )
    rows += [
        IndexStatus(
            index=None,
            model=skipped.model,
            revision=skipped.revision,
            aliases=(),
            state="skipped",
            sealed=0,
            blocks=0,
            note=f"{skipped.reason}: {skipped.detail}",
        )
        for skipped in plan.skipped
    ]
    return rows


def counts(rows: Sequence[IndexStatus]) -> str:
    """One line: how many indexes are in which state."""
    order: tuple[State, ...] = ("sealed", "open", "waiting", "failed", "skipped")
    numbers = {state: sum(row.state == state for row in rows) for state in order}
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number)


def pairs_ready(rows: Sequence[IndexStatus], tasks: int) -> str:
    """One line: how many (checkpoint, task) pairs of the plan can be scored."""
    ready = sum(len(row.ready) for row in rows)
    pairs = tasks * sum(row.index is not None for row in rows)
    return f"{ready:,} of {pairs:,} pairs ready"


def wait(config: Config, wanted: str) -> None:
    """Return once ``wanted`` (a number, or ``all``) indexes are sealed, or none is left to come.

    Raises:
        UsageError: ``wanted`` is neither; or an index ended as wrong usage, which stops them all.
        IndexFailed: none is left to come, and none is sealed.
        StoreError: the store or the plan is damaged, or the config isn't the plan's any more, at
            two looks.
    """
    if wanted != "all" and not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 6):
        raise UsageError(f"--wait {wanted[:40]}: give a number of indexes, or 'all'")
    said = fault = ""
    while True:
        try:
            now = _to_wait_for(config, wanted)
        except (NoStore, TryAgain) as error:
            now = str(error)  # Not prepared yet, or out of reach in passing.
        except StoreError as error:
            # What is being made or mended this moment is whole at the next look.
            if str(error) == fault:
                raise
            now = fault = str(error)
        if not now:
            return
        if now != said:
            logger.info("waiting for %s sealed indexes: %s", wanted, now)
            said = now
        time.sleep(POLL_SECONDS)


def _to_wait_for(config: Config, wanted: str) -> str:
    """How far the indexes are; empty where there is nothing more to wait for."""
    store = open_store(config.store_url)
    try:
        plan = load_plan(store)
    except UsageError as error:
        return str(error)  # No plan yet.
    check_frozen(plan, config, store.url, scoring=True)
    rows = [row for row in index_statuses(store, plan, pairs=False) if row.index is not None]
    sealed = sum(row.state == "sealed" for row in rows)
    to_come = sum(row.state in ("open", "waiting") for row in rows)
    if wanted != "all" and sealed >= int(wanted):
        return ""
    ended = [row for row in rows if row.note and row.state != "sealed"]
    if not to_come and not sealed:
        raise IndexFailed(
            f"{store.url}: no index is sealed and none is left to come ({counts(rows)}); "
            f"{_why(ended[0])}"
        )
    if not to_come:
        for row in ended:
            logger.warning("%s: %s", row.state, _why(row))
        return ""
    if refused := [row for row in ended if row.refused]:
        raise UsageError(
            f"{store.url}: {counts(rows)}, and no index can go on: {_why(refused[0])}; put it "
            "right, then run 'batchsweep extract' again"
        )
    try:
        check_frozen(plan, config, store.url)
    except StoreMismatch:
        raise  # Whoever extracts is refused for the same reason.
    except UsageError as error:
        return f"{counts(rows)}; {error}"
    return counts(rows)


def _why(row: IndexStatus) -> str:
    return f"index {row.index} ({row.model}@{row.revision}): {row.note}"
