"""``batchsweep launch hf-jobs``."""

from __future__ import annotations

from typing import Annotated

import typer

from batchsweep.cli.options import ConfigFile, Indexes


def command(
    config: ConfigFile,
    image: Annotated[str, typer.Option(metavar="NAME", help="in a registry, or a Space's")],
    indexes: Indexes = None,
    apply: Annotated[bool, typer.Option("--apply", help="submit to Hugging Face")] = False,
    flavor: Annotated[
        str, typer.Option(metavar="NAME", help="a machine, see 'hf jobs hardware'")
    ] = "a10g-small",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="after which a job is ended, such as 90m")
    ] = "12h",
) -> None:
    """Print the extract job as Hugging Face Jobs, or submit it.

    One job per index. The store must be at a URL, and prepared: 'prepare' and
    'bandit' run here. With --apply, indexes that are sealed in the store are
    left out.

    example:
      batchsweep prepare --config sweep.yaml
      batchsweep launch hf-jobs --config sweep.yaml --image ghcr.io/me/batchsweep:0.1.0 --apply
    """
    from batchsweep.jobs.hf_jobs import hf_jobs

    print(
        hf_jobs(config, indexes=indexes, image=image, flavor=flavor, timeout=timeout, apply=apply)
    )
