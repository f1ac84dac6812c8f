"""What goes to standard error: plain lines for people, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

from batchsweep.table import visible


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, message; ``progress``, ``figures`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        for name in ("progress", "figures"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _PlainFormatter(logging.Formatter):
    """The bare message; warnings and errors say so in front."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        # A name may come from anybody: what would move the cursor is shown as its escape.
        text = "\n".join(map(visible, (prefix + record.getMessage()).split("\n")))
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever ``sys.stderr`` is at the time (tests and pagers replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _handler() -> _StderrHandler | None:
    handlers = logging.getLogger("batchsweep").handlers
    return next((h for h in handlers if isinstance(h, _StderrHandler)), None)


def log_format() -> Literal["text", "json"]:
    """The form that the log has now."""
    handler = _handler()
    json_lines = handler is not None and isinstance(handler.formatter, JsonFormatter)
    return "json" if json_lines else "text"


def debugging() -> bool:
    """Whether debug messages are shown, and tracebacks with them."""
    return logging.getLogger("batchsweep").isEnabledFor(logging.DEBUG)


def set_up_logging(*, log_format: Literal["text", "json"] = "text", debug: bool = False) -> None:
    """Send batchsweep's log to standard error, as plain text or as JSON lines."""
    root = logging.getLogger("batchsweep")
    handler = _handler()
    if handler is None:
        handler = _StderrHandler()
        root.addHandler(handler)
    handler.setFormatter(JsonFormatter() if log_format == "json" else _PlainFormatter())
    root.setLevel(logging.DEBUG if debug else logging.INFO)
