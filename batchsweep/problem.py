"""From plan and store to what the bandit chooses from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from batchsweep.errors import ConfigError, StoreError
from batchsweep.plan import Plan
from batchsweep.policies import Problem
from batchsweep.store import Store

logger = logging.getLogger(__name__)


def problem_of(
    plan: Plan, store: Store, tasks: Sequence[str], *, baseline: str | None = None
) -> Problem:
    """Every arm whose embeddings are complete, with step, depth and label-free metrics.

    Args:
        tasks: names of the tasks that count.
        baseline: revision whose layers z rewards rest on; default: the last of every model.

    Raises:
        StoreError: no checkpoint of the plan is complete.
        ConfigError: no complete checkpoint has the baseline's revision; lists the valid ones.
    """
    arms: list[str] = []
    model: list[str] = []
    step: list[float] = []
    depth: list[float] = []
    of_baseline: list[bool] = []
    metrics: list[dict[str, np.ndarray]] = []
    missing: list[str] = []
    revisions: list[str] = []
    there = set(store.keys())
    for entry in plan.entries:
        reader = store.reader(entry.key) if entry.key in there else None
        if reader is None or not reader.complete:
            missing.append(entry.key)
            continue
        checkpoint = entry.checkpoint
        revisions.append(checkpoint.revision)
        chosen = None if baseline is None else plan.find(checkpoint.model, baseline)
        known = reader.metrics()
        at = {layer: i for i, layer in enumerate(reader.layers)}
        for layer in entry.layers:
            for pooling in plan.poolings:
                tail = f"#{pooling}" if len(plan.poolings) > 1 else ""
                arms.append(f"{entry.key}#{layer}{tail}")
                # Another pooling is another surface over time and depth, as another model is.
                model.append(f"{checkpoint.model}{tail}")
                step.append(np.nan if checkpoint.step is None else float(checkpoint.step))
                depth.append(layer / entry.shape.num_layers)
                of_baseline.append(chosen is not None and chosen.index == entry.index)
                metrics.append({k: v[at[layer]] for k, v in known.items()})
    if not arms:
        raise StoreError(
            f"{store.url}: no checkpoint is complete; run 'batchsweep extract', "
            "and 'batchsweep status' to see how far it is"
        )
    if missing:
        logger.warning(
            "%d of %d checkpoints are not complete and take no part: %s",
            len(missing),
            len(plan.entries),
            ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
        )
    if baseline is not None and not any(of_baseline):
        valid = ", ".join(dict.fromkeys(revisions))
        raise ConfigError(f"rewards.baseline '{baseline}' is not in the store; valid: {valid}")
    names = list(dict.fromkeys(name for m in metrics for name in m))
    return Problem(
        arms=tuple(arms),
        tasks=tuple(tasks),
        model=tuple(model),
        step=np.array(step),
        depth=np.array(depth),
        metrics={n: np.array([m.get(n, np.nan) for m in metrics]) for n in names},
        baseline=np.array(of_baseline) if baseline is not None else None,
    )
