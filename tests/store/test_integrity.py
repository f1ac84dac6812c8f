"""Damage is found and named; repair takes away no more than it must; what is killed goes on."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_data import KEY, OTHER, block, make_again, spec, states, tree, write_corpus, write_group

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.store import Fault, Store, create_store, open_store, repair, verify

GROUP = f"checkpoints/{KEY}"
FORMATS = ("zarr", "hdf5")

#: Of the long campaign, for each format.
KILLS = int(os.environ.get("TORTURE_KILLS", "300"))


def made(path: Path, format: str = "zarr") -> Store:
    """A store with a corpus, two complete groups and some documents."""
    store = create_store(path, format=format)
    digest = write_corpus(store)
    for key in (KEY, OTHER):
        of = spec()
        write_group(store, key, spec(provenance={**of.provenance, "corpus_digest": digest}))
    store.write_json("plan.json", {"entries": [1, 2]})
    store.write_json("scores/a.json", {"score": 0.71})
    return store


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One store of each format that no test changes."""
    folder = tmp_path_factory.mktemp("pristine")
    paths = {"zarr": folder / "s.zarr", "hdf5": folder / "s.h5"}
    for format, path in paths.items():
        made(path, format)
    return paths


@pytest.fixture(params=["zarr", "hdf5"])
def path(request: pytest.FixtureRequest, pristine: dict[str, Path], tmp_path: Path) -> Path:
    source = pristine[request.param]
    return Path(shutil.copytree(source, tmp_path / source.name))


def what_is_left(store: Store) -> list[Fault]:
    """Faults after a repair; that there is no corpus lasts until ``prepare`` makes it again."""
    return [fault for fault in verify(store) if fault.kind != "no corpus"]


def format_of(path: Path) -> str:
    return "hdf5" if path.suffix == ".h5" else "zarr"


def flip(path: Path, at: int) -> None:
    stored = bytearray(path.read_bytes())
    stored[at] ^= 0x10
    path.write_bytes(stored)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lead(path: Path) -> int:
    """Where the first chunk of a shard begins."""
    return 1536 if format_of(path) == "hdf5" else 0


# What is done to a store of either format, and what verify must say.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit in a chunk": (
        lambda p: flip(p / GROUP / "mean/c.0.1.0", lead(p) + 3300),
        r"step1000: block 1: .*mean/c\.0\.1\.0, layer 2: checksum differs",
    ),
    "flipped bit in a shard's index": (
        lambda p: flip(p / GROUP / "mean/c.0.1.0", -10),
        r"block 1: .*mean/c\.0\.1\.0: index: checksum differs",
    ),
    "torn shard": (lambda p: cut(p / GROUP / "last/c.0.0.0"), "block 0: its bytes are missing or"),
    "deleted shard": (lambda p: (p / GROUP / "last/c.0.2.0").unlink(), "block 2: its bytes are mi"),
    "shard of another block": (
        lambda p: shutil.copy(p / GROUP / "mean/c.0.0.0", p / GROUP / "mean/c.0.1.0"),
        "block 1: its bytes are not the ones that were sealed",
    ),
    "flipped bit in a seal": (
        lambda p: flip(p / GROUP / "seals/c.1.0", 40),
        "block 1: its seal is",
    ),
    "deleted seal": (
        lambda p: (p / GROUP / "seals/c.1.0").unlink(),
        "block 1: its seal is missing",
    ),
    "half-written group document": (
        lambda p: cut(p / GROUP / "zarr.json"),
        r"step1000/zarr\.json: torn or changed",
    ),
    "changed provenance": (
        lambda p: (p / GROUP / "zarr.json").write_text(
            (p / GROUP / "zarr.json").read_text().replace('"w"', '"v"', 1)
        ),
        r"step1000/zarr\.json: torn or changed \(its crc32c differs\)",
    ),
    "deleted group document": (
        lambda p: (p / GROUP / "zarr.json").unlink(),
        "step1000 has no attr",
    ),
    "half-written array document": (
        lambda p: cut(p / GROUP / "mean/zarr.json"),
        r"mean/zarr\.json is torn or changed",
    ),
    "changed chunk shape": (
        lambda p: (p / GROUP / "mean/zarr.json").write_text(
            (p / GROUP / "mean/zarr.json").read_text().replace("100", "50")
        ),
        r"mean/zarr\.json is torn or changed",
    ),
    "deleted model document": (
        lambda p: (p / "checkpoints/EleutherAI--pythia-14m/zarr.json").unlink(),
        r"EleutherAI--pythia-14m/zarr\.json is missing",
    ),
    "changed coordinate": (lambda p: flip(p / GROUP / "layer/c.0", 0), r"layer/c\.0 is missing or"),
    "changed metric": (
        lambda p: flip(p / GROUP / "metrics/entropy/c.0", 5),
        "entropy/c.0: checksum",
    ),
    "deleted metric": (lambda p: (p / GROUP / "metrics/lidar/c.0").unlink(), "lidar/c.0: missing"),
    "changed text": (
        lambda p: flip(p / "corpus/text_bytes/c.0", lead(p) + 3),
        "corpus/text_bytes: .*checksum",
    ),
    "deleted tokens": (
        lambda p: shutil.rmtree(p / "corpus/tokens"),
        r"corpus/tokens/gpt-neox%2F20b/ids: .* missing",
    ),
    "torn corpus document": (
        lambda p: cut(p / "corpus/zarr.json"),
        r"corpus/zarr\.json: torn or ch",
    ),
    "torn plan": (lambda p: cut(p / "documents/plan.json"), r"plan\.json is torn or changed"),
    "changed score": (
        lambda p: (p / "documents/scores/a.json").write_text(
            (p / "documents/scores/a.json").read_text().replace("0.71", "0.91")
        ),
        r"scores/a\.json is torn or changed \(its crc32c differs\)",
    ),
}


def other(path: Path, key: str = KEY) -> Path:
    """Another HDF5 store beside this one, with one group of another type."""
    store = create_store(path.parent / "other", format="hdf5")
    write_group(store, key, spec(dtype="float32"))
    return path.parent / "other"


# The same of what HDF5 stores have besides.
HDF5_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed head of a shard": (
        lambda p: flip(p / GROUP / "mean/c.0.1.0", 700),
        r"mean/c\.0\.1\.0: the head of its HDF5 file is changed",
    ),
    "changed head of a text": (
        lambda p: flip(p / "corpus/text_bytes/c.0", 700),
        "corpus/text_bytes: .*checksum",
    ),
    "changed metadata": (
        lambda p: flip(p / GROUP / "checkpoint.h5", 60),
        r"step1000/checkpoint\.h5 is missing, torn or changed",
    ),
    "cut metadata": (
        lambda p: cut(p / GROUP / "checkpoint.h5"),
        r"checkpoint\.h5 is missing, torn",
    ),
    "deleted metadata": (
        lambda p: (p / GROUP / "checkpoint.h5").unlink(),
        r"checkpoint\.h5 is missing, torn",
    ),
    "another checkpoint's metadata": (
        lambda p: shutil.copy(other(p) / GROUP / "checkpoint.h5", p / GROUP),
        r"checkpoint\.h5 is missing, torn",
    ),
    "cut corpus": (lambda p: cut(p / "corpus/corpus.h5"), r"corpus/corpus\.h5: torn or changed"),
    "no link": (
        lambda p: shutil.copy(other(p, "m/step1") / "sweep.h5", p),
        r"sweep\.h5 has no link to .*step1000/checkpoint\.h5",
    ),
}
EVERY_DAMAGE = [
    *(pytest.param(format, *DAMAGE[n], id=f"{format}-{n}") for format in FORMATS for n in DAMAGE),
    *(pytest.param("hdf5", *HDF5_DAMAGE[n], id=f"hdf5-{n}") for n in HDF5_DAMAGE),
]


@pytest.mark.parametrize(("format", "damage", "message"), EVERY_DAMAGE)
def test_damage(
    format: str,
    damage: Callable[[Path], object],
    message: str,
    pristine: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = Path(shutil.copytree(pristine[format], tmp_path / pristine[format].name))
    damage(path)
    store = open_store(path)
    faults = verify(store)
    assert any(re.search(message, f.message) for f in faults), faults
    repair(store, faults)
    assert what_is_left(store) == []
    assert tree(Path(make_again(path, format).url)) == tree(pristine[format])


def test_damage_at_random_places(path: Path, pristine: dict[str, Path]) -> None:
    """Bits flipped, files cut and deleted anywhere: found, repaired, and made again as it was."""
    format = format_of(path)
    chance = random.Random(0)
    whole = tree(pristine[format])
    for _ in range(15):
        victim = path / chance.choice(sorted(name for name, body in whole.items() if body))
        kind = chance.choice(["flip", "cut", "delete"])
        if kind == "flip":
            flip(victim, chance.randrange(victim.stat().st_size))
        elif kind == "cut":
            victim.write_bytes(victim.read_bytes()[: chance.randrange(victim.stat().st_size)])
        else:
            victim.unlink()
        try:
            faults = verify(open_store(path))
        except StoreError:
            faults = []
        else:
            gone = kind == "delete" and victim.suffix == ".json" and victim.name != "zarr.json"
            assert faults or gone or tree(path) == whole, (kind, victim)
        store = open_store(path, repair_root=True)
        repair(store, verify(store))
        assert what_is_left(store) == [], (kind, victim)
        make_again(path, format)
        assert tree(path) == whole, (kind, victim)


def test_repair_leaves_what_is_sound(path: Path) -> None:
    store = open_store(path)
    flip(path / f"{GROUP}/mean/c.0.1.0", lead(path) + 3300)
    faults = verify(store)
    assert [(f.kind, f.key, f.block) for f in faults] == [("block", KEY, 1)]
    with pytest.raises(StoreCorrupt, match="checksum differs"):
        store.reader(KEY).read("mean", 2)
    store.reader(KEY).read("mean", 2, slice(0, 100))
    repair(store, faults)
    assert store.reader(KEY).sealed == {0, 2} and store.reader(OTHER).complete


def test_another_sweep_is_found(path: Path) -> None:
    store = open_store(path)
    wanted = {"config_digest": "d"}
    messages = [f.message for f in verify(store, expected={KEY: wanted})]
    assert len(messages) == 1 and "config_digest is c, not d" in messages[0]
    with store.corpus_writer() as writer:
        writer.add_texts(["other"] * 250)
        writer.finish()
    assert [f.kind for f in verify(store)] == ["group", "group"]


def test_stale_seals_are_found_and_not_used(tmp_path: Path) -> None:
    store = made(tmp_path / "s")
    write_group(store, "m/other", spec(provenance={"weights_digest": "v"}))
    shutil.copy(tmp_path / "s/checkpoints/m/other/seals/c.0.0", tmp_path / "s" / GROUP / "seals")
    assert "block 0: its seal is stale" in verify(store)[0].message
    corpus = store.corpus()
    assert corpus is not None
    of = spec(provenance={**spec().provenance, "corpus_digest": corpus.digest})
    with store.writer(KEY, of) as writer:
        assert writer.sealed == {1, 2}


def test_nan_by_another_writer_is_found(tmp_path: Path) -> None:
    from batchsweep.store.seals import seal_of

    store = create_store(tmp_path / "s")
    of = spec(poolings=("mean",), texts=100)
    values = np.full((100, 16), np.nan, np.float16)
    with store.writer(KEY, of):
        checksums = store.backend.write_array(KEY, of, "mean", 0, [values] * 3)
        store.backend.write_seal(KEY, of, 0, seal_of(KEY, of, 0, [checksums]))
    assert "block 0: mean, layer 1: NaN or infinite" in verify(store)[0].message


def test_a_group_that_is_gone_is_told_from_one_never_begun(path: Path) -> None:
    whole = tree(path)
    shutil.rmtree(path / GROUP)
    store = open_store(path)
    faults = verify(store)
    assert [(f.kind, f.key) for f in faults] == [("group", KEY)]
    assert "is missing" in faults[0].message
    repair(store, faults)
    assert verify(store) == []
    make_again(path, format_of(path))
    assert tree(path) == whole


def test_a_corpus_that_is_gone_is_a_fault_until_it_is_there_again(path: Path) -> None:
    folder = path / "corpus"
    shutil.rmtree(folder)
    store = open_store(path)
    faults = verify(store)
    assert [f.kind for f in faults] == ["no corpus"]
    assert "corpus is missing, whose texts the embeddings are of" in faults[0].message
    assert faults[0].remedy == "'batchsweep prepare' makes it again"
    repair(store, faults)
    assert verify(store) == faults
    make_again(path, format_of(path))
    assert verify(store) == []


def content(path: Path) -> dict[str, object]:
    """What readers see of all files: of a document, its values."""
    found: dict[str, object] = {}
    for name, body in tree(path).items():
        found[name] = json.loads(body) if name.endswith(".json") else body
    return found


def flips(path: Path, times: int, seed: int) -> None:
    """Whatever bit of a store flips, verify finds it, or no reader can see a difference."""
    chance = random.Random(seed)
    whole = content(path)
    files = [path / name for name, body in tree(path).items() if body]
    for _ in range(times):
        file = chance.choice(files)
        stored = file.read_bytes()
        at, bit = chance.randrange(len(stored)), chance.randrange(8)
        file.write_bytes(stored[:at] + bytes([stored[at] ^ 1 << bit]) + stored[at + 1 :])
        try:
            found: object = verify(open_store(path))
        except StoreError as error:
            found = error
        assert found or content(path) == whole, f"{file}: bit {bit} of byte {at}"
        file.write_bytes(stored)


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    flips(path, 60, seed=0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_of_a_partly_filled_group_is_found(format: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", format=format)
    write_corpus(store)
    of = spec()
    values = states(of)
    with store.writer(KEY, of) as writer:
        for number in (0, 2):
            writer.write_block(number, block(values, of.block_rows(number)))
        writer.write_metrics({"entropy": [0.1, 0.2, 0.3]})
    assert verify(store) == []
    flips(tmp_path / "store", 60, seed=2)


@pytest.mark.torture
def test_thousands_of_flipped_bits_are_found(path: Path) -> None:
    flips(path, 10 * KILLS, seed=1)


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *(("zarr", "zarr.json"), ("hdf5", "zarr.json"), ("hdf5", "sweep.h5")),
        ("zarr", "documents/zarr.json"),
    ],
)
def test_a_damaged_root_is_named_and_written_again(
    format: str, name: str, pristine: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(pristine[format], tmp_path / "s"))
    root = path / name
    whole = root.read_bytes()
    cut(root)
    with pytest.raises(StoreCorrupt, match=name):
        open_store(path)
    assert verify(open_store(path, repair_root=True)) == [] and root.read_bytes() == whole
    root.unlink()
    with pytest.raises(StoreError, match=r"no store there|(sweep\.h5|ts/zarr\.json): missing"):
        open_store(path)
    assert open_store(path, repair_root=True).format == format
    assert root.read_bytes() == whole


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    from batchsweep.store.zarr import v3

    (tmp_path / "s/zarr.json").write_bytes(v3.group({"batchsweep_format": 4}))
    with pytest.raises(StoreError, match=r"version 4 is newer than this batchsweep \(version 3\)"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_bytes_depend_on_content_alone(format: str, tmp_path: Path) -> None:
    made(tmp_path / "a", format)
    second = create_store(tmp_path / "b", format=format)
    second.write_json("scores/a.json", {"score": 0.71})
    digest = write_corpus(second)
    of = spec(provenance={**spec().provenance, "corpus_digest": digest})
    for key in (OTHER, KEY):
        with second.writer(key, of) as writer:
            writer.write_block(2, block(states(of), of.block_rows(2)))
        write_group(second, key, of, order=[1, 0])
    second.write_json("plan.json", {"entries": [1, 2]})
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_full_disk_is_said_and_sealed_blocks_stay(format: str, tmp_path: Path) -> None:
    # A limit on the size of files stands for a full disk: the same error from the same call.
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from store_data import KEY, block, spec, states
from batchsweep.store import create_store
from batchsweep.errors import StoreError
store = create_store({str(tmp_path / "s")!r}, format={format!r})
of = spec()
with store.writer(KEY, of) as writer:
    writer.write_block(0, block(states(of), of.block_rows(0)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try:
        writer.write_block(1, block(states(of), of.block_rows(1)))
    except StoreError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no space left for" in run.stdout and "everything sealed is safe" in run.stdout
    store = open_store(tmp_path / "s")
    assert store.reader(KEY).sealed == {0} and verify(store) == []
    write_group(store, KEY, spec())
    assert verify(store) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


WRITER = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from store_data import make_again
print("ready", flush=True)
make_again(pathlib.Path(sys.argv[1]), sys.argv[2])
"""


def campaign(path: Path, whole: dict[str, bytes], format: str, kills: int, seed: int) -> int:
    """Kill the writer at random moments until it was killed ``kills`` times; then let it end.

    Returns how often it was started. Afterwards, and after each kill, nothing sealed is damaged.
    """
    chance = random.Random(seed)
    # How long an undisturbed run takes, counted from "ready", to choose moments from.
    killed = starts = 0
    took = 0.5
    while killed < kills:
        if starts % 8 == 0:
            shutil.rmtree(path, ignore_errors=True)
        starts += 1
        command = [sys.executable, "-c", WRITER, str(path), format]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            begun = time.monotonic()
            try:
                process.wait(chance.uniform(0, took))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            else:
                assert process.returncode == 0
                took = time.monotonic() - begun
                shutil.rmtree(path)
                continue
        if path.exists():
            try:
                store = open_store(path)
            except StoreError as error:
                # Killed before the root was there.
                assert "no store there" in str(error)
                continue
            assert verify(store) == []
    make_again(path, format)
    store = open_store(path)
    assert verify(store) == []
    left = {n for n in tree(path) if n.startswith("documents/tmp/")}
    assert {n: b for n, b in tree(path).items() if n not in left} == whole
    return starts


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_kill_9_at_random_moments(format: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    campaign(tmp_path / "s", tree(pristine[format]), format, kills=5, seed=0)


@pytest.mark.torture
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_kill_9_hundreds_of_times(format: str, pristine: dict[str, Path], tmp_path: Path) -> None:
    campaign(tmp_path / "s", tree(pristine[format]), format, kills=KILLS, seed=1)
