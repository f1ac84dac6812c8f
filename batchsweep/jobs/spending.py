"""``--max-cost``: how much can be extracted before a price is passed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from batchsweep.config import Config
from batchsweep.errors import UsageError
from batchsweep.jobs.chosen import plan_in_reach, sealed_of


@dataclass(frozen=True)
class CostLimit:
    """What a sweep's extraction may cost in all."""

    most: float
    price: float
    """Of a GPU hour, in the same currency."""

    @classmethod
    def of(cls, most: float | None, price: float | None) -> CostLimit | None:
        """``--max-cost`` and ``--gpu-price``; None without a limit.

        Raises:
            UsageError: a limit without a price.
        """
        if most is None:
            return None
        if price is None:
            raise UsageError("--max-cost needs --gpu-price, what a GPU hour costs")
        return cls(most, price)

    @classmethod
    def of_search(
        cls, most: float | None, price: float | None, *, search: bool
    ) -> CostLimit | None:
        """The same where only a search can be limited.

        Raises:
            UsageError: a limit without a price, or without ``--search``.
        """
        limit = cls.of(most, price)
        if limit is not None and not search:
            raise UsageError("--max-cost limits a search: give --search with it")
        return limit

    @property
    def seconds(self) -> float:
        """Of GPU time that it allows."""
        return 3600 * self.most / self.price if self.price else math.inf

    def cost(self, seconds: float) -> float:
        """Of so much GPU time."""
        return seconds / 3600 * self.price


@dataclass(frozen=True)
class Spending:
    """GPU time of a sweep."""

    recorded: float
    """Seconds that the store has recorded."""
    left: Mapping[int, float]
    """Index -> seconds that it will take yet, as far as one can tell."""
    known: bool
    """Whether the store is in reach; else nothing is recorded."""

    def affordable(
        self,
        new: Sequence[int],
        *,
        under_way: Collection[int],
        limit: CostLimit,
    ) -> tuple[int, ...]:
        """Of new indexes, the first ones that keep the sweep's cost within a limit.

        Args:
            new: in the order of their worth.
            under_way: indexes that Jobs have, which will be paid for.
            limit: of all that was recorded, is under way, and is new.
        """
        seconds = self.recorded + sum(self.left.get(i, 0.0) for i in under_way)
        chosen = []
        for index in new:
            seconds += 0.0 if index in under_way else self.left.get(index, 0.0)
            if limit.cost(seconds) > limit.most:
                break
            chosen.append(index)
        return tuple(chosen)

    def seconds(self, indexes: Collection[int]) -> float:
        """Of what is recorded, and of the rest of some indexes."""
        return self.recorded + sum(self.left.get(i, 0.0) for i in indexes)


def spending(config: Config, gpu: str | None) -> Spending:
    """What the store has recorded, and the plan's estimate of the rest, which follows it.

    Raises:
        UsageError: nobody knows yet how large a task is.
        StoreCorrupt: what the store has recorded is damaged.
    """
    from batchsweep.plan.preview import plan_and_costs
    from batchsweep.plan.timings import timings
    from batchsweep.store import open_store

    plan, costs = plan_and_costs(config, gpu=gpu)
    if costs.size.unknown:
        raise UsageError(
            f"--max-cost: the size of {', '.join(costs.size.unknown)} isn't known here; run "
            "'batchsweep prepare' where the store can be reached first"
        )
    known = plan_in_reach(config) is not None
    measured = timings(open_store(config.store_url), strict=True) if known else {}
    recorded = {key: one.all_seconds for key, one in measured.items()}
    sealed = sealed_of(config, plan)
    return Spending(
        recorded=sum(recorded.values()),
        left={
            entry.index: 0.0
            if entry.index in sealed
            else max(costs.gpu_seconds - recorded.get(costs.key, 0.0), 0.0)
            for entry, costs in zip(plan.entries, costs.entries, strict=True)
        },
        known=known,
    )


def gpu_named(label: str | None) -> str | None:
    """The GPU that a node's product label means, for estimates; None where it isn't known.

    Example:
        >>> gpu_named("NVIDIA-A100-SXM4-80GB")
        'a100'
    """
    from batchsweep.plan.speed import GPUS

    words = (label or "").lower()
    return next((name for name in sorted(GPUS, key=len, reverse=True) if name in words), None)
