"""What each command does: load the config, call one module, print what it gave."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from batchsweep.config import BanditConfig, Config, load
from batchsweep.errors import (
    BatchsweepError,
    IndexFailed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    UsageError,
)

if TYPE_CHECKING:
    from rich.table import Table

    from batchsweep.store import Store

logger = logging.getLogger(__name__)


def checkpoints(args: argparse.Namespace) -> None:
    from batchsweep.checkpoints.audit import audit
    from batchsweep.checkpoints.revisions_file import render_revisions, write_revisions
    from batchsweep.cli.audit_table import audit_table
    from batchsweep.config import Schedule
    from batchsweep.plan.preview import config_of, list_revisions

    if args.audit and args.config:
        print(audit_table(audit(load(args.config), strict=args.strict)), end="")
    elif args.audit:
        if args.model is None:
            raise UsageError("--audit needs --config FILE or --model NAME")
        schedule = Schedule(strategy=args.strategy or "all", interval=args.interval)
        config = config_of(args.model, schedule, args.step_pattern)
        print(audit_table(audit(config, strict=args.strict)), end="")
    else:
        strategy = args.strategy or "sparse"
        names = list_revisions(strategy, args.interval, model=args.model, pattern=args.step_pattern)
        if args.write:
            write_revisions(args.write, names)
            print(f"{args.write}: revisions are now {len(names)}, {names[0]} to {names[-1]}")
        else:
            models = len(load(args.config).models) if args.config else 1
            print(render_revisions(names, args.format, models=models), end="")


def plan(args: argparse.Namespace) -> None:
    from batchsweep.cli.plan_table import plan_table
    from batchsweep.plan.preview import plan_and_costs

    config = load(args.config)
    found, costs = plan_and_costs(config, gpu=args.gpu, calibrated=args.calibrate)
    if args.json:
        print(json.dumps({"plan": found.to_json(), "costs": costs.to_json()}, indent=1))
    else:
        print(plan_table(found, costs), end="")


def prepare(args: argparse.Namespace) -> None:
    from batchsweep.plan.prepare import prepare

    _, plan, summary = prepare(load(args.config), strict=args.strict)
    asked = f"{summary.asked:,} asked for" if summary.asked != summary.texts else "each asked once"
    print(f"corpus: {summary.texts:,} unique texts ({asked}) of {len(summary.tasks)} tasks")
    for tokenizer, tokens in summary.tokens.items():
        cut = summary.cut[tokenizer]
        note = f"; {cut:,} texts cut at max_length" if cut else ""
        print(f"tokens: {tokens:,} by tokenizer {tokenizer}{note}")
    print(f"plan:   {len(plan.entries)} indexes, {len(plan.arms()):,} arms")
    print(f"next:   batchsweep extract --config {args.config} --all   (or --index N on each pod)")


def extract(args: argparse.Namespace) -> None:
    from batchsweep.extract.extract import extract
    from batchsweep.extract.weights import delete_weights, prefetch
    from batchsweep.plan.plan import frozen_plan
    from batchsweep.signals import stop_on_signals

    config = load(args.config)
    store = _open(config)
    plan = frozen_plan(store, config)
    indexes = list(range(len(plan.entries))) if args.all else [_chosen_index(args)]
    entries = [plan.entry(index) for index in indexes]
    tasks = None if args.tasks is None else [t.strip() for t in args.tasks.split(",")]
    failed: dict[str, BatchsweepError] = {}
    with stop_on_signals(args.grace) as stop, ThreadPoolExecutor(1) as background:
        for number, entry in enumerate(entries):
            label = f"{number + 1}/{len(entries)}" if args.all else f"index {entry.index}"
            if number + 1 < len(entries):
                background.submit(prefetch, store, entries[number + 1], tasks)
            try:
                extract(
                    store,
                    config,
                    entry,
                    tasks=tasks,
                    stop=stop,
                    strict=args.strict,
                    label=label,
                )
            except StoreFull:
                raise
            except (IndexFailed, StoreError) as error:
                # It is noted in the store. The other indexes don't depend on it.
                if len(entries) == 1:
                    raise
                logger.error("%s", error)
                failed[entry.key] = error
            if args.delete_weights:
                delete_weights(entry)
            stop.check()
    if failed:
        first = next(iter(failed.values()))
        raise type(first)(
            f"{len(failed)} of {len(entries)} indexes failed: {', '.join(failed)}; the others are "
            "sealed, 'batchsweep status' says why these are not"
        )


def _chosen_index(args: argparse.Namespace) -> int:
    from batchsweep.jobs.index import index_from_environment, parse_indexes

    if args.index is not None:
        return int(args.index)
    position = index_from_environment(os.environ)
    if args.indexes is None:
        return position
    chosen = parse_indexes(args.indexes)
    if position >= len(chosen):
        raise UsageError(f"--indexes {args.indexes} has {len(chosen)} entries, no entry {position}")
    return chosen[position]


def status(args: argparse.Namespace) -> None:
    from batchsweep.extract.status import counts, index_statuses, pairs_ready, wait
    from batchsweep.plan.plan import load_plan

    config = load(args.config)
    if args.wait is not None:
        wait(config.store_url, args.wait)
    store = _open(config)
    rows = index_statuses(store, load_plan(store))
    if args.json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
        return
    corpus = store.corpus()
    tasks = 0 if corpus is None else len(corpus.tasks())
    table = _table("index", "model", "revision", "state", "blocks", "tasks", "note")
    for row in rows:
        also = f"same weights: {', '.join(row.aliases)}" if row.aliases else ""
        table.add_row(
            "-" if row.index is None else str(row.index),
            row.model,
            row.revision,
            row.state,
            f"{row.sealed}/{row.blocks}" if row.blocks else "",
            f"{len(row.ready)}/{tasks}" if row.blocks else "",
            row.note or also,
        )
    _print_table(table)
    print(f"{store.url}: {counts(rows)}; {pairs_ready(rows, tasks)}")


def bandit(args: argparse.Namespace) -> None:
    from batchsweep.bandit.search import search
    from batchsweep.cli.answer_text import summary
    from batchsweep.plan.plan import load_plan

    config = load(args.config)
    given = {
        name: getattr(args, name)
        for name in ("policy", "budget", "seed", "workers")
        if getattr(args, name) is not None
    }
    try:
        # dict() keeps the values' own types: a budget may be a section of its own.
        bandit = BanditConfig.model_validate({**dict(config.bandit), **given})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(
            f"--{fault['loc'][0]} {fault['input']}: {fault['msg'].removeprefix('Input ')}"
        ) from None
    config = config.model_copy(update={"bandit": bandit})
    store = _open(config)
    name, outcome = search(store, config)
    print(summary(outcome, load_plan(store)))
    print(f"in {store.url}: bandit/{name}/answer.json")


def report(args: argparse.Namespace) -> None:
    from batchsweep.report.page import default_folder, write

    config = load(args.config)
    folder = args.out or default_folder(config)
    for path in write(_open(config), folder, title=config.name):
        print(path)


def export(args: argparse.Namespace) -> None:
    from batchsweep.report.page import default_folder
    from batchsweep.score.export import export

    config = load(args.config)
    done = export(_open(config), args.out or default_folder(config).parent / "export")
    print(f"{done.pulls} pulls\n{done.table}\n{done.table.with_suffix('.parquet')}\n{done.results}")


def verify(args: argparse.Namespace) -> None:
    from batchsweep.plan.plan import frozen_plan
    from batchsweep.store import open_store
    from batchsweep.store.integrity import repair, verify

    config = load(args.config)
    store = open_store(config.store_url, repair_root=args.repair, format=config.store.format)
    expected: dict[str, dict[str, str]] = {}
    # What is damaged here is among verify's own faults. A changed config is refused: everything
    # would look stale, and --repair would drop it.
    with suppress(StoreCorrupt):
        plan = frozen_plan(store, config, scoring=True)
        expected = {entry.key: entry.origin(config) for entry in plan.entries}
    faults = verify(store, expected=expected)
    for fault in faults:
        print(f"{fault.message}; {fault.remedy}" if args.repair else fault.message)
    if not faults:
        print(f"{store.url}: no faults")
    elif args.repair:
        repair(store, faults)
        print(f"{store.url}: {len(faults)} faults repaired; 'batchsweep extract' fills the gaps")
    else:
        raise StoreCorrupt(f"{store.url}: {len(faults)} faults; --repair drops what is damaged")


def convert(args: argparse.Namespace) -> None:
    from batchsweep.store import create_store, open_store
    from batchsweep.store.convert import convert

    source = open_store(args.source)
    other = "hdf5" if source.format == "zarr" else "zarr"
    convert(source, create_store(args.target, format=args.format or other))
    print(f"{args.target}: {args.format or other}, converted from {source.url}")


def replay(args: argparse.Namespace) -> None:
    from batchsweep.bandit.replay import replay, summary
    from batchsweep.bandit.score_table import read_scores
    from batchsweep.cli.replay_text import seeds_of, text
    from batchsweep.config import PullBudget
    from batchsweep.report.regret_figure import figure

    table = read_scores(args.scores, metrics=args.metrics)
    budget = args.budget if args.pulls is None else PullBudget(pulls=args.pulls)
    curves = replay(
        table,
        args.policy.split(","),
        config=BanditConfig(budget=budget, final_check=0, stop_at_regret=0.0),
        seeds=seeds_of(args.seeds),
        arms=args.arms,
        tasks=args.tasks,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    summary(curves).to_csv(args.out / "replay.csv", index=False)
    figure(curves, args.out / "replay.png", title=str(args.scores))
    print(text(curves))
    print(f"{args.out / 'replay.csv'}\n{args.out / 'replay.png'}")


def demo(args: argparse.Namespace) -> None:
    from batchsweep.demo import make, run

    print(make(args.out) if args.make_only else run(args.out))


def launch(args: argparse.Namespace) -> None:
    from batchsweep.jobs.launch import run

    if text := run(args):
        print(text)


def _open(config: Config) -> Store:
    from batchsweep.store import open_store

    return open_store(config.store_url)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _print_table(table: Table) -> None:
    from rich.console import Console

    class ReaderMayLeave(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # Which cli knows; rich would exit with 1.

    # A pipe or a file gets whole lines: nobody greps for half a revision.
    ReaderMayLeave(width=None if sys.stdout.isatty() else 200).print(table)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    f.__name__: f
    for f in (
        checkpoints,
        plan,
        prepare,
        extract,
        status,
        bandit,
        report,
        export,
        verify,
        convert,
        replay,
        demo,
        launch,
    )
}
