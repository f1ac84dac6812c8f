"""A comparison of two configs as people read it."""

from __future__ import annotations

from batchsweep.compare.attribution import Comparison
from batchsweep.table import Column, table_text


def text(found: Comparison, a: str, b: str) -> str:
    """A table: a convention a row, and how many points of mean main score it makes."""
    first, last = found.a.scores.mean(), found.b.scores.mean()
    rows = [(f"{a}: mean main score", f"{100 * first:.2f}", "", "")]
    for convention, (before, after), alone in zip(
        found.conventions, found.in_turn, found.alone, strict=True
    ):
        change = after.scores - before.scores
        means = change.mean(axis=0)
        largest = int(abs(means).argmax())
        rows.append(
            (
                str(convention),
                f"{100 * change.mean():+.2f}",
                f"{100 * (alone.scores.mean() - first):+.2f}",
                f"{before.tasks[largest]} {100 * means[largest]:+.2f}",
            )
        )
    share = f" ({100 * (last / first - 1):+.1f} %)" if first else ""
    rows.append((f"{b}: mean main score{share}", f"{100 * last:.2f}", "", ""))
    columns = [
        Column("points of main score", prose=True),
        Column("in turn", right=True),
        Column("alone", right=True),
        Column("most, in turn"),
    ]
    arms, tasks = found.a.scores.shape
    return table_text(columns, rows) + f"means over {arms} arms and {tasks} tasks\n"
