"""What an index did so far, in numbers: for its last log line, and for Prometheus.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from batchsweep.errors import UsageError

logger = logging.getLogger(__name__)

Phase = Literal["load", "blocks", "metrics"]


@dataclass
class Figures:
    """The work of one index in this process; what was sealed before doesn't count."""

    checkpoint: str
    """The key of its group."""
    started: float = 0.0
    """Seconds that the process took to start, of its first index."""
    texts: int = 0
    """Texts in sealed blocks."""
    tokens: int = 0
    """Tokens in them, padding not counted."""
    blocks: int = 0
    """Blocks sealed."""
    bytes: int = 0
    """Embeddings in them, before compression."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """``load``: weights fetched, checked, loaded. ``blocks``: from there to the last seal.
    ``metrics``: the label-free ones. Phases that ended."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def sealed(self, *, texts: int, tokens: int, size: int) -> None:
        """Count a block; from whichever thread wrote it."""
        with self._lock:
            self.texts += texts
            self.tokens += tokens
            self.blocks += 1
            self.bytes += size

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Take the time of a phase, also of one that is broken off."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rates are of the phase ``blocks``."""
        working = self.seconds.get("blocks", 0.0)
        return {
            "checkpoint": self.checkpoint,
            "texts": self.texts,
            "tokens": self.tokens,
            "blocks": self.blocks,
            "bytes": self.bytes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "texts_per_second": round(self.texts / working, 1) if working else 0.0,
            "tokens_per_second": round(self.tokens / working, 1) if working else 0.0,
        }


_COUNTERS = {
    "texts": "Texts in the blocks sealed by this process.",
    "tokens": "Tokens in the blocks sealed by this process, padding not counted.",
    "blocks": "Blocks sealed by this process.",
    "bytes": "Embeddings sealed by this process, in bytes before compression.",
}


def prometheus_text(figures: Sequence[Figures]) -> str:
    """All figures as counters; rates are for Prometheus to take (``rate(...[5m])``)."""
    lines = []
    for name, text in _COUNTERS.items():
        lines += [
            f"# HELP batchsweep_{name}_total {text}",
            f"# TYPE batchsweep_{name}_total counter",
        ]
        lines += [
            f'batchsweep_{name}_total{{checkpoint="{_escaped(f.checkpoint)}"}} {getattr(f, name)}'
            for f in figures
        ]
    lines += [
        "# HELP batchsweep_phase_seconds_total Seconds by phase, of phases that ended.",
        "# TYPE batchsweep_phase_seconds_total counter",
    ]
    lines += [
        f'batchsweep_phase_seconds_total{{checkpoint="{_escaped(f.checkpoint)}",phase="{phase}"}} '
        f"{seconds:.3f}"
        for f in figures
        for phase, seconds in dict(f.seconds).items()
    ]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@contextmanager
def served(figures: Sequence[Figures], port: int | None) -> Iterator[int | None]:
    """Show figures at ``http://<this machine>:<port>/metrics`` while something runs.

    Args:
        figures: may grow meanwhile.
        port: 0: any that is free; None: nothing is served.

    Yields:
        The port.

    Raises:
        UsageError: the port can't be had.
    """
    if port is None:
        yield None
        return
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.partition("?")[0] == "/metrics"
            body = prometheus_text(figures).encode() if known else b"see /metrics\n"
            self.send_response(200 if known else 404)
            kind = "text/plain; version=0.0.4; charset=utf-8" if known else "text/plain"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--metrics-port {port}: {error}; give another") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
