"""How a sweep runs in a cluster: the options of ``launch k8s``, which are remembered there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from batchsweep import __version__
from batchsweep.errors import UsageError
from batchsweep.jobs import IMAGE
from batchsweep.jobs.spending import CostLimit

#: On the sweep's ConfigMap: the options that it was submitted with.
OPTIONS_ANNOTATION = "batchsweep/options"

#: cpu and memory asked for. Memory is also the limit: out of memory is a retry, not a sick node.
CPU = {"prepare": "2", "extract": "4", "bandit": "4"}
MEMORY = {"prepare": "16Gi", "extract": "16Gi", "bandit": "16Gi"}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How a sweep runs in a cluster. All but the namespace and ``affordable`` is remembered."""

    image: str = IMAGE
    namespace: str | None = None
    """None: the one that kubectl is set to."""
    parallelism: int = 8
    """Indexes at once: as many as there are GPUs to be had."""
    gpu: str | None = "nvidia.com/gpu"
    """Resource name of one GPU; None extracts on CPUs."""
    gpu_type: str | None = None
    """Only nodes with this value of the label ``<gpu>.product``."""
    storage_class: str | None = None
    """One that gives ReadWriteMany volumes; None: the cluster's default."""
    storage: str = "1Ti"
    """Size of the volume for the store."""
    cache: str = "200Gi"
    """Size of the volume for downloaded weights and data sets."""
    bandit_after: int | None = None
    """The bandit starts when this many indexes are sealed; None: when none is left to wait for."""
    metrics_port: int | None = None
    """Where extract shows its figures to Prometheus; None: nowhere."""
    workdir: str = "/"
    """What the config's relative paths start at: ``/`` or ``/runs``. Not a folder below: the
    container runtime would make it, and it would be root's."""
    queue: str | None = None
    """Kueue's LocalQueue that admits the extract Job."""
    cpu: Mapping[str, str] = field(default_factory=dict)
    """Cores asked for, of Jobs that differ from ``CPU``."""
    memory: Mapping[str, str] = field(default_factory=dict)
    """Memory asked for and its limit, of Jobs that differ from ``MEMORY``."""
    image_pull_secrets: Sequence[str] = ()
    priority_class: str | None = None
    service_account: str | None = None
    tolerations: Sequence[Mapping[str, str]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of all objects and pods."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of all objects and pods."""
    max_cost: float | None = None
    """No index is submitted that would make the sweep cost more."""
    gpu_price: float | None = None
    """Of a GPU hour, in the same currency."""
    affordable: int | None = None
    """How many indexes that allows in all, so that the bandit doesn't wait for the others."""
    patches: Sequence[Mapping[str, Any]] = ()
    """Laid over the objects that they name, at the end (:mod:`batchsweep.jobs.patch`)."""

    @classmethod
    def of(cls, remembered: Mapping[str, Any], given: Mapping[str, Any]) -> Cluster:
        """What was given now, else what the sweep was submitted with, else the defaults.

        Raises:
            UsageError: another version of batchsweep remembers an option that this one lacks.
        """
        unknown = sorted(set(remembered) - {f.name for f in fields(cls)})
        if unknown:
            raise UsageError(
                f"the sweep was submitted with {', '.join(unknown)}, which batchsweep "
                f"{__version__} doesn't know; use the version that submitted it"
            )
        return cls(**{**remembered, **given})

    @property
    def limit(self) -> CostLimit | None:
        """What ``max_cost`` allows.

        Raises:
            UsageError: it is given without a price.
        """
        return CostLimit.of(self.max_cost, self.gpu_price)

    def remembered(self) -> str:
        """The annotation's text: what differs from the defaults, and the image."""
        default = asdict(Cluster())
        kept = {
            name: value
            for name, value in json.loads(json.dumps(asdict(self))).items()
            if name == "image" or value != json.loads(json.dumps(default[name]))
        }
        kept = {k: v for k, v in kept.items() if k not in ("namespace", "affordable")}
        return json.dumps(kept, sort_keys=True)


def remembered_options(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a sweep's ConfigMaps say that it was submitted with; empty where there is none."""
    for item in objects:
        text = item["metadata"].get("annotations", {}).get(OPTIONS_ANNOTATION)
        if text:
            found: dict[str, Any] = json.loads(text)
            return found
    return {}


def resized_claims(given: Mapping[str, Any]) -> set[str]:
    """Components of the volume claims whose size is among the options that the user set."""
    return {what for what, size in (("runs", "storage"), ("cache", "cache")) if size in given}


def by_job(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """``32Gi`` (of extract) and ``bandit=8Gi`` as a value for each Job.

    Raises:
        UsageError: no such Job, or no quantity.

    Example:
        >>> by_job("--memory", ["32Gi", "bandit=8Gi"])
        {'extract': '32Gi', 'bandit': '8Gi'}
    """
    found = {}
    for text in texts:
        job, equals, value = text.rpartition("=")
        job = job if equals else "extract"
        if job not in CPU:
            raise UsageError(f"{flag} {text}: no Job '{job}'; there are {', '.join(CPU)}")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?", value):
            raise UsageError(f"{flag} {text}: '{value}' is no quantity such as 500m, 4 or 32Gi")
        found[job] = value
    return found


def pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """``key=value`` each.

    Raises:
        UsageError: one isn't.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{flag} {text}: write KEY=VALUE")
        found[key] = value
    return found


def toleration(text: str) -> dict[str, str]:
    """A taint that pods bear, as kubectl writes taints: ``key``, ``key=value``, ``key:effect``.

    Raises:
        UsageError: no such effect.

    Example:
        >>> toleration("spot=true:NoSchedule")
        {'key': 'spot', 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}
    """
    taint, colon, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    if not key or (colon and effect not in effects):
        raise UsageError(
            f"--toleration {text}: write KEY[=VALUE][:EFFECT], EFFECT one of {', '.join(effects)}"
        )
    found = {"key": key, "operator": "Equal" if equals else "Exists"}
    return found | ({"value": value} if equals else {}) | ({"effect": effect} if colon else {})


def read_patches(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of ``--patch``.

    Raises:
        UsageError: no such file, no YAML, or a document without a kind.
    """
    import yaml

    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
        found: list[dict[str, Any]] = json.loads(json.dumps(documents))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UsageError(f"--patch {path}: {' '.join(str(error).split())}") from None
    for document in found:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise UsageError(f"--patch {path}: every document needs a kind, such as 'kind: Job'")
    return found
