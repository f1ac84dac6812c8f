"""The bandit stage on a store: which arms there are, what is known of them, and one search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from batchsweep.arm import Arm
from batchsweep.bandit.chooser import Chooser
from batchsweep.bandit.costs import PairBudget, PairCosts
from batchsweep.bandit.imported import imported
from batchsweep.bandit.ledger import Ledger, Observation, StoreLedger, observations
from batchsweep.bandit.loop import run
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.policies import POLICIES, Problem
from batchsweep.bandit.problem import planned_problem, problem_of, search_name
from batchsweep.bandit.stored_waves import (
    CheckpointsLost,
    Extract,
    StoredWaves,
    lost_checkpoints,
)
from batchsweep.bandit.waves import Waves
from batchsweep.config import Config, PullBudget
from batchsweep.errors import StoreMismatch
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.plan import Plan
from batchsweep.score.records import Origins
from batchsweep.score.workers import ScoreFunction, score_processes
from batchsweep.store import Store
from batchsweep.tasks.resolve import check_data, resolve

logger = logging.getLogger(__name__)


def search(store: Store, config: Config, results: Path | None = None) -> tuple[str, Outcome]:
    """Spend the budget, or go on with the search that was cut short; its name and outcome.

    The answer is in the store as ``bandit/<name>/answer.json``, each pull below
    ``bandit/<name>/pulls/`` and in full below ``scores/``.

    Args:
        results: a folder of mteb's results, whose scores are pulls that cost nothing.

    Raises:
        UsageError: none of the results is of this search.
        TryAgain: nothing is sealed yet, another process runs this search, or a task's data are not
            to be had.
        StoreMismatch: the config is not the one that the plan was frozen from.
    """
    plan = frozen_plan(store, config, scoring=True)
    problem = problem_of(store, plan, config)
    there = () if results is None else imported(results, plan, problem, config)
    name = search_name(problem, config, imported=there)
    if POLICIES[config.bandit.policy].pulls:
        check_data([t for t in resolve(config.tasks) if t.metadata.name in problem.tasks])
    workers = config.bandit.workers
    with (
        store.lease(f"bandit/{name}"),
        score_processes(workers) if workers > 1 else nullcontext() as executor,
    ):
        return name, _run(store, config, problem, name, executor, imported=there)


def search_and_extract(
    store: Store,
    config: Config,
    extract: Extract,
    *,
    width: int,
    pricing: Callable[[Problem], PairCosts],
    disk: float | None = None,
    paid: Callable[[], PaidTime] | None = None,
) -> tuple[str, Outcome]:
    """The same over all arms of the plan: pairs are extracted as the search asks for them.

    Args:
        width: checkpoints a wave: as many as are extracted at a time.
        pricing: what the pairs of a problem cost.
        disk: bytes that embeddings may take beside those that are there.
        paid: what extraction may take in all and what it took so far, where it is paid for.

    Raises:
        IndexFailed: no checkpoint can be extracted.
        StoreCorrupt: a wave's document is damaged.
        TryAgain, StoreMismatch: as :func:`search`; or nothing of a wave could be had.
        UsageError: the policy can't say what should be extracted, or no wave may be.
    """
    plan = frozen_plan(store, config)
    # Without the checkpoints that are lost it is the same search: it follows the same waves.
    everything = planned_problem(plan, config)
    whole = search_name(everything, config, waves=True)
    check_data([t for t in resolve(config.tasks) if t.metadata.name in everything.tasks])
    workers = config.bandit.workers
    with (
        store.lease(f"bandit/{whole}"),
        score_processes(workers) if workers > 1 else nullcontext() as executor,
    ):
        lost = lost_checkpoints(store, plan)
        _warn_of(lost, plan)
        while True:
            problem = planned_problem(plan, config, lost)
            name = search_name(problem, config, waves=True)
            costs = pricing(problem)
            stored = StoredWaves(store, plan, whole, costs, problem.tasks, extract)
            chooser = Chooser(problem, costs, width=width, seed=config.bandit.seed)
            room = None if disk is None else disk + float(costs.store_bytes[stored.now()].sum())
            now = partial(_budget_now, config, problem, pricing, room, paid)
            waves = Waves(chooser, stored, pair_budget(config, costs, room), now)
            try:
                return name, _run(store, config, problem, name, executor, waves)
            except CheckpointsLost as error:
                logger.warning("the search goes on without %s", error)
                lost = lost_checkpoints(store, plan)


def _warn_of(lost: Mapping[str, str], plan: Plan) -> None:
    """Say which checkpoints take no part, because extraction gave them up in an earlier run."""
    if not lost:
        return
    first = next(entry for entry in plan.entries if entry.key in lost)
    logger.warning(
        "%d of %d checkpoints take no part: extraction gave them up (%s: %s); "
        "'batchsweep extract --index %d' tries again",
        len(lost),
        len(plan.entries),
        first.key,
        lost[first.key],
        first.index,
    )


@dataclass(frozen=True)
class PaidTime:
    """Seconds of extraction that are paid for: the most there may be, and those that there were."""

    most: float
    spent: float


def _budget_now(
    config: Config,
    problem: Problem,
    pricing: Callable[[Problem], PairCosts],
    room: float | None,
    paid: Callable[[], PaidTime] | None,
) -> PairBudget:
    budget = pair_budget(config, pricing(problem), room)
    if paid is None:
        return budget
    now = paid()
    return replace(budget, paid_seconds=now.most, spent=now.spent)


def _run(
    store: Store,
    config: Config,
    problem: Problem,
    name: str,
    executor: Executor | None,
    waves: Waves | None = None,
    imported: Sequence[Observation] = (),
) -> Outcome:
    """Search, or go on, with what the store has of this search; its answer is kept there."""
    ledger = StoreLedger(store, name)
    check_vectors(store, name, ledger)
    score = ScoreFunction.of(config)
    outcome = run(
        problem,
        score,
        config.bandit,
        config.rewards,
        full_fn=score.in_full,
        ledger=ledger,
        executor=executor,
        waves=waves,
        imported=imported,
    )
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_json(f"bandit/{name}/answer.json", {**outcome.to_json(), "finished": finished})
    return outcome


def pair_budget(config: Config, costs: PairCosts, room: float | None = None) -> PairBudget:
    """The config's limits on extraction; and never more bytes than there is room for."""
    limits = config.bandit.budget
    if not isinstance(limits, PullBudget):
        return PairBudget(costs, store_bytes=room)
    limit = [size for size in (limits.bytes, room) if size is not None]
    return PairBudget(
        costs,
        seconds=None if limits.gpu_hours is None else 3600 * limits.gpu_hours,
        store_bytes=min(limit, default=None),
        checkpoints=limits.checkpoints,
    )


def check_vectors(store: Store, name: str, ledger: Ledger) -> None:
    """Refuse to go on from pulls that were scored on other vectors than the store has now.

    Raises:
        StoreMismatch: a checkpoint of the search was extracted anew, otherwise than before.
    """
    origins = Origins(store)
    pulled = {(Arm.parse(o.arm).key, o.group) for o in observations(ledger.records())}
    for key, group in sorted(pulled, key=str):
        if not origins.are(key, group):
            raise StoreMismatch(
                f"{store.url}: bandit/{name} has pulls that were scored on other vectors (spec "
                f"{group}) than {key} has now; remove that folder from the store, and run "
                "'batchsweep bandit' again"
            )
