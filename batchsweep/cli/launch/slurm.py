"""``batchsweep launch slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchsweep.cli.options import ConfigFile, GpuPrice, Indexes, MaxCost, only_one

if TYPE_CHECKING:
    from batchsweep.jobs.slurm_search import SlurmSearch


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="array tasks at once")] = 8,
    gpu: Annotated[
        Literal["gpu", "none"], typer.Option(help="one GPU an array task, or none")
    ] = "gpu",
    search: Annotated[
        bool, typer.Option("--search", help="only what the search asks for, as 'run' does")
    ] = False,
    extract_options: Annotated[
        str, typer.Option(metavar="TEXT", help="with --search: sbatch's options for its waves")
    ] = "",
    search_options: Annotated[
        str, typer.Option(metavar="TEXT", help="with --search: sbatch's options for the search")
    ] = "",
    max_cost: MaxCost = None,
    gpu_price: GpuPrice = None,
    step: Annotated[bool, typer.Option("--step", hidden=True)] = False,
    tried: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print an array script for sbatch.

    With --search, the script of a search on a CPU: it submits an array for
    each wave that it asks for, and itself again for when that has ended.

    example:
      batchsweep launch slurm --config configs/quick.yaml > extract.sbatch
      batchsweep launch slurm --config configs/quick.yaml --search > search.sbatch
    """
    only_one(search=search, indexes=indexes)
    from batchsweep.jobs.slurm_search import SlurmSearch
    from batchsweep.jobs.spending import CostLimit

    limit = CostLimit.of_search(max_cost, gpu_price, search=search)
    if search:
        job = SlurmSearch(config, parallel, gpu == "gpu", extract_options, search_options, limit)
        _search(config, job, tried) if step else print(job.script().rstrip("\n"))
        return
    from batchsweep.jobs.launch import slurm

    script = slurm(config, indexes=indexes, parallel=parallel, gpu=gpu == "gpu")
    print(script.rstrip("\n"))


def _search(config: Path, job: SlurmSearch, tried: int | None) -> None:
    """What the search's script runs."""
    from batchsweep.cli.run import show
    from batchsweep.jobs.slurm_search import Submitted

    try:
        show(config, *job.step(tried))
    except Submitted as submitted:
        print(submitted)
