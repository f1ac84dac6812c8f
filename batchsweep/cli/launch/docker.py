"""``batchsweep launch docker``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from batchsweep.cli.options import ConfigFile, GpuPrice, Grace, Indexes, MaxCost, PerGpu, only_one
from batchsweep.jobs import IMAGE
from batchsweep.signals import GRACE

if TYPE_CHECKING:
    from batchsweep.config import Config
    from batchsweep.jobs.docker import DockerLauncher


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    parallel: PerGpu = None,
    grace: Grace = GRACE,
    image: Annotated[str, typer.Option(metavar="NAME", help="the image to run")] = IMAGE,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="the containers' network, such as none or host"),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="only what the search asks for, as 'run' does")
    ] = False,
    max_cost: MaxCost = None,
    gpu_price: GpuPrice = None,
) -> None:
    """Run all indexes on this machine, as containers.

    Like 'launch local', in a container per index: read-only, no privileges,
    with the config, the store, local models and the model cache mounted where
    they are. With --search, prepare and search run here, and the containers
    extract wave by wave what the search asks for.

    example:
      batchsweep launch docker --config configs/quick.yaml --image batchsweep:cpu
      batchsweep launch docker --config configs/guide.yaml --search --max-cost 20 --gpu-price 2.5
    """
    only_one(search=search, indexes=indexes)
    from batchsweep.jobs.spending import CostLimit

    limit = CostLimit.of_search(max_cost, gpu_price, search=search)
    if search:
        from batchsweep.cli.run import show
        from batchsweep.jobs.launch import docker_launcher
        from batchsweep.jobs.run_sweep import run_sweep

        def launch(sweep: Config, workers: int) -> DockerLauncher:
            return docker_launcher(
                sweep, config, image=image, network=network, workers=workers, grace=grace
            )

        show(
            config,
            *run_sweep(config, parallel=parallel, grace=grace, launch=launch, limit=limit),
        )
        return
    from batchsweep.jobs.launch import docker

    print(
        docker(
            config, image=image, network=network, indexes=indexes, parallel=parallel, grace=grace
        )
    )
