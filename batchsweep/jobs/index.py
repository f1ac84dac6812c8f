"""The index of an indexed job, as the scheduler puts it into the environment."""

from __future__ import annotations

from collections.abc import Mapping

from batchsweep.errors import UsageError

#: Environment variable -> who sets it. Both count from 0 in the scripts that batchsweep writes.
INDEX_VARIABLES = {
    "JOB_COMPLETION_INDEX": "a Kubernetes Indexed Job",
    "SLURM_ARRAY_TASK_ID": "a Slurm job array",
}


def index_from_environment(environ: Mapping[str, str]) -> int:
    """The index that Kubernetes or Slurm gave to this process.

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
        if not (value.isascii() and value.isdigit()):
            raise UsageError(f"{name}={value!r} is not an index: it must be a whole number from 0")
    if len({int(value) for value in found.values()}) > 1:
        shown = " but ".join(f"{name}={value}" for name, value in found.items())
        raise UsageError(f"two indexes: {shown}; give --index N")
    return int(next(iter(found.values())))
