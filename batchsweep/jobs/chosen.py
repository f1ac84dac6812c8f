"""Which indexes of the plan a launch works on, and how far each is in the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from batchsweep.config import Config
from batchsweep.errors import StoreError, TryAgain, UsageError
from batchsweep.jobs.index import format_indexes, parse_indexes
from batchsweep.plan.frozen import load_plan
from batchsweep.plan.plan import Plan, make_plan

if TYPE_CHECKING:
    from batchsweep.extract.status import IndexStatus

logger = logging.getLogger(__name__)


def plan_in_reach(config: Config) -> Plan | None:
    """The plan that ``prepare`` froze; None where the store isn't there (or not reached)."""
    from batchsweep.store import open_store

    try:
        return load_plan(open_store(config.store_url))
    except (StoreError, TryAgain, UsageError, OSError) as error:
        logger.debug("no frozen plan at %s: %s", config.store_url, error)
        return None


def planned(config: Config) -> Plan:
    """The plan that ``prepare`` will freeze, where it isn't frozen yet or not in reach."""
    from huggingface_hub import constants

    from batchsweep.checkpoints.audit import audit, nominal

    if constants.HF_HUB_OFFLINE:
        return make_plan(config, nominal(config))
    try:
        return make_plan(config, audit(config))
    except TryAgain as error:
        logger.warning("%s; the number of indexes is taken from the config alone", error)
        return make_plan(config, nominal(config))


def chosen_indexes(text: str | None, plan: Plan) -> tuple[int, ...]:
    """``--indexes``, or the whole plan.

    Raises:
        UsageError: one of them isn't in the plan.
    """
    known = tuple(entry.index for entry in plan.entries)
    if text is None:
        return known
    chosen = parse_indexes(text)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UsageError(
            f"--indexes {format_indexes(unknown)}: not in the plan, which has "
            f"{format_indexes(known)}"
        )
    return chosen


def elsewhere_indexes(text: str | None, config: Config) -> tuple[tuple[int, ...], bool]:
    """Indexes for a job elsewhere, and whether they are the whole plan.

    With ``--indexes`` and no frozen plan in reach they are believed: models and store may be
    where only the job gets.
    """
    plan = plan_in_reach(config)
    if plan is None and text is not None:
        return parse_indexes(text), False
    plan = plan or planned(config)
    chosen = chosen_indexes(text, plan)
    return chosen, len(chosen) == len(plan.entries)


def names(plan: Plan) -> dict[int, str]:
    """What a table calls each index: its checkpoint."""
    return {entry.index: entry.checkpoint.key for entry in plan.entries}


def sealed_blocks(config: Config, plan: Plan) -> Mapping[int, str]:
    """How far each index is, as ``3/12`` blocks or a word; empty where no store is reached."""
    return {
        index: f"{row.sealed}/{row.blocks}" if row.blocks else row.state
        for index, row in _statuses(config, plan).items()
    }


def sealed_indexes(config: Config) -> frozenset[int]:
    """Indexes that are in the store to the end; none where no store is in reach."""
    plan = plan_in_reach(config)
    return frozenset() if plan is None else sealed_of(config, plan)


def sealed_of(config: Config, plan: Plan) -> frozenset[int]:
    """Of a plan's indexes, those that are in the store to the end."""
    return frozenset(i for i, row in _statuses(config, plan).items() if row.state == "sealed")


def _statuses(config: Config, plan: Plan) -> dict[int, IndexStatus]:
    """Index -> how far it is; empty where no store is reached."""
    from batchsweep.extract.status import index_statuses
    from batchsweep.store import open_store

    try:
        rows = index_statuses(open_store(config.store_url), plan, pairs=False)
    except (StoreError, TryAgain, OSError) as error:
        logger.debug("no store at %s: %s", config.store_url, error)
        return {}
    return {row.index: row for row in rows if row.index is not None}
