"""Progress of long work: a bar on a terminal, plain lines elsewhere, JSON lines on request.

All of it goes to standard error, so that standard output stays clean for tables and JSON.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from batchsweep.log import log_format

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger(__name__)

#: Seconds between two plain lines of one piece of work.
PLAIN_INTERVAL = 10.0


class Bar:
    """One piece of work of a known size. ``advance(n)`` says that n more units are done."""

    def __init__(self, what: str, *, total: int, unit: str, live: Progress | None) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self._start = self._last_line = time.monotonic()
        self._live = live
        self._task: TaskID | None = None
        if live is not None:
            self._task = live.add_task(what, total=total, unit=unit)

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def advance(self, n: int = 1) -> None:
        """So many units more are done."""
        self.done += n
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=n)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL and self.done < self.total:
            self._last_line = now
            self._line()

    def close(self) -> None:
        """The closing plain line: said only of work that took long enough to wonder about."""
        if self._live is None and time.monotonic() - self._start >= PLAIN_INTERVAL:
            self._line()

    def _line(self) -> None:
        rate = self.rate
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        logger.info(
            "%s: %d/%d %s (%.0f %%), %.1f %s/s, %s left",
            self.what,
            self.done,
            self.total,
            self.unit,
            100 * self.done / max(self.total, 1),
            rate,
            self.unit,
            duration(left),
            extra={
                "progress": {
                    "what": self.what,
                    "done": self.done,
                    "total": self.total,
                    "unit": self.unit,
                    "rate": round(rate, 3),
                    "seconds_left": None if left == float("inf") else round(left, 1),
                }
            },
        )


@contextmanager
def progress(what: str, *, total: int, unit: str) -> Iterator[Bar]:
    """Show the progress of ``total`` units of work while the block runs.

    Example:
        >>> with progress("extract", total=2, unit="texts") as bar:
        ...     bar.advance(2)
    """
    if log_format() == "json" or not sys.stderr.isatty():
        bar = Bar(what, total=total, unit=unit, live=None)
        try:
            yield bar
        finally:
            bar.close()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(TextColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {task.fields['unit']}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        RateColumn(""),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        yield Bar(what, total=total, unit=unit, live=live)


def duration(seconds: float) -> str:
    """Seconds as people read them: ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``19 days 4 h``."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"
