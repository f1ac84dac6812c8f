# ruff: noqa: E402 - the number of threads must be set before numpy is imported
"""How much faster than mteb itself: one arm on 31 tasks of the layer-by-layer study, side by side.

    python tests/benchmarks/score.py                        # all of it: half an hour, 10 GB of disk
    python tests/benchmarks/score.py --tasks STS12 SICK-R
    python tests/benchmarks/score.py --mindsmall            # ours only: stock mteb takes 40 GB

The tasks are mteb's own objects with synthetic texts of the real number of rows, labels and
repeats (from the statistics that mteb ships). Both sides see the same float16-rounded vectors and
use one thread. Times are of the processor, which other work on the machine disturbs little; mteb's
is without its ``encode`` calls, ours (the median of up to five pulls after the first one, which
prepares the task) includes reading the store. What the floor is, score_floor.py says.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import measured
import mteb
import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from real_sizes import KEY, Texts, Vectors, fill, make_store, peak
from score_floor import Clock, floor
from score_mindsmall import score_mindsmall

from batchsweep.score.scorer import Scorer
from batchsweep.tasks.resolve import LAYER_BY_LAYER_32, resolve

COLUMNS = [
    measured.column("tasks", "{tasks} x {type}"),
    measured.column("stock mteb", "{stock:.1f} s"),
    measured.column("ours", "{ours:.2f} s"),
    measured.column("the floor", "{floor:.2f} s"),
    measured.column("mteb / ours (least to most)", "{faster:.1f} ({least:.1f} to {most:.0f})"),
    measured.column("ours / floor (of the worst task)", "{above:.2f} ({worst:.2f}, {worst_task})"),
    measured.column("12 arms together / 12 times one", "{together:.2f}"),
]


class Stock(AbsEncoder):
    """The live model of mteb's own evaluation; its time is not mteb's."""

    def __init__(self, vectors: Vectors) -> None:
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "synthetic/model"})
        self._vectors = vectors
        self.seconds = 0.0

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        start = time.process_time()
        vectors = self._vectors(inputs.dataset[:]["text"])
        self.seconds += time.process_time() - start
        return vectors


def side_by_side(
    names: list[str], hidden: int, folder: Path, known: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """``known``: of tasks whose evaluation by mteb is known, its time and score."""
    tasks = resolve(names)
    texts, vectors = Texts(), Vectors(hidden)
    for task in tasks:
        fill(task, texts)
    store = make_store(folder / "store.zarr", tasks, vectors, hidden)
    scorer = Scorer(store, tasks, keep=False)
    rows = []
    for task in tasks:
        name = task.metadata.name
        pull = functools.partial(scorer.score, f"{KEY}#1", name)
        start = time.process_time()
        result = pull()
        first = time.process_time() - start
        ours = _median(functools.partial(_seconds, pull))
        stock, score = by_mteb(task, vectors, known)
        clocks: list[Clock] = []
        least = _median(functools.partial(_floor, task, vectors, clocks))
        fits = statistics.median(clock.fits for clock in clocks)
        difference = abs(result.main_score - score)
        rows.append(
            {
                "task": name,
                "type": str(task.metadata.type),
                "stock": stock,
                "score": score,
                "ours": ours,
                "floor": least,
                "fits": fits,
                "wall": result.seconds,
                "first": first,
                "difference": difference,
            }
        )
        print(
            f"{name:40} mteb {stock:8.2f} s   ours {ours:7.3f} s   {stock / ours:6.1f}x   "
            f"floor {least:7.3f} s ({ours / least:4.2f}), fits {fits:.2f} s  "
            f"score {result.main_score:.6f} (differs by {difference:.1e})",
            flush=True,
        )
    return rows


def _median(measure: Callable[[], float]) -> float:
    """Of as many times as take two seconds, five at most."""
    taken = [measure()]
    while len(taken) < 5 and sum(taken) < 2:
        taken.append(measure())
    return statistics.median(taken)


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _floor(task: Any, vectors: Vectors, clocks: list[Clock]) -> float:
    clocks.append(floor(task, vectors))
    return clocks[-1].seconds


def by_mteb(task: Any, vectors: Vectors, known: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """Processor seconds of mteb's own evaluation, and its main score."""
    if before := known.get(task.metadata.name):
        return before["stock"], before["score"]
    stock = Stock(vectors)
    start = time.process_time()
    [live] = mteb.evaluate(stock, task, co2_tracker=False, cache=None, show_progress_bar=False)
    return time.process_time() - start - stock.seconds, live.get_score()


def together(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: the sums over some tasks, the least and the most of them."""
    stock, ours, least, first = (
        sum(row[name] for row in rows) for name in ("stock", "ours", "floor", "first")
    )
    faster = [row["stock"] / row["ours"] for row in rows]
    above = {row["task"]: row["ours"] / row["floor"] for row in rows}
    worst = max(above, key=lambda task: above[task])
    return {
        "type": kind,
        "tasks": len(rows),
        "stock": stock,
        "ours": ours,
        "floor": least,
        "faster": stock / ours,
        "least": min(faster),
        "most": max(faster),
        "above": ours / least,
        "worst": above[worst],
        "worst_task": worst,
        "together": (first + 11 * ours) / (12 * first),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=None, help="where the store goes")
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "score.json")
    parser.add_argument(
        "--mteb",
        type=Path,
        default=None,
        help="mteb's times and scores from an earlier run's JSON on the same tasks: minutes less",
    )
    parser.add_argument("--mindsmall", action="store_true", help="only MindSmallReranking, ours")
    parser.add_argument("--impressions", type=int, default=73_152, help="of MindSmallReranking")
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    if args.mindsmall:
        score_mindsmall(args.impressions, args.hidden, args.folder)
        return
    names = args.tasks or [n for n in LAYER_BY_LAYER_32 if n != "MindSmallReranking"]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        before = json.loads(args.mteb.read_text())["tasks"] if args.mteb else []
        known = {row["task"]: row for row in before}
        rows = side_by_side(names, args.hidden, Path(folder), known)
    kinds = dict.fromkeys(row["type"] for row in rows)
    figures = [together(kind, [row for row in rows if row["type"] == kind]) for kind in kinds]
    figures.append(together("of all kinds", rows))
    for row in figures:
        print("  ".join(column["show"].format(**row) for column in COLUMNS))
    print(
        f"largest difference of a main score {max(row['difference'] for row in rows):.1e}; "
        f"fits of clusterings {sum(row['fits'] for row in rows):.1f} s; peak {peak():.1f} GB"
    )
    measured.write(args.json, {"columns": COLUMNS, "rows": figures, "tasks": rows})


if __name__ == "__main__":
    main()
