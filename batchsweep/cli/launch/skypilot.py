"""``batchsweep launch skypilot``."""

from __future__ import annotations

from typing import Annotated

import typer

from batchsweep.cli.options import ConfigFile, Indexes


def command(
    config: ConfigFile,
    image: Annotated[
        str, typer.Option(metavar="NAME", help="in a registry, with root as its user")
    ],
    indexes: Indexes = None,
    apply: Annotated[bool, typer.Option("--apply", help="submit with 'sky jobs launch'")] = False,
    gpu: Annotated[
        str, typer.Option(metavar="NAME:N", help="a machine's accelerators, as SkyPilot says")
    ] = "A100:1",
    spot: Annotated[
        bool, typer.Option("--spot", help="machines that may be taken away, and are replaced")
    ] = False,
) -> None:
    """Print the extract job as a task of SkyPilot, or submit it.

    One managed job per index, on a machine of its own. The store must be at a
    URL, and prepared: 'prepare' and 'bandit' run here. With --apply, indexes
    that are sealed in the store are left out.

    example:
      batchsweep prepare --config sweep.yaml
      batchsweep launch skypilot --config sweep.yaml --apply \\
        --image ghcr.io/me/batchsweep-root:0.1.0
    """
    from batchsweep.jobs.skypilot import skypilot

    text = skypilot(config, indexes=indexes, image=image, accelerators=gpu, spot=spot, apply=apply)
    print(text.rstrip("\n"))
