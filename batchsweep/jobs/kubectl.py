"""Submitting a rendered sweep with kubectl, and following it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from batchsweep.errors import IndexFailed, TryAgain, UsageError
from batchsweep.jobs.exit_rules import action_of
from batchsweep.jobs.index import format_indexes, parse_indexes
from batchsweep.jobs.kubernetes import INDEXES_ANNOTATION, Object
from batchsweep.table import Column, table_text

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 10.0

#: How long a sweep that is being submitted or followed waits for an API server that is away.
OUTAGE_SECONDS = 900.0

_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


class Kubectl:
    """The ``kubectl`` command, set to one namespace."""

    def __init__(self, namespace: str | None = None, *, command: str = "kubectl") -> None:
        self.command = [command, *(["--namespace", namespace] if namespace else [])]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Its standard output.

        Raises:
            UsageError: there is no kubectl, or the cluster refused the request.
            TryAgain: the cluster didn't answer.
        """
        try:
            done = subprocess.run(
                [*self.command, *arguments], input=stdin, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise UsageError(
                "no kubectl on the PATH; without --apply the objects are printed, and "
                "'kubectl apply -f -' takes them elsewhere"
            ) from None
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            message = f"kubectl {' '.join(arguments[:2])}: {lines[-1]}"
            if re.search(r"unable to connect|refused|timed? ?out|TLS handshake", lines[-1], re.I):
                raise TryAgain(message)
            raise UsageError(message)
        return done.stdout

    def items(self, kind: str, sweep: str) -> list[Object]:
        selector = f"app.kubernetes.io/name=batchsweep,app.kubernetes.io/instance={sweep}"
        found: dict[str, Any] = json.loads(self.run("get", kind, "-l", selector, "-o", "json"))
        return list(found["items"])

    def apply(self, objects: Sequence[Object]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "-f", "-", stdin=json.dumps(listed))

    def delete_job(self, name: str) -> None:
        self.run("delete", "job", name, "--wait=true", "--cascade=foreground")

    def release(self, name: str) -> None:
        """Let a suspended Job start its pods."""
        self.run("patch", "job", name, "--type=merge", "-p", '{"spec":{"suspend":false}}')


@dataclass(frozen=True)
class JobView:
    """A Job as Kubernetes sees it, with indexes of the plan."""

    name: str
    component: str
    state: str
    """``suspended``, ``running``, ``complete`` or ``failed``."""
    reason: str
    indexes: tuple[int, ...]
    succeeded: frozenset[int]
    failed: frozenset[int]

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "failed")


def job_view(job: Object) -> JobView:
    """Read a Job's status; its n-th completion is the n-th of its annotation's indexes."""
    status = job.get("status", {})
    metadata = job["metadata"]
    annotation = metadata.get("annotations", {}).get(INDEXES_ANNOTATION)
    indexes = parse_indexes(annotation) if annotation else ()

    def of_plan(key: str) -> frozenset[int]:
        text = status.get(key)
        # A Job that was made by hand has no annotation: then its indexes are the plan's.
        return (
            frozenset(indexes[i] if indexes else i for i in parse_indexes(text))
            if text
            else (frozenset())
        )

    true = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
    state, reason = "running", ""
    if "Failed" in true:
        state, reason = "failed", true["Failed"].get("message", "")
    elif "Complete" in true:
        state = "complete"
    elif job["spec"].get("suspend"):
        state = "suspended"
    return JobView(
        name=metadata["name"],
        component=metadata["labels"]["app.kubernetes.io/component"],
        state=state,
        reason=reason,
        indexes=indexes,
        succeeded=of_plan("completedIndexes"),
        failed=of_plan("failedIndexes"),
    )


@dataclass(frozen=True)
class Snapshot:
    """The Jobs of a sweep, and what the latest pod of each index does."""

    jobs: tuple[JobView, ...]
    index_states: Mapping[int, str]
    exits: Mapping[int, tuple[int, str]]
    """Last exit code and reason of an index's pods, where one ended badly."""

    def of(self, component: str) -> list[JobView]:
        return [job for job in self.jobs if job.component == component]

    @property
    def succeeded(self) -> frozenset[int]:
        """Indexes that have succeeded in any Job of the sweep."""
        return frozenset(i for job in self.of("extract") for i in job.succeeded)

    @property
    def failed(self) -> frozenset[int]:
        """Indexes that failed, succeeded in no Job, and that no Job still tries."""
        extracts = self.of("extract")
        tried = {i for job in extracts if not job.ended for i in set(job.indexes) - job.failed}
        return frozenset(i for job in extracts for i in job.failed) - self.succeeded - tried

    @property
    def broken(self) -> list[JobView]:
        """Failed Jobs, without those whose indexes have all succeeded, there or in another Job."""
        return [
            job
            for job in self.jobs
            if job.state == "failed"
            and not (job.indexes and self.succeeded.issuperset(job.indexes))
        ]


def snapshot(kubectl: Kubectl, sweep: str) -> Snapshot:
    """Ask the cluster for a sweep's Jobs and pods."""
    jobs = [job_view(job) for job in kubectl.items("jobs", sweep)]
    by_name = {job.name: job for job in jobs}
    states: dict[int, str] = {}
    exits: dict[int, tuple[int, str]] = {}
    pods = kubectl.items("pods", sweep)
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp"))):
        labels = pod["metadata"].get("labels", {})
        job = by_name.get(labels.get("batch.kubernetes.io/job-name", ""))
        if job is None or _INDEX_LABEL not in labels:
            continue
        position = int(labels[_INDEX_LABEL])
        index = job.indexes[position] if job.indexes else position
        states[index] = _pod_state(pod)
        ended = _exit(pod)
        if ended is not None and ended[0] != 0:
            exits[index] = ended
    now = Snapshot(tuple(jobs), states, exits)
    states |= dict.fromkeys(now.failed, "failed")
    states |= dict.fromkeys(now.succeeded, "succeeded")
    return now


def _pod_state(pod: Object) -> str:
    status = pod["status"]
    phase = str(status.get("phase", "Unknown")).lower()
    for condition in status.get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"evicted ({condition.get('reason', '')})"
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pending: {condition.get('message', '')}"
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{phase}: {waiting.get('reason', '')}"
    return "retrying" if phase == "failed" else phase


def _exit(pod: Object) -> tuple[int, str] | None:
    for container in pod["status"].get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated")
        if ended:
            return int(ended["exitCode"]), str(ended.get("reason", ""))
    return None


def submit(
    kubectl: Kubectl,
    sweep: str,
    render: Callable[[Sequence[int], bool], list[Object]],
    indexes: Sequence[int],
    *,
    again: bool,
    queue: bool,
    poll: float = POLL_SECONDS,
) -> None:
    """Put a sweep's new indexes into the cluster; those that a Job already has are left to it.

    Args:
        kubectl: the cluster.
        sweep: name of the sweep's objects.
        render: objects for some indexes, and whether these are the whole plan.
        indexes: the plan's, or those that were asked for.
        again: they were asked for by ``--indexes``, whether a Job had them before or not.
        queue: Kueue releases the extract Job, not this function.
        poll: seconds between two looks at the prepare Job.

    Raises:
        UsageError: the cluster refuses an object, or a Job for these indexes is still running.
        IndexFailed: the prepare Job failed.
    """
    jobs = {job.name: job for job in map(job_view, kubectl.items("jobs", sweep))}
    submitted = {i for job in jobs.values() for i in job.indexes}
    new = [i for i in indexes if again or i not in submitted]
    if not new:
        logger.info("all %d indexes are already submitted", len(indexes))
        return
    objects = render(new, not again and len(new) == len(indexes))
    by_component = {o["metadata"]["labels"]["app.kubernetes.io/component"]: o for o in objects}
    prepare, extract, bandit = (by_component[c] for c in ("prepare", "extract", "bandit"))
    busy = [j for j in jobs.values() if not j.ended and set(j.indexes) & set(new)]
    if busy:
        raise UsageError(
            f"Job {busy[0].name} is {busy[0].state} and has some of these indexes; follow it with "
            "--status, or delete it first"
        )
    kubectl.apply([o for o in objects if o["kind"] != "Job"])
    _replace(kubectl, jobs, prepare)
    _wait_for(kubectl, sweep, prepare["metadata"]["name"], poll)
    _replace(kubectl, jobs, extract)
    if not queue:
        _patiently(lambda: kubectl.release(extract["metadata"]["name"]), poll)
    logger.info("submitted %d indexes: %s", len(new), format_indexes(new))
    _replace(kubectl, jobs, bandit)


def _replace(kubectl: Kubectl, jobs: Mapping[str, JobView], job: Object) -> None:
    """Create a Job; an ended one of that name makes room, a running one stays."""
    there = jobs.get(job["metadata"]["name"])
    if there is not None and not there.ended:
        return
    if there is not None:
        kubectl.delete_job(there.name)
    kubectl.apply([job])


def _patiently(request: Callable[[], T], poll: float) -> T:
    """The answer to a request that may be repeated, from a server that may be away for a while."""
    until = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return request()
        except TryAgain as error:
            if time.monotonic() > until:
                raise
            logger.warning("%s; trying again in %g s", error, poll)
        time.sleep(poll)


def _wait_for(kubectl: Kubectl, sweep: str, name: str, poll: float) -> None:
    logger.info("waiting for Job %s to freeze the plan", name)
    while True:
        found = _patiently(lambda: kubectl.items("jobs", sweep), poll)
        job = next((j for j in map(job_view, found) if j.name == name), None)
        if job is not None and job.state == "complete":
            return
        if job is not None and job.state == "failed":
            raise IndexFailed(f"Job {name} failed: {job.reason}; see 'kubectl logs job/{name}'")
        time.sleep(poll)


def follow(
    kubectl: Kubectl,
    sweep: str,
    *,
    show: Callable[[Snapshot], None],
    poll: float = POLL_SECONDS,
) -> Snapshot:
    """Show the sweep until its Jobs have ended, or can't go on; Ctrl-C leaves them running."""
    while True:
        now = _patiently(lambda: snapshot(kubectl, sweep), poll)
        show(now)
        extracts = now.of("extract")
        over = bool(extracts) and all(job.ended for job in extracts)
        # With failed indexes the bandit may wait for good: that is for the user to settle.
        if over and (
            all(job.ended for job in now.of("bandit"))
            or any(job.component == "extract" for job in now.broken)
        ):
            return now
        time.sleep(poll)


def summary(now: Snapshot) -> str:
    """One line a Job, for logs and for ``--status``."""
    lines = []
    for job in now.jobs:
        counts = Counter(now.index_states.get(i, "waiting").split(":")[0] for i in job.indexes)
        listed = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        reason = f" ({job.reason})" if job.reason else ""
        lines.append(f"{job.name}: {job.state}{reason}{': ' + listed if listed else ''}")
    return "\n".join(lines)


def advice(now: Snapshot, config_path: str) -> str:
    """What to do about failed indexes; empty if there are none."""
    failed = sorted(now.failed)
    if not failed:
        return ""
    lines = [f"{len(failed)} indexes failed:"]
    for index in failed:
        code, reason = now.exits.get(index, (None, ""))
        lines.append(f"  {index}: {_what_to_do(code, reason)}")
    lines.append(
        f"logs: kubectl logs -l app.kubernetes.io/component=extract,{_INDEX_LABEL}={failed[0]}"
    )
    lines.append(
        f"again: batchsweep launch k8s --config {config_path} --indexes "
        f"{format_indexes(failed)} --apply"
    )
    return "\n".join(lines)


def _what_to_do(code: int | None, reason: str) -> str:
    if code is None:
        return "its pods are gone; submit it again and follow the logs"
    if reason == "OOMKilled":
        return "out of memory: raise the memory in RESOURCES or lower embedding.batch_tokens"
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
