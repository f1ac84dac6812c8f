"""What every store must do, whatever its format and place."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_data import KEY, TASKS, TEXTS, block, spec, states, write_corpus, write_group

from batchsweep.arm import Arm
from batchsweep.bandit import ledger
from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch, TryAgain
from batchsweep.score.record import path_of
from batchsweep.score.records import TABLE, score_rows
from batchsweep.store import Store, convert, create_store, digest_of, open_store, verify
from batchsweep.store.values import decode, encode


@pytest.fixture(params=["zarr", "hdf5", pytest.param("zarr-s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "zarr-s3":
        return str(request.getfixturevalue("s3_url"))
    return str(tmp_path / ("store.zarr" if request.param == "zarr" else "store.h5"))


@pytest.fixture
def store(url: str) -> Store:
    return create_store(url, format="hdf5" if url.endswith(".h5") else "zarr")


def test_what_is_written_is_read(store: Store) -> None:
    of = spec(dtype="float32")
    write_group(store, KEY, of)
    reader = open_store(store.url).reader(KEY)
    assert (reader.layers, reader.poolings, reader.texts) == ((1, 2, 4), ("mean", "last"), 250)
    assert reader.complete and reader.sealed == {0, 1, 2} and reader.provenance == of.provenance
    for pooling, values in states(of).items():
        for position, layer in enumerate(of.layers):
            np.testing.assert_array_equal(reader.read(pooling, layer), values[position])
    np.testing.assert_array_equal(reader.metrics()["entropy"], np.arange(3) / 3)
    assert np.isnan(reader.metrics()["lidar"]).all()
    assert store.keys() == [KEY] and verify(store) == []


@pytest.mark.parametrize(
    "rows",
    [slice(90, 210), slice(250), [249, 0, 100, 99, 100], np.arange(150, 160), [], slice(5, 5)],
    ids=str,
)
def test_rows_come_in_the_order_asked(store: Store, rows: Any) -> None:
    of = spec(dtype="float32", poolings=("mean",))
    write_group(store, KEY, of)
    wanted = states(of)["mean"][1][rows if isinstance(rows, slice) else np.array(rows, int)]
    np.testing.assert_array_equal(store.reader(KEY).read("mean", 2, rows), wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_layer_is_read_in_small_pieces(
    store: Store, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = spec(dtype=dtype)
    write_group(store, KEY, of)
    reader = store.reader(KEY)
    rows = [249, 0, 100, 99, 100, 17]
    whole = reader.read("last", 2)
    monkeypatch.setattr("batchsweep.store.format.PIECE_BYTES", 300)
    np.testing.assert_array_equal(reader.read("last", 2), whole)
    np.testing.assert_array_equal(reader.read("last", 2, rows), whole[rows])
    np.testing.assert_array_equal(reader.read("last", 2, slice(37, 205)), whole[37:205])
    if dtype == "int8":
        with pytest.raises(StoreError, match="scales"):
            reader.read_stored("last", 2)
    else:
        stored = reader.read_stored("last", 2, slice(37, 205))
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored, states(of)["last"][1, 37:205].astype(dtype))


def test_the_cast_to_float16_is_that_of_numpy() -> None:
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    # Halfway between neighbours, and one step to either side of it; all of them negative, too.
    ties = (every[1:] + every[:-1]) / 2
    near = [np.nextafter(ties, np.float32(end)) for end in (-1, 1e6)]
    chance = np.random.default_rng(0)
    values = np.concatenate([every, ties, *near, chance.standard_normal(50_000, np.float32)])
    values = np.concatenate([values, -values, values[:1000] * np.float32(1e-30)])[None]
    stored, scale = encode(values, "float16", where="", first_row=0)
    assert scale is None
    np.testing.assert_array_equal(stored.view(np.uint16), values.astype("<f2").view(np.uint16))


def test_the_cast_from_float16_is_that_of_numpy() -> None:
    pytest.importorskip("torch")  # With it, the cast is torch's.
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 16)
    values = np.empty(every.shape, np.float32)
    decode(every, None, values)
    np.testing.assert_array_equal(values, every.astype(np.float32))


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_damage_in_the_middle_of_pieces_is_no_result(
    format: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = spec(dtype=dtype, poolings=("mean",))
    store = create_store(tmp_path / "s", format=format)
    write_group(store, KEY, of)
    monkeypatch.setattr("batchsweep.store.format.PIECE_BYTES", 300)
    first = states(of)["mean"][1, 130].astype(dtype).tobytes()
    (path,) = (p for p in (tmp_path / "s").rglob("*") if p.is_file() and first in p.read_bytes())
    body = bytearray(path.read_bytes())
    body[body.index(first)] ^= 1
    path.write_bytes(body)
    reader = store.reader(KEY)
    with pytest.raises(StoreCorrupt, match=f"{KEY}.*layer 2: checksum differs"):
        reader.read("mean", 2)
    path.write_bytes(body[: body.index(first[1:])])
    with pytest.raises(StoreCorrupt, match=f"{KEY}.*(checksum differs|cut short)"):
        reader.read("mean", 2)


def test_float16_and_int8_lose_no_more_than_they_say(store: Store) -> None:
    values = states(spec())["mean"]
    write_group(store, "m/half", spec())
    np.testing.assert_allclose(store.reader("m/half").read("mean", 1), values[0], rtol=2**-11)
    write_group(store, "m/int8", spec(dtype="int8"))
    read = store.reader("m/int8").read("mean", 1)
    # Half a step of the vector's own scale, for every element.
    assert (np.abs(read - values[0]) <= np.abs(values[0]).max(1, keepdims=True) / 253.9).all()
    assert verify(store) == []


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 65520.0, "last, layer 2, row 117: 65520 doesn't fit float16"),
        ("float16", np.inf, "last, layer 2, row 117: the model gave inf"),
        ("float32", np.nan, "last, layer 2, row 117: the model gave nan"),
        ("int8", 1e6, "last, layer 2, row 117: int8 would change"),
    ],
)
def test_a_value_that_cant_be_held_is_refused(
    store: Store, dtype: str, value: float, message: str
) -> None:
    of = spec(dtype=dtype)
    values = states(of)
    with store.writer(KEY, of) as writer:
        writer.write_block(0, block(values, of.block_rows(0)))
        values["last"][1, 117, 3] = value
        with pytest.raises(StoreError, match=message):
            writer.write_block(1, block(values, of.block_rows(1)))
        assert writer.sealed == {0}
    assert store.reader(KEY).sealed == {0} and verify(store) == []


def test_float16_holds_up_to_its_largest_value(store: Store) -> None:
    of = spec(layers=(1,), poolings=("mean",), texts=2, hidden=2)
    with store.writer(KEY, of) as writer:
        writer.write_block(0, {"mean": np.array([[[65504.0, -65519.0], [0, 1]]], np.float32)})
        writer.finish()
    assert store.reader(KEY).read("mean", 1)[0].tolist() == [65504.0, -65504.0]


def test_a_run_goes_on_where_the_last_one_ended(store: Store) -> None:
    of = spec()
    values = states(of)
    with store.writer(KEY, of) as writer:
        writer.write_block(1, block(values, of.block_rows(1)))
        with pytest.raises(StoreError, match="blocks 0, 2 aren't sealed"):
            writer.finish()
    reader = store.reader(KEY)
    assert not reader.complete and reader.sealed == {1}
    np.testing.assert_allclose(
        reader.read("mean", 1, slice(100, 200)), values["mean"][0, 100:200], rtol=1e-3
    )
    with pytest.raises(StoreError, match="blocks 0, 2 aren't there yet"):
        reader.read("mean", 1)
    assert [(s.sealed, s.blocks, s.complete) for s in store.status()] == [(1, 3, False)]
    with store.writer(KEY, of) as writer:
        assert writer.sealed == {1}
    write_group(store, KEY, of)
    assert [(s.sealed, s.blocks, s.complete) for s in store.status()] == [(3, 3, True)]


def test_another_sweeps_group_is_refused_by_name(store: Store) -> None:
    of = spec()
    write_group(store, KEY, of)
    other = dataclasses.replace(
        of, layers=(1, 2), provenance={**of.provenance, "weights_digest": "v"}
    )
    message = (
        r"layers is \[1, 2, 4\] in the store, \[1, 2\] now; "
        r'weights_digest is "w" in the store, "v" now'
    )
    with pytest.raises(StoreMismatch, match=message), store.writer(KEY, other):
        pass
    # Newer libraries are no other sweep.
    newer = dataclasses.replace(of, provenance={**of.provenance, "versions": {"torch": "3"}})
    with store.writer(KEY, newer) as writer:
        assert writer.sealed == {0, 1, 2}


def test_a_group_that_a_kill_left_half_made_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.backend, "write_attributes", killed)
        with pytest.raises(KeyboardInterrupt), store.writer("m/half", spec()):
            pass
    write_group(store, KEY, spec())
    assert store.backend.keys() == [KEY, "m/half"]
    assert store.keys() == [KEY] == [status.key for status in store.status()]
    assert verify(store) == []
    convert(store, create_store(tmp_path / "copy"))
    assert open_store(tmp_path / "copy").keys() == [KEY]


def test_one_writer_a_group(store: Store) -> None:
    with store.writer(KEY, spec()):
        with pytest.raises(TryAgain, match=r"is being written by process \d+ on .* since 20"):
            store.writer(KEY, spec()).__enter__()
        with store.writer("EleutherAI--pythia-14m/main", spec()):
            pass
    with store.writer(KEY, spec()):
        pass


def test_the_lease_of_a_killed_process_is_free(store: Store) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from store_data import KEY, spec
from batchsweep.store import open_store
with open_store({store.url!r}).writer(KEY, spec()):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with store.writer(KEY, spec()) as writer:
        assert writer.sealed == frozenset()


def test_wrong_blocks_are_refused(store: Store) -> None:
    of = spec()
    values = states(of)
    with store.writer(KEY, of) as writer:
        with pytest.raises(StoreError, match=r"block 2 of mean is \(3, 100, 16\), must be \(3, 50"):
            writer.write_block(2, block(values, slice(0, 100)))
        with pytest.raises(StoreError, match=r"has poolings \['mean'\]"):
            writer.write_block(0, {"mean": values["mean"][:, :100]})
        with pytest.raises(StoreError, match="block 3 doesn't exist; valid: 0 to 2"):
            writer.write_block(3, block(values, slice(0, 100)))
        with pytest.raises(StoreError, match="metric x is"):
            writer.write_metrics({"x": [1, 2]})


def test_what_isnt_there_is_named_with_what_is(store: Store) -> None:
    with pytest.raises(StoreError, match="no checkpoint m/x; there are 0: run 'batchsweep ext"):
        store.reader("m/x")
    write_group(store, KEY, spec())
    with pytest.raises(StoreError, match=f"there are 1, for example {KEY}"):
        store.reader("m/x")
    reader = store.reader(KEY)
    with pytest.raises(StoreError, match="no layer 3; valid: 1, 2, 4"):
        reader.read("mean", 3)
    with pytest.raises(StoreError, match="no pooling 'max'; valid: mean, last"):
        reader.read("max", 1)
    with pytest.raises(StoreError, match="rows must be 0 to 249"):
        reader.read("mean", 1, [250])
    with pytest.raises(StoreError, match="isn't a checkpoint key"):
        store.reader("../m")


def test_corpus(store: Store) -> None:
    assert store.corpus() is None
    digest = write_corpus(store)
    corpus = open_store(store.url).corpus()
    assert corpus is not None
    assert corpus.n_texts == 250 and corpus.digest == digest
    assert corpus.attributes == {"max_texts_per_task": 250}
    assert corpus.texts() == TEXTS
    assert corpus.texts([249, 1, 1, 0]) == [TEXTS[249], TEXTS[1], TEXTS[1], TEXTS[0]]
    assert corpus.texts(slice(2, 4)) == TEXTS[2:4]
    assert [d.tobytes() for d in corpus.digests()] == [digest_of(t) for t in TEXTS]
    assert corpus.tasks() == list(TASKS)
    assert {task: corpus.rows_of(task).tolist() for task in TASKS} == TASKS
    ids, offsets = corpus.tokens("gpt-neox/20b")
    assert bytes(ids[offsets[1] : offsets[2]].astype(np.uint8)).decode() == TEXTS[1]
    assert ids.dtype == np.int32 and len(offsets) == 251
    with pytest.raises(StoreError, match="no task 'x'; valid: STSBenchmark, Bank/77:en, empty"):
        corpus.rows_of("x")
    assert verify(store) == []


def test_a_corpus_longer_than_its_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchsweep.store.zarr.corpus.CHUNK_BYTES", 1000)
    monkeypatch.setattr("batchsweep.store.corpus.READ_BYTES", 700)
    texts = [f"text {n} " * (n % 17) for n in range(500)]
    with store.corpus_writer() as writer:
        for start in range(0, 500, 37):
            writer.add_texts(texts[start : start + 37])
        writer.add_task("t", np.arange(0, 500, 3))
        writer.finish()
    corpus = store.corpus()
    assert corpus is not None and corpus.texts() == texts
    rows = np.random.default_rng(0).permutation(500)
    assert corpus.texts(rows) == [texts[row] for row in rows]
    assert corpus.rows_of("t").tolist() == list(range(0, 500, 3))
    assert corpus.verify() == []


def test_a_corpus_that_isnt_finished_isnt_there(store: Store) -> None:
    with pytest.raises(RuntimeError), store.corpus_writer() as writer:
        writer.add_texts(TEXTS)
        raise RuntimeError
    assert store.corpus() is None
    digest = write_corpus(store)
    with pytest.raises(StoreError, match="tokens of t are for 1 texts, there are 2"):  # noqa: SIM117
        with store.corpus_writer() as writer:
            writer.add_texts(["a", "b"])
            writer.add_tokens("t", [[1]])
            writer.finish()
    assert store.corpus() is None
    assert write_corpus(store) == digest


def test_documents(store: Store) -> None:
    assert store.read_json("plan.json") is None and store.list_json("scores") == []
    value = {"b": [1, 2.5, None], "a": "ü"}
    store.write_json("plan.json", value)
    store.write_json("scores/m/step1/b.json", {"x": 1})
    store.write_json("scores/a.json", [1])
    again = open_store(store.url)
    assert again.read_json("plan.json") == value and again.read_json("scores/a.json") == [1]
    assert again.list_json("scores") == ["scores/a.json", "scores/m/step1/b.json"]
    store.write_json("plan.json", {"c": 1})
    assert again.read_json("plan.json") == {"c": 1}
    store.backend.blobs.write("documents/plan.json", [b'{"c": 2, "crc32c": "00000000"}\n'])
    with pytest.raises(StoreCorrupt, match=r"plan\.json is torn or changed"):
        again.read_json("plan.json")


def test_opening(store: Store, tmp_path: Path) -> None:
    assert create_store(store.url, format=store.format).format == store.format
    other = "zarr" if store.format == "hdf5" else "hdf5"
    if "://" not in store.url:
        with pytest.raises(StoreError, match=f"is a store of format {store.format}, not {other}"):
            create_store(store.url, format=other)
    with pytest.raises(StoreError, match="no store there; 'batchsweep prepare' makes one"):
        open_store(store.url + "-not")
    with pytest.raises(StoreError, match=r"store\.format 'csv' isn't known; valid: zarr, hdf5"):
        create_store(tmp_path / "x", format="csv")


def test_specs_that_cant_be(store: Store) -> None:
    with pytest.raises(StoreError, match="valid: float16, float32, int8; float32 holds bfloat16"):
        spec(dtype="bfloat16")
    with pytest.raises(StoreError, match="layers must be ascending"):
        spec(layers=(2, 1))
    with pytest.raises(StoreError, match="valid: none, zstd"):
        spec(compression="gzip")


def test_zstd(store: Store) -> None:
    of = spec(compression="zstd")
    if store.format == "hdf5":
        with pytest.raises(StoreError, match="isn't there with hdf5; valid: none"):
            store.writer(KEY, of).__enter__()
        return
    write_group(store, KEY, of)
    write_group(store, "m/plain", spec())
    np.testing.assert_array_equal(
        store.reader(KEY).read("last", 4), store.reader("m/plain").read("last", 4)
    )
    assert verify(store) == []


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_some_rows_of_one_arm_read_their_chunks_alone(format: str, tmp_path: Path) -> None:
    of = spec(layers=tuple(range(1, 9)), poolings=("mean",), texts=4000, hidden=64, block_texts=500)
    store = create_store(tmp_path / "s", format=format)
    values = states(of)
    with store.writer(KEY, of) as writer:
        for number in range(of.blocks):
            writer.write_block(number, block(values, of.block_rows(number)))
        writer.finish()
    reader = store.reader(KEY)
    reader.read("mean", 1, [0])  # What is read once for a group.

    def read_so_far() -> int:
        return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])

    before = read_so_far()
    rows = np.arange(1010, 1300)
    found = reader.read("mean", 3, rows)
    chunk = 500 * 64 * 2
    assert chunk <= read_so_far() - before < chunk + 4096
    np.testing.assert_array_equal(found, values["mean"][2, rows].astype(np.float16))


def test_a_stamp_is_of_one_content_at_one_place(store: Store) -> None:
    """What a row of a derived table rests on, on every place."""
    for path, value in {"scores/a/b.json": {"x": 1}, "scores/c.json": {"x": 2}}.items():
        store.write_json(path, value)
    store.write_json("other/d.json", {"x": 1})
    before = store.stamps("scores")
    assert sorted(before) == ["scores/a/b.json", "scores/c.json"]
    assert open_store(store.url).stamps("scores") == before
    store.write_json("scores/c.json", {"x": 3})  # as many bytes
    after = store.stamps("scores")
    assert after["scores/a/b.json"] == before["scores/a/b.json"]
    assert after["scores/c.json"] != before["scores/c.json"]
    store.delete_json("scores/c.json")
    assert sorted(store.stamps("scores")) == ["scores/a/b.json"]
    assert store.stamps("nothing") == {} and store.read_bytes("nothing") is None


def test_a_ledger_and_a_table_of_scores_on_every_place(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SEGMENT", 4)
    writer = ledger.StoreLedger(store, "one")
    entries: list[dict[str, Any]] = [
        {"kind": "header"},
        *({"kind": "search", "n": n} for n in range(9)),
    ]
    for entry in entries:
        writer.append(entry)
    again = open_store(store.url)
    assert ledger.StoreLedger(again, "one").records() == entries
    assert len(again.list_json("bandit/one/pulls")) == 2 + 2
    for layer in (1, 2):
        record = {"main_score": layer / 10, "seconds": 1.0, "task": "T", "layer": layer}
        where = path_of(Arm(KEY, layer, "mean"), "T")
        store.write_json(where, {**record, "pooling": "mean"})
    rows = score_rows(store)
    assert rows["score"].tolist() == [0.1, 0.2] and again.read_bytes(TABLE) is not None
    assert score_rows(again).equals(rows)
    store.write_json(where, {**record, "pooling": "mean", "main_score": 0.7})
    assert score_rows(again)["score"].tolist() == [0.1, 0.7]
    assert verify(again) == []
