"""SIGTERM and SIGINT as a request to stop at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from batchsweep.errors import Terminated

#: Seconds between SIGTERM and kill -9 where nobody says: Kubernetes has 30.
GRACE = 25.0


class StopRequest:
    """Whether someone asked this process to stop, and how much of the grace period is left."""

    def __init__(self, grace: float) -> None:
        #: Seconds between SIGTERM and the kill -9 that follows it.
        self.grace = grace
        self.name = ""
        self._asked_at: float | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked_at is not None

    @property
    def seconds_left(self) -> float:
        """Seconds until the kill; infinity while nobody asked."""
        if self._asked_at is None:
            return float("inf")
        return self._asked_at + self.grace - time.monotonic()

    def check(self) -> None:
        """Leave if someone asked; for safe points between two pieces of work.

        Raises:
            Terminated: someone did.
        """
        if self.asked:
            raise Terminated(f"{self.name}: stopped; the same command goes on from here")

    def receive(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        if self.asked:
            # A second signal means now: everything sealed is safe, so leaving is too.
            os._exit(143)
        self.name = signal.Signals(number).name
        self._asked_at = time.monotonic()


@contextmanager
def stop_on_signals(grace: float) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a :class:`StopRequest` while the block runs.

    Outside the main thread signals can't be handled, and the request is simply never made.
    """
    stop = StopRequest(grace)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, stop.receive) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
