"""The main job against a Hub on loopback: real clients, unchanged Pythia ids and branches."""

import json
import subprocess
import sys

import pytest
from hub_server import Fault, HubServer, repo_from_directory
from store_data import stored
from tiny import make_model, make_tasks, write_config

import batchsweep.store
from batchsweep.cli.main import main
from batchsweep.forward.loading import fetch
from batchsweep.store.pairs import ready_tasks

MODEL = "EleutherAI/pythia-14m"


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """Random weights of pythia-14m's depth and width; step2000 serves main's, step3000 has none."""
    root = tmp_path_factory.mktemp("hub") / "pythia-14m"
    for seed, branch in enumerate(("step0", "step1000", "main")):
        make_model(root / branch, seed=seed, layers=6, hidden=128)
    served = repo_from_directory(root)
    served.branches["step2000"] = served.branches["main"]
    served.branches["step3000"] = {
        name: content
        for name, content in served.branches["main"].items()
        if not name.endswith(".safetensors")
    }
    return served


def test_from_the_hub_to_embeddings(repo, tmp_path, commands):
    config = write_config(
        tmp_path / "sweep.yaml",
        models=[MODEL],
        revisions=["step-0", "step1000", "step2000", "step3000", "step4000", "main"],
        tasks=make_tasks(tmp_path / "tasks", n=20),
        store={"path": str(tmp_path / "store.zarr")},
        metrics={"sample": 8},
        bandit={"budget": {"pulls": 12}},
    )
    with HubServer() as hub:
        hub.repos[MODEL] = repo
        processes = hub.commands(tmp_path / "hf")

        def batchsweep_command(*args):
            return commands.completed([*args, "--config", config], **processes)

        # One that nothing was imported for, which reads where the Hub is from its environment.
        audited = subprocess.run(
            [sys.executable, "-m", "batchsweep", "checkpoints", "--audit", "--config", config],
            env=processes["environment"],
            capture_output=True,
            text=True,
        )
        assert audited.returncode == 0, audited.stderr
        assert "1 revision serves the weights of main: step2000" in audited.stdout
        assert not [r for r in hub.requests if "/cdn/" in r]

        strict = batchsweep_command("checkpoints", "--audit", "--strict")
        assert strict.returncode == 3
        assert "step3000: no weights" in strict.stderr and "and 1 more" in strict.stderr

        hub.faults.append(Fault("status", "/refs", status=429, retry_after=1))
        prepared = batchsweep_command("prepare")
        assert prepared.returncode == 0, prepared.stderr
        assert "skipped: EleutherAI/pythia-14m@step4000: missing" in prepared.stderr

        plan = json.loads((tmp_path / "store.zarr" / "documents" / "plan.json").read_text())
        keys = ["EleutherAI--pythia-14m/step0", "EleutherAI--pythia-14m/step1000"]
        assert [e["key"] for e in plan["entries"]] == [*keys, "EleutherAI--pythia-14m/main"]
        assert plan["entries"][1]["checkpoint"]["commit"] == repo.commit("step1000")
        assert plan["entries"][2]["checkpoint"]["aliases"] == ["step2000"]
        assert [s["revision"] for s in plan["skipped"]] == ["step3000", "step4000"]

        hub.faults.append(Fault("cut", "GET /cdn/"))
        extracted = batchsweep_command("extract", "--all", "--delete-weights")
        assert extracted.returncode == 0, extracted.stderr
        assert "deleted" in extracted.stderr
        cached = [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and not p.is_symlink()]
        assert not [p for p in cached if p.stat().st_size > 1_000_000]

        # Sealed indexes need no Hub.
        hub.requests.clear()
        again = batchsweep_command("extract", "--all")
        assert again.returncode == 0 and "already sealed" in again.stderr
        assert not [r for r in hub.requests if MODEL in r]
        searched = batchsweep_command("bandit")
        assert searched.returncode == 0, searched.stderr
        assert "best arm: EleutherAI--pythia-14m/" in searched.stdout
        assert batchsweep_command("report").returncode == 0
        assert not [r for r in hub.requests if MODEL in r]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "step2000" in page and "step4000" in page
    store = batchsweep.store.open_store(tmp_path / "store.zarr")
    assert store.keys() == sorted(e["key"] for e in plan["entries"])
    readers = [store.reader(key) for key in store.keys()]  # noqa: SIM118
    assert all(r.complete and r.layers == (1, 2, 3, 4, 5, 6) and r.hidden == 128 for r in readers)


def test_a_hub_that_is_gone_means_exit_75(repo, tmp_path, commands):
    config = write_config(
        tmp_path / "sweep.yaml",
        models=[MODEL],
        revisions=["step0"],
        tasks=make_tasks(tmp_path / "tasks", n=20),
        store={"path": str(tmp_path / "store.zarr")},
    )
    with HubServer() as hub:
        hub.repos[MODEL] = repo
        hub.faults.append(Fault("status", "/api/models/", status=429, retry_after=900, times=99))
        done = commands.completed(["prepare", "--config", config], **hub.commands(tmp_path / "hf"))
    assert done.returncode == 75, done.stderr
    assert "asks to wait 15 min" in done.stderr
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_download_fails_the_index(repo, tmp_path, hub, capsys, name):
    hub.repos[MODEL] = repo
    config = write_config(
        tmp_path / "sweep.yaml",
        models=[MODEL],
        revisions=["step1000"],
        tasks=make_tasks(tmp_path / "tasks", n=20),
        store={"path": str(tmp_path / "store.zarr")},
        metrics={"enabled": False},
    )
    assert main(["prepare", "--config", str(config)]) == 0
    path = fetch(MODEL, repo.commit("step1000")) / name
    whole = path.read_bytes()
    damaged = bytearray(whole)
    at = len(whole) - 5 if name != "config.json" else whole.index(b"128")
    damaged[at] ^= 1
    path.write_bytes(damaged)
    capsys.readouterr()
    assert main(["extract", "--config", str(config), "--all"]) == 3
    assert f"{name} is not the file that the plan was frozen with" in capsys.readouterr().err
    path.write_bytes(whole)
    assert main(["extract", "--config", str(config), "--all"]) == 0


def test_runs_at_one_moment_make_one_search_of_half_of_the_pairs(repo, tmp_path, commands):
    """The Hub loses a checkpoint in mid-search; completed, the bytes are those of all at once."""
    names = ["step0", "step1000", "step16", "step128", "step4000", "main"]
    served = type(repo)({**repo.branches})
    for name in names[2:5]:
        served.branches[name] = served.branches["step1000" if name == "step4000" else "step0"] | {
            "model.safetensors": _weights(tmp_path / name, len(name))
        }

    def config(name, **bandit):
        return write_config(
            tmp_path / f"{name}.yaml",
            models=[MODEL],
            revisions=names,
            tasks=make_tasks(tmp_path / "tasks", n=20),
            store={"path": str(tmp_path / f"{name}.zarr")},
            metrics={"sample": 8},
            bandit={"budget": {"pulls": 30, **bandit}},
        )

    with HubServer() as hub:
        hub.repos[MODEL] = served

        def start(file, *args):
            return commands.start([*args, "--config", file], **hub.commands(tmp_path / "hf"))

        searched, whole = config("searched", checkpoints=3), config("whole")
        assert start(searched, "prepare").exit.result() == 0
        # The last checkpoint is always asked for, and now it can't be had.
        whole_branch = served.branches["main"]
        served.branches["main"] = {"README.md": b"gone"}
        both = [start(searched, "run", "--parallel", "1") for _ in range(2)]
        ended = [process.end() for process in both]
        # The second one waits for nobody: it says that another searches here.
        assert sorted(code for code, _ in ended) in ([0, 75], [0, 0]), ended
        lines = [line for _, said in ended for line in said.splitlines()]
        answers = [line for line in lines if line.startswith("best arm:")]
        assert answers and not any("main#" in answer for answer in answers)
        ready = ready_tasks(batchsweep.store.open_store(str(tmp_path / "searched.zarr")))
        assert 0 < sum(map(len, ready.values())) <= 6  # Of twelve pairs.
        served.branches["main"] = whole_branch
        for file, *todo in ((searched, "extract"), (whole, "prepare", "extract")):
            for command in todo:
                more = ["--all"] if command == "extract" else []
                code, said = start(file, command, *more).end()
                assert code == 0, said
    first, second = (stored(tmp_path / f"{name}.zarr") for name in ("searched", "whole"))
    assert first == second


def _weights(folder, seed):
    """The bytes of random weights of pythia-14m's depth and width."""
    make_model(folder, seed=10 + seed, layers=6, hidden=128)
    return (folder / "model.safetensors").read_bytes()
