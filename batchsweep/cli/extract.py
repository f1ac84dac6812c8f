"""``batchsweep extract``."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from batchsweep.cli.options import ConfigFile, Grace, Strict, only_one
from batchsweep.errors import (
    BatchsweepError,
    IndexFailed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    UsageError,
)
from batchsweep.signals import GRACE

if TYPE_CHECKING:
    from batchsweep.plan.plan import Plan, PlanEntry
    from batchsweep.store import Store

logger = logging.getLogger(__name__)


def command(
    config: ConfigFile,
    index: Annotated[
        str | None, typer.Option(metavar="N", help="the checkpoint's index (plan)")
    ] = None,
    all_indexes: Annotated[
        bool, typer.Option("--all", help="all indexes, one after the other")
    ] = False,
    indexes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="the job's own list, such as 0,4-6: the environment counts in it"
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="only the blocks that hold these tasks' rows (default: all)"
        ),
    ] = None,
    wave: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="of a search's wave (waves/000N.json): the environment counts its checkpoints",
        ),
    ] = None,
    strict: Strict = False,
    delete_weights: Annotated[
        bool,
        typer.Option(
            "--delete-weights",
            help="delete a checkpoint's downloaded weights once its last block is sealed",
        ),
    ] = False,
    grace: Grace = GRACE,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="N", help="show figures to Prometheus there, at /metrics"),
    ] = None,
) -> None:
    """Write the pooled states of all layers of one checkpoint.

    Without --index or --all, the index is what Kubernetes
    (JOB_COMPLETION_INDEX), Slurm (SLURM_ARRAY_TASK_ID) or SkyPilot
    (SKYPILOT_JOB_RANK) put into the environment. Run again, it goes on where
    it was; what is sealed is left alone.

    example:
      batchsweep extract --config configs/quick.yaml --index 3
      batchsweep extract --config configs/quick.yaml --index 3 --tasks STS12,SciFact
      JOB_COMPLETION_INDEX=3 batchsweep extract --config configs/quick.yaml
      JOB_COMPLETION_INDEX=0 batchsweep extract --config configs/quick.yaml --wave 2
      batchsweep extract --config configs/quick.yaml --all
    """
    only_one(index=index, all=all_indexes, indexes=indexes, wave=wave)
    only_one(tasks=tasks, wave=wave)
    chosen = _whole_number(index) if index is not None else None

    from batchsweep.config import load
    from batchsweep.extract import weights
    from batchsweep.extract.extract import extract
    from batchsweep.extract.figures import Figures, served
    from batchsweep.plan.frozen import frozen_plan
    from batchsweep.signals import stop_on_signals
    from batchsweep.store import open_store

    sweep = load(config)
    store = open_store(sweep.store_url)
    plan = frozen_plan(store, sweep)
    chosen_tasks = None if tasks is None else [task.strip() for task in tasks.split(",")]
    if wave is not None:
        entry, chosen_tasks = _visit_of_the_job(store, plan, wave)
        entries = [entry]
    elif all_indexes:
        entries = list(plan.entries)
    else:
        entries = [plan.entry(chosen if chosen is not None else _index_of_the_job(indexes))]
    failed: dict[str, BatchsweepError] = {}
    figures: list[Figures] = []
    with (
        stop_on_signals(grace) as stop,
        served(figures, metrics_port),
        ThreadPoolExecutor(1) as background,
    ):
        for number, entry in enumerate(entries):
            label = f"{number + 1}/{len(entries)}" if all_indexes else f"index {entry.index}"
            if number + 1 < len(entries):
                background.submit(weights.prefetch, store, entries[number + 1], chosen_tasks)
            # Of libraries, mostly; a process has no age that is told everywhere.
            started = 0.0 if number else time.process_time()
            figures.append(Figures(entry.key, started))
            try:
                extract(
                    store,
                    sweep,
                    entry,
                    tasks=chosen_tasks,
                    stop=stop,
                    strict=strict,
                    label=label,
                    figures=figures[-1],
                )
            except StoreFull:
                raise
            except (IndexFailed, StoreError) as error:
                # It is noted in the store. The other indexes don't depend on it.
                if len(entries) == 1:
                    raise
                logger.error("%s", error)
                failed[entry.key] = error
            if delete_weights:
                weights.delete_weights(entry)
            stop.check()
    if failed:
        first = next(iter(failed.values()))
        raise type(first)(
            f"{len(failed)} of {len(entries)} indexes failed: {', '.join(failed)}; the others are "
            "sealed, 'batchsweep status' says why these are not"
        )


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise UsageError(f"--index must be a whole number from 0 to 999999, not {text[:40]!r}")
    return int(text)


def _visit_of_the_job(store: Store, plan: Plan, wave: int) -> tuple[PlanEntry, list[str]]:
    """The checkpoint of a wave that the environment means, and its tasks."""
    from batchsweep.bandit.stored_waves import wave_of
    from batchsweep.jobs.index import index_from_environment

    visits = wave_of(store, wave).visits
    position = index_from_environment(os.environ)
    if position >= len(visits):
        raise UsageError(f"wave {wave} has {len(visits)} checkpoints, no entry {position}")
    visit = visits[position]
    entry = plan.entry_of(visit.key)
    if entry is None:
        raise StoreCorrupt(f"{store.url}: wave {wave} asks for {visit.key}, which has no index")
    return entry, list(visit.tasks)


def _index_of_the_job(indexes: str | None) -> int:
    """The index that the environment means, counted in ``--indexes`` where it is given."""
    from batchsweep.jobs.index import index_from_environment, parse_indexes

    position = index_from_environment(os.environ)
    if indexes is None:
        return position
    chosen = parse_indexes(indexes)
    if position >= len(chosen):
        raise UsageError(f"--indexes {indexes} has {len(chosen)} entries, no entry {position}")
    return chosen[position]
