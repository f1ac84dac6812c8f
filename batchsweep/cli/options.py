"""The options that several commands share, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchsweep.errors import UsageError

ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="the sweep's YAML file", show_default=False)
]
Strict = Annotated[
    bool, typer.Option("--strict", help="an unavailable checkpoint is an error (exit 3)")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Grace = Annotated[
    float,
    typer.Option(
        "--grace", metavar="SECONDS", min=0, max=86400, help="time between SIGTERM and kill -9"
    ),
]
Indexes = Annotated[
    str | None, typer.Option("--indexes", metavar="LIST", help="only these, such as 0,4-6")
]
PerGpu = Annotated[
    int | None,
    typer.Option("--parallel", metavar="N", help="indexes at once (default: one per GPU, else 1)"),
]
GpuPrice = Annotated[
    float | None, typer.Option("--gpu-price", metavar="X", min=0, help="what a GPU hour costs")
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="X", min=0, help="begin no wave that would pass this cost"),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option("--log-format", help="log as text or JSON lines")
]
Debug = Annotated[bool, typer.Option("--debug", help="debug messages, full tracebacks")]


def only_one(**given: object) -> None:
    """Of options that exclude each other, at most one may be given (neither None nor False).

    Raises:
        UsageError: two of them are.
    """
    names = [
        f"--{name}" for name, value in given.items() if value is not None and value is not False
    ]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other; give one of them")
