"""A sweep through the real kubectl, against an API server of the tests' own."""

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from instant_cluster import instant_cluster
from kubernetes_server import needs_kubectl
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main
from batchsweep.jobs import kubectl

pytestmark = needs_kubectl


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(kubectl, "POLL_SECONDS", 0.05)
    with instant_cluster(tmp_path, monkeypatch, namespace="team") as made:
        yield made


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(
        write_config(
            Path("sweep.yaml"),
            models=[str(make_suite(tmp_path / "tiny", ("step0", "main")))],
            revisions=["step0", "main"],
            tasks=make_tasks(tmp_path / "tasks"),
            store={"path": "runs/sweep/store.zarr"},
        )
    )


def test_an_index_fails_and_is_submitted_again(config, cluster, capsys):
    cluster.fails = {"extract": {1}}
    submit = ["launch", "k8s", "--config", config, "--apply"]
    assert main([*submit, "--image", "registry/b:1", "--storage", "2Ti"]) == 3
    (again,) = [
        line.removeprefix("again: batchsweep ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("again: ")
    ]
    cluster.fails = {}
    assert main(again.split()) == 0
    job = cluster.get("jobs", "sweep-extract-1", "team")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/b:1"
    assert job["spec"]["suspend"] is False
    claim = cluster.get("persistentvolumeclaims", "sweep-runs", "team")
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Ti"
    capsys.readouterr()
    assert main(["launch", "k8s", "--config", config, "--status"]) == 0
    assert "failed:" not in capsys.readouterr().out.replace("extract: failed", "")
    before = cluster.writes()
    assert main(submit) == 0
    assert cluster.writes() == before


def test_a_server_that_goes_away_in_the_middle_is_waited_for(config, cluster):
    """Down before anything is asked, and again right before the release."""
    ends: list[Any] = []

    def react(job):
        cluster.settle(job)
        if job["metadata"]["name"] == "sweep-extract" and not ends:
            ends.append(True)
            threading.Thread(target=away).start()

    def away():
        cluster.stop()
        threading.Timer(1.0, cluster.start).start()

    cluster.react = react
    cluster.stop()
    threading.Timer(1.0, cluster.start).start()
    assert main(["launch", "k8s", "--config", config, "--apply"]) == 0
    assert ends
    assert cluster.get("jobs", "sweep-extract", "team")["spec"]["suspend"] is False
    assert ("jobs", "team", "sweep-bandit") in cluster.objects


def test_kubectl_takes_what_is_printed(config, cluster, capsys):
    assert main(["launch", "k8s", "--config", config]) == 0
    done = subprocess.run(
        ["kubectl", "apply", "-f", "-"], input=capsys.readouterr().out, text=True, check=False
    )
    assert done.returncode == 0
    assert sorted(key[2] for key in cluster.objects) == [
        *("sweep-bandit", "sweep-cache", "sweep-config", "sweep-extract", "sweep-prepare"),
        "sweep-runs",
    ]
