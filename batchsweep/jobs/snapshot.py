"""A sweep as the cluster sees it: its Jobs, what each index does, what keeps pods from starting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchsweep.jobs.index import parse_indexes
from batchsweep.jobs.kubectl import Kubectl
from batchsweep.jobs.kubernetes import INDEXES_ANNOTATION
from batchsweep.jobs.kubernetes_objects import Object
from batchsweep.jobs.troubles import COMPONENT_LABEL, COMPONENTS, JOB_LABEL, Trouble, troubles

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


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
        """Whether it is complete or failed."""
        return self.state in ("complete", "failed")

    def position(self, index: int) -> int:
        """What Kubernetes calls an index of the plan in this Job."""
        return self.indexes.index(index) if self.indexes else index


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
        component=metadata["labels"][COMPONENT_LABEL],
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
    """In the order in which they start; of the same kind, by name."""
    index_states: Mapping[int, str]
    exits: Mapping[int, tuple[int, str]]
    """Last exit code and reason of an index's pods, where one ended badly."""
    troubles: tuple[Trouble, ...] = ()
    running: frozenset[str] = frozenset()
    """Jobs with a pod that runs."""
    sealed: frozenset[int] = frozenset()
    """Indexes that the store has to the end, where it is in reach."""

    def of(self, component: str) -> list[JobView]:
        return [job for job in self.jobs if job.component == component]

    @property
    def succeeded(self) -> frozenset[int]:
        """Indexes that are sealed, or have succeeded in any Job of the sweep."""
        return frozenset(i for job in self.of("extract") for i in job.succeeded) | self.sealed

    @property
    def failed(self) -> frozenset[int]:
        """Indexes that failed, succeeded in no Job, and that no Job still tries."""
        failed = frozenset(i for job in self.of("extract") for i in job.failed)
        return failed - self.succeeded - self._tried

    @property
    def left(self) -> frozenset[int]:
        """Indexes of Jobs that ended before these did, and that no Job still tries."""
        ended = frozenset(i for job in self.of("extract") if job.ended for i in job.indexes)
        return ended - self.succeeded - self.failed - self._tried

    @property
    def _tried(self) -> frozenset[int]:
        """Indexes that a Job has before it."""
        extracts = [job for job in self.of("extract") if not job.ended]
        return frozenset(i for job in extracts for i in set(job.indexes) - job.failed)

    @property
    def broken(self) -> list[JobView]:
        """Failed Jobs, without those whose indexes have all succeeded, there or in another Job."""
        return [
            job
            for job in self.jobs
            if job.state == "failed"
            and not (job.indexes and self.succeeded.issuperset(job.indexes))
        ]


def snapshot(kubectl: Kubectl, sweep: str, sealed: frozenset[int] = frozenset()) -> Snapshot:
    """Ask the cluster for a sweep's Jobs and pods.

    Args:
        sealed: indexes that the store has to the end.
    """
    objects = sorted(kubectl.items("jobs", sweep), key=_order)
    jobs = [job_view(job) for job in objects]
    by_name = {job.name: job for job in jobs}
    states: dict[int, str] = {}
    exits: dict[int, tuple[int, str]] = {}
    running = set()
    pods = kubectl.items("pods", sweep)
    for pod in sorted(pods, key=lambda p: str(p["metadata"].get("creationTimestamp"))):
        labels = pod["metadata"].get("labels", {})
        job = by_name.get(labels.get(JOB_LABEL, ""))
        if job is None:
            continue
        if pod["status"].get("phase") == "Running":
            running.add(job.name)
        if INDEX_LABEL not in labels:
            continue
        position = int(labels[INDEX_LABEL])
        index = job.indexes[position] if job.indexes else position
        states[index] = _pod_state(pod)
        ended = _exit(pod)
        if ended is not None and ended[0] != 0:
            exits[index] = ended
    claims: list[Object] = []
    events: list[Object] = []
    if not all(job.ended or job.name in running for job in jobs):
        claims, events = kubectl.claims(sweep), kubectl.warnings()
    now = Snapshot(
        tuple(jobs),
        states,
        exits,
        troubles=troubles(objects, pods, claims, events),
        running=frozenset(running),
        sealed=sealed,
    )
    states |= dict.fromkeys(now.failed, "failed")
    states |= dict.fromkeys(now.succeeded, "succeeded")
    return now


def _order(job: Object) -> tuple[object, ...]:
    """By component, then by name, numbers in it as numbers."""
    name = job["metadata"]["name"]
    natural = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name)]
    component = job["metadata"]["labels"][COMPONENT_LABEL]
    return (COMPONENTS.index(component) if component in COMPONENTS else len(COMPONENTS), natural)


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
