"""What the user is told of a sweep in a cluster, and what to do about it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping

from batchsweep.jobs.exit_rules import action_of
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubectl import Commands, selector
from batchsweep.jobs.snapshot import INDEX_LABEL, Snapshot
from batchsweep.jobs.submit import what_next
from batchsweep.jobs.troubles import JOB_LABEL
from batchsweep.table import Column, table_text

logger = logging.getLogger(__name__)


def summary(now: Snapshot) -> str:
    """One line a Job, for logs and for ``--status``."""
    lines = []
    for job in now.jobs:
        counts = Counter(now.index_states.get(i, "waiting").split(":")[0] for i in job.indexes)
        listed = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        reason = f" ({job.reason})" if job.reason else ""
        lines.append(f"{job.name}: {job.state}{reason}{': ' + listed if listed else ''}")
    return "\n".join(lines)


def log_changes() -> Callable[[Snapshot], None]:
    """What logs a snapshot's summary, unless that of the last one was the same."""
    said: str | None = None

    def show(now: Snapshot) -> None:
        nonlocal said
        text = summary(now)
        if text != said:
            said = text
            logger.info("%s", text)

    return show


def advice(now: Snapshot, sweep: str, commands: Commands) -> str:
    """What to do about pods that can't start and about failed indexes; empty if there are none."""
    lines = []
    for trouble in now.troubles:
        lines.append(str(trouble))
        if trouble.lasting:
            lines.append(what_next(trouble, commands))
    failed = sorted(now.failed)
    if failed:
        lines.append(f"{len(failed)} indexes failed:")
        for index in failed:
            code, reason = now.exits.get(index, (None, ""))
            lines.append(f"  {index}: {_what_to_do(code, reason)}")
        # Of the Jobs that had it, pods are most likely left of the last.
        job = [j for j in now.of("extract") if failed[0] in j.failed][-1]
        pods = f"{JOB_LABEL}={job.name},{INDEX_LABEL}={job.position(failed[0])}"
        logs = commands.kubectl("logs", "-l", f"{selector(sweep)},{pods}", "--tail=-1")
        lines.append(f"logs: {logs}")
    if now.left:
        # Its Job failed as a whole: exit 2, or too many failed indexes.
        lines.append(f"{len(now.left)} indexes were given up: {format_indexes(now.left)}")
    if failed or now.left:
        again = format_indexes([*failed, *now.left])
        lines.append(f"again: {commands.launch('--indexes', again, '--apply')}")
    return "\n".join(lines)


def _what_to_do(code: int | None, reason: str) -> str:
    if code is None:
        return "its pods are gone; submit it again and follow the logs"
    if reason == "OOMKilled":
        return "out of memory: raise --memory, or lower embedding.batch_tokens"
    action = action_of(code)
    if action == "fail job":
        return f"exit {code}: wrong usage or config; correct it, then submit again"
    if action == "fail index":
        return (
            f"exit {code}: it can't succeed as it is; see its log, then take the revision out of "
            "the config, or mend the store with 'batchsweep verify'"
        )
    return f"exit {code}: it may pass; submit it again"


def index_table(
    kubernetes: Mapping[int, str], store: Mapping[int, str], names: Mapping[int, str]
) -> str:
    """Kubernetes' view beside the store's, one line an index."""
    columns = [Column(t) for t in ("index", "checkpoint", "Kubernetes", "blocks in the store")]
    rows = [
        (str(i), names.get(i, "?"), kubernetes.get(i, "waiting"), store.get(i, "?"))
        for i in sorted({*kubernetes, *store, *names})
    ]
    table = table_text(columns, rows).rstrip("\n")
    note = "" if store else "\n(the store isn't reached from here: ? is unknown)"
    return table + note
