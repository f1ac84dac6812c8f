"""``batchsweep plan``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from batchsweep.cli.options import AsJson, ConfigFile, GpuPrice


def command(
    config: ConfigFile,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="time on this GPU, or cpu (default: as recorded, else h100)"
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="simulate what 'run' would extract (half a minute)")
    ] = False,
    gpu_price: GpuPrice = None,
    json_output: AsJson = False,
) -> None:
    """Show arms, indexes, sizes and times of a sweep; changes nothing.

    With --search also what a search is expected to need that extracts only
    what it asks for: its own code, on made-up scores of this size.

    example:
      batchsweep plan --config configs/mteb_layersweep.yaml --gpu h100
      batchsweep plan --config configs/guide.yaml --search --gpu-price 2.5
    """
    from batchsweep.bandit.policy_names import WITH_A_MODEL
    from batchsweep.cli.plan_table import plan_table
    from batchsweep.config import load
    from batchsweep.plan.preview import plan_and_costs, space_of

    sweep = load(config)
    found, costs = plan_and_costs(sweep, gpu=gpu, recorded=gpu is None)
    space = space_of(sweep, found, costs)
    needs = None
    if search:
        from batchsweep.bandit.expected import expected

        needs = expected(found, sweep, costs)
    if json_output:
        disk = space.to_json() if space is not None else None
        values: dict[str, Any] = {"plan": found.to_json(), "costs": costs.to_json(), "disk": disk}
        if search:
            values["search"] = None if needs is None else needs.to_json()
        print(json.dumps(values, indent=1))
        return
    asked_for = sweep.bandit.policy in WITH_A_MODEL
    print(plan_table(found, costs, space, search=asked_for, gpu_price=gpu_price), end="")
    if search:
        print()
        from batchsweep.cli.expected_table import expected_table

        print(expected_table(costs, needs, space, gpu_price=gpu_price), end="")
