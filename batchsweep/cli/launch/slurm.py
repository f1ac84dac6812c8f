"""``batchsweep launch slurm``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchsweep.cli.options import ConfigFile, Indexes


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="array tasks at once")] = 8,
    gpu: Annotated[
        Literal["gpu", "none"], typer.Option(help="one GPU an array task, or none")
    ] = "gpu",
) -> None:
    """Print an array script for sbatch.

    example:
      batchsweep launch slurm --config configs/quick.yaml > extract.sbatch
    """
    from batchsweep.jobs.launch import slurm

    script = slurm(config, indexes=indexes, parallel=parallel, gpu=gpu == "gpu")
    print(script.rstrip("\n"))
