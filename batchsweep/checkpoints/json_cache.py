"""Small JSON files that remember what was asked or computed before, beside the Hub's cache.

A cache can always be deleted; one that is damaged or can't be written counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: What the files hold; a number that changes with their meaning.
_FORMAT = 1


class JsonCache:
    """A mapping of text to JSON values in one file; usable from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._values = self._read()
        self._new: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """What is remembered; None if nothing is."""
        with self._lock:
            return self._values.get(key)

    def set(self, key: str, value: Any) -> None:
        """Remember a value until :meth:`save` and beyond."""
        with self._lock:
            self._values[key] = self._new[key] = value

    def save(self) -> None:
        """Add what is new to the file; what other processes wrote meanwhile stays."""
        with self._lock:
            if not self._new:
                return
            values = {**self._read(), **self._new}
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(
                    "w", dir=self.path.parent, suffix=".tmp", delete=False, encoding="utf-8"
                ) as file:
                    json.dump({"format": _FORMAT, "values": values}, file)
                Path(file.name).replace(self.path)
            except OSError as error:
                logger.debug("%s: not remembered: %s", self.path, error)
                return
            self._new = {}

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.debug("%s: cache not readable, taken as empty: %s", self.path, error)
            return {}
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            return {}
        values = stored.get("values")
        return values if isinstance(values, dict) else {}


def cache_file(*parts: str) -> Path:
    """The file for a subject, such as ("hub", endpoint, repo): its name shows the last part."""
    from huggingface_hub import constants

    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    name = f"{parts[-1].replace('/', '--')}-{digest}.json" if len(parts) > 1 else f"{parts[0]}.json"
    return Path(constants.HF_HOME) / "batchsweep" / name
