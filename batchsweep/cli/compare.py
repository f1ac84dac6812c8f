"""``batchsweep compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.errors import UsageError


def command(
    config: Annotated[
        list[Path],
        typer.Option("--config", metavar="FILE", help="give two", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="where to; stores that are there are kept")
    ] = Path("compare"),
) -> None:
    """Why two configs score apart: one convention changed at a time.

    Both must have the same checkpoints and tasks. What differs (layers, layer
    output, pooling, prefix, length, dtypes, transforms, caps) is changed one
    after the other, from the first config to the second, and every config
    between is extracted and scored in full; the differences add up to the whole.
    'alone' is the first config with nothing else changed.

    example:
      batchsweep compare --config configs/layer_by_layer.yaml \\
        --config configs/checkpoint_search.yaml
    """
    if len(config) != 2:
        raise UsageError(f"--config: give two files to compare, not {len(config)}")
    from batchsweep.cli.compare_text import text
    from batchsweep.compare.attribution import compare
    from batchsweep.config import load

    found = compare(load(config[0]), load(config[1]), out)
    table = out / "compare.csv"
    found.table().to_csv(table, index=False)
    print(text(found, str(config[0]), str(config[1])), end="")
    print(table)
