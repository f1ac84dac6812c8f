"""Replay: how policies would have done on a table of scores that is already complete.

The pulls go through :func:`batchsweep.bandit.run`, the very loop of a live run; only the score
comes from the table. Many seeds give regret curves with intervals.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep import bandit
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.policies import Policy, Problem
from batchsweep.rewards import Floats, aggregate, raw_scale, z_scale

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

#: Other spellings of the columns of a table of scores.
ALIASES = {"main_score": "score", "eval_seconds": "seconds", "evaluation_time": "seconds"}
#: Moments of a run at which the policy states its full answer (P(best)), evenly over the budget.
STATEMENTS = 20
#: "Within" is a regret of at most this part of the best arm's mean score.
WITHIN = 0.005


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Every arm scored on every task.

    Attributes:
        scores: [arm, task] main scores. seconds: [arm, task], 1 where unknown.
        noise: standard deviation of noise added to a pull, for synthetic tables.
    """

    problem: Problem
    scores: Floats
    seconds: Floats
    noise: float = 0.0

    def subset(self, seed: int, *, arms: float = 1.0, tasks: float = 1.0) -> ScoreTable:
        """A random part of the arms and tasks; at least one of each, and one baseline layer."""
        rng = np.random.default_rng([seed, 7])
        count_a, count_t = self.problem.shape
        keep_t = np.sort(rng.permutation(count_t)[: max(1, round(tasks * count_t))])
        keep = rng.permutation(count_a)[: max(1, round(arms * count_a))]
        assert self.problem.baseline is not None
        if not self.problem.baseline[keep].any():
            keep = np.append(keep, rng.choice(np.flatnonzero(self.problem.baseline)))
        keep = np.sort(keep)
        old = self.problem
        problem = Problem(
            arms=tuple(old.arms[i] for i in keep),
            tasks=tuple(old.tasks[i] for i in keep_t),
            model=tuple(old.model[i] for i in keep),
            step=old.step[keep],
            depth=old.depth[keep],
            metrics={k: v[keep] for k, v in old.metrics.items()},
            baseline=self.problem.baseline[keep],
        )
        cells = np.ix_(keep, keep_t)
        return replace(
            self, problem=problem, scores=self.scores[cells], seconds=self.seconds[cells]
        )

    def truth(self, rewards: RewardsConfig) -> tuple[Floats, float]:
        """[arm] true rewards, and how many of their units make one unit of mean main score."""
        if rewards.scale == "z":
            scale = z_scale(self.scores[self.problem.baseline])
        else:
            scale = raw_scale(len(self.problem.tasks))
        plane = (self.scores - scale.centre) / scale.spread
        unit = scale.unit if rewards.aggregate != "rank" else 1.0
        return aggregate(plane, rewards.aggregate), unit


def read_scores(path: str | Path, *, metrics: str | Path | None = None) -> ScoreTable:
    """A complete table of scores from a CSV or Parquet file, or a folder of MTEB results.

    Columns: ``revision``, ``layer``, ``task``, ``score``; optional ``model``, ``step``,
    ``seconds``. ``main_score`` and ``eval_seconds`` are accepted for score and seconds. A folder is
    read as MTEB writes it, ``MODEL/REVISION/TASK.json``, with ``layer_3`` (or ``layer-3``,
    ``layer3``) somewhere in the path.

    Args:
        metrics: a CSV or Parquet file of label-free metrics: ``revision``, ``layer``, ``metric``,
            ``value``, optional ``model`` and ``key`` (a variant of the metric).

    Raises:
        UsageError: unreadable, a missing column, a cell that is missing or there twice.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder of scores")
    frame = _mteb_folder(path) if path.is_dir() else _read_frame(path)
    extra = None if metrics is None else _read_frame(Path(metrics))
    return table_of(frame, source=str(path), metrics=extra)


def table_of(
    frame: pd.DataFrame, *, source: str = "scores", metrics: pd.DataFrame | None = None
) -> ScoreTable:
    """A table from a data frame with the columns of :func:`read_scores`."""
    frame = frame.rename(columns={k: v for k, v in ALIASES.items() if v not in frame})
    missing = [c for c in ("revision", "layer", "task", "score") if c not in frame]
    if missing:
        raise UsageError(
            f"{source}: no column {', '.join(missing)}; needed: revision, layer, task, score; "
            f"there: {', '.join(map(str, frame.columns))}"
        )
    frame = frame.assign(model=frame.get("model", "model"))
    if "step" not in frame:
        frame = frame.assign(step=[_step(str(r)) for r in frame["revision"]])
    keys = ["model", "revision", "layer"]
    if frame.duplicated([*keys, "task"]).any():
        row = frame[frame.duplicated([*keys, "task"])].iloc[0]
        raise UsageError(
            f"{source}: {row['model']} {row['revision']} layer {row['layer']} on {row['task']} is "
            "there twice"
        )
    arms = frame.drop_duplicates(keys).sort_values(["model", "step", "layer"], kind="stable")
    scores = frame.pivot(index=keys, columns="task", values="score").reindex(
        list(arms[keys].itertuples(index=False, name=None))
    )
    gaps = int(scores.isna().to_numpy().sum())
    if gaps:
        raise UsageError(
            f"{source}: {gaps} of {scores.size} cells (arm x task) have no score; a replay needs a "
            "complete table"
        )
    if "seconds" in frame:
        seconds = frame.pivot(index=keys, columns="task", values="seconds").reindex(scores.index)
        seconds_AT = seconds[scores.columns].fillna(1.0).to_numpy(dtype=float)
    else:
        seconds_AT = np.ones(scores.shape)
    layer = arms["layer"].to_numpy(dtype=float)
    top = arms.groupby("model")["layer"].transform("max").to_numpy(dtype=float)
    problem = Problem(
        arms=tuple(f"{m}/{r}#{k}" for m, r, k in arms[keys].itertuples(index=False, name=None)),
        tasks=tuple(str(t) for t in scores.columns),
        model=tuple(str(m) for m in arms["model"]),
        step=arms["step"].to_numpy(dtype=float),
        depth=layer / np.maximum(top, 1.0),
        metrics={} if metrics is None else _metric_columns(metrics, arms),
    )
    return ScoreTable(problem, scores.to_numpy(dtype=float), seconds_AT)


def _metric_columns(metrics: pd.DataFrame, arms: pd.DataFrame) -> dict[str, Floats]:
    names = metrics["metric"].astype(str)
    if "key" in metrics:
        key = metrics["key"].fillna("").astype(str)
        names = names.where(key == "", names + "_" + key)
    on = ["model", "revision", "layer"] if "model" in metrics else ["revision", "layer"]
    wide = metrics.assign(name=names).pivot_table(index=on, columns="name", values="value")
    wide = wide.reindex(list(arms[on].itertuples(index=False, name=None)))
    return {str(c): wide[c].to_numpy(dtype=float) for c in wide.columns}


def _read_frame(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix in (".parquet", ".pq"):
            return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read as a table: {error}") from None
    raise UsageError(f"{path}: not a table of scores; valid: .csv, .parquet, a folder of results")


def _mteb_folder(folder: Path) -> pd.DataFrame:
    """Rows from MTEB's result files below a folder."""
    import json

    import pandas as pd

    rows: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("*.json")):
        if file.name == "model_meta.json":
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "scores" not in content:
            continue
        place = file.relative_to(folder).as_posix()
        layer = re.search(r"layer[_-]?(\d+)", place)
        if layer is None:
            raise UsageError(f"{file}: no layer in its path; name a folder like 'layer_3'")
        parts = [re.sub(r"[#@_-]*layer[_-]?\d+", "", p) for p in Path(place).parts[:-1]]
        parts = [p for p in parts if p]
        main = [s["main_score"] for split in content["scores"].values() for s in split]
        rows.append(
            {
                "model": parts[0] if len(parts) > 1 else "model",
                "revision": parts[-1] if parts else "main",
                "layer": int(layer[1]),
                "task": content.get("task_name", file.stem),
                "score": float(np.mean(main)),
                "seconds": content.get("evaluation_time"),
            }
        )
    if not rows:
        raise UsageError(f"{folder}: no MTEB result files (TASK.json with 'scores') below it")
    frame = pd.DataFrame(rows)
    return frame.drop(columns="seconds") if frame["seconds"].isna().all() else frame


def _step(revision: str) -> float:
    """The number in a revision's name; ``main`` comes after all numbers (NaN)."""
    number = re.search(r"step-?(\d+)", revision) or re.search(r"(\d+)(?!.*\d)", revision)
    return float(number[1]) if number else float("nan")


# -- running ---------------------------------------------------------------------------------------


def replay(
    table: ScoreTable,
    policies: Sequence[str],
    *,
    config: BanditConfig | None = None,
    rewards: RewardsConfig | None = None,
    seeds: Iterable[int] = range(10),
    arms: float = 1.0,
    tasks: float = 1.0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> pd.DataFrame:
    """Run each policy with each seed; one row each time a policy has learned something.

    Args:
        config: budget, workers, ...; its policy and seed are replaced. The final check is off
            unless the config is given.
        arms, tasks: part of the arms and tasks that each seed draws at random.
        options: policy -> its options.

    Returns:
        Columns policy, seed, pulls, seconds, regret (in mean main score), best (whether the
        believed arm is the truly best), within (regret of at most 0.5 % of the best arm's mean
        score), p_best (stated; NaN between statements or without a model), cells (of the table).
    """
    import pandas as pd

    config = config or BanditConfig(final_check=0, stop_at_regret=0.0)
    rewards = rewards or RewardsConfig(scale="raw")
    rows: list[tuple[Any, ...]] = []
    for seed in seeds:
        part = table.subset(seed, arms=arms, tasks=tasks) if (arms, tasks) != (1, 1) else table
        for name in policies:
            rows += _one(part, name, seed, config, rewards, dict((options or {}).get(name, {})))
    columns = ["policy", "seed", "pulls", "seconds", "regret", "best", "within", "p_best", "cells"]
    return pd.DataFrame(rows, columns=columns)


def _one(
    table: ScoreTable,
    name: str,
    seed: int,
    config: BanditConfig,
    rewards: RewardsConfig,
    options: dict[str, Any],
) -> list[tuple[Any, ...]]:
    problem = table.problem
    truth, unit = table.truth(rewards)
    regret = (truth.max() - truth) / unit
    within = WITHIN * float(table.scores.mean(axis=1)[int(truth.argmax())])
    index = {a: i for i, a in enumerate(problem.arms)}
    task_index = {t: i for i, t in enumerate(problem.tasks)}
    noise = np.random.default_rng([seed, 13]).normal(size=table.scores.shape) * table.noise

    def score(arm: str, task: str) -> tuple[float, float, Any]:
        a, t = index[arm], task_index[task]
        value = float(table.scores[a, t] + noise[a, t])
        return value, float(table.seconds[a, t]), {"noise": table.noise}

    config = config.model_copy(update={"policy": name, "seed": seed})
    total = bandit.budget_of(config, problem)[0] or table.scores.size
    moments = {round(total * (k + 1) / STATEMENTS) for k in range(STATEMENTS)}
    rows: list[tuple[Any, ...]] = []

    def row(policy: Policy, pulls: int, seconds: float, *, state: bool) -> None:
        arm, stated = policy.leader(), float("nan")
        if state:
            answer = policy.best()
            stated = float("nan") if answer.p_best is None else answer.p_best
        at = regret[arm]
        rows.append(
            (name, seed, pulls, seconds, at, at <= 0, at <= within, stated, table.scores.size)
        )

    def heard(policy: Policy, pulls: int, seconds: float) -> None:
        row(policy, pulls, seconds, state=pulls in moments)

    outcome = bandit.run(
        problem, score, config, rewards, options=options, on_tell=heard, quiet=True
    )
    if not rows:  # a policy that pulls nothing answers all the same
        arm = index[outcome.answer.arm]
        at = regret[arm]
        rows.append((name, seed, 0, 0.0, at, at <= 0, at <= within, float("nan"), truth.size))
    return rows


# -- looking ---------------------------------------------------------------------------------------


def at_pulls(curves: pd.DataFrame, pulls: Sequence[int]) -> pd.DataFrame:
    """What each policy and seed believed after ``pulls`` pulls (or when it stopped before)."""
    import pandas as pd

    parts = []
    for k in pulls:
        known = curves[curves["pulls"] <= k].sort_values("pulls", kind="stable")
        last = known.groupby(["policy", "seed"], sort=False).tail(1)
        parts.append(last.assign(at=k))
    return pd.concat(parts, ignore_index=True)


def summary(curves: pd.DataFrame, pulls: Sequence[int] | None = None) -> pd.DataFrame:
    """Means over seeds with 95 % intervals, per policy and number of pulls.

    Columns: policy, pulls, seeds, regret, regret_low, regret_high (normal interval of the mean),
    best, within and within_low, within_high (Wilson intervals), all regrets in mean main score.
    """
    import pandas as pd

    if pulls is None:
        top = int(curves["pulls"].max())
        pulls = sorted({max(1, round(top * f)) for f in (0.1, 0.25, 0.5, 1.0)})
    rows = []
    for (policy, at), group in at_pulls(curves, pulls).groupby(["policy", "at"], sort=False):
        n = len(group)
        mean = float(group["regret"].mean())
        error = 1.96 * float(group["regret"].std(ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
        low, high = wilson(int(group["within"].sum()), n)
        rows.append(
            {
                "policy": policy,
                "pulls": at,
                "seeds": n,
                "regret": mean,
                "regret_low": max(0.0, mean - error),
                "regret_high": mean + error,
                "best": float(group["best"].mean()),
                "within": float(group["within"].mean()),
                "within_low": low,
                "within_high": high,
            }
        )
    return pd.DataFrame(rows).sort_values(["pulls", "regret"], ignore_index=True)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def calibration(curves: pd.DataFrame, edges: Sequence[float] = (0, 0.5, 0.8, 0.95, 1.0)) -> Any:
    """Stated P(best) against how often the arm was the best, in bands of what was stated."""
    import pandas as pd

    stated = curves.dropna(subset=["p_best"])
    band = pd.cut(stated["p_best"], list(edges), include_lowest=True)
    grouped = stated.groupby(band, observed=True)
    return grouped.agg(
        statements=("p_best", "size"), stated=("p_best", "mean"), happened=("best", "mean")
    ).reset_index(names="band")


def figure(curves: pd.DataFrame, path: str | Path, *, title: str = "") -> None:
    """Simple regret, P(best) and P(within 0.5 %) against pulls and seconds, as PNG, SVG or PDF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(2, 3)
    names = list(dict.fromkeys(curves["policy"]))
    for row, axis in enumerate(("pulls", "seconds")):
        top = float(curves[axis].max())
        grid = np.unique(np.geomspace(max(1.0, top / 500), max(top, 2.0), 60))
        for k, name in enumerate(names):
            mine = curves[curves["policy"] == name]
            for column, what in enumerate(("regret", "best", "within")):
                values = _on_grid(mine, axis, what, grid)
                mean = np.nanmean(values, axis=0)
                error = 1.96 * np.nanstd(values, axis=0) / np.sqrt(len(values))
                colour = f"C{k % 10}"
                style = "-" if k < 10 else "--"
                ax = axes[row][column]
                ax.plot(grid, mean, color=colour, linestyle=style, label=name, linewidth=1.6)
                low = np.maximum(mean - error, 0.0)
                ax.fill_between(grid, low, mean + error, color=colour, alpha=0.12, linewidth=0)
        for column, label in enumerate(("simple regret (score)", "P(best)", "P(within 0.5 %)")):
            ax = axes[row][column]
            ax.set_xscale("log")
            ax.set_xlabel(axis)
            ax.set_ylabel(label)
            ax.grid(alpha=0.25)
            if column:
                ax.set_ylim(-0.02, 1.02)
            else:
                ax.set_yscale("symlog", linthresh=1e-3)
                ax.set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8)
    if title:
        fig.suptitle(title)
    fig.savefig(path, dpi=130)


def _on_grid(curves: pd.DataFrame, axis: str, what: str, grid: Floats) -> Floats:
    """[seed, grid] the last value known at each point of the grid; NaN before the first."""
    out = []
    for _, one in curves.groupby("seed", sort=False):
        x, y = one[axis].to_numpy(dtype=float), one[what].to_numpy(dtype=float)
        at = np.searchsorted(x, grid, side="right") - 1
        out.append(np.where(at >= 0, y[np.maximum(at, 0)], np.nan))
    return np.array(out)
