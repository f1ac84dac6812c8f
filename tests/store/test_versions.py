"""Stores that older versions wrote stay readable: tests/data is never written again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from batchsweep.errors import StoreError
from batchsweep.store import Fault, convert, create_store, open_store, repair, verify

DATA = Path(__file__).parents[1] / "data"
KEY = "EleutherAI--pythia-14m/step1000"


@pytest.mark.parametrize("name", ["store-v1.zarr", "store-v1.h5", "store-v2-hdf5"])
def test_older_versions(name: str, tmp_path: Path) -> None:
    store = open_store(shutil.copytree(DATA / name, tmp_path / name))
    assert verify(store) == []
    reader = store.reader(KEY)
    assert reader.complete and reader.provenance["step"] == 1000
    values = np.arange(12).reshape(2, 3, 2) / 4
    np.testing.assert_array_equal(reader.read("mean", 2), values[1])
    assert {n: v.tolist() for n, v in reader.metrics().items()} == {"entropy": [0.5, 0.25]}
    corpus = store.corpus()
    assert corpus is not None and corpus.texts() == ["one", "zwei ☃", ""]
    assert corpus.rows_of("STS").tolist() == [0, 2] and corpus.attributes == {"seed": 42}
    assert corpus.tokens("t/1")[0].tolist() == [1, 2, 3]
    assert store.read_json("plan.json") == {"entries": [1]}
    if name == "store-v1.h5":
        # Of this one, the format on disk is no longer written.
        with pytest.raises(StoreError, match=r"'batchsweep convert .*\.h5 NEW --format hdf5'"):
            store.writer(KEY, reader.spec)
        with pytest.raises(StoreError, match="version 1 is read and no longer written"):
            repair(store, [Fault("block", "", key=KEY, block=0)])
        new = create_store(tmp_path / "new", format="hdf5")
        convert(store, new)
        store = new
        np.testing.assert_array_equal(store.reader(KEY).read("mean", 2), values[1])
    # An extraction that an older version began goes on.
    begun = store.reader("EleutherAI--pythia-14m/int8")
    with store.writer(begun.key, begun.spec) as writer:
        assert writer.sealed == {0}
        writer.write_block(1, {"mean": np.ones((2, 1, 2), np.float32)})
        writer.finish()
    assert verify(store) == []
    np.testing.assert_array_equal(begun.read("mean", 1, [0, 1]), np.full((2, 2), 127))
    # It stays what it is, with documents beside the arrays, also where its root is made anew.
    if name != "store-v1.h5":
        store.write_json("scores/a.json", {"score": 1})
        (tmp_path / name / "zarr.json").write_text("{")
        with pytest.raises(StoreError, match="verify --repair"):
            open_store(tmp_path / name)
        again = open_store(tmp_path / name, repair_root=True)
        assert verify(again) == [] and again.documents() == ["plan.json", "scores/a.json"]
        assert again.backend.version() == (1 if name == "store-v1.zarr" else 2)
        assert (tmp_path / name / "scores/a.json").exists()
        assert not (tmp_path / name / "documents").exists()
