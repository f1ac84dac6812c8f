"""Two configs that differ in conventions: how much of the difference in score each one makes.

From the one config to the other the conventions are changed one after the other, in the order of
the config's keys; the differences along that way add up to the whole. Each is also changed alone,
in the first config: where the two numbers differ, the convention's effect hangs on the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchsweep.arm import Arm
from batchsweep.bandit.search import search
from batchsweep.config import BanditConfig, Config, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.extract.extract import extract
from batchsweep.plan.plan import Plan, deciding
from batchsweep.plan.prepare import prepare
from batchsweep.signals import GRACE, stop_on_signals
from batchsweep.store import open_store

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

#: What two configs may differ in, in the order in which it is changed.
CONVENTIONS = (
    "embedding.layers",
    "embedding.layer_output",
    "embedding.pooling",
    "embedding.pool_prefix",
    "embedding.prefix",
    "embedding.max_length",
    "embedding.dtype",
    "embedding.transforms",
    "corpus.max_texts_per_task",
    "corpus.seed",
    "store.dtype",
)
_UNEQUAL = (
    "the configs have unequally many arms, which can't be set against each other: give equally "
    "many layers, poolings and transforms in both"
)
#: What two configs must have in common.
_SAME = ("models", "revisions", "tasks")


@dataclass(frozen=True)
class Convention:
    """A key in which two configs differ."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True, eq=False)
class Measured:
    """The scores of a config: [arm, task], and who the arms are."""

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: Floats


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two configs score, and what of the difference each convention makes.

    Attributes:
        a, b: the scores of both.
        conventions: in which they differ, in the order in which they were changed.
        in_turn: of each convention, the scores [arm, task] before and after it was changed on the
            way from ``a`` to ``b``.
        alone: of each convention, the scores of ``a`` with nothing but it changed.
    """

    a: Measured
    b: Measured
    conventions: tuple[Convention, ...]
    in_turn: tuple[tuple[Measured, Measured], ...]
    alone: tuple[Measured, ...]

    def table(self) -> pd.DataFrame:
        """One row a convention, arm and task.

        Columns: ``convention``, ``arm`` and ``arm_after`` (as each config spells it), ``task``,
        ``before`` and ``after`` in turn, ``difference``, and ``alone``: the difference where
        nothing else is changed.
        """
        import pandas as pd

        parts = []
        steps = zip(self.conventions, self.in_turn, self.alone, strict=True)
        for convention, (before, after), alone in steps:
            tasks = len(before.tasks)
            parts.append(
                pd.DataFrame(
                    {
                        "convention": str(convention),
                        "arm": np.repeat(before.arms, tasks),
                        "arm_after": np.repeat(after.arms, tasks),
                        "task": np.tile(before.tasks, len(before.arms)),
                        "before": before.scores.ravel(),
                        "after": after.scores.ravel(),
                        "difference": (after.scores - before.scores).ravel(),
                        "alone": (alone.scores - self.a.scores).ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def conventions(a: Config, b: Config) -> tuple[Convention, ...]:
    """The conventions that two configs differ in.

    Raises:
        UsageError: they differ in nothing, in what must be the same (models, revisions, tasks), or
            in how many arms they have.
    """
    one, two = deciding(a), deciding(b)
    for name in _SAME:
        if one[name] != two[name]:
            raise UsageError(
                f"the configs differ in '{name}': compare changes one convention at a time on the "
                "same checkpoints and tasks; make it the same in both"
            )
    found = []
    for key in CONVENTIONS:
        section, _, name = key.partition(".")
        before, after = (getattr(getattr(config, section), name) for config in (a, b))
        if before != after:
            found.append(Convention(key, before, after))
        if isinstance(before, tuple) and isinstance(after, tuple) and len(before) != len(after):
            raise UsageError(_UNEQUAL)
    if not found:
        raise UsageError(
            f"the configs differ in none of {', '.join(CONVENTIONS)}: there is nothing to compare"
        )
    return tuple(found)


def compare(a: Config, b: Config, folder: Path) -> Comparison:
    """Extract and score what is between two configs; what is in ``folder`` already is kept.

    Every config on the way is a store of its own there, as far as its vectors are its own. Of n
    conventions up to 2 n configs are scored exhaustively.

    Raises:
        UsageError: as :func:`conventions`; or the configs don't have equally many arms.
    """
    found = conventions(a, b)
    way = [a]
    for convention in found:
        way.append(_changed(way[-1], convention))
    alone = [_changed(a, convention) for convention in found]
    scored: dict[tuple[str, ...], Measured] = {}

    def measured(config: Config) -> Measured:
        name = (_vectors(config), *config.embedding.transforms)
        if name not in scored:
            logger.info("config %d of at most %d", len(scored) + 1, 2 * len(found))
            scored[name] = _measured(config, folder)
            if len({one.scores.shape for one in scored.values()}) > 1:
                raise UsageError(_UNEQUAL)
        return scored[name]

    steps = [measured(config) for config in way]
    return Comparison(
        a=steps[0],
        b=steps[-1],
        conventions=found,
        in_turn=tuple(pairwise(steps)),
        alone=tuple(measured(config) for config in alone),
    )


def _changed(config: Config, convention: Convention) -> Config:
    section, _, name = convention.key.partition(".")
    part = getattr(config, section).model_copy(update={name: convention.after})
    return config.model_copy(update={section: part})


def _vectors(config: Config) -> str:
    """Names the vectors of a config."""
    return hashlib.sha256(json.dumps(deciding(config), sort_keys=True).encode()).hexdigest()


def _measured(config: Config, folder: Path) -> Measured:
    """All cells of a config, from a store that is kept."""
    place = config.store.model_copy(update={"path": str(folder / f"{_vectors(config)[:12]}.zarr")})
    config = config.model_copy(
        update={
            "store": place,
            "metrics": config.metrics.model_copy(update={"enabled": False}),
            "rewards": RewardsConfig(),
            "bandit": BanditConfig(policy="exhaustive", workers=config.bandit.workers),
        }
    )
    plan = _extracted(config)
    _, outcome = search(open_store(config.store_url), config)
    arms = tuple(plan.arms(config.embedding.transforms))
    position = {arm: i for i, arm in enumerate(outcome.problem.arms)}
    if missing := [arm for arm in arms if arm not in position]:
        key = Arm.parse(missing[0]).key
        raise UsageError(f"{config.store_url}: {key} isn't extracted; its log says why")
    order = [position[arm] for arm in arms]
    return Measured(arms, outcome.problem.tasks, np.asarray(outcome.plane[order], np.float64))


def _extracted(config: Config) -> Plan:
    store, plan, _ = prepare(config, exhaustive=True)
    with stop_on_signals(GRACE) as stop:
        for entry in plan.entries:
            extract(store, config, entry, stop=stop)
    return plan


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) or value == "" else str(value)
