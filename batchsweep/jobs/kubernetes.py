"""A sweep as plain Kubernetes objects: prepare, extract (an Indexed Job), bandit.

``k8s/`` in the repository is what this module renders for the shipped configs; a test compares
them. Nothing here talks to a cluster: see :mod:`batchsweep.jobs.kubectl`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence

from batchsweep.config import local_path
from batchsweep.errors import UsageError
from batchsweep.jobs.cluster import Cluster
from batchsweep.jobs.exit_rules import RETRIES, max_failed_indexes, pod_failure_policy
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubernetes_objects import ClusterSweep, Object
from batchsweep.jobs.patch import patched

#: Seconds that ``extract`` gets to seal its open block (``--grace``); Kubernetes waits a little
#: longer before it kills, so that the process always leaves by itself.
GRACE = 120
GRACE_MARGIN = 10

#: Which indexes of the plan a Job works on, for growing a sweep later.
INDEXES_ANNOTATION = "batchsweep/indexes"


def sweep_name(name: str) -> str:
    """A config's name as the name of objects.

    Raises:
        UsageError: too long for the host name of a pod.

    Example:
        >>> sweep_name("mteb_layersweep")
        'mteb-layersweep'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    # <sweep>-extract-<indexes>-<index> must fit a DNS label of 63 characters.
    if not slug or len(slug) > 32:
        raise UsageError(
            f"the config's name '{name}' can't name Kubernetes objects: give it a 'name' of 1 to "
            "32 letters and digits"
        )
    return slug


def extract_name(sweep: str, indexes: Sequence[int], *, whole: bool) -> str:
    """The extract Job's name; one for part of the plan carries its indexes."""
    if whole:
        return f"{sweep}-extract"
    text = format_indexes(indexes).replace(",", "-")
    if len(text) > 12:
        text = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{sweep}-extract-{text}"


def render(sweep: ClusterSweep, indexes: Sequence[int], *, whole: bool) -> list[Object]:
    """All objects of a sweep, in the order in which they are applied.

    Args:
        indexes: of the plan, which this extract Job works on.
        whole: they are the whole plan.

    Raises:
        UsageError: the store would not be on the volume.
    """
    check_store(sweep.store_url, sweep.cluster)
    extract = extract_job(sweep, indexes, whole=whole)
    objects = [*sweep.files(), prepare_job(sweep), extract, bandit_job(sweep)]
    return finished(objects, sweep)


def check_store(store_url: str, cluster: Cluster) -> None:
    """Whether the store would be on a volume.

    Raises:
        UsageError: it wouldn't.
    """
    path = local_path(store_url)
    inside = posixpath.join(cluster.workdir, path or "")
    if path is not None and not inside.startswith("/runs/"):
        raise UsageError(
            f"store.path '{store_url}' would be {inside} in the cluster, which isn't on a volume: "
            "it must be below runs/, or a URL such as s3://bucket/store.zarr"
        )


def finished(objects: list[Object], sweep: ClusterSweep) -> list[Object]:
    """With the user's labels and patches, and without a volume for a store at a URL."""
    if local_path(sweep.store_url) is None:
        _without_runs_claim(objects, f"{sweep.name}-runs")
    for item in objects:
        _set_metadata(item, sweep.cluster)
    for patch in sweep.cluster.patches:
        objects = patched(objects, patch)
    return objects


def _set_metadata(item: Object, cluster: Cluster) -> None:
    """Labels and annotations of the user's, which never replace the sweep's own."""
    if cluster.namespace is not None:
        item["metadata"]["namespace"] = cluster.namespace
    pods = [item["spec"]["template"]["metadata"]] if item["kind"] == "Job" else []
    for metadata in (item["metadata"], *pods):
        metadata["labels"] = {**cluster.labels, **metadata["labels"]}
        if cluster.annotations:
            metadata["annotations"] = {**cluster.annotations, **metadata.get("annotations", {})}


def _without_runs_claim(objects: list[Object], name: str) -> None:
    """With the store at a URL, what is left at /runs is the pod's own and goes with it."""
    objects[:] = [o for o in objects if o["metadata"]["name"] != name]
    for item in objects:
        if item["kind"] == "Job":
            volumes = item["spec"]["template"]["spec"]["volumes"]
            runs = next(v for v in volumes if v["name"] == "runs")
            del runs["persistentVolumeClaim"]
            runs["emptyDir"] = {}


def one_pod() -> Object:
    """What a Job of one pod says of its failures."""
    return {
        "backoffLimit": RETRIES,
        "podFailurePolicy": pod_failure_policy(indexed=False),
        "podReplacementPolicy": "Failed",
    }


def prepare_job(sweep: ClusterSweep) -> Object:
    """Corpus and frozen plan, once, on a CPU."""
    container = sweep.container("prepare", ["prepare", *sweep.config_arguments])
    return sweep.job("prepare", one_pod(), sweep.pod("prepare", [container]))


def extract_job(sweep: ClusterSweep, indexes: Sequence[int], *, whole: bool) -> Object:
    """One pod per checkpoint.

    It is made suspended and released once the plan is frozen: an init container that waits would
    hold the pod's GPU, because a pod is scheduled by its largest request.
    """
    more = [] if whole else ["--indexes", format_indexes(indexes)]
    spec = {
        "suspend": True,
        "completionMode": "Indexed",
        "completions": len(indexes),
        "parallelism": min(sweep.cluster.parallelism, len(indexes)),
        "backoffLimitPerIndex": RETRIES,
        "maxFailedIndexes": max_failed_indexes(len(indexes)),
        "podFailurePolicy": pod_failure_policy(indexed=True),
        "podReplacementPolicy": "Failed",
    }
    name = extract_name(sweep.name, indexes, whole=whole)
    job = sweep.job("extract", spec, extract_pod(sweep, "extract", more), name=name)
    job["metadata"]["annotations"] = {INDEXES_ANNOTATION: format_indexes(indexes)}
    queued(job, sweep.cluster)
    return job


def queued(job: Object, cluster: Cluster) -> None:
    """What Kueue reads."""
    if cluster.queue is not None:
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = cluster.queue
        if job["spec"]["parallelism"] > 1:
            # Indexes wait for one another in nothing: it may start with fewer GPUs than asked for.
            annotations = job["metadata"].setdefault("annotations", {})
            annotations["kueue.x-k8s.io/job-min-parallelism"] = "1"


def extract_pod(sweep: ClusterSweep, component: str, more: Sequence[str] = ()) -> Object:
    """A pod with a GPU that extracts one checkpoint."""
    cluster = sweep.cluster
    arguments = ["extract", *sweep.config_arguments, "--grace", str(GRACE), *more]
    if cluster.metrics_port is not None:
        arguments += ["--metrics-port", str(cluster.metrics_port)]
    container = sweep.container("extract", arguments)
    pod = sweep.pod(component, [container])
    pod["spec"]["terminationGracePeriodSeconds"] = GRACE + GRACE_MARGIN
    if cluster.metrics_port is not None:
        container["ports"] = [{"name": "metrics", "containerPort": cluster.metrics_port}]
        pod["metadata"]["annotations"] = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(cluster.metrics_port),
        }
    if cluster.gpu is not None:
        container["resources"]["limits"][cluster.gpu] = 1
        pod["spec"]["tolerations"] = [
            {"key": cluster.gpu, "operator": "Exists", "effect": "NoSchedule"},
            *pod["spec"].get("tolerations", []),
        ]
        if cluster.gpu_type is not None:
            chosen = pod["spec"].get("nodeSelector", {})
            pod["spec"]["nodeSelector"] = {f"{cluster.gpu}.product": cluster.gpu_type, **chosen}
    return pod


def bandit_job(sweep: ClusterSweep) -> Object:
    """The search on a CPU, once enough indexes are sealed.

    Its init container waits for that. The pod holds the bandit's cores meanwhile, but no GPU; in
    exchange nobody has to release it.
    """
    cluster = sweep.cluster
    limits = [n for n in (cluster.bandit_after, cluster.affordable) if n is not None]
    after = str(min(limits)) if limits else "all"
    wait = sweep.container("wait", ["status", *sweep.config_arguments, "--wait", after])
    pod = sweep.pod("bandit", [sweep.container("bandit", ["bandit", *sweep.config_arguments])])
    pod["spec"]["initContainers"] = [wait]
    return sweep.job("bandit", one_pod(), pod)


def to_yaml(objects: Sequence[Object]) -> str:
    """Objects as a stream of YAML documents, keys in the order of the code."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return "---\n".join(
        yaml.dump(item, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
        for item in objects
    )
