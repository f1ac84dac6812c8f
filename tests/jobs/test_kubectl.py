"""What kubectl's errors mean, and what the user is told to type."""

import shlex

import pytest
from instant_cluster import instant_cluster
from kubernetes_server import needs_kubectl

from batchsweep.errors import TryAgain, UsageError
from batchsweep.jobs.kubectl import Commands, Kubectl

AWAY = [
    "Unable to connect to the server: EOF",
    "Unable to connect to the server: net/http: TLS handshake timeout",
    "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host?",
    "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
    'Get "https://10.0.0.1:6443/api": dial tcp 10.0.0.1:6443: connect: connection refused',
    "error: unexpected EOF",
    "Error from server (Timeout): the server was unable to return a response in time",
    "Error from server (InternalError): an error on the server (503 Service Unavailable)",
    "read tcp 10.0.0.2:5000->10.0.0.1:6443: read: connection reset by peer",
    "Error from server: etcdserver: leader changed",
    'error: error validating "STDIN": error validating data: failed to download openapi: the '
    "server could not find the requested resource",
    "Error from server (TooManyRequests): the server has received too many requests",
]
REFUSED = [
    'Error from server (Forbidden): jobs.batch is forbidden: User "x" cannot list resource "jobs"',
    'The Job "demo-extract" is invalid: spec.template: Invalid value: field is immutable',
    "error: You must be logged in to the server (Unauthorized)",
    'error: context "nowhere" does not exist',
]


def saying(folder, words):
    tool = folder / "kubectl"
    tool.write_text(f"#!/bin/sh\necho {shlex.quote(words)} >&2; exit 1\n")
    tool.chmod(0o755)
    return Kubectl(command=str(tool))


@pytest.mark.parametrize("words", AWAY)
def test_a_server_that_may_be_back(tmp_path, words):
    with pytest.raises(TryAgain, match="kubectl get jobs: "):
        saying(tmp_path, words).items("jobs", "demo")


@pytest.mark.parametrize("words", REFUSED)
def test_a_request_that_is_refused(tmp_path, words):
    with pytest.raises(UsageError, match="kubectl get jobs: "):
        saying(tmp_path, words).items("jobs", "demo")


def test_no_kubectl_and_no_cluster_are_one_line_each(tmp_path):
    with pytest.raises(UsageError, match="no kubectl on the PATH"):
        Kubectl(command=str(tmp_path / "nothing")).items("jobs", "demo")
    words = "The connection to the server localhost:8080 was refused - did you specify the host?"
    with pytest.raises(UsageError, match="knows no cluster: set KUBECONFIG"):
        saying(tmp_path, words).items("jobs", "demo")


@needs_kubectl
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_every_request_is_made_again_while_the_server_is_away(tmp_path, monkeypatch, method):
    labels = {
        "app.kubernetes.io/name": "batchsweep",
        "app.kubernetes.io/component": "extract",
        "app.kubernetes.io/instance": "demo",
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "labels": labels}}
    job["spec"] = {"suspend": True}
    with instant_cluster(tmp_path, monkeypatch) as cluster:
        cluster.away = {method: 2}
        kubectl = Kubectl(patience=60, poll=0.01)
        kubectl.apply([job])
        kubectl.release("j")
        assert [o["metadata"]["name"] for o in kubectl.items("jobs", "demo")] == ["j"]
        kubectl.delete_job("j")
        assert kubectl.items("jobs", "demo") == []
        assert cluster.away == {method: 0}
        cluster.away = {"GET": 9}
        with pytest.raises(TryAgain):
            Kubectl().items("jobs", "demo")


def test_events_and_claims_that_may_not_be_read_are_none(tmp_path):
    assert saying(tmp_path, REFUSED[0]).warnings() == []
    assert saying(tmp_path, REFUSED[0]).claims("demo") == []


def test_printed_commands_are_whole_and_quoted():
    commands = Commands("my configs/a.yaml", "sweeps")
    assert commands.launch("--apply") == (
        "batchsweep launch k8s --config 'my configs/a.yaml' --namespace sweeps --apply"
    )
    assert commands.kubectl("logs", "job/a") == "kubectl --namespace sweeps logs job/a"
