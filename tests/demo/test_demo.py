"""The embedded default: labels are true by construction, training is worth it, runs are reused."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Commands, working_in
from hub_server import HubServer, Repo
from store_data import stored
from tiny import write_config

from batchsweep import config, demo
from batchsweep.cli import main as cli
from batchsweep.demo import language, suite, tasks
from batchsweep.demo.suite import Training
from batchsweep.errors import BatchsweepError, TryAgain, UsageError
from batchsweep.report.findings import read
from batchsweep.store import open_store

MODEL = "demo-neox-xs"


# The language and the tasks


def test_words_are_one_token_each_and_all_in_the_vocabulary() -> None:
    rng = random.Random(3)
    words = set(language.vocabulary())
    for _ in range(300):
        assert set(language.document(rng).split()) <= words
    tokenizer = suite.build_tokenizer()
    assert len(tokenizer) == len(words) + 2
    text = language.document(rng)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_word_has_two_meanings_within_a_topic() -> None:
    for topic in language.topics():
        words = [w for s in language.SLOTS for c in language.concepts(topic, s) for w in c]
        assert len(words) == len(set(words)), topic


def meaning(sentence: str, topic: str) -> tuple[int, ...]:
    """The concepts of a sentence, found in its words alone."""
    words = set(sentence.split())
    found = []
    for slot in language.SLOTS:
        (place,) = [i for i, c in enumerate(language.concepts(topic, slot)) if words & set(c)]
        found.append(place)
    return tuple(found)


def topics_of(sentence: str) -> list[str]:
    """Topics in which every slot of the sentence can be read."""
    found = []
    for topic in language.topics():
        words = set(sentence.split())
        slots = [
            sum(bool(words & set(c)) for c in language.concepts(topic, s)) for s in language.SLOTS
        ]
        if all(n == 1 for n in slots):
            found.append(topic)
    return found


def test_labels_are_true_by_construction(tmp_path: Path) -> None:
    tasks.write(tmp_path)

    def rows(name: str, part: str = "") -> list[dict[str, Any]]:
        path = tasks.task_path(tmp_path, name)
        text = (path / f"{part}.jsonl" if part else path).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def agree(a: str, b: str) -> int:
        (topic,) = set(topics_of(a)) & set(topics_of(b))
        return sum(x == y for x, y in zip(meaning(a, topic), meaning(b, topic), strict=True))

    for row in rows("DemoSTS"):
        assert agree(row["sentence1"], row["sentence2"]) == row["score"]
    for row in rows("DemoPairs"):
        assert (agree(row["sentence1"], row["sentence2"]) == 5) == row["label"]
    for row in rows("DemoReranking"):
        query = str(row["query"])
        assert all(agree(query, text) == 5 for text in row["positive"])
        assert all(agree(query, text) < 5 for text in row["negative"])
    for row in rows("DemoScenes"):
        topic, agent = str(row["label"]).split("-")
        assert topic in topics_of(str(row["text"]))
        assert meaning(str(row["text"]), topic)[0] == int(agent)
    good, bad = (set(language.lexicon()["opinion"][side]) for side in ("good", "bad"))
    for row in rows("DemoSentiment", "train") + rows("DemoSentiment", "test"):
        words = set(str(row["text"]).split())
        assert bool(words & good) != bool(words & bad)
        assert (bool(words & good) != ("never" in words)) == (row["label"] == "liked")
    texts = {r["id"]: str(r["text"]).split(" . ")[0] for r in rows("DemoRetrieval", "corpus")}
    relevant = {(r["query-id"], r["corpus-id"]) for r in rows("DemoRetrieval", "qrels")}
    for asked, doc in itertools.product(rows("DemoRetrieval", "queries")[:15], texts):
        said = str(asked["text"])
        common = set(topics_of(said)) & set(topics_of(texts[doc]))
        same = any(meaning(said, t) == meaning(texts[doc], t) for t in common)
        assert same == ((asked["id"], doc) in relevant)


def test_tasks_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tasks.write(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 4 + 2 + 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# The suite


def test_suite_has_the_layout_of_branches_and_depends_on_its_seed_alone(tmp_path: Path) -> None:
    training = Training(steps=16, batch=2, length=16, warm_up=2)
    assert training.saved == (0, 1, 2, 4, 6, 8, 10, 12, 14, 16)
    suite.build(tmp_path / "built", training)
    for _ in suite.train(MODEL, tmp_path / "again", training):
        pass
    for _ in suite.train(MODEL, tmp_path / "other", Training(16, 2, 16, 2, seed=1)):
        pass
    for name, size in suite.SIZES.items():
        there = {p.name for p in (tmp_path / "built" / name).iterdir()}
        assert there == {"main", *(f"step{n}" for n in training.saved)}
        about = json.loads((tmp_path / "built" / name / "step4" / "config.json").read_text())
        assert about["model_type"] == "gpt_neox" and about["num_hidden_layers"] == size.layers

    def weights(run: str, revision: str) -> bytes:
        return (tmp_path / run / MODEL / revision / "model.safetensors").read_bytes()

    assert weights("built", "main") == weights("built", "step16") != weights("built", "step14")
    for revision in ("step0", "step8", "main"):
        assert weights("built", revision) == weights("again", revision)
        assert weights("built", revision) != weights("other", revision)


class Deadly(Training):
    """A training that kills the process which it is sent to."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_training_process_that_dies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SIZES", {MODEL: suite.SIZES[MODEL]})
    with pytest.raises(BatchsweepError, match="demo-neox-xs ended with exit code -9"):
        suite.build(tmp_path, Deadly(steps=8))


# The folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A demo whose suite is empty; what it made."""
    made: list[str] = []
    monkeypatch.setattr(demo, "make_suite", lambda folder: made.append("suite"))
    return made


def test_what_is_there_is_reused(tmp_path: Path, quick: list[str]) -> None:
    demo.make(tmp_path / "out")
    (tmp_path / "out" / "store.zarr").mkdir()
    demo.make(tmp_path / "out")
    assert quick == ["suite"]
    assert (tmp_path / "out" / "store.zarr").is_dir()


def test_what_is_half_made_is_made_again(tmp_path: Path, quick: list[str]) -> None:
    out = tmp_path / "out"
    demo.make(out)
    (out / "suite").rename(out / ".partial-x")
    demo.make(out)
    assert quick == ["suite", "suite"]
    assert (out / "suite").is_dir() and not list(out.glob(".partial*"))


def test_another_version_of_the_demo_starts_anew(tmp_path: Path, quick: list[str]) -> None:
    out = tmp_path / "out"
    demo.make(out)
    (out / "store.zarr").mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "demo.json").write_text('{"digest": "of another version"}')
    demo.make(out)
    assert quick == ["suite", "suite"]
    assert not (out / "store.zarr").exists() and (out / "notes.txt").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, quick: list[str]) -> None:
    (tmp_path / "store.zarr").mkdir()
    with pytest.raises(UsageError, match=r"store\.zarr but no demo\.json.*--out"):
        demo.make(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        demo.make(tmp_path / "file")
    assert quick == []


def test_two_demos_in_one_folder_do_not_mix(tmp_path: Path, quick: list[str]) -> None:
    with demo.own_folder(tmp_path), pytest.raises(TryAgain, match="another demo"):
        demo.make(tmp_path)


def test_config_in_the_repository_is_the_demos() -> None:
    path = Path(__file__).parents[2] / "configs" / "demo.yaml"
    assert path.read_text() == demo.config_text()
    parsed = config.load(path)
    assert [m.name for m in parsed.models] == [f"suite/{name}" for name in suite.SIZES]
    assert parsed.revisions == demo.REVISIONS
    saved = {"main", *(f"step{n}" for n in Training().saved)}
    assert set(demo.REVISIONS) <= saved


# The whole thing, on the smaller model and two of its revisions


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> tuple[Path, str, str]:
    """A real demo, run twice: its folder and what it said each time."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SIZES", {MODEL: suite.SIZES[MODEL]})
        patch.setattr(demo, "REVISIONS", ("step0", "main"))
        patch.setattr(sys, "executable", commands.python)
        return out, demo.run(out), demo.run(out)


def test_trained_beats_untrained_on_every_kind(
    ran: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder may be moved; what the search didn't ask for is extracted in the copy.
    monkeypatch.chdir(shutil.copytree(ran[0], tmp_path / "copy"))
    assert cli.main(["extract", "--config", "demo.yaml", "--all"]) == 0
    command = ["bandit", "--config", "demo.yaml", "--policy", "exhaustive", "--budget", "100"]
    assert cli.main(command) == 0
    findings = read(open_store("store.zarr"))
    trained = np.array([a.revision == "main" for a in findings.arms])
    assert trained.sum() == 4 and len(findings.arms) == 8
    assert len(findings.tasks) == 6 and np.isfinite(findings.score_AT).all()
    best_trained = findings.score_AT[trained].max(axis=0)
    best_untrained = findings.score_AT[~trained].max(axis=0)
    gains = dict(zip(findings.tasks, best_trained - best_untrained, strict=True))
    assert min(gains.values()) > 0.02, gains
    means = findings.score_AT.mean(axis=1)
    assert means[trained].min() > means[~trained].max()


def test_demo_says_the_best_arm_and_leaves_store_table_and_page(
    ran: tuple[Path, str, str],
) -> None:
    out, said, _ = ran
    assert re.search(rf"best arm: +{MODEL} main, layer \d", said)
    assert "beside it:" in said and "of the exhaustive 48" in said
    for task in tasks.TASKS:
        assert re.search(rf"{task} +~?\d\.\d{{3}} +~?\d\.\d{{3}}", said)
    assert re.search(r"extracted: +\d+ of 12 \(checkpoint, task\) pairs", said)
    waves = open_store(out / "store.zarr").list_json("waves")
    assert waves
    assert (out / "report" / "scores.csv").stat().st_size > 100
    page = (out / "report" / "report.html").read_text()
    assert f"{MODEL} main, layer" in page and "DemoRetrieval" in page
    assert "same weights as" in page


def test_second_run_says_the_same_and_trains_nothing(ran: tuple[Path, str, str]) -> None:
    out, first, second = ran
    assert first.split("took:")[0] == second.split("took:")[0]
    weights = out / "suite" / MODEL / "main" / "model.safetensors"
    assert weights.stat().st_mtime < (out / "report" / "report.html").stat().st_mtime
    sealed = list((out / "store.zarr").rglob("seals/**/*"))
    report = (out / "report" / "report.html").stat().st_mtime
    assert all(file.stat().st_mtime < report for file in sealed)


#: Pythia's names of the suite's revisions, in their order: the Hub serves them under a real id.
BRANCHES = {
    "step0": "step0",
    "step64": "step16",
    "step160": "step512",
    "step240": "step1000",
    "step320": "step4000",
    "step400": "step16000",
    "step480": "step64000",
    "main": "main",
}


def test_from_the_hub_half_of_the_pairs_give_the_answer_of_all(
    ran: tuple[Path, str, str], tmp_path: Path, commands: Commands
) -> None:
    """Checkpoints that truly improve, under real ids: with random weights any arm may be best.

    Half of the checkpoints are the search's budget; half of the tasks are enough for both.
    """
    suite_folder = ran[0] / "suite" / MODEL
    served = Repo(
        {
            branch: {f.name: f.read_bytes() for f in (suite_folder / revision).iterdir()}
            for revision, branch in BRANCHES.items()
        }
    )
    listed = [(name, tasks.TASKS[name]) for name in ("DemoSTS", "DemoScenes", "DemoRetrieval")]
    folder = ran[0] / "tasks"

    def config_file(name: str, **budget: int) -> Path:
        return write_config(
            tmp_path / f"{name}.yaml",
            models=["EleutherAI/pythia-14m"],
            revisions=list(BRANCHES.values()),
            tasks=[
                {"name": task, "type": kind, "path": str(tasks.task_path(folder, task))}
                for task, (kind, _) in listed
            ],
            store={"path": str(tmp_path / f"{name}.zarr"), "block_texts": 32},
            metrics={"sample": 64},
            bandit={"budget": {"pulls": 48, **budget}},
        )

    with HubServer() as hub:
        hub.repos["EleutherAI/pythia-14m"] = served
        processes = hub.commands(tmp_path / "hf")

        def said(file: Path, *arguments: str) -> str:
            done = commands.completed([*arguments, "--config", file], **processes)
            assert done.returncode == 0, done.stderr
            return done.stdout

        half = config_file("searched", checkpoints=len(BRANCHES) // 2)
        searched = said(half, "run", "--parallel", "2")
        everything = said(config_file("whole"), "run", "--exhaustive", "--parallel", "2")
        said(half, "extract", "--all")
    assert searched.splitlines()[0] == everything.splitlines()[0] and "best arm:" in searched
    found = re.search(r"extracted: (\d+) of 24 \(checkpoint, task\) pairs", searched)
    assert found is not None and int(found[1]) <= 12
    assert "extracted: 24 of 24" in everything
    assert stored(tmp_path / "searched.zarr") == stored(tmp_path / "whole.zarr")


def test_a_command_that_fails_passes_its_exit_code_on(ran: tuple[Path, str, str]) -> None:
    out = ran[0]
    with pytest.raises(BatchsweepError, match="no-such-option") as caught:
        demo.run_command(out, "status", "--no-such-option")
    assert caught.value.exit_code == 2


def test_kill_during_training_leaves_nothing_that_counts(
    tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "out"
    process = commands.start(["demo", "--out", str(out)], folder=tmp_path)
    deadline = time.monotonic() + 120
    while not list(out.glob(".partial-*/*/step0")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(working_in(tmp_path)) > 1, "processes that train"
    assert process.end(kill=True)[0] == -signal.SIGKILL
    assert list(out.glob(".partial-*/*/step0")), "it was killed in the middle of training"
    assert not (out / "suite").exists()
    # The workers notice that nobody waits for them and end.
    while time.monotonic() < deadline and working_in(tmp_path):
        time.sleep(0.05)
    assert working_in(tmp_path) == []
    with demo.own_folder(out):
        assert not list(out.glob(".partial*"))
