"""``batchsweep run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchsweep.cli.options import ConfigFile, GpuPrice, Grace, MaxCost, PerGpu
from batchsweep.signals import GRACE

if TYPE_CHECKING:
    from batchsweep.bandit.outcome import Outcome
    from batchsweep.plan.plan import Plan
    from batchsweep.store import Store


def command(
    config: ConfigFile,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="extract everything, then search")
    ] = False,
    parallel: PerGpu = None,
    max_cost: MaxCost = None,
    gpu_price: GpuPrice = None,
    grace: Grace = GRACE,
) -> None:
    """Find the best arm on this machine: extract what the search asks for.

    Prepares, then extracts wave by wave the (checkpoint, task) pairs that tell
    most about the best arm for what they cost, searches what is there, and
    stops once it is sure or a budget is spent; then writes the report. Stopped
    or killed, the same command goes on from there.

    example:
      batchsweep run --config configs/quick.yaml
      batchsweep run --config configs/quick.yaml --exhaustive
      batchsweep run --config configs/guide.yaml --max-cost 20 --gpu-price 2.5
    """
    from batchsweep.jobs.run_sweep import run_sweep
    from batchsweep.jobs.spending import CostLimit

    limit = CostLimit.of(max_cost, gpu_price)
    show(
        config,
        *run_sweep(config, exhaustive=exhaustive, parallel=parallel, grace=grace, limit=limit),
    )


def show(config: Path, store: Store, plan: Plan, name: str, outcome: Outcome) -> None:
    """Print a search's answer, what it had extracted, and where its report is written."""
    from batchsweep.cli.answer_text import summary
    from batchsweep.config import load
    from batchsweep.report.page import default_folder, write
    from batchsweep.store.pairs import ready_tasks

    print(summary(outcome, plan))
    sweep = load(config)
    tasks = outcome.problem.tasks
    ready = ready_tasks(store)
    pairs = sum(task in ready.get(entry.key, ()) for entry in plan.entries for task in tasks)
    every = len(plan.entries) * len(tasks)
    print(f"extracted: {pairs} of {every} (checkpoint, task) pairs ({100 * pairs / every:.0f} %)")
    print(f"in {store.url}: bandit/{name}/answer.json")
    for path in write(store, default_folder(sweep), title=sweep.name, search=name):
        print(path)
