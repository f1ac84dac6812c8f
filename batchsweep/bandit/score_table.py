"""Complete tables of scores: arm x task, from files, MTEB result folders, or a store."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.mteb_results import mteb_results
from batchsweep.bandit.policies import Problem
from batchsweep.bandit.rewards import Floats, aggregate, raw_scale, z_scale
from batchsweep.checkpoints.checkpoint import steps_in
from batchsweep.config import RewardsConfig, local_path
from batchsweep.errors import UsageError
from batchsweep.score.export import counted
from batchsweep.score.record import Score
from batchsweep.score.records import score_rows
from batchsweep.tasks.resolve import resolve, tasks_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

#: Other spellings of the columns of a table of scores.
ALIASES = {"main_score": "score", "eval_seconds": "seconds", "evaluation_time": "seconds"}
#: "Within" is a regret of at most this part of the best arm's mean score.
WITHIN = 0.005


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Every arm scored on every task.

    Attributes:
        scores: [arm, task] main scores; NaN where undefined. seconds: [arm, task], 1 where unknown.
        noise: standard deviation of noise added to a pull, for synthetic tables.
    """

    problem: Problem
    scores: Floats
    seconds: Floats
    noise: float = 0.0

    @property
    def counted(self) -> Floats:
        """[arm, task] main scores as the bandit counts them: 0 where undefined."""
        return counted(self.scores)

    def subset(self, seed: int, *, arms: float = 1.0, tasks: float = 1.0) -> ScoreTable:
        """A random part of the arms and tasks; at least one of each, and one baseline layer.

        Raises:
            UsageError: ``arms`` or ``tasks`` is not above 0 and at most 1.
        """
        for what, part in (("arms", arms), ("tasks", tasks)):
            if not 0 < part <= 1:
                raise UsageError(f"{what} {part:g}: the part to keep is above 0 and at most 1")
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

    def for_rewards(self, rewards: RewardsConfig) -> ScoreTable:
        """The part of the table that these rewards are of: the target's tasks, the baseline's arms.

        Raises:
            UsageError: no arm of the baseline's name, or no task of the target's type.
        """
        problem = self.problem
        keep = np.ones(len(problem.tasks), dtype=bool)
        if rewards.target is not None:
            types = {t.metadata.name: str(t.metadata.type) for t in resolve(problem.tasks)}
            keep = np.isin(problem.tasks, tasks_of(rewards.target, types))
        baseline = problem.baseline
        if rewards.baseline is not None:
            of = [Arm.parse(arm).key.rsplit("/", 1)[-1] for arm in problem.arms]
            baseline = np.array([name == rewards.baseline for name in of])
            if not baseline.any():
                raise UsageError(
                    f"rewards.baseline '{rewards.baseline}': the table has no such revision; "
                    f"valid: {', '.join(dict.fromkeys(of))}"
                )
        tasks = tuple(np.array(problem.tasks)[keep].tolist())
        return replace(
            self,
            problem=replace(problem, tasks=tasks, baseline=baseline),
            scores=self.scores[:, keep],
            seconds=self.seconds[:, keep],
        )

    def truth(self, rewards: RewardsConfig) -> tuple[Floats, float]:
        """[arm] true rewards, and how many of their units make one unit of mean main score."""
        if rewards.scale == "z":
            scale = z_scale(self.counted[self.problem.baseline])
        else:
            scale = raw_scale(len(self.problem.tasks))
        plane = (self.counted - scale.centre) / scale.spread
        unit = scale.unit if rewards.aggregate != "rank" else 1.0
        return aggregate(plane, rewards.aggregate), unit

    def regret(self, rewards: RewardsConfig) -> tuple[Floats, float]:
        """([arm] regret in mean main score, how much of it counts as within 0.5 % of the best)."""
        truth, unit = self.truth(rewards)
        best = float(self.counted.mean(axis=1)[int(truth.argmax())])
        return (truth.max() - truth) / unit, WITHIN * best

    def score_fn(self, seed: int) -> Callable[[str, str], Score]:
        """What scores a cell, given arm and task: the table's score, with its noise."""
        arms = {arm: i for i, arm in enumerate(self.problem.arms)}
        tasks = {task: i for i, task in enumerate(self.problem.tasks)}
        noise = np.random.default_rng([seed, 13]).normal(size=self.scores.shape) * self.noise

        def score(arm: str, task: str) -> Score:
            at = arms[arm], tasks[task]
            value = float(self.scores[at] + noise[at])
            return Score(value, float(self.seconds[at]), noise=self.noise)

        return score


def read_scores(path: str | Path, *, metrics: str | Path | None = None) -> ScoreTable:
    """A complete table of scores from a CSV or Parquet file, MTEB's results, or a scored store.

    Columns: ``revision``, ``layer``, ``task``, ``score``; optional ``model``, ``step``,
    ``seconds``. A row with an empty score is one whose score is undefined. ``main_score`` and
    ``eval_seconds`` are accepted for score and seconds. A folder of results is read as MTEB writes
    it, ``MODEL/REVISION/TASK.json``, with ``layer_3`` (or ``layer-3``, ``layer3``) somewhere in the
    path. A store (a directory or URL) must have been scored exhaustively.

    Args:
        metrics: a CSV or Parquet file of label-free metrics: ``revision``, ``layer``, ``metric``,
            ``value``, optional ``model`` and ``key`` (a variant of the metric).

    Raises:
        UsageError: unreadable, a missing column, a value that is no number (named with its row),
            a cell that is missing or there twice.
    """
    if _is_store(path):
        frame = _store_frame(str(path))
    elif not Path(path).exists():
        raise UsageError(f"{path}: no such file or folder of scores")
    else:
        path = Path(path)
        frame = _mteb_folder(path) if path.is_dir() else _read_frame(path)
    extra = None if metrics is None else _read_frame(Path(metrics))
    return table_of(frame, source=str(path), metrics=extra, metrics_source=str(metrics))


def table_of(
    frame: pd.DataFrame,
    *,
    source: str = "scores",
    metrics: pd.DataFrame | None = None,
    metrics_source: str = "metrics",
) -> ScoreTable:
    """A table from a data frame with the columns of :func:`read_scores`.

    Raises:
        UsageError: as :func:`read_scores`; names ``source`` or ``metrics_source``.
    """
    frame = frame.rename(columns={k: v for k, v in ALIASES.items() if v not in frame})
    missing = [c for c in ("revision", "layer", "task", "score") if c not in frame]
    if missing:
        raise UsageError(
            f"{source}: no column {', '.join(missing)}; needed: revision, layer, task, score; "
            f"there: {', '.join(map(str, frame.columns))}"
        )
    for column in ("score", "layer", "step", "seconds"):
        if column in frame:
            frame = frame.assign(**{column: _numbers(frame, column, source)})
    frame = frame.assign(model=frame.get("model", "model"))
    if "step" not in frame:
        frame = frame.assign(step=_steps(frame))
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
    gaps = scores.size - len(frame)
    if gaps:
        raise UsageError(
            f"{source}: {gaps} of {scores.size} cells (arm x task) have no score; a replay needs a "
            "complete table"
        )
    undefined = np.flatnonzero(frame["score"].isna())
    if len(undefined):
        logger.warning(
            "%s: %d scores are empty or NaN; they count as 0; the first is in %s",
            source,
            len(undefined),
            _row(frame, int(undefined[0])),
        )
    if "seconds" in frame:
        seconds = frame.pivot(index=keys, columns="task", values="seconds").reindex(scores.index)
        seconds_AT = seconds[scores.columns].fillna(1.0).to_numpy(dtype=float)
    else:
        seconds_AT = np.ones(scores.shape)
    layer = arms["layer"].to_numpy(dtype=float)
    top = arms.groupby("model")["layer"].transform("max").to_numpy(dtype=float)
    problem = Problem(
        arms=tuple(_arm(*row) for row in arms[keys].itertuples(index=False, name=None)),
        tasks=tuple(str(t) for t in scores.columns),
        model=tuple(str(m) for m in arms["model"]),
        step=arms["step"].to_numpy(dtype=float),
        depth=layer / np.maximum(top, 1.0),
        metrics={} if metrics is None else _metric_columns(metrics, arms, metrics_source),
    )
    return ScoreTable(problem, scores.to_numpy(dtype=float), seconds_AT)


def _numbers(frame: pd.DataFrame, column: str, source: str) -> pd.Series[Any]:
    """The column as numbers: empty is NaN where that has a meaning, all else is refused."""
    import pandas as pd

    values = pd.to_numeric(frame[column], errors="coerce")
    wrong, what = np.isinf(values) | (values.isna() & frame[column].notna()), "a finite number"
    if column == "layer":
        wrong, what = ~(values % 1 == 0) | (values < 0), "a layer: 0, 1, 2, ..."
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise UsageError(
            f"{source}: {column} '{frame[column].iloc[at]}' in {_row(frame, at)} is not {what}"
        )
    return values.astype("int64" if column == "layer" else "float64")


def _row(frame: pd.DataFrame, at: int) -> str:
    """``row 3 (main, layer 2, STS12)``: counted from 1, without the header."""
    names = {"model": "", "revision": "", "layer": "layer ", "task": "", "metric": ""}
    there = [f"{what}{frame[name].iloc[at]}" for name, what in names.items() if name in frame]
    return f"row {at + 1} ({', '.join(there)})"


def _metric_columns(metrics: pd.DataFrame, arms: pd.DataFrame, source: str) -> dict[str, Floats]:
    missing = [c for c in ("revision", "layer", "metric", "value") if c not in metrics]
    if missing:
        raise UsageError(
            f"{source}: no column {', '.join(missing)}; needed: revision, layer, metric, value; "
            f"there: {', '.join(map(str, metrics.columns))}"
        )
    metrics = metrics.assign(
        **{c: _numbers(metrics, c, source) for c in ("layer", "value")},
    )
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
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for file, content in mteb_results(folder):
        place = file.relative_to(folder).as_posix()
        layer = re.search(r"layer[_-]?(\d+)", place)
        if layer is None:
            raise UsageError(f"{file}: no layer in its path; name a folder like 'layer_3'")
        folders = Path(place).parts[:-1]
        if folders[-2:-1] == ("experiments",):
            # mteb's layout, which 'batchsweep export' writes: MODEL/REVISION/experiments/NAME.
            parts = list(folders[-4:-2])
        else:
            parts = [re.sub(r"[#@_-]*layer[_-]?\d+", "", p) for p in folders]
            parts = [p for p in parts if p]
        pooling = re.search(r"__pooling_([a-z_]+?)(?:__|$)", folders[-1]) if folders else None
        transform = re.search(r"__transform_([a-z_]+?)(?:__|$)", folders[-1]) if folders else None
        main = [s["main_score"] for split in content["scores"].values() for s in split]
        rows.append(
            {
                "model": parts[0] if len(parts) > 1 else "model",
                "revision": parts[-1] if parts else "main",
                "layer": int(layer[1]),
                "pooling": (pooling[1] if pooling else "")
                + (f"+{transform[1]}" if transform else ""),
                "task": content.get("task_name", file.stem),
                "score": float(np.mean(np.array(main, dtype=float))),
                "seconds": content.get("evaluation_time"),
            }
        )
    if not rows:
        raise UsageError(f"{folder}: no MTEB result files (TASK.json with 'scores') below it")
    frame = _poolings_as_models(pd.DataFrame(rows))
    return frame.drop(columns="seconds") if frame["seconds"].isna().all() else frame


def _is_store(path: str | Path) -> bool:
    local = local_path(str(path))
    return local is None or any((local / f).exists() for f in ("zarr.json", "sweep.h5", "scores"))


def _store_frame(url: str) -> pd.DataFrame:
    """Rows from the records that scoring left in a store."""
    from batchsweep.store import open_store

    rows = score_rows(open_store(url))
    if rows.empty:
        raise UsageError(f"{url}: no scores in this store; run 'bandit --policy exhaustive' first")
    columns = ["model", "revision", "layer", "pooling", "task", "score", "seconds"]
    frame = rows[columns].astype({"model": str})
    frame["step"] = rows["step"].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    return _poolings_as_models(frame).astype({"revision": str, "task": str})


def _poolings_as_models(frame: pd.DataFrame) -> pd.DataFrame:
    """As in the bandit, another pooling is another surface, as another model is."""
    names = frame["pooling"].astype(str)
    stored = names.str.partition("+")[0].nunique() == 1
    tails = ("#" + names).where(names.str.contains("+", regex=False) | (not stored), "")
    return frame.assign(model=frame["model"] + tails).drop(columns="pooling")


def _arm(model: Any, revision: Any, layer: Any) -> str:
    # A store with several poolings has them behind the model's name (see _store_frame).
    name, _, pooling = str(model).partition("#")
    return str(Arm(f"{name}/{revision}", layer, pooling or None))


def _steps(frame: pd.DataFrame) -> list[float]:
    """[row] the training step in the revision's name; NaN (``main``): after all numbers."""
    names = frame["revision"].astype(str)
    found = {model: steps_in(rows) for model, rows in names.groupby(frame["model"])}
    return [found[m].get(r, np.nan) for m, r in zip(frame["model"], names, strict=True)]
