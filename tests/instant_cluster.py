"""A cluster that ends a Job as soon as it is released, behind the tests' API server."""

import contextlib

from kubernetes_server import Cluster

COMPONENT = "app.kubernetes.io/component"


class InstantCluster(Cluster):
    """What it makes of Jobs.

    ``fails`` are positions that fail, by component; Jobs of the components in ``hold`` don't end.
    """

    def __init__(self):
        super().__init__(self.settle)
        self.fails = {}
        self.hold = set()

    def settle(self, job):
        component = job["metadata"]["labels"][COMPONENT]
        if job["spec"].get("suspend") or component in self.hold or job.get("status"):
            return
        bad = sorted(self.fails.get(component, ()))
        kind = "Failed" if bad else "Complete"
        job["status"] = {"conditions": [{"type": kind, "status": "True", "message": "said so"}]}
        count = job["spec"].get("completions")
        if count is not None:
            good = [i for i in range(count) if i not in bad]
            job["status"]["completedIndexes"] = ",".join(map(str, good))
            job["status"]["failedIndexes"] = ",".join(map(str, bad))

    def show(self, kind, items, sweep, namespace="default"):
        """Have just these pods (or events) of a sweep."""
        for key in [key for key in self.objects if key[0] == kind]:
            del self.objects[key]
        mine = {"app.kubernetes.io/name": "batchsweep", "app.kubernetes.io/instance": sweep}
        for number, item in enumerate(items):
            metadata = {
                **item["metadata"],
                "labels": {**item["metadata"].get("labels", {}), **mine},
            }
            key = (kind, namespace, f"{metadata['name']}-{number}")
            self.objects[key] = {"apiVersion": "v1", **item, "metadata": metadata}

    def writes(self):
        """Requests that changed something: method, kind, name."""
        return [request for request in self.requests if request[0] != "GET"]


@contextlib.contextmanager
def instant_cluster(folder, monkeypatch, namespace="default"):
    """One that kubectl talks to while this lasts."""
    cluster = InstantCluster()
    cluster.start()
    cluster.kubeconfig(folder / "kubeconfig", namespace=namespace)
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    monkeypatch.setenv("KUBECACHEDIR", str(folder / "kube-cache"))
    try:
        yield cluster
    finally:
        cluster.stop()


def pod(index=None, *, job="demo-extract", created="1", phase="Pending", code=None, **status):
    """A pod as ``kubectl get`` shows it."""
    reason = status.pop("reason", "Error")
    ended = [
        {"name": "extract", "state": {"terminated": {"exitCode": code, "reason": reason}}},
    ]
    labels = {"batch.kubernetes.io/job-name": job}
    if index is not None:
        labels["batch.kubernetes.io/job-completion-index"] = str(index)
    return {
        "kind": "Pod",
        "metadata": {"name": f"{job}-{index}-x", "creationTimestamp": created, "labels": labels},
        "status": {
            "phase": phase,
            "containerStatuses": ended if code is not None else [],
            **status,
        },
    }
