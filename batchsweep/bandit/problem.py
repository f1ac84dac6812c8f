"""The problem of a search: which arms there are, and what is known of them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from batchsweep.arm import Arm, transformed
from batchsweep.bandit.identity import run_digest
from batchsweep.bandit.ledger import Observation
from batchsweep.bandit.policies import Problem
from batchsweep.config import Config
from batchsweep.errors import IndexFailed, TryAgain, UsageError
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.store import Store
from batchsweep.store.pairs import ready_tasks
from batchsweep.tasks.resolve import resolve, tasks_of

logger = logging.getLogger(__name__)


def search_name(
    problem: Problem,
    config: Config,
    *,
    waves: bool = False,
    imported: Sequence[Observation] = (),
) -> str:
    """The folder below ``bandit/`` of the search that this config means on these arms.

    Args:
        waves: whether it has pairs extracted as it needs them.
        imported: pulls that were there before it.
    """
    digest = run_digest(problem, config.bandit, config.rewards, waves=waves, imported=imported)
    return f"{config.bandit.policy}-{digest[:12]}"


def problem_of(store: Store, plan: Plan, config: Config) -> Problem:
    """The arms of checkpoints that all tasks of the target are extracted for, with their features.

    Raises:
        TryAgain: there is no such checkpoint yet.
        UsageError: ``rewards.baseline`` or ``rewards.target`` names nothing in the sweep.
    """
    types = {task.metadata.name: str(task.metadata.type) for task in resolve(config.tasks)}
    tasks = tasks_of(config.rewards.target, types)
    ready = ready_tasks(store)
    missing = {
        entry.key: [task for task in tasks if task not in ready.get(entry.key, ())]
        for entry in plan.entries
    }
    entries = [entry for entry in plan.entries if not missing[entry.key]]
    waiting = {key: len(absent) for key, absent in missing.items() if absent}
    if not entries:
        raise TryAgain(
            f"{store.url}: no index has all of its {len(tasks)} tasks extracted yet; run "
            "'batchsweep extract' first"
        )
    if waiting:
        shown = [f"{key} ({n} of {len(tasks)} tasks)" for key, n in list(waiting.items())[:3]]
        logger.warning(
            "%d of %d indexes miss tasks and take no part in the search: %s",
            len(waiting),
            len(plan.entries),
            ", ".join(shown) + (" ..." if len(waiting) > 3 else ""),
        )
    values = {entry.key: store.reader(entry.key).metrics() for entry in entries}
    return _problem(entries, plan, config, tasks, values)


def planned_problem(
    plan: Plan,
    config: Config,
    without: Collection[str] = (),
    *,
    tasks: Sequence[str] | None = None,
) -> Problem:
    """All arms of the plan, extracted or not.

    Without label-free metrics: they come with a checkpoint's first pair, and a search whose
    features changed under it could not be gone on with.

    Args:
        without: keys of checkpoints that can't be extracted.
        tasks: the config's by name, where they are known: mteb needn't be asked then, unless
            there is a ``rewards.target``.

    Raises:
        IndexFailed: no checkpoint is left.
        UsageError: ``rewards.baseline`` or ``rewards.target`` names nothing in the sweep.
    """
    if tasks is None or config.rewards.target is not None:
        types = {task.metadata.name: str(task.metadata.type) for task in resolve(config.tasks)}
        tasks = tasks_of(config.rewards.target, types)
    entries = [entry for entry in plan.entries if entry.key not in without]
    if not entries:
        raise IndexFailed(
            "none of the plan's checkpoints can be extracted; 'batchsweep status' says why"
        )
    return _problem(entries, plan, config, tuple(tasks), {})


def _problem(
    entries: Sequence[PlanEntry],
    plan: Plan,
    config: Config,
    tasks: tuple[str, ...],
    measured: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> Problem:
    """The arms of these entries; ``measured`` holds checkpoint key -> metric -> [layer]."""
    poolings = transformed(plan.poolings, config.embedding.transforms)
    tokens_per_step = {m.name: m.tokens_per_step for m in config.models}
    arms: list[str] = []
    model: list[str] = []
    step: list[float] = []
    depth: list[float] = []
    baseline: list[bool] = []
    metrics: dict[str, list[float]] = {}
    for entry in entries:
        values = measured.get(entry.key, {})
        for position, layer in enumerate(entry.layers):
            for pooling in poolings:
                for name in metrics.keys() | values.keys():
                    column = metrics.setdefault(name, [np.nan] * len(arms))
                    column.append(float(values[name][position]) if name in values else np.nan)
                arm = Arm.spelled(entry.key, layer, pooling, plan.poolings)
                tail = f"#{arm.pooling}" if arm.pooling else ""
                arms.append(str(arm))
                # Another pooling or transform is another surface over time and depth, as another
                # model is.
                model.append(f"{entry.checkpoint.model}{tail}")
                step.append(_time(entry, tokens_per_step))
                depth.append(layer / entry.shape.num_layers)
                baseline.append(config.rewards.baseline in entry.checkpoint.names)
    if config.rewards.baseline is not None and not any(baseline):
        there = dict.fromkeys(name for entry in entries for name in entry.checkpoint.names)
        raise UsageError(
            f"rewards.baseline '{config.rewards.baseline}': no checkpoint of that name; "
            f"valid: {', '.join(there)}"
        )
    return Problem(
        arms=tuple(arms),
        tasks=tasks,
        model=tuple(model),
        step=np.array(step),
        depth=np.array(depth),
        metrics={name: np.array(column) for name, column in metrics.items()},
        baseline=np.array(baseline) if config.rewards.baseline is not None else None,
    )


def _time(entry: PlanEntry, tokens_per_step: Mapping[str, int | None]) -> float:
    """Where a checkpoint stands in training: in tokens if every model says how many, or steps."""
    step, per_step = entry.checkpoint.step, tokens_per_step.get(entry.checkpoint.model)
    if step is None:
        return float("nan")
    return float(step * (per_step or 1) if all(tokens_per_step.values()) else step)
