"""What a store knows by now: plan, scores, searches and metrics as plain arrays.

Everything is read from the store alone, no embeddings among it, so it is quick and works on a
sweep that is still running.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchsweep.bandit.ledger import Observation, StoreLedger, header_of, observations
from batchsweep.plan.plan import Plan, PlanEntry, load_plan
from batchsweep.score.export import counted
from batchsweep.score.records import score_rows
from batchsweep.store import GroupStatus, Store

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ArmFacts:
    """What an arm is, in words."""

    arm: str
    entry: PlanEntry
    layer: int
    pooling: str

    @property
    def model(self) -> str:
        return self.entry.checkpoint.model

    @property
    def revision(self) -> str:
        return self.entry.checkpoint.revision

    @property
    def step(self) -> int | None:
        return self.entry.checkpoint.step


@dataclass(frozen=True)
class Search:
    """One run of the bandit.

    Attributes:
        name: its folder below ``bandit/`` in the store.
        header: what it was run with: policy, budget, seed, rewards, tasks.
        pulls: in the order of the ledger.
        answer: what it found; None as long as it runs.
    """

    name: str
    header: dict[str, Any]
    pulls: tuple[Observation, ...]
    answer: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Findings:
    """What a store knows.

    Attributes:
        arms: in the plan's order.
        tasks: names, in the corpus's order; then any that only scores know.
        score_AT: [arm, task]; NaN where not measured, or measured and undefined.
        seconds_AT: [arm, task]; NaN where not measured.
        searches: runs of the bandit, those with an answer last, by name.
        metrics: label-free metric -> [arm]; NaN where not measured.
        categories: task -> its category (``STS``); of a store's corpus that says none, empty.
        status: blocks sealed, per checkpoint key.
    """

    plan: Plan
    arms: tuple[ArmFacts, ...]
    tasks: tuple[str, ...]
    score_AT: Floats
    seconds_AT: Floats
    searches: tuple[Search, ...]
    metrics: dict[str, Floats] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    status: dict[str, GroupStatus] = field(default_factory=dict)

    @property
    def measured_AT(self) -> NDArray[np.bool_]:
        """[arm, task] whether the cell was scored, undefined scores among them."""
        return np.isfinite(self.seconds_AT)

    @property
    def counted_AT(self) -> Floats:
        """[arm, task] as the bandit counts: 0 where a score is undefined; NaN: not measured."""
        return np.where(self.measured_AT, counted(self.score_AT), np.nan)

    def entries_of(self, model: str) -> list[PlanEntry]:
        """A model's checkpoints in order of training; unknown steps last."""
        mine = [e for e in self.plan.entries if e.checkpoint.model == model]
        return sorted(mine, key=_when)

    def index(self, arm: str) -> int:
        """Position of an arm.

        Raises:
            KeyError: the plan has no such arm.
        """
        for i, facts in enumerate(self.arms):
            if facts.arm == arm:
                return i
        raise KeyError(arm)

    def default_arm(self, model: str) -> int:
        """The arm that one takes without a sweep: a model's last checkpoint, last layer."""
        entry = self.entries_of(model)[-1]
        mine = [i for i, a in enumerate(self.arms) if a.entry is entry]
        return max(mine, key=lambda i: (self.arms[i].layer, -i))


def _when(entry: PlanEntry) -> tuple[bool, int, int]:
    step = entry.checkpoint.step
    return (step is None, step or 0, entry.index)


def read(store: Store) -> Findings:
    """Read all that a store knows, apart from the embeddings.

    Raises:
        UsageError: there is no plan yet.
        StoreCorrupt: a document is damaged.
    """
    plan = load_plan(store)
    arms = tuple(
        ArmFacts(arm, entry, layer, pooling)
        for arm, (entry, layer, pooling) in zip(
            plan.arms(),
            ((e, n, p) for e in plan.entries for n in e.layers for p in plan.poolings),
            strict=True,
        )
    )
    scored = score_rows(store)
    corpus = store.corpus()
    known = list(corpus.tasks()) if corpus is not None else []
    categories = dict(corpus.attributes.get("categories", {})) if corpus is not None else {}
    tasks = tuple(dict.fromkeys([*known, *sorted(scored["task"].unique())]))
    score_AT = np.full((len(arms), len(tasks)), np.nan)
    seconds_AT = score_AT.copy()
    places = {(a.entry.key, a.layer, a.pooling): i for i, a in enumerate(arms)}
    columns = {task: i for i, task in enumerate(tasks)}
    for r in scored.itertuples():
        place = places.get((r.key, r.layer, r.pooling))
        if place is not None:
            score_AT[place, columns[r.task]] = r.score
            seconds_AT[place, columns[r.task]] = r.seconds
    status = {s.key: s for s in store.status()}
    return Findings(
        plan=plan,
        arms=arms,
        tasks=tasks,
        score_AT=score_AT,
        seconds_AT=seconds_AT,
        searches=tuple(_searches(store)),
        metrics=_metrics(store, arms, status),
        categories=categories,
        status=status,
    )


def _searches(store: Store) -> list[Search]:
    found = []
    for name in dict.fromkeys(path.split("/")[1] for path in store.list_json("bandit")):
        records = StoreLedger(store, name).records()
        answer = store.read_json(f"bandit/{name}/answer.json")
        if records or answer is not None:
            pulls = tuple(observations(records))
            found.append(Search(name, header_of(records) or {}, pulls, answer))
    return sorted(found, key=lambda search: (search.answer is not None, search.name))


def _metrics(
    store: Store, arms: Sequence[ArmFacts], status: dict[str, GroupStatus]
) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    position = {(a.entry.key, a.layer, a.pooling): i for i, a in enumerate(arms)}
    for entry in dict.fromkeys(a.entry for a in arms):
        if entry.key not in status or not status[entry.key].complete:
            continue
        reader = store.reader(entry.key)
        for name, values_L in reader.metrics().items():
            column = found.setdefault(name, np.full(len(arms), np.nan))
            for layer, value in zip(reader.layers, values_L, strict=True):
                for pooling in reader.poolings:
                    if (entry.key, layer, pooling) in position:
                        column[position[entry.key, layer, pooling]] = value
    return found


def short_name(model: str) -> str:
    """A model's name without its owner or folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def short_step(entry: PlanEntry) -> str:
    """A checkpoint's name on an axis: ``512``, ``143k``, or the revision if it has no step."""
    step = entry.checkpoint.step
    if step is None or entry.checkpoint.revision == "main":
        return entry.checkpoint.revision
    return f"{step // 1000}k" if step >= 1000 and step % 1000 == 0 else str(step)
