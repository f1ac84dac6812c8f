"""What is particular to HDF5 stores: many at once, full disks, strangers' files, h5py's view."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_data import (
    KEY,
    TASKS,
    TEXTS,
    block,
    spec,
    states,
    tree,
    write_corpus,
    write_group,
)

from batchsweep.errors import StoreCorrupt
from batchsweep.store import Store, create_store, open_store, repair, verify

GROUP = f"checkpoints/{KEY}"
V1 = Path(__file__).parents[1] / "data/store-v1.h5"
PATHS = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"


def made(path: Path) -> Store:
    store = create_store(path, format="hdf5")
    write_corpus(store)
    write_group(store, KEY, spec())
    write_group(store, "m/int8", spec(dtype="int8"))
    return store


def test_h5py_shows_one_tree(tmp_path: Path) -> None:
    store = made(tmp_path / "s")
    with h5py.File(tmp_path / "s/sweep.h5") as file:
        assert file.attrs["batchsweep_format"] == 3
        group = file[f"checkpoints/{KEY}"]
        assert group.attrs["step"] == 1000 and group.attrs["complete"]
        assert json.loads(group.attrs["spec"])["hidden"] == 16
        for pooling, values in states(spec()).items():
            array = group[pooling]
            assert [d.label for d in array.dims] == ["layer", "text", "hidden"]
            assert array.dims[0][0][:].tolist() == [1, 2, 4]
            np.testing.assert_array_equal(array[:], values.astype(np.float16))
            np.testing.assert_array_equal(array[1, 90:210], values[1, 90:210].astype(np.float16))
        np.testing.assert_array_equal(group["metrics/entropy"][:], np.arange(3) / 3)
        corpus = file["corpus"]
        assert corpus["tasks/STSBenchmark"][:].tolist() == TASKS["STSBenchmark"]
        assert corpus["tasks/Bank%2F77%3Aen"][:].tolist() == TASKS["Bank/77:en"]
        assert len(corpus["tasks/empty"]) == 0 and corpus["digests"].shape == (250, 16)
        ends, joined = corpus["text_offsets"][:], corpus["text_bytes"][:].tobytes()
        assert joined[ends[3] : ends[4]].decode() == TEXTS[3]
        small = file["checkpoints/m/int8"]
        vectors = small["mean"][1] * small["mean_scale"][1][:, None]
        np.testing.assert_array_equal(vectors, store.reader("m/int8").read("mean", 2))


def test_each_file_opens_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with h5py.File(tmp_path / "s" / GROUP / "checkpoint.h5") as file:
        np.testing.assert_array_equal(file["mean"][:], states(spec())["mean"].astype(np.float16))
    with h5py.File(tmp_path / "s/corpus/corpus.h5") as file:
        assert file["text_bytes"][:1].tobytes() == b"a"
    with h5py.File(tmp_path / "s" / GROUP / "mean/c.0.1.0") as file:
        rows = file["chunks"][2, : 100 * 16].reshape(100, 16)
        np.testing.assert_array_equal(rows, states(spec())["mean"][2, 100:200].astype(np.float16))


def test_blocks_come_in_any_order_and_show_as_nan_until_then(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", format="hdf5")
    for key, of in ((KEY, spec(poolings=("mean",))), ("m/int8", spec(dtype="int8"))):
        with store.writer(key, of) as writer:
            for number in (2, 0):
                writer.write_block(number, block(states(of), of.block_rows(number)))
    with h5py.File(tmp_path / "s/sweep.h5") as file:
        array = file[f"checkpoints/{KEY}/mean"]
        assert (
            np.isnan(array[:, 100:200]).all() and not file[f"checkpoints/{KEY}"].attrs["complete"]
        )
        np.testing.assert_array_equal(
            array[2, 200:], states(spec())["mean"][2, 200:].astype(np.float16)
        )
        assert not file["checkpoints/m/int8/mean"][:, 100:200].any()
    write_group(store, KEY, spec(poolings=("mean",)))
    write_group(store, "m/int8", spec(dtype="int8"))
    at_once = create_store(tmp_path / "t", format="hdf5")
    write_group(at_once, KEY, spec(poolings=("mean",)))
    write_group(at_once, "m/int8", spec(dtype="int8"))
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_a_file_that_was_killed_before_its_link_is_linked_in_the_end(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", format="hdf5")
    begun = (tmp_path / "s/sweep.h5").read_bytes()
    of = spec()
    with store.writer(KEY, of) as writer:
        writer.write_block(0, block(states(of), of.block_rows(0)))
    (tmp_path / "s/sweep.h5").write_bytes(begun)
    assert verify(open_store(tmp_path / "s")) == []
    write_group(store, KEY, of)
    with h5py.File(tmp_path / "s/sweep.h5") as file:
        assert file[f"checkpoints/{KEY}/mean"].shape == (3, 250, 16)


INDEX = (
    PATHS
    + """
from store_data import spec, write_group
from batchsweep.store import create_store
sys.stdin.readline()
for run in range(int(sys.argv[3])):
    write_group(create_store(f"{sys.argv[1]}/{run}", format="hdf5"), sys.argv[2], spec())
"""
)


def at_once(folder: Path, indexes: int, runs: int) -> None:
    """Each of several processes writes its group of one store after another, all of them new."""
    command = [sys.executable, "-c", INDEX, str(folder)]
    pods = [
        subprocess.Popen([*command, f"m/step{n}", str(runs)], stdin=subprocess.PIPE, text=True)
        for n in range(indexes)
    ]
    for pod in pods:
        assert pod.stdin is not None
        pod.stdin.write("go\n")
        pod.stdin.flush()
    assert [pod.wait() for pod in pods] == [0] * indexes
    for run in range(runs):
        store = open_store(folder / str(run))
        assert verify(store) == [] and all(s.complete for s in store.status())
        with h5py.File(folder / str(run) / "sweep.h5") as file:
            shown = [f"m/{name}" for name, group in file["checkpoints/m"].items() if len(group)]
        assert shown == store.keys() and len(shown) == indexes


def test_five_indexes_at_once(tmp_path: Path) -> None:
    at_once(tmp_path, indexes=5, runs=8)


BEGUN = (
    PATHS
    + """
from store_data import spec
from batchsweep.store import open_store
store = open_store(sys.argv[1])
for step in range(20):
    with store.writer(f"{sys.argv[2]}/step{step}", spec()):
        pass
"""
)


def test_a_store_opens_while_others_begin_groups(tmp_path: Path) -> None:
    # Once, checksum and bytes of sweep.h5 were read from two files of that name: 25 of 562 failed.
    create_store(tmp_path / "s", format="hdf5")
    command = [sys.executable, "-c", BEGUN, str(tmp_path / "s")]
    pods = [subprocess.Popen([*command, model]) for model in ("a", "b")]
    while any(pod.poll() is None for pod in pods):
        open_store(tmp_path / "s")
    assert [pod.returncode for pod in pods] == [0, 0]
    assert len(open_store(tmp_path / "s").keys()) == 40


@pytest.mark.torture
def test_five_indexes_at_once_many_times(tmp_path: Path) -> None:
    at_once(tmp_path, indexes=5, runs=int(os.environ.get("TORTURE_RUNS", "200")))


LIMITS = (100, 700, 1600, 3000, 6000, 9000, 11_000, 60_000)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """What is said where files may have so many bytes, and the folder of those stores.

    A limit on the size of files stands for a full disk: the same error from the same calls.
    """
    folder = tmp_path_factory.mktemp("full")
    code = f"""{PATHS}
import resource
from store_data import KEY, spec, write_corpus, write_group
from batchsweep.errors import StoreFull
from batchsweep.store import create_store
for limit in {LIMITS}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store = create_store({str(folder)!r} + f"/{{limit}}", format="hdf5")
        write_corpus(store)
        write_group(store, KEY, spec(poolings=("mean",)))
        print("written")
    except StoreFull as error:
        print(error, error.exit_code)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder, dict(zip(LIMITS, run.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_full_disk_at_any_file_is_said(limit: int, full: tuple[Path, dict[int, str]]) -> None:
    folder, said = full
    assert ("no space left for" in said[limit] and said[limit].endswith("again 4")) == (
        limit < 60_000
    )
    store = create_store(folder / str(limit), format="hdf5")
    assert verify(store) == []
    if store.corpus() is None:
        write_corpus(store)
    write_group(store, KEY, spec(poolings=("mean",)))
    assert verify(store) == [] and not list((folder / f"{limit}/documents/tmp").iterdir())


def hostile(path: Path, name: str, secret: Path) -> None:
    """Put in place of an array one whose bytes lie in another file."""
    size = secret.stat().st_size
    with h5py.File(path, "r+") as file:
        at = next(n for n in ("chunks", "text_bytes", "mean") if n in file)
        shape = (size,)
        del file[at]
        if name == "external storage":
            file.create_dataset(at, shape, "u1", external=[(str(secret), 0, size)])
        elif name == "virtual data set":
            layout = h5py.VirtualLayout(shape, "u1")
            layout[:] = h5py.VirtualSource(str(secret) + ".h5", "x", shape)
            file.create_virtual_dataset(at, layout)
        elif name == "external link":
            file[at] = h5py.ExternalLink(str(secret) + ".h5", "x")
        elif name == "soft link":
            file[at] = h5py.SoftLink("/other")
        elif name == "object reference":
            file.create_dataset(at, data=[file.ref], dtype=h5py.ref_dtype)
        elif name == "huge shape":
            file.create_dataset(at, (1 << 40,), "u1", chunks=(1 << 10,), fletcher32=True)
        else:
            file.create_dataset(at, data=np.zeros(size, "u1"), compression="gzip")


HOSTILE = [
    "external storage",
    "virtual data set",
    "external link",
    "soft link",
    "object reference",
    "huge shape",
    "compressed",
]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of this machine that no store may show."""
    path = tmp_path / "passwd"
    path.write_text("root:secret")
    with h5py.File(tmp_path / "passwd.h5", "w") as file:
        file["x"] = np.frombuffer(path.read_bytes(), "u1")
    return path


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "file", ["corpus/corpus.h5", "corpus/text_bytes/c.0", f"{GROUP}/mean/c.0.0.0"]
)
def test_a_strangers_arrays_show_no_other_file(
    name: str, file: str, secret: Path, tmp_path: Path
) -> None:
    store = made(tmp_path / "s")
    hostile(tmp_path / "s" / file, name, secret)
    assert any(file in fault.message or "corpus/" in fault.message for fault in verify(store))
    # What is read is what the store's own documents vouch for, or nothing.
    try:
        corpus = open_store(tmp_path / "s").corpus()
        assert corpus is not None and corpus.texts() == TEXTS
        vectors = store.reader(KEY).read_stored("mean", 1)
        np.testing.assert_array_equal(vectors, states(spec())["mean"][0].astype(np.float16))
    except StoreCorrupt as error:
        assert "text_bytes" in str(error) or "isn't what was sealed" in str(error)
        assert "secret" not in str(error)


@pytest.mark.parametrize("file", ["sweep.h5", f"{GROUP}/checkpoint.h5"])
def test_a_strangers_links_are_found_and_not_followed(
    file: str, secret: Path, tmp_path: Path
) -> None:
    store = made(tmp_path / "s")
    whole = (tmp_path / "s" / file).read_bytes()
    with h5py.File(tmp_path / "s" / file, "r+") as there:
        for name in list(there):
            del there[name]
            there[name] = h5py.ExternalLink(str(secret) + ".h5", "/")
    if file == "sweep.h5":
        with pytest.raises(StoreCorrupt, match=r"sweep\.h5: torn or changed"):
            open_store(tmp_path / "s")
    else:
        assert [f.kind for f in verify(store)] == ["metadata"]
    np.testing.assert_array_equal(store.reader(KEY).metrics()["entropy"], np.arange(3) / 3)
    store = open_store(tmp_path / "s", repair_root=True)
    repair(store, verify(store))
    assert verify(store) == [] and (tmp_path / "s" / file).read_bytes() == whole


@pytest.mark.parametrize("name", HOSTILE)
def test_version_1_of_a_stranger(name: str, secret: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(V1, tmp_path / "v1.h5"))
    hostile(path / "corpus/corpus.h5", name, secret)
    hostile(path / "checkpoints/EleutherAI--pythia-14m/step1000.h5", name, secret)
    store = open_store(path)
    corpus = store.corpus()
    assert corpus is not None
    message = "lies in another file|must be uint8|isn't all there"
    with pytest.raises(StoreCorrupt, match=message):
        corpus.texts()
    with pytest.raises(StoreCorrupt, match=message.replace("uint8", "float")):
        store.reader("EleutherAI--pythia-14m/step1000").read("mean", 1)
    assert {fault.kind for fault in verify(store)} == {"corpus", "group"}


ATTEMPTS = """
from batchsweep.errors import StoreError
from batchsweep.store import open_store, verify
for path in sys.argv[1:]:
    print("<>", path, flush=True)
    for attempt in (
        lambda store: store.corpus().texts(),
        lambda store: [store.reader(key).read("mean", 1) for key in store.keys()],
        lambda store: [store.reader(key).metrics() for key in store.keys()],
        lambda store: print([fault.message for fault in verify(store)]),
    ):
        try:
            attempt(open_store(path))
        except (StoreError, AttributeError) as error:
            print(type(error).__name__, error)
"""


KINDS = ("fifo", "link")
FILES = (
    "sweep.h5",
    "corpus/corpus.h5",
    "corpus/text_bytes/c.0",
    f"{GROUP}/checkpoint.h5",
    f"{GROUP}/mean/c.0.1.0",
)
FILES_V1 = (
    "sweep.h5",
    "corpus/corpus.h5",
    "checkpoints/EleutherAI--pythia-14m/step1000.h5",
    "metrics/EleutherAI--pythia-14m/step1000.h5",
)


#: (version, file, kind) -> a store where that file is none of its own, and what was read of it.
Strange = dict[tuple[str, str, str], tuple[Path, str]]


@pytest.fixture(scope="module")
def strange(
    tmp_path_factory: pytest.TempPathFactory,
) -> Strange:
    """All of them read by one process, which would hang if it waited."""
    folder = tmp_path_factory.mktemp("strange")
    with h5py.File(folder / "passwd.h5", "w") as file:
        file["x"] = np.frombuffer(b"root:secret", "u1")
    whole, stores = made(folder / "whole"), {}
    for version, files in (("now", FILES), ("v1", FILES_V1)):
        for number, (name, kind) in enumerate(itertools.product(files, KINDS)):
            path = folder / f"{version}-{number}"
            shutil.copytree(whole.url if version == "now" else V1, path)
            (path / name).unlink()
            if kind == "fifo":
                os.mkfifo(path / name)
            else:
                (path / name).symlink_to(folder / "passwd.h5")
            stores[version, name, kind] = path
    run = subprocess.run(
        [sys.executable, "-c", PATHS + ATTEMPTS, *map(str, stores.values())],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    _, *said = run.stdout.split("<> ")
    assert [text.splitlines()[0] for text in said] == [str(path) for path in stores.values()]
    return {at: (stores[at], text) for at, text in zip(stores, said, strict=True)}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_the_store_is_never_waited_for(
    name: str, kind: str, strange: Strange
) -> None:
    path, said = strange["now", name, kind]
    nothing_outside(kind, said)
    if name.startswith(GROUP):
        # No more than this is made again.
        store = open_store(path)
        wanted = ("metadata", -1) if name.endswith(".h5") else ("block", 1)
        assert [(f.kind, f.block) for f in verify(store)] == [wanted]
        repair(store, verify(store))
        assert verify(store) == []


@pytest.mark.parametrize("name", FILES_V1)
@pytest.mark.parametrize("kind", KINDS)
def test_nor_in_version_1(name: str, kind: str, strange: Strange) -> None:
    nothing_outside(kind, strange["v1", name, kind][1])


def nothing_outside(kind: str, said: str) -> None:
    assert "secret" not in said
    found = "outside the store|no regular file|checkpoint.h5 is missing, torn"
    assert kind == "fifo" or re.search(found, said), said
