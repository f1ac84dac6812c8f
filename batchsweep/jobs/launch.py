"""``batchsweep launch``: the indexed job on one machine, in a cluster, or as a script for Slurm."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchsweep.config import Config, load
from batchsweep.errors import IndexFailed, StoreError, TryAgain, UsageError
from batchsweep.jobs.index import format_indexes, parse_indexes
from batchsweep.jobs.kubectl import (
    Kubectl,
    Snapshot,
    advice,
    follow,
    index_table,
    snapshot,
    submit,
    summary,
)
from batchsweep.jobs.kubernetes import Cluster, Object, render, sweep_name, to_yaml
from batchsweep.jobs.local import LocalLauncher, LocalWorker, visible_gpus
from batchsweep.jobs.runner import Launcher, Worker, run_indexes, run_once
from batchsweep.jobs.slurm import array_script
from batchsweep.log import log_format
from batchsweep.plan.plan import Plan, load_plan, make_plan
from batchsweep.progress import duration
from batchsweep.signals import stop_on_signals

logger = logging.getLogger(__name__)


def logs_folder(config: Config) -> Path:
    """Where workers' logs are kept: beside a local store, else in the run's folder here."""
    if "://" in config.store_url:
        return Path("runs") / config.name / "logs"
    return Path(config.store_url).parent / "logs"


def plan_in_reach(config: Config) -> Plan | None:
    """The plan that ``prepare`` froze; None where the store isn't there (or not reached)."""
    from batchsweep.store import open_store

    try:
        return load_plan(open_store(config.store_url))
    except (StoreError, UsageError, OSError) as error:
        logger.debug("no frozen plan at %s: %s", config.store_url, error)
        return None


def planned(config: Config) -> Plan:
    """The plan that ``prepare`` will freeze, where it isn't frozen yet or not in reach."""
    from huggingface_hub import constants

    from batchsweep.checkpoints.audit import audit, nominal

    if constants.HF_HUB_OFFLINE:
        return make_plan(config, nominal(config))
    try:
        return make_plan(config, audit(config))
    except TryAgain as error:
        logger.warning("%s; the number of indexes is taken from the config alone", error)
        return make_plan(config, nominal(config))


def chosen_indexes(text: str | None, plan: Plan) -> tuple[int, ...]:
    """``--indexes``, or the whole plan.

    Raises:
        UsageError: one of them isn't in the plan.
    """
    known = tuple(entry.index for entry in plan.entries)
    if text is None:
        return known
    chosen = parse_indexes(text)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UsageError(
            f"--indexes {format_indexes(unknown)}: not in the plan, which has "
            f"{format_indexes(known)}"
        )
    return chosen


def _elsewhere_indexes(text: str | None, config: Config) -> tuple[tuple[int, ...], bool]:
    """Indexes for a job elsewhere, and whether they are the whole plan.

    With ``--indexes`` and no frozen plan in reach they are believed: models and store may be
    where only the job gets.
    """
    plan = plan_in_reach(config)
    if plan is None and text is not None:
        return parse_indexes(text), False
    plan = plan or planned(config)
    chosen = chosen_indexes(text, plan)
    return chosen, len(chosen) == len(plan.entries)


def _names(plan: Plan) -> dict[int, str]:
    return {entry.index: entry.checkpoint.key for entry in plan.entries}


def _sealed(config: Config, plan: Plan) -> Mapping[int, str]:
    """How far each index is, as ``3/12`` blocks or a word; empty where no store is reached."""
    from batchsweep.extract.status import index_statuses
    from batchsweep.store import open_store

    try:
        rows = index_statuses(open_store(config.store_url), plan, pairs=False)
    except (StoreError, OSError) as error:
        logger.debug("no store at %s: %s", config.store_url, error)
        return {}
    return {
        row.index: f"{row.sealed}/{row.blocks}" if row.blocks else row.state
        for row in rows
        if row.index is not None
    }


def local(config_file: Path, *, indexes: str | None, parallel: int | None, grace: float) -> str:
    """Prepare, then extract, as processes of this machine; the value is what to say at the end.

    Raises:
        UsageError: ``indexes`` or ``parallel`` can't be.
        BatchsweepError: what the workers ended with.
    """
    config = load(config_file)
    gpus = visible_gpus(os.environ)
    workers = at_once(parallel, gpus)
    arguments = ["--config", str(config_file), "--log-format", log_format()]
    launcher = LocalLauncher(
        ["extract", *arguments, "--grace", str(grace)], parallel=workers, gpus=gpus
    )

    def prepare() -> LocalWorker:
        return launcher.run(["prepare", *arguments])

    machine = _OneMachine(config, config_file, launcher, workers, grace)
    return machine.run(prepare, indexes)


def docker(
    config_file: Path,
    *,
    image: str,
    network: str | None,
    indexes: str | None,
    parallel: int | None,
    grace: float,
) -> str:
    """Like :func:`local`, in a container per index."""
    from batchsweep.jobs.docker import DockerLauncher, DockerWorker, connect, mounts

    config = load(config_file)
    gpus = visible_gpus(os.environ)
    workers = at_once(parallel, gpus)
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    absolute = config_file.resolve()
    arguments = ["--config", str(absolute), "--log-format", log_format()]
    launcher = DockerLauncher(
        connect(),
        ["extract", *arguments, "--grace", str(grace)],
        name=config.name,
        image=image,
        mounts=mounts(config, absolute, cache=cache),
        cache=cache,
        parallel=workers,
        gpus=gpus,
        network=network,
    )

    def prepare() -> DockerWorker:
        return launcher.run(["prepare", *arguments], "prepare")

    machine = _OneMachine(config, config_file, launcher, workers, grace)
    return machine.run(prepare, indexes)


def at_once(asked: int | None, gpus: Sequence[str] = ()) -> int:
    """How many indexes run at once: as asked, else one per GPU.

    Raises:
        UsageError: ``asked`` is less than 1.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"--parallel must be at least 1, not {asked}")
    return asked or max(1, len(gpus))


@dataclass(frozen=True)
class _OneMachine:
    """Prepare, then all indexes; what both launchers of one machine do."""

    config: Config
    config_file: Path
    launcher: Launcher
    parallel: int
    grace: float

    def run(self, prepare: Callable[[], Worker], indexes: str | None) -> str:
        from batchsweep.store import open_store

        logs = logs_folder(self.config)
        start = time.monotonic()
        with stop_on_signals(self.grace) as stop:
            run_once(prepare(), what="prepare", log=logs / "prepare.log", stop=stop)
            plan = load_plan(open_store(self.config.store_url))
            chosen = chosen_indexes(indexes, plan)
            run_indexes(
                self.launcher,
                chosen,
                parallel=self.parallel,
                logs=logs,
                stop=stop,
                names=_names(plan),
                sealed=lambda: _sealed(self.config, plan),
            )
        return (
            f"{len(chosen)} indexes done in {duration(time.monotonic() - start)}; logs in {logs}/\n"
            f"next: batchsweep bandit --config {self.config_file}"
        )


def kubernetes_status(config_file: Path, *, namespace: str | None) -> str:
    """What the cluster and the store say about the sweep.

    Raises:
        UsageError: the cluster has no Job of it.
    """
    config = load(config_file)
    sweep = sweep_name(config.name)
    plan = plan_in_reach(config)
    now = snapshot(Kubectl(namespace), sweep)
    if not now.jobs:
        raise UsageError(f"the cluster has no Jobs of {sweep}; submit it with --apply")
    store = _sealed(config, plan) if plan is not None else {}
    parts = (
        index_table(now.index_states, store, _names(plan) if plan is not None else {}),
        summary(now),
        advice(now, str(config_file)),
    )
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Sweep:
    """A sweep's Kubernetes objects, for any choice of its indexes."""

    config: Config
    config_file: Path
    cluster: Cluster

    @property
    def name(self) -> str:
        return sweep_name(self.config.name)

    def objects(self, indexes: Sequence[int], whole: bool) -> list[Object]:
        return render(
            sweep=self.name,
            config_file=self.config_file.name,
            config_text=self.config_file.read_text(encoding="utf-8"),
            store_url=self.config.store_url,
            indexes=indexes,
            whole=whole,
            cluster=self.cluster,
        )


def kubernetes_yaml(config_file: Path, cluster: Cluster, *, indexes: str | None) -> str:
    """The sweep's Kubernetes objects, to be read or applied by hand."""
    config = load(config_file)
    sweep = _Sweep(config, config_file, cluster)
    return to_yaml(sweep.objects(*_elsewhere_indexes(indexes, config)))


def kubernetes_apply(config_file: Path, cluster: Cluster, *, indexes: str | None) -> str:
    """Submit the sweep with kubectl and follow it to its end.

    Raises:
        IndexFailed: an index or a Job failed; the message says what to do about each.
    """
    config = load(config_file)
    sweep = _Sweep(config, config_file, cluster)
    kubectl = Kubectl(cluster.namespace)
    chosen, _ = _elsewhere_indexes(indexes, config)
    submit(
        kubectl,
        sweep.name,
        sweep.objects,
        chosen,
        again=indexes is not None,
        queue=cluster.queue is not None,
    )
    shown: list[str] = []

    def show(now: Snapshot) -> None:
        text = summary(now)
        if shown[-1:] != [text]:
            shown.append(text)
            logger.info("%s", text)

    end = follow(kubectl, sweep.name, show=show)
    what_to_do = advice(end, str(config_file))
    if what_to_do:
        raise IndexFailed(what_to_do)
    if end.broken:
        raise IndexFailed(f"Job {end.broken[0].name} failed: {end.broken[0].reason}")
    return summary(end)


def slurm(config_file: Path, *, indexes: str | None, parallel: int, gpu: bool) -> str:
    """An array script for ``sbatch``."""
    config = load(config_file)
    chosen, _ = _elsewhere_indexes(indexes, config)
    return array_script(
        sweep=sweep_name(config.name),
        config_path=str(config_file),
        indexes=chosen,
        parallel=at_once(parallel),
        gpu=gpu,
    )
