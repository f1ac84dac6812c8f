"""The policies against each other, and the default one against what is asked of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py compare --out runs/bandit
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py targets --scores TABLE.csv --out runs/bandit

``compare`` runs every policy on families of synthetic surfaces and, with ``--scores``, on a
published table, and writes one figure and one CSV. ``targets`` measures the numbers that the
default policy is held to. Seeds from 1000 up are held out: nothing in the package was chosen by
looking at them. Times are CPU times of this process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from surfaces import FAMILIES, make

from batchsweep.bandit import replay
from batchsweep.bandit.policies import POLICIES, make_policy
from batchsweep.bandit.score_table import ScoreTable, read_scores
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig
from batchsweep.report import regret_figure

HELD_OUT = 1000
#: Part of arms and tasks that each seed keeps of a published table.
KEPT = 0.9
#: (arms, noise) that policies are compared on; all families take part with the first.
CASES = ((288, 0.0), (48, 0.0), (1080, 0.01), (5544, 0.0))


def runs(tables, policies, pulls, *, rewards=None, workers=1):
    """Curves over (seed, table) pairs; ``pulls`` is a number or a part of the table's cells."""
    parts = []
    for seed, table in tables:
        count = pulls if pulls > 1 else round(pulls * table.scores.size)
        config = BanditConfig(
            budget=PullBudget(pulls=count), final_check=0, stop_at_regret=0, workers=workers
        )
        parts.append(replay.replay(table, policies, config=config, rewards=rewards, seeds=[seed]))
    return pd.concat(parts, ignore_index=True)


def synthetic(family, arms, seeds, **kwargs):
    for seed in seeds:
        yield HELD_OUT + seed, make(family, arms, HELD_OUT + seed, **kwargs)


def published(table: ScoreTable, seeds):
    for seed in seeds:
        yield HELD_OUT + seed, table.subset(HELD_OUT + seed, arms=KEPT, tasks=KEPT)


def last(curves, pulls=None):
    return replay.at_pulls(curves, [pulls or int(curves["pulls"].max())])


def share(hits) -> str:
    hits = list(hits)
    low, high = replay.wilson(sum(hits), len(hits))
    return f"{100 * np.mean(hits):.1f} % of {len(hits)} ({100 * low:.0f} to {100 * high:.0f})"


def relative(row_table, curves):
    """Regret as a part of the best arm's mean score."""
    best = {seed: t.counted.mean(axis=1).max() for seed, t in row_table}
    return last(curves).apply(lambda r: r["regret"] / best[r["seed"]], axis=1)


# -- compare ---------------------------------------------------------------------------------------


def compare(args) -> None:
    policies = [p for p in POLICIES if p != "exhaustive"]
    everything = []
    for family in args.families.split(","):
        for arms, noise in CASES if family == "mid" else CASES[:1]:
            # Smaller problems fit the same pulls several times; larger ones take longer.
            seeds = range(args.seeds if arms < 1000 else max(1, args.seeds // 2))
            name = f"{family}, {arms} arms" + (f", noise {noise}" if noise else "")
            pulls = min(400, arms * 5)
            curves = runs(synthetic(family, arms, seeds, noise=noise), policies, pulls)
            everything.append(curves.assign(surface=name))
            say(name, curves, [k for k in (50, 100, 200, 400) if k <= pulls])
    if args.scores:
        tables = published(read_scores(args.scores, metrics=args.metrics), range(args.seeds))
        curves = runs(tables, policies, 0.05)
        everything.append(curves.assign(surface="published"))
        say("published", curves, (50, 100, 200, 450))
    args.out.mkdir(parents=True, exist_ok=True)
    curves = pd.concat(everything, ignore_index=True)
    summaries = [
        replay.summary(mine, (25, 50, 100, 150, 200, 300, 400)).assign(surface=name)
        for name, mine in curves.groupby("surface", sort=False)
    ]
    pd.concat(summaries).to_csv(args.out / "compare.csv", index=False)
    # One figure: the same seed on another surface is another run.
    offset = curves["surface"].astype("category").cat.codes.astype(int) * 100_000
    title = f"{curves['surface'].nunique()} kinds of surfaces, {args.seeds} seeds each"
    figure = curves.assign(seed=curves["seed"] + offset)
    say("all", figure, (50, 100, 200, 400))
    regret_figure.figure(figure, args.out / "compare.png", title=title)
    for name, mine in curves.groupby("surface"):
        regret_figure.figure(
            mine, args.out / f"compare-{str(name).replace(', ', '-')}.png", title=str(name)
        )


def say(name, curves, pulls) -> None:
    print(f"== {name}: mean regret in points (100 x score), part of seeds within 0.5 %")
    table = replay.summary(curves, pulls)
    table["cell"] = [
        f"{100 * r:.3f} {w:.2f}" for r, w in zip(table.regret, table.within, strict=True)
    ]
    wide = table.pivot(index="policy", columns="pulls", values="cell")
    print(wide.loc[table[table.pulls == pulls[-1]].policy].to_string(), flush=True)


# -- targets ---------------------------------------------------------------------------------------


def targets(args) -> None:
    wanted = {int(t) for t in args.only.split(",")} if args.only else set(range(1, 9))
    table = read_scores(args.scores) if args.scores else None
    stated = []
    if 1 in wanted and table is not None:
        for part in (0.02, 0.03, 0.05):
            found = last(runs(published(table, range(args.seeds)), ["toptwo_gp"], part))
            print(f"1. published, {part:.0%} of the cells, within 0.5 %: {share(found['within'])}")
        z = RewardsConfig(scale="z")
        found = last(runs(published(table, range(args.seeds)), ["toptwo_gp"], 0.05, rewards=z))
        print(f"1. 5% with z rewards: {share(found['within'])}", flush=True)
    if 5 in wanted and table is not None:
        for pulls in (10, 20, 30, 40, 60, 80, 100, 150):
            ends = runs(published(table, range(args.seeds)), ["toptwo_gp", "heuristic"], pulls)
            regret = last(ends).pivot(index="seed", columns="policy", values="regret")
            gap = 100 * (regret["toptwo_gp"] - regret["heuristic"])
            error = 1.96 * gap.std() / np.sqrt(len(gap))
            print(
                f"5. published, budget of {pulls}: regret over the heuristic's "
                f"{gap.mean():+.3f} points (+-{error:.3f})",
                flush=True,
            )
    if wanted & {5, 7} and table is not None:
        curves = runs(published(table, range(args.seeds)), ["toptwo_gp", "heuristic"], 0.05)
        stated.append(curves.assign(what="published"))
        worse(curves, "published")
    goals = {
        2: (288, 0.0, 200, 0.005, "0.5 %"),
        3: (1080, 0.01, 400, 0.01, "1 %"),
        4: (5544, 0.0, 400, 0.01, "1 %"),
    }
    for number, (arms, noise, pulls, limit, name) in goals.items():
        if not wanted & ({number, 5, 7} if number < 4 else {number}):
            continue
        hits = []
        for family in FAMILIES:
            seeds = range(args.seeds if arms < 1000 else max(1, args.seeds // 2))
            tables = list(synthetic(family, arms, seeds, noise=noise))
            curves = runs(tables, ["toptwo_gp", "heuristic"], pulls)
            stated.append(curves.assign(what=f"{arms} arms, noise {noise}"))
            mine = curves[curves.policy == "toptwo_gp"]
            found = relative(tables, mine) <= limit
            hits += found.tolist()
            print(
                f"{number}. {family}, {arms} arms, noise {noise}, {pulls} pulls, within {name}: "
                f"{share(found)}; mean regret {100 * last(mine)['regret'].mean():.3f} points",
                flush=True,
            )
            worse(curves, f"{family} {arms}")
        print(f"{number}. all families: {share(hits)}", flush=True)
    if 6 in wanted:
        metrics_cost(args)
    if 7 in wanted and stated:
        curves = pd.concat(stated, ignore_index=True)
        curves = curves[curves.policy == "toptwo_gp"]
        near = curves[(curves.p_best >= 0.85) & (curves.p_best < 0.95)]
        print(f"7. stated P(best) 0.85 to 0.95 (mean {near.p_best.mean():.3f}): {share(near.best)}")
        for what, mine in near.groupby("what"):
            print(f"7. of these, {what}: {share(mine.best)}")
        print(replay.calibration(curves, (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 1)).to_string())
    if 8 in wanted:
        for arms, noise in ((288, 0.0), (1080, 0.0), (1080, 0.01), (5544, 0.0)):
            decisions(arms, noise)


def worse(curves, name) -> None:
    """Target 5: the default against the guess, at every number of pulls."""
    grid = [5, 10, 20, 30, 40, 50, 60, 80, 100, 125, 150, 200, 300, 400]
    grid = [g for g in grid if g <= curves["pulls"].max()]
    at = replay.at_pulls(curves, grid).pivot_table(index="at", columns="policy", values="regret")
    excess = 100 * (at["toptwo_gp"] - at["heuristic"])
    print(
        f"5. {name}: regret over the heuristic's in points, largest over {len(grid)} budgets: "
        f"{excess.max():+.3f} at {excess.idxmax()} pulls",
        flush=True,
    )


def metrics_cost(args) -> None:
    for family in FAMILIES:
        regret = {}
        for metrics in (True, False):
            tables = synthetic(family, 288, range(args.seeds), metrics=metrics)
            curves = runs(tables, ["toptwo_gp"], 200)
            regret[metrics] = {k: 100 * last(curves, k)["regret"] for k in (100, 150, 200)}
        for k in (100, 150, 200):
            gap = regret[True][k].to_numpy() - regret[False][k].to_numpy()
            error = 1.96 * gap.std() / np.sqrt(len(gap))
            print(
                f"6. {family}, {k} pulls: metrics change the regret by {gap.mean():+.3f} points "
                f"(+-{error:.3f})",
                flush=True,
            )


def decisions(arms, noise, pulls=400) -> None:
    table = make("mid", arms, HELD_OUT, noise=noise)
    problem = table.problem
    policy = make_policy("toptwo_gp", problem, seed=0, budget=pulls)
    rows = {a: i for i, a in enumerate(problem.arms)}
    columns = {t: i for i, t in enumerate(problem.tasks)}
    spent = []
    for _ in range(pulls):
        start = time.process_time()
        policy.sure(0.0005)
        (pull,) = policy.ask(1)
        score = float(table.counted[rows[pull.arm], columns[pull.task]])
        policy.observe(pull.arm, pull.task, score, 1.0, noise)
        spent.append(1000 * (time.process_time() - start))
    print(
        f"8. {arms} arms x {len(problem.tasks)} tasks, noise {noise}, {pulls} decisions: "
        f"mean {np.mean(spent):.1f} ms, median {np.median(spent):.1f}, "
        f"95 % {np.quantile(spent, 0.95):.1f}, longest (a refit) {max(spent):.0f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("compare", "targets"))
    parser.add_argument("--scores", type=Path, help="a complete table of published scores")
    parser.add_argument("--metrics", type=Path, help="its label-free metrics (compare only)")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--families", default=",".join(FAMILIES), help="compare only")
    parser.add_argument("--only", default="", help="numbers of targets, such as 1,5")
    parser.add_argument("--out", type=Path, default=Path("runs/bandit"))
    args = parser.parse_args()
    {"compare": compare, "targets": targets}[args.what](args)


if __name__ == "__main__":
    main()
