"""An audit as people read it."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from batchsweep.checkpoints.audit import Audit


def audit_table(found: Audit) -> str:
    """What the audit found: one line a model, then one a warning."""
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for column in ("indexes", "identical", "missing", "without weights"):
        table.add_column(column, justify="right")
    models = dict.fromkeys([c.model for c in found.checkpoints] + [s.model for s in found.skipped])
    for model in models:
        mine = [c for c in found.checkpoints if c.model == model]
        table.add_row(
            model,
            str(len(mine)),
            str(sum(len(d.others) for d in found.duplicates if d.model == model)),
            str(sum(s.model == model for s in found.missing)),
            str(sum(s.model == model for s in found.weightless)),
        )
    console = Console(file=io.StringIO(), width=100, highlight=False)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join([*lines, *_warnings(found.warnings), _closing(found)]) + "\n"


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {line}" for line in warnings] or [
        "All revisions are there, have weights of their own, and share no file."
    ]


def _closing(found: Audit) -> str:
    return f"{found.requests} requests; no weights were downloaded."
