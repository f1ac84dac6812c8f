"""The objects that a sweep in a cluster is made of, each as Kubernetes and the image want it."""

from __future__ import annotations

from typing import Any

from batchsweep.jobs.cluster import CPU, MEMORY, OPTIONS_ANNOTATION, Cluster

Object = dict[str, Any]

#: Ended Jobs are kept this long (a week), for ``--status`` and for their logs.
TTL_SECONDS = 7 * 24 * 3600

#: The image's own user; any other works too.
UID = 10001


def labels(sweep: str, component: str) -> dict[str, str]:
    """The labels of a sweep's objects."""
    return {
        "app.kubernetes.io/name": "batchsweep",
        "app.kubernetes.io/instance": sweep,
        "app.kubernetes.io/component": component,
    }


def config_arguments(config_file: str) -> list[str]:
    """What every command gets."""
    return ["--config", f"/configs/{config_file}", "--log-format", "json"]


def config_map(sweep: str, config_file: str, config_text: str, cluster: Cluster) -> Object:
    """The config, and the options that it was submitted with."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{sweep}-config",
            "labels": labels(sweep, "config"),
            "annotations": {OPTIONS_ANNOTATION: cluster.remembered()},
        },
        "data": {config_file: config_text},
    }


def claim_object(sweep: str, what: str, size: str, storage_class: str | None) -> Object:
    """A volume that all pods write to at the same time."""
    spec: Object = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": size}},
    }
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{sweep}-{what}", "labels": labels(sweep, what)},
        "spec": spec,
    }


def job_object(name: str, sweep: str, component: str, spec: Object, pod: Object) -> Object:
    """A Job, kept for a week."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels(sweep, component)},
        "spec": {**spec, "ttlSecondsAfterFinished": TTL_SECONDS, "template": pod},
    }


def pod_template(sweep: str, component: str, containers: list[Object], cluster: Cluster) -> Object:
    """A pod of the restricted Pod Security standard, with the sweep's volumes."""
    pod: Object = {
        "metadata": {"labels": labels(sweep, component)},
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
                {"name": "config", "configMap": {"name": f"{sweep}-config"}},
                {"name": "runs", "persistentVolumeClaim": {"claimName": f"{sweep}-runs"}},
                {"name": "cache", "persistentVolumeClaim": {"claimName": f"{sweep}-cache"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
    asked = {
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "priorityClassName": cluster.priority_class,
        "serviceAccountName": cluster.service_account,
        "tolerations": [dict(t) for t in cluster.tolerations],
        "nodeSelector": dict(cluster.node_selector),
    }
    pod["spec"] |= {key: value for key, value in asked.items() if value}
    return pod


def container_object(name: str, arguments: list[str], cluster: Cluster) -> Object:
    """A container of the image, with the sweep's volumes and secrets."""
    if name == "wait":
        cpu, memory = "100m", "1Gi"
    else:
        cpu, memory = {**CPU, **cluster.cpu}[name], {**MEMORY, **cluster.memory}[name]
    workdir = {"workingDir": cluster.workdir} if cluster.workdir != "/" else {}
    return {
        "name": name,
        "image": cluster.image,
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
