"""What a store knows by now: plan, scores, searches and metrics as plain arrays.

Everything is read from the store alone, no embeddings among it, so it is quick and works on a
sweep that is still running.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batchsweep.arm import Arm
from batchsweep.bandit.ledger import Observation, StoreLedger, header_of, observations
from batchsweep.bandit.searches import answers
from batchsweep.plan.frozen import load_plan
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.plan.timings import Timing, timings
from batchsweep.score.dataset import arm_dataset, metric_names, with_metrics
from batchsweep.store import GroupStatus, Store
from batchsweep.store.pairs import ready_tasks

if TYPE_CHECKING:
    import xarray as xr

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
        """The model's name on the Hub, or its folder."""
        return self.entry.checkpoint.model

    @property
    def revision(self) -> str:
        """The checkpoint's branch."""
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
        data: the arms' scores and metrics, as ``batchsweep.open(...).to_xarray()`` gives them.
        searches: runs of the bandit, those with an answer last, by name.
        categories: task -> its category (``STS``); of a store's corpus that says none, empty.
        status: blocks sealed, per checkpoint key.
        ready: the tasks that can be scored, per checkpoint key.
        timings: what extraction took, per checkpoint key.
    """

    plan: Plan
    arms: tuple[ArmFacts, ...]
    data: xr.Dataset
    searches: tuple[Search, ...]
    categories: dict[str, str] = field(default_factory=dict)
    status: dict[str, GroupStatus] = field(default_factory=dict)
    ready: dict[str, tuple[str, ...]] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)

    def extracted(self, key: str) -> str:
        """How much of a checkpoint is extracted, in words."""
        done = self.status.get(key)
        if done is None:
            return "not extracted yet"
        if done.complete:
            return "extracted"
        return f"{len(self.ready.get(key, ()))} of {len(self.tasks)} tasks extracted"

    @property
    def pairs(self) -> tuple[int, int]:
        """(checkpoint, task) pairs: how many can be scored, and how many there are."""
        return sum(map(len, self.ready.values())), len(self.plan.entries) * len(self.tasks)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the corpus's order; then any that only scores know."""
        return tuple(self.data["task"].values.tolist())

    @cached_property
    def poolings(self) -> tuple[str, ...]:
        """Those of the arms, transformed ones (``mean+center``) among them."""
        return tuple(dict.fromkeys(facts.pooling for facts in self.arms))

    @property
    def score_AT(self) -> Floats:
        """[arm, task]; NaN where not measured, or measured and undefined."""
        return np.asarray(self.data["score"].values)

    @property
    def seconds_AT(self) -> Floats:
        """[arm, task]; NaN where not measured."""
        return np.asarray(self.data["seconds"].values)

    @property
    def metrics(self) -> dict[str, Floats]:
        """Label-free metric -> [arm]; NaN where not measured."""
        return {name: np.asarray(self.data[name].values) for name in metric_names(self.data)}

    @property
    def measured_AT(self) -> NDArray[np.bool_]:
        """[arm, task] whether the cell was scored, undefined scores among them."""
        return np.isfinite(self.seconds_AT)

    def entries_of(self, model: str) -> list[PlanEntry]:
        """A model's checkpoints in order of training; unknown steps last."""
        mine = [e for e in self.plan.entries if e.checkpoint.model == model]
        return sorted(mine, key=_when)

    def index(self, arm: str) -> int:
        """Position of an arm.

        Raises:
            KeyError: the plan has no such arm.
        """
        return self.positions[arm]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Arm -> its position."""
        return {facts.arm: i for i, facts in enumerate(self.arms)}

    def last_layer(self, model: str) -> int:
        """The arm that one takes without a sweep: the last layer of a model's last checkpoint."""
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
    answered = answers(store)
    searched = {Arm.parse(arm["arm"]).pooling for a in answered.values() for arm in a["arms"]}
    data = with_metrics(arm_dataset(store, {name for name in searched if name}), store)
    entry_of = {entry.key: entry for entry in plan.entries}
    columns = (data[name].values.tolist() for name in ("arm", "key", "layer", "pooling"))
    arms = tuple(
        ArmFacts(arm, entry_of[key], layer, pooling)
        for arm, key, layer, pooling in zip(*columns, strict=True)
        if key in entry_of
    )
    corpus = store.corpus()
    categories = dict(corpus.attributes.get("categories", {})) if corpus is not None else {}
    return Findings(
        plan=plan,
        arms=arms,
        # Of groups that the plan doesn't know a report says nothing.
        data=data.isel(arm=slice(len(arms))),
        searches=tuple(_searches(store, answered)),
        categories=categories,
        status={s.key: s for s in store.status()},
        ready=ready_tasks(store),
        timings=timings(store),
    )


def _searches(store: Store, answered: dict[str, dict[str, Any]]) -> list[Search]:
    found = []
    for name in dict.fromkeys(path.split("/")[1] for path in store.list_json("bandit")):
        records = StoreLedger(store, name).records()
        answer = answered.get(name)
        if records or answer is not None:
            pulls = tuple(observations(records))
            found.append(Search(name, header_of(records) or {}, pulls, answer))
    return sorted(found, key=lambda search: (search.answer is not None, search.name))


def short_name(model: str) -> str:
    """A model's name without its owner or folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def short_step(entry: PlanEntry) -> str:
    """A checkpoint's name on an axis: ``512``, ``143k``, or the revision if it has no step."""
    step = entry.checkpoint.step
    if step is None or entry.checkpoint.revision == "main":
        return entry.checkpoint.revision
    return f"{step // 1000}k" if step >= 1000 and step % 1000 == 0 else str(step)
