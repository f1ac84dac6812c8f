"""``batchsweep demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="where to")] = Path("runs/demo"),
    make_only: Annotated[
        bool, typer.Option("--make-only", help="make suite, tasks and config; run nothing")
    ] = False,
) -> None:
    """Run the whole job offline on a miniature suite that is trained on the spot.

    example:
      batchsweep demo --out runs/demo
    """
    from batchsweep.demo import make, run

    print(make(out) if make_only else run(out))
