"""The default policy against the best of the others, on every problem of problems.py.

Runs are kept one by one in ``runs.jsonl`` in the folder of ``--out``, so that a call that was cut
short goes on. ``POLICY.json`` is the table of the docs, and what the policy states against what is
true; ``compared.json`` and ``compared.png`` hold all policies side by side. They name machine,
commit and date. Another commit asks for another folder.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import measured
import numpy as np
import pandas as pd
import target_figures
from problems import cases

from batchsweep.bandit import loop
from batchsweep.bandit.policies import Policy
from batchsweep.bandit.score_table import WITHIN, ScoreTable
from batchsweep.config import BanditConfig, PullBudget
from batchsweep.score.record import Score

HELD_OUT = 1000
#: Parts of the cells that a run may spend, and the part for a run that may stop early.
PARTS = (0.02, 0.03, 0.05, 0.10)
STOPPING = 0.5
OTHERS = ("heuristic", "sequential_halving", "halving", "ucb_e_lrf")
#: Points of regret that the default policy may be behind the best of the others.
BEHIND = 0.1
#: Seeds from which on a standard error is worth stating.
LEAST = 4
#: How often a run states what it believes.
STATEMENTS = 4
BANDS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.95, 0.97, 1.0)


def one(table: ScoreTable, policy: str, part: float, seed: int, *, stops: bool) -> dict[str, Any]:
    """A run: its regret in points, and each statement with what was true."""
    problem, scores = table.problem, table.counted
    truth = scores.mean(axis=1)
    arms = {a: i for i, a in enumerate(problem.arms)}
    tasks = {t: i for i, t in enumerate(problem.tasks)}
    pulls = max(1, round(part * scores.size))
    moments = {round(pulls * (k + 1) / STATEMENTS) for k in range(STATEMENTS)}
    statements: list[list[float]] = []

    def heard(policy: Policy, made: int, seconds: float) -> None:
        if made not in moments:
            return
        answer = policy.best()
        if answer.p_best is None:
            return
        mine = arms[answer.arm]
        low, high = answer.interval
        inside = np.abs(truth - answer.mean_of) <= 1.96 * answer.sd_of + 1e-12
        statements.append(
            [
                answer.p_best,
                float(truth[mine] >= truth.max()),
                100 * float(answer.expected_regret or 0.0),
                100 * float(truth.max() - truth[mine]),
                float(low <= truth[mine] <= high),
                float(inside.mean()),
            ]
        )

    def score(arm: str, task: str) -> Score:
        return Score(float(scores[arms[arm], tasks[task]]), 1.0)

    plain = {"final_check": 0, "stop_at_regret": 0.0} if not stops else {}
    given = {"policy": policy, "seed": seed, "budget": PullBudget(pulls=pulls)}
    config = BanditConfig.model_validate({**given, **plain})
    start = time.process_time()
    outcome = loop.run(problem, score, config, on_observe=heard, quiet=True)
    regret = float(truth.max() - truth[arms[outcome.answer.arm]])
    stated = outcome.answer.expected_regret
    return {
        "pulls": outcome.budget.spent_pulls,
        "regret": 100 * regret,
        "within": regret <= WITHIN * float(truth.max()),
        "stopped": outcome.stopped,
        "stated": None if stated is None else 100 * stated,
        "statements": statements,
        "cpu": round(time.process_time() - start, 2),
    }


def run_all(args: argparse.Namespace) -> pd.DataFrame:
    """Runs of this call, those that were kept from before included; with ``--kept`` only those."""
    args.out.mkdir(parents=True, exist_ok=True)
    kept_at = args.out / "runs.jsonl"
    kept = {}
    if kept_at.exists():
        for line in kept_at.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kept[row["case"], row["policy"], row["part"], row["seed"]] = row
    if args.kept:
        rows = pd.DataFrame(kept.values())
        return rows[rows["case"].str.contains(args.only)]
    policies = [*args.policies.split(","), *OTHERS]
    wanted = {n: c for n, c in cases(args.tables).items() if re.search(args.only, n)}
    rows = []
    with kept_at.open("a", encoding="utf-8") as file:
        for name, case in wanted.items():
            for seed in range(HELD_OUT + args.first, HELD_OUT + args.first + args.seeds):
                table = None
                for policy in policies:
                    parts = [
                        *args.parts,
                        *([STOPPING] if args.stop and policy not in OTHERS else []),
                    ]
                    for part in parts:
                        key = name, policy, part, seed
                        if key not in kept:
                            table = table or case(seed)
                            row = dict(zip(("case", "policy", "part", "seed"), key, strict=True))
                            row |= one(table, policy, part, seed, stops=part == STOPPING)
                            file.write(json.dumps(row) + "\n")
                            file.flush()
                            kept[key] = row
                        rows.append(kept[key])
            say(name, pd.DataFrame([r for r in rows if r["case"] == name]), policies)
    return pd.DataFrame(rows)


def say(name: str, rows: pd.DataFrame, policies: Sequence[str]) -> None:
    """One case: mean regret, and in brackets the worst, at each part of the cells."""
    rows = rows[rows["part"] != STOPPING]
    print(f"== {name}, {rows['seed'].nunique()} seeds: mean regret in points (worst) within 0.5 %")
    for policy in policies:
        cells = []
        for _, mine in rows[rows["policy"] == policy].groupby("part"):
            within = round(100 * mine["within"].mean())
            cells.append(f"{mine['regret'].mean():7.3f} ({mine['regret'].max():6.2f}) {within:3d}%")
        print(f"  {policy:<20}" + "  ".join(cells), flush=True)


def against(rows: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Case and part: mean regret of the policy, of the best other, and what lies between them.

    The best of four means that are noise in part is too good: ``excess`` is against it all the
    same; ``fair`` is against the other that was best on one half of the seeds, on the other half,
    and the other way round, with its standard error over the seeds.
    """
    rows = rows[rows["part"] != STOPPING]
    found = []
    for (case, part), group in rows.groupby(["case", "part"], sort=False):
        regret = group.pivot(index="seed", columns="policy", values="regret")
        mean = regret.mean()
        others = mean[list(OTHERS)]
        gaps = fair_gaps(regret, policy)
        found.append(
            {
                "case": case,
                "part": part,
                "regret": mean[policy],
                "best_other": others.min(),
                "which": others.idxmin(),
                "excess": mean[policy] - others.min(),
                "fair": gaps.mean(),
                "error": gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) >= LEAST else np.nan,
            }
        )
    return pd.DataFrame(found)


def fair_gaps(regret: pd.DataFrame, policy: str) -> np.ndarray:
    """[seed] the policy's regret less that of the other that was best on the other half of seeds.

    Args:
        regret: [seed, policy].
    """
    second = np.arange(len(regret)) % 2 == 1
    gaps = np.full(len(regret), np.nan)
    for half in (second, ~second):
        if half.any() and not half.all():
            best = regret[list(OTHERS)][~half].mean().idxmin()
            gaps[half] = (regret[policy] - regret[best])[half]
    return gaps


def calibration(rows: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Per case and pooled: stated P(best) in bands against how often it came true; coverage."""
    found = []
    mine = rows[(rows["policy"] == policy) & (rows["part"] != STOPPING)]
    for name, group in [*mine.groupby("case", sort=False), ("all", mine)]:
        flat = np.array([s for said in group["statements"] for s in said])
        if not len(flat):
            continue
        line: dict[str, Any] = {"case": name, "statements": len(flat)}
        line["covered_best"], line["covered"] = flat[:, 4].mean(), flat[:, 5].mean()
        line["regret_stated"], line["regret_true"] = flat[:, 2].mean(), flat[:, 3].mean()
        for low, high in pairwise(BANDS):
            inside = (flat[:, 0] >= low) & ((flat[:, 0] < high) | (high == 1))
            band = f"{low:g}-{high:g}"
            line[f"n {band}"] = int(inside.sum())
            line[f"true {band}"] = float(flat[inside, 1].mean()) if inside.any() else None
        found.append(line)
    return pd.DataFrame(found)


def stops(rows: pd.DataFrame, policy: str) -> list[dict[str, Any]]:
    """Of the runs that stopped early: the largest regret stated, and the mean of the true ones.

    A line per case, and one of all.
    """
    mine = rows[(rows["policy"] == policy) & (rows["part"] == STOPPING)]
    found = []
    for name, group in [*mine.groupby("case", sort=False), ("all", mine)]:
        early = group[group["stopped"] == "regret"]
        if len(early):
            found.append(
                {
                    "case": name,
                    "runs": len(group),
                    "stopped": len(early),
                    "most_stated": float(early["stated"].max()),
                    "mean_true": float(early["regret"].mean()),
                    "most_true": float(early["regret"].max()),
                    "pulls": float(early["pulls"].mean()),
                }
            )
    return found


def run(args: argparse.Namespace) -> None:
    rows = run_all(args)
    for policy in args.policies.split(","):
        found, stated = against(rows, policy), calibration(rows, policy)
        early = stops(rows, policy)
        columns, lines = target_figures.table(
            rows, found.assign(behind=found["excess"] > BEHIND, surely=surely_behind(found))
        )
        measured.write(
            args.out / f"{policy}.json",
            {
                "seeds": [int(rows["seed"].min()), int(rows["seed"].max()) + 1],
                "columns": columns,
                "rows": lines,
                "calibration": stated.to_dict("records"),
                "stops": early,
            },
        )
        print(f"\n## {policy}")
        say_against(found)
        say_calibration(stated)
        for line in early:
            print(
                "stopped early: {case}: {stopped} of {runs} after {pulls:.0f} pulls on average; "
                "regret stated {most_stated:.3f} at most; true {mean_true:.3f} on average, "
                "{most_true:.3f} at most".format(**line)
            )
    rows = rows[rows["part"] != STOPPING]
    measured.write(args.out / "compared.json", target_figures.compared(rows))
    target_figures.picture(rows, args.out / "compared.png")


def say_against(found: pd.DataFrame) -> None:
    excess = found["excess"]
    over = found[excess > BEHIND].sort_values("excess", ascending=False)
    print(
        f"mean excess over the best other {excess.mean():+.3f} points, worst {excess.max():+.3f}; "
        f"above {BEHIND} in {len(over)} of {len(found)} cases and budgets; by more than two "
        f"standard errors in {surely_behind(found).sum()}, against the other that was best on the "
        f"other half of the seeds (mean {found['fair'].mean():+.3f}):"
    )
    print(over.to_string(index=False, float_format="%.3f"))


def surely_behind(found: pd.DataFrame) -> pd.Series:
    return found["fair"] - BEHIND > 2 * found["error"]


def say_calibration(stated: pd.DataFrame) -> None:
    counts = [c for c in stated if c.startswith("n ")]
    for _, line in stated.iterrows():
        bands = "  ".join(
            f"{c[2:]}: {_percent(line['true ' + c[2:]])} of {line[c]}" for c in counts if line[c]
        )
        print(
            f"{line['case']}: regret stated {line.regret_stated:.3f}, true {line.regret_true:.3f}; "
            f"95 % cover {line.covered:.0%}, of the answer {line.covered_best:.0%}; {bands}"
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", type=Path, help="a folder of complete tables of scores")
    parser.add_argument("--policies", default="toptwo_gp", help="held against the others")
    parser.add_argument("--only", default="", help="cases whose name has this regular expression")
    parser.add_argument("--first", type=int, default=0, help="the first of the held-out seeds")
    parser.add_argument("--kept", action="store_true", help="runs nothing: what runs of before say")
    parser.add_argument("--stop", action="store_true", help="also runs that may stop early")
    parser.add_argument(
        "--parts", type=lambda s: [float(p) for p in s.split(",")], default=list(PARTS)
    )
