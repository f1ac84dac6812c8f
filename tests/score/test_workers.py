"""Scores of other processes, which are started once for this file: they import mteb."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from scoring import KEY, sentences, store_of

from batchsweep.config import Config, CorpusConfig, LocalTask
from batchsweep.errors import TryAgain
from batchsweep.score.scorer import Scorer
from batchsweep.score.workers import ScoreFunction, score_processes
from batchsweep.store import Store
from batchsweep.tasks.evaluators import Halves, Request
from batchsweep.tasks.resolve import resolve


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with score_processes(2) as pool:
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
    processes: Executor, tasks: list[LocalTask], store: Store
) -> None:
    score = ScoreFunction(store.url, tuple(tasks), CorpusConfig())
    pulls = [(f"{KEY}#{layer}", task.name) for layer in (1, 2) for task in tasks]
    here = [Scorer(store, resolve(tasks), keep=False).score(*p).main_score for p in pulls]
    there = list(processes.map(score, *zip(*pulls, strict=True)))
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
    processes: Executor, tasks: list[LocalTask], store: Store
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
    there = list(processes.map(score, *zip(*pulls[::-1], strict=True)))
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


COUNTED = """
import os
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskSTS

class Counted(AbsTaskSTS):
    metadata = TaskMetadata(
        name="{name}", description="", type="STS", eval_langs=["eng-Latn"],
        main_score="cosine_spearman", dataset={{"path": "x/y", "revision": "1"}},
    )
    def load_data(self, **kwargs):
        with open({reads!r}, "a") as file:
            file.write("{name}\\n")
        rows = {{"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "score": [0, 2, 1]}}
        self.dataset = DatasetDict({{"test": Dataset.from_dict(rows)}})
        self.data_loaded = True
"""


@pytest.fixture
def counted(tmp_path: Path) -> tuple[ScoreFunction, list[str], Path]:
    """Scores of two tasks that write down each time that their data are read; and where."""
    names, reads = ["first", "second"], tmp_path / "reads"
    tasks = []
    for name in names:
        path = tmp_path / f"{name}.py"
        path.write_text(COUNTED.format(name=name, reads=str(reads)))
        tasks.append(LocalTask(name=name, type="python", path=path))
    store = store_of(tmp_path / "x.zarr", resolve(tasks), layers=(1, 2, 3, 4))
    reads.write_text("")
    return ScoreFunction(store.url, tuple(tasks), CorpusConfig()), names, reads


def test_all_layers_are_scored_from_one_reading_of_a_tasks_data(
    counted: tuple[ScoreFunction, list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, names, reads = counted
    made: list[str] = []
    own = Request.__init__

    def request(self: Request, *args: Any, **kwargs: Any) -> None:
        made.append("request")
        own(self, *args, **kwargs)

    monkeypatch.setattr(Request, "__init__", request)
    for layer in (1, 2, 3, 4):
        for name in names:
            score(f"{KEY}#{layer}", name)
    assert reads.read_text().split() == names
    assert len(made) == 2 * len(names)  # Both columns of texts, once.


def test_processes_share_tasks_out_so_that_each_is_read_once(
    processes: Executor, counted: tuple[ScoreFunction, list[str], Path]
) -> None:
    score, names, reads = counted
    for layer in (1, 2, 3, 4):
        # As a search asks: so many pulls at once, in any order, and waits for all of them.
        batch = names[:: (-1) ** layer]
        pulls = [processes.submit(score, f"{KEY}#{layer}", name) for name in batch]
        assert all(pull.result().main_score <= 1 for pull in pulls)
    assert sorted(reads.read_text().split()) == names
