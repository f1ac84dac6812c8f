"""Pairs: indexes that are extracted task by task, in any order, killed or not."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_data import stored
from tiny import make_suite, make_tasks, write_config

import batchsweep.store
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import StoreCorrupt, UsageError
from batchsweep.extract.extract import extract
from batchsweep.extract.status import index_statuses
from batchsweep.numerics import cores
from batchsweep.plan.frozen import frozen_plan
from batchsweep.plan.pairs import Missing, Pairs
from batchsweep.plan.timings import Timing, add_timing, timings
from batchsweep.signals import StopRequest
from batchsweep.store.integrity import verify
from batchsweep.store.pairs import TaskBlocks, ready_tasks

TASKS = ("TinySTS", "TinyClustering", "Half", "Others")
KEY = "tiny/main"


def four_tasks(folder: Path) -> list[dict[str, str]]:
    """Two tasks, a third that shares half of the first one's texts, and one that shares none."""
    two = make_tasks(folder)
    (other, _) = make_tasks(folder / "other", n=25, seed=1)
    lines = Path(two[0]["path"]).read_text().splitlines()
    half = folder / "half.jsonl"
    half.write_text("\n".join(lines[::2] + Path(other["path"]).read_text().splitlines()[:5]))
    return [
        *two,
        {"name": "Half", "type": "sts", "path": str(half)},
        {"name": "Others", "type": "sts", "path": other["path"]},
    ]


@pytest.fixture(scope="module")
def sections(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("suite")
    return {
        "models": [str(make_suite(folder / "tiny", ("step0", "main")))],
        "revisions": ["step0", "main"],
        "tasks": four_tasks(folder / "tasks"),
        "metrics": {"sample": 16},
        "bandit": {"budget": {"pulls": 6}, "policy": "random"},
    }


def made(folder: Path, sections: dict, format: str = "zarr") -> str:
    """A config whose store is prepared."""
    folder.mkdir()
    store = {"path": str(folder / "store"), "format": format, "block_texts": 8}
    config = str(write_config(folder / "sweep.yaml", **sections, store=store))
    assert main(["prepare", "--config", config]) == 0
    return config


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def whole(request, tmp_path_factory, sections) -> tuple[str, str, dict[str, bytes]]:
    """The format, a prepared config, and the bytes of both indexes extracted at once."""
    folder = tmp_path_factory.mktemp(request.param)
    config = made(folder / "prepared", sections, request.param)
    at_once = made(folder / "whole", sections, request.param)
    assert main(["extract", "--config", at_once, "--all"]) == 0
    return request.param, config, stored(folder / "whole" / "store")


def again(config: str) -> Path:
    """The prepared store without embeddings."""
    store = Path(load(config).store_url)
    kept = store.with_name("kept")
    if not kept.exists():
        shutil.copytree(store, kept)
    shutil.rmtree(store)
    shutil.copytree(kept, store)
    return store


requests = st.lists(
    st.tuples(st.integers(0, 1), st.sets(st.sampled_from(TASKS), min_size=1)), max_size=5
)


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=requests)
def test_pairs_in_any_order_end_with_the_bytes_of_all_at_once(whole, asked) -> None:
    _, path, expected = whole
    again(path)
    config = load(path)
    store = batchsweep.store.open_store(config.store_url)
    plan = frozen_plan(store, config)
    corpus = store.corpus()
    have: dict[str, set[int]] = {entry.key: set() for entry in plan.entries}
    for index, tasks in asked:
        entry = plan.entry(index)
        wanted = TaskBlocks(corpus, 8).of(tasks)
        done = extract(store, config, entry, tasks=tasks, stop=StopRequest(1))
        new = wanted - have[entry.key]
        assert done.blocks == len(new)
        assert done.state == ("extracted" if new else "already sealed")
        have[entry.key] |= wanted
        reader = store.reader(entry.key)
        assert reader.sealed == have[entry.key]
        assert set(tasks) <= set(ready_tasks(store)[entry.key])
        assert reader.metrics()
    assert verify(store) == []
    for entry in plan.entries:
        extract(store, config, entry, stop=StopRequest(1))
    assert all(status.complete for status in store.status())
    assert stored(Path(config.store_url)) == expected


def test_killed_between_pairs_ends_with_the_bytes_of_all_at_once(whole, commands) -> None:
    format, path, expected = whole
    store = again(path)
    chance = random.Random(format)
    kills = 0
    while kills < 3:
        tasks = ",".join(chance.sample(TASKS, chance.randint(1, 2)))
        arguments = ("extract", "--index", str(chance.randrange(2)), "--tasks", tasks)
        status = commands.run(Path(path), *arguments, kill_after=chance.uniform(0, 1.5))
        assert status in (0, -signal.SIGKILL), commands.output
        kills += status != 0
    commands.succeed(Path(path), "verify")
    commands.succeed(Path(path), "extract", "--all")
    assert stored(store) == expected


def test_a_tasks_blocks_and_no_others(tmp_path, sections, capsys) -> None:
    config = made(tmp_path / "sweep", sections)
    assert main(["extract", "--config", config, "--index", "1", "--tasks", "TinyClustering"]) == 0
    store = batchsweep.store.open_store(load(config).store_url)
    reader = store.reader(KEY)
    rows = store.corpus().rows_of("TinyClustering")
    assert reader.sealed == {row // 8 for row in rows.tolist()}
    assert reader.read("mean", 1, rows).shape == (len(rows), 32)
    assert not reader.complete
    assert ready_tasks(store) == {KEY: ("TinyClustering",)}
    capsys.readouterr()
    assert main(["status", "--config", config]) == 0
    shown = capsys.readouterr().out
    assert "1 open, 1 waiting; 1 of 8 pairs ready" in shown
    assert f"{len(reader.sealed)}/{reader.spec.blocks}" in shown and "1/4" in shown
    assert main(["status", "--config", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["ready"] == ["TinyClustering"]


def test_an_unknown_task_is_named_before_anything_is_loaded(tmp_path, sections, capsys) -> None:
    config = made(tmp_path / "sweep", sections)
    assert main(["extract", "--config", config, "--index", "0", "--tasks", "TinySTS,Nope"]) == 2
    error = capsys.readouterr().err
    assert "no task 'Nope'" in error and ", ".join(TASKS) in error
    assert batchsweep.store.open_store(load(config).store_url).keys() == []


def test_one_writer_an_index_whatever_the_tasks(tmp_path, sections, capsys) -> None:
    config = made(tmp_path / "sweep", sections)
    store = batchsweep.store.open_store(load(config).store_url)
    other = ["extract", "--config", config, "--index", "1", "--tasks", "Others"]
    with store.lease(f"checkpoints/{KEY}"):
        assert main(other) == 75
    assert main(other) == 0
    # What is there needs no lease.
    with store.lease(f"checkpoints/{KEY}"):
        assert main(other) == 0


def test_a_reader_sees_the_pairs_that_came_after_it_was_made(tmp_path, sections) -> None:
    path = made(tmp_path / "sweep", sections)
    config = load(path)
    store = batchsweep.store.open_store(config.store_url)
    entry = frozen_plan(store, config).entry(1)
    extract(store, config, entry, tasks=["Others"], stop=StopRequest(1))
    reader = store.reader(KEY)
    rows = store.corpus().rows_of("TinySTS")
    with pytest.raises(batchsweep.errors.StoreError, match="aren't there yet"):
        reader.read("mean", 1, rows)
    extract(store, config, entry, tasks=["TinySTS"], stop=StopRequest(1))
    assert reader.read("mean", 1, rows).shape == (len(rows), 32)


def test_a_note_of_failed_pairs_is_over_once_they_are_there(tmp_path, sections, capsys) -> None:
    path = made(tmp_path / "sweep", sections)
    config = load(path)
    weights = Path(config.models[0].name) / "main" / "model.safetensors"
    kept = weights.read_bytes()
    others = ["extract", "--config", path, "--index", "1", "--tasks", "Others"]
    try:
        weights.unlink()
        assert main(others) == 0
    finally:
        weights.write_bytes(kept)
    main(["status", "--config", path])
    assert "1 waiting, 1 skipped" in capsys.readouterr().out
    assert main(others) == 0
    main(["status", "--config", path])
    assert "1 open, 1 waiting" in capsys.readouterr().out
    store = batchsweep.store.open_store(config.store_url)
    plan = frozen_plan(store, config)
    assert [row.state for row in index_statuses(store, plan, pairs=False)] == ["waiting", "open"]


def test_a_search_takes_the_checkpoints_that_have_all_its_tasks(tmp_path, sections, capsys) -> None:
    config = made(tmp_path / "sweep", sections)
    some = ["--tasks", "TinySTS,Half,Others"]
    assert main(["extract", "--config", config, "--index", "1", *some]) == 0
    capsys.readouterr()
    assert main(["bandit", "--config", config]) == 75
    assert "no index has all of its 4 tasks extracted yet" in capsys.readouterr().err
    store = {"path": load(config).store_url, "block_texts": 8}
    sts = {**sections, "rewards": {"target": "sts"}, "store": store}
    config = str(write_config(tmp_path / "sts.yaml", **sts))
    assert main(["bandit", "--config", config]) == 0
    shown = capsys.readouterr()
    assert "1 of 2 indexes miss tasks and take no part in the search: tiny/step0 (3" in shown.err
    assert "tiny/main" in shown.out
    for command in ("report", "export", "verify"):
        assert main([command, "--config", config]) == 0, capsys.readouterr().err
    page = (tmp_path / "sweep" / "report" / "report.html").read_text()
    assert "3 of 4 tasks extracted" in page and "not extracted yet" in page
    assert main(["convert", str(store["path"]), str(tmp_path / "copy")]) == 0
    copy = batchsweep.store.open_store(tmp_path / "copy")
    assert ready_tasks(copy) == {KEY: ("TinySTS", "Half", "Others")}
    assert copy.reader(KEY).metrics()


def test_what_missing_pairs_take(tmp_path, sections, caplog) -> None:
    path = made(tmp_path / "sweep", sections)
    config = load(path)
    store = batchsweep.store.open_store(config.store_url)
    plan = frozen_plan(store, config)
    entry, corpus = plan.entry(0), store.corpus()
    pairs = Pairs(store, plan, config)
    assert pairs.tasks == TASKS and pairs.ready(entry) == ()
    whole = pairs.missing(entry)
    assert whole.texts == corpus.n_texts
    assert whole.tokens == len(corpus.tokens(entry.tokenizer)[0])
    assert whole.store_bytes == corpus.n_texts * 2 * 32 * 2  # layers, hidden size, float16
    assert whole.flops == entry.shape.flops(whole.tokens, whole.tokens / whole.texts)
    one, both = pairs.missing(entry, ["TinySTS"]), pairs.missing(entry, ["TinySTS", "Half"])
    half = pairs.missing(entry, ["Half"])
    assert one.texts >= len(corpus.rows_of("TinySTS"))
    assert one.tokens < both.tokens < one.tokens + half.tokens  # They share blocks.
    assert pairs.each(entry) == {task: pairs.whole(entry, [task]) for task in TASKS}
    assert pairs.missing(entry, []) == Missing((), 0, 0, 0, 0.0)
    done = extract(store, config, entry, tasks=["TinySTS"], stop=StopRequest(1))
    assert (done.blocks, done.texts, done.tokens) == (len(one.blocks), one.texts, one.tokens)
    assert pairs.missing(entry, ["TinySTS"]) == one
    pairs.refresh()
    assert pairs.ready(entry) == ("TinySTS",)
    assert pairs.missing(entry, ["TinySTS"]).blocks == ()
    assert pairs.missing(entry, ["Half"]).texts == both.texts - one.texts
    assert pairs.missing(plan.entry(1)) == whole
    more = extract(store, config, entry, tasks=["Half"], stop=StopRequest(1))
    assert extract(store, config, entry, tasks=["Half"], stop=StopRequest(1)).blocks == 0
    [(key, timing)] = timings(store).items()
    assert (key, timing.runs, timing.tokens) == (entry.key, 2, done.tokens + more.tokens)
    assert 0 < timing.seconds < done.seconds + more.seconds and timing.start_seconds > 0
    with pytest.raises(UsageError, match="no task 'Nope'"):
        pairs.missing(entry, ["Nope"])
    note = f"timings/{entry.key}.json"
    damaged: list[Any] = [{"pace": 3}, {"tokens": -1}, {"seconds": "long"}, []]
    for wrong in damaged:
        store.write_json(note, wrong)
        with pytest.raises(StoreCorrupt, match="says no timing"):
            timings(store, strict=True)
        assert timings(store) == {}
    assert caplog.text.count("says no timing") == len(damaged)
    store.write_json(note, {"runs": 2, "start_seconds": 1.0, "tokens": 9, "seconds": 2.0})
    assert timings(store) == {entry.key: Timing(2, 1.0, 9, 2.0)}, "an earlier version's"
    store.delete_json(note)
    add_timing(store, entry.key, timing)
    assert timings(store) == {entry.key: timing}, "it is right again"


@pytest.mark.parametrize("busy", [True, False])
def test_what_a_process_waited_for_its_cores_is_recorded(
    tmp_path, sections, monkeypatch, busy
) -> None:
    """On a clock of processor time that stands still, or is no slower than the wall's."""
    config = load(made(tmp_path / "sweep", sections))
    store = batchsweep.store.open_store(config.store_url)
    entry = frozen_plan(store, config).entry(0)
    clock = (lambda: 0.0) if busy else (lambda: cores() * time.monotonic())
    monkeypatch.setattr("time.process_time", clock)
    extract(store, config, entry, tasks=["Half"], stop=StopRequest(1))
    (timing,) = timings(store).values()
    waited = (timing.waited_start_seconds, timing.waited_seconds)
    assert 0 < timing.seconds < 60 and 0 < timing.start_seconds < 60
    if busy:
        assert waited == pytest.approx((timing.start_seconds, timing.seconds), abs=0.1)
    else:
        assert waited == pytest.approx((0, 0), abs=0.01)


def test_tasks_of_blocks(tmp_path) -> None:
    store = batchsweep.store.create_store(tmp_path / "store.zarr")
    with store.corpus_writer() as writer:
        writer.add_texts([str(n) for n in range(10)])
        writer.add_task("a", [0, 1, 2])
        writer.add_task("b", [1, 9])
        writer.add_task("none", [])
        writer.finish()
    blocks = TaskBlocks(store.corpus(), 4)
    assert blocks.of(["a"]) == {0}
    assert blocks.of(["b"]) == {0, 2}
    assert blocks.of(["none"]) == set()
    assert blocks.of() == {0, 1, 2}
    assert blocks.ready(frozenset()) == ()
    assert blocks.ready(frozenset({0})) == ("a",)
    assert blocks.ready(frozenset({0, 2})) == ("a", "b")
    assert blocks.ready(frozenset({0, 1, 2})) == ("a", "b", "none")
    with pytest.raises(UsageError, match=r"no task 'c' .* valid: a, b, none"):
        blocks.of(["a", "c"])
