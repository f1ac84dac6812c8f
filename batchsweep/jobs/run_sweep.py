"""``batchsweep run``, ``launch ... --search``: a search and the extraction that it asks for."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from batchsweep.bandit.costs import PairCosts, planned_costs
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.policies import Problem
from batchsweep.bandit.policy_names import WITH_A_MODEL
from batchsweep.bandit.search import PaidTime, search, search_and_extract
from batchsweep.bandit.stored_waves import Extract
from batchsweep.bandit.waves import Wave
from batchsweep.config import Config, PullBudget, load
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs.chosen import names
from batchsweep.jobs.launch import at_once, local_launcher, logs_folder
from batchsweep.jobs.local import visible_gpus
from batchsweep.jobs.runner import IndexedJob, Launcher
from batchsweep.jobs.spending import CostLimit
from batchsweep.plan.estimate import gib
from batchsweep.plan.pairs import Pairs
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.plan.prepare import prepare
from batchsweep.plan.space import disk_of
from batchsweep.plan.speed import CPU, DEFAULT_GPU
from batchsweep.plan.timings import Timing, timings
from batchsweep.progress import duration
from batchsweep.signals import GRACE, stop_on_signals
from batchsweep.store import Store

logger = logging.getLogger(__name__)

#: Extract processes at a time where there is no GPU.
CPU_WORKERS = 2


class WaveLauncher(Launcher, Protocol):
    """Starts workers; ``more`` says which index gets which options, such as ``--tasks``."""

    more: Mapping[int, Sequence[str]]


@dataclass(frozen=True)
class RemoteWaves:
    """Waves that jobs somewhere else extract.

    Attributes:
        submit: has a wave's pairs extracted, and waits for it.
        begun: whether that needs nothing more to be submitted.
        device: what that runs on, as :class:`~batchsweep.plan.speed.Speed` names it.
        workers: at once.
    """

    submit: Extract
    begun: Callable[[Wave], bool]
    device: str
    workers: int


def run_sweep(
    config_file: Path,
    *,
    exhaustive: bool = False,
    parallel: int | None = None,
    grace: float = GRACE,
    launch: Callable[[Config, int], WaveLauncher] | None = None,
    remote: RemoteWaves | None = None,
    limit: CostLimit | None = None,
) -> tuple[Store, Plan, str, Outcome]:
    """Prepare, then extract what the search asks for until it is sure; or all, then search.

    Args:
        exhaustive: extract every pair before the search.
        parallel: extract processes at a time; default: one a GPU, or two.
        grace: seconds that a worker gets to seal its open block.
        launch: what starts the workers, given their number; default: processes.
        remote: extracts the waves instead.
        limit: no wave is asked for that would pass it.

    Returns:
        The store, its plan, the search's name and its outcome.

    Raises:
        IndexFailed: no checkpoint can be extracted.
        TryAgain: another process searches here, or nothing could be had this time.
        Terminated: asked to stop; the same call goes on.
        UsageError: all of it would have to be extracted elsewhere, or whatever it costs.
    """
    config = load(config_file)
    gpus = visible_gpus(os.environ)
    cores = len(os.sched_getaffinity(0))
    workers = at_once(parallel, gpus, without_gpu=min(CPU_WORKERS, cores))
    if remote is not None:
        workers = remote.workers
        check_policy(config)
    if not exhaustive and config.bandit.policy not in WITH_A_MODEL:
        logger.info(
            "bandit.policy %s can't say what should be extracted: all of it is",
            config.bandit.policy,
        )
        exhaustive = True
    if exhaustive and limit is not None:
        raise UsageError(
            "--max-cost is for a search that asks for what is extracted; see what all of it costs: "
            "'batchsweep plan --gpu-price'"
        )
    store, plan, _ = prepare(config, exhaustive=exhaustive)
    launcher: WaveLauncher = (
        local_launcher(config_file, workers=workers, grace=grace)
        if launch is None
        else launch(config, workers)
    )
    job = _Job(store, plan, config, launcher, workers, grace, remote, limit)
    device = DEFAULT_GPU if gpus else CPU
    if remote is not None:
        device = remote.device
    if exhaustive:
        job.extract_all()
        name, outcome = search(store, config)
        return store, plan, name, outcome

    def pricing(problem: Problem) -> PairCosts:
        return planned_costs(job.pairs, problem, device=device, measured=job.measure())

    name, outcome = search_and_extract(
        store,
        config,
        job.extract_wave,
        width=workers,
        pricing=pricing,
        disk=_disk(config),
        paid=None if limit is None else job.paid,
    )
    if limit is not None:
        job.measure()
        logger.info("%s", job.cost())
    return store, plan, name, outcome


def check_policy(config: Config) -> None:
    """Refuse to extract elsewhere what a search asks for whose policy can't ask.

    Raises:
        UsageError: with the policies that can.
    """
    if config.bandit.policy not in WITH_A_MODEL:
        raise UsageError(
            f"bandit.policy {config.bandit.policy} can't say what should be extracted; launch "
            f"without --search, or take one of {', '.join(sorted(WITH_A_MODEL))}"
        )


def _disk(config: Config) -> float | None:
    """Bytes that embeddings may take on the disk under the store; None where nobody knows.

    What the search asks for is not to fill the disk: a tenth of what is free stays free.
    """
    folder = disk_of(config)
    return None if folder is None else 0.9 * shutil.disk_usage(folder).free


@dataclass
class _Job:
    """The extract processes of one run."""

    store: Store
    plan: Plan
    config: Config
    launcher: WaveLauncher
    workers: int
    grace: float
    remote: RemoteWaves | None
    limit: CostLimit | None

    def __post_init__(self) -> None:
        self.pairs = Pairs(self.store, self.plan, self.config)
        self.measured: dict[str, Timing] = {}

    def measure(self) -> dict[str, Timing]:
        """What extraction took as the store has it now: once before each wave.

        Raises:
            StoreCorrupt: it is damaged, and there is a limit that it is held against.
        """
        self.measured = timings(self.store, strict=self.limit is not None)
        return self.measured

    def extract_all(self) -> None:
        """Every index in full; those that can't be are left out."""
        self.launcher.more = {}
        self._extract([entry.index for entry in self.plan.entries])

    def extract_wave(self, wave: Wave, left: dict[int, tuple[str, ...]]) -> None:
        """What is left to extract of a wave, said before it begins.

        Raises:
            UsageError: it was asked for by an earlier call, and all that may be paid has been.
        """
        self.pairs.refresh()
        reasons = {visit.key: visit.reason for visit in wave.visits}
        entries = [self.plan.entry(index) for index in left]
        takes = [self.pairs.missing(entry, left[entry.index]).store_bytes for entry in entries]
        ready = [(entry, self.pairs.ready(entry)) for entry in self.plan.entries]
        regret, done = wave.expected_regret, sum(len(tasks) for _, tasks in ready)
        title = (
            f"wave {wave.number}: {sum(len(tasks) for tasks in left.values())} pairs of "
            f"{len(left)} checkpoints, {gib(sum(takes))}; "
            f"{'nothing is known yet' if regret is None else f'expected regret {regret:.4f}'}; "
            f"{done} of {len(ready) * len(self.pairs.tasks)} pairs are ready, {self._spent(ready)}"
        )
        logger.info("%s", title)
        for entry in entries:
            shown = ", ".join(left[entry.index][:6])
            more = len(left[entry.index]) - 6
            logger.info(
                "  %s on %s%s: %s",
                entry.key,
                shown,
                f" and {more} more" if more > 0 else "",
                reasons[entry.key],
            )
        spent = self.limit is not None and self.spent >= self.limit.seconds
        if spent and (self.remote is None or not self.remote.begun(wave)):
            raise UsageError(
                f"--max-cost: {self.cost()}, and wave {wave.number} isn't extracted to its end; "
                "raise it to go on, or see what is there: 'batchsweep bandit'"
            )
        if self.remote is not None:
            self.remote.submit(wave, left)
            return
        self.launcher.more = {i: ("--tasks", ",".join(tasks)) for i, tasks in left.items()}
        self._extract(list(left), title)

    def paid(self) -> PaidTime:
        """What extraction may take in all, and what it took."""
        assert self.limit is not None
        return PaidTime(self.limit.seconds, self.spent)

    @property
    def spent(self) -> float:
        """Seconds that extraction took, at the last look."""
        return sum(one.all_seconds for one in self.measured.values())

    def cost(self) -> str:
        """What was paid, of what may be."""
        assert self.limit is not None
        paid = self.limit.cost(self.spent)
        return f"{paid:.2f} of {self.limit.most:g} paid, at {self.limit.price:g} a GPU hour"

    def _spent(self, ready: Sequence[tuple[PlanEntry, Sequence[str]]]) -> str:
        """Disk and time that extraction took so far, each with its limit where there is one."""
        stored = sum(self.pairs.whole(entry, tasks).store_bytes for entry, tasks in ready if tasks)
        budget = self.config.bandit.budget
        disk = hours = ""
        if isinstance(budget, PullBudget):
            disk = f" of {gib(budget.bytes)}" if budget.bytes is not None else ""
            if budget.gpu_hours is not None:
                hours = f" of {duration(3600 * budget.gpu_hours)}"
        said = f"{gib(stored)}{disk} and {duration(self.spent)}{hours} of extraction are spent"
        return said if self.limit is None else f"{said}, {self.cost()}"

    def _extract(self, indexes: list[int], title: str = "") -> None:
        with stop_on_signals(self.grace) as stop:
            try:
                IndexedJob(
                    self.launcher,
                    indexes,
                    self.workers,
                    logs_folder(self.config),
                    names=names(self.plan),
                    title=title,
                    may_fail=len(indexes),
                ).run(stop)
            except IndexFailed as error:
                # Each is noted in the store; the search goes on with what is there.
                logger.warning("%s", error)
