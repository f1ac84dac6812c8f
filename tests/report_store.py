"""A store as the report reads it: a plan, a real search, and what it scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchsweep.bandit.ledger import IMPORTED, Observation, StoreLedger
from batchsweep.bandit.loop import run
from batchsweep.bandit.policies import Problem, Pull
from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.score.record import Score
from batchsweep.store import Store, create_store

TASKS = ("Similar", "Sorted")
STEPS = (0, 8, 64)
SHAPE = Shape(
    **{
        name: 4 if name == "num_layers" else 8
        for name in Shape.__dataclass_fields__
        if Shape.__dataclass_fields__[name].default is not None
    }
)


def score_of(step: int, layer: int, task: str) -> float:
    """The truth of the sweep below: late checkpoints and layer 3 are best."""
    return 0.2 + 0.08 * STEPS.index(step) - 0.03 * abs(layer - 3) + (task == "Sorted") * 0.1


def plan_of(model: str = "tests/tiny", **more: Any) -> Plan:
    entries = tuple(
        PlanEntry(
            i,
            Checkpoint(model, f"step{step}", "c0ffee", step, aliases=("main",) if i == 2 else ()),
            (1, 2, 3, 4),
            SHAPE,
        )
        for i, step in enumerate(STEPS)
    )
    return Plan(entries, ("mean",), {}, **more)


def store_of(path: Path, plan: Plan) -> Store:
    store = create_store(path)
    store.write_json("plan.json", plan.to_json())
    return store


def given(arm: str, task: str, value: float, file: str) -> Observation:
    """A cell that a search has from mteb's results."""
    return Observation.of(Pull(arm, task, f"{IMPORTED}{file}"), Score(value, 1.0), "imported")


def search(
    store: Store,
    plan: Plan,
    name: str = "one",
    imported: Sequence[Observation] = (),
    **bandit: Any,
) -> None:
    """A real search of the store's arms; its pulls leave records as scoring does."""
    facts = {f"{e.key}#{n}": (e.checkpoint, n) for e in plan.entries for n in e.layers}

    def score(arm: str, task: str) -> Score:
        checkpoint, layer = facts[arm]
        value = score_of(checkpoint.step or 0, layer, task)
        record = {
            "main_score": value,
            "seconds": 0.5,
            "task": task,
            "model": checkpoint.model,
            "revision": checkpoint.revision,
            "step": checkpoint.step,
            "layer": layer,
            "pooling": "mean",
            "mteb_version": "2.26.24",
            "dataset_revision": "c0ffee",
            "cap": None,
        }
        store.write_json(f"scores/{arm.replace('#', '/')}-mean/{task}.json", record)
        return Score(value, 0.5)

    problem = Problem(
        arms=tuple(facts),
        tasks=TASKS,
        model=tuple(c.model for c, _ in facts.values()),
        step=np.array([c.step for c, _ in facts.values()], dtype=float),
        depth=np.array([n / 4 for _, n in facts.values()]),
    )
    config = BanditConfig(**bandit)
    outcome = run(
        problem,
        score,
        config,
        RewardsConfig(),
        ledger=StoreLedger(store, name),
        imported=imported,
        quiet=True,
    )
    store.write_json(f"bandit/{name}/answer.json", outcome.to_json())
