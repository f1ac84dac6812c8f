"""Containers as workers, with an engine that runs their commands as processes."""

import os
import sys

import docker
import pytest
from docker_engine import Container, Engine

from batchsweep.config import parse
from batchsweep.errors import IndexFailed, TryAgain, UsageError
from batchsweep.jobs.docker import DockerLauncher, DockerWorker, connect, mounts
from batchsweep.jobs.runner import IndexedJob
from batchsweep.signals import StopRequest

CODE = "import sys; print('line one\\nand two of', sys.argv[-1]); sys.exit({code})"


def launcher(engine, tmp_path, *, gpus=(), image="batchsweep", parallel=2):
    return DockerLauncher(
        engine,
        ["extract", "--config", "/configs/x.yaml"],
        name="demo",
        image=image,
        mounts={str(tmp_path): {"bind": str(tmp_path), "mode": "rw"}},
        cache=tmp_path / "cache",
        parallel=parallel,
        gpus=gpus,
    )


def engine(code=0):
    return Engine([sys.executable, "-c", CODE.format(code=code)])


def run(started, tmp_path, indexes, **options):
    job = IndexedJob(
        started,
        indexes,
        2,
        tmp_path / "logs",
        delay=lambda retry: 0.01,
        **options,
    )
    job.run(StopRequest(5))


def test_one_container_an_index_with_its_lines_whole(tmp_path):
    fake = engine()
    run(launcher(fake, tmp_path), tmp_path, [0, 1, 2])
    names = [name for _, _, name, _ in fake.started]
    assert sorted(names) == ["batchsweep-demo-0", "batchsweep-demo-1", "batchsweep-demo-2"]
    log = (tmp_path / "logs" / "extract-2.log").read_text()
    assert log == "line one\nand two of 2\n"
    assert fake.there == {}


def test_containers_get_no_privilege_and_the_callers_uid(tmp_path):
    fake = engine()
    run(launcher(fake, tmp_path, gpus=("0", "1")), tmp_path, [0, 1])
    for image, command, _, options in fake.started:
        assert image == "batchsweep"
        assert command[:3] == ["extract", "--config", "/configs/x.yaml"]
        assert options["user"] == f"{os.getuid()}:{os.getgid()}"
        assert options["read_only"] is True
        assert options["cap_drop"] == ["ALL"]
        assert options["security_opt"] == ["no-new-privileges"]
        assert options["environment"]["HF_HOME"] == str(tmp_path / "cache")
        assert options["environment"]["TMPDIR"] == str(tmp_path / "cache")
    gpus = {r["DeviceIDs"][0] for *_, o in fake.started for r in o["device_requests"]}
    assert gpus == {"0", "1"}


def test_only_named_variables_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PRIVATE", "x")
    fake = engine()
    run(launcher(fake, tmp_path), tmp_path, [0])
    environment = fake.started[0][3]["environment"]
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "PRIVATE" not in environment


def test_exit_codes_follow_the_same_rules(tmp_path):
    fake = engine(code=75)
    with pytest.raises(IndexFailed, match=r"0 \(exit 75\)"):
        run(launcher(fake, tmp_path), tmp_path, [0], retries=2)
    assert len(fake.started) == 3
    fake = engine(code=2)
    with pytest.raises(UsageError, match="exited 2"):
        run(launcher(fake, tmp_path), tmp_path, [0, 1, 2, 3])
    assert len(fake.started) <= 2


def test_a_container_that_a_killed_launcher_left_is_followed(tmp_path):
    slow = "import time; print('begun', flush=True); time.sleep(1); print('done')"
    fake = Engine([sys.executable, "-c", slow])
    left = launcher(fake, tmp_path).start(0, 0)
    again = launcher(fake, tmp_path).start(0, 0)
    assert len(fake.started) == 1
    assert list(again.lines()) == ["begun", "done"]
    assert again.wait() == 0
    assert isinstance(left, DockerWorker)


def test_a_left_container_that_does_something_else_is_waited_for(tmp_path):
    """Of the wave before, say: its index isn't done with it."""
    fake = Engine([sys.executable, "-c", "import time; time.sleep(0.5)"])
    launcher(fake, tmp_path).start(0, 0)
    now = launcher(fake, tmp_path)
    now.more = {0: ("--tasks", "Other")}
    run(now, tmp_path, [0])
    first, second = (command for _, command, _, _ in fake.started)
    assert first == ["extract", "--config", "/configs/x.yaml", "--index", "0"]
    assert second == [*first, "--tasks", "Other"]


def test_an_ended_container_of_that_name_makes_room(tmp_path):
    fake = engine()
    fake.there["batchsweep-demo-0"] = Container(
        fake, "batchsweep-demo-0", [], {"working_dir": str(tmp_path), "environment": {}}
    )
    fake.there["batchsweep-demo-0"].process.wait()
    run(launcher(fake, tmp_path), tmp_path, [0])
    assert len(fake.started) == 1


def test_stop_reaches_a_container_and_an_ended_one_is_no_error(tmp_path):
    fake = Engine([sys.executable, "-c", "import time; time.sleep(60)"])
    worker = launcher(fake, tmp_path).start(0, 0)
    worker.stop()
    assert worker.wait() == 143
    worker.stop()


def test_faults_of_the_engine_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"docker build -t missing \."):
        launcher(engine(), tmp_path, image="missing").start(0, 0)
    fake = engine()
    monkeypatch.setattr(fake, "get", lambda name: (_ for _ in ()).throw(docker.errors.NotFound("")))
    launcher(fake, tmp_path).start(0, 0)
    with pytest.raises(TryAgain, match="in use"):
        launcher(fake, tmp_path).start(0, 0)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(UsageError, match=r"no container engine answers.*launch local"):
        connect()


def test_mounts_are_the_same_paths_and_only_two_are_writable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "suite").mkdir()
    (tmp_path / "mine.jsonl").touch()
    config = parse(
        "models: [suite, EleutherAI/pythia-14m]\n"
        "tasks: [STS12, {name: mine, type: sts, path: mine.jsonl}]\n"
        "store: {path: runs/x/store.zarr}\n",
        source="x.yaml",
    )
    found = mounts(config, tmp_path / "configs" / "x.yaml", cache=tmp_path / "cache")
    assert all(host == mount["bind"] for host, mount in found.items())
    modes = {host.removeprefix(f"{tmp_path}/"): mount["mode"] for host, mount in found.items()}
    assert modes == {
        "configs": "ro",
        "suite": "ro",
        "mine.jsonl": "ro",
        "cache": "rw",
        "runs/x": "rw",
    }
    assert (tmp_path / "runs" / "x").stat().st_uid == os.getuid()
