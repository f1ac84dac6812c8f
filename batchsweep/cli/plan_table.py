"""The plan and its costs as tables that a person can decide from."""

from __future__ import annotations

import textwrap
from itertools import groupby

from batchsweep.checkpoints.same_weights import last_step_twice
from batchsweep.jobs.index import format_indexes
from batchsweep.plan.estimate import Estimate, gib
from batchsweep.plan.plan import Plan
from batchsweep.plan.space import Space
from batchsweep.plan.speed import CPU, DOWNLOAD_RATE, WRITE_RATE
from batchsweep.progress import duration
from batchsweep.table import Column, line_width, table_text, visible

#: The part of a recorded time from which on a process was hardly kept waiting.
_UNDISTURBED = 0.9
#: Recorded paces that differ by less are one.
_SPREAD = 1.2


def plan_table(
    plan: Plan,
    costs: Estimate,
    space: Space | None = None,
    *,
    search: bool = False,
    gpu_price: float | None = None,
) -> str:
    """Models, totals, what would save, and the warnings, as text for a terminal.

    Args:
        search: ``run`` extracts only what its search asks for.
        gpu_price: of a GPU hour, in whatever currency.
    """
    warnings = [f"warning: {visible(line)}" for line in _warnings(plan, costs, space, search)]
    notes = _notes(plan, costs)
    if search:
        notes.append(
            "All of this is for every checkpoint, layer and task. 'batchsweep run' extracts only "
            "what its search asks for: 'batchsweep plan --search' simulates how much that is."
        )
    notes = ["\n".join(textwrap.wrap(visible(note), line_width())) for note in notes]
    tables = _models(plan, costs) + _totals(plan, costs, space, gpu_price) + _savings(costs)
    return tables + "\n".join([*warnings, *notes]) + "\n"


def _numbers(*titles: str) -> list[Column]:
    return [Column(title, right=True) for title in titles]


def _models(plan: Plan, costs: Estimate) -> str:
    """One line a model; a checkpoint's size where its indexes agree on it."""
    numbers = ("indexes", "checkpoints", "layers", "arms", "store each", "store", "download")
    rows = []
    pairs = zip(plan.entries, costs.entries, strict=True)
    by_model = sorted(pairs, key=lambda p: plan.models.index(p[0].checkpoint.model))
    for model, group in groupby(by_model, key=lambda p: p[0].checkpoint.model):
        entries, each = zip(*group, strict=True)
        layers = sorted({len(e.layers) for e in entries})
        download = sum(e.download_bytes for e in each)
        rows.append(
            (
                model,
                format_indexes(e.index for e in entries).replace(",", ", "),
                str(len(entries)),
                " or ".join(map(str, layers)),
                f"{costs.arms_per_model[model]:,}",
                gib(max(e.store_bytes for e in each)),
                gib(sum(e.store_bytes for e in each)),
                gib(download) if download else "-",
            )
        )
    return table_text([Column("model"), *_numbers(*numbers)], rows)


def _totals(plan: Plan, costs: Estimate, space: Space | None, gpu_price: float | None) -> str:
    about = "" if costs.size.exact else "about "
    n = len(plan.entries)
    pulls = f"{costs.exhaustive_pulls:,} exhaustively"
    if costs.budget_pulls is not None:
        share = costs.budget_pulls / max(costs.exhaustive_pulls, 1)
        pulls = f"{costs.budget_pulls:,} ({share:.0%}) of {pulls}"
    texts = f"{about}{costs.size.texts:,} unique, {_count(costs.size.tokens)} tokens"
    where = "estimate" if not costs.download_exact else "from the Hub's metadata"
    free = f"; {gib(space.free)} are free on {space.folder}" if space is not None else ""
    rows = [
        ("indexes", f"{n}: 0 to {n - 1} (completions of the indexed job)"),
        ("arms", f"{costs.arms:,}"),
        ("texts", texts),
        ("store", f"{about}{gib(costs.store_bytes)}{free}"),
        ("download", f"{gib(costs.download_bytes)} ({where})" if costs.download_bytes else "none"),
        ("compute", f"{costs.flops:.2g} FLOP"),
        (
            "time",
            f"{_time(costs)} on {costs.speed.place}, "
            f"{duration(max(e.gpu_seconds for e in costs.entries))} for the longest index",
        ),
        ("pulls", f"{pulls}; budget {costs.budget}"),
    ]
    if gpu_price is not None:
        money = costs.gpu_seconds / 3600 * gpu_price
        rows.append(("cost", f"{money:.2f}, at {gpu_price:g} a GPU hour"))
    return table_text([Column(""), Column("", prose=True)], rows, header=False, width=line_width())


def _time(costs: Estimate) -> str:
    """Of all indexes; a range where recorded extraction was kept waiting for its cores."""
    most = duration(costs.gpu_seconds)
    if costs.least_seconds > _UNDISTURBED * costs.gpu_seconds:
        return f"about {most}"
    return f"{duration(costs.least_seconds)} to {most}"


def _savings(costs: Estimate) -> str:
    if not costs.savings:
        return ""
    time = f"time on {costs.speed.place}"
    columns = [Column("cheaper with", prose=True), *_numbers("store", time)]
    rows = [(s.change, gib(s.store_bytes), duration(s.gpu_seconds)) for s in costs.savings]
    return table_text(columns, rows)


def _warnings(plan: Plan, costs: Estimate, space: Space | None, search: bool) -> list[str]:
    warnings = list(plan.warnings)
    if space is not None and not space.fits:
        changes = f"; these lines of the config would: {'; '.join(space.changes)}"
        run = "; 'batchsweep run' needs less, and never takes more than there is room for"
        warnings.append(
            f"it does not fit: {space}{changes if space.changes else ''}{run if search else ''}"
        )
    if costs.size.unknown:
        warnings.append(f"no statistics, so not counted above: {', '.join(costs.size.unknown)}")
    return warnings


def _notes(plan: Plan, costs: Estimate) -> list[str]:
    notes = last_step_twice(entry.checkpoint for entry in plan.entries)
    if not plan.audited:
        notes.append(
            "Not audited: 'batchsweep checkpoints --audit' (and 'prepare') asks the Hub which "
            "checkpoints are there and which are the same."
        )
    if not costs.size.exact:
        notes.append(
            "Texts are estimated from mteb's statistics; shared texts count twice. "
            "'prepare' counts them."
        )
    notes.append(_of_time(costs))
    return notes


def _of_time(costs: Estimate) -> str:
    starts = [entry.start_seconds for entry in costs.entries]
    least, most = f"{min(starts):.0f}", f"{max(starts):.0f}"
    start = f"{least if least == most else f'{least} to {most}'} s to start an index"
    if costs.speed.started is not None:
        return _of_recorded_time(costs, start)
    computing = "4 to 40 % of the GPU's peak by the model's width"
    if costs.speed.device == CPU:
        computing = "0.1 TFLOP/s"
    return (
        f"Time is a rule of thumb (a factor of 3 either way): {start}, "
        f"{DOWNLOAD_RATE / 1e6:.0f} MB/s of download, {WRITE_RATE / 1e6:.0f} MB/s of "
        f"writing, and {computing}."
    )


def _of_recorded_time(costs: Estimate, start: str) -> str:
    speed = costs.speed
    said = f"Time is as the store recorded it of {speed.indexes} of {len(costs.entries)} indexes"
    if speed.paces >= _SPREAD:
        said += f", whose paces differ by a factor of {speed.paces:.1f}"
    said += f": {start}."
    if costs.least_seconds <= _UNDISTURBED * costs.gpu_seconds:
        said += " The least is with the cores to itself, the most if they are as busy as then."
    return said


def _count(n: float) -> str:
    for unit, width in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= width:
            return f"{n / width:.3g} {unit}"
    return f"{n:.0f}"
