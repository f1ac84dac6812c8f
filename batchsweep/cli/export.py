"""``batchsweep export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.cli.options import ConfigFile


def command(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="where to (default: export/ beside the store)"),
    ] = None,
) -> None:
    """Write all scores as MTEB result folders and as one table (CSV and Parquet).

    mteb reads the folders: mteb.ResultCache('DIR/mteb').load_results(). Each
    arm is a model of its own there, such as
    EleutherAI/pythia-14m-step1000-layer3-mean.

    example:
      batchsweep export --config configs/quick.yaml --out exported
    """
    from batchsweep.config import load
    from batchsweep.report.page import default_folder
    from batchsweep.score.export import export
    from batchsweep.store import open_store

    sweep = load(config)
    done = export(open_store(sweep.store_url), out or default_folder(sweep).parent / "export")
    print(f"{done.pulls} pulls\n{done.table}\n{done.table.with_suffix('.parquet')}\n{done.results}")
