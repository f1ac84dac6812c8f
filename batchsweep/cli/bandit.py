"""``batchsweep bandit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.bandit.policy_names import POLICY_NAMES
from batchsweep.cli.options import ConfigFile
from batchsweep.errors import UsageError


def command(
    config: ConfigFile,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"instead of the config's bandit.policy; one of {', '.join(POLICY_NAMES)}",
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="N", help="whole-arm evaluations, likewise")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="instead of the config's bandit.seed")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="pulls in parallel, likewise")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="mteb's results: pulls that are paid already"),
    ] = None,
) -> None:
    """Search the store for the best arm under the config's budget.

    Each pull is in the store before it counts: killed and run again, the
    search goes on where it was and ends with the same answer.

    --results: scores of layers of these checkpoints that are there already, in
    mteb's layout with experiments ('batchsweep export' writes it). They cost
    nothing of the budget; files that don't fit are counted, and why.

    example:
      batchsweep bandit --config configs/quick.yaml
      batchsweep bandit --config configs/quick.yaml --policy exhaustive
    """
    from pydantic import ValidationError

    from batchsweep.bandit.search import search
    from batchsweep.cli.answer_text import summary
    from batchsweep.config import BanditConfig, load
    from batchsweep.plan.frozen import load_plan
    from batchsweep.store import open_store

    sweep = load(config)
    options = {"policy": policy, "budget": budget, "seed": seed, "workers": workers}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        # dict() keeps the values' own types: a budget may be a section of its own.
        changed = BanditConfig.model_validate({**dict(sweep.bandit), **given})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(
            f"--{fault['loc'][0]} {fault['input']}: {fault['msg'].removeprefix('Input ')}"
        ) from None
    sweep = sweep.model_copy(update={"bandit": changed})
    store = open_store(sweep.store_url)
    name, outcome = search(store, sweep, results)
    print(summary(outcome, load_plan(store)))
    print(f"in {store.url}: bandit/{name}/answer.json")
