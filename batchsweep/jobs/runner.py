"""The indexed job on one machine: slots, retries by exit code, kept logs, a live table.

How a worker is started (a process, a container) is the launcher's; everything else is here.
"""

from __future__ import annotations

import heapq
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from batchsweep.errors import BatchsweepError, IndexFailed, Terminated, UsageError
from batchsweep.jobs.exit_rules import RETRIES, action_of, max_failed_indexes, retry_delay
from batchsweep.jobs.follow_worker import Worker, follow_worker
from batchsweep.jobs.index import format_indexes
from batchsweep.progress import duration
from batchsweep.signals import StopRequest
from batchsweep.table import visible

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "stopped"]

#: Seconds between two looks at the store for the table.
STORE_INTERVAL = 2.0


class Launcher(Protocol):
    """Starts workers."""

    def start(self, index: int, slot: int) -> Worker:
        """Start the extraction of one index, on the slot's GPU if there are any."""


@dataclass
class _Index:
    number: int
    state: State = "waiting"
    slot: int = -1
    retries: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    """Running time of its attempts that have ended."""
    started: float = 0.0
    worker: Worker | None = field(default=None, repr=False)

    def running_seconds(self) -> float:
        return self.seconds + (time.monotonic() - self.started if self.state == "running" else 0)


def run_once(worker: Worker, *, what: str, log: Path, stop: StopRequest) -> None:
    """See one worker through to its end, its output shown and kept.

    Raises:
        BatchsweepError: it ended badly; the error's exit code is the worker's.
        Terminated: ``stop`` was asked.
    """
    exits: list[int] = []

    def follow() -> None:
        exits.append(follow_worker(worker, log, lambda x: _say(f"[{what}] {x}")))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    told = False
    while thread.is_alive():
        thread.join(0.2)
        if stop.asked and not told:
            worker.stop()
            told = True
        if stop.asked and stop.seconds_left < 0:
            worker.kill()
    if stop.asked:
        raise Terminated(f"{stop.name}: stopped during {what}; the same command goes on from there")
    if exits[0] != 0:
        error = BatchsweepError(f"{what} exited {exits[0]}; see {log}")
        error.exit_code = exits[0]
        raise error


@dataclass
class IndexedJob:
    """Extracts indexes, as many at once as there are slots; each appears once."""

    launcher: Launcher
    """Starts a worker for an index."""
    numbers: Sequence[int]
    """The indexes."""
    parallel: int
    """Number of slots."""
    logs: Path
    """Folder that gets ``extract-<index>.log``, appended to by every attempt."""
    names: Mapping[int, str] = field(default_factory=dict)
    """What the table calls an index: its checkpoint."""
    sealed: Callable[[], Mapping[int, str]] | None = None
    """How far each index is, for the table."""
    title: str = ""
    """A line above the table: what these indexes are for."""
    may_fail: int | None = None
    """How many may fail before the others are given up; None: as the rule says."""
    retries: int = RETRIES
    """Per index, for exit codes that may pass."""
    delay: Callable[[int], float] = retry_delay
    """Seconds before the n-th retry."""

    def __post_init__(self) -> None:
        rule = max_failed_indexes(len(self.numbers))
        self.most = rule if self.may_fail is None else self.may_fail
        self.indexes = {i: _Index(i) for i in self.numbers}
        self.free = list(range(min(self.parallel, len(self.indexes))))
        # (when it may start, index), so that a waiting retry never holds a slot.
        self.waiting = [(0.0, i) for i in sorted(self.indexes)]
        self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self.view = _View(self)

    def run(self, stop: StopRequest) -> dict[int, float]:
        """Returns when all are done: index -> seconds that its processes ran.

        Args:
            stop: once it is asked to, the workers get SIGTERM and then the grace period.

        Raises:
            UsageError: a worker exited 2; the others were stopped.
            IndexFailed: some indexes failed; the message names them and their logs.
            Terminated: ``stop`` was asked; the same call goes on.
        """
        broken: int | None = None
        try:
            with self.view.live():
                while (self.waiting or self._in_state("running")) and not stop.asked:
                    self._start_what_can()
                    ended = self._next_end()
                    if ended is not None:
                        broken = self._end(*ended)
                    if broken is not None or len(self._in_state("failed")) > self.most:
                        break
        finally:
            # Also when starting a worker raised: nothing is left running.
            self._stop_all(stop.grace)
        self._raise_outcome(stop, broken)
        return {number: index.seconds for number, index in self.indexes.items()}

    def _in_state(self, state: State) -> list[_Index]:
        return [x for x in self.indexes.values() if x.state == state]

    def _start_what_can(self) -> None:
        while self.free and self.waiting and self.waiting[0][0] <= time.monotonic():
            _, number = heapq.heappop(self.waiting)
            index = self.indexes[number]
            index.slot = self.free.pop(0)
            index.worker = self.launcher.start(number, index.slot)
            index.state, index.started = "running", time.monotonic()
            threading.Thread(target=self._follow, args=(number, index.worker), daemon=True).start()

    def _follow(self, number: int, worker: Worker) -> None:
        """In a thread of its own: keep and show a worker's output, then report its end."""
        log = self.logs / f"extract-{number}.log"
        code = follow_worker(worker, log, partial(self.view.line, number))
        self.ended.put((number, code))

    def _next_end(self) -> tuple[int, int] | None:
        self.view.refresh()
        try:
            return self.ended.get(timeout=0.2)
        except queue.Empty:
            return None

    def _end(self, number: int, exit_code: int) -> int | None:
        """Book a worker's end; the exit code if it fails the whole job."""
        index = self.indexes[number]
        index.seconds = index.running_seconds()
        index.exit_code, index.worker = exit_code, None
        self.free.append(index.slot)
        self.free.sort()
        action = action_of(exit_code)
        if action == "done":
            index.state = "done"
        elif action == "fail job":
            index.state = "failed"
            return exit_code
        elif action == "go on":
            self._again(index, self.delay(1))
        elif action == "retry" and index.retries < self.retries:
            index.retries += 1
            self._again(index, self.delay(index.retries))
        else:
            index.state = "failed"
        ended = f"index {number}: {index.state} after {duration(index.seconds)}"
        logger.log(
            logging.INFO if exit_code == 0 else logging.WARNING,
            "%s%s",
            ended,
            "" if exit_code == 0 else f" (exit {exit_code}; {self.logs}/extract-{number}.log)",
        )
        return None

    def _again(self, index: _Index, seconds: float) -> None:
        index.state = "waiting"
        heapq.heappush(self.waiting, (time.monotonic() + seconds, index.number))

    def _stop_all(self, grace: float) -> None:
        running = [x for x in self._in_state("running") if x.worker is not None]
        if not running:
            return
        logger.info("stopping %d workers; each seals its open block", len(running))
        for index in running:
            assert index.worker is not None
            index.worker.stop()
        until = time.monotonic() + grace
        left = {x.number for x in running}
        while left:
            try:
                number, code = self.ended.get(timeout=max(0.05, until - time.monotonic()))
            except queue.Empty:
                for number in left:
                    worker = self.indexes[number].worker
                    assert worker is not None
                    worker.kill()
                # They report their end like any other.
                until = time.monotonic() + 10
                continue
            left.discard(number)
            index = self.indexes[number]
            index.state, index.exit_code = ("done" if code == 0 else "stopped"), code

    def _raise_outcome(self, stop: StopRequest, broken: int | None) -> None:
        failed = self._in_state("failed")
        if broken is not None:
            first = next(x for x in failed if x.exit_code == broken)
            raise UsageError(
                f"index {first.number} exited {broken}: wrong usage or config, so no index can "
                f"succeed; see {self.logs}/extract-{first.number}.log"
            )
        open_ones = self._in_state("waiting") + self._in_state("stopped")
        if stop.asked:
            raise Terminated(
                f"{stop.name}: {len(self._in_state('done'))} of {len(self.indexes)} indexes done; "
                "the same command goes on from there"
            )
        if failed:
            listed = ", ".join(f"{x.number} (exit {x.exit_code})" for x in failed)
            dropped = (
                f"; {len(open_ones)} more were not tried any further, because more than "
                f"{self.most} failed"
                if open_ones
                else ""
            )
            again = "the same command tries again"
            if self.may_fail is None:
                numbers = format_indexes(x.number for x in failed)
                again += f", --indexes {numbers} only these"
            raise IndexFailed(
                f"{len(failed)} of {len(self.indexes)} indexes failed: {listed}{dropped}. See "
                f"{self.logs}/extract-{failed[0].number}.log; {again}"
            )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class _View:
    """The live table on a terminal; elsewhere only the workers' lines, with their index."""

    def __init__(self, run: IndexedJob) -> None:
        self._run = run
        self._live: Live | None = None
        self._blocks: Mapping[int, str] = {}
        self._asked = 0.0

    @contextmanager
    def live(self) -> Iterator[None]:
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), auto_refresh=False) as self._live:
            yield
        self._live = None

    def line(self, number: int, line: str) -> None:
        text = f"[{number}] {line}"
        live = self._live
        if live is not None:
            live.console.print(text, markup=False, highlight=False)
        else:
            _say(text)

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        if self._run.sealed is not None and time.monotonic() - self._asked > STORE_INTERVAL:
            self._blocks, self._asked = self._run.sealed(), time.monotonic()
        table = Table(
            *("index", "checkpoint", "state", "blocks", "retries", "time", "last exit"),
            title=Text(visible(self._run.title)) if self._run.title else None,
        )
        for number, index in self._run.indexes.items():
            table.add_row(
                str(number),
                Text(visible(self._run.names.get(number, ""))),
                index.state + (f" on {index.slot}" if index.state == "running" else ""),
                self._blocks.get(number, ""),
                str(index.retries or ""),
                duration(index.running_seconds()),
                "" if index.exit_code is None else str(index.exit_code),
            )
        return table
