"""``batchsweep launch docker``."""

from __future__ import annotations

from typing import Annotated

import typer

from batchsweep.cli.options import GRACE, ConfigFile, Grace, Indexes, PerGpu


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    parallel: PerGpu = None,
    grace: Grace = GRACE,
    image: Annotated[str, typer.Option(metavar="NAME", help="the image to run")] = "batchsweep",
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="the containers' network, such as none or host"),
    ] = None,
) -> None:
    """Run all indexes on this machine, as containers.

    Like 'launch local', in a container per index: read-only, no privileges,
    with the config, the store, local models and the model cache mounted where
    they are.

    example:
      batchsweep launch docker --config configs/quick.yaml --image batchsweep
    """
    from batchsweep.jobs.launch import docker

    print(
        docker(
            config, image=image, network=network, indexes=indexes, parallel=parallel, grace=grace
        )
    )
