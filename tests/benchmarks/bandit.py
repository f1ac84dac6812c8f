"""The policies against each other, and the default one against what is asked of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py targets --tables FOLDER --seeds 4
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py targets --seeds 20 --only 'mid|spike'
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py compare --scores TABLE.csv
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py decisions

``targets`` holds the default policy against the best of the simple ones on every table of a folder
and every family of surfaces (problems.py), and what it states against what is true (targets.py).
``compare`` runs every policy on some families and, with ``--scores``, on a published table, and
writes one figure and one CSV. ``metrics`` measures what label-free metrics do to the regret,
``decisions`` what a decision takes. Seeds from 1000 up are held out. Times are CPU times.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import measured
import numpy as np
import pandas as pd
import targets
from problems import KEPT
from surfaces import FAMILIES, make
from targets import HELD_OUT

from batchsweep.bandit import replay
from batchsweep.bandit.policies import POLICIES, make_policy
from batchsweep.bandit.score_table import ScoreTable, read_scores
from batchsweep.config import BanditConfig, PullBudget
from batchsweep.report import regret_figure

#: (arms, noise) that policies are compared on; all families take part with the first.
CASES = ((288, 0.0), (48, 0.0), (1080, 0.01), (5544, 0.0))


def runs(tables, policies, pulls):
    """Curves over (seed, table) pairs; ``pulls`` is a number or a part of the table's cells."""
    parts = []
    for seed, table in tables:
        count = pulls if pulls > 1 else round(pulls * table.scores.size)
        config = BanditConfig(budget=PullBudget(pulls=count), final_check=0, stop_at_regret=0)
        parts.append(replay.replay(table, policies, config=config, seeds=[seed]))
    return pd.concat(parts, ignore_index=True)


def synthetic(family, arms, seeds, **kwargs):
    for seed in seeds:
        yield HELD_OUT + seed, make(family, arms, HELD_OUT + seed, **kwargs)


def published(table: ScoreTable, seeds):
    for seed in seeds:
        yield HELD_OUT + seed, table.subset(HELD_OUT + seed, arms=KEPT, tasks=KEPT)


def last(curves, pulls=None):
    return replay.at_pulls(curves, [pulls or int(curves["pulls"].max())])


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
    measured.write(args.out / "compare.json", {"seeds": args.seeds, **compared(figure)})
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


def compared(curves) -> dict[str, list]:
    """The docs' table: a line per policy, all surfaces together."""
    pulls = (100, 200, 400)
    summary = replay.summary(curves, pulls)
    rows = []
    for policy in summary[summary.pulls == pulls[-1]].policy:
        mine = summary[summary.policy == policy].set_index("pulls")
        row = {f"regret_{k}": 100 * mine.regret[k] for k in pulls}
        rows.append({"policy": policy, "within": mine.within[pulls[-1]], **row})
    columns = [
        measured.column("Policy", "`{policy}`"),
        *(measured.column(f"{k}", f"{{regret_{k}:.3f}}") for k in pulls),
        measured.column(f"within 0.5 % at {pulls[-1]}", "{within:.0%}"),
    ]
    return {"columns": columns, "rows": rows}


# -- costs -----------------------------------------------------------------------------------------


def metrics(args) -> None:
    rows = []
    for family in FAMILIES:
        regret = {}
        for given in (True, False):
            tables = synthetic(family, 288, range(args.seeds), metrics=given)
            curves = runs(tables, ["toptwo_gp"], 200)
            regret[given] = {k: 100 * last(curves, k)["regret"] for k in (100, 150, 200)}
        for k in (100, 150, 200):
            gap = regret[True][k].to_numpy() - regret[False][k].to_numpy()
            error = 1.96 * gap.std() / np.sqrt(len(gap))
            rows.append({"family": family, "pulls": k, "gap": gap.mean(), "error": error})
            print(
                f"{family}, {k} pulls: metrics change the regret by {gap.mean():+.3f} points "
                f"(+-{error:.3f})",
                flush=True,
            )

    measured.write(args.out / "metrics.json", {"rows": rows})


def decisions(args) -> None:
    sizes = ((288, 0.0), (1080, 0.0), (1080, 0.01), (5544, 0.0))
    rows = [_decisions(arms, noise) for arms, noise in sizes]
    measured.write(args.out / "decisions.json", {"rows": rows})


def _decisions(arms, noise, pulls=400) -> dict[str, float]:
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
        f"{arms} arms x {len(problem.tasks)} tasks, noise {noise}, {pulls} decisions: "
        f"mean {np.mean(spent):.1f} ms, median {np.median(spent):.1f}, "
        f"95 % {np.quantile(spent, 0.95):.1f}, longest (a refit) {max(spent):.0f} ms",
        flush=True,
    )
    times = {"mean_ms": np.mean(spent), "median_ms": np.median(spent), "longest_ms": max(spent)}
    return {"arms": arms, "noise": noise, "decisions": pulls, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    what = {"compare": compare, "targets": targets.run, "metrics": metrics, "decisions": decisions}
    for name in what:
        command = commands.add_parser(name)
        command.add_argument("--seeds", type=int, default=4 if name == "targets" else 40)
        command.add_argument("--out", type=Path, default=Path(f"runs/bandit-{name}"))
        if name == "targets":
            targets.arguments(command)
        if name == "compare":
            command.add_argument("--scores", type=Path, help="a complete table of scores")
            command.add_argument("--metrics", type=Path, help="its label-free metrics")
            command.add_argument("--families", default=",".join(FAMILIES))
    args = parser.parse_args()
    what[args.what](args)


if __name__ == "__main__":
    main()
