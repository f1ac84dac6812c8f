"""The store against raw sequential writes and reads of the same bytes, on one disk in one run.

    python tests/benchmarks/store.py [--folder DIR] [--texts 16384] [--layers 24] [--hidden 1024]

Raw is the same number of bytes in one file: `write` of 8 MiB pieces and one `fsync`, or `read` of
8 MiB pieces into one new array. Rounds alternate; the median of their ratios is reported, and the
ratio of the fastest of each, which a machine that does other things changes less. "cold": the
kernel's cache of the files is dropped before each read. Checks and checksums are part of what is
timed; so is the cast from float32 to float16 and back, but for `stored form` (writing) and float32
(reading), where both sides move the same bytes and do nothing else with them. torch is loaded, as
in the bandit: it casts float16 to float32. That result has twice the bytes of the raw one's.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measured
import numpy as np
import torch  # noqa: F401

from batchsweep.store import GroupSpec, Store, create_store, open_store

KEY = "EleutherAI--pythia-410m/step1000"
PIECE = 8 << 20
#: What is measured, in the order of the lines that are printed.
FOUND: list[dict[str, object]] = []


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def raw_write(path: Path, data: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), PIECE):
            file.write(data[start : start + PIECE])
        os.fsync(file.fileno())


def raw_read(path: Path, size: int) -> np.ndarray:
    """All bytes in memory, as reading an arm ends with all of its vectors in memory."""
    data = np.empty(size, np.uint8)
    rest = data.data
    with path.open("rb", buffering=0) as file:
        while rest:
            rest = rest[file.readinto(rest[:PIECE]) :]
    return data


def drop_cache(root: Path) -> None:
    for path in root.rglob("*") if root.is_dir() else [root]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def line(what: str, raw: list[float], ours: list[float], size: int) -> None:
    ratio = statistics.median(a / b for a, b in zip(raw, ours, strict=True))
    rates = [size / statistics.median(t) / 1e6 for t in (raw, ours)]
    FOUND.append({"what": what, "raw": rates[0], "store": rates[1], "ratio": ratio})
    print(
        f"{what:48} raw {rates[0]:5.0f} MB/s  store {rates[1]:5.0f} MB/s  ratio {ratio:.2f}, "
        f"of the fastest {min(raw) / min(ours):.2f}"
    )


def throughput(folder: Path, of: GroupSpec, format: str, rounds: int) -> None:
    shape = (len(of.layers), min(of.block_texts, of.texts), of.hidden)
    states = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    stored = states.astype(np.float16)
    data = stored.view(np.uint8).reshape(-1).data
    # The last block may be a part of one.
    rows = [len(range(of.texts)[of.block_rows(block)]) for block in range(of.blocks)]
    size = len(data) // shape[1] * of.texts

    def write_raw() -> None:
        for block, count in enumerate(rows):
            raw_write(folder / f"raw{block}.bin", data[: len(data) // shape[1] * count])

    def write_store(whole: bool) -> Store:
        store = create_store(folder / "store", format=format)
        with store.writer(KEY, of) as writer:
            for block, count in enumerate(rows):
                if whole:
                    writer.write_block(block, {"mean": states[:, :count]})
                else:
                    writer.write_stored(block, {"mean": stored[:, :count]})
            writer.finish()
        return store

    for what, whole in (("write, float32 in", True), ("write, stored form", False)):
        raw, ours = [], []
        for _ in range(rounds):
            raw.append(seconds(write_raw))
            for path in folder.glob("raw*.bin"):
                path.unlink()
            shutil.rmtree(folder / "store", ignore_errors=True)
            ours.append(seconds(partial(write_store, whole)))
        line(f"{format}: {what}", raw, ours, size)

    shutil.rmtree(folder / "store")
    for dtype in ("float32", "float16"):
        reads(folder, dataclasses.replace(of, dtype=dtype), format, states, rounds)


def reads(folder: Path, of: GroupSpec, format: str, states: np.ndarray, rounds: int) -> None:
    store = create_store(folder / "store", format=format)
    with store.writer(KEY, of) as writer:
        for block in range(of.blocks):
            count = len(range(of.texts)[of.block_rows(block)])
            writer.write_block(block, {"mean": states[:, :count]})
        writer.finish()
    reader = store.reader(KEY)
    raw_file = folder / "raw.bin"
    one_layer = of.texts * of.hidden * np.dtype(of.dtype).itemsize
    raw_write(raw_file, memoryview(bytes(one_layer)))
    ways = {of.dtype: reader.read_stored}
    if of.dtype != "float32":
        ways[f"{of.dtype} as float32"] = reader.read
    for (what, read), cold in itertools.product(ways.items(), (True, False)):
        raw, ours = [], []
        for _ in range(rounds):
            if cold:
                drop_cache(raw_file)
                drop_cache(folder / "store")
            else:
                raw_read(raw_file, one_layer)
                read("mean", 1)
            raw.append(seconds(lambda: raw_read(raw_file, one_layer)))
            ours.append(seconds(partial(read, "mean", 1)))
        cache = "cold" if cold else "cached"
        line(f"{format}: read one arm, {what}, {cache}", raw, ours, one_layer)
    size = one_layer * len(of.layers)
    rows = np.arange(max(of.texts // 4, 1))[:1000] + min(100, of.texts // 4)
    before = _read_bytes()
    drop_cache(folder / "store")
    took = seconds(lambda: reader.read("mean", of.layers[-1], rows))
    share = (_read_bytes() - before) / size
    FOUND.append({"what": f"{format}: rows of a task", "seconds": took, "read": share})
    print(
        f"{format}: one task's {len(rows)} rows of one arm in {took * 1e3:.0f} ms, "
        f"reading {share:.1%} of the embeddings"
    )
    shutil.rmtree(folder / "store")
    raw_file.unlink()


def _read_bytes() -> int:
    """Bytes that this process asked the kernel for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def many_checkpoints(folder: Path, format: str, complete: bool) -> None:
    """All 154 checkpoints of three sizes: opening and status."""
    store = create_store(folder / "many", format=format)
    metrics = {f"metric{n}": np.zeros(6) for n in range(12)}
    for model in ("pythia-14m", "pythia-70m", "pythia-410m"):
        for step in range(154):
            of = GroupSpec(
                layers=tuple(range(1, 7)),
                poolings=("mean",),
                texts=80,
                hidden=4,
                block_texts=4,
                provenance={"model": f"EleutherAI/{model}", "step": step, "commit": "0" * 40},
            )
            key = f"EleutherAI--{model}/step{step}"
            if step == 0:
                with store.writer(key, of) as writer:
                    for block in range(of.blocks):
                        rows = of.block_rows(block)
                        shape = (6, rows.stop - rows.start, 4)
                        writer.write_block(block, {"mean": np.zeros(shape, np.float32)})
                    writer.write_metrics(metrics)
                    if complete:
                        writer.finish()
                continue
            first = folder / "many"
            source = first / f"checkpoints/EleutherAI--{model}/step0"
            shutil.copytree(source, first / f"checkpoints/{key}")
    took_open = seconds(lambda: open_store(folder / "many").keys())
    took_status = seconds(lambda: open_store(folder / "many").status())
    groups = open_store(folder / "many").status()
    assert len(groups) == 462 and all(g.sealed == 20 for g in groups), groups[0]
    state = "complete" if complete else "in progress"
    what = f"{format}: 462 checkpoints, {state}"
    FOUND.append({"what": what, "open": took_open, "status": took_status})
    print(f"{what}: open and list {took_open:.2f} s, status {took_status:.2f} s")
    shutil.rmtree(folder / "many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default="build", help="on the disk to measure")
    parser.add_argument("--texts", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "store.json")
    args = parser.parse_args()
    of = GroupSpec(
        layers=tuple(range(1, args.layers + 1)),
        poolings=("mean",),
        texts=args.texts,
        hidden=args.hidden,
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for format in ("zarr", "hdf5"):
            throughput(Path(name), of, format, args.rounds)
        for format in ("zarr", "hdf5"):
            for complete in (True, False):
                many_checkpoints(Path(name), format, complete)
    measured.write(args.json, {"rates": "MB/s", "rows": FOUND})


if __name__ == "__main__":
    main()
