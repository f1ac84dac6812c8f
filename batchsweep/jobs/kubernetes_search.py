"""A search in a cluster as plain Kubernetes objects: waves, and the pod that asks for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

from batchsweep.jobs import kubernetes, kubernetes_objects
from batchsweep.jobs.cluster import Cluster
from batchsweep.jobs.exit_rules import RETRIES, pod_failure_policy
from batchsweep.jobs.kubernetes_objects import Object

#: The file beside the config that holds the wave Job's template.
TEMPLATE = "wave-job.json"


def render(
    *,
    sweep: str,
    config_file: str,
    config_text: str,
    store_url: str,
    cluster: Cluster,
    driver: bool,
) -> tuple[list[Object], Object]:
    """What a search needs in the cluster, and the template of its waves.

    Args:
        sweep: from :func:`~batchsweep.jobs.kubernetes.sweep_name`.
        config_file: the config's file name.
        config_text: its text, for the ConfigMap.
        store_url: the config's store.
        cluster: what differs from cluster to cluster.
        driver: the search itself runs there too: a Job, with a service account that may make Jobs
            in its namespace and look at them, and nothing else.

    Raises:
        UsageError: the store would not be on the volume.
    """
    kubernetes.check_store(store_url, cluster)
    objects = [
        kubernetes_objects.config_map(sweep, config_file, config_text, cluster),
        kubernetes_objects.claim_object(sweep, "runs", cluster.storage, cluster.storage_class),
        kubernetes_objects.claim_object(sweep, "cache", cluster.cache, cluster.storage_class),
        *(_account(sweep) if driver else ()),
        _template(sweep, config_file, cluster),
        *([_search_job(sweep, config_file, cluster)] if driver else ()),
    ]
    objects = kubernetes.finished(objects, sweep, store_url, cluster)
    template = next(o for o in objects if o["metadata"]["name"] == f"{sweep}-wave")
    objects.remove(template)
    if driver:
        objects[0]["data"][TEMPLATE] = json.dumps(template, indent=1) + "\n"
    return objects, template


def wave_job(template: Object, number: int, attempt: int, checkpoints: int) -> Object:
    """The Indexed Job of a wave: index i is the i-th checkpoint of ``waves/000N.json``.

    Args:
        template: from :func:`render`.
        number: of the document.
        attempt: from 1; a wave is tried again when a search that was cut short goes on.
        checkpoints: of the wave.
    """
    job = copy.deepcopy(template)
    job["metadata"]["name"] += f"-{number}" + (f"-{attempt}" if attempt > 1 else "")
    job["spec"]["completions"] = checkpoints
    job["spec"]["parallelism"] = min(job["spec"]["parallelism"], checkpoints)
    (container,) = (
        c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == "extract"
    )
    container["args"] = [*container["args"], "--wave", str(number)]
    return job


def _template(sweep: str, config_file: str, cluster: Cluster) -> Object:
    """Any number of its checkpoints may fail: the search goes on with what is there."""
    spec = {
        "completionMode": "Indexed",
        "completions": cluster.parallelism,
        "parallelism": cluster.parallelism,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": pod_failure_policy(indexed=True),
        "podReplacementPolicy": "Failed",
    }
    pod = kubernetes.extract_pod(sweep, "wave", config_file, (), cluster)
    job = kubernetes_objects.job_object(f"{sweep}-wave", sweep, "wave", spec, pod)
    kubernetes.queued(job, cluster)
    if cluster.queue is not None:
        job["spec"]["suspend"] = True
    return job


def _search_job(sweep: str, config_file: str, cluster: Cluster) -> Object:
    """The search on a CPU: it holds no GPU while it thinks, and no GPU waits for it."""
    config = kubernetes_objects.config_arguments(config_file)
    arguments = ["launch", "k8s", *config, "--search", "--wave-job", f"/configs/{TEMPLATE}"]
    container = kubernetes_objects.container_object("bandit", arguments, cluster)
    pod = kubernetes_objects.pod_template(sweep, "search", [container], cluster)
    pod["spec"] |= {"serviceAccountName": f"{sweep}-search", "automountServiceAccountToken": True}
    return kubernetes_objects.job_object(
        f"{sweep}-search", sweep, "search", kubernetes.one_pod(), pod
    )


def _account(sweep: str) -> Sequence[Object]:
    """The right to make Jobs and to look at them, in this namespace, and no other."""
    group = "rbac.authorization.k8s.io"
    metadata = {"name": f"{sweep}-search", "labels": kubernetes_objects.labels(sweep, "search")}
    rule = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list"]}
    return (
        {
            **{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": copy.deepcopy(metadata)},
            "automountServiceAccountToken": False,
        },
        {
            **{"apiVersion": f"{group}/v1", "kind": "Role", "metadata": copy.deepcopy(metadata)},
            "rules": [rule],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": copy.deepcopy(metadata),
            "subjects": [{"kind": "ServiceAccount", "name": f"{sweep}-search"}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": f"{sweep}-search"},
        },
    )
