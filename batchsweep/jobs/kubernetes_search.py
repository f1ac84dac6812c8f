"""A search in a cluster as plain Kubernetes objects: waves, and the pod that asks for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

from batchsweep.jobs import kubernetes
from batchsweep.jobs.exit_rules import RETRIES, pod_failure_policy
from batchsweep.jobs.kubernetes_objects import ClusterSweep, Object

#: The file beside the config that holds the wave Job's template.
TEMPLATE = "wave-job.json"


def render(sweep: ClusterSweep, *, driver: bool) -> tuple[list[Object], Object]:
    """What a search needs in the cluster, and the template of its waves.

    Args:
        driver: the search itself runs there too: a Job, with a service account that may make Jobs
            in its namespace and look at them, and nothing else.

    Raises:
        UsageError: the store would not be on the volume; a limit on cost without a price.
    """
    kubernetes.check_store(sweep.store_url, sweep.cluster)
    objects = [
        *sweep.files(),
        *(_account(sweep) if driver else ()),
        _template(sweep),
        *([_search_job(sweep)] if driver else ()),
    ]
    objects = kubernetes.finished(objects, sweep)
    template = next(o for o in objects if o["metadata"]["name"] == f"{sweep.name}-wave")
    objects.remove(template)
    if driver:
        objects[0]["data"][TEMPLATE] = json.dumps(template, indent=1) + "\n"
    return objects, template


def wave_job(template: Object, number: int, attempt: int, checkpoints: int) -> Object:
    """The Indexed Job of a wave: index i is the i-th checkpoint of ``waves/000N.json``.

    Args:
        attempt: from 1; a wave is tried again when a search that was cut short goes on.
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


def _template(sweep: ClusterSweep) -> Object:
    """Any number of its checkpoints may fail: the search goes on with what is there."""
    spec = {
        "completionMode": "Indexed",
        "completions": sweep.cluster.parallelism,
        "parallelism": sweep.cluster.parallelism,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": pod_failure_policy(indexed=True),
        "podReplacementPolicy": "Failed",
    }
    job = sweep.job("wave", spec, kubernetes.extract_pod(sweep, "wave"))
    kubernetes.queued(job, sweep.cluster)
    if sweep.cluster.queue is not None:
        job["spec"]["suspend"] = True
    return job


def _search_job(sweep: ClusterSweep) -> Object:
    """The search on a CPU: it holds no GPU while it thinks, and no GPU waits for it."""
    config = sweep.config_arguments
    arguments = ["launch", "k8s", *config, "--search", "--wave-job", f"/configs/{TEMPLATE}"]
    limit = sweep.cluster.limit
    if limit is not None:
        arguments += ["--max-cost", f"{limit.most}", "--gpu-price", f"{limit.price}"]
    pod = sweep.pod("search", [sweep.container("bandit", arguments)])
    account = f"{sweep.name}-search"
    pod["spec"] |= {"serviceAccountName": account, "automountServiceAccountToken": True}
    return sweep.job("search", kubernetes.one_pod(), pod)


def _account(sweep: ClusterSweep) -> Sequence[Object]:
    """The right to make Jobs and to look at them, in this namespace, and no other."""
    name = f"{sweep.name}-search"
    group = "rbac.authorization.k8s.io"
    metadata = {"name": name, "labels": sweep.labels("search")}
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
            "subjects": [{"kind": "ServiceAccount", "name": name}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        },
    )
