"""Tables and the picture of what targets.py ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import measured
import pandas as pd
from matplotlib import pyplot


def table(
    rows: pd.DataFrame, found: pd.DataFrame
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """A line per case: regret of the policy and of the best other; bold where that is better.

    With a star where it is by more than two standard errors.
    """
    parts = {part: f"{100 * part:g}" for part in sorted(found["part"].unique())}
    columns = [measured.column("Problem", "{case}"), measured.column("Seeds", "{seeds}")]
    for p in parts.values():
        shown = f"{{regret_{p}:.2f}} / {{best_other_{p}:.2f}} {{which_{p}}}{{sure_{p}}}"
        columns.append(measured.column(f"{p} %", shown, bold=f"behind_{p}"))
    lines = []
    for name, group in found.groupby("case", sort=False):
        line: dict[str, Any] = {
            "case": name,
            "seeds": rows[rows["case"] == name]["seed"].nunique(),
        }
        for row in group.to_dict("records"):
            p = parts[row["part"]]
            line |= {f"{what}_{p}": row[what] for what in ("regret", "best_other", "which")}
            line[f"behind_{p}"] = row["behind"]
            line[f"sure_{p}"] = "*" if row["surely"] else ""
        lines.append(line)
    return columns, lines


def compared(rows: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """A line per policy: mean regret over all problems, the worst problem, and how often it led.

    At the parts of the cells that every problem was run at.
    """
    mean = _means(rows)
    parts = sorted(mean.columns.get_level_values("part").unique())
    lines = []
    for policy in mean.index:
        line: dict[str, Any] = {"policy": policy}
        for part in parts:
            mine = mean.loc[policy, part]
            line[f"mean_{100 * part:g}"] = mine.mean()
            line[f"worst_{100 * part:g}"] = mine.max()
            best = mean.xs(part, axis=1, level="part").min()
            line[f"first_{100 * part:g}"] = int((mine <= best + 1e-9).sum())
            line[f"of_{100 * part:g}"] = len(mine)
        lines.append(line)
    columns = [measured.column("Policy", "`{policy}`")]
    for part in parts:
        p = f"{100 * part:g}"
        columns += [
            measured.column(f"mean regret at {p} %", f"{{mean_{p}:.2f}}"),
            measured.column("worst problem", f"{{worst_{p}:.2f}}"),
            measured.column("best or level in", f"{{first_{p}}} of {{of_{p}}}"),
        ]
    key = f"mean_{100 * parts[0]:g}"
    return {"columns": columns, "rows": sorted(lines, key=lambda line: line[key])}


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """[policy, (part, case)] mean regret, at the parts that every case has."""
    cases = rows.groupby("part")["case"].nunique()
    common = cases.index[cases == rows["case"].nunique()]
    return (
        rows[rows["part"].isin(common)]
        .groupby(["policy", "part", "case"], sort=False)["regret"]
        .mean()
        .unstack(["part", "case"])
    )


def picture(rows: pd.DataFrame, path: Path) -> None:
    """A row per problem, a point per policy: mean regret at each part that all problems have."""
    mean = _means(rows)
    parts = sorted(mean.columns.get_level_values("part").unique())
    order = mean[parts[0]].loc[mean.index[0]].sort_values().index
    figure, axes = pyplot.subplots(
        1, len(parts), figsize=(5 * len(parts) + 3, 0.28 * len(order) + 1.5), sharey=True
    )
    axes = [axes] if len(parts) == 1 else list(axes)
    for axis, part in zip(axes, parts, strict=True):
        for policy, marker in zip(mean.index, "oxs^v+D", strict=False):
            regret = mean[part].loc[policy, order]
            axis.plot(regret, range(len(order)), marker, label=policy, markersize=5, alpha=0.8)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xlim(left=-0.01)
        axis.set_title(f"{100 * part:g} % of the cells")
        axis.set_xlabel("mean regret in points")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(order)), [str(name) for name in order], fontsize=8)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
