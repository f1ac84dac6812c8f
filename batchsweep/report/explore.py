"""The part of the page that people explore: its data, compact, and the script that shows them.

Everything is in the page: the charts are drawn by a copy of Apache ECharts
(``assets/echarts.min.js``), and nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from batchsweep.report.findings import short_name, short_step
from batchsweep.report.view import View

#: Scores travel as whole numbers of this unit: four decimals, as tables print them.
UNIT = 1e-4
#: Stands for a score that there is none of.
NONE = -32768
#: Bytes of the reasons of pulls that a page holds; of a longer search the first ones have none.
REASONS = 400_000


def payload(view: View, title: str) -> dict[str, Any]:
    """What the script needs, as JSON values.

    Scores are little-endian int16 in units of :data:`UNIT`, and flags are bits, both in base64:
    5,544 arms on 32 tasks are 0.5 MB.
    """
    findings = view.findings
    entries_of = {model: findings.entries_of(model) for model in findings.plan.models}
    models = list(entries_of)
    column = {e.index: i for entries in entries_of.values() for i, e in enumerate(entries)}
    poolings = list(findings.poolings)
    tasks = view.tasks
    believed = {a["arm"]: a for a in view.answer.get("arms", ())}
    sd = [believed.get(a.arm, {}).get("sd") for a in findings.arms]
    measured_AT = view.measured_AT[:, tasks]
    return {
        "title": title,
        "models": [
            {
                "name": model,
                "short": short_name(model),
                "checkpoints": [
                    {
                        "name": e.checkpoint.revision,
                        "short": short_step(e),
                        "step": e.checkpoint.step,
                        "state": findings.extracted(e.key),
                    }
                    for e in entries
                ],
                "layers": sorted({n for e in entries for n in e.layers}),
            }
            for model, entries in entries_of.items()
        ],
        "poolings": poolings,
        "tasks": [
            {"name": findings.tasks[t], "category": findings.categories.get(findings.tasks[t], "")}
            for t in tasks
        ],
        "arms": {
            "name": [a.arm for a in findings.arms],
            "model": [models.index(a.model) for a in findings.arms],
            "checkpoint": [column[a.entry.index] for a in findings.arms],
            "layer": [a.layer for a in findings.arms],
            "pooling": [poolings.index(a.pooling) for a in findings.arms],
        },
        "plane": _scores(view.plane_AT[:, tasks].T),
        "sd": _scores(np.array([np.nan if s is None else s for s in sd], float)),
        "measured": _text(np.packbits(measured_AT.T.ravel(), bitorder="little").tobytes()),
        "unit": UNIT,
        "none": NONE,
        "best": view.best,
        "last_layers": [findings.last_layer(model) for model in models],
        "search": _search(view),
    }


def _search(view: View) -> dict[str, Any] | None:
    """The pulls in their order; None where there is no search."""
    if view.search is None:
        return None
    findings = view.findings
    place = findings.positions
    column = {findings.tasks[t]: i for i, t in enumerate(view.tasks)}
    pulls = [
        pull
        for pull in view.search.pulls
        if pull.arm in place and pull.task in column and not pull.full
    ]
    reasons = [pull.reason for pull in pulls]
    kept, size = 0, 0
    for reason in reversed(reasons):
        size += len(reason) + 3
        if size > REASONS:
            break
        kept += 1
    kinds = sorted({pull.kind for pull in pulls})
    return {
        "name": view.search.name,
        "policy": str(view.search.header.get("policy", "?")),
        "kinds": kinds,
        "arm": [place[pull.arm] for pull in pulls],
        "task": [column[pull.task] for pull in pulls],
        "score": [round(pull.score / UNIT) for pull in pulls],
        "kind": [kinds.index(pull.kind) for pull in pulls],
        "reasons": reasons[len(reasons) - kept :],
    }


def _scores(values: npt.NDArray[np.float64]) -> str:
    """Values of any shape, in their order, as base64 of int16; NaN is :data:`NONE`."""
    limit = -NONE - 1
    whole = np.clip(np.rint(np.nan_to_num(values) / UNIT), -limit, limit)
    return _text(np.where(np.isnan(values), NONE, whole).astype("<i2").tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def embedded(data: dict[str, Any]) -> str:
    """JSON that can stand inside a ``<script>``: no name can close it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def scripts() -> tuple[str, str]:
    """The charting library, and the page's own script."""
    assets = files(__package__) / "assets"
    return (
        (assets / "echarts.min.js").read_text(encoding="utf-8"),
        (assets / "explore.js").read_text(encoding="utf-8"),
    )
