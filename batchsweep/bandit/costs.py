"""What extraction costs: a pair (checkpoint, task), and a checkpoint before its first pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.policies.base import Bools, Floats, Ints, Problem
from batchsweep.config import Config
from batchsweep.corpus.size import CorpusSize
from batchsweep.plan.estimate import (
    DEFAULT_GPU,
    GPUS,
    START_SECONDS,
    WRITE_RATE,
    download_seconds,
    stored_bytes,
    utilisation,
)
from batchsweep.plan.pairs import Pairs
from batchsweep.plan.plan import Plan, PlanEntry
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


class _Taken(Protocol):
    """What extracting a pair takes."""

    @property
    def texts(self) -> int: ...
    @property
    def tokens(self) -> float: ...
    @property
    def store_bytes(self) -> float: ...


def planned_costs(
    pairs: Pairs, problem: Problem, *, gpu: bool, measured: Mapping[str, Timing] | None = None
) -> PairCosts:
    """Costs by the plan's shapes and the corpus's tokens, corrected by what extraction took.

    A task's blocks are counted whole, those too that it shares with others: together pairs take
    no more than the sum of what each takes.

    Args:
        gpu: whether extraction runs on one, taken to be as fast as ``plan`` takes it by default
            as long as nothing was measured.
        measured: checkpoint key -> what the store remembers of it.
    """
    name = DEFAULT_GPU if gpu else None
    entries = {entry.key: entry for entry in pairs.plan.entries}
    known = {key: one for key, one in (measured or {}).items() if key in entries and one.tokens}
    tokens = [
        (_seconds(entries[key], one.tokens, pairs.mean_length(entries[key]), name), one.seconds)
        for key, one in known.items()
    ]
    slower = sum(took for _, took in tokens) / sum(thought for thought, _ in tokens) if known else 1
    runs = sum(one.runs for one in known.values())
    return _costs(
        problem,
        entries,
        pairs.each,
        lambda entry, tokens, mean: slower * _seconds(entry, tokens, mean, name),
        start=sum(one.start_seconds for one in known.values()) / runs if runs else START_SECONDS,
        # What was measured as a start holds its downloads.
        download=(lambda entry: 0.0) if runs else download_seconds,
    )


def estimated_costs(
    plan: Plan, problem: Problem, config: Config, size: CorpusSize, *, gpu: str
) -> PairCosts:
    """Costs before there is a corpus, by what is known of the tasks' sizes.

    Args:
        plan: the problem's arms are of its entries.
        problem: its tasks are of ``size``.
        gpu: a name of :data:`batchsweep.plan.estimate.GPUS`.
    """

    @dataclass(frozen=True)
    class Estimated:
        texts: int
        tokens: float
        store_bytes: float

    def each(entry: PlanEntry) -> dict[str, Estimated]:
        return {
            task.name: Estimated(
                task.texts,
                size.tokens_of(task, config.embedding.max_length),
                stored_bytes(entry, config, task.texts),
            )
            for task in size.tasks
        }

    return _costs(
        problem,
        {entry.key: entry for entry in plan.entries},
        each,
        lambda entry, tokens, mean: _seconds(entry, tokens, mean, gpu),
        start=START_SECONDS,
        download=download_seconds,
    )


def _costs(
    problem: Problem,
    entries: Mapping[str, PlanEntry],
    each: Callable[[PlanEntry], Mapping[str, _Taken]],
    computing: Callable[[PlanEntry, float, float], float],
    *,
    start: float,
    download: Callable[[PlanEntry], float],
) -> PairCosts:
    """Of all pairs.

    Args:
        each: task -> what it takes at a checkpoint.
        computing: (entry, tokens, tokens a text) -> seconds of the forward pass.
    """
    keys, of = checkpoints_of(problem)
    shape = (len(keys), len(problem.tasks))
    seconds, stored = np.zeros(shape), np.zeros(shape)
    for row, key in enumerate(keys):
        taken = each(entries[key])
        for column, task in enumerate(problem.tasks):
            one = taken[task]
            mean = one.tokens / max(one.texts, 1)
            stored[row, column] = one.store_bytes
            seconds[row, column] = max(
                computing(entries[key], one.tokens, mean), one.store_bytes / WRITE_RATE
            )
    return PairCosts(
        checkpoints=keys,
        of=of,
        seconds=seconds,
        store_bytes=stored,
        start=np.full(len(keys), start),
        download=np.array([download(entries[key]) for key in keys]),
    )


def _seconds(entry: PlanEntry, tokens: float, mean: float, gpu: str | None) -> float:
    """Of a forward pass, where nothing was measured."""
    speed = CPU_SPEED if gpu is None else GPUS[gpu] * utilisation(entry.hidden)
    return entry.shape.flops(tokens, mean) / speed
