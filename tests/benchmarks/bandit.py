"""The policies against each other, and the default one against what is asked of it.

    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py targets --tables FOLDER --seeds 4
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py targets --seeds 20 --only 'mid|spike'
    OMP_NUM_THREADS=1 python tests/benchmarks/bandit.py decisions

``targets`` holds the default policy against the best of the simple ones on every table of a folder
and every family of surfaces (problems.py), and what it states against what is true (targets.py).
``metrics`` measures what label-free metrics do to the regret,
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
from surfaces import FAMILIES, make
from targets import HELD_OUT

from batchsweep.bandit import replay
from batchsweep.bandit.policies import make_policy
from batchsweep.config import BanditConfig, PullBudget


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


def last(curves, pulls=None):
    return replay.at_pulls(curves, [pulls or int(curves["pulls"].max())])


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
    what = {"targets": targets.run, "metrics": metrics, "decisions": decisions}
    for name in what:
        command = commands.add_parser(name)
        command.add_argument("--seeds", type=int, default=4 if name == "targets" else 40)
        command.add_argument("--out", type=Path, default=Path(f"runs/bandit-{name}"))
        if name == "targets":
            targets.arguments(command)
    args = parser.parse_args()
    what[args.what](args)


if __name__ == "__main__":
    main()
