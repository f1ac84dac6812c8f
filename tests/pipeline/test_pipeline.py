"""The main job as a user runs it: the commands, as processes, on a tiny suite."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forks import Process
from tiny import answer_and_pulls, extracted_store, make_suite, make_tasks, write_sweep

import batchsweep.store
from batchsweep.cli.main import main

REVISIONS = ("step0", "step1", "main")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def sweep(tmp_path, suite, tasks):
    """Writes a config into ``tmp_path``; keyword arguments replace whole sections."""

    def write(name="sweep", **sections):
        bandit = {"budget": {"pulls": 8}, "policy": "sequential_halving"}
        defaults = {"revisions": list(REVISIONS), "tasks": tasks, "bandit": bandit}
        return str(write_sweep(tmp_path, name, suite, **{**defaults, **sections}))

    return write


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, suite, tasks):
    folder = tmp_path_factory.mktemp("extracted")
    return extracted_store(folder, suite, REVISIONS, tasks, sample=16)


@pytest.fixture
def copied(sweep, extracted):
    """Like ``sweep``, with a copy of the extracted store in its place."""

    def write(name="sweep", **sections):
        config = sweep(name, **sections)
        shutil.copytree(extracted, store_of(config))
        return config

    return write


@pytest.fixture
def prepared(copied):
    """Like ``copied``, without the embeddings."""

    def write(name="sweep", **sections):
        config = copied(name, **sections)
        for model in (Path(store_of(config)) / "checkpoints").glob("*/"):
            shutil.rmtree(model)
        return config

    return write


def start(*args, **environ):
    """A process that nothing was imported for."""
    return subprocess.Popen(
        [sys.executable, "-m", "batchsweep", *args],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def contents(store: str | Path) -> dict[str, bytes]:
    """Every array and document of the embeddings, by path."""
    root = Path(store) / "checkpoints"
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "lease" not in p.name
    }


def store_of(config: str) -> str:
    return json.loads(Path(config).read_text())["store"]["path"]


def test_parallel_processes_write_the_bytes_of_a_sequential_run(sweep, extracted):
    at_once = sweep("at_once")
    assert main(["prepare", "--config", at_once]) == 0
    pods = [
        start("extract", "--config", at_once, JOB_COMPLETION_INDEX=str(index))
        for index in range(len(REVISIONS))
    ]
    for pod in pods:
        output, _ = pod.communicate(timeout=240)
        assert pod.returncode == 0, output
    expected = contents(extracted)
    assert len([p for p in expected if "/mean/c" in p]) >= 3 * len(REVISIONS)
    assert contents(store_of(at_once)) == expected


def test_a_sealed_index_is_left_alone(copied):
    config = copied()
    before = {p: p.stat().st_mtime_ns for p in Path(store_of(config)).rglob("*") if p.is_file()}
    assert main(["extract", "--config", config, "--index", "1"]) == 0
    after = {p: p.stat().st_mtime_ns for p in Path(store_of(config)).rglob("*") if p.is_file()}
    assert after == before


def test_another_embedding_config_is_refused(copied, sweep, capsys):
    copied()
    changed = sweep(embedding={"pooling": "last"})
    assert main(["extract", "--config", changed, "--index", "0"]) == 4
    assert "pooling" in capsys.readouterr().err


def test_an_index_that_is_not_in_the_plan_can_never_succeed(copied, capsys):
    config = copied()
    assert main(["extract", "--config", config, "--index", "7"]) == 3
    assert "0 to 2" in capsys.readouterr().err


def test_extract_before_prepare_says_what_to_run(sweep, capsys):
    assert main(["extract", "--config", sweep(), "--index", "0"]) != 0
    assert "batchsweep prepare" in capsys.readouterr().err


def test_kill_9_at_random_moments_ends_with_the_same_bytes(prepared, extracted, commands):
    rng = random.Random(5)
    disturbed = prepared()
    kills = 0
    for _ in range(3):
        pod = commands.start(["extract", "--config", disturbed, "--index", "2"])
        _wait_for_a_block(store_of(disturbed), pod)
        time.sleep(rng.uniform(0, 0.02))
        kills += pod.end(kill=True)[0] == -signal.SIGKILL
    assert kills
    assert main(["extract", "--config", disturbed, "--index", "2"]) == 0
    expected = {p: b for p, b in contents(extracted).items() if "/main/" in f"/{p}"}
    found = {p: b for p, b in contents(store_of(disturbed)).items() if "/main/" in f"/{p}"}
    assert found == expected


def _wait_for_a_block(store: str, pod: Process) -> None:
    """Until the process has started to write (then a kill is in the middle of things)."""
    deadline = time.monotonic() + 120
    before = len(list(Path(store).glob("checkpoints/*/*/mean/*")))
    while time.monotonic() < deadline and not pod.ended:
        if len(list(Path(store).glob("checkpoints/*/*/mean/*"))) > before:
            return
        time.sleep(0.005)


def test_sigterm_seals_and_exits_143_then_the_same_command_finishes(sweep, commands):
    path = Path(store_of(sweep())).parent / "term.zarr"
    config = sweep(store={"path": str(path), "block_texts": 4})
    assert main(["prepare", "--config", config]) == 0
    pod = commands.start(["extract", "--config", config, "--all"])
    _wait_for_a_block(store_of(config), pod)
    pod.signal(signal.SIGTERM)
    code, output = pod.end(timeout=60)
    assert code == 143, output
    assert "the same command goes on" in output
    assert main(["extract", "--config", config, "--all"]) == 0
    store = batchsweep.store.open_store(store_of(config))
    assert [s.complete for s in store.status()] == [True] * 3


def test_an_unavailable_checkpoint_is_skipped_with_a_warning(sweep, capsys):
    config = sweep(revisions=["step0", "step999", "main"])
    assert main(["prepare", "--config", config]) == 0
    assert "step999" in capsys.readouterr().err
    assert main(["extract", "--config", config, "--all"]) == 0
    capsys.readouterr()
    assert main(["status", "--config", config]) == 0
    shown = capsys.readouterr().out
    assert "step999" in shown
    assert "skipped" in shown
    strict = sweep("strict", revisions=["step0", "step999", "main"])
    assert main(["prepare", "--config", strict, "--strict"]) == 3


def test_weights_that_go_after_prepare_are_skipped_or_fail_the_index(tmp_path, sweep, capsys):
    copy = make_suite(tmp_path / "copy", ("step0", "main"))
    config = sweep(models=[str(copy)], revisions=["step0", "main"])
    assert main(["prepare", "--config", config]) == 0
    (copy / "step0" / "model.safetensors").unlink()
    assert main(["extract", "--config", config, "--index", "0", "--strict"]) == 3
    assert main(["extract", "--config", config, "--index", "0"]) == 0
    assert "skipped" in capsys.readouterr().err
    main(["status", "--config", config])
    assert "skipped" in capsys.readouterr().out
    # Once the weights are back, the same command extracts.
    make_suite(tmp_path / "copy", ("step0", "main"))
    assert main(["extract", "--config", config, "--all"]) == 0
    assert all(s.complete for s in batchsweep.store.open_store(store_of(config)).status())


def test_the_whole_job_names_a_best_arm_and_writes_the_report(copied, capsys):
    config = copied(bandit={"policy": "exhaustive", "budget": 100}, rewards={"scale": "raw"})
    for name in ("bandit", "report"):
        assert main([name, "--config", config]) == 0, capsys.readouterr().err
    assert "tiny/" in capsys.readouterr().out
    report = Path(store_of(config)).parent / "report"
    import pandas as pd

    table = pd.read_csv(report / "scores.csv")
    arms = table.groupby(["revision", "layer"]).score.mean()
    assert len(table) == 3 * 2 * 2
    assert (report / "report.html").stat().st_size > 10_000
    answer = next(Path(store_of(config)).glob("documents/bandit/*/answer.json"))
    best = json.loads(answer.read_text())["best"]
    revision, layer = arms.idxmax()
    assert best["arm"] == f"tiny/{revision}#{layer}"
    assert best["mean"] == pytest.approx(arms.max(), abs=1e-9)


@pytest.mark.parametrize(("pulls", "texts"), [(8, None), (16, 40)])
def test_a_killed_bandit_ends_with_the_answer_of_an_undisturbed_one(copied, commands, pulls, texts):
    bandit = {"policy": "random", "budget": {"pulls": pulls}, "seed": 3, "texts_per_pull": texts}
    undisturbed = copied("undisturbed", bandit=bandit)
    disturbed = copied("disturbed", bandit=bandit)
    assert main(["bandit", "--config", undisturbed]) == 0
    search = commands.start(["bandit", "--config", disturbed])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not search.ended:
        if len(list(Path(store_of(disturbed)).glob("documents/bandit/*/pulls/*.json"))) >= 3:
            break
        time.sleep(0.005)
    search.end(kill=True)
    assert not list(Path(store_of(disturbed)).glob("documents/bandit/*/answer.json"))
    assert main(["bandit", "--config", disturbed]) == 0
    of_disturbed, of_undisturbed = Path(store_of(disturbed)), Path(store_of(undisturbed))
    assert answer_and_pulls(of_disturbed) == answer_and_pulls(of_undisturbed)


def test_stored_vectors_are_those_of_transformers(sweep, suite):
    """mean of the final-normed layer of the plain model, text by text, for every row."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    config = sweep(store={"path": store_of(sweep()), "dtype": "float32", "block_texts": 16})
    main(["prepare", "--config", config])
    main(["extract", "--config", config, "--index", "2"])
    store = batchsweep.store.open_store(store_of(config))
    stored = {layer: store.reader("tiny/main").read("mean", layer) for layer in (1, 2)}
    model = AutoModel.from_pretrained(suite / "main").eval()
    tokenizer = AutoTokenizer.from_pretrained(suite / "main")
    for row, text in enumerate(store.corpus().texts()):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
            first = model.final_layer_norm(states.hidden_states[1])[0].mean(0).numpy()
            last = states.last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(stored[1][row], first, atol=2e-5)
        np.testing.assert_allclose(stored[2][row], last, atol=2e-5)


def test_the_whole_job_on_an_object_store(sweep, s3_url, extracted, tmp_path, capsys):
    url = f"{s3_url}/store.zarr"
    config = sweep(store={"path": url, "block_texts": 16})
    for arguments in (
        ["prepare"],
        ["extract", "--all"],
        ["extract", "--all"],
        ["status"],
        ["bandit"],
        ["bandit"],
        ["report", "--out", str(tmp_path / "report")],
        ["verify"],
    ):
        assert main([arguments[0], "--config", config, *arguments[1:]]) == 0, capsys.readouterr()
    shown = capsys.readouterr()
    assert "3 sealed" in shown.out
    assert "no faults" in shown.out
    assert shown.err.count("already sealed") == 3
    assert (tmp_path / "report" / "report.html").exists()
    here = batchsweep.store.open_store(extracted)
    there = batchsweep.store.open_store(url)
    for key in here.keys():  # noqa: SIM118
        for layer in (1, 2):
            np.testing.assert_array_equal(
                there.reader(key).read("mean", layer), here.reader(key).read("mean", layer)
            )
