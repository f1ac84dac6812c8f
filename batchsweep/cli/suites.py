"""``batchsweep suites``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchsweep.cli.options import AsJson


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="one suite, with all that is known")
    ] = None,
    suites: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also those of a file of your own")
    ] = None,
    json: AsJson = False,
) -> None:
    """List published suites of checkpoints, and the short names of their models.

    A config takes the short names: models: [pythia/14m, olmo2/1b]. Each suite
    has the source of its facts and says what has been checked on the Hub.

    example:
      batchsweep suites
      batchsweep suites pythia
      batchsweep suites --suites mine.yaml --json
    """
    from batchsweep.config.suites import published, read_suites
    from batchsweep.errors import UsageError

    known = published() if suites is None else read_suites(suites)
    if name is not None and name not in known:
        raise UsageError(f"no suite '{name}'; valid: {', '.join(known)}")
    shown = dict(known) if name is None else {name: known[name]}
    if json:
        from json import dumps

        values = {n: {**s.model_dump(mode="json"), "models": s.ids()} for n, s in shown.items()}
        print(dumps(values, indent=1))
        return
    from batchsweep.table import Column, table_text, visible

    if name is None:
        rows = [[n, f"{len(s.ids())}", s.title] for n, s in known.items()]
        columns = [Column("suite"), Column("models", right=True), Column("", prose=True)]
        print(table_text(columns, rows), end="")
        return
    suite = known[name]
    tokens = "not known" if suite.tokens_per_step is None else f"{suite.tokens_per_step:,}"
    for what, said in (
        (name, suite.title),
        ("source", suite.source),
        ("checked", suite.checked),
        ("revisions", suite.revisions),
        ("tokens a step", tokens),
        *((f"fault {i}", f"{f.what} ({f.source})") for i, f in enumerate(suite.faults, start=1)),
    ):
        print(f"{visible(what)}: {visible(said)}")
    models = [[f"{name}/{short}", model] for short, model in suite.ids().items()]
    print(table_text([Column("in a config"), Column("on the Hub")], models), end="")
