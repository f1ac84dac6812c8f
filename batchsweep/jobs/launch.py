"""``batchsweep launch``: the indexed job on one machine, in a cluster, or as a script for Slurm."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
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
from batchsweep.plan.plan import Plan, load_plan, make_plan
from batchsweep.progress import duration
from batchsweep.signals import stop_on_signals

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> str:
    """Do what the command line says; the value is for standard output."""
    config = load(args.config)
    places: dict[str, Callable[[argparse.Namespace, Config], str]] = {
        "local": _local,
        "docker": _docker,
        "k8s": _k8s,
        "slurm": _slurm,
    }
    return places[args.place](args, config).rstrip("\n")


def logs_folder(config: Config) -> Path:
    """Where workers' logs are kept: beside a local store, else in the run's folder here."""
    if "://" in config.store_url:
        return Path("runs") / config.name / "logs"
    return Path(config.store_url).parent / "logs"


def frozen_plan(config: Config) -> Plan | None:
    """The plan that ``prepare`` froze, or None where the store isn't there (or not reached)."""
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
    plan = frozen_plan(config)
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
        rows = index_statuses(open_store(config.store_url), plan)
    except (StoreError, OSError) as error:
        logger.debug("no store at %s: %s", config.store_url, error)
        return {}
    return {
        row.index: f"{row.sealed}/{row.blocks}" if row.blocks else row.state
        for row in rows
        if row.index is not None
    }


def _local(args: argparse.Namespace, config: Config) -> str:
    gpus = visible_gpus(os.environ)
    parallel = _parallel(args.parallel, gpus)
    arguments = ["--config", args.config, "--log-format", args.log_format]
    launcher = LocalLauncher(
        ["extract", *arguments, "--grace", str(args.grace)], parallel=parallel, gpus=gpus
    )

    def prepare() -> LocalWorker:
        return launcher.run(["prepare", *arguments])

    return _one_machine(args, config, launcher, prepare, parallel)


def _docker(args: argparse.Namespace, config: Config) -> str:
    from batchsweep.jobs.docker import DockerLauncher, DockerWorker, connect, mounts

    gpus = visible_gpus(os.environ)
    parallel = _parallel(args.parallel, gpus)
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    config_path = Path(args.config).resolve()
    arguments = ["--config", str(config_path), "--log-format", args.log_format]
    launcher = DockerLauncher(
        connect(),
        ["extract", *arguments, "--grace", str(args.grace)],
        name=config.name,
        image=args.image,
        mounts=mounts(config, config_path, cache=cache),
        cache=cache,
        parallel=parallel,
        gpus=gpus,
        network=args.network,
    )

    def prepare() -> DockerWorker:
        return launcher.run(["prepare", *arguments], "prepare")

    return _one_machine(args, config, launcher, prepare, parallel)


def _parallel(asked: int | None, gpus: Sequence[str]) -> int:
    if asked is not None and asked < 1:
        raise UsageError(f"--parallel must be at least 1, not {asked}")
    return asked or max(1, len(gpus))


def _one_machine(
    args: argparse.Namespace,
    config: Config,
    launcher: Launcher,
    prepare: Callable[[], Worker],
    parallel: int,
) -> str:
    """Prepare, then all indexes; what both launchers of one machine do."""
    from batchsweep.store import open_store

    logs = logs_folder(config)
    start = time.monotonic()
    with stop_on_signals(args.grace) as stop:
        run_once(prepare(), what="prepare", log=logs / "prepare.log", stop=stop)
        plan = load_plan(open_store(config.store_url))
        indexes = chosen_indexes(args.indexes, plan)
        run_indexes(
            launcher,
            indexes,
            parallel=parallel,
            logs=logs,
            stop=stop,
            names=_names(plan),
            sealed=lambda: _sealed(config, plan),
        )
    return (
        f"{len(indexes)} indexes done in {duration(time.monotonic() - start)}; logs in {logs}/\n"
        f"next: batchsweep bandit --config {args.config}"
    )


def _k8s(args: argparse.Namespace, config: Config) -> str:
    sweep = sweep_name(config.name)
    kubectl = Kubectl(args.namespace)
    config_file = Path(args.config)
    if args.status:
        plan = frozen_plan(config)
        now = snapshot(kubectl, sweep)
        if not now.jobs:
            raise UsageError(f"the cluster has no Jobs of {sweep}; submit it with --apply")
        store = _sealed(config, plan) if plan is not None else {}
        return "\n\n".join(
            part
            for part in (
                index_table(now.index_states, store, _names(plan) if plan is not None else {}),
                summary(now),
                advice(now, args.config),
            )
            if part
        )

    cluster = Cluster(
        image=args.image,
        namespace=args.namespace,
        parallelism=_parallel(args.parallel, ()),
        gpu=None if args.gpu == "none" else args.gpu,
        gpu_type=args.gpu_type,
        storage_class=args.storage_class,
        storage=args.storage,
        cache=args.cache,
        queue=args.queue,
        bandit_after=args.bandit_after,
        workdir=args.workdir,
    )
    indexes, whole = _elsewhere_indexes(args.indexes, config)

    def objects(indexes: Sequence[int], whole: bool) -> list[Object]:
        return render(
            sweep=sweep,
            config_file=config_file.name,
            config_text=config_file.read_text(encoding="utf-8"),
            store_url=config.store_url,
            indexes=indexes,
            whole=whole,
            cluster=cluster,
        )

    if not args.apply:
        return to_yaml(objects(indexes, whole))
    submit(
        kubectl,
        sweep,
        objects,
        indexes,
        again=args.indexes is not None,
        queue=args.queue is not None,
    )
    shown: list[str] = []

    def show(now: Snapshot) -> None:
        text = summary(now)
        if shown[-1:] != [text]:
            shown.append(text)
            logger.info("%s", text)

    end = follow(kubectl, sweep, show=show)
    what_to_do = advice(end, args.config)
    if what_to_do:
        raise IndexFailed(what_to_do)
    if end.broken:
        raise IndexFailed(f"Job {end.broken[0].name} failed: {end.broken[0].reason}")
    return summary(end)


def _slurm(args: argparse.Namespace, config: Config) -> str:
    if args.gpu not in ("gpu", "none"):
        raise UsageError(f"--gpu {args.gpu}: valid: gpu, none")
    indexes, _ = _elsewhere_indexes(args.indexes, config)
    return array_script(
        sweep=sweep_name(config.name),
        config_path=args.config,
        indexes=indexes,
        parallel=_parallel(args.parallel, ()),
        gpu=args.gpu == "gpu",
    )
