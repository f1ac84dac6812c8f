"""The time-layer plane as one search sees it: measured where measured, else what it believes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchsweep.plan.plan import PlanEntry
from batchsweep.report.findings import Findings, Floats, Search, short_name
from batchsweep.score.export import counted

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class View:
    """Findings as the page shows them: the plane of one search, gaps filled by what it believes.

    Attributes:
        search: the search that the page is about, or None.
        tasks: positions of the tasks that count in it.
        score_AT: [arm, task] measured scores, those among them that the search was given
            (``bandit --results``); NaN where undefined or not measured.
        measured_AT: [arm, task] whether it is measured.
        plane_AT: [arm, task] measured score (0 where undefined), else the believed one, else NaN.
        mean_A: [arm] mean over the tasks that count; NaN if any of them is NaN.
        complete_A: [arm] whether all tasks that count are measured.
        best: position of the best arm, or None.
    """

    def __init__(self, findings: Findings, search: str | None = None) -> None:
        self.findings = findings
        answered = [s for s in findings.searches if s.answer is not None]
        named = [s for s in answered if s.name == search]
        chosen = named or answered
        self.search: Search | None = chosen[-1] if chosen else None
        self.answer: dict[str, Any] = (self.search.answer or {}) if self.search else {}
        column = {task: i for i, task in enumerate(findings.tasks)}
        counting = self.answer["scale"]["tasks"] if self.answer else list(findings.tasks)
        self.tasks = [column[t] for t in counting if t in column]
        self.score_AT, self.measured_AT = self._measured(column)
        self.plane_AT: Floats = np.where(self.measured_AT, counted(self.score_AT), self._believed())
        those_AT = self.plane_AT[:, self.tasks]
        nan_A = np.full(len(those_AT), np.nan)
        self.mean_A: Floats = those_AT.mean(axis=1) if self.tasks else nan_A
        self.complete_A: Bools = np.all(self.measured_AT[:, self.tasks], axis=1)
        self.best = self._best()

    def _measured(self, column: dict[str, int]) -> tuple[Floats, Bools]:
        scores_AT, measured_AT = self.findings.score_AT.copy(), self.findings.measured_AT.copy()
        for pull in self.search.pulls if self.search else ():
            arm, task = self.findings.positions.get(pull.arm), column.get(pull.task)
            if pull.kind == "imported" and arm is not None and task is not None:
                if not measured_AT[arm, task]:
                    scores_AT[arm, task] = np.nan if pull.undefined else pull.score
                measured_AT[arm, task] = True
        return scores_AT, measured_AT

    def _believed(self) -> Floats:
        believed = np.full(self.findings.score_AT.shape, np.nan)
        position = self.findings.positions
        if "plane" in self.answer:
            for arm, row in zip(self.answer["arms"], self.answer["plane"], strict=True):
                if arm["arm"] in position:
                    values = [np.nan if value is None else value for value in row]
                    believed[position[arm["arm"]], self.tasks] = values
        return believed

    def _best(self) -> int | None:
        if self.answer:
            return self.findings.positions.get(self.answer["best"]["arm"])
        complete = np.where(self.complete_A & bool(self.tasks), self.mean_A, np.nan)
        return int(np.nanargmax(complete)) if np.isfinite(complete).any() else None

    def measured_tasks(self, arm: int) -> int:
        """How many of the tasks shown were scored for an arm."""
        return int(self.measured_AT[arm, self.tasks].sum())

    def planes(self) -> Iterator[tuple[str, str, list[PlanEntry], list[int], Ints]]:
        """For each model and pooling: names, checkpoints, layers, and arms [layer, checkpoint]
        (-1 where there is none)."""
        findings = self.findings
        place = {(a.entry.index, a.layer, a.pooling): i for i, a in enumerate(findings.arms)}
        for model in findings.plan.models:
            entries = findings.entries_of(model)
            layers = sorted({n for e in entries for n in e.layers})
            for pooling in findings.poolings:
                arms_LC = np.array(
                    [[place.get((e.index, n, pooling), -1) for e in entries] for n in layers]
                )
                yield model, pooling, entries, layers, arms_LC

    def name(self, arm: int) -> str:
        """An arm in words."""
        facts = self.findings.arms[arm]
        pooling = f", {facts.pooling} pooling" if len(self.findings.poolings) > 1 else ""
        return f"{short_name(facts.model)} {facts.revision}, layer {facts.layer}{pooling}"
