"""A folder of MTEB's results as files: mteb's own, and what ``batchsweep export`` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchsweep.errors import UsageError

#: Beside the results of a model: what they are of.
META = "model_meta.json"
#: No result has as many bytes.
_MOST = 128 << 20


def mteb_results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file with scores below a folder, in the order of their paths, and its content.

    Raises:
        UsageError: a file can't be read.
    """
    for file in sorted(folder.rglob("*.json")):
        if file.name != META and "scores" in (content := read_result(file)):
            yield file, content


def read_result(file: Path) -> dict[str, Any]:
    """The object in a file; empty where it holds anything else.

    Raises:
        UsageError: it can't be read.
    """
    try:
        # What else has such a name would be waited for, or have no end.
        if not file.is_file():
            raise ValueError("it is no file")
        if file.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST >> 20} MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: can't be read as a result of MTEB: {error}") from None
    return content if isinstance(content, dict) else {}
