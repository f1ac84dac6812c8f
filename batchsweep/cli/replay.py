"""``batchsweep replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.cli.options import only_one
from batchsweep.errors import UsageError


def command(
    scores: Annotated[str, typer.Option(metavar="SCORES", help="the table of all cells")],
    metrics: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="label-free metrics: revision, layer, ..."),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="A,B", help="policies to compare")
    ] = "toptwo_gp,heuristic,random",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="a sweep's: its rewards, budget, final check, early stop, target and baseline",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="N", help="whole-arm evaluations (default: the config's, else 10)"),
    ] = None,
    pulls: Annotated[
        int | None, typer.Option(metavar="N", help="the budget in pulls instead")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="A:B", help="0:10 is seeds 0 to 9")] = "0:10",
    arms: Annotated[float, typer.Option(metavar="PART", help="part drawn per seed")] = 1.0,
    tasks: Annotated[float, typer.Option(metavar="PART", help="likewise of tasks")] = 1.0,
    extraction: Annotated[
        bool,
        typer.Option(
            "--extraction", help="pay for pairs (checkpoint, task) too: what 'run' would extract"
        ),
    ] = False,
    forward: Annotated[
        float,
        typer.Option(metavar="PART", help="with --extraction: of all forward work, at most"),
    ] = 0.15,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="where to: a new folder, or an earlier replay's")
    ] = Path("replay"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an earlier replay in --out")
    ] = False,
) -> None:
    """Run policies against a complete table of scores and draw their regret.

    SCORES is a CSV or Parquet file (revision, layer, task, score; optional
    model, step, seconds), a folder of MTEB results, or an exhaustively scored
    store. With a sweep's config the search is as it would be live; without one
    there is no final check and no early stop. Printed are the regret, which
    arms were found in how many seeds, and how often a stated P(best) was true.

    With --extraction a search pays for the (checkpoint, task) pairs that it
    scores, as 'run' does, beside the same search with its pairs chosen by
    expected improvement alone or by chance, and every n-th checkpoint.

    example:
      batchsweep replay --scores scores.csv --policy toptwo_gp,random --seeds 0:40
      batchsweep replay --scores runs/demo/store.zarr --config runs/demo/demo.yaml
      batchsweep replay --scores scores.csv --extraction --forward 0.15 --seeds 0:10
    """
    only_one(budget=budget, pulls=pulls)
    from batchsweep.bandit.replay import replay, summary
    from batchsweep.bandit.score_table import read_scores
    from batchsweep.cli.replay_text import names_of, seeds_of, settings_of, text
    from batchsweep.config import load
    from batchsweep.report.regret_figure import figure

    name = "extraction" if extraction else "replay"
    table_at, picture_at = out / f"{name}.csv", out / f"{name}.png"
    if not overwrite and (table_at.exists() or picture_at.exists()):
        raise UsageError(
            f"{out} has an earlier replay; give another --out, or --overwrite to replace it"
        )
    if extraction:
        _pay_for_pairs(scores, forward, pulls, seeds, arms, tasks, table_at, picture_at)
        return
    policies, runs = names_of(policy), seeds_of(seeds)
    bandit, rewards = settings_of(None if config is None else load(config), budget, pulls)
    table = read_scores(scores, metrics=metrics)
    cells = round(table.scores.size * arms * tasks)
    if pulls is not None and pulls > cells:
        raise UsageError(
            f"--pulls {pulls}: the table has {cells} cells, and a policy that has seen them all "
            "knows the answer; give fewer"
        )
    curves = replay(
        table, policies, config=bandit, rewards=rewards, seeds=runs, arms=arms, tasks=tasks
    )
    out.mkdir(parents=True, exist_ok=True)
    summary(curves).to_csv(table_at, index=False)
    figure(curves, picture_at, title=scores)
    print(text(curves))
    print(f"{table_at}\n{picture_at}")


def _pay_for_pairs(
    scores: str,
    forward: float,
    pulls: int | None,
    seeds: str,
    arms: float,
    tasks: float,
    table_at: Path,
    picture_at: Path,
) -> None:
    import pandas as pd

    from batchsweep.bandit.costs import even_costs
    from batchsweep.bandit.replay_extraction import replay_extraction
    from batchsweep.bandit.score_table import read_scores
    from batchsweep.cli.replay_text import extraction_text, seeds_of
    from batchsweep.config import BanditConfig, PullBudget
    from batchsweep.corpus.size import published_sizes
    from batchsweep.report.extraction_figure import figure

    table = read_scores(scores)
    limit = PullBudget(pulls=pulls or min(1000, 10 * len(table.problem.arms)))
    parts = []
    for seed in seeds_of(seeds):
        part = table.subset(seed, arms=arms, tasks=tasks) if (arms, tasks) != (1, 1) else table
        costs = even_costs(part.problem, published_sizes(part.problem.tasks))
        config = BanditConfig(budget=limit, final_check=0, stop_at_regret=0.0)
        parts.append(replay_extraction(part, costs, seed=seed, forward=forward, config=config))
    curves = pd.concat(parts, ignore_index=True)
    table_at.parent.mkdir(parents=True, exist_ok=True)
    curves.to_csv(table_at, index=False)
    figure(curves, picture_at, title=scores)
    print(extraction_text(curves))
    print(f"{table_at}\n{picture_at}")
