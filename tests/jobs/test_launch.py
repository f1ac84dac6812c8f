"""``batchsweep launch`` as a user runs it, on a tiny suite."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from docker_engine import Engine
from instant_cluster import instant_cluster, pod
from kubernetes_server import NO_KUBECTL
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main
from batchsweep.plan.speed import CPU_START, CUDA_START
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


def test_local_prepares_and_extracts_every_index(config, forked, capfd):
    assert main(["launch", "local", "--config", config, "--parallel", "2"]) == 0
    shown = capfd.readouterr()
    assert complete() == [True] * 2
    assert "2 indexes done in" in shown.out
    assert f"next: batchsweep bandit --config {config}" in shown.out
    for index, revision in enumerate(REVISIONS):
        log = (Path("runs/sweep/logs") / f"extract-{index}.log").read_text()
        assert f"tiny/{revision}: " in log
        assert f"[{index}] {log.splitlines()[0]}\n" in shown.err


def test_ctrl_c_stops_the_workers_and_the_same_command_goes_on(config, commands, forked):
    launcher = commands.start(["launch", "local", "--config", config])
    deadline = time.monotonic() + 120
    while not list(Path("runs/sweep").glob("store.zarr/checkpoints/*/*/mean/c.*")):
        assert time.monotonic() < deadline and not launcher.ended
        time.sleep(0.01)
    assert _processes_of(config)
    launcher.signal(signal.SIGINT)
    code, said = launcher.end(timeout=60)
    assert code == 143, said
    assert "the same command goes on from there" in said
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


def test_docker_runs_the_same_job_in_containers(config, commands, monkeypatch, capsys):
    fake = Engine([commands.python, "-m", "batchsweep"])
    monkeypatch.setattr("batchsweep.jobs.docker.connect", lambda: fake)
    assert main(["launch", "docker", "--config", config, "--indexes", "1"]) == 0
    names = [name for _, _, name, _ in fake.started]
    assert names == ["batchsweep-sweep-prepare", "batchsweep-sweep-1"]
    assert complete() == [True]
    mounted = fake.started[0][3]["volumes"]
    assert mounted[str(Path("runs/sweep").resolve())]["mode"] == "rw"
    assert mounted[str(Path("configs").resolve())]["mode"] == "ro"


def test_docker_extracts_what_the_search_asks_for(config, commands, monkeypatch, capsys):
    fake = Engine([commands.python, "-m", "batchsweep"])
    monkeypatch.setattr("batchsweep.jobs.docker.connect", lambda: fake)
    assert main(["launch", "docker", "--config", config, "--search", "--parallel", "1"]) == 0
    shown = capsys.readouterr().out
    assert "(checkpoint, task) pairs" in shown
    wave = json.loads(Path("runs/sweep/store.zarr/documents/waves/0001.json").read_text())
    asked = {str(v["index"]): ",".join(v["tasks"]) for v in wave["visits"]}
    given = [
        dict(zip(command[1::2], command[2::2], strict=False)) for _, command, _, _ in fake.started
    ]
    assert {g["--index"]: g["--tasks"] for g in given[: len(asked)]} == asked
    assert main(["launch", "docker", "--config", config, "--search", "--indexes", "1"]) == 2


def test_docker_refuses_a_limit_before_anything_is_started(config, monkeypatch, capsys):
    monkeypatch.setattr("batchsweep.jobs.docker.connect", lambda: Engine(["false"]))
    command = ["launch", "docker", "--config", config, "--max-cost", "0"]
    for more, says in (
        (["--search"], "--max-cost needs --gpu-price"),
        (["--gpu-price", "2"], "--max-cost limits a search: give --search with it"),
        (["--gpu-price", "2", "--search"], "allow not even the first wave"),
        (["--gpu-price", "-2", "--search"], "greater than or equal to 0"),
    ):
        assert main([*command, *more]) == 2
        assert says in capsys.readouterr().err
    assert not Path("runs/sweep/store.zarr/documents/waves").exists()


def test_a_failed_prepare_ends_the_launch_with_its_exit_code(config, forked, capsys):
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
    again = f"'batchsweep launch k8s --config {config} --apply'"
    assert (
        f"kubectl's namespace (see --namespace); submit it with {again}" in capsys.readouterr().err
    )


@pytest.fixture
def cluster(tmp_path, commands, monkeypatch):
    """A cluster, with ``batchsweep`` for commands that are run as printed."""
    if NO_KUBECTL:
        pytest.skip(NO_KUBECTL)
    tool = tmp_path / "bin" / "batchsweep"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {commands.python} -m batchsweep "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("batchsweep.jobs.kubectl.POLL_SECONDS", 0.05)
    with instant_cluster(tmp_path, monkeypatch) as made:
        yield made


def printed(text):
    """Commands that a message tells the user to type."""
    told = [line.partition(": ")[2] for line in text.splitlines() if _LED.match(line)]
    return told + re.findall(r"'((?:batchsweep|kubectl) [^']*)'", text)


_LED = re.compile("(logs|again|then|next): (batchsweep|kubectl) ")


def typed(command):
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True)


def test_every_printed_command_runs_as_it_stands(config, cluster, capsys):
    cluster.fails = {"extract": {1}}
    options = [
        *("--namespace", "sweeps", "--image", "registry/b:1", "--gpu", "none", "--parallel", "3"),
        *("--workdir", "/", "--storage-class", "nfs", "--storage", "2Ti", "--memory", "32Gi"),
        *("--toleration", "spot"),
    ]
    submit = ["launch", "k8s", "--config", config, "--apply"]
    status = ["launch", "k8s", "--config", config, "--namespace", "sweeps", "--status"]
    assert main(status) == 2
    (first,) = printed(capsys.readouterr().err)
    assert first.split() == ["batchsweep", *status[:-1], "--apply"]
    assert main([*submit, *options]) == 3
    logs, again = printed(capsys.readouterr().out)
    assert typed(logs).returncode == 0
    for part in ("app.kubernetes.io/instance=sweep", "job-completion-index=1", "-n sweeps"):
        assert part in logs.replace("--namespace", "-n")
    cluster.fails = {}
    done = typed(again)
    assert done.returncode == 0, done.stderr
    job = cluster.get("jobs", "sweep-extract-1", "sweeps")
    pod = job["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    (container,) = pod["containers"]
    assert container["image"] == "registry/b:1"
    assert container["resources"]["limits"] == {"memory": "32Gi"}
    claim = cluster.get("persistentvolumeclaims", "sweep-runs", "sweeps")["spec"]
    assert claim["storageClassName"] == "nfs"
    assert claim["resources"]["requests"]["storage"] == "2Ti"


def test_max_cost_stops_submitting_and_the_bandit_does_not_wait(config, cluster, capsys):
    assert main(["prepare", "--config", config]) == 0
    submit = ["launch", "k8s", "--config", config, "--apply"]
    assert main([*submit, "--max-cost", "5"]) == 2
    assert "--max-cost needs --gpu-price" in capsys.readouterr().err
    # An index takes next to nothing but its start: 1 an index.
    price = ["--gpu-price", f"{3600 / (CPU_START + CUDA_START)}"]
    assert main([*submit, "--max-cost", "0.5", *price]) == 2
    assert "passed by the first index: 1.00 with it" in capsys.readouterr().err
    assert not [key for key in cluster.objects if key[0] == "jobs"]
    assert main([*submit, "--max-cost", "1.5", *price]) == 0
    shown = capsys.readouterr().err
    assert "--max-cost 1.5: 0.00 spent or under way, 1.00 with 1 of 2 indexes more" in shown
    job = cluster.get("jobs", "sweep-extract-0")
    assert job["spec"]["completions"] == 1
    pod = cluster.get("jobs", "sweep-bandit")["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"][-2:] == ["--wait", "1"]
    # Price and limit are remembered; raised, the rest follows, and all is waited for.
    assert main([*submit, "--max-cost", "9"]) == 0
    assert cluster.get("jobs", "sweep-extract-1")["spec"]["completions"] == 1
    pod = cluster.get("jobs", "sweep-bandit")["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"][-2:] == ["--wait", "all"]


def test_the_commands_for_a_pod_that_cannot_start_run_as_they_stand(config, cluster, capsys):
    cluster.hold = {"prepare"}
    state = {"waiting": {"reason": "InvalidImageName", "message": "no: such: name"}}
    status = [{"name": "prepare", "image": "no: such: name", "state": state}]
    cluster.show("pods", [pod(job="sweep-prepare", containerStatuses=status)], "sweep")
    submit = ["launch", "k8s", "--config", config, "--image", "no: such: name", "--apply"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchsweep.jobs.submit.LASTING_SECONDS", 0.0)
        assert main(submit) == 3
    told = capsys.readouterr()
    assert "prepare can't start: InvalidImageName: no: such: name" in told.err
    cluster.show("pods", [], "sweep")
    cluster.hold = set()
    commands = printed(told.out)
    assert len(commands) == 2
    for command in commands:
        done = typed(command)
        assert done.returncode == 0, (command, done.stderr)
    assert ("jobs", "default", "sweep-bandit") in cluster.objects


def test_slurm_prints_the_array_of_the_plan(config, capsys):
    assert main(["launch", "slurm", "--config", config]) == 0
    assert "#SBATCH --array=0-1%2" in capsys.readouterr().out
