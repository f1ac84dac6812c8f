"""From a config to what a person decides from: revisions, audit, plan, costs. Changes nothing."""

from __future__ import annotations

import logging

from batchsweep.checkpoints.audit import nominal
from batchsweep.checkpoints.checkpoint import steps_in
from batchsweep.checkpoints.hub import Hub
from batchsweep.checkpoints.json_cache import JsonCache, cache_file
from batchsweep.checkpoints.schedules import schedule, schedule_among
from batchsweep.checkpoints.shape import is_pythia
from batchsweep.checkpoints.sources import open_suite
from batchsweep.config import Config, ModelConfig, Schedule
from batchsweep.corpus.size import corpus_size
from batchsweep.errors import BatchsweepError, ConfigError
from batchsweep.plan.estimate import Estimate, estimate
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.plan import Plan, make_plan
from batchsweep.plan.space import Space, check_space, space
from batchsweep.plan.timings import timings
from batchsweep.store import Store, open_store

logger = logging.getLogger(__name__)


def plan_and_costs(
    config: Config, *, gpu: str | None = None, recorded: bool = True
) -> tuple[Plan, Estimate]:
    """The store's frozen plan, or the one that the config would give, and what it costs.


    Args:
        gpu: see :data:`batchsweep.plan.speed.GPUS`; or ``cpu``.
        recorded: times follow what the store recorded of extraction, if it has recorded any.

    Raises:
        ConfigError: an unknown task or model, a layer that isn't there.
        UsageError: an unknown GPU.
        TryAgain: a model that isn't known must be asked for, and the Hub is out of reach.
    """
    store = _store_there(config)
    plan = _frozen(store, config) if store is not None else None
    if plan is None:
        plan = make_plan(config, nominal(config))
    measured = timings(store) if store is not None and recorded else {}
    return plan, estimate(plan, config, corpus_size(config, store), gpu=gpu, measured=measured)


def _store_there(config: Config) -> Store | None:
    try:
        return open_store(config.store_url)
    except BatchsweepError as error:
        logger.debug("planning without the store: %s", error)
        return None


def _frozen(store: Store, config: Config) -> Plan | None:
    try:
        return frozen_plan(store, config)
    except BatchsweepError as error:
        # Said, because 'prepare' will say it too; but what the config would cost is still shown.
        logger.warning("%s", error)
        return None


def refuse_if_too_large(config: Config, plan: Plan) -> None:
    """Refuse a sweep that will not fit on the disk that its store is on.

    Before the corpus is there, its size is an estimate; call it again when it has been counted.

    Raises:
        UsageError: with what is needed and what is free.
    """
    store = _store_there(config)
    costs = estimate(plan, config, corpus_size(config, store))
    check_space(space(plan, config, costs, store))


def space_of(config: Config, plan: Plan, costs: Estimate) -> Space | None:
    """What the sweep's store takes and what its disk has; None for an object store."""
    return space(plan, config, costs, _store_there(config))


def list_revisions(
    strategy: str,
    interval: int | None,
    points: int | None = None,
    *,
    model: str | None = None,
    pattern: str | None = None,
) -> list[str]:
    """The revisions that a schedule gives: Pythia's, or of another model that is asked.

    Raises:
        ConfigError: unknown strategy, a wrong interval, no such model, or no steps in its names.
        TryAgain: the Hub is out of reach.
    """
    if model is None or is_pythia(model):
        return schedule(strategy, interval, points)
    suite = open_suite(ModelConfig(name=model), Hub(), JsonCache(cache_file("digests")))
    try:
        return schedule_among(steps_in(suite.revisions(), pattern), strategy, interval, points)
    except ConfigError as error:
        raise ConfigError(f"{model}: {error}") from None


def config_of(model: str, schedule: Schedule, pattern: str | None) -> Config:
    """A config that is only good for an audit of one model."""
    return Config(
        models=(ModelConfig(name=model, step_pattern=pattern),), revisions=schedule, tasks=("any",)
    )
