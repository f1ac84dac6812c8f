"""The index of an indexed job, as the scheduler puts it into the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from batchsweep.errors import UsageError

#: Environment variable -> who sets it. Both count from 0 in the scripts that batchsweep writes.
INDEX_VARIABLES = {
    "JOB_COMPLETION_INDEX": "a Kubernetes Indexed Job",
    "SLURM_ARRAY_TASK_ID": "a Slurm job array",
    "SKYPILOT_JOB_RANK": "SkyPilot's managed jobs",
}

_INDEX = re.compile("[0-9]{1,6}")


def index_from_environment(environ: Mapping[str, str]) -> int:
    """The index that Kubernetes, Slurm or SkyPilot gave to this process.

    Raises:
        UsageError: when no variable is set, one is not a whole number, or two disagree.

    Example:
        >>> index_from_environment({"JOB_COMPLETION_INDEX": "3"})
        3
    """
    found = {name: environ[name] for name in INDEX_VARIABLES if environ.get(name)}
    if not found:
        known = ", ".join(f"{name} (set by {who})" for name, who in INDEX_VARIABLES.items())
        raise UsageError(
            f"no index: give --index N or --all, or run where one of these is set: {known}"
        )
    for name, value in found.items():
        if not _INDEX.fullmatch(value):
            raise UsageError(
                f"{name}={value[:40]!r} is not an index: it must be a whole number from 0"
            )
    if len({int(value) for value in found.values()}) > 1:
        shown = " but ".join(f"{name}={value}" for name, value in found.items())
        raise UsageError(f"two indexes: {shown}; give --index N")
    return int(next(iter(found.values())))


def parse_indexes(text: str) -> tuple[int, ...]:
    """Indexes from text, ascending, as Kubernetes and Slurm write them.

    Raises:
        UsageError: when the text isn't of that form.

    Example:
        >>> parse_indexes("0,4-6")
        (0, 4, 5, 6)
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(map(_INDEX.fullmatch, ends)) or int(ends[0]) > int(ends[1]):
            raise UsageError(f"indexes are written like 0,4-6, not {text[:40]!r}")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(found))


def format_indexes(indexes: Iterable[int]) -> str:
    """The text that :func:`parse_indexes` reads.

    Example:
        >>> format_indexes([4, 5, 6, 0])
        '0,4-6'
    """
    runs: list[list[int]] = []
    for index in sorted(set(indexes)):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
