"""``batchsweep replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.cli.options import only_one


def command(
    scores: Annotated[str, typer.Option(metavar="SCORES", help="the table of all cells")],
    metrics: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="label-free metrics: revision, layer, ..."),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="A,B", help="policies to compare")
    ] = "toptwo_gp,heuristic,random",
    budget: Annotated[
        float | None,
        typer.Option(metavar="N", help="whole-arm evaluations (default: 10)"),
    ] = None,
    pulls: Annotated[
        int | None, typer.Option(metavar="N", help="the budget in pulls instead")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="A:B", help="0:10 is seeds 0 to 9")] = "0:10",
    arms: Annotated[float, typer.Option(metavar="PART", help="part drawn per seed")] = 1.0,
    tasks: Annotated[float, typer.Option(metavar="PART", help="likewise of tasks")] = 1.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="where to")] = Path("replay"),
) -> None:
    """Run policies against a complete table of scores and draw their regret.

    SCORES is a CSV or Parquet file (revision, layer, task, score; optional
    model, step, seconds), a folder of MTEB results, or an exhaustively scored
    store.

    example:
      batchsweep replay --scores scores.csv --policy toptwo_gp,random --seeds 0:40
    """
    only_one(budget=budget, pulls=pulls)
    from batchsweep.bandit.replay import replay, summary
    from batchsweep.bandit.score_table import read_scores
    from batchsweep.cli.replay_text import seeds_of, text
    from batchsweep.config import BanditConfig, PullBudget
    from batchsweep.report.regret_figure import figure

    spent = PullBudget(pulls=pulls) if pulls is not None else 10.0 if budget is None else budget
    curves = replay(
        read_scores(scores, metrics=metrics),
        policy.split(","),
        config=BanditConfig(budget=spent, final_check=0, stop_at_regret=0.0),
        seeds=seeds_of(seeds),
        arms=arms,
        tasks=tasks,
    )
    out.mkdir(parents=True, exist_ok=True)
    summary(curves).to_csv(out / "replay.csv", index=False)
    figure(curves, out / "replay.png", title=scores)
    print(text(curves))
    print(f"{out / 'replay.csv'}\n{out / 'replay.png'}")
