"""What the demo says at its end."""

from __future__ import annotations

import math
from pathlib import Path

from batchsweep.progress import duration
from batchsweep.report.findings import read
from batchsweep.report.view import View
from batchsweep.store import open_store


def summary(out: Path, *, seconds: float) -> str:
    """The best arm beside the last checkpoint's last layer, what it cost, and where all is."""
    view = View(read(open_store(out / "store.zarr")))
    findings, answer = view.findings, view.answer
    assert view.best is not None
    last_layer = findings.last_layer(findings.arms[view.best].model)
    names = [findings.tasks[t] for t in view.tasks]
    width = max(len(n) for n in [*names, "mean of the tasks"])
    lines = [
        "",
        f"best arm:   {view.name(view.best)}",
        f"beside it:  {view.name(last_layer)} (what one would take without a sweep)",
        "",
        f"  {'':{width}}    best  beside",
    ]
    for task, name in zip(view.tasks, names, strict=True):
        cells = [_cell(view, arm, task) for arm in (view.best, last_layer)]
        lines.append(f"  {name:{width}}  {cells[0]:>6}  {cells[1]:>6}")
    means = "  ".join(f"{view.mean_A[arm]:6.3f}" for arm in (view.best, last_layer))
    lines.append(f"  {'mean of the tasks':{width}}  {means}")
    if not view.measured_AT[[view.best, last_layer]][:, view.tasks].all():
        lines.append("  (~: predicted by the policy, not measured)")
    share = answer["pulls"] / answer["exhaustive_pulls"]
    ready, pairs = findings.pairs
    lines += [
        "",
        f"extracted:  {ready} of {pairs} (checkpoint, task) pairs ({ready / pairs:.0%})",
        f"pulls:      {answer['pulls']} of the exhaustive {answer['exhaustive_pulls']} "
        f"({share:.0%}), {answer['seconds']:.0f} s of scoring",
        f"store:      {out / 'store.zarr'}",
        f"table:      {out / 'report' / 'scores.csv'}",
        f"page:       {out / 'report' / 'report.html'}",
        f"took:       {duration(seconds)}",
    ]
    return "\n".join(lines)


def _cell(view: View, arm: int, task: int) -> str:
    value = view.plane_AT[arm, task]
    if not math.isfinite(value):
        return "-"
    return f"{'' if view.measured_AT[arm, task] else '~'}{value:.3f}"
