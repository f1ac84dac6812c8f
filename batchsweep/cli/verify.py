"""``batchsweep verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from batchsweep.cli.options import ConfigFile
from batchsweep.errors import StoreCorrupt


def command(
    config: ConfigFile,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="drop what is damaged, so that extract makes it anew"),
    ] = False,
) -> None:
    """Check the whole store: checksums, seals, digests, NaN; exit 4 names each fault.

    example:
      batchsweep verify --config configs/quick.yaml
      batchsweep verify --config configs/quick.yaml --repair
    """
    from batchsweep.config import load
    from batchsweep.plan.frozen import PLAN_PATH, frozen_plan
    from batchsweep.score.records import misplaced
    from batchsweep.store import integrity, open_store

    sweep = load(config)
    store = open_store(sweep.store_url, repair_root=repair, format=sweep.store.format)
    expected: dict[str, dict[str, str]] = {}
    refused = []
    # A changed config is refused: everything would look stale, and --repair would drop it.
    try:
        plan = frozen_plan(store, sweep, scoring=True)
        expected = {entry.key: entry.origin(sweep) for entry in plan.entries}
    except StoreCorrupt as error:
        refused.append(integrity.Fault("document", str(error), path=PLAN_PATH))
    faults = [*integrity.verify(store, expected=expected), *misplaced(store)]
    known = {fault.path for fault in faults}
    faults += [fault for fault in refused if fault.path not in known]
    for fault in faults:
        print(f"{fault.message}; {fault.remedy}" if repair else fault.message)
    if not faults:
        print(f"{store.url}: no faults")
    elif repair:
        integrity.repair(store, faults)
        print(f"{store.url}: {len(faults)} faults repaired; 'prepare' and 'extract' fill the gaps")
    else:
        raise StoreCorrupt(f"{store.url}: {len(faults)} faults; --repair drops what is damaged")
