"""Whether a store is on this machine, which its path or URL says."""

from __future__ import annotations

from pathlib import Path


def local_path(url: str) -> Path | None:
    """Where a store is on this machine; None of one at a URL that others can reach.

    Example:
        >>> local_path("runs/x/store.zarr"), local_path("s3://bucket/store.zarr")
        (PosixPath('runs/x/store.zarr'), None)
    """
    path = url.removeprefix("file://")
    return None if "://" in path else Path(path)
