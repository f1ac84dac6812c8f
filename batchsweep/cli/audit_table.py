"""An audit as people read it."""

from __future__ import annotations

from collections.abc import Sequence

from batchsweep.checkpoints.audited import Audit
from batchsweep.checkpoints.same_weights import last_step_twice
from batchsweep.table import Column, table_text, visible


def audit_table(found: Audit) -> str:
    """What the audit found: one line a model, then one a warning."""
    titles = ("indexes", "identical", "missing", "without weights")
    models = dict.fromkeys([c.model for c in found.checkpoints] + [s.model for s in found.skipped])
    rows = [
        (
            model,
            str(sum(c.model == model for c in found.checkpoints)),
            str(sum(len(d.others) for d in found.duplicates if d.model == model)),
            str(sum(s.model == model for s in found.missing)),
            str(sum(s.model == model for s in found.weightless)),
        )
        for model in models
    ]
    table = table_text([Column("model"), *(Column(t, right=True) for t in titles)], rows)
    notes = [visible(line) for line in last_step_twice(found.checkpoints)]
    return table + "\n".join([*_warnings(found.warnings), *notes, _closing(found)]) + "\n"


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {visible(line)}" for line in warnings] or [
        "All revisions are there, have weights of their own, and share no file."
    ]


def _closing(found: Audit) -> str:
    return f"{found.requests} requests; no weights were downloaded."
