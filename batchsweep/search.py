"""The bandit stage on a store: which arms there are, what is known of them, and one search."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np

from batchsweep.bandit import run, run_digest
from batchsweep.config import Config
from batchsweep.errors import TryAgain, UsageError
from batchsweep.ledger import StoreLedger
from batchsweep.outcome import Outcome
from batchsweep.plan import Plan, PlanEntry, frozen_plan
from batchsweep.policies import POLICIES, Problem
from batchsweep.rewards import Floats, tasks_of
from batchsweep.score import ScoreFunction, score_processes
from batchsweep.store import Store
from batchsweep.tasks import check_data, resolve

logger = logging.getLogger(__name__)


def search_name(problem: Problem, config: Config) -> str:
    """The folder below ``bandit/`` of the search that this config means on these arms."""
    digest = run_digest(problem, config.bandit, config.rewards)
    return f"{config.bandit.policy}-{digest[:12]}"


def problem_of(store: Store, plan: Plan, config: Config) -> Problem:
    """The arms whose checkpoint is extracted to the end, with their features.

    Raises:
        TryAgain: no index is sealed yet.
        UsageError: ``rewards.baseline`` or ``rewards.target`` names nothing in the sweep.
    """
    complete = {s.key for s in store.status() if s.complete}
    entries = [entry for entry in plan.entries if entry.key in complete]
    waiting = [entry.key for entry in plan.entries if entry.key not in complete]
    if not entries:
        raise TryAgain(f"{store.url}: no index is sealed yet; run 'batchsweep extract' first")
    if waiting:
        shown = ", ".join(waiting[:3]) + (" ..." if len(waiting) > 3 else "")
        logger.warning(
            "%d of %d indexes are not sealed and take no part in the search: %s",
            len(waiting),
            len(plan.entries),
            shown,
        )
    poolings = plan.poolings if len(plan.poolings) > 1 else (None,)
    arms: list[str] = []
    model: list[str] = []
    step: list[float] = []
    depth: list[float] = []
    baseline: list[bool] = []
    metrics: dict[str, list[float]] = {}
    for entry in entries:
        values = store.reader(entry.key).metrics()
        for position, layer in enumerate(entry.layers):
            for pooling in poolings:
                for name in metrics.keys() | values.keys():
                    column = metrics.setdefault(name, [np.nan] * len(arms))
                    column.append(float(values[name][position]) if name in values else np.nan)
                tail = f"#{pooling}" if pooling else ""
                arms.append(f"{entry.key}#{layer}{tail}")
                # Another pooling is another surface over time and depth, as another model is.
                model.append(f"{entry.checkpoint.model}{tail}")
                step.append(np.nan if entry.checkpoint.step is None else entry.checkpoint.step)
                depth.append(layer / entry.shape.num_layers)
                baseline.append(config.rewards.baseline in entry.checkpoint.names)
    if config.rewards.baseline is not None and not any(baseline):
        there = dict.fromkeys(name for entry in entries for name in entry.checkpoint.names)
        raise UsageError(
            f"rewards.baseline '{config.rewards.baseline}': no sealed checkpoint of that name; "
            f"valid: {', '.join(there)}"
        )
    types = {task.metadata.name: str(task.metadata.type) for task in resolve(config.tasks)}
    return Problem(
        arms=tuple(arms),
        tasks=tasks_of(config.rewards.target, types),
        model=tuple(model),
        step=np.array(step),
        depth=np.array(depth),
        metrics={name: np.array(column) for name, column in metrics.items()},
        baseline=np.array(baseline) if config.rewards.baseline is not None else None,
    )


def search(store: Store, config: Config) -> tuple[str, Outcome]:
    """Spend the budget, or go on with the search that was cut short; its name and outcome.

    The answer is in the store as ``bandit/<name>/answer.json``, each pull below
    ``bandit/<name>/pulls/`` and in full below ``scores/``.

    Raises:
        TryAgain: nothing is sealed yet, another process runs this search, or a task's data are not
            to be had.
        StoreMismatch: the config is not the one that the plan was frozen from.
    """
    plan = frozen_plan(store, config, scoring=True)
    problem = problem_of(store, plan, config)
    name = search_name(problem, config)
    if POLICIES[config.bandit.policy].pulls:
        check_data([t for t in resolve(config.tasks) if t.metadata.name in problem.tasks])
    workers = config.bandit.workers
    with (
        store.lease(f"bandit/{name}"),
        score_processes(workers) if workers > 1 else nullcontext() as executor,
    ):
        score = ScoreFunction.of(config)
        outcome = run(
            problem,
            score,
            config.bandit,
            config.rewards,
            full_fn=score.in_full,
            ledger=StoreLedger(store, name),
            executor=executor,
        )
        store.write_json(f"bandit/{name}/answer.json", outcome.to_json())
    return name, outcome


def summary(outcome: Outcome, plan: Plan) -> str:
    """The answer as people read it: a few lines."""
    answer = outcome.answer
    lines = [f"best arm: {_named(answer.arm, plan)}"]
    interval = ""
    low, high = answer.interval
    if np.isfinite(low) and high > low:  # A mean that was measured in full has none.
        interval = f", 95 % between {low:.4f} and {high:.4f}"
    lines.append(f"  reward {answer.mean:.4f}{interval}: {outcome.reward}")
    if answer.p_best is not None:
        lines.append(f"  P(best) {answer.p_best:.2f}, expected regret {answer.expected_regret:.5f}")
    arm = outcome.problem.arms.index(answer.arm)
    measured = int(answer.pulled[arm])
    full = " in full" if answer.arm in outcome.checked else ""
    lines.append(
        f"  mean main score {outcome.plane[arm].mean():.4f}, scored{full} on {measured} of "
        f"{len(outcome.problem.tasks)} tasks"
    )
    if answer.runners_up:
        lines.append("can't be told apart from it:")
        lines += [
            f"  {_named(c.arm, plan)}: {c.mean:.4f}"
            + (f", P(best) {c.p_best:.2f}" if c.p_best is not None else "")
            for c in answer.runners_up[:5]
        ]
    exhaustive = len(outcome.problem.arms) * len(outcome.problem.tasks)
    lines.append(
        f"pulls: {outcome.pulls} of the exhaustive {exhaustive} "
        f"({100 * outcome.pulls / exhaustive:.1f} %), {outcome.seconds:.1f} s of scoring; "
        f"stopped: {outcome.stopped}, {100 * outcome.left:.0f} % of the budget left"
    )
    if outcome.texts_per_pull is not None:
        lines.append(_subsets(outcome.texts_per_pull, outcome.noise))
    lines.append(answer.basis)
    return "\n".join(lines)


def _subsets(texts: int, noise: Floats) -> str:
    """What a pull scored, and how noisy that was."""
    divided = noise[noise > 0]
    if not len(divided):
        return f"each pull: a whole task, none has more than {texts:,} texts"
    whole = len(noise) - len(divided)
    others = f" ({whole} smaller tasks: whole, without noise)" if whole else ""
    return (
        f"each pull: {texts:,} texts of a task; measured noise: median "
        f"{100 * np.median(divided):.2f} points{others}"
    )


def _named(arm: str, plan: Plan) -> str:
    """An arm with the other names of its weights."""
    entry: PlanEntry | None = next((e for e in plan.entries if e.key == arm.split("#")[0]), None)
    aliases = entry.checkpoint.aliases if entry is not None else ()
    return arm + (f" (the same weights as {', '.join(aliases)})" if aliases else "")
