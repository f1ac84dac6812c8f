"""``batchsweep launch local``."""

from __future__ import annotations

from batchsweep.cli.options import ConfigFile, Grace, Indexes, PerGpu
from batchsweep.signals import GRACE


def command(
    config: ConfigFile, indexes: Indexes = None, parallel: PerGpu = None, grace: Grace = GRACE
) -> None:
    """Run all indexes on this machine, as processes.

    Prepares, then extracts: as many indexes at once as there are GPUs, each on
    its own. Ctrl-C stops cleanly; the same command goes on from there.

    example:
      batchsweep launch local --config configs/quick.yaml --parallel 2
    """
    from batchsweep.jobs.launch import local

    print(local(config, indexes=indexes, parallel=parallel, grace=grace))
