"""What is particular to object stores: leases that expire, and errors of the network."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from store_data import KEY, spec, write_group

from batchsweep.errors import StoreError, TryAgain
from batchsweep.store import create_store, open_store, repair, verify
from batchsweep.store.places import objects

LEASE = f"documents/leases/checkpoints+{KEY.replace('/', '+')}.json"


def test_a_lease_is_taken_over_when_it_is_old(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_store(s3_url)
    other = {"host": "another-pod", "pid": 1, "since": "2026-01-01T00:00:00Z"}
    store.backend.blobs.write(LEASE, [json.dumps(other).encode()])
    with pytest.raises(TryAgain, match="process 1 on another-pod since 2026-01-01"):
        store.writer(KEY, spec()).__enter__()
    monkeypatch.setattr(objects, "LEASE_SECONDS", -1.0)
    with store.writer(KEY, spec()):
        held = json.loads(store.backend.blobs.read(LEASE) or b"")
        assert held["host"] != "another-pod"
    assert store.backend.blobs.read(LEASE) is None


def test_a_held_lease_is_renewed(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RENEW_SECONDS", 0.05)
    store = create_store(s3_url)
    with store.writer(KEY, spec()):
        ids: set[str] = set()
        deadline = datetime.now(UTC).timestamp() + 10
        while len(ids) < 3 and datetime.now(UTC).timestamp() < deadline:
            ids.add(json.loads(store.backend.blobs.read(LEASE) or b"{}")["id"])
        assert len(ids) >= 3


def test_damage_is_repaired(s3_url: str) -> None:
    store = create_store(s3_url)
    write_group(store, KEY, spec())
    blobs = store.backend.blobs
    whole = {p: blobs.read(p) for p in blobs.walk("")}
    shard = f"checkpoints/{KEY}/mean/c.0.1.0"
    changed = bytearray(whole[shard] or b"")
    changed[5] ^= 1
    blobs.write(shard, [bytes(changed)])
    blobs.delete(f"checkpoints/{KEY}/last/c.0.2.0")
    faults = verify(store)
    assert [(f.kind, f.block) for f in faults] == [("block", 1), ("block", 2)]
    repair(store, faults)
    assert verify(store) == []
    write_group(store, KEY, spec())
    assert {p: blobs.read(p) for p in blobs.walk("")} == whole


def test_what_cant_be_reached(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((StoreError, TryAgain), match="no-such-bucket"):
        open_store("s3://no-such-bucket-of-ours/store.zarr")
    with pytest.raises(StoreError, match=r"can't be opened .* valid: a directory, s3://, gs://"):
        open_store("ftp://host/store.zarr")
