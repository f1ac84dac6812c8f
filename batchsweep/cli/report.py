"""``batchsweep report``."""

from __future__ import annotations

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
) -> None:
    """Write an HTML page, CSV and Parquet of what the store knows.

    example:
      batchsweep report --config configs/quick.yaml
    """
    from batchsweep.config import load
    from batchsweep.report.page import default_folder, write
    from batchsweep.store import open_store

    sweep = load(config)
    folder = out or default_folder(sweep)
    for path in write(open_store(sweep.store_url), folder, title=sweep.name):
        print(path)
