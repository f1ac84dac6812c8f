"""What a pull on subsets costs: seconds of one arm on whole tasks and on texts_per_pull of them.

    python tests/benchmarks/subsets.py --texts 1000                   # 10 GB of disk
    python tests/benchmarks/subsets.py --texts 1000 --tasks STS12 RedditClustering

Tasks and vectors as in score.py, which this takes them from: the real sizes, synthetic texts. Times
are of the processor, reading the store included, after a first pull that prepares the task.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import datasets
import measured
import torch
from real_sizes import KEY, Texts, Vectors, fill, make_store

from batchsweep.score.scorer import Scorer
from batchsweep.tasks.evaluators import Halves
from batchsweep.tasks.resolve import LAYER_BY_LAYER_32, resolve


def seconds(scorer: Scorer, task: str, halves: Halves | None) -> tuple[float, float]:
    """Of the first pull, and the mean of two more."""
    start = time.process_time()
    scorer.score(f"{KEY}#1", task, halves)
    first = time.process_time() - start
    start = time.process_time()
    for _ in range(2):
        scorer.score(f"{KEY}#1", task, halves)
    return first, (time.process_time() - start) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=None, help="where the store goes")
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "subsets.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    names = args.tasks or [n for n in LAYER_BY_LAYER_32 if n != "MindSmallReranking"]
    tasks, texts, vectors = resolve(names), Texts(), Vectors(args.hidden)
    for task in tasks:
        fill(task, texts)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = make_store(Path(folder) / "store.zarr", tasks, vectors, args.hidden)
        scorer = Scorer(store, tasks, keep=False)
        for name in names:
            _, whole = seconds(scorer, name, None)
            first, pull = seconds(scorer, name, Halves(args.texts, 0))
            [prepared] = scorer.prepared(name)
            asked = sum(map(len, prepared.requests))
            rows.append(
                {"task": name, "texts": asked, "whole": whole, "pull": pull, "first": first}
            )
            print(
                f"{name:40} {asked:8} texts   whole {whole:8.3f} s   pull {pull:7.3f} s   "
                f"{whole / pull:6.1f}x   (the first {first:.1f} s)",
                flush=True,
            )
    wholes, pulls = (sum(row[side] for row in rows) for side in ("whole", "pull"))
    measured.write(args.json, {"texts_per_pull": args.texts, "rows": rows})
    print(f"all: whole {wholes:.1f} s, pull {pulls:.1f} s, {wholes / pulls:.1f}x")


if __name__ == "__main__":
    main()
