"""Why pods don't start: Kubernetes' own words, with what can be done about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from batchsweep.jobs.kubernetes_objects import Object

Kind = Literal["image", "container", "claim", "node", "quota", "refused", "memory"]

COMPONENT_LABEL = "app.kubernetes.io/component"
JOB_LABEL = "batch.kubernetes.io/job-name"
#: In the order in which their Jobs start.
COMPONENTS = ("prepare", "search", "wave", "extract", "bandit")

_REMEDIES: dict[Kind, str] = {
    "image": "push the image to where the nodes find it and name it with --image (private: "
    "--image-pull-secret; kind and minikube: 'kind load docker-image NAME', 'minikube image load "
    "NAME')",
    "container": "make what it asks for, or set what the container is given with --patch",
    "claim": "the volumes need a class that gives ReadWriteMany: --storage-class, or a store at s3://",
    "node": "wait for a node, or ask for less or for others: --gpu, --gpu-type, --cpu, --memory, "
    "--node-selector, --toleration",
    "quota": "wait, have the quota raised, or ask for less: --parallel, --cpu, --memory",
    "refused": "give what the cluster asks for: --namespace, --service-account, --priority-class, "
    "--label, --annotation, --patch",
    "memory": "raise --memory, or lower embedding.batch_tokens",
}

#: They don't pass by themselves: somebody has to change something.
_LASTING: frozenset[Kind] = frozenset({"image", "container", "refused"})

_WAITING: dict[str, Kind] = {
    "ErrImagePull": "image",
    "ImagePullBackOff": "image",
    "ErrImageNeverPull": "image",
    "InvalidImageName": "image",
    "RegistryUnavailable": "image",
    "CreateContainerConfigError": "container",
    "CreateContainerError": "container",
    "RunContainerError": "container",
}

_POD_EVENTS: dict[str, Kind] = {
    "FailedMount": "claim",
    "FailedAttachVolume": "claim",
    "FailedScheduling": "node",
}


@dataclass(frozen=True)
class Trouble:
    """Pods of one Job's component that can't start, for one reason."""

    component: str
    kind: Kind
    job: str
    words: str
    """Kubernetes' own."""

    @property
    def lasting(self) -> bool:
        """Whether waiting alone won't help."""
        return self.kind in _LASTING

    def __str__(self) -> str:
        verb = "was killed" if self.kind == "memory" else "can't start"
        return f"{self.component} {verb}: {self.words} -- {_REMEDIES[self.kind]}"


def troubles(
    jobs: Sequence[Object],
    pods: Sequence[Object],
    claims: Sequence[Object],
    events: Sequence[Object],
) -> tuple[Trouble, ...]:
    """One trouble for each component and kind, in the order in which Jobs start."""
    open_jobs = {job["metadata"]["name"]: job for job in jobs if not _ended(job)}
    found: dict[tuple[str, Kind], Trouble] = {}
    for pod in pods:
        labels = pod["metadata"].get("labels", {})
        job = open_jobs.get(labels.get(JOB_LABEL, ""))
        if job is None or "deletionTimestamp" in pod["metadata"]:
            continue
        for kind, words in _of_pod(pod, claims, events):
            _keep(found, job, kind, words)
    for job in open_jobs.values():
        if job["status"].get("active", 0) < _wanted(job):
            for event in _events_of(job, events):
                if event.get("reason") == "FailedCreate":
                    words = str(event.get("message", ""))
                    _keep(found, job, "quota" if "exceeded quota" in words else "refused", words)
    return tuple(sorted(found.values(), key=lambda t: (COMPONENTS.index(t.component), t.kind)))


def _keep(found: dict[tuple[str, Kind], Trouble], job: Object, kind: Kind, words: str) -> None:
    """Of several words for one trouble, the longest say most."""
    component = job["metadata"]["labels"][COMPONENT_LABEL]
    there = found.get((component, kind))
    if there is None or len(words) > len(there.words):
        name = job["metadata"]["name"]
        found[component, kind] = Trouble(component, kind, name, " ".join(words.split()))


def _ended(job: Object) -> bool:
    conditions = job.setdefault("status", {}).get("conditions", [])
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def _wanted(job: Object) -> int:
    """Pods that should be there now."""
    spec, status = job["spec"], job["status"]
    if spec.get("suspend"):
        return 0
    left = spec.get("completions", 1) - status.get("succeeded", 0)
    return int(min(spec.get("parallelism", 1), left))


def _of_pod(
    pod: Object, claims: Sequence[Object], events: Sequence[Object]
) -> Iterator[tuple[Kind, str]]:
    status = pod["status"]
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        state = container.get("state", {})
        waiting, ended = state.get("waiting", {}), state.get("terminated", {})
        kind = _WAITING.get(waiting.get("reason", ""))
        if kind is not None:
            yield kind, f"{waiting['reason']}: {waiting.get('message') or container['image']}"
        if ended.get("reason") == "OOMKilled":
            yield "memory", f"OOMKilled: container {container['name']} of {pod['metadata']['name']}"
    if status.get("phase") == "Pending":
        yield from _of_pending(pod, events)
        yield from _of_claims(claims, events)


def _of_pending(pod: Object, events: Sequence[Object]) -> Iterator[tuple[Kind, str]]:
    """Why a pod has no node, or what its node lacks for it."""
    conditions = pod["status"].get("conditions", [])
    for condition in conditions:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _unscheduled(str(condition.get("message", "")))
    for event in _events_of(pod, events):
        reason, words = event.get("reason", ""), str(event.get("message", ""))
        kind = _POD_EVENTS.get(reason)
        if kind == "node" and not conditions:
            yield _unscheduled(words)
        elif kind == "claim":
            yield kind, words
        elif reason == "Failed" and "image" in words.lower():
            yield "image", words


def _unscheduled(words: str) -> tuple[Kind, str]:
    return ("claim" if "persistentvolumeclaim" in words.lower() else "node"), words


def _of_claims(claims: Sequence[Object], events: Sequence[Object]) -> Iterator[tuple[Kind, str]]:
    for claim in claims:
        if claim.get("status", {}).get("phase") == "Pending":
            for event in _events_of(claim, events):
                name = claim["metadata"]["name"]
                yield "claim", f"volume claim {name}: {event.get('message', '')}"


def _events_of(item: Object, events: Sequence[Object]) -> Iterator[Object]:
    """Those of this very object, not of an earlier one of its name."""
    metadata = item["metadata"]
    for event in events:
        about = event.get("involvedObject", {})
        same = about.get("name") == metadata["name"] and about.get("kind") == item.get(
            "kind", about.get("kind")
        )
        if same and about.get("uid", "") in ("", metadata.get("uid", "")):
            yield event
