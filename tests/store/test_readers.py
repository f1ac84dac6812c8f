"""A store is read without batchsweep: by zarr, xarray, tensorstore, h5py and a JSON parser."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from store_data import KEY, TASKS, TEXTS, spec, states, write_corpus, write_group

from batchsweep.store import create_store, open_store


@pytest.fixture(params=["none", "zstd"])
def zarr_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    store = create_store(tmp_path / "s.zarr")
    write_corpus(store)
    write_group(store, KEY, spec(dtype="float32", compression=request.param))
    return tmp_path / "s.zarr"


def test_zarr(zarr_store: Path) -> None:
    root: Any = zarr.open_group(zarr_store, mode="r")
    assert root.attrs["batchsweep_format"] == 3
    group = root[f"checkpoints/{KEY}"]
    assert group.attrs["provenance"]["step"] == 1000 and group.attrs["complete"] is True
    for pooling, values in states(spec()).items():
        array = group[pooling]
        assert array.metadata.dimension_names == ("layer", "text", "hidden")
        assert array.chunks == (1, 100, 16) and array.shards == (3, 100, 16)
        np.testing.assert_array_equal(array[:], values)
    corpus = root["corpus"]
    offsets, joined = corpus["text_offsets"][:], corpus["text_bytes"][:].tobytes()
    assert [joined[a:b].decode() for a, b in itertools.pairwise(offsets)] == TEXTS
    assert corpus["tasks"]["STSBenchmark"][:].tolist() == TASKS["STSBenchmark"]
    np.testing.assert_array_equal(group["metrics/entropy"][:], np.arange(3) / 3)


def test_zarr_finds_a_changed_chunk(zarr_store: Path) -> None:
    shard = zarr_store / f"checkpoints/{KEY}/mean/c.0.1.0"
    stored = bytearray(shard.read_bytes())
    stored[100] ^= 1
    shard.write_bytes(stored)
    root: Any = zarr.open_group(zarr_store, mode="r")
    with pytest.raises(ValueError, match="checksum"):
        root[f"checkpoints/{KEY}/mean"][0, 100:200]


def test_zarr_shows_blocks_that_arent_there_as_nan(tmp_path: Path) -> None:
    of = spec(poolings=("mean",))
    with create_store(tmp_path / "s").writer(KEY, of) as writer:
        writer.write_block(1, {"mean": states(of)["mean"][:, 100:200]})
    array: Any = zarr.open_group(tmp_path / "s", mode="r")[f"checkpoints/{KEY}/mean"]
    assert np.isnan(array[:, :100]).all() and np.isfinite(array[:, 100:200]).all()


def test_xarray(zarr_store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(zarr_store / f"checkpoints/{KEY}")
        metrics = xarray.open_zarr(zarr_store / f"checkpoints/{KEY}/metrics")
        by_group = xarray.open_zarr(zarr_store, group=f"checkpoints/{KEY}", consolidated=False)
    assert set(data.coords) == {"layer", "text", "step"} and int(data.step) == 1000
    xarray.testing.assert_identical(data, by_group)
    assert data["mean"].dims == ("layer", "text", "hidden")
    one = data["mean"].sel(layer=4, text=[3, 249])
    np.testing.assert_array_equal(one, states(spec())["mean"][2, [3, 249]])
    assert float(metrics["entropy"].sel(layer=2)) == pytest.approx(1 / 3)


def test_the_whole_tree_is_opened_without_a_warning(zarr_store: Path) -> None:
    store = open_store(zarr_store)
    for path in ("plan.json", "scores/a.json", "bandit/x/answer.json", "outcomes/m/r.json"):
        store.write_json(path, {"value": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root: Any = zarr.open_group(zarr_store, mode="r")
        assert {name for name, _ in root.members()} == {"checkpoints", "corpus", "documents"}
        paths = {path for path, _ in root.members(max_depth=None)}
        listed = [name for name, _ in root.arrays()]
        assert "documents" in str(root.tree())
        tree = xarray.open_datatree(zarr_store, engine="zarr", consolidated=False)
    assert listed == ["documents"] and root["documents"].shape == (0,)
    assert f"checkpoints/{KEY}/mean" in paths and "corpus/text_bytes" in paths
    assert {path for path in paths if path.startswith("documents")} == {"documents"}
    assert tree[f"checkpoints/{KEY}"]["last"].shape == (3, 250, 16)
    assert tree["corpus"]["digests"].shape == (250, 16)


def test_texts_are_strings_in_two_lines(zarr_store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = xarray.open_zarr(zarr_store, group="corpus", consolidated=False)
    utf8, ends = corpus["text_bytes"].values.tobytes(), corpus["text_offsets"].values.tolist()
    assert [utf8[start:stop].decode() for start, stop in itertools.pairwise(ends)] == TEXTS


def test_tensorstore(zarr_store: Path) -> None:
    def opened(path: str) -> tensorstore.TensorStore:
        place = {"driver": "file", "path": str(zarr_store / path)}
        return tensorstore.open({"driver": "zarr3", "kvstore": place}).result()

    array = opened(f"checkpoints/{KEY}/last")
    assert array.domain.labels == ("layer", "text", "hidden")
    np.testing.assert_array_equal(array.read().result(), states(spec())["last"])
    assert opened("corpus/digests").shape == (250, 16)
    step = opened(f"checkpoints/{KEY}/step").read().result()
    assert int(step) == 1000


def test_int8_by_hand(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s")
    write_group(store, KEY, spec(dtype="int8"))
    group: Any = zarr.open_group(tmp_path / "s", mode="r")[f"checkpoints/{KEY}"]
    array = group["mean"]
    vectors = array[1] * group[array.attrs["scale"]][1][:, None]
    np.testing.assert_array_equal(vectors, store.reader(KEY).read("mean", 2))


def test_h5py(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.h5", format="hdf5")
    write_corpus(store)
    write_group(store, KEY, spec(dtype="float32"))
    with h5py.File(tmp_path / "s.h5" / "sweep.h5") as file:
        group = file[f"checkpoints/{KEY}"]
        np.testing.assert_array_equal(group["mean"][:], states(spec())["mean"])
        assert [d.label for d in group["mean"].dims] == ["layer", "text", "hidden"]
        assert group["mean"].dims[0][0][:].tolist() == [1, 2, 4]
        assert group.attrs["step"] == 1000 and json.loads(group.attrs["spec"])["hidden"] == 16
        np.testing.assert_array_equal(group["metrics/entropy"][:], np.arange(3) / 3)
        assert file["corpus/tasks/STSBenchmark"][:].tolist() == TASKS["STSBenchmark"]


def test_documents_are_plain_json(tmp_path: Path) -> None:
    create_store(tmp_path / "s").write_json("scores/a.json", {"score": 0.5})
    assert json.loads((tmp_path / "s/documents/scores/a.json").read_text())["score"] == 0.5
