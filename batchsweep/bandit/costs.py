"""What extraction costs: a pair (checkpoint, task), and a checkpoint before its first pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.policies.base import Bools, Floats, Ints, Problem
from batchsweep.plan.estimate import (
    DEFAULT_GPU,
    GPUS,
    START_SECONDS,
    WRITE_RATE,
    download_seconds,
    utilisation,
)
from batchsweep.plan.pairs import Pairs
from batchsweep.plan.plan import PlanEntry
from batchsweep.plan.timings import Timing

#: FLOP/s of a forward pass where there is no GPU: a few cores of a server.
CPU_SPEED = 1e11


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
    """

    costs: PairCosts
    seconds: float | None = None
    store_bytes: float | None = None
    checkpoints: float | None = None

    def part(self, pairs: Bools, visits: Ints, free: Bools | None = None) -> float:
        """The part of the budget that is spent once these pairs are there; above 1 is too much.

        Args:
            pairs: [checkpoint, task] all that will be there.
            visits: [checkpoint] how often each was or will be started.
            free: [checkpoint, task] pairs that were there before: they took no time.
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
        return max(parts)


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


def planned_costs(
    pairs: Pairs, problem: Problem, *, gpu: bool, measured: Mapping[str, Timing] | None = None
) -> PairCosts:
    """Costs by the plan's shapes and the corpus's tokens, corrected by what extraction took.

    A task's blocks are counted whole, those too that it shares with others: together pairs take
    no more than the sum of what each takes.

    Args:
        pairs: of the plan that the problem's arms belong to.
        gpu: whether extraction runs on one, taken to be as fast as ``plan`` takes it by default
            as long as nothing was measured.
        measured: checkpoint key -> what the store remembers of it.
    """
    keys, of = checkpoints_of(problem)
    entries = {entry.key: entry for entry in pairs.plan.entries}
    known = {key: one for key, one in (measured or {}).items() if key in entries and one.tokens}
    tokens = [
        (_seconds(entries[key], one.tokens, pairs.mean_length(entries[key]), gpu), one.seconds)
        for key, one in known.items()
    ]
    slower = sum(took for _, took in tokens) / sum(thought for thought, _ in tokens) if known else 1
    runs = sum(one.runs for one in known.values())
    start = sum(one.start_seconds for one in known.values()) / runs if runs else START_SECONDS
    shape = (len(keys), len(problem.tasks))
    seconds, stored = np.zeros(shape), np.zeros(shape)
    for row, key in enumerate(keys):
        entry = entries[key]
        each = pairs.each(entry)
        for column, task in enumerate(problem.tasks):
            taken = each[task]
            mean = taken.tokens / max(taken.texts, 1)
            computing = slower * _seconds(entry, taken.tokens, mean, gpu)
            stored[row, column] = taken.store_bytes
            seconds[row, column] = max(computing, taken.store_bytes / WRITE_RATE)
    return PairCosts(
        checkpoints=keys,
        of=of,
        seconds=seconds,
        store_bytes=stored,
        start=np.full(len(keys), start),
        # What was measured as a start holds its downloads.
        download=np.array([0.0 if runs else download_seconds(entries[key]) for key in keys]),
    )


def _seconds(entry: PlanEntry, tokens: int, mean: float, gpu: bool) -> float:
    """Of a forward pass, where nothing was measured."""
    speed = GPUS[DEFAULT_GPU] * utilisation(entry.hidden) if gpu else CPU_SPEED
    return entry.shape.flops(tokens, mean) / speed
