"""The problems that the default policy is held to: tables, joined and bent, and surfaces.

A case is a name and a function from a seed to a :class:`ScoreTable`; every seed is another problem
of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from surfaces import make

from batchsweep.bandit.policies import Problem
from batchsweep.bandit.score_table import ALIASES, ScoreTable, table_of

Case = Callable[[int], ScoreTable]
Bend = Callable[[ScoreTable, int], ScoreTable]

#: Part of the arms and tasks that a seed keeps of a table.
KEPT = 0.9
#: Joined are tables that have so many tasks in common.
IN_COMMON = 8


def cases(folder: Path | None) -> dict[str, Case]:
    """All of them by name: tables first, then families of surfaces."""
    found: dict[str, Case] = {}
    frames = {} if folder is None else _files(folder)
    for name, frame in (frames | _joined(frames)).items():
        table = table_of(frame, source=name)
        found[f"table {name}"] = _part_of(table)
        if name in frames and len(set(table.problem.step.tolist())) > 1:
            found[f"table {name}, time reversed"] = _part_of(table, reversed_time)
            found[f"table {name}, half of the tasks negated"] = _part_of(table, negated)
    shaped = {"": 96, ", 288 arms": 288}
    for family in ("mid", "late", "rugged", "misleading"):
        for name, arms in shaped.items():
            found[f"surface {family}{name}"] = _surface(family, arms)
    found["surface mid, 48 arms"] = _surface("mid", 48)
    found["surface time reversed"] = _surface("mid", 96, reversed_time)
    found["surface half of the tasks negated"] = _surface("mid", 96, negated)
    found["surface spike"] = _surface("mid", 96, spiked)
    found["surface shuffled arms"] = _surface("mid", 96, shuffled)
    found["surface 3 tasks"] = _surface("mid", 96, three_tasks)
    found["surface 1 checkpoint"] = _surface("mid", 288, one_checkpoint)
    found["surface unrelated models"] = unrelated
    return found


def _files(folder: Path) -> dict[str, pd.DataFrame]:
    frames: dict[str, pd.DataFrame] = {}
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path).rename(columns=ALIASES)
        if {"task", "score"} <= set(frame.columns):
            frames[path.stem] = frame if "model" in frame else frame.assign(model=path.stem)
    return frames


def _joined(frames: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables with tasks in common as sweeps over several models.

    One holds the last checkpoint of each, one whatever has several checkpoints with two of the
    others.
    """
    joined: dict[str, pd.DataFrame] = {}
    for first, frame in frames.items():
        tasks = set(frame["task"])
        group = [n for n in frames if len(tasks & set(frames[n]["task"])) >= IN_COMMON]
        if len(group) < 2 or group[0] != first:
            continue
        common = set.intersection(*(set(frames[n]["task"]) for n in group))
        parts = {n: frames[n][frames[n]["task"].isin(common)] for n in group}
        ends = [p[p["step"] == p["step"].max()] for p in parts.values()]
        joined[f"{'+'.join(group)}, last checkpoints"] = pd.concat(ends)
        several = [n for n, p in parts.items() if p["step"].nunique() > 1]
        chosen = [n for n in group if n not in several][-2:] + several
        if several and len(chosen) > 1:
            joined["+".join(chosen)] = pd.concat([parts[n] for n in chosen])
    return joined


def _part_of(
    table: ScoreTable, bend: Callable[[ScoreTable, int], ScoreTable] | None = None
) -> Case:
    def case(seed: int) -> ScoreTable:
        part = table.subset(seed, arms=KEPT, tasks=KEPT)
        return part if bend is None else bend(part, seed)

    return case


def _surface(family: str, arms: int, bend: Bend | None = None) -> Case:
    def case(seed: int) -> ScoreTable:
        table = make(family, arms, seed)
        return table if bend is None else bend(table, seed)

    return case


# -- bending ---------------------------------------------------------------------------------------


def reversed_time(table: ScoreTable, seed: int) -> ScoreTable:
    """The last checkpoint's scores are called the first's, and so on."""
    step = table.problem.step
    distinct = np.unique(step)
    other = dict(zip(distinct.tolist(), distinct[::-1].tolist(), strict=True))
    turned = np.array([other[s] for s in step.tolist()])
    problem = replace(table.problem, step=turned, baseline=turned == turned.max())
    return replace(table, problem=problem)


def negated(table: ScoreTable, seed: int) -> ScoreTable:
    """On half of the tasks the worst arm is the best."""
    tasks = table.scores.shape[1]
    turned = np.random.default_rng([seed, 3]).permutation(tasks)[: tasks // 2]
    scores = table.scores.copy()
    scores[:, turned] = 1 - scores[:, turned]
    return replace(table, scores=scores)


def spiked(table: ScoreTable, seed: int) -> ScoreTable:
    """One arm, drawn by chance, is nine points better than its neighbours tell."""
    scores = table.scores.copy()
    arm = int(np.random.default_rng([seed, 5]).integers(len(scores)))
    scores[arm] = scores.mean(axis=0) + (scores.mean(axis=1).max() - scores.mean()) + 0.03
    return replace(table, scores=scores)


def shuffled(table: ScoreTable, seed: int) -> ScoreTable:
    """Names, steps and depths tell nothing of the scores."""
    order = np.random.default_rng([seed, 4]).permutation(len(table.scores))
    return replace(table, scores=table.scores[order])


def three_tasks(table: ScoreTable, seed: int) -> ScoreTable:
    return _cut(table, np.ones(len(table.scores), dtype=bool), 3)


def one_checkpoint(table: ScoreTable, seed: int) -> ScoreTable:
    return _cut(table, table.problem.is_last(), table.scores.shape[1])


def unrelated(seed: int) -> ScoreTable:
    """A hundred models of which each is one arm, as on a leaderboard, on 30 tasks."""
    rng = np.random.default_rng([seed, 6])
    arms, tasks = 100, 30
    quality = 0.05 * rng.standard_t(4, arms)
    scores = rng.uniform(0.2, 0.7, tasks) + quality[:, None] * np.exp(rng.normal(0, 0.4, tasks))
    scores = scores + 0.03 * rng.normal(size=(arms, tasks)) * np.exp(rng.normal(0, 0.4, tasks))
    names = tuple(f"m{k}" for k in range(arms))
    problem = Problem(
        arms=tuple(f"{n}/main#1" for n in names),
        tasks=tuple(f"task{t}" for t in range(tasks)),
        model=names,
        step=np.full(arms, np.nan),
        depth=np.ones(arms),
    )
    return ScoreTable(problem, scores, np.ones(scores.shape))


def _cut(table: ScoreTable, keep: np.ndarray, tasks: int) -> ScoreTable:
    old = table.problem
    problem = Problem(
        arms=tuple(a for a, k in zip(old.arms, keep, strict=True) if k),
        tasks=old.tasks[:tasks],
        model=tuple(m for m, k in zip(old.model, keep, strict=True) if k),
        step=old.step[keep],
        depth=old.depth[keep],
        metrics={name: column[keep] for name, column in old.metrics.items()},
    )
    return replace(
        table,
        problem=problem,
        scores=table.scores[keep][:, :tasks],
        seconds=table.seconds[keep][:, :tasks],
    )
