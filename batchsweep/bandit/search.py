"""The bandit stage on a store: which arms there are, what is known of them, and one search."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from datetime import UTC, datetime

from batchsweep.arm import Arm
from batchsweep.bandit.ledger import Ledger, StoreLedger, observations
from batchsweep.bandit.loop import run
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.policies import POLICIES
from batchsweep.bandit.problem import problem_of, search_name
from batchsweep.config import Config
from batchsweep.errors import StoreMismatch
from batchsweep.plan.plan import frozen_plan
from batchsweep.score.records import Origins
from batchsweep.score.workers import ScoreFunction, score_processes
from batchsweep.store import Store
from batchsweep.tasks.resolve import check_data, resolve

logger = logging.getLogger(__name__)


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
        )
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        store.write_json(f"bandit/{name}/answer.json", {**outcome.to_json(), "finished": finished})
    return name, outcome


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
