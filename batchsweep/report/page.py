"""What a store knows as one self-contained HTML page, and as tables (CSV, Parquet).

The same store gives the same bytes: nothing says when or where the page was made. Words and
numbers are put into ``page.html`` by Jinja2, which escapes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from batchsweep.config import Config
from batchsweep.errors import writing
from batchsweep.progress import duration
from batchsweep.report.explore import embedded, payload, scripts
from batchsweep.report.figures import ANOTHER_FOLDER, write_figures
from batchsweep.report.findings import Findings, Floats, read, short_name
from batchsweep.report.search_section import search_section
from batchsweep.report.view import View
from batchsweep.score.export import table
from batchsweep.store import Store

#: Rows of the table of best arms.
TOP = 10


def write(
    store: Store,
    folder: Path,
    *,
    title: str,
    search: str | None = None,
    refresh: int | None = None,
    figures: bool = False,
) -> list[Path]:
    """Write ``report.html``, ``scores.csv`` and ``scores.parquet`` into a folder.

    Args:
        store: may belong to a sweep that is still running: the page says what is missing.
        folder: made if it isn't there.
        search: name of the search that the page is about, if it has an answer; default: the last
            that has one.
        refresh: seconds after which a browser loads the page anew; None: never.
        figures: also the planes, as of :func:`batchsweep.report.figures.write_figures`.

    Returns:
        The paths written.

    Raises:
        UsageError: the store has no plan yet.
        StoreError: the folder can't be written.
    """
    findings = read(store)
    tidy = table(store)
    html = render(findings, title=title, search=search, refresh=refresh)
    page, csv, parquet = (folder / f for f in ("report.html", "scores.csv", "scores.parquet"))
    with writing(folder, ANOTHER_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        _replace(csv, lambda path: tidy.to_csv(path, index=False, lineterminator="\n"))
        _replace(parquet, lambda path: tidy.to_parquet(path, index=False))
        _replace(page, lambda path: path.write_text(html, encoding="utf-8"))
    planes = write_figures(findings, folder, search=search) if figures else []
    return [page, csv, parquet, *planes]


def default_folder(config: Config) -> Path:
    """``report/`` beside the store; of a store at a URL, in ``runs/<config name>/``."""
    return config.run_folder / "report"


def _replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Whoever has the old page open never sees half a new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write_to(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def render(
    findings: Findings, *, title: str, search: str | None = None, refresh: int | None = None
) -> str:
    """The whole HTML page; arguments as of :func:`write`."""
    view = View(findings, search)
    environment = Environment(
        loader=PackageLoader("batchsweep.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    explored = bool(np.isfinite(view.mean_A).any())
    return environment.get_template("page.html").render(
        title=title,
        refresh=refresh,
        head=_head(view),
        best=_best(view),
        search=search_section(view),
        tasks=_tasks(view),
        metrics=_metrics(view),
        checkpoints=_checkpoints(view),
        warnings=findings.plan.warnings,
        # Our own, and safe inside a script.
        data=Markup(embedded(payload(view, title))) if explored else "",
        scripts=[Markup(script) for script in scripts()] if explored else [],
    )


# Sections


def _head(view: View) -> dict[str, Any]:
    findings, best = view.findings, view.best
    cells, tasks = len(findings.arms) * len(view.tasks), len(view.tasks)
    if best is None:
        return {"best": None, "done": int(view.measured_AT.sum()), "cells": cells}
    last_layer = findings.last_layer(findings.arms[best].model)
    facts = [
        (
            "mean main score",
            _number(view.mean_A[best]),
            f"over {tasks} tasks{_predicted(view, best)}",
        )
    ]
    if best != last_layer:
        more = f"of the same model; best is {_signed(view.mean_A[best] - view.mean_A[last_layer])}"
        more += _predicted(view, last_layer)
        facts.append(("last checkpoint, last layer", _number(view.mean_A[last_layer]), more))
    answer = view.answer
    if answer:
        share = answer["pulls"] / answer["exhaustive_pulls"]
        facts += [
            ("pulls", f"{answer['pulls']}", f"of {answer['exhaustive_pulls']} ({share:.0%})"),
            ("scoring took", duration(answer["seconds"]), _why_stopped(answer["stopped"])),
        ]
    spent = findings.timings.values()
    if spent:
        seconds = sum(t.all_seconds for t in spent)
        facts.append(
            ("extraction took", duration(seconds), f"{sum(t.tokens for t in spent):,} tokens")
        )
    done = sum(s.complete for s in findings.status.values())
    checkpoints = len(findings.plan.entries)
    facts.append(("checkpoints extracted", f"{done}", f"of {checkpoints} of the plan"))
    if done < checkpoints:
        pairs, every = findings.pairs
        facts.append(("pairs extracted", f"{pairs}", f"of {every}: a checkpoint for a task"))
    return {"best": view.name(best), "facts": facts}


def _predicted(view: View, arm: int) -> str:
    """What of an arm's mean is no measurement; nothing where all of it is one."""
    missing = len(view.tasks) - view.measured_tasks(arm)
    return f"; {missing} of {len(view.tasks)} tasks predicted" if missing else ""


def _why_stopped(reason: str) -> str:
    return {
        "budget": "until the budget was spent",
        "regret": "stopped early: sure enough",
        "exhausted": "nothing was left to ask",
    }.get(reason, reason)


def _best(view: View) -> dict[str, Any]:
    findings = view.findings
    if not np.isfinite(view.mean_A).any():
        return {"rows": []}
    believed = {a["arm"]: a for a in view.answer.get("arms", ())}
    # The search's own order where there is one: its rewards may weigh tasks otherwise.
    merit = np.array(
        [believed[a.arm]["mean"] if a.arm in believed else m
         for a, m in zip(findings.arms, view.mean_A, strict=True)]
    )  # fmt: skip
    merit = np.where(np.isfinite(view.mean_A), merit, -np.inf)
    order = [int(i) for i in np.argsort(-merit, kind="stable") if np.isfinite(merit[i])]
    if view.best is not None and view.best in order:
        order = [view.best, *(i for i in order if i != view.best)]
    last_layers = [findings.last_layer(model) for model in findings.plan.models]
    several = len(findings.poolings) > 1
    rows = []
    for rank, arm in enumerate(order, start=1):
        if rank > TOP and arm not in last_layers:
            continue
        facts = findings.arms[arm]
        cells = [str(rank), short_name(facts.model), facts.revision, str(facts.layer)]
        cells += [facts.pooling] if several else []
        cells += [_number(merit[arm])] if believed else []
        cells += [_number(view.mean_A[arm], 4), f"{view.measured_tasks(arm)}/{len(view.tasks)}"]
        scores = [
            (_number(view.plane_AT[arm, t], 3), bool(view.measured_AT[arm, t])) for t in view.tasks
        ]
        rows.append({"last_layer": arm in last_layers, "cells": cells, "scores": scores})
    head = ["rank", "model", "revision", "layer", *(["pooling"] if several else [])]
    head += ["reward"] if believed else []
    head += ["mean", "measured", *(findings.tasks[t] for t in view.tasks)]
    return {"said": _interval(view), "head": head, "rows": rows}


def _interval(view: View) -> str:
    if not view.answer:
        return "No search has ended yet: only arms measured on all tasks are here."
    best, scale = view.answer["best"], view.answer["scale"]
    unit = " standard deviations" if scale["kind"] == "z" else ""
    said = f"The reward is the {view.answer['reward']}: {best['mean']:.3f}{unit} for the best"
    low, high = best["interval"]
    if low is not None and high is not None and high > low:
        said += f" (95 % interval {low:.3f} to {high:.3f})"
    if best.get("p_best") is not None:
        said += f"; it is the best of all with probability {best['p_best']:.2f}"
    return said + "."


def _tasks(view: View) -> list[list[str]]:
    """A task a row: the best arm's score, and the highest measured one."""
    rows = []
    for t in view.tasks:
        scores_A = view.score_AT[:, t]
        own = "-" if view.best is None else _number(view.plane_AT[view.best, t], 4)
        if np.isfinite(scores_A).any():
            top = int(np.nanargmax(scores_A))
            highest = [_number(scores_A[top], 4), view.name(top)]
        else:
            highest = ["none", ""]
        rows.append([view.findings.tasks[t], own, *highest])
    return rows if view.measured_AT.any() else []


def _metrics(view: View) -> dict[str, Any]:
    complete = view.complete_A
    rows = []
    for name, values_A in sorted(view.findings.metrics.items()):
        both = complete & np.isfinite(values_A)
        shown = _number(_spearman(values_A[both], view.mean_A[both])) if both.sum() > 2 else "-"
        finite = values_A[np.isfinite(values_A)]
        if len(finite):
            rows.append([name, shown, _number(finite.min(), 3), _number(finite.max(), 3)])
    return {"complete": int(complete.sum()), "rows": rows}


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    return float(spearmanr(a, b).statistic)


def _checkpoints(view: View) -> list[list[str]]:
    rows = []
    for entry in view.findings.plan.entries:
        checkpoint = entry.checkpoint
        spent = view.findings.timings.get(entry.key)
        rows.append(
            [
                str(entry.index),
                short_name(checkpoint.model),
                checkpoint.revision,
                "" if checkpoint.step is None else f"{checkpoint.step}",
                f"{len(entry.layers)} x {entry.hidden}",
                checkpoint.commit[:12],
                ", ".join(checkpoint.aliases),
                view.findings.extracted(entry.key),
                "" if spent is None else duration(spent.all_seconds),
            ]
        )
    return rows


# Words


def _number(value: float, decimals: int = 3) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "-"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "not comparable yet"
