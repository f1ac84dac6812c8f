"""A store from a stranger is data: nothing outside it is touched, and memory is bounded."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd
from store_data import KEY, spec, tree, write_corpus, write_group

from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch
from batchsweep.store import Store, convert, create_store, documents, open_store, repair, verify
from batchsweep.store.zarr import v3

GROUP = f"checkpoints/{KEY}"


def made(path: Path, **changes: Any) -> Store:
    store = create_store(path)
    digest = write_corpus(store)
    of = spec()
    of = spec(**{"provenance": {**of.provenance, "corpus_digest": digest}, **changes})
    write_group(store, KEY, of)
    return store


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the attributes in a zarr.json, with a checksum that is right."""
    value = json.loads(path.read_text())
    change(value["attributes"])
    value["attributes"] = documents.with_checksum(value["attributes"])
    path.write_text(json.dumps(value))


def everything(store: Store) -> list[str]:
    """What all readers say of a store; whatever they raise must be a StoreError."""
    said: list[str] = []

    def attempt(function: Callable[[], object]) -> None:
        try:
            function()
        except StoreError as error:
            assert "\n" not in str(error)
            said.append(str(error))

    attempt(store.status)
    attempt(lambda: said.extend(f.message for f in verify(store)))
    attempt(lambda: store.reader(KEY).read(store.reader(KEY).poolings[0], 2))
    attempt(lambda: store.reader(KEY).metrics())
    attempt(lambda: store.corpus().texts())
    return said


def test_a_pooling_is_no_path(tmp_path: Path) -> None:
    """It was: verify --repair and convert then wrote and removed files outside of the store."""
    path = tmp_path / "in/s.zarr"
    made(path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/c.0.0.0").write_text("mine")
    before = tree(tmp_path)
    outward = "../../../../../x"
    for name in ("zarr.json", "seals/zarr.json"):
        rewrite(path / GROUP / name, lambda a: a.update(poolings=[outward, "last"]))
    store = open_store(path)
    with pytest.raises(
        StoreCorrupt, match=r"damaged \(poolings: '\.\./.*' can't be a name in a st"
    ):
        store.reader(KEY)
    with pytest.raises(StoreCorrupt, match="can't be a name"):
        convert(store, create_store(tmp_path / "other"))
    repair(store, verify(store))
    after = tree(tmp_path)
    assert {n: b for n, b in after.items() if n.startswith("x/")} == {"x/c.0.0.0": b"mine"}
    strays = {n.split("/")[0] for n in after.keys() - before.keys()}
    assert strays <= {"in", "other"}
    with pytest.raises(StoreError, match="can't be a name"):
        spec(poolings=("seals",))


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a pooling twice": (GROUP, lambda a: a.update(poolings=["mean", "mean"]), "not distinct"),
    "a hidden pooling": (GROUP, lambda a: a.update(poolings=[".x"]), "'.x' can't be a name"),
    "a pooling of lines": (GROUP, lambda a: a.update(poolings=["a\nb"]), "can't be a name"),
    "true for a size": (GROUP, lambda a: a.update(hidden=True), "hidden: Input should be"),
    "a size as text": (GROUP, lambda a: a.update(texts="250"), "texts: Input should be"),
    "a fraction": (GROUP, lambda a: a.update(block_texts=99.5), "block_texts: Input should"),
    "no layers": (GROUP, lambda a: a.update(layers=[]), "layers must be ascending"),
    "a layer below 0": (GROUP, lambda a: a.update(layers=[-1, 2, 4]), "layers must be ascending"),
    "endless texts": (GROUP, lambda a: a.update(texts=10**15), "texts must be 1 to"),
    "endless vectors": (GROUP, lambda a: a.update(hidden=10**12), "hidden must be 1 to"),
    "endless blocks": (GROUP, lambda a: a.update(texts=10**8, block_texts=1), "blocks, at most"),
    "a large chunk": (
        GROUP,
        lambda a: a.update(hidden=10**5, texts=10**7, block_texts=10**6),
        "2 GiB",
    ),
    "a step in words": (GROUP, lambda a: a["provenance"].update(step="x"), "step isn't a number"),
    "a true step": (GROUP, lambda a: a["provenance"].update(step=True), "step isn't a number"),
    "an endless step": (GROUP, lambda a: a["provenance"].update(step=10**30), "step isn't a num"),
    "a model of numbers": (GROUP, lambda a: a["provenance"].update(model=[1]), "model isn't text"),
    "a NaN": (GROUP, lambda a: a["provenance"].update(x=float("nan")), "not JSON compliant"),
    "text of NUL": (GROUP, lambda a: a["provenance"].update(commit="\0"), "commit has NUL"),
    "half a character": (GROUP, lambda a: a["provenance"].update(x="\ud800"), "Invalid JSON"),
    "endless text": (GROUP, lambda a: a["provenance"].update(x="x" * 10**5), "is longer than"),
    "an endless digest": (GROUP, lambda a: a["provenance"].update(x=2**64), "x is no number of 64"),
    "no provenance": (GROUP, lambda a: a.pop("provenance"), "provenance is missing"),
    "a metric elsewhere": (f"{GROUP}/metrics", lambda a: a.update(names=["../../x"]), "can't be a"),
    "metrics of numbers": (f"{GROUP}/metrics", lambda a: a.update(names=[1]), "no list of names"),
    "a task elsewhere": ("corpus", lambda a: a.update(tasks=[".."]), r"tasks: '\.\.' can't be"),
    "an array elsewhere": (
        "corpus",
        lambda a: a["arrays"].update({"../x": a["arrays"]["digests"]}),
        r"arrays: '\.\./x'",
    ),
    "an array of objects": (
        "corpus",
        lambda a: a["arrays"]["digests"].update(dtype="object"),
        "digests is object",
    ),
    "too many texts": ("corpus", lambda a: a.update(texts=2**40), "texts must be 0 to"),
    "endless bytes": (
        "corpus",
        lambda a: a["arrays"]["text_bytes"].update(shape=[2**60]),
        "chunks of",
    ),
    "chunks of nothing": (
        "corpus",
        lambda a: a["arrays"]["text_bytes"].update(chunk_rows=0),
        "chunks of 0",
    ),
    "true texts": ("corpus", lambda a: a.update(texts=True), "texts: Input should be"),
    "no digest": ("corpus", lambda a: a.pop("digest"), "digest: "),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "s.zarr"
    made(path)
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_store_says_is_refused(name: str, path: Path) -> None:
    where, change, message = CHANGES[name]
    rewrite(path / where / "zarr.json", change)
    said = everything(open_store(path))
    assert any(re.search(message, line) for line in said), said
    repair(open_store(path), verify(open_store(path)))


@pytest.mark.parametrize("version", [0, -5, True, "1", 1.0, None, [1]])
def test_versions_count_from_one(version: object, path: Path) -> None:
    rewrite(path / "zarr.json", lambda a: a.update(batchsweep_format=version))
    with pytest.raises(StoreError, match=r"isn't one; versions count from 1|no batchsweep store"):
        open_store(path)
    assert verify(open_store(path, repair_root=True)) == []
    rewrite(path / "zarr.json", lambda a: a.update(batchsweep_format=4))
    with pytest.raises(StoreMismatch, match="version 4 is newer"):
        open_store(path, repair_root=True)


@pytest.mark.parametrize("name", ["documents/plan.json", "zarr.json", f"{GROUP}/zarr.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\udc80", "9" * 5000])
def test_json_that_nobody_wrote(name: str, text: str, path: Path) -> None:
    (path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(StoreCorrupt, match="torn or changed"):
        store = open_store(path)
        store.read_json("plan.json") if name.endswith("plan.json") else store.reader(KEY)


def test_a_frame_of_zstd_takes_no_more_than_its_chunk(tmp_path: Path) -> None:
    store = made(tmp_path / "s.zarr", compression="zstd")
    shard = tmp_path / "s.zarr" / GROUP / "mean/c.0.0.0"
    # 32 KB that make 1 GiB.
    body = b"".join([Zstd(level=3).encode(bytes(1 << 26))] * 16)
    chunk = body + struct.pack("<I", v3.crc32c(body))
    shard.write_bytes(chunk * 3 + v3.shard_index([len(chunk)] * 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = verify(store)
    assert "isn't 3200 bytes compressed by zstd" in faults[0].message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    body = Zstd(level=3).encode(bytes(3000))
    chunk = body + struct.pack("<I", v3.crc32c(body))
    shard.write_bytes(chunk * 3 + v3.shard_index([len(chunk)] * 3))
    assert "isn't 3200 bytes compressed by zstd" in verify(store)[0].message


def test_an_index_of_a_shard_that_points_far_away(tmp_path: Path) -> None:
    store = made(tmp_path / "s.zarr", compression="zstd")
    shard = tmp_path / "s.zarr" / GROUP / "mean/c.0.0.0"
    whole = shard.read_bytes()
    for lengths in ([2**62, 1, 1], [10, 10**12, 10], [0, 0, 0]):
        shard.write_bytes(whole[: -v3.shard_index_bytes(3)] + v3.shard_index(lengths))
        assert "points to what isn't a chunk" in verify(store)[0].message
        with pytest.raises(StoreCorrupt):
            store.reader(KEY).read("mean", 1)


@pytest.mark.parametrize(
    "name",
    [
        f"{GROUP}/mean/c.0.0.0",
        f"{GROUP}/seals/c.0.0",
        "documents/plan.json",
        "zarr.json",
        "corpus/zarr.json",
    ],
)
def test_a_pipe_is_not_waited_for(name: str, path: Path) -> None:
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    code = f"""
from batchsweep.store import open_store
from batchsweep.errors import StoreError
try:
    store = open_store({str(path)!r})
    store.read_json("plan.json"), store.corpus().texts(), store.reader({KEY!r}).read("mean", 1)
except StoreError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"{name} is no regular file" in run.stdout


def test_a_link_to_elsewhere_is_not_followed(path: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    (aside / "mean").mkdir(parents=True)
    shutil.copy(path / GROUP / "mean/c.0.0.0", aside / "mean")
    shutil.rmtree(path / GROUP / "mean")
    (path / GROUP / "mean").symlink_to(aside / "mean")
    (aside / "plan.json").write_text("{}")
    (path / "documents/plan.json").symlink_to(aside / "plan.json")
    (path / "documents/leases").mkdir(exist_ok=True)
    lease = path / "documents/leases" / f"{GROUP.replace('/', '+')}.lock"
    lease.unlink(missing_ok=True)
    lease.symlink_to(aside / "plan.json")
    before = tree(aside)
    store = open_store(path)
    for read in (lambda: store.read_json("plan.json"), lambda: store.reader(KEY).read("mean", 1)):
        with pytest.raises(StoreCorrupt, match="lies outside the store; a store has no links to e"):
            read()
    with pytest.raises(StoreError):
        store.writer(KEY, store.reader(KEY).spec).__enter__()
    with pytest.raises(StoreError):
        repair(store, verify(store))
    assert tree(aside) == before
    with pytest.raises(StoreCorrupt, match="outside the store"):
        store.read_json("../../aside/plan.json")
    with pytest.raises(StoreCorrupt, match="outside the store"):
        store.write_json(f"{tmp_path}/x.json", {})


def test_a_link_within_the_store_is_a_file_like_any_other(path: Path) -> None:
    chunk = path / GROUP / "mean/c.0.0.0"
    chunk.rename(path / "elsewhere")
    chunk.symlink_to(path / "elsewhere")
    assert verify(open_store(path)) == []


def test_offsets_and_rows_that_lead_nowhere(path: Path) -> None:
    def overwrite(name: str, values: np.ndarray) -> None:
        chunk = b"".join(v3.encode_chunk(values, values.shape))
        (path / "corpus" / name / v3.chunk_key(*[0] * values.ndim)).write_bytes(chunk)

    store = open_store(path)
    offsets = np.arange(251, dtype=np.int64)
    overwrite("text_offsets", offsets[::-1].copy())
    overwrite("tasks/STSBenchmark", np.array([0, 1, 2, 250]))
    overwrite("tokens/gpt-neox%2F20b/offsets", offsets * 10**6)
    corpus = store.corpus()
    assert corpus is not None
    with pytest.raises(StoreCorrupt, match="text_offsets don't ascend"):
        corpus.texts([3])
    with pytest.raises(StoreCorrupt, match="the rows of task STSBenchmark aren't rows of texts"):
        corpus.rows_of("STSBenchmark")
    for read in (corpus.tokens, lambda name: corpus.token_ids(name, slice(3, 9))):
        with pytest.raises(StoreCorrupt, match="offsets don't ascend"):
            read("gpt-neox/20b")
    size = json.loads((path / "corpus/zarr.json").read_text())["attributes"]["arrays"]
    overwrite("text_bytes", np.full(size["text_bytes"]["shape"], 0xFF, np.uint8))
    shutil.copy(path / "corpus/text_offsets/c.0", path / "aside")
    good = np.linspace(0, size["text_bytes"]["shape"][0], 251).astype(np.int64)
    overwrite("text_offsets", good)
    with pytest.raises(StoreCorrupt, match="text 1 isn't UTF-8"):
        open_store(path).corpus().texts([1])


def test_memory_is_taken_for_what_is_there(path: Path) -> None:
    def change(attributes: dict[str, Any]) -> None:
        attributes.update(texts=10**7, block_texts=10**5, hidden=5000)

    rewrite(path / GROUP / "zarr.json", change)
    with pytest.raises(StoreCorrupt, match=r"mean/c\.0\..*: missing|isn't what was sealed"):
        open_store(path).reader(KEY).read("mean", 1)
