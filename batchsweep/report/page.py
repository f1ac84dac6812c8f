"""What a store knows as one self-contained HTML page, and as tables (CSV, Parquet).

The same store gives the same bytes: nothing says when or where the page was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from batchsweep.config import Config
from batchsweep.errors import StoreError
from batchsweep.plan.plan import PlanEntry
from batchsweep.progress import duration
from batchsweep.report import svg
from batchsweep.report.findings import Findings, read, short_name, short_step
from batchsweep.report.search_section import search_section
from batchsweep.report.svg import Bools, Floats, Limits
from batchsweep.report.view import View
from batchsweep.score.export import table
from batchsweep.store import Store

#: Rows of the table of best arms.
TOP = 10


def write(store: Store, folder: Path, *, title: str, search: str | None = None) -> list[Path]:
    """Write ``report.html``, ``scores.csv`` and ``scores.parquet`` into a folder.

    Args:
        store: may belong to a sweep that is still running: the page says what is missing.
        folder: made if it isn't there.
        title: the sweep's name.
        search: name of the search that the page is about; default: the last that has an answer.

    Returns:
        The paths written.

    Raises:
        UsageError: the store has no plan yet.
        StoreError: the folder can't be written.
    """
    findings = read(store)
    tidy = table(store)
    html = render(findings, title=title, search=search)
    page, csv, parquet = (folder / f for f in ("report.html", "scores.csv", "scores.parquet"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(csv, lambda path: tidy.to_csv(path, index=False, lineterminator="\n"))
        _replace(parquet, lambda path: tidy.to_parquet(path, index=False))
        _replace(page, lambda path: path.write_text(html, encoding="utf-8"))
    except OSError as error:
        raise StoreError(
            f"{folder}: can't be written: {error.strerror or error}; choose another folder by --out"
        ) from None
    return [page, csv, parquet]


def default_folder(config: Config) -> Path:
    """``report/`` beside the store; of a store at a URL, in ``runs/<config name>/``."""
    url = config.store_url
    beside = Path("runs") / config.name if "://" in url else Path(url).parent
    return beside / "report"


def _replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Whoever has the old page open never sees half a new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write_to(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def render(findings: Findings, *, title: str, search: str | None = None) -> str:
    """The whole HTML page."""
    view = View(findings, search)
    sections = [
        _head(view, title),
        _plane_section(view),
        _best_section(view),
        search_section(view),
        _task_section(view),
        _metric_section(view),
        _checkpoint_section(view),
    ]
    template = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    body = svg.DEFINITIONS + "\n".join(section for section in sections if section)
    return template.substitute(title=f"batchsweep: {escape(title)}", body=body)


# Sections


def _head(view: View, title: str) -> str:
    findings, best = view.findings, view.best
    out = [f"<h1>batchsweep: {escape(title)}</h1>"]
    arms, tasks = len(findings.arms), len(view.tasks)
    if best is None:
        done = int(view.measured_AT.sum())
        out.append(
            "<p class='verdict'>No answer yet.</p>"
            f"<p>{done} of {arms * tasks} pairs of arm and task are scored. "
            "<code>batchsweep bandit</code> searches for the best arm.</p>"
        )
        return "".join(out)
    default = findings.default_arm(findings.arms[best].model)
    out.append(f"<p class='verdict'>Best: <b>{escape(view.name(best))}</b></p>")
    cells = [("mean main score", _number(view.mean_A[best]), f"over {tasks} tasks")]
    if best != default:
        cells.append(
            (
                "last checkpoint, last layer",
                _number(view.mean_A[default]),
                f"of the same model; best is {_signed(view.mean_A[best] - view.mean_A[default])}",
            )
        )
    answer = view.answer
    if answer:
        share = answer["pulls"] / answer["exhaustive_pulls"]
        cells.append(
            ("pulls", f"{answer['pulls']}", f"of {answer['exhaustive_pulls']} ({share:.0%})")
        )
        cells.append(("scoring took", duration(answer["seconds"]), _why_stopped(answer["stopped"])))
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(more)}</small></dd></div>"
        for name, value, more in cells
    )
    out.append(f"<dl class='facts'>{facts}</dl>")
    return "".join(out)


def _why_stopped(reason: str) -> str:
    return {
        "budget": "until the budget was spent",
        "regret": "stopped early: sure enough",
        "exhausted": "nothing was left to ask",
    }.get(reason, reason)


def _plane_section(view: View) -> str:
    if not np.isfinite(view.mean_A).any():
        return ""
    out = ["<h2>The time-layer plane</h2>"]
    predicted_A: Bools = np.logical_not(view.measured_AT[:, view.tasks].all(axis=1))
    out.append(
        f"<p>Mean main score over {len(view.tasks)} tasks of every layer of every checkpoint. "
        + _legend(view, bool((predicted_A & np.isfinite(view.mean_A)).any()))
        + "</p>"
    )
    out.append(_scale(view.limits, "mean main score"))
    pulls_A = np.zeros(len(view.findings.arms))
    if view.search:
        for pull in view.search.pulls:
            pulls_A[view.findings.index(pull.arm)] += 1
    for model, pooling, entries, layers, arms_LC in view.planes():
        out.append(f"<h3>{escape(_plane_name(view, model, pooling))}</h3><div class='planes'>")
        out.append(
            _plane(view, view.mean_A, arms_LC, entries, layers, view.limits,
                   caption="Mean main score", what=f"Mean main score of {short_name(model)}",
                   predicted_A=predicted_A)
        )  # fmt: skip
        if pulls_A.any():
            shown = np.where(pulls_A > 0, pulls_A, np.nan)
            limits = Limits(0.0, float(len(view.tasks)))
            out.append(
                _plane(view, shown, arms_LC, entries, layers, limits,
                       caption="Pulls that the search spent",
                       what=f"Pulls spent on {short_name(model)}", decimals=0)
            )  # fmt: skip
        out.append("</div>")
    return "".join(out)


def _legend(view: View, predicted: bool) -> str:
    hatched = (
        "<span class='key hatched'></span> predicted by the policy, not all tasks measured. "
        if predicted
        else ""
    )
    outlined = "<span class='key outlined'></span> the best arm." if view.best is not None else ""
    return hatched + outlined


def _scale(limits: Limits, label: str) -> str:
    return svg.colour_scale(limits, label=label)


def _plane_name(view: View, model: str, pooling: str) -> str:
    return short_name(model) + (
        f", {pooling} pooling" if len(view.findings.plan.poolings) > 1 else ""
    )


def _plane(
    view: View,
    values_A: Floats,
    arms_LC: np.ndarray,
    entries: Sequence[PlanEntry],
    layers: Sequence[int],
    limits: Limits,
    *,
    caption: str,
    what: str,
    predicted_A: Bools | None = None,
    decimals: int = 2,
    numbers: bool = True,
) -> str:
    there = arms_LC >= 0
    values_LC = np.where(there, values_A[arms_LC], np.nan)
    place = np.argwhere(arms_LC == view.best) if view.best is not None else np.empty((0, 2))
    finite = values_LC[np.isfinite(values_LC)]
    span = (
        f", from {finite.min():.{decimals}f} to {finite.max():.{decimals}f}" if len(finite) else ""
    )
    picture = svg.heat_map(
        values_LC,
        layers=layers,
        columns=[short_step(e) for e in entries],
        limits=limits,
        label=f"{what}: {len(layers)} layers by {len(entries)} checkpoints{span}",
        predicted_LC=None if predicted_A is None else predicted_A[arms_LC] & there,
        best=(int(place[0][0]), int(place[0][1])) if len(place) else None,
        decimals=decimals,
        numbers=numbers,
    )
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def _best_section(view: View) -> str:
    findings = view.findings
    if not np.isfinite(view.mean_A).any():
        return ""
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
    default = [findings.default_arm(model) for model in findings.plan.models]
    names = [findings.tasks[t] for t in view.tasks]
    head = ["", "model", "revision", "layer"]
    head += ["pooling"] if len(findings.plan.poolings) > 1 else []
    head += ["reward"] if believed else []
    head += ["mean", "measured", *names]
    rows = []
    for rank, arm in enumerate(order, start=1):
        if rank > TOP and arm not in default:
            continue
        facts = findings.arms[arm]
        cells = [str(rank), short_name(facts.model), facts.revision, str(facts.layer)]
        cells += [facts.pooling] if len(findings.plan.poolings) > 1 else []
        cells += [_number(merit[arm])] if believed else []
        cells += [_number(view.mean_A[arm], 4), f"{view.measured_tasks(arm)}/{len(view.tasks)}"]
        html = [escape(cell) for cell in cells]
        for t in view.tasks:
            shown = _number(view.plane_AT[arm, t], 3)
            html.append(shown if view.measured_AT[arm, t] else f"<i>{shown}</i>")
        style = " class='default'" if arm in default else ""
        rows.append(f"<tr{style}>{_cells(html, names=(1, 2))}</tr>")
    interval = _interval(view)
    return (
        "<h2>Best arms</h2>"
        f"<p>{interval} Numbers in <i>italics</i> are predicted. Grey rows: the last layer of a "
        "model's last checkpoint, what one would take without a sweep.</p>"
        f"<div class='scroll'><table><thead><tr>{_cells(head, names=(1, 2), tag='th')}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _interval(view: View) -> str:
    if not view.answer:
        return "No search has ended yet: only arms measured on all tasks are here."
    best, scale = view.answer["best"], view.answer["scale"]
    unit = " standard deviations" if scale["kind"] == "z" else ""
    said = (
        f"The reward is the {escape(view.answer['reward'])}: {best['mean']:.3f}{unit} for the best"
    )
    low, high = best["interval"]
    if low is not None and high is not None and high > low:
        said += f" (95 % interval {low:.3f} to {high:.3f})"
    if best.get("p_best") is not None:
        said += f"; it is the best of all with probability {best['p_best']:.2f}"
    return said + "."


def _task_section(view: View) -> str:
    if not np.isfinite(view.plane_AT).any():
        return ""
    out = ["<h2>Task by task</h2>"]
    out.append(
        "<p>The same plane for each task, each with colours of its own. "
        "The number is the highest score measured.</p><div class='tasks'>"
    )
    for t, task in enumerate(view.findings.tasks):
        values_A = view.plane_AT[:, t]
        if not np.isfinite(values_A).any():
            continue
        limits = Limits.of(values_A)
        measured = view.findings.score_AT[:, t]
        top = f"{np.nanmax(measured):.3f}" if np.isfinite(measured).any() else "none"
        out.append(
            f"<section><h3>{escape(task)} <span class='soft'>{top}</span></h3>"
            f"{_scale(limits, 'main score')}<div class='planes'>"
        )
        for model, pooling, entries, layers, arms_LC in view.planes():
            out.append(
                _plane(view, values_A, arms_LC, entries, layers, limits,
                       caption=_plane_name(view, model, pooling),
                       what=f"{task} of {short_name(model)}",
                       predicted_A=np.logical_not(view.measured_AT[:, t]), numbers=False)
            )  # fmt: skip
        out.append("</div></section>")
    return "".join([*out, "</div>"])


def _metric_section(view: View) -> str:
    findings = view.findings
    complete = view.measured_AT[:, view.tasks].all(axis=1) if view.tasks else np.zeros(0, bool)
    rows = []
    for name, values_A in sorted(findings.metrics.items()):
        both = complete & np.isfinite(values_A)
        shown = _number(_spearman(values_A[both], view.mean_A[both])) if both.sum() > 2 else "-"
        finite = values_A[np.isfinite(values_A)]
        if len(finite):
            cells = [escape(name), shown, _number(finite.min(), 3), _number(finite.max(), 3)]
            rows.append(f"<tr>{_cells(cells, names=(0,))}</tr>")
    if not rows:
        return ""
    head = _cells(["metric", "rank correlation", "lowest", "highest"], names=(0,), tag="th")
    return (
        "<h2>Label-free metrics</h2>"
        "<p>Computed during extraction, without any task. The rank correlation (Spearman's) is "
        f"with the mean main score of the {int(complete.sum())} arms scored on all tasks.</p>"
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import spearmanr

    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    return float(spearmanr(a, b).statistic)


def _checkpoint_section(view: View) -> str:
    plan, status = view.findings.plan, view.findings.status
    rows = []
    for entry in plan.entries:
        done = status.get(entry.key)
        state = "not extracted yet"
        if done is not None:
            state = "complete" if done.complete else f"{done.sealed} of {done.blocks} blocks"
        checkpoint = entry.checkpoint
        cells = [
            str(entry.index),
            short_name(checkpoint.model),
            checkpoint.revision,
            "" if checkpoint.step is None else f"{checkpoint.step}",
            f"{len(entry.layers)} x {entry.hidden}",
            checkpoint.commit[:12],
            ", ".join(checkpoint.aliases),
            state,
        ]
        rows.append(f"<tr>{_cells([escape(c) for c in cells], names=(1, 2, 5, 6, 7))}</tr>")
    head = ["index", "model", "revision", "step", "layers x hidden", "commit", "same weights as"]
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in plan.warnings)
    return (
        "<h2>Checkpoints</h2>"
        + (f"<ul>{warnings}</ul>" if warnings else "")
        + "<div class='scroll'><table><thead><tr>"
        + _cells([*head, "state"], names=(1, 2, 5, 6, 7), tag="th")
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


# Words and cells


def _cells(values: Sequence[str], *, names: Sequence[int], tag: str = "td") -> str:
    """Table cells of ready HTML; those at ``names`` are text, the others numbers."""
    out = []
    for i, value in enumerate(values):
        kind = " class='name'" if i in names else ""
        out.append(f"<{tag}{kind}>{value}</{tag}>")
    return "".join(out)


def _number(value: float, decimals: int = 3) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "-"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "not comparable yet"
