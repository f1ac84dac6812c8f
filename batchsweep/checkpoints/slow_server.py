"""A floor under the speed of downloads: a server that only trickles is one to try again later.

A client's own time-out starts anew with every byte that arrives, so that one byte a minute would
keep an index, and its GPU, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

#: Seconds over which the speed is measured, and the bytes that must arrive in each such time.
WINDOW = 30.0
LEAST = 512 << 10


def refuse_trickles() -> None:
    """Hold every answer that huggingface_hub gets over HTTP in this process to the floor.

    One that is slower ends as if it had timed out. huggingface_hub then asks five times more for
    the rest of the file, each time over a connection that may be better.
    """
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _hold_to_floor not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _hold_to_floor]}


def _hold_to_floor(response: Any) -> None:
    # Of whichever HTTP client huggingface_hub is built on.
    http: Any = import_module(type(response).__module__.partition(".")[0])

    class Floored(http.SyncByteStream):  # type: ignore[misc]
        """The pieces of another stream, as long as they come fast enough."""

        def __init__(self, pieces: Any) -> None:
            self._pieces = pieces

        def __iter__(self) -> Iterator[bytes]:
            begun, arrived = time.monotonic(), 0
            for piece in self._pieces:
                yield piece
                arrived += len(piece)
                passed = time.monotonic() - begun
                if passed >= WINDOW:
                    if arrived * WINDOW < LEAST * passed:
                        raise http.ReadTimeout(f"only {arrived:,} bytes in {passed:.1f} s")
                    begun, arrived = time.monotonic(), 0

        def close(self) -> None:
            self._pieces.close()

    response.stream = Floored(response.stream)
