"""Pulls on two seeded subsets of a task: the same for every arm, and as noisy as they say."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_store import FolderStore
from scoring import KEY, local_tasks, sentences, store_of
from scoring_tasks import NAMES, all_tasks, fresh_task
from tiny import extracted_store, make_suite, make_tasks, write_config

from batchsweep.bandit import replay
from batchsweep.bandit.identity import run_digest
from batchsweep.bandit.ledger import StoreLedger
from batchsweep.bandit.loop import run
from batchsweep.bandit.policies import Problem
from batchsweep.bandit.pull_noise import SplitHalvesNoise
from batchsweep.bandit.score_table import ScoreTable
from batchsweep.cli.main import main
from batchsweep.config import BanditConfig, CorpusConfig, PullBudget, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.score import scorer as scorer_module
from batchsweep.score.export import table
from batchsweep.score.record import Score
from batchsweep.score.records import records
from batchsweep.score.scorer import Scorer
from batchsweep.store import Store
from batchsweep.tasks.evaluators import Halves, prepare_halves, prepare_task
from batchsweep.tasks.local import from_columns

RAW = RewardsConfig(scale="raw")
#: Larger than 100 texts, of every class that can be divided.
DIVIDED = (
    "sts pairs classes binary labels clusters rerank search bitext LegacySets Hierarchy OwnNames"
).split()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    return store_of(path, all_tasks().values(), layers=(1, 2, 3))


@pytest.fixture(scope="module")
def scorer(store: Store) -> Scorer:
    return Scorer(store, list(all_tasks().values()), keep=False)


# Which examples


@pytest.mark.parametrize("name", DIVIDED)
def test_a_pull_scores_two_different_parts_of_what_the_whole_task_asks_for(
    scorer: Scorer, name: str
) -> None:
    halves = Halves(60, seed=3)
    result = scorer.score(f"{KEY}#1", name, halves)
    one, two = scorer.prepared(name, halves)
    assert (one.half, two.half) == (result.document["half"],) * 2
    rows = [[request.rows.tolist() for request in part.requests] for part in (one, two)]
    assert rows[0] != rows[1]
    [task] = scorer.prepared(name)
    whole = {row for request in task.requests for row in request.rows.tolist()}
    assert {row for part in rows for request in part for row in request} <= whole
    assert result.main_score == pytest.approx(np.mean(result.document["halves"]))
    assert result.document["half"] == {"texts_per_pull": 60, "seed": 3}


@pytest.mark.parametrize("name", NAMES)
def test_a_small_task_is_scored_whole(scorer: Scorer, name: str) -> None:
    whole = scorer.score(f"{KEY}#1", name)
    pull = scorer.score(f"{KEY}#1", name, Halves(10_000, seed=0))
    same = {k: v for k, v in pull.document.items() if k not in ("seconds", "result")}
    assert same == {k: whole.document[k] for k in same}
    assert "halves" not in pull.document


def test_a_cap_of_the_corpus_and_a_subset_compose(tmp_path: Path) -> None:
    corpus = CorpusConfig(max_texts_per_task=80, seed=3)
    tasks = {name: fresh_task(name) for name in ("sts", "classes", "clusters", "rerank")}
    store = store_of(tmp_path / "x.zarr", tasks.values(), corpus=corpus)
    scorer = Scorer(store, [fresh_task(name) for name in tasks], corpus=corpus)
    for name in tasks:
        record = scorer.score(f"{KEY}#1", name, Halves(40, seed=1)).document
        assert record["cap"] == {"max_texts_per_task": 80, "seed": 3}
        assert record["half"] == {"texts_per_pull": 40, "seed": 1}
        # The whole of the capped task, after its halves: capped again when it is loaded again.
        assert scorer.score(f"{KEY}#1", name).document["cap"] == record["cap"]


def test_halves_leave_the_task_as_it_was() -> None:
    for name in DIVIDED:
        task, fresh = fresh_task(name), fresh_task(name)
        prepare_halves(task, None, Halves(60, seed=1))
        ours, theirs = prepare_task(task), prepare_task(fresh)
        for a, b in zip(ours.requests, theirs.requests, strict=True):
            assert list(a.chunks("")) == list(b.chunks("")), name
            assert np.array_equal(a.which, b.which), name


def test_records_of_subsets_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = local_tasks("sts", "pairs")
    store = store_of(tmp_path / "x.zarr", tasks)
    scorer = Scorer(store, tasks)
    first = scorer.score(f"{KEY}#1", "sts", Halves(60, seed=1))
    assert list(records(store)) == [] and table(store).empty
    whole = scorer.score(f"{KEY}#1", "sts")
    assert [r.main_score for r in records(store)] == [whole.main_score]
    again = Scorer(store, tasks)
    with monkeypatch.context() as patch:  # Not even made ready to be scored.
        patch.setattr(scorer_module, "prepare_halves", None)
        patch.setattr(scorer_module, "prepare_task", None)
        assert again.score(f"{KEY}#1", "sts", Halves(60, seed=1)).document == first.document
    other = [Halves(60, seed=2), Halves(80, seed=1)]
    assert len({again.score(f"{KEY}#1", "sts", h).main_score for h in other}) == 2
    assert len(store.list_json("subsets")) == 3
    assert len(store.list_json("scores")) == 1


# Noise


def test_noise_by_hand() -> None:
    noise = SplitHalvesNoise(["a", "b"])
    assert noise.observe("whole", None) == 0.0
    # One arm: nothing but the difference itself is known.
    assert noise.observe("a", [0.5, 0.3]) == pytest.approx(0.1)
    # Two arms: 0.2 is common to both; variance of the differences 0, without the prior.
    assert noise.observe("a", [0.6, 0.4]) == pytest.approx(0.0)
    assert noise.observe("a", [0.7, 0.2]) == pytest.approx(math.sqrt(0.03) / 2)
    # Another task's first arm: the median task's variance.
    assert noise.observe("b", [0.9, 0.1]) == pytest.approx(math.sqrt(0.03) / 2)
    # A half that is undefined says nothing.
    assert noise.observe("b", [None, 0.1]) == noise.of("b")


class Examples:
    """Tasks of known examples: an arm's score on each is its quality, the example's own
    difficulty and how much it suits the arm; a task's score is the mean over its examples."""

    def __init__(self, arms: int = 30, seed: int = 0, *, dies_at: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.tasks = ("few", "many", "hard", "small")
        sizes, suits = (200, 2000, 500, 10), (0.1, 0.1, 0.5, 0.2)
        layers = np.arange(arms)
        quality = 0.05 * np.sin(layers / 5)
        self.examples = [
            quality[:, None] + 0.3 * rng.normal(size=n) + s * rng.normal(size=(arms, n))
            for n, s in zip(sizes, suits, strict=True)
        ]
        self.problem = Problem(
            arms=tuple(f"m/main#{i}" for i in layers),
            tasks=self.tasks,
            model=("m",) * arms,
            step=np.zeros(arms),
            depth=(layers + 1) / arms,
        )
        self.full_AT = np.stack([e.mean(axis=1) for e in self.examples], axis=1)
        self.asked: list[tuple[str, str, str]] = []
        self.dies_at = dies_at
        self.draws = [
            [np.random.default_rng([seed, t, half]).permutation(n)[:25] for half in (0, 1)]
            for t, n in enumerate(sizes)
        ]

    def _ask(self, arm: str, task: str, how: str) -> tuple[int, int]:
        if self.dies_at is not None and len(self.asked) >= self.dies_at:
            raise KeyboardInterrupt
        self.asked.append((arm, task, how))
        return self.problem.arms.index(arm), self.tasks.index(task)

    def half(self, arm: str, task: str) -> Score:
        a, t = self._ask(arm, task, "subset")
        if task == "small":
            return Score(float(self.full_AT[a, t]), 1.0)
        one, two = (float(self.examples[t][a, rows].mean()) for rows in self.draws[t])
        return Score(float(np.mean([one, two])), 1.0, halves=(one, two))

    def full(self, arm: str, task: str) -> Score:
        a, t = self._ask(arm, task, "full")
        return Score(float(self.full_AT[a, t]), 20.0)


def searched(examples: Examples, ledger: Any = None, **settings: Any) -> Any:
    settings = {"policy": "random", "stop_at_regret": 0, "texts_per_pull": 50, **settings}
    pool = settings.pop("pool", None)
    return run(
        examples.problem,
        examples.half,
        BanditConfig(**settings),
        RAW,
        ledger=ledger,
        executor=pool,
        full_fn=examples.full,
        quiet=True,
    )


def test_measured_noise_is_that_of_the_examples() -> None:
    within, ratios = [], []
    for seed in range(12):
        examples = Examples(seed=seed)
        outcome = searched(examples, budget=1e9, final_check=0, seed=seed)
        error = outcome.plane - examples.full_AT
        error = error - error.mean(axis=0)  # What all arms have in common is no noise.
        assert outcome.noise[3] == 0
        np.testing.assert_allclose(error[:, 3], 0, atol=1e-12)
        within.append((np.abs(error) < 2 * outcome.noise)[:, :3].mean())
        ratios.append(outcome.noise[:3] / error[:, :3].std(axis=0, ddof=1))
    assert 0.93 < np.mean(within) < 0.97
    # Two independent draws: no bias, finite populations ("few": 25 of 200) included.
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1.0, atol=0.1)


def test_measured_noise_of_real_evaluations(tmp_path: Path) -> None:
    one, topic1 = sentences(500, 1)
    two, topic2 = sentences(500, 2)
    train, train_topic = sentences(200, 3)
    same = [int(a == b) for a, b in zip(topic1, topic2, strict=True)]
    queries = sentences(120, 4)[0]
    columns: dict[str, Any] = {
        "sts": {"sentence1": one, "sentence2": two, "score": same},
        "pair_classification": {"sentence1": one, "sentence2": two, "label": same},
        "classification": {
            "train": {"text": train, "label": train_topic},
            "test": {"text": one, "label": topic1},
        },
        "reranking": {
            "query": queries,
            "positive": [sentences(2, 1000 + i)[0] for i in range(120)],
            "negative": [sentences(6, 2000 + i)[0] for i in range(120)],
        },
    }
    tasks = [from_columns(kind, kind, value) for kind, value in columns.items()]
    layers = tuple(range(1, 17))
    store = store_of(tmp_path / "x.zarr", tasks, layers=layers)
    scorer = Scorer(store, tasks, keep=False)
    within = []
    for kind in columns:
        full = np.array([scorer.score(f"{KEY}#{n}", kind).main_score for n in layers])
        for seed in range(3):
            noise = SplitHalvesNoise(columns)
            pulls = [scorer.score(f"{KEY}#{n}", kind, Halves(200, seed)) for n in layers]
            for pull in pulls:
                noise.observe(kind, pull.document["halves"])
            error = np.array([pull.main_score for pull in pulls]) - full
            within.append(float(np.mean(np.abs(error - error.mean()) < 2 * noise.of(kind))))
    assert np.mean(within) > 0.9
    assert min(within) > 0.6


def test_a_pull_asks_for_less_of_a_big_task() -> None:
    # Scoring's time goes with the texts that are asked for, and retrieval's with the queries; tests
    # time nothing.
    for name in DIVIDED:
        part = slice(0, 1) if name in ("search", "OwnNames") else slice(None)
        whole = sum(map(len, prepare_task(fresh_task(name)).requests[part]))
        halves = prepare_halves(fresh_task(name), None, Halves(40, seed=0))
        assert len(halves) == 2
        asked = sum(len(request) for half in halves for request in half.requests[part])
        # A training set, a query with its documents, or enough documents for each label of a
        # clustering may exceed a half, but never the whole.
        assert asked <= (1 if name == "Hierarchy" else 0.6) * whole, name


# The loop


SEARCHES = [
    {"policy": policy, "workers": workers, "budget": PullBudget(pulls=60)}
    for policy in ("toptwo_gp", "sequential_halving")
    for workers in (1, 3)
]


@pytest.fixture(scope="module", params=SEARCHES, ids=lambda s: f"{s['policy']}-{s['workers']}")
def undisturbed(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """A search's settings and its outcome."""
    outcome = searched(Examples(), **request.param)
    assert sum(r.full for r in outcome.observations) == 9  # 3 arms; "small" was whole
    return request.param, outcome


@pytest.mark.parametrize("dies_at", [1, 20, -4])
def test_killed_and_restarted_ends_as_if_uninterrupted(
    undisturbed: tuple[dict[str, Any], Any], dies_at: int
) -> None:
    settings, whole = undisturbed
    store = FolderStore()
    first = Examples(dies_at=dies_at % whole.budget.spent_pulls)  # -4: amid the final check.
    with pytest.raises(KeyboardInterrupt):
        searched(first, StoreLedger(store, "r"), **settings)
    second = Examples()
    resumed = searched(second, StoreLedger(store, "r"), **settings)
    assert json.dumps(resumed.to_json()) == json.dumps(whole.to_json())
    assert resumed.observations == whole.observations
    assert len(first.asked) + len(second.asked) == whole.budget.spent_pulls


def test_pulls_at_once_end_as_one_after_the_other(
    undisturbed: tuple[dict[str, Any], Any],
) -> None:
    settings, whole = undisturbed
    with ThreadPoolExecutor(3) as pool:
        together = searched(Examples(), pool=pool, **settings)
    assert together.observations == whole.observations
    assert json.dumps(together.to_json()) == json.dumps(whole.to_json())


def test_the_final_check_is_in_full_billed_and_decides() -> None:
    examples = Examples()
    outcome = searched(examples, budget=PullBudget(pulls=60), policy="toptwo_gp")
    assert len(examples.asked) == outcome.budget.spent_pulls <= 60
    checked = [examples.problem.arms.index(arm) for arm in outcome.checked]
    assert len(checked) == 3
    full = examples.full_AT.mean(axis=1)
    best = examples.problem.arms.index(outcome.answer.arm)
    assert best == max(checked, key=lambda arm: full[arm])
    assert outcome.answer.mean == pytest.approx(full[best])
    np.testing.assert_allclose(outcome.plane[checked], examples.full_AT[checked])
    assert outcome.answer.interval == (outcome.answer.mean, outcome.answer.mean)
    assert "scored in full" in outcome.answer.basis
    first = outcome.checked[0] == outcome.answer.arm
    assert (outcome.answer.p_best is not None) == first
    assert not {c.arm for c in outcome.answer.runners_up} & set(outcome.checked)
    # All beliefs are on the scale of whole tasks: subsets are off by what their examples share.
    assert abs((outcome.plane - examples.full_AT).mean()) < 0.05
    there = outcome.to_json()["subsets"]
    assert there["texts_per_pull"] == 50 and there["checked_in_full"] == list(outcome.checked)


def test_without_budget_for_the_check_the_answer_says_that_it_rests_on_subsets() -> None:
    for settings in ({"budget": PullBudget(pulls=10)}, {"budget": 1e9, "final_check": 0}):
        outcome = searched(Examples(), **settings)
        assert outcome.checked == ()
        assert "rests on subsets" in outcome.answer.basis
        assert not any(r.full for r in outcome.observations)


def test_a_search_on_subsets_can_score_everything_and_check() -> None:
    examples = Examples()
    outcome = searched(examples, budget=1e9, policy="exhaustive")
    assert outcome.budget.spent_pulls == 4 * 30 + 3 * 3
    assert len(outcome.checked) == 3
    # All cells are scored, but on subsets: the best arm isn't known for certain.
    assert outcome.answer.p_best is None and outcome.answer.expected_regret is None


def test_seconds_keep_some_for_the_check() -> None:
    outcome = searched(Examples(), budget=PullBudget(seconds=900), final_check=2)
    # A whole task takes 20 s here, a subset 1 s; the last pulls may go over.
    assert outcome.checked
    assert outcome.budget.spent_seconds < 900 + 20


def test_another_number_of_texts_is_another_search() -> None:
    problem = Examples().problem
    whole, some, more = (BanditConfig(texts_per_pull=n) for n in (None, 50, 100))
    assert len({run_digest(problem, c, RAW) for c in (whole, some, more)}) == 3
    store = FolderStore()
    run(problem, Examples().full, whole.model_copy(update={"policy": "heuristic"}), RAW,
        ledger=StoreLedger(store, "r"), quiet=True)  # fmt: skip
    # A search on whole tasks is the same one that it was before there was such a setting.
    assert "texts_per_pull" not in StoreLedger(store, "r").records()[0]


@pytest.mark.parametrize("how", ["rank", "robust_mean"])
def test_other_aggregates_choose_among_the_checked(how: Any) -> None:
    examples = Examples()
    outcome = run(
        examples.problem,
        examples.half,
        BanditConfig(policy="random", budget=PullBudget(pulls=140), texts_per_pull=50),
        RewardsConfig(scale="z", aggregate=how),
        full_fn=examples.full,
        quiet=True,
    )
    assert outcome.answer.arm in outcome.checked
    json.dumps(outcome.to_json(), allow_nan=False)


def test_a_replay_of_subsets_is_refused() -> None:
    examples = Examples()
    scores = ScoreTable(examples.problem, examples.full_AT, np.ones(examples.full_AT.shape))
    with pytest.raises(UsageError, match=r"texts_per_pull: a table has scores of whole tasks only"):
        replay.replay(scores, ["random"], config=BanditConfig(texts_per_pull=100))


# The command


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a search on subsets, whose store is extracted."""
    folder = tmp_path_factory.mktemp("sweep")
    revisions = ("step0", "step1", "main")
    suite = make_suite(folder / "tiny", revisions)
    tasks = make_tasks(folder / "tasks")
    path = extracted_store(folder, suite, revisions, tasks, sample=16)
    return write_config(
        folder / "subsets.yaml",
        models=[str(suite)],
        revisions=list(revisions),
        tasks=tasks,
        store={"path": str(path), "block_texts": 16},
        metrics={"sample": 16},
        bandit={"policy": "exhaustive", "texts_per_pull": 40, "final_check": 2, "workers": 2},
    )


def test_the_command_says_what_a_pull_scored(sweep: Path, capsys: Any, tmp_path: Path) -> None:
    assert main(["bandit", "--config", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "each pull: 40 texts of a task; measured noise: median" in said
    assert "scored in full on 2 of 2 tasks" in said
    assert "which were then scored in full on all tasks, this one has the best mean" in said
    assert main(["report", "--config", str(sweep), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "two seeded subsets of together 40 texts" in page
    assert "The 2 top arms were then scored on whole tasks" in page
    # Two arms on two whole tasks; a subset's score is none of the task's.
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 4
    assert main(["export", "--config", str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "4 pulls" in capsys.readouterr().out
    assert main(["verify", "--config", str(sweep)]) == 0
