"""Which (model, checkpoint, layer) gives the best text embeddings, at a fraction of the cost.

``batchsweep.open("runs/x/store.zarr")`` reopens a store for offline analysis.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `batchsweep --help` loads neither zarr nor pandas.
    if name == "open":
        from batchsweep.sweep import open as open_sweep

        return open_sweep
    raise AttributeError(f"module 'batchsweep' has no attribute {name!r}")
