"""``batchsweep checkpoints``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from batchsweep.cli.options import Strict
from batchsweep.errors import UsageError


def command(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="audit this sweep's checkpoints")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a Hub id or directory (default: any Pythia)"),
    ] = None,
    strategy: Annotated[
        Literal["sparse", "uniform", "log", "dense", "all"] | None,
        typer.Option(help="default: sparse; for an audit of --model: all"),
    ] = None,
    interval: Annotated[
        int | None, typer.Option(metavar="N", help="steps, for uniform and dense")
    ] = None,
    points: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="how many, for uniform and log")
    ] = None,
    format: Annotated[
        Literal["yaml", "json", "lines", "k8s"],
        typer.Option(help="yaml: a 'revisions:' block; k8s: the Job's completions"),
    ] = "yaml",
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="put the list into this config, in place; comments stay"),
    ] = None,
    step_pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="finds the step in --model's revision names"),
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="ask the Hub instead of listing")] = False,
    catalogue: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="with --audit: its faults as .md, .csv or .json"),
    ] = None,
    strict: Strict = False,
) -> None:
    """List revisions by a schedule, or audit what the Hub serves under their names.

    Schedules of Pythia's revisions, or among --model's own: sparse (8),
    uniform (29, every --interval), log (20), dense (143), all (154). The audit
    reads metadata only: missing revisions, those without weights, and names
    that serve the same weights. --catalogue writes these, and what is reported
    of the models' suites, with their sources, as a list to publish.

    example:
      batchsweep checkpoints --strategy uniform --interval 5000 >> configs/mine.yaml
      batchsweep checkpoints --strategy log --write configs/mine.yaml
      batchsweep checkpoints --strategy log --points 12
      batchsweep checkpoints --audit --config configs/mteb_layersweep.yaml
      batchsweep checkpoints --audit --model EleutherAI/pythia-2.8b --strategy all
      batchsweep checkpoints --audit --model EleutherAI/pythia-2.8b --catalogue faults.md
    """
    from batchsweep.checkpoints import audit as auditing
    from batchsweep.checkpoints.catalogue import SUFFIXES, write_catalogue
    from batchsweep.checkpoints.revisions_file import render_revisions, write_revisions
    from batchsweep.cli.audit_table import audit_table
    from batchsweep.config import Schedule, load
    from batchsweep.config.suites import published, read_suites
    from batchsweep.plan.preview import config_of, list_revisions

    if audit:
        if config is not None:
            sweep = load(config)
        elif model is not None:
            schedule = Schedule(strategy=strategy or "all", interval=interval, points=points)
            sweep = config_of(model, schedule, step_pattern)
        else:
            raise UsageError("--audit needs --config FILE or --model NAME")
        if catalogue is not None and catalogue.suffix not in SUFFIXES:
            raise UsageError(
                f"--catalogue {catalogue}: the name should end in {', '.join(SUFFIXES)}"
            )
        found = auditing.audit(sweep, strict=strict)
        print(audit_table(found), end="")
        if catalogue is not None:
            suites = published() if sweep.suites is None else read_suites(Path(sweep.suites))
            today = datetime.now(UTC).date().isoformat()
            print(f"{catalogue}: {write_catalogue(catalogue, found, suites, date=today)} faults")
        return
    if catalogue is not None:
        raise UsageError("--catalogue writes what --audit finds; give --audit too")
    names = list_revisions(
        strategy or "sparse", interval, points, model=model, pattern=step_pattern
    )
    if write is not None:
        write_revisions(write, names)
        print(f"{write}: revisions are now {len(names)}, {names[0]} to {names[-1]}")
    else:
        models = len(load(config).models) if config is not None else 1
        print(render_revisions(names, format, models=models), end="")
