"""``batchsweep plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from batchsweep.cli.options import AsJson, ConfigFile


def command(
    config: ConfigFile,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="estimate the time on this GPU (default: h100)"),
    ] = None,
    json_output: AsJson = False,
) -> None:
    """Show arms, indexes, sizes and times of a sweep; changes nothing.

    example:
      batchsweep plan --config configs/mteb_layersweep.yaml --gpu h100
    """
    from batchsweep.cli.plan_table import plan_table
    from batchsweep.config import load
    from batchsweep.plan.preview import plan_and_costs, space_of

    sweep = load(config)
    found, costs = plan_and_costs(sweep, gpu=gpu)
    space = space_of(sweep, found, costs)
    if json_output:
        disk = space.to_json() if space is not None else None
        values = {"plan": found.to_json(), "costs": costs.to_json(), "disk": disk}
        print(json.dumps(values, indent=1))
    else:
        print(plan_table(found, costs, space), end="")
