"""``--max-cost``: how many indexes can be submitted before a price is passed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from batchsweep.config import Config
from batchsweep.errors import UsageError
from batchsweep.jobs.chosen import plan_in_reach, sealed_indexes


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
        price: float,
        most: float,
    ) -> tuple[int, ...]:
        """Of new indexes, the first ones that keep the sweep's cost within a limit.

        Args:
            new: in the order of their worth.
            under_way: indexes that Jobs have, which will be paid for.
            most: cost of all that was recorded, is under way, and is new.
        """
        seconds = self.recorded + sum(self.left.get(i, 0.0) for i in under_way)
        chosen = []
        for index in new:
            seconds += 0.0 if index in under_way else self.left.get(index, 0.0)
            if seconds / 3600 * price > most:
                break
            chosen.append(index)
        return tuple(chosen)

    def cost(self, indexes: Collection[int], price: float) -> float:
        """Of what is recorded, and of the rest of some indexes."""
        return (self.recorded + sum(self.left.get(i, 0.0) for i in indexes)) / 3600 * price


def spending(config: Config, gpu: str | None) -> Spending:
    """What the store has recorded, and the plan's estimate of the rest.

    Once an index is sealed, estimates are scaled by what the sealed ones really took.

    Raises:
        UsageError: nobody knows yet how large a task is.
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
    recorded = (
        {
            key: t.start_seconds + t.seconds
            for key, t in timings(open_store(config.store_url)).items()
        }
        if known
        else {}
    )
    estimated = {entry.key: entry.gpu_seconds for entry in costs.entries}
    sealed = sealed_indexes(config)
    done = {entry.key for entry in plan.entries if entry.index in sealed and entry.key in recorded}
    scale = sum(recorded[k] for k in done) / sum(estimated[k] for k in done) if done else 1.0
    return Spending(
        recorded=sum(recorded.values()),
        left={
            entry.index: 0.0
            if entry.index in sealed
            else max(scale * estimated[entry.key] - recorded.get(entry.key, 0.0), 0.0)
            for entry in plan.entries
        },
        known=known,
    )


def gpu_named(label: str | None) -> str | None:
    """The GPU that a node's product label means, for estimates; None where it isn't known.

    Example:
        >>> gpu_named("NVIDIA-A100-SXM4-80GB")
        'a100'
    """
    from batchsweep.plan.estimate import GPUS

    words = (label or "").lower()
    return next((name for name in sorted(GPUS, key=len, reverse=True) if name in words), None)
