"""Schedules: which revisions of a suite take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from batchsweep.checkpoints.shape import PYTHIA_FINAL_STEP
from batchsweep.config import Schedule
from batchsweep.errors import ConfigError

STRATEGIES: tuple[str, ...] = get_args(Schedule.model_fields["strategy"].annotation)


#: Distance between two published late Pythia checkpoints, in steps.
_PYTHIA_SPACING = 1000


_SPARSE = (1000, 2000, 5000, 10_000, 20_000, 40_000, 80_000)


#: "Every 1000 early, every 10000 late".
_LOG = (*range(1000, 6000, 1000), *range(10_000, 150_000, 10_000))


_UNIFORM_INTERVAL = 5000


def schedule(strategy: str, interval: int | None = None, points: int | None = None) -> list[str]:
    """Pythia's revisions by rule, in order of training.

    Args:
        strategy: ``sparse`` (8), ``uniform`` (every ``interval``, default 5000, and main: 29),
            ``log`` (every 1000 early, every 10000 late: 20), ``dense`` (every ``interval``,
            default 1000, to step143000: 143), ``all`` (the 154 branches).
        interval: steps, a multiple of 1000; for ``uniform`` and ``dense``.
        points: how many revisions, for ``uniform`` and ``log``.

    Raises:
        ConfigError: unknown strategy, or an interval that it can't have.
    """
    _check_strategy(strategy, interval, points)
    if points is not None:
        available = {name: int(name[4:]) for name in schedule("all")}
        return schedule_among(available, strategy, points=points)
    if interval is not None and interval % _PYTHIA_SPACING:
        raise ConfigError(
            f"interval {interval}: Pythia's checkpoints are {_PYTHIA_SPACING} steps apart; "
            f"give a multiple of {_PYTHIA_SPACING}"
        )
    if interval is not None and interval > PYTHIA_FINAL_STEP:
        raise ConfigError(f"interval {interval}: training ends at step {PYTHIA_FINAL_STEP}")
    if strategy == "sparse":
        steps = list(_SPARSE)
    elif strategy == "log":
        steps = list(_LOG)
    elif strategy == "uniform":
        every = interval or _UNIFORM_INTERVAL
        steps = list(range(every, PYTHIA_FINAL_STEP, every))
    else:
        every = interval or _PYTHIA_SPACING
        early = [0, *(2**n for n in range(10))] if strategy == "all" else []
        steps = [*early, *range(every, PYTHIA_FINAL_STEP + 1, every)]
    # main is step143000 under another name: it ends every list that does not reach that step.
    last = [] if steps[-1:] == [PYTHIA_FINAL_STEP] else ["main"]
    return [*(f"step{step}" for step in steps), *last]


def schedule_among(
    available: Mapping[str, int],
    strategy: str,
    interval: int | None = None,
    points: int | None = None,
) -> list[str]:
    """The rule of :func:`schedule` on a suite with other steps.

    ``uniform`` and ``dense`` take the revisions whose step is a multiple of ``interval``;
    ``sparse`` and ``log`` the ones nearest to Pythia's fractions of the training; ``all`` takes
    all. The last step always ends the list.

    Args:
        available: revision -> training step.
        strategy, interval: as in :func:`schedule`; here any interval will do, and without one
            ``uniform`` takes 29 evenly spread and ``dense`` all but step 0.
        points: how many, for ``uniform`` (evenly over the steps) and ``log`` (evenly over the
            logarithm of 1 + step); fewer where revisions are too few or too far apart.

    Raises:
        ConfigError: as :func:`schedule`, or no revision is available.
    """
    _check_strategy(strategy, interval, points)
    if not available:
        raise ConfigError(
            "no revision's name holds a step; list 'revisions' by name, or give the model a "
            "step_pattern whose first group is the step"
        )
    by_step = sorted(available, key=lambda name: (available[name], name))
    last = available[by_step[-1]]
    if strategy == "all":
        return by_step
    if points is not None:
        first = available[by_step[0]]
        if strategy == "uniform":
            wanted = np.linspace(first, last, points)
        else:
            wanted = np.expm1(np.linspace(np.log1p(first), np.log1p(last), points))
        return _nearest(available, by_step, wanted.tolist())
    if interval is not None or strategy == "dense":
        every = interval or 1
        kept = [n for n in by_step if available[n] % every == 0 and available[n] > 0]
        return kept if by_step[-1] in kept else [*kept, by_step[-1]]
    if strategy == "uniform":
        steps = list(range(_UNIFORM_INTERVAL, PYTHIA_FINAL_STEP, _UNIFORM_INTERVAL))
    else:
        steps = list(_SPARSE if strategy == "sparse" else _LOG)
    targets = [step / PYTHIA_FINAL_STEP * last for step in steps]
    return _nearest(available, by_step, targets)


def _nearest(
    available: Mapping[str, int], by_step: Sequence[str], targets: Sequence[float]
) -> list[str]:
    """The revisions nearest to the wanted steps, in order of training, and the last one."""
    nearest = [min(by_step, key=lambda n: abs(available[n] - t)) for t in targets]
    return list(dict.fromkeys([*nearest, by_step[-1]]))


def _check_strategy(strategy: str, interval: int | None, points: int | None) -> None:
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{strategy}'; valid: {', '.join(STRATEGIES)}")
    if points is not None and (strategy not in ("uniform", "log") or interval is not None):
        raise ConfigError(
            f"points {points}: uniform and log have a number of points, and no interval beside it"
        )
    if interval is None:
        return
    if strategy not in ("uniform", "dense"):
        raise ConfigError(f"strategy '{strategy}' has no interval; uniform and dense have one")
    if interval <= 0:
        raise ConfigError(f"interval {interval}: must be above 0")
