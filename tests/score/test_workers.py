"""Scores of other processes, which are started once for this file: they import mteb."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest
from scoring import KEY, sentences, store_of

from batchsweep.config import Config, CorpusConfig, LocalTask
from batchsweep.errors import TryAgain
from batchsweep.score.scorer import Scorer
from batchsweep.score.workers import ScoreFunction, score_processes
from batchsweep.store import Store
from batchsweep.tasks.evaluators import Halves
from batchsweep.tasks.resolve import resolve


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    with score_processes(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[LocalTask]:
    folder = tmp_path_factory.mktemp("tasks")
    one, topics = sentences(90, 1)
    found = []
    for kind, rows in {
        "clustering": [{"text": t, "label": y} for t, y in zip(one, topics, strict=True)],
        "sts": [
            {"sentence1": a, "sentence2": b, "score": i % 4}
            for i, (a, b) in enumerate(zip(one, one[1:] + one[:1], strict=True))
        ],
    }.items():
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(LocalTask.model_validate({"name": kind, "type": kind, "path": path}))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tasks: list[LocalTask]) -> Store:
    return store_of(tmp_path_factory.mktemp("store") / "x.zarr", resolve(tasks))


def test_another_process_gives_the_same_numbers(
    process: Executor, tasks: list[LocalTask], store: Store
) -> None:
    score = ScoreFunction(store.url, tuple(tasks), CorpusConfig())
    pulls = [(f"{KEY}#{layer}", task.name) for layer in (1, 2) for task in tasks]
    here = [Scorer(store, resolve(tasks), keep=False).score(*p).main_score for p in pulls]
    there = list(process.map(score, *zip(*pulls, strict=True)))
    assert [result.main_score for result in there] == here
    assert all(result.seconds > 0 and result.document["result"]["scores"] for result in there)


def test_the_next_search_of_a_process_reads_its_own_store(
    tasks: list[LocalTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where both are called the same: each in a folder of its own."""
    given = [task.model_dump(mode="json", exclude_none=True) for task in tasks]
    config = Config.model_validate(
        {"models": ["m"], "tasks": given, "store": {"path": "store.zarr"}}
    )
    for folder, dtype in (("first", "float32"), ("second", "float16")):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        there = store_of(Path("store.zarr"), resolve(tasks), dtype=dtype)
        document = ScoreFunction.of(config)(f"{KEY}#1", "sts").document
        assert document["origin"]["group"] == there.reader(KEY).spec.digest.hex()


def test_every_arm_and_process_gets_the_same_examples(
    process: Executor, tasks: list[LocalTask], store: Store
) -> None:
    halves = Halves(40, seed=2)
    pulls = [(f"{KEY}#{layer}", task.name) for task in tasks for layer in (1, 2)]
    scorer = Scorer(store, resolve(tasks), keep=False)
    # In this order here, in another there: what is drawn hangs on the seed alone.
    here = {p: scorer.score(*p, halves).document["halves"] for p in pulls}
    other = {
        p: Scorer(store, resolve(tasks), keep=False)
        .score(*p, Halves(40, seed=5))
        .document["halves"]
        for p in pulls
    }
    assert here != other
    score = ScoreFunction(store.url, tuple(tasks), CorpusConfig(), halves)
    there = list(process.map(score, *zip(*pulls[::-1], strict=True)))
    assert {p: r.document["halves"] for p, r in zip(pulls[::-1], there, strict=True)} == here


def test_a_process_that_was_killed_is_a_passing_fault() -> None:
    with pytest.raises(TryAgain, match=r"a smaller bandit\.workers"), score_processes(1) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        pool.submit(os.getpid).result()


def test_who_is_told_to_stop_waits_for_no_pull() -> None:
    begun = time.monotonic()
    with pytest.raises(SystemExit), score_processes(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 600)
        raise SystemExit(143)
    assert time.monotonic() - begun < 120
