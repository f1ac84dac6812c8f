"""What makes two searches the same one: all that decides their pulls, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from batchsweep.bandit.ledger import Observation, Record, digest_of
from batchsweep.bandit.outcome import VERSION
from batchsweep.bandit.policies import Problem
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig


def run_digest(
    problem: Problem,
    config: BanditConfig,
    rewards: RewardsConfig,
    *,
    waves: bool = False,
    imported: Sequence[Observation] = (),
) -> str:
    """sha256 (hex) of what decides the pulls: two runs with one digest are the same run."""
    header = search_header(problem, config, rewards, waves=waves, imported=imported)
    text = json.dumps(header, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def search_settings(config: BanditConfig, rewards: RewardsConfig) -> Record:
    """What a ledger's header says of the config: searches that differ in it are not the same."""
    settings = config.model_dump(mode="json")
    if settings["texts_per_pull"] is None:
        del settings["texts_per_pull"]  # The same search as before there was such a setting.
    if isinstance(config.budget, PullBudget):
        limits = ("gpu_hours", "bytes", "checkpoints")  # Likewise.
        unset = {name for name in limits if settings["budget"][name] is None}
        settings["budget"] = {k: v for k, v in settings["budget"].items() if k not in unset}
    return {**settings, "rewards": rewards.model_dump(mode="json")}


def search_header(
    problem: Problem,
    config: BanditConfig,
    rewards: RewardsConfig,
    *,
    waves: bool,
    imported: Sequence[Observation],
) -> Record:
    """The first record of a ledger, less the policy's options."""

    def digest(names: tuple[str, ...]) -> str:
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    return {
        "version": VERSION,
        **search_settings(config, rewards),
        "arms": digest(problem.arms),
        "tasks": list(problem.tasks),
        **({"waves": True} if waves else {}),
        **({"imported": digest_of(imported)} if imported else {}),
    }
