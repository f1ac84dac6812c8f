"""What a search's ``answer.json`` may say, for its readers: a store may come from anybody."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from batchsweep.arm import Arm
from batchsweep.errors import StoreCorrupt, UsageError
from batchsweep.store.validation import parsed

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class _Best:
    arm: str
    mean: float
    interval: tuple[float | None, float | None]
    p_best: float | None = None
    expected_regret: float | None = None


@dataclass(frozen=True)
class _Scale:
    kind: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class _Arm:
    arm: str
    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class _Subsets:
    texts_per_pull: int
    noise: tuple[float, ...]
    checked_in_full: tuple[str, ...]


@dataclass(frozen=True)
class _Answer:
    best: _Best
    pulls: int
    exhaustive_pulls: int
    seconds: float
    stopped: str
    reward: str
    scale: _Scale
    arms: tuple[_Arm, ...] = ()
    plane: tuple[Numbers, ...] = ()
    budget_pulls: float | None = None
    subsets: _Subsets | None = None
    finished: str = ""

    def check(self) -> None:
        tasks = len(self.scale.tasks)
        if self.exhaustive_pulls < 1 or not math.isfinite(self.seconds):
            raise ValueError("exhaustive_pulls or seconds")
        if self.plane and len(self.plane) != len(self.arms):
            raise ValueError("plane and arms are of unequal length")
        for arm in (self.best.arm, *(of.arm for of in self.arms)):
            try:
                Arm.parse(arm)
            except UsageError as error:
                raise ValueError(str(error)) from None
        if any(len(row) != tasks for row in self.plane) or len(set(self.scale.tasks)) != tasks:
            raise ValueError("plane and tasks don't agree")


def checked_answer(value: Any, *, where: str) -> dict[str, Any]:
    """The document as it is, if all that readers take from it is there and of its type.

    Raises:
        StoreCorrupt: it isn't; says what.
    """
    try:
        parsed(_Answer, value).check()
    except ValueError as error:
        raise StoreCorrupt(
            f"{where} is no answer of a search ({error}); remove it and run 'batchsweep bandit'"
        ) from None
    found: dict[str, Any] = value
    return found
