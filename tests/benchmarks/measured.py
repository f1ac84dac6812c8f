"""The JSON that every benchmark writes: its figures, with machine, commit, date and command.

A file that has ``columns`` and ``rows`` is a table: copied to ``docs/figures/`` it is one of the
documentation's, where docs/hooks.py shows it. A column is its title and what its cells are:
Python's format of a row's values (``{share:.1%}``; ``{seconds:duration}`` as people read times).
The cells of rows whose value ``bold`` names is true are bold. Each row says which commit made
it, so that rows of several runs can stand in one file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: Where figures go unless the benchmark is told another place.
FOLDER = Path("build/figures")


def column(title: str, show: str, *, bold: str | None = None) -> dict[str, str]:
    """A column of a table."""
    return {"title": title, "show": show} | ({"bold": bold} if bold else {})


def write(path: Path, figures: Mapping[str, object]) -> None:
    """Write figures with what belongs to all of them; a number that is none becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document: Any = _plain({**here(), **figures})
    if isinstance(rows := document.get("rows"), list):
        document["rows"] = [
            {"commit": document["commit"], **row} if isinstance(row, dict) else row for row in rows
        ]
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def here() -> dict[str, object]:
    """What figures are worth nothing without."""
    system = f"{platform.system()} {platform.machine()}"
    return {
        "machine": f"{system}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # Where things lie on this machine is nobody's business.
        "command": " ".join(["python", *(re.sub(r"^/.*/", "", word) for word in sys.argv)]),
    }


def _commit() -> str | None:
    """Of this checkout; None where there is no git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = " with changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def _plain(value: object) -> object:
    """What JSON has a word for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # A number of numpy's.
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
