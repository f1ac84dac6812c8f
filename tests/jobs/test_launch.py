"""``batchsweep launch`` as a user runs it, on a tiny suite."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from docker_engine import Engine
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main
from batchsweep.store import open_store

REVISIONS = ("step0", "main")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A suite and tasks that all tests of this file share."""
    root = tmp_path_factory.mktemp("launch")
    return {
        "models": [str(make_suite(root / "tiny", REVISIONS))],
        "revisions": list(REVISIONS),
        "tasks": make_tasks(root / "tasks"),
        "metrics": {"sample": 16},
    }


@pytest.fixture
def config(tmp_path, made, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "configs").mkdir()
    store = {"path": "runs/sweep/store.zarr", "block_texts": 4}
    return str(write_config(tmp_path / "configs" / "sweep.yaml", **made, store=store))


def complete():
    return [s.complete for s in open_store("runs/sweep/store.zarr").status()]


def test_local_prepares_and_extracts_every_index(config, capfd):
    assert main(["launch", "local", "--config", config, "--parallel", "2"]) == 0
    shown = capfd.readouterr()
    assert complete() == [True] * 2
    assert "2 indexes done in" in shown.out
    assert f"next: batchsweep bandit --config {config}" in shown.out
    for index, revision in enumerate(REVISIONS):
        log = (Path("runs/sweep/logs") / f"extract-{index}.log").read_text()
        assert f"tiny/{revision}: " in log
        assert f"[{index}] {log.splitlines()[0]}\n" in shown.err


def test_ctrl_c_stops_the_workers_and_the_same_command_goes_on(config):
    argv = [sys.executable, "-m", "batchsweep", "launch", "local", "--config", config]
    launcher = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(Path("runs/sweep").glob("store.zarr/checkpoints/*/*/mean/c.*")):
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.01)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, errors
    assert "the same command goes on from there" in errors
    assert not _processes_of(config)
    assert main(["launch", "local", "--config", config]) == 0
    assert complete() == [True] * 2


def _processes_of(config):
    """Command lines of running processes that name this config."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if config.encode() in words:
            found.append(words)
    return found


def test_docker_runs_the_same_job_in_containers(config, monkeypatch, capsys):
    fake = Engine([sys.executable, "-m", "batchsweep"])
    monkeypatch.setattr("batchsweep.jobs.docker.connect", lambda: fake)
    assert main(["launch", "docker", "--config", config, "--indexes", "1"]) == 0
    names = [name for _, _, name, _ in fake.started]
    assert names == ["batchsweep-sweep-prepare", "batchsweep-sweep-1"]
    assert complete() == [True]
    mounted = fake.started[0][3]["volumes"]
    assert mounted[str(Path("runs/sweep").resolve())]["mode"] == "rw"
    assert mounted[str(Path("configs").resolve())]["mode"] == "ro"


def test_a_failed_prepare_ends_the_launch_with_its_exit_code(config, capsys):
    values = json.loads(Path(config).read_text())
    write_config(Path(config), **{**values, "tasks": ["NoSuchTask"]})
    assert main(["launch", "local", "--config", config]) == 2
    assert "prepare exited 2; see runs/sweep/logs/prepare.log" in capsys.readouterr().err
    assert "NoSuchTask" in Path("runs/sweep/logs/prepare.log").read_text()


def test_indexes_outside_the_frozen_plan_are_refused(config, capsys):
    assert main(["prepare", "--config", config]) == 0
    assert main(["launch", "slurm", "--config", config, "--indexes", "1,3-9"]) == 2
    assert "--indexes 3-9: not in the plan, which has 0-1" in capsys.readouterr().err


def test_k8s_prints_a_job_with_as_many_completions_as_the_plan(config, capsys):
    assert main(["launch", "k8s", "--config", config, "--parallel", "2"]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    extract = next(o for o in objects if o["metadata"]["name"] == "sweep-extract")
    assert (extract["spec"]["completions"], extract["spec"]["parallelism"]) == (2, 2)
    config_map = next(o for o in objects if o["kind"] == "ConfigMap")
    assert config_map["data"] == {"sweep.yaml": Path(config).read_text()}


def test_k8s_status_without_jobs_says_how_to_submit(config, tmp_path, monkeypatch, capsys):
    tool = tmp_path / "bin" / "kubectl"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '{\"items\": []}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert main(["launch", "k8s", "--config", config, "--status"]) == 2
    assert "submit it with --apply" in capsys.readouterr().err


def test_slurm_prints_the_array_of_the_plan(config, capsys):
    assert main(["launch", "slurm", "--config", config]) == 0
    assert "#SBATCH --array=0-1%2" in capsys.readouterr().out
