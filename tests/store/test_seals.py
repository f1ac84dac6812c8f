"""What is read is what was sealed, at its own place: nothing stands in for anything else."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from store_data import KEY, OTHER, spec, states, write_group

from batchsweep.errors import StoreCorrupt
from batchsweep.store import Store, create_store, repair, verify

MEAN, SEALS = f"checkpoints/{KEY}/mean", f"checkpoints/{KEY}/seals"


@pytest.fixture(params=["zarr", "hdf5"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Two checkpoints of one shape and one origin, with other vectors and metrics."""
    made = create_store(tmp_path / "s", format=request.param)
    for seed, key in enumerate((KEY, OTHER)):
        write_group(made, key, spec(), seed=seed)
    return made


def swap(store: Store, *pairs: tuple[str, str]) -> None:
    """Exchange files or folders of a store."""
    root = Path(store.url)
    for one, other in pairs:
        shutil.move(root / one, root / "aside")
        shutil.move(root / other, root / one)
        shutil.move(root / "aside", root / other)


BLOCKS = (f"{MEAN}/c.0.0.0", f"{MEAN}/c.0.1.0")
SWAPS = {
    "blocks": (BLOCKS,),
    "blocks with their seals": (
        BLOCKS,
        (f"checkpoints/{KEY}/last/c.0.0.0", f"checkpoints/{KEY}/last/c.0.1.0"),
        (f"{SEALS}/c.0.0", f"{SEALS}/c.1.0"),
    ),
    "poolings": ((f"{MEAN}/c.0.0.0", f"checkpoints/{KEY}/last/c.0.0.0"),),
    "checkpoints' blocks": ((f"{MEAN}/c.0.0.0", f"checkpoints/{OTHER}/mean/c.0.0.0"),),
}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("name", SWAPS)
def test_swapped_blocks_are_refused(
    name: str, dtype: str, compression: str, tmp_path: Path
) -> None:
    store = create_store(tmp_path / "s")
    of = spec(dtype=dtype, compression=compression)
    for seed, key in enumerate((KEY, OTHER)):
        write_group(store, key, of, seed=seed)
    swap(store, *SWAPS[name])
    reader = store.reader(KEY)
    with pytest.raises(StoreCorrupt, match=f"{KEY}: block 0 isn't what was sealed there; run 'ba"):
        reader.read("mean", 2, slice(0, 10))
    reader.read("mean", 2, slice(200, 210))
    faults = verify(store)
    assert {(f.kind, f.key) for f in faults} <= {("block", KEY), ("block", OTHER)}
    assert (KEY, 0) in {(f.key, f.block) for f in faults}
    repair(store, faults)
    for seed, key in enumerate((KEY, OTHER)):
        write_group(store, key, of, seed=seed)
    assert verify(store) == []


def test_swapped_checkpoints_are_refused(store: Store) -> None:
    swap(store, (f"checkpoints/{KEY}", f"checkpoints/{OTHER}"))
    with pytest.raises(StoreCorrupt, match="block 0 isn't what was sealed there"):
        store.reader(OTHER).read("mean", 2, [3])
    assert {f.block for f in verify(store) if f.key == KEY} >= {0, 1, 2}


def test_swapped_metrics_are_refused(store: Store) -> None:
    with store.writer(OTHER, spec()) as writer:
        writer.write_metrics({"entropy": [1, 2, 3], "lidar": [4, 5, 6]})
        writer.finish()
    swap(store, (f"checkpoints/{KEY}/metrics/entropy", f"checkpoints/{OTHER}/metrics/entropy"))
    with pytest.raises(StoreCorrupt, match=r"metrics.* aren't the metrics of this checkpoint; run"):
        store.reader(KEY).metrics()
    faults = verify(store)
    assert [(f.kind, f.key) for f in faults] == [("metrics", OTHER), ("metrics", KEY)]
    repair(store, faults)
    assert verify(store) == []


def test_metrics_of_another_origin_are_refused(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s")
    other = dataclasses.replace(spec(), provenance={"weights_digest": "v"})
    for key, of in ((KEY, spec()), (OTHER, other)):
        write_group(store, key, of)
    swap(store, (f"checkpoints/{KEY}/metrics", f"checkpoints/{OTHER}/metrics"))
    with pytest.raises(StoreCorrupt, match="aren't the metrics of this checkpoint"):
        store.reader(KEY).metrics()


def test_a_seal_that_is_gone_is_no_block(store: Store) -> None:
    store.backend.write_seal(KEY, spec(), 1, None)
    reader = store.reader(KEY)
    with pytest.raises(StoreCorrupt, match="block 1 isn't what was sealed there"):
        reader.read("mean", 2)
    first = states(spec())["mean"][1, :100].astype(np.float16)
    np.testing.assert_array_equal(reader.read("mean", 2, slice(0, 100)), first)
