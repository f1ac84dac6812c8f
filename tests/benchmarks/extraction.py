"""What a search that asks for its pairs pays for its answer, against every n-th checkpoint.

    OMP_NUM_THREADS=1 python tests/benchmarks/extraction.py --only 3 --out runs/extraction
    OMP_NUM_THREADS=1 python tests/benchmarks/extraction.py --only 2 --scores TABLE.csv

Three problems: 1, 5,544 arms (3 models x 154 checkpoints) whose checkpoints have a term of their
own of ``--noise`` points; 2, a published table, of which each seed drops a tenth of the arms and
tasks; 3, 288 arms. Tasks have the sizes of the 32 tasks of the layer-by-layer study, drawn to the
simulated tasks by chance; of the published table all pairs cost the same. Seeds from 1000 up are
held out: nothing was chosen by looking at them. Each run is the live search's code, with its final
check; ``--others`` adds chance and expected improvement.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import measured
import numpy as np
import pandas as pd
from surfaces import FAMILIES, make

from batchsweep.bandit.costs import checkpoints_of, even_costs
from batchsweep.bandit.replay import wilson
from batchsweep.bandit.replay_extraction import METHODS, replay_extraction
from batchsweep.bandit.score_table import ScoreTable, read_scores
from batchsweep.config import BanditConfig
from batchsweep.report.extraction_figure import figure

HELD_OUT = 1000
#: Parts of the tokens of the 32 tasks, smallest first, by the statistics in mteb.
SIZES = (
    0.0002, 0.0003, 0.0013, 0.0014, 0.0014, 0.0015, 0.0016, 0.0017, 0.0020, 0.0028, 0.0029, 0.0031,
    0.0031, 0.0033, 0.0037, 0.0038, 0.0047, 0.0051, 0.0051, 0.0055, 0.0071, 0.0084, 0.0113, 0.0192,
    0.0297, 0.0381, 0.0411, 0.0427, 0.0433, 0.0649, 0.1623, 0.4774,
)  # fmt: skip
#: Problem -> (parts of forward work and of checkpoints that may be paid for, width, pulls).
BUDGETS = {1: (0.05, 0.15, 8, 1200), 2: (0.15, 0.5, 2, 1000), 3: (0.15, None, 4, 600)}

COLUMNS = [
    measured.column("Problem", "{problem}"),
    measured.column("within 0.5 %", "{within} of {of}"),
    measured.column("regret in points: mean, worst", "{mean:.3f}, {worst:.3f}"),
    measured.column("forward work (at most)", "{forward:.1%} ({most:.1%})"),
    measured.column("checkpoints", "{checkpoints:.0%}"),
    measured.column("pairs", "{pairs:.0%}"),
]


def tables(problem: int, args: argparse.Namespace):
    """(what, seed, table, sizes of its tasks)"""
    for seed in range(HELD_OUT + args.first, HELD_OUT + args.first + args.seeds):
        if problem == 2:
            yield (
                "published",
                seed,
                read_scores(args.scores).subset(seed, arms=0.9, tasks=0.9),
                None,
            )
            continue
        for family in args.families.split(","):
            table = make(family, {1: 5544, 3: 288}[problem], seed)
            if args.noise:
                table = rougher(table, args.noise / 100, seed)
            yield family, seed, table, np.random.default_rng(seed).permutation(SIZES)


def rougher(table: ScoreTable, sd: float, seed: int) -> ScoreTable:
    """With a term of its own for each checkpoint."""
    _, of = checkpoints_of(table.problem)
    term = np.random.default_rng([seed, 5]).normal(0, sd, of.max() + 1)
    return dataclasses.replace(table, scores=table.scores + term[of][:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, choices=BUDGETS, required=True)
    parser.add_argument("--scores", type=Path, help="a complete table of published scores")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0, help="points")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--pulls", type=int, help="default: as BUDGETS says")
    parser.add_argument("--width", type=int, help="checkpoints a wave")
    parser.add_argument("--out", type=Path, default=Path("runs/extraction"))
    args = parser.parse_args()
    forward, checkpoints, width, pulls = BUDGETS[args.only]
    width, pulls = args.width or width, args.pulls or pulls
    methods = METHODS if args.others else ("search", "every_nth")
    config = BanditConfig.model_validate({"budget": {"pulls": pulls}, "final_check": 2})
    parts = []
    for what, seed, table, sizes in tables(args.only, args):
        start = time.process_time()
        curves = replay_extraction(
            table, even_costs(table.problem, sizes), seed=seed, methods=methods,
            forward=forward, checkpoints=checkpoints, width=width, config=config,
        )  # fmt: skip
        parts.append(curves.assign(what=what))
        for method, mine in curves[curves.final].groupby("method", sort=False):
            if method == "every_nth":
                continue
            last = mine.iloc[-1]
            print(
                f"{what} {seed} {method}: regret {100 * last.regret:.3f} points, within "
                f"{bool(last.within)}; forward {last.forward:.2%}, checkpoints "
                f"{last.checkpoints:.1%}, pairs {last.pairs:.1%}, {last.pulls} pulls, "
                f"{time.process_time() - start:.0f} s",
                flush=True,
            )
        save(pd.concat(parts, ignore_index=True), args)
    curves = pd.concat(parts, ignore_index=True)
    ends = curves[curves.final & (curves.method == "search")]
    low, high = wilson(int(ends.within.sum()), len(ends))
    print(
        f"{args.only}. within 0.5 %: {int(ends.within.sum())} of {len(ends)} ({low:.0%} to "
        f"{high:.0%}); regret {100 * ends.regret.mean():.3f} points, worst "
        f"{100 * ends.regret.max():.3f}; forward {ends.forward.mean():.2%} (at most "
        f"{ends.forward.max():.2%}), checkpoints {ends.checkpoints.mean():.1%}, pairs "
        f"{ends.pairs.mean():.1%}"
    )
    against(curves)
    row = {
        "problem": args.only,
        "within": int(ends.within.sum()),
        "of": len(ends),
        "mean": 100 * ends.regret.mean(),
        "worst": 100 * ends.regret.max(),
        "forward": ends.forward.mean(),
        "most": ends.forward.max(),
        "checkpoints": ends.checkpoints.mean(),
        "pairs": ends.pairs.mean(),
    }
    measured.write(args.out / f"{_name(args)}.json", {"columns": COLUMNS, "rows": [row]})


def against(curves: pd.DataFrame) -> None:
    """At the price of every n-th checkpoint: how much worse the search is, or better."""
    for n, mine in curves[curves.method == "every_nth"].groupby("wave"):
        gaps, prices = [], []
        for row in mine.itertuples():
            run = curves[
                (curves.method == "search") & (curves.seed == row.seed) & (curves.what == row.what)
            ]
            known = run[run.forward <= row.forward + 1e-9]
            if len(known):
                gaps.append(100 * (known.regret.iloc[-1] - row.regret))
                prices.append(row.forward)
        if gaps:
            print(
                f"   every {n}. checkpoint, {np.mean(prices):.1%} of the work: the search's regret "
                f"is {np.mean(gaps):+.3f} points from its (worst {np.max(gaps):+.3f})"
            )


def _name(args: argparse.Namespace) -> str:
    return f"extraction-{args.only}" + (f"-{args.noise:g}" if args.noise else "")


def save(curves: pd.DataFrame, args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    name = _name(args)
    curves.to_csv(args.out / f"{name}.csv", index=False)
    # One figure: the same seed on another surface is another run.
    offset = curves["what"].astype("category").cat.codes.astype(int) * 100_000
    title = {1: "5,544 arms", 2: "published table", 3: "288 arms"}[args.only]
    figure(curves.assign(seed=curves["seed"] + offset), args.out / f"{name}.png", title=title)


if __name__ == "__main__":
    main()
