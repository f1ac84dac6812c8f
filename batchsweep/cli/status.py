"""``batchsweep status``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from batchsweep.cli.options import AsJson, ConfigFile


def command(
    config: ConfigFile,
    json_output: AsJson = False,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="first wait until N indexes are sealed, or none is left to come",
        ),
    ] = None,
) -> None:
    """Show, per checkpoint, which blocks are sealed, skipped or failed.

    example:
      batchsweep status --config configs/quick.yaml
    """
    from batchsweep.config import load
    from batchsweep.extract import status
    from batchsweep.plan.frozen import load_plan
    from batchsweep.store import open_store
    from batchsweep.table import Column, table_text

    sweep = load(config)
    if wait is not None:
        status.wait(sweep, wait)
    store = open_store(sweep.store_url)
    rows = status.index_statuses(store, load_plan(store))
    if json_output:
        print(json.dumps([row.to_json() for row in rows], indent=1))
        return
    corpus = store.corpus()
    tasks = 0 if corpus is None else len(corpus.tasks())
    cells = [
        (
            "-" if row.index is None else str(row.index),
            row.model,
            row.revision,
            row.state,
            f"{row.sealed}/{row.blocks}" if row.blocks else "",
            f"{len(row.ready)}/{tasks}" if row.blocks else "",
            row.note or (f"same weights: {', '.join(row.aliases)}" if row.aliases else ""),
        )
        for row in rows
    ]
    columns = (
        Column("index", right=True),
        Column("model"),
        Column("revision"),
        Column("state"),
        Column("blocks", right=True),
        Column("tasks", right=True),
        Column("note", prose=True),
    )
    print(table_text(columns, cells), end="")
    print(f"{store.url}: {status.counts(rows)}; {status.pairs_ready(rows, tasks)}")
