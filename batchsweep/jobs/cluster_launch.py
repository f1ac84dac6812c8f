"""``batchsweep launch k8s``: print a sweep's objects, submit and follow them, say how they are."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchsweep.config import Config, load
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs.advice import advice, index_table, summary
from batchsweep.jobs.chosen import (
    elsewhere_indexes,
    names,
    plan_in_reach,
    sealed_blocks,
    sealed_indexes,
)
from batchsweep.jobs.cluster import Cluster, remembered_options
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubectl import OUTAGE_SECONDS, Commands, Kubectl
from batchsweep.jobs.kubernetes import Object, render, sweep_name, to_yaml
from batchsweep.jobs.snapshot import Snapshot, snapshot
from batchsweep.jobs.submit import Watch, follow, submit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sweep:
    """A sweep's Kubernetes objects, for any choice of its indexes."""

    config: Config
    config_file: Path
    cluster: Cluster

    def objects(self, indexes: Sequence[int], whole: bool) -> list[Object]:
        return render(
            sweep=sweep_name(self.config.name),
            config_file=self.config_file.name,
            config_text=self.config_file.read_text(encoding="utf-8"),
            store_url=self.config.store_url,
            indexes=indexes,
            whole=whole,
            cluster=self.cluster,
        )


def print_objects(config_file: Path, given: Mapping[str, Any], *, indexes: str | None) -> str:
    """The sweep's Kubernetes objects, to be read or applied by hand.

    Args:
        config_file: of the sweep.
        given: fields of :class:`Cluster` that the user set.
        indexes: of the plan; None: all.
    """
    config = load(config_file)
    sweep = _Sweep(config, config_file, Cluster.of({}, given))
    return to_yaml(sweep.objects(*elsewhere_indexes(indexes, config)))


def status(config_file: Path, *, namespace: str | None) -> str:
    """What the cluster and the store say about the sweep.

    Raises:
        UsageError: the cluster has no Job of it.
    """
    config = load(config_file)
    sweep = sweep_name(config.name)
    commands = Commands(str(config_file), namespace)
    plan = plan_in_reach(config)
    now = snapshot(Kubectl(namespace), sweep, sealed_indexes(config))
    if not now.jobs:
        where = f"namespace {namespace}" if namespace else "kubectl's namespace (see --namespace)"
        raise UsageError(
            f"there are no Jobs of {sweep} in {where}; submit it with "
            f"'{commands.launch('--apply')}'"
        )
    store = sealed_blocks(config, plan) if plan is not None else {}
    parts = (
        index_table(now.index_states, store, names(plan) if plan is not None else {}),
        summary(now),
        advice(now, sweep, commands),
    )
    return "\n\n".join(part for part in parts if part)


def apply(
    config_file: Path,
    given: Mapping[str, Any],
    *,
    indexes: str | None,
    tell: Callable[[str], None],
) -> str:
    """Submit the sweep with kubectl and follow it to its end.

    Options that aren't given are those that the sweep was submitted with before, and volumes that
    are there stay as they are.

    Args:
        config_file: of the sweep.
        given: fields of :class:`Cluster` that the user set.
        indexes: of the plan, to be submitted again; None: those that are new.
        tell: gets what to do about what failed: several lines, unlike an error.

    Raises:
        IndexFailed: an index or a Job failed; what to do about each has been told.
    """
    config = load(config_file)
    sweep = sweep_name(config.name)
    namespace = given.get("namespace")
    commands = Commands(str(config_file), namespace)
    kubectl = Kubectl(namespace, patience=OUTAGE_SECONDS)
    cluster = Cluster.of(remembered_options(kubectl.items("configmaps", sweep)), given)
    chosen, _ = elsewhere_indexes(indexes, config)
    shown: list[str] = []

    def show(now: Snapshot) -> None:
        text = summary(now)
        if shown[-1:] != [text]:
            shown.append(text)
            logger.info("%s", text)

    watch = Watch(
        kubectl, sweep, commands, tell=tell, show=show, sealed=lambda: sealed_indexes(config)
    )
    with _without_terminal():
        submit(
            watch,
            _Sweep(config, config_file, cluster).objects,
            chosen,
            again=indexes is not None,
            queue=cluster.queue is not None,
            resized={what for what, size in _CLAIMS.items() if size in given},
        )
    end = follow(watch)
    if end.failed:
        tell(advice(end, sweep, commands))
        listed = format_indexes(end.failed)
        raise IndexFailed(f"{len(end.failed)} indexes failed: {listed}; what to do is printed")
    if end.broken:
        job = end.broken[0]
        logs = commands.kubectl("logs", f"job/{job.name}", "--tail=-1")
        raise IndexFailed(f"Job {job.name} failed: {job.reason}; see '{logs}'")
    return summary(end)


#: A volume claim's component, and the option that is its size.
_CLAIMS = {"runs": "storage", "cache": "cache"}


@contextmanager
def _without_terminal() -> Iterator[None]:
    """A terminal that is closed doesn't end this part, so that extract is released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
