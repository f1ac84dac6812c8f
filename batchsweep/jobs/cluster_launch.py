"""``batchsweep launch k8s``: print a sweep's objects, submit and follow them, say how they are."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from batchsweep.config import Config, load
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs.advice import advice, index_table, log_changes, summary
from batchsweep.jobs.chosen import (
    elsewhere_indexes,
    names,
    plan_in_reach,
    sealed_blocks,
    sealed_indexes,
    sealed_of,
)
from batchsweep.jobs.cluster import Cluster, remembered_options, resized_claims
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubectl import OUTAGE_SECONDS, Commands, Kubectl
from batchsweep.jobs.kubernetes import render, sweep_name, to_yaml
from batchsweep.jobs.kubernetes_objects import ClusterSweep
from batchsweep.jobs.snapshot import Snapshot, snapshot
from batchsweep.jobs.spending import CostLimit, gpu_named, spending
from batchsweep.jobs.submit import Watch, follow, submit
from batchsweep.plan.speed import DEFAULT_GPU

logger = logging.getLogger(__name__)


def cluster_sweep(config: Config, config_file: Path, cluster: Cluster) -> ClusterSweep:
    """What a sweep's objects are made from.

    Raises:
        UsageError: its name is too long for objects of a cluster.
    """
    text = config_file.read_text(encoding="utf-8")
    name = sweep_name(config.name)
    return ClusterSweep(name, config_file.name, text, config.store_url, cluster)


def print_objects(config_file: Path, given: Mapping[str, Any], *, indexes: str | None) -> str:
    """The sweep's Kubernetes objects, to be read or applied by hand.

    Args:
        given: fields of :class:`Cluster` that the user set.
    """
    config = load(config_file)
    sweep = cluster_sweep(config, config_file, Cluster.of({}, given))
    chosen, whole = elsewhere_indexes(indexes, config)
    return to_yaml(render(sweep, chosen, whole=whole))


def status(config_file: Path, *, namespace: str | None) -> str:
    """What the cluster and the store say about the sweep.

    Raises:
        UsageError: the cluster has no Job of it.
    """
    config = load(config_file)
    sweep = sweep_name(config.name)
    commands = Commands(str(config_file), namespace)
    plan = plan_in_reach(config)
    sealed = frozenset() if plan is None else sealed_of(config, plan)
    now = snapshot(Kubectl(namespace), sweep, sealed)
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
    chosen, whole = elsewhere_indexes(indexes, config)
    limit = cluster.limit
    if limit is not None:
        within = _within_cost(config, cluster, limit, snapshot(kubectl, sweep), chosen)
        if len(within) < len(chosen):
            cluster, whole, chosen = replace(cluster, affordable=len(within)), False, within
    watch = Watch(
        kubectl,
        sweep,
        commands,
        tell=tell,
        show=log_changes(),
        sealed=lambda: sealed_indexes(config),
    )
    with _without_terminal():
        submit(
            watch,
            partial(render, cluster_sweep(config, config_file, cluster)),
            chosen,
            again=indexes is not None,
            queue=cluster.queue is not None,
            whole=whole,
            resized=resized_claims(given),
            changed=bool(given.keys() - {"namespace"}),
        )
    end = follow(watch)
    if end.failed or end.left:
        tell(advice(end, sweep, commands))
    if end.failed:
        listed = format_indexes(end.failed)
        raise IndexFailed(f"{len(end.failed)} indexes failed: {listed}; what to do is printed")
    if end.broken:
        job = end.broken[0]
        logs = commands.kubectl("logs", f"job/{job.name}", "--tail=-1")
        raise IndexFailed(f"Job {job.name} failed: {job.reason}; see '{logs}'")
    return summary(end)


def _within_cost(
    config: Config, cluster: Cluster, limit: CostLimit, now: Snapshot, chosen: Sequence[int]
) -> tuple[int, ...]:
    """Of the chosen indexes, those that Jobs have already and those that ``--max-cost`` allows.

    Raises:
        UsageError: not even the first index can be paid for.
    """
    gpu = gpu_named(cluster.gpu_type)
    costs = spending(config, gpu)
    submitted = {i for job in now.of("extract") for i in job.indexes}
    running = {i for job in now.of("extract") if not job.ended for i in job.indexes}
    # Without the store nobody knows what ended Jobs took: then as much as was estimated.
    under_way = running if costs.known else submitted
    new = [i for i in chosen if i not in under_way]
    bought = costs.affordable(new, under_way=under_way, limit=limit)
    before, after = (limit.cost(costs.seconds({*under_way, *more})) for more in ((), bought))
    said = (
        f"{before:.2f} spent or under way, {after:.2f} with {len(bought)} of {len(new)} indexes "
        f"more, on {gpu or 'an assumed ' + DEFAULT_GPU}"
    )
    if new and not bought and not under_way:
        first = limit.cost(costs.seconds({new[0]}))
        raise UsageError(
            f"--max-cost {limit.most:g} is passed by the first index: {first:.2f} with it; raise "
            "it, or extract less (see 'batchsweep plan')"
        )
    if len(bought) < len(new):
        logger.warning("--max-cost %g: %s; the others are not submitted", limit.most, said)
    else:
        logger.info("cost: %s", said)
    return tuple(i for i in chosen if i in under_way or i in bought)


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
