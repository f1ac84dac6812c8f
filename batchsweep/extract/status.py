"""How far each index is: from the plan, the seals, and the notes of those that gave up."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from batchsweep.errors import StoreError, TryAgain, UsageError
from batchsweep.plan.plan import Plan, load_plan
from batchsweep.store import Store, open_store
from batchsweep.store.notes import outcome_path
from batchsweep.store.pairs import ready_tasks

logger = logging.getLogger(__name__)

State = Literal["sealed", "open", "waiting", "skipped", "failed"]
#: Seconds between two looks of ``wait``.
_POLL = 10.0


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

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "aliases": list(self.aliases), "ready": list(self.ready)}


def index_statuses(store: Store, plan: Plan, *, pairs: bool = True) -> list[IndexStatus]:
    """The state of every index, then of the checkpoints that got none.

    Args:
        pairs: find out which tasks are ready, too: it reads the seals of all open groups, which is
            too much for somebody who looks every few seconds.
    """
    groups = {group.key: group for group in store.status()}
    noted = set(store.list_json("outcomes"))
    gave_up = [key for key in groups if outcome_path(key) in noted and not groups[key].complete]
    ready = ready_tasks(store, None if pairs else gave_up)
    rows = []
    for entry in plan.entries:
        group = groups.get(entry.key)
        state: State = "waiting"
        note = ""
        if group is not None and group.complete:
            state = "sealed"
        elif group is not None:
            state = "open"
        mine = ready.get(entry.key, ())
        if state != "sealed" and outcome_path(entry.key) in noted:
            outcome = store.read_json(outcome_path(entry.key)) or {}
            # What was asked for may have been made since.
            asked = outcome.get("tasks")
            if asked is None or not set(asked) <= set(mine):
                state, note = outcome.get("state", "failed"), outcome.get("message", "")
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


def wait(url: str, wanted: str) -> None:
    """Return once ``wanted`` (a number, or ``all``) indexes are sealed, or none is left to come.

    Raises:
        UsageError: ``wanted`` is neither.
    """
    if wanted != "all" and not (wanted.isascii() and wanted.isdigit()):
        raise UsageError(f"--wait {wanted}: give a number of indexes, or 'all'")
    said = ""
    while True:
        try:
            store = open_store(url)
            rows = [
                r
                for r in index_statuses(store, load_plan(store), pairs=False)
                if r.index is not None
            ]
        except (StoreError, UsageError, TryAgain) as error:
            # Not prepared yet.
            rows, now = [], str(error)
        else:
            now = counts(rows)
            sealed = sum(row.state == "sealed" for row in rows)
            to_come = sum(row.state in ("open", "waiting") for row in rows)
            if not to_come or (wanted != "all" and sealed >= int(wanted)):
                return
        if now != said:
            logger.info("waiting for %s sealed indexes: %s", wanted, now)
            said = now
        time.sleep(_POLL)
