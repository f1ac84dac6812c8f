"""What extraction costs: a pair (checkpoint, task), and a checkpoint before its first pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.policies.base import Bools, Floats, Ints, Problem
from batchsweep.config import Config
from batchsweep.corpus.size import CorpusSize
from batchsweep.plan.pairs import Missing, Pairs
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.plan.speed import Speed, stored_bytes
from batchsweep.plan.timings import Timing


@dataclass(frozen=True, eq=False)
class PairCosts:
    """The price of every pair of a problem.

    Attributes:
        checkpoints: keys, in the order in which the problem's arms first name them.
        of: [arm] the row of its checkpoint.
        seconds: [checkpoint, task] forward work of a pair, writing included.
        store_bytes: [checkpoint, task] what its embeddings take.
        start: [checkpoint] seconds to start a process and load the weights, each time.
        download: [checkpoint] seconds to fetch the weights, before the first pair.
    """

    checkpoints: tuple[str, ...]
    of: Ints
    seconds: Floats
    store_bytes: Floats
    start: Floats
    download: Floats

    @property
    def exhaustive_seconds(self) -> float:
        """Of every pair, each checkpoint started once."""
        return float(self.seconds.sum() + self.start.sum() + self.download.sum())

    @property
    def pair(self) -> Floats:
        """[checkpoint, task] price: time and disk count alike, each as a part of the exhaustive
        sweep's; so a small model's pairs aren't free because a start takes longer than they do."""
        disk = self.store_bytes / max(float(self.store_bytes.sum()), 1.0)
        return self.seconds / self.exhaustive_seconds + disk

    def opening(self, touched: Bools) -> Floats:
        """[checkpoint] price of going there at all, in the same unit."""
        return (self.start + np.where(touched, 0.0, self.download)) / self.exhaustive_seconds


@dataclass(frozen=True)
class PairBudget:
    """What extraction may take in all; a limit that is None doesn't count.

    Attributes:
        seconds: forward work, starts and downloads. store_bytes: embeddings on disk, those that
            were there before included. checkpoints: with at least one pair.
        paid_seconds: of extraction in all, whoever asked for it: ``spent``, what it took so far,
            and what is still to come.
    """

    costs: PairCosts
    seconds: float | None = None
    store_bytes: float | None = None
    checkpoints: float | None = None
    paid_seconds: float | None = None
    spent: float = 0.0

    def part(
        self, pairs: Bools, visits: Ints, free: Bools | None = None, there: Bools | None = None
    ) -> float:
        """The part of the budget that is spent once these pairs are there; above 1 is too much.

        Args:
            pairs: [checkpoint, task] all that will be there.
            visits: [checkpoint] how often each was or will be started.
            free: [checkpoint, task] pairs that were there before: they took no time.
            there: [checkpoint, task] pairs that are there now: they are among what was spent.
        """
        costs = self.costs
        parts = [0.0]
        if self.seconds is not None:
            worked = pairs if free is None else pairs & ~free
            spent = (costs.seconds * worked).sum() + (costs.start * visits).sum()
            parts.append(float(spent + costs.download[visits > 0].sum()) / self.seconds)
        if self.store_bytes is not None:
            parts.append(float((costs.store_bytes * pairs).sum()) / self.store_bytes)
        if self.checkpoints is not None:
            parts.append(float(pairs.any(axis=1).sum()) / self.checkpoints)
        if self.paid_seconds is not None:
            to_come = pairs if there is None else pairs & ~there
            going = to_come.any(axis=1)
            fetched = np.zeros_like(going) if there is None else there.any(axis=1)
            takes = (costs.seconds * to_come).sum() + costs.start[going].sum()
            takes += costs.download[going & ~fetched].sum()
            parts.append(_part_of(self.spent + float(takes), self.paid_seconds))
        return max(parts)


def _part_of(taken: float, limit: float) -> float:
    return taken / limit if limit > 0 else math.inf


def checkpoints_of(problem: Problem) -> tuple[tuple[str, ...], Ints]:
    """(keys in order of first appearance, [arm] the row of its checkpoint)."""
    keys = [Arm.parse(arm).key for arm in problem.arms]
    rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    return tuple(rows), np.array([rows[key] for key in keys], dtype=np.int64)


def even_costs(problem: Problem, sizes: Iterable[float] | None = None) -> PairCosts:
    """Costs where nothing was measured: checkpoints cost alike, a task by its size.

    Starting at a checkpoint and fetching its weights cost a twentieth of all its tasks each.

    Args:
        sizes: [task] relative amounts of text; default: all alike.
    """
    keys, of = checkpoints_of(problem)
    tasks = len(problem.tasks)
    share = np.ones(tasks) if sizes is None else np.array(list(sizes), dtype=np.float64)
    share = share / share.sum()
    seconds = np.tile(share, (len(keys), 1))
    return PairCosts(
        checkpoints=keys,
        of=of,
        seconds=seconds,
        store_bytes=seconds * 2.0**30,
        start=np.full(len(keys), 0.05),
        download=np.full(len(keys), 0.05),
    )


@dataclass(frozen=True)
class _Expected:
    """What extracting a pair takes before there is a corpus."""

    texts: int
    tokens: float
    store_bytes: float


def planned_costs(
    pairs: Pairs, problem: Problem, *, device: str, measured: Mapping[str, Timing] | None = None
) -> PairCosts:
    """Costs by the plan's shapes and the corpus's tokens, corrected by what extraction took.

    A task's blocks are counted whole, those too that it shares with others: together pairs take
    no more than the sum of what each takes.

    Args:
        device: what extraction runs on, as :class:`~batchsweep.plan.speed.Speed` names it.
        measured: checkpoint key -> what the store remembers of it.
    """
    entries = {entry.key: entry for entry in pairs.plan.entries}
    speed = Speed(device).corrected(
        pairs.plan.entries, pairs.config, measured or {}, pairs.mean_length
    )
    return _costs(problem, entries, pairs.each, speed)


def estimated_costs(
    plan: Plan, problem: Problem, config: Config, size: CorpusSize, *, speed: Speed
) -> PairCosts:
    """Costs before there is a corpus, by what is known of the tasks' sizes.

    Args:
        plan: the problem's arms are of its entries.
        problem: its tasks are of ``size``.
        speed: of the extraction.
    """

    def each(entry: PlanEntry) -> dict[str, _Expected]:
        return {
            task.name: _Expected(
                task.texts,
                size.tokens_of(task, config.embedding.max_length),
                stored_bytes(entry, config, task.texts),
            )
            for task in size.tasks
        }

    return _costs(problem, {entry.key: entry for entry in plan.entries}, each, speed)


def _costs(
    problem: Problem,
    entries: Mapping[str, PlanEntry],
    each: Callable[[PlanEntry], Mapping[str, Missing] | Mapping[str, _Expected]],
    speed: Speed,
) -> PairCosts:
    """Of all pairs; ``each``: task -> what it takes at a checkpoint."""
    keys, of = checkpoints_of(problem)
    shape = (len(keys), len(problem.tasks))
    seconds, stored = np.zeros(shape), np.zeros(shape)
    for row, key in enumerate(keys):
        taken = each(entries[key])
        for column, task in enumerate(problem.tasks):
            one = taken[task]
            mean = one.tokens / max(one.texts, 1)
            stored[row, column] = one.store_bytes
            seconds[row, column] = speed.seconds(entries[key], one.tokens, mean, one.store_bytes)
    return PairCosts(
        checkpoints=keys,
        of=of,
        seconds=seconds,
        store_bytes=stored,
        start=np.array([speed.start_seconds(entries[key]) for key in keys]),
        download=np.array([speed.download_seconds(entries[key]) for key in keys]),
    )
