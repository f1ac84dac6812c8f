"""``batchsweep report``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from batchsweep.cli.options import ConfigFile


def command(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="where to (default: report/ beside the store)"),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="the search to show (default: the config's own, else the one that ended last)",
        ),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="also the plane of each model as SVG, PDF and PNG")
    ] = False,
    follow: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1.0, help="write it anew so often, until Ctrl-C"),
    ] = None,
) -> None:
    """Write an HTML page, CSV and Parquet of what the store knows.

    The page is one file to explore in a browser, without a server. With
    --follow an open page loads itself anew while the sweep runs.

    example:
      batchsweep report --config configs/quick.yaml
      batchsweep report --config configs/quick.yaml --figures --out paper
      batchsweep report --config configs/quick.yaml --follow 30
    """
    from batchsweep.bandit.searches import search_of
    from batchsweep.config import load
    from batchsweep.report.page import default_folder, write
    from batchsweep.store import open_store

    sweep = load(config)
    folder = out or default_folder(sweep)
    refresh = None if follow is None else math.ceil(follow)
    while True:
        store = open_store(sweep.store_url)
        name = search_of(store, sweep, search)
        paths = write(
            store, folder, title=sweep.name, search=name, refresh=refresh, figures=figures
        )
        if follow is None:
            break
        print(f"{time.strftime('%H:%M:%S')} {paths[0]}", flush=True)
        try:
            time.sleep(follow)
        except KeyboardInterrupt:
            break
    for path in paths:
        print(path)
