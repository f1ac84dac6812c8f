"""A version whose pass rounds otherwise: no group gets the bits of two."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_suite, make_tasks, write_config

import batchsweep.store
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import StoreMismatch
from batchsweep.extract import extract as module
from batchsweep.extract.extract import extract
from batchsweep.numerics import ARITHMETIC
from batchsweep.plan.frozen import frozen_plan
from batchsweep.signals import StopRequest


def test_another_versions_group_is_read_but_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(
        tmp_path / "sweep.yaml",
        models=[str(make_suite(tmp_path / "tiny", ("main",)))],
        tasks=make_tasks(tmp_path / "tasks"),
        metrics={"enabled": False},
        store={"path": str(tmp_path / "store"), "block_texts": 8},
    )
    assert main(["prepare", "--config", str(path)]) == 0
    config = load(path)
    store = batchsweep.store.open_store(config.store_url)
    [entry] = frozen_plan(store, config).entries
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "ARITHMETIC", ARITHMETIC - 1)
        extract(store, config, entry, tasks=["TinySTS"], stop=StopRequest(1))
    assert not store.reader(entry.key).complete
    differs = f"arithmetic is {ARITHMETIC - 1} in the store, {ARITHMETIC} now"
    with pytest.raises(StoreMismatch, match=differs):
        extract(store, config, entry, stop=StopRequest(1))
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "ARITHMETIC", ARITHMETIC - 1)
        extract(store, config, entry, stop=StopRequest(1))
    assert extract(store, config, entry, stop=StopRequest(1)).state == "already sealed"
