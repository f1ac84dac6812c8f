"""mteb's results as pulls that are paid already."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from simulated import problem_of, surface

from batchsweep.bandit.identity import run_digest
from batchsweep.bandit.ledger import MemoryLedger, Observation, StoreLedger, observations
from batchsweep.bandit.loop import run
from batchsweep.bandit.policies import POLICIES
from batchsweep.bandit.search import search
from batchsweep.cli.main import main
from batchsweep.config import BanditConfig, PullBudget, RewardsConfig
from batchsweep.config.load import load
from batchsweep.errors import UsageError
from batchsweep.score.record import Score
from batchsweep.store import open_store


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an extracted and exhaustively scored sweep, and its results as exported."""
    folder = tmp_path_factory.mktemp("swept")
    suite = tiny.make_suite(folder / "suite")
    config = tiny.write_sweep(
        folder,
        "sweep",
        suite,
        tasks=tiny.make_tasks(folder / "tasks"),
        revisions=["step0", "step1", "main"],
        bandit={"policy": "toptwo_gp", "budget": {"pulls": 3}, "stop_at_regret": 0},
    )
    for command in (["prepare"], ["extract", "--all"], ["bandit", "--policy", "exhaustive"]):
        assert main([command[0], "--config", str(config), *command[1:]]) == 0
    assert main(["export", "--config", str(config), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture
def results(swept: Path, tmp_path: Path) -> Path:
    """A copy of the results of two layers."""
    out = tmp_path / "results"
    for layer, revision in ((1, "step0"), (2, "main")):
        name = f"local__suite/{revision}/experiments/layer_{layer}__pooling_mean"
        shutil.copytree(swept / "out/mteb/results" / name, out / name)
    return out


def test_what_is_there_costs_nothing_and_is_named_in_the_ledger(
    swept: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(swept / "sweep.yaml")
    store = open_store(config.store_url)
    name, outcome = search(store, config, results)
    assert (outcome.budget.spent_pulls, outcome.budget.pulls) == (3, 3)
    assert len(outcome.observations) == 7
    first = list(observations(StoreLedger(store, name).records()))[:4]
    assert {one.kind for one in first} == {"imported"}
    path = results / "local__suite/main/experiments/layer_2__pooling_mean/TinySTS.json"
    [one] = [o for o in first if o.reason == f"imported from {path}"]
    assert (one.arm, one.task) == ("suite/main#2", "TinySTS")
    record = store.read_json("scores/suite/main/2-mean/TinySTS.json")
    assert one.score == pytest.approx(record["main_score"], abs=1e-6)
    assert not any(o.kind == "imported" for o in outcome.observations[4:])
    assert name != search(store, config)[0]
    capsys.readouterr()
    # Run again, it is the same search, wherever the folder lies by then.
    moved = shutil.move(results, results.parent / "moved")
    again = ["bandit", "--config", str(swept / "sweep.yaml"), "--results", str(moved)]
    assert main(again) == 0
    out = capsys.readouterr().out
    assert "pulls: 3 of the exhaustive 12" in out and f"bandit/{name}/answer.json" in out
    assert "4 more cells were imported and cost nothing" in out


def put(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edited(results: Path, file: str, **changes: object) -> None:
    for path in results.rglob(file):
        put(path, **changes)


@pytest.mark.parametrize(
    ("file", "changes", "why"),
    [
        ("TinySTS.json", {"mteb_version": "2.0.0"}, "of mteb 2.0.0, not the 2."),
        ("TinySTS.json", {"dataset_revision": "c0ffee"}, "of another revision of the task's data"),
        ("TinySTS.json", {"task_name": "STS12"}, "of tasks that the search doesn't have"),
        ("model_meta.json", {"revision": "step7"}, "of checkpoints that the plan doesn't have"),
        ("model_meta.json", {"name": "a/b"}, "of checkpoints that the plan doesn't have"),
        (
            "model_meta.json",
            {"experiment_kwargs": {"layer": 3, "pooling": "mean"}},
            "of layers or poolings that the search doesn't have",
        ),
        ("model_meta.json", {"experiment_kwargs": None}, "of experiments without a layer"),
        (
            "model_meta.json",
            {"experiment_kwargs": {"layer": 1, "max_texts": 9}},
            "of tasks with another cap than corpus.max_texts_per_task",
        ),
        (
            "model_meta.json",
            {"experiment_kwargs": {"layer": 1, "prompt": "x"}},
            "of experiments with settings of their own (prompt)",
        ),
    ],
)
def test_what_does_not_fit_is_counted_with_its_reason(
    swept: Path, results: Path, file: str, changes: dict, why: str, caplog
) -> None:
    edited(results, file, **changes)
    config = load(swept / "sweep.yaml")
    if file == "TinySTS.json":
        with caplog.at_level(logging.WARNING):
            search(open_store(config.store_url), config, results)
        assert f"2 results are left out: {why}" in caplog.text
    else:
        with pytest.raises(UsageError) as error:
            search(open_store(config.store_url), config, results)
        assert f"none of its results is a cell of this search: 4 are {why}" in str(error.value)


def test_what_is_no_folder_of_results_is_refused(swept: Path, results: Path) -> None:
    config = load(swept / "sweep.yaml")
    store = open_store(config.store_url)
    with pytest.raises(UsageError, match="no such folder"):
        search(store, config, results / "nowhere")
    with pytest.raises(UsageError, match=r"no files TASK\.json of mteb below it"):
        search(store, config, swept / "tasks")
    for file in results.rglob("*.json"):
        shutil.copy(file, results / "local__suite" / file.name)
    shutil.rmtree(results / "local__suite/main")
    shutil.rmtree(results / "local__suite/step0")
    with pytest.raises(UsageError, match="2 are of whole models"):
        search(store, config, results)
    changed = config.model_copy(update={"bandit": BanditConfig(texts_per_pull=20)})
    with pytest.raises(UsageError, match="another scale"):
        search(store, changed, results)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("rewards", [RewardsConfig(), RewardsConfig(scale="z")])
def test_every_policy_goes_on_from_what_is_there(policy: str, rewards: RewardsConfig) -> None:
    problem = problem_of(steps=4, layers=4, tasks=3)
    truth = surface(problem, 0)
    cells = [(a, t) for a in range(0, len(problem.arms), 2) for t in range(3)]
    imported = [
        Observation(
            "imported", problem.arms[a], problem.tasks[t], float(truth[a, t]), 1.0, "from x"
        )
        for a, t in cells
    ]
    asked = []

    def score(arm: str, task: str) -> Score:
        asked.append((arm, task))
        return Score(float(truth[problem.arms.index(arm), problem.tasks.index(task)]), 1.0)

    given = {"policy": policy, "budget": PullBudget(pulls=8), "stop_at_regret": 0}
    config = BanditConfig.model_validate(given)
    ledger = MemoryLedger()
    outcome = run(problem, score, config, rewards, ledger=ledger, imported=imported, quiet=True)
    assert not set(asked) & {(one.arm, one.task) for one in imported}
    assert len(asked) == outcome.budget.spent_pulls == outcome.budget.spent_pulls
    assert outcome.budget.spent_pulls <= (24 if policy == "exhaustive" else 8)
    plain = run_digest(problem, config, rewards)
    assert run_digest(problem, config, rewards, imported=imported) != plain
    again = run(problem, score, config, rewards, ledger=ledger, imported=imported, quiet=True)
    assert again.observations == outcome.observations
    assert len(asked) == again.budget.spent_pulls


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda task, meta: pipe(task), "can't be read as a result of MTEB: it is no file"),
        (lambda task, meta: pipe(meta), "without model_meta.json"),
        (lambda task, meta: linked(task, "/dev/zero"), "it is no file"),
        (lambda task, meta: task.write_text("[" * 100_000), "recursion depth"),
        (lambda task, meta: task.write_bytes(task.read_bytes()[:50]), "can't be read"),
        (lambda task, meta: os.truncate(task, 200 << 20), "it has more than 128 MiB"),
        (lambda task, meta: put(meta, experiment_kwargs=[1]), "experiment_kwargs are no mapping"),
        (lambda task, meta: put(task, evaluation_time=1e300), "is no score, or no time"),
        (lambda task, meta: put(task, evaluation_time=-5), "is no score, or no time"),
        (lambda task, meta: scored(task, 1e300), "is no score, or no time"),
        (lambda task, meta: scored(task, float("inf")), "is no score, or no time"),
        (lambda task, meta: scored(task, "x"), "no result of mteb"),
    ],
)
def test_results_of_a_stranger_are_refused_in_one_line(
    swept: Path, results: Path, harm: Callable[[Path, Path], object], said: str, capsys
) -> None:
    folder = results / "local__suite/main/experiments/layer_2__pooling_mean"
    shutil.rmtree(results / "local__suite/step0")
    for other in folder.glob("TinyC*.json"):
        other.unlink()
    harm(folder / "TinySTS.json", folder / "model_meta.json")
    given = ["bandit", "--config", str(swept / "sweep.yaml"), "--results", str(results)]
    capsys.readouterr()
    assert main(given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last and len(last) < 1000


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def scored(path: Path, value: object) -> None:
    content = json.loads(path.read_text())
    (of,) = content["scores"].values()
    of[0]["main_score"] = value
    path.write_text(json.dumps(content))
