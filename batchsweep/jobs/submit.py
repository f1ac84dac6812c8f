"""Putting a sweep into a cluster, step by step, and following it to its end.

Every step looks at what is there and does what is missing, so that a submission that was cut off
(the terminal closed, the machine gone) is finished by the same command.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubectl import Commands, Kubectl
from batchsweep.jobs.kubernetes_objects import Object
from batchsweep.jobs.snapshot import JobView, Snapshot, snapshot
from batchsweep.jobs.troubles import COMPONENT_LABEL, Trouble

logger = logging.getLogger(__name__)

#: A Job of which nothing runs, for a reason that doesn't pass, is given up after this long.
LASTING_SECONDS = 300.0


class Render(Protocol):
    """Objects for some indexes, and whether these are the whole plan."""

    def __call__(self, indexes: Sequence[int], *, whole: bool) -> list[Object]: ...


@dataclass
class Watch:
    """Looks at a sweep again and again, and tells every trouble when it is first seen."""

    kubectl: Kubectl
    sweep: str
    """Name of the sweep's objects."""
    commands: Commands
    """What the user is told to type."""
    _: KW_ONLY
    tell: Callable[[str], None]
    """Gets commands for the user to type."""
    show: Callable[[Snapshot], None] = lambda now: None
    """Gets every look."""
    sealed: Callable[[], frozenset[int]] = frozenset
    """Indexes that the store has to the end; asked where an index seems to have failed."""
    lasting: float = field(default_factory=lambda: LASTING_SECONDS)
    """Seconds for which a trouble that doesn't pass by itself is looked at."""
    _since: dict[tuple[str, str], float] = field(default_factory=dict, init=False)

    def look(self) -> Snapshot:
        """The sweep now.

        Raises:
            IndexFailed: a Job can't start its pods, and hasn't for a while; the commands that
                replace it have been told.
        """
        now = snapshot(self.kubectl, self.sweep)
        if now.failed or now.broken:
            sealed = self.sealed()
            if sealed:
                now = snapshot(self.kubectl, self.sweep, sealed)
        self.show(now)
        clock = time.monotonic()
        seen = {(t.job, t.kind): t for t in now.troubles}
        for key, trouble in seen.items():
            if key not in self._since:
                logger.warning("%s", trouble)
        self._since = {key: self._since.get(key, clock) for key in seen}
        for key, trouble in seen.items():
            stuck = trouble.lasting and trouble.job not in now.running
            if stuck and clock - self._since[key] >= self.lasting:
                self.tell(what_next(trouble, self.commands))
                raise IndexFailed(str(trouble))
        return now

    def until(self, over: Callable[[Snapshot], bool]) -> Snapshot:
        """Look until something is the case."""
        while True:
            now = self.look()
            if over(now):
                return now
            time.sleep(self.kubectl.poll)


def what_next(trouble: Trouble, commands: Commands) -> str:
    """The commands that replace a Job whose pods can't start."""
    return (
        f"then: {commands.kubectl('delete', 'job', trouble.job)}\n"
        f"again: {commands.launch('--apply')}"
    )


def submit(
    watch: Watch,
    render: Render,
    indexes: Sequence[int],
    *,
    again: bool,
    queue: bool,
    whole: bool = True,
    resized: Collection[str] = (),
    changed: bool = False,
) -> None:
    """Put a sweep's new indexes into the cluster; those that a Job already has are left to it.

    Args:
        indexes: the plan's, or those that were asked for.
        again: they were asked for by ``--indexes``, whether a Job had them before or not.
        queue: Kueue releases the extract Job, not this function.
        whole: ``indexes`` are the whole plan.
        resized: of the volume claims that are there, those to be changed: ``runs``, ``cache``.
        changed: options were given, so that Jobs that haven't started get them.

    Raises:
        UsageError: the cluster refuses an object or a change, or a Job for these indexes is still
            running.
        IndexFailed: the prepare Job failed, or can't start.
    """
    kubectl, commands = watch.kubectl, watch.commands
    now = snapshot(kubectl, watch.sweep)
    jobs = {job.name: job for job in now.jobs}
    submitted = {i for job in now.jobs for i in job.indexes}
    new = [i for i in indexes if again or i not in submitted]
    halted = [j for j in now.of("extract") if j.state == "suspended" and not queue]
    waiting = [j for j in now.of("extract") if j.state == "suspended" and changed]
    if not new and not halted and not waiting and now.of("bandit"):
        logger.info("all %d indexes are already submitted", len(indexes))
        return
    # Without new indexes, what a call that was cut off has left undone.
    objects = render(new or indexes, whole=whole and not again and len(new) in (0, len(indexes)))
    by_component = {o["metadata"]["labels"][COMPONENT_LABEL]: o for o in objects}
    prepare, extract, bandit = (by_component[c] for c in ("prepare", "extract", "bandit"))
    busy = [j for j in jobs.values() if not j.ended and set(j.indexes) & set(new)]
    if busy:
        raise UsageError(
            f"Job {busy[0].name} is {busy[0].state} and has some of these indexes; follow it with "
            f"'{commands.launch('--status')}', or delete it first: "
            f"'{commands.kubectl('delete', 'job', busy[0].name)}'"
        )
    kubectl.apply(without_claims(objects, kubectl.claims(watch.sweep), resized))
    for job in waiting:
        _change(watch, render, job)
    if new:
        replace_ended(kubectl, jobs, prepare)
    if new or prepare["metadata"]["name"] in jobs:
        _wait_for(watch, prepare["metadata"]["name"])
    if new:
        replace_ended(kubectl, jobs, extract)
    if not queue:
        for name in {*(j.name for j in halted), *([extract["metadata"]["name"]] if new else [])}:
            kubectl.release(name)
    logger.info("submitted %d indexes: %s", len(new), format_indexes(new))
    if new or not now.of("bandit"):
        replace_ended(kubectl, jobs, bandit)


def without_claims(
    objects: Sequence[Object], there: Sequence[Object], resized: Collection[str]
) -> list[Object]:
    """What is no Job, without the volume claims that stay as they are."""
    classes = {o["metadata"]["name"]: o["spec"].get("storageClassName") for o in there}
    kept = []
    for item in objects:
        name = item["metadata"]["name"]
        if item["kind"] == "PersistentVolumeClaim" and name in classes:
            asked = item["spec"].pop("storageClassName", None)
            if asked not in (None, classes[name]):
                logger.warning("volume claim %s stays of class %s", name, classes[name])
            elif asked:
                item["spec"]["storageClassName"] = asked
            if item["metadata"]["labels"][COMPONENT_LABEL] not in resized:
                continue
        if item["kind"] != "Job":
            kept.append(item)
    return kept


def replace_ended(kubectl: Kubectl, jobs: dict[str, JobView], job: Object) -> None:
    """Create a Job; an ended one of that name makes room, a running one stays."""
    there = jobs.get(job["metadata"]["name"])
    if there is not None and not there.ended:
        return
    if there is not None:
        kubectl.delete_job(there.name)
    kubectl.apply([job])


def _change(watch: Watch, render: Render, job: JobView) -> None:
    """Give a Job that waits to be started the options of now."""
    objects = render(job.indexes, whole=job.name == f"{watch.sweep}-extract")
    spec = next(o["spec"] for o in objects if o["metadata"]["name"] == job.name)
    try:
        watch.kubectl.change(job.name, {key: spec[key] for key in ("parallelism", "template")})
    except UsageError as error:
        delete = watch.commands.kubectl("delete", "job", job.name)
        raise UsageError(
            f"Job {job.name} can't be changed while it waits ({error}); delete it first: "
            f"'{delete}', then submit again"
        ) from None


def _wait_for(watch: Watch, name: str) -> None:
    logger.info("waiting for Job %s to freeze the plan", name)

    def over(now: Snapshot) -> bool:
        return any(job.name == name and job.ended for job in now.jobs)

    job = next(j for j in watch.until(over).jobs if j.name == name)
    if job.state == "failed":
        logs = watch.commands.kubectl("logs", f"job/{name}")
        raise IndexFailed(f"Job {name} failed: {job.reason}; see '{logs}'")


def follow(watch: Watch) -> Snapshot:
    """Show the sweep until its Jobs have ended, or can't go on; Ctrl-C leaves them running."""

    def over(now: Snapshot) -> bool:
        extracts = now.of("extract")
        # With failed indexes the bandit may wait for good: that is for the user to settle.
        return (
            bool(extracts)
            and all(job.ended for job in extracts)
            and (
                all(job.ended for job in now.of("bandit"))
                or any(job.component == "extract" for job in now.broken)
            )
        )

    return watch.until(over)
