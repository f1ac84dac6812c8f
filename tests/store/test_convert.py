"""Conversion either way, and between places, changes no value."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from store_data import KEY, block, spec, states, tree, write_corpus, write_group

from batchsweep.cli.main import main
from batchsweep.errors import StoreCorrupt, StoreMismatch
from batchsweep.store import Store, convert, create_store, verify


def made(path: Path, format: str = "zarr") -> Store:
    store = create_store(path, format=format)
    write_corpus(store)
    write_group(store, KEY, spec())
    write_group(store, "m/int8", spec(dtype="int8"))
    of = spec(poolings=("last",))
    with store.writer("m/open", of) as writer:
        writer.write_block(1, block(states(of), of.block_rows(1)))
    store.write_json("plan.json", {"entries": []})
    store.write_json("bandit/x/pulls/000000.json", {"arm": "a"})
    return store


def test_there_and_back_is_the_same_store(tmp_path: Path) -> None:
    source = made(tmp_path / "a.zarr")
    between = create_store(tmp_path / "b.h5", format="hdf5")
    convert(source, between)
    assert verify(between) == []
    assert tree(tmp_path / "b.h5") == tree(Path(made(tmp_path / "c.h5", "hdf5").url))
    back = create_store(tmp_path / "d.zarr")
    convert(between, back)
    assert verify(back) == [] and tree(tmp_path / "d.zarr") == tree(tmp_path / "a.zarr")
    assert [(s.key, s.sealed) for s in back.status()] == [(KEY, 3), ("m/int8", 3), ("m/open", 1)]


def test_the_command_says_which_file_h5py_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "a.zarr")
    assert main(["convert", str(tmp_path / "a.zarr"), str(tmp_path / "b")]) == 0
    assert f"open {tmp_path}/b/sweep.h5 with h5py" in capsys.readouterr().out
    with h5py.File(tmp_path / "b/sweep.h5") as file:
        assert file[f"checkpoints/{KEY}/mean"].shape == (3, 250, 16)


@pytest.mark.parametrize("format", [[], ["--format", "hdf5"]])
def test_a_folder_is_not_made_by_the_name_of_a_file(
    format: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "a.zarr")
    assert main(["convert", str(tmp_path / "a.zarr"), str(tmp_path / "b.h5"), *format]) == 2
    assert "h5py opens the file sweep.h5 in it; name the folder" in capsys.readouterr().err
    assert not (tmp_path / "b.h5").exists()


def test_to_an_object_store(tmp_path: Path, s3_url: str) -> None:
    source = made(tmp_path / "a.zarr")
    target = create_store(s3_url)
    convert(source, target)
    assert verify(target) == []
    blobs = target.backend.blobs
    assert {p: blobs.read(p) for p in blobs.walk("")} == tree(tmp_path / "a.zarr")


def test_zstd_is_undone_for_hdf5(tmp_path: Path) -> None:
    source = create_store(tmp_path / "a.zarr")
    write_group(source, KEY, spec(compression="zstd"))
    target = create_store(tmp_path / "b.h5", format="hdf5")
    convert(source, target)
    reader = target.reader(KEY)
    assert reader.spec.compression == "none" and verify(target) == []
    np.testing.assert_array_equal(reader.read("mean", 4), source.reader(KEY).read("mean", 4))


def test_a_second_run_copies_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = made(tmp_path / "a.zarr"), create_store(tmp_path / "b.h5", format="hdf5")
    convert(source, target)
    whole = tree(tmp_path / "b.h5")
    monkeypatch.setattr(target.backend, "write_array", lambda *a: pytest.fail("copied again"))
    convert(source, target)
    assert tree(tmp_path / "b.h5") == whole


def test_damage_isnt_copied(tmp_path: Path) -> None:
    source = made(tmp_path / "a.zarr")
    shard = tmp_path / f"a.zarr/checkpoints/{KEY}/mean/c.0.1.0"
    stored = bytearray(shard.read_bytes())
    stored[0] ^= 1
    shard.write_bytes(stored)
    target = create_store(tmp_path / "b.h5", format="hdf5")
    with pytest.raises(StoreCorrupt, match=r"mean/c\.0\.1\.0, layer 1: checksum differs"):
        convert(source, target)
    assert target.reader(KEY).sealed == {0} and verify(target) == []


def test_another_stores_place_is_refused(tmp_path: Path) -> None:
    source, target = made(tmp_path / "a.zarr"), create_store(tmp_path / "b.zarr")
    with target.corpus_writer() as writer:
        writer.add_texts(["x"])
        writer.finish()
    with pytest.raises(StoreMismatch, match="has another corpus"):
        convert(source, target)


def test_a_folder_by_the_name_of_an_hdf5_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_store(tmp_path / "a.zarr")
    for name in ("b.h5", "b.hdf5"):
        assert main(["convert", str(tmp_path / "a.zarr"), str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "sweep.h5" in said and f"such as {tmp_path / 'b-hdf5'}" in said
        assert not (tmp_path / name).exists()
