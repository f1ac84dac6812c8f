"""Whatever a store says, it ends in an answer or in one line with its exit code."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile import bounded, changed, damaged, refused, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_store import plan_of
from store_data import KEY, OTHER, spec, tree, write_corpus, write_group

import batchsweep
from batchsweep.extract.status import index_statuses
from batchsweep.plan.frozen import load_plan
from batchsweep.store import (
    Corpus,
    Store,
    convert,
    create_store,
    documents,
    open_store,
    repair,
    verify,
)
from batchsweep.store.pairs import ready_tasks
from batchsweep.store.zarr import v3

FORMATS = ("zarr", "hdf5")
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where syncing is free, if there is such a place: no test here is about disks."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def stores(folder: Path) -> dict[str, Path]:
    """Small whole stores: damaged for each example, and put back after it."""
    for format in FORMATS:
        store = create_store(folder / format, format=format)
        of: dict[str, Any] = {"texts": 250, "hidden": 4, "block_texts": 200}
        of["provenance"] = {**spec().provenance, "corpus_digest": write_corpus(store)}
        write_group(store, KEY, spec(**of, dtype="int8", poolings=("mean",)), seed=1)
        compression = "zstd" if format == "zarr" else "none"
        write_group(store, OTHER, spec(**of, compression=compression, poolings=("last",)))
        store.write_json("plan.json", plan_of().to_json())
        store.write_json(f"outcomes/{KEY}.json", {"state": "failed", "message": "x"})
    return {format: folder / format for format in FORMATS}


def everything(path: Path) -> None:
    """Read all that there is, as all commands and the Python view do."""
    opened: list[Store] = []
    if refused(lambda: opened.append(open_store(path))):
        return
    (store,) = opened
    refused(store.status)
    refused(lambda: [store.read_json(name) for name in store.documents()])
    refused(lambda: index_statuses(store, load_plan(store)))
    refused(lambda: ready_tasks(store))
    refused(lambda: verify(store))
    for key in (KEY, OTHER):
        refused(partial(_group, store, key))
    refused(lambda: _corpus(store))
    refused(lambda: batchsweep.open(path).arms)


def repaired_and_converted(path: Path) -> None:
    """A copy of it, which is written to: the rest of its folder stays as it was."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        copied = Path(shutil.copytree(path, Path(scratch) / "a/copy"))
        converted = Path(scratch) / "a/converted"
        refused(lambda: convert(open_store(copied), create_store(converted)))
        refused(lambda: repair(open_store(copied), verify(open_store(copied))))
        assert {p.name for p in copied.parent.iterdir()} <= {"copy", "converted"}
        assert [p.name for p in Path(scratch).iterdir()] == ["a"]


def _group(store: Store, key: str) -> None:
    reader = store.reader(key)
    refused(reader.metrics)
    for pooling in reader.poolings:
        for layer in reader.layers[:3]:
            refused(partial(reader.read, pooling, layer))
            refused(partial(reader.read_stored, pooling, layer, [0]))


def _task_texts(corpus: Corpus, task: str) -> None:
    corpus.texts(corpus.rows_of(task))


def _corpus(store: Store) -> None:
    corpus = store.corpus()
    if corpus is None:
        return
    refused(corpus.texts)
    refused(corpus.digests)
    for task in corpus.tasks():
        refused(partial(_task_texts, corpus, task))
    for tokenizer in corpus.tokenizers():
        refused(partial(corpus.tokens, tokenizer))
        refused(partial(corpus.token_counts, tokenizer))
        refused(partial(corpus.token_ids, tokenizer, slice(1, 3)))


def _put(path: Path, body: bytes, store: Path, *, repaired: bool = False) -> None:
    """Everything, with this file's bytes replaced."""
    whole = path.read_bytes()
    beside = sorted(store.parent.iterdir())
    path.write_bytes(body)
    try:
        with bounded():
            everything(store)
            if repaired:
                repaired_and_converted(store)
    finally:
        path.write_bytes(whole)
    assert sorted(store.parent.iterdir()) == beside


def _attributes(path: Path) -> Any:
    value = json.loads(path.read_bytes())
    own = value["attributes"] if path.name == "zarr.json" else value
    own.pop("crc32c", None)
    return own


@fuzzed
@given(data=st.data())
def test_documents_with_a_right_checksum(stores: dict[str, Path], data: st.DataObject) -> None:
    store = stores[data.draw(st.sampled_from(FORMATS))]
    name = data.draw(
        st.sampled_from(
            [
                *("documents/plan.json", "zarr.json", "corpus/zarr.json"),
                f"documents/outcomes/{KEY}.json",
                *(f"checkpoints/{key}/zarr.json" for key in (KEY, OTHER)),
                f"checkpoints/{KEY}/metrics/zarr.json",
                f"checkpoints/{KEY}/seals/zarr.json",
            ]
        )
    )
    new = data.draw(changed(_attributes(store / name)))
    new = documents.with_checksum(new) if isinstance(new, dict) else new
    if name.endswith("zarr.json"):
        new = {**json.loads((store / name).read_bytes()), "attributes": new}
    _put(store / name, json.dumps(new).encode(), store, repaired=data.draw(st.integers(0, 5)) == 0)


@fuzzed
@given(data=st.data())
def test_any_file_of_any_bytes(stores: dict[str, Path], data: st.DataObject) -> None:
    store = stores[data.draw(st.sampled_from(FORMATS))]
    names = sorted(name for name, body in tree(store).items() if body)
    path = store / data.draw(st.sampled_from(names))
    _put(path, data.draw(damaged(path.read_bytes())), store)


@fuzzed
@given(data=st.data())
def test_chunks_and_indexes_with_a_right_checksum(
    stores: dict[str, Path], data: st.DataObject
) -> None:
    store = stores["zarr"]
    kind = data.draw(st.sampled_from(["shard", "chunk"]))
    if kind == "shard":
        path = store / f"checkpoints/{OTHER}/last/c.0.0.0"
        numbers = st.one_of(st.integers(0, 5000), st.sampled_from([2**32, 2**63, 2**64 - 1]))
        entries = data.draw(st.lists(numbers, min_size=6, max_size=6))
        index = struct.pack("<6Q", *entries)
        frames = path.read_bytes()[: -v3.shard_index_bytes(3)]
        if data.draw(st.booleans()):
            frames = data.draw(damaged(frames))[:-4]
            frames += struct.pack("<I", v3.crc32c(frames))
            index = struct.pack("<6Q", *(0, len(frames)) * 3)
        body = frames + index + struct.pack("<I", v3.crc32c(index))
    else:
        chunks = [p for p in (store / "corpus").rglob("c.*") if p.stat().st_size > 4]
        path = data.draw(st.sampled_from(sorted(chunks)))
        body = data.draw(damaged(path.read_bytes()[:-4]))
        body += struct.pack("<I", v3.crc32c(body))
    _put(path, body, store)


@fuzzed
@given(value=values)
def test_keys(stores: dict[str, Path], value: object) -> None:
    store = open_store(stores["zarr"])
    if isinstance(value, str):
        assert refused(lambda: store.reader(value)) is not None
        refused(lambda: store.read_json(f"{value}.json"))
