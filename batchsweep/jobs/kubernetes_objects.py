"""The objects that a sweep in a cluster is made of, each as Kubernetes and the image want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchsweep.jobs.cluster import CPU, MEMORY, OPTIONS_ANNOTATION, Cluster

Object = dict[str, Any]

#: Ended Jobs are kept this long (a week), for ``--status`` and for their logs.
TTL_SECONDS = 7 * 24 * 3600

#: The image's own user; any other works too.
UID = 10001


@dataclass(frozen=True)
class ClusterSweep:
    """A sweep in a cluster: what its objects are called and made from."""

    name: str
    """From :func:`batchsweep.jobs.kubernetes.sweep_name`."""
    config_file: str
    """The config's file name."""
    config_text: str
    store_url: str
    """The config's store: below ``runs/``, which is a volume, or a URL."""
    cluster: Cluster

    def labels(self, component: str) -> dict[str, str]:
        """The labels of the sweep's objects."""
        return {
            "app.kubernetes.io/name": "batchsweep",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
        }

    @property
    def config_arguments(self) -> list[str]:
        """What every command gets."""
        return ["--config", f"/configs/{self.config_file}", "--log-format", "json"]

    def files(self) -> list[Object]:
        """The config, with the options that it was submitted with, and volumes that all pods write
        to at the same time."""
        config: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{self.name}-config",
                "labels": self.labels("config"),
                "annotations": {OPTIONS_ANNOTATION: self.cluster.remembered()},
            },
            "data": {self.config_file: self.config_text},
        }
        sizes = {"runs": self.cluster.storage, "cache": self.cluster.cache}
        return [config, *(self._claim(what, size) for what, size in sizes.items())]

    def _claim(self, what: str, size: str) -> Object:
        spec: Object = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": size}},
        }
        if self.cluster.storage_class is not None:
            spec["storageClassName"] = self.cluster.storage_class
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{self.name}-{what}", "labels": self.labels(what)},
            "spec": spec,
        }

    def job(self, component: str, spec: Object, pod: Object, *, name: str = "") -> Object:
        """A Job, kept for a week; its name is the component's if none is given."""
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": name or f"{self.name}-{component}",
                "labels": self.labels(component),
            },
            "spec": {**spec, "ttlSecondsAfterFinished": TTL_SECONDS, "template": pod},
        }

    def pod(self, component: str, containers: list[Object]) -> Object:
        """A pod of the restricted Pod Security standard, with the sweep's volumes."""
        made: Object = {
            "metadata": {"labels": self.labels(component)},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": UID,
                    "runAsGroup": UID,
                    "fsGroup": UID,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": containers,
                "volumes": [
                    {"name": "config", "configMap": {"name": f"{self.name}-config"}},
                    {"name": "runs", "persistentVolumeClaim": {"claimName": f"{self.name}-runs"}},
                    {"name": "cache", "persistentVolumeClaim": {"claimName": f"{self.name}-cache"}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        }
        asked = {
            "imagePullSecrets": [{"name": name} for name in self.cluster.image_pull_secrets],
            "priorityClassName": self.cluster.priority_class,
            "serviceAccountName": self.cluster.service_account,
            "tolerations": [dict(t) for t in self.cluster.tolerations],
            "nodeSelector": dict(self.cluster.node_selector),
        }
        made["spec"] |= {key: value for key, value in asked.items() if value}
        return made

    def container(self, name: str, arguments: list[str]) -> Object:
        """A container of the image, with the sweep's volumes and secrets."""
        if name == "wait":
            cpu, memory = "100m", "1Gi"
        else:
            cpu, memory = {**CPU, **self.cluster.cpu}[name], {**MEMORY, **self.cluster.memory}[name]
        workdir = {"workingDir": self.cluster.workdir} if self.cluster.workdir != "/" else {}
        return {
            "name": name,
            "image": self.cluster.image,
            # An image that was loaded into the nodes (kind, minikube) is in no registry.
            "imagePullPolicy": "IfNotPresent",
            "args": arguments,
            **workdir,
            "env": [
                {
                    "name": "HF_TOKEN",
                    "valueFrom": {
                        "secretKeyRef": {"name": "batchsweep-hub", "key": "token", "optional": True}
                    },
                }
            ],
            # AWS_ACCESS_KEY_ID and so on, for a store at s3://
            "envFrom": [{"secretRef": {"name": "batchsweep-s3", "optional": True}}],
            "resources": {
                "requests": {"cpu": cpu, "memory": memory},
                "limits": {"memory": memory},
            },
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "config", "mountPath": "/configs", "readOnly": True},
                {"name": "runs", "mountPath": "/runs"},
                {"name": "cache", "mountPath": "/cache"},
                {"name": "tmp", "mountPath": "/tmp"},
            ],
        }
