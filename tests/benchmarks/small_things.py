"""The small things at scale: scores and reports of thousands of arms, ledgers of long searches.

    python tests/benchmarks/small_things.py FOLDER [--arms 5544] [--scores 20000] [--pulls 200000]

Makes a store of that size in FOLDER (once), then measures each thing in a process of its own:
processor seconds (user and system), and the process's peak memory, imports included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import measured

LAYERS, TASKS, TEXTS = 24, 32, 64


def make(folder: Path, arms: int, scores: int) -> None:
    """A store of models with 24 layers, sealed, with a plan and records of the usual size."""
    import numpy as np

    from batchsweep.checkpoints.checkpoint import Checkpoint
    from batchsweep.checkpoints.shape import Shape
    from batchsweep.plan.plan import Plan, PlanEntry
    from batchsweep.store import GroupSpec, create_store
    from batchsweep.store.documents import encode_checked

    store = create_store(folder / "store.zarr")
    tasks = [f"Task{n:02}" for n in range(TASKS)]
    if store.corpus() is None:
        with store.corpus_writer() as corpus:
            corpus.add_texts([f"text {n}" for n in range(TEXTS)])
            for task in tasks:
                corpus.add_task(task, np.arange(TEXTS))
            corpus.finish({})
    layers = tuple(range(1, LAYERS + 1))
    entries = []
    for number in range(arms // LAYERS):
        model, step = f"org/model-{number // 77}", 1000 * (number % 77)
        checkpoint = Checkpoint(model, f"step{step}", step=step)
        entries.append(PlanEntry(number, checkpoint, layers, Shape(LAYERS, 8, 32, 100)))
        spec = GroupSpec(
            layers=layers,
            poolings=("mean",),
            texts=TEXTS,
            hidden=8,
            provenance={"model": model, "revision": f"step{step}", "step": step},
        )
        if checkpoint.key in store:
            continue
        with store.writer(checkpoint.key, spec) as writer:
            writer.write_block(0, {"mean": np.ones((LAYERS, TEXTS, 8), np.float32)})
            writer.write_metrics({f"metric_{n}": np.arange(LAYERS) / 7 for n in range(6)})
            writer.finish()
    plan = Plan(tuple(entries), ("mean",), {})
    store.write_json("plan.json", plan.to_json())
    digests = {e.key: store.reader(e.key).spec.digest.hex() for e in entries}
    rng = np.random.default_rng(0)
    cells = [(e, layer, task) for e in entries for layer in layers for task in tasks]
    for cell in rng.permutation(len(cells))[:scores]:
        e, layer, task = cells[cell]
        names = ("accuracy", "f1", "f1_weighted", "precision", "recall", "ap", "ap_weighted")
        runs = [dict(zip(names, rng.random(7).tolist(), strict=True)) for _ in range(10)]
        record = {
            "main_score": float(rng.random()),
            "seconds": 1.0,
            "key": e.key,
            "task": task,
            "model": e.checkpoint.model,
            "revision": e.checkpoint.revision,
            "step": e.checkpoint.step,
            "commit": None,
            "layer": layer,
            "pooling": "mean",
            "mteb_version": "2.26.24",
            "dataset_revision": "c0ffee",
            "cap": None,
            "origin": {"record": 1, "group": digests[e.key]},
            "result": {"scores": {"test": [{**runs[0], "scores_per_experiment": runs}]}},
        }
        # As the store writes it, without waiting for the disk.
        path = folder / "store.zarr/documents/scores" / e.key / f"{layer}-mean" / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_checked(record))
    (folder / "made").touch()


def scores(folder: Path) -> None:
    import batchsweep

    assert batchsweep.open(folder / "store.zarr").scores.size >= 5544


def findings(folder: Path) -> None:
    from batchsweep.report.findings import read
    from batchsweep.store import open_store

    assert read(open_store(folder / "store.zarr")).arms


def report(folder: Path) -> None:
    from batchsweep.report.page import write
    from batchsweep.store import open_store

    write(open_store(folder / "store.zarr"), folder / "report", title="at scale")


def _pull(number: int) -> dict[str, object]:
    return {
        "kind": "search",
        "arm": f"org--model-{number % 3}/step{number // 32}#{number % 24}",
        "task": f"Task{number % 32:02}",
        "score": number / 1e6,
        "seconds": 1.0,
        "reason": "the arm that may be best, on the task that tells most of it for its cost",
    }


def append(folder: Path, pulls: int = 4000) -> None:
    from batchsweep.bandit.ledger import StoreLedger
    from batchsweep.store import create_store

    ledger = StoreLedger(create_store(folder / f"ledger-{time.time_ns()}.zarr"), "x")
    marks = []
    for number in range(pulls):
        if number % (pulls // 4) == 0:
            marks.append(time.process_time())
        ledger.append(_pull(number))
    marks.append(time.process_time())
    quarters = [round(b - a, 2) for a, b in pairwise(marks)]
    print(f"processor seconds a quarter of {pulls} appends: {quarters}", file=sys.stderr)


def fill(folder: Path, pulls: int) -> None:
    """A ledger of that many pulls, as appending leaves it, without waiting for the disk."""
    from batchsweep.bandit.ledger import SEGMENT
    from batchsweep.store import create_store

    store = create_store(folder / "long.zarr")
    for segment in range(pulls // SEGMENT):
        numbers = range(segment * SEGMENT, (segment + 1) * SEGMENT)
        path = f"bandit/x/pulls/segments/{segment:06d}.json"
        store.write_json(path, {"pulls": [_pull(n) for n in numbers]})


def restart(folder: Path) -> None:
    from batchsweep.bandit.ledger import StoreLedger, observations
    from batchsweep.store import open_store

    there = list(observations(StoreLedger(open_store(folder / "long.zarr"), "x").records()))
    print(f"{len(there)} pulls", file=sys.stderr)


MEASURED = {f.__name__: f for f in (scores, findings, report, append, restart)}


def measure(name: str, folder: Path) -> dict[str, object]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, __file__, str(folder), "--only", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
    return {
        "what": name,
        "processor_seconds": round(used, 2),
        "seconds": round(time.monotonic() - start, 2),
        "peak_mib": round(int(done.stdout.split()[-1]) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", type=int, default=5544)
    parser.add_argument("--scores", type=int, default=20_000)
    parser.add_argument("--pulls", type=int, default=200_000)
    parser.add_argument("--only", choices=MEASURED)
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "small_things.json")
    args = parser.parse_args()
    if args.only:
        MEASURED[args.only](args.folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if not (args.folder / "made").exists():
        make(args.folder, args.arms, args.scores)
    if "restart" not in args.skip and not (args.folder / "long.zarr").exists():
        fill(args.folder, args.pulls)
    rows = []
    # The first scores make the table beside the records.
    for name in [*MEASURED, "scores"]:
        if name not in args.skip:
            rows.append(measure(name, args.folder))
            print(json.dumps(rows[-1]), flush=True)
    sizes = {"arms": args.arms, "scores": args.scores, "pulls": args.pulls}
    measured.write(args.json, {**sizes, "rows": rows})


if __name__ == "__main__":
    main()
