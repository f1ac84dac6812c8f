"""The time-layer plane of each model as a figure for a paper: SVG, PDF and PNG, with a caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.errors import writing
from batchsweep.report.findings import Findings, short_name, short_step
from batchsweep.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What to do where a report can't be written.
ANOTHER_FOLDER = "; mend that, or choose another folder by 'batchsweep report --out'"
#: Axes with more places than this name only some of them.
_NAMED = 16


def write_figures(findings: Findings, folder: Path, *, search: str | None = None) -> list[Path]:
    """Write ``plane-<model>[-<pooling>].svg``, ``.pdf``, ``.png`` and the caption as ``.txt``.

    The colours are viridis, which rises evenly in lightness, so that it reads in grey and with any
    colour vision (van der Walt and Smith, 2015). Cells that are not measured on all tasks are
    hatched; the best arm is outlined.

    Args:
        folder: made if it isn't there.
        search: as of :func:`batchsweep.report.page.write`.

    Returns:
        The paths written; none as long as no mean is known.

    Raises:
        StoreError: the folder can't be written.
    """
    view = View(findings, search)
    paths: list[Path] = []
    with writing(folder, ANOTHER_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        for model, pooling, entries, layers, arms_LC in view.planes():
            there_LC = arms_LC >= 0
            values_LC = np.where(there_LC, view.mean_A[arms_LC], np.nan)
            if not np.isfinite(values_LC).any():
                continue
            name = f"plane-{_file_name(short_name(model))}"
            name += f"-{pooling}" if len(findings.poolings) > 1 else ""
            measured_LC = view.complete_A[arms_LC] & there_LC
            best = [] if view.best is None else np.argwhere(arms_LC == view.best).tolist()
            paths += _draw(
                folder / name,
                values_LC,
                predicted_LC=np.isfinite(values_LC) & ~measured_LC,
                layers=[str(n) for n in layers],
                checkpoints=[short_step(e) for e in entries],
                title=short_name(model),
                best=(best[0][0], best[0][1]) if best else None,
            )
            caption = folder / f"{name}.txt"
            caption.write_text(_caption(view, model, pooling, values_LC, measured_LC) + "\n")
            paths.append(caption)
    return paths


def _draw(
    path: Path,
    values_LC: np.ndarray,
    *,
    predicted_LC: np.ndarray,
    layers: list[str],
    checkpoints: list[str],
    title: str,
    best: tuple[int, int] | None,
) -> list[Path]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows, columns = values_LC.shape
    paths = []
    # Text stays text, and the same plane gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "batchsweep", "pdf.fonttype": 42}):
        width = min(7.0, 1.8 + 0.28 * columns)
        figure = Figure(figsize=(width, min(5.0, 1.2 + 0.2 * rows)), layout="constrained")
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(values_LC, cmap="viridis", rasterized=False)
        for i, j in np.argwhere(predicted_LC):
            _cell(axes, i, j, hatch="////", edgecolor=(1, 1, 1, 0.35), linewidth=0)
        if best is not None:
            _cell(axes, *best, edgecolor="#d62728", linewidth=2)
        _ticks(axes, layers, checkpoints)
        axes.set(xlabel="checkpoint (training step)", ylabel="layer", title=title)
        figure.colorbar(mesh, ax=axes, label="mean main score")
        for kind, metadata in (
            ("svg", {"Date": None}),
            ("pdf", {"CreationDate": None}),
            ("png", {"Software": None}),
        ):
            out = path.parent / f"{path.name}.{kind}"
            figure.savefig(out, format=kind, dpi=200, metadata=metadata)
            paths.append(out)
    return paths


def _cell(axes: Axes, row: int, column: int, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, row), 1, 1, fill=False, **style))


def _ticks(axes: Axes, layers: list[str], checkpoints: list[str]) -> None:
    for axis, names in ((axes.xaxis, checkpoints), (axes.yaxis, layers)):
        every = -(-len(names) // _NAMED)
        # Counted back from the last, which is the one that people know.
        places = np.arange(len(names) - 1, -1, -every)[::-1]
        axis.set_ticks(places + 0.5, [names[i] for i in places])
    axes.tick_params(axis="x", rotation=90 if max(map(len, checkpoints)) > 2 else 0)


def _caption(
    view: View, model: str, pooling: str, values_LC: np.ndarray, measured_LC: np.ndarray
) -> str:
    done, cells = int(measured_LC.sum()), int(np.isfinite(values_LC).sum())
    said = (
        f"Mean main score over {len(view.tasks)} tasks of every layer of every checkpoint of "
        f"{model} ({pooling} pooling). {done} of {cells} cells are measured on all tasks"
    )
    if done < cells:
        said += "; the hatched ones are predicted by the search"
    if view.best is not None and view.findings.arms[view.best].model == model:
        said += f". Outlined: the best arm, {view.name(view.best)}"
    if view.answer:
        said += (
            f". The search scored {view.answer['pulls']} of {view.answer['exhaustive_pulls']} "
            "pairs of arm and task"
        )
    return said + "."


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
