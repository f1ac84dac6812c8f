"""Submitting and following, with a kubectl that keeps its objects in a file."""

import json
import stat
import sys

import pytest

from batchsweep.errors import IndexFailed, TryAgain, UsageError
from batchsweep.jobs.kubectl import (
    Kubectl,
    advice,
    follow,
    index_table,
    job_view,
    snapshot,
    submit,
    summary,
)
from batchsweep.jobs.kubernetes import Cluster, render

# A cluster in which a released Job ends at once; "fails" holds positions of the extract Job.
KUBECTL = """\
import json, pathlib, sys
args = sys.argv[1:]
here = pathlib.Path({folder!r})
with (here / "calls").open("a") as calls:
    calls.write(" ".join(args[:3]) + "\\n")
path = here / "state.json"
state = json.loads(path.read_text()) if path.exists() else {{}}
fails = json.loads((here / "fails").read_text()) if (here / "fails").exists() else {{}}

def settle(job):
    if job["spec"].get("suspend"):
        return
    component = job["metadata"]["labels"]["app.kubernetes.io/component"]
    bad = sorted(map(int, fails.get(component, {{}})))
    kind = "Failed" if bad else "Complete"
    job["status"] = {{"conditions": [{{"type": kind, "status": "True", "message": "said so"}}]}}
    n = job["spec"].get("completions")
    if n is not None:
        good = [i for i in range(n) if i not in bad]
        job["status"]["completedIndexes"] = ",".join(map(str, good))
        job["status"]["failedIndexes"] = ",".join(map(str, bad))

verb = args[0]
away = json.loads((here / "away").read_text()) if (here / "away").exists() else {{}}
if away.get(verb):
    away[verb] -= 1
    (here / "away").write_text(json.dumps(away))
    sys.exit("The connection to the server 10.0.0.1:6443 was refused")
if verb == "get":
    sweep = args[3].rsplit("=", 1)[1]
    if args[1] == "pods":
        pods = json.loads((here / "pods").read_text()) if (here / "pods").exists() else []
        print(json.dumps({{"items": pods}}))
    else:
        found = [o for o in state.values() if o["kind"] == "Job"]
        label = "app.kubernetes.io/instance"
        print(json.dumps({{"items": [
            o for o in found if o["metadata"]["labels"][label] == sweep]}}))
elif verb == "apply":
    for item in json.load(sys.stdin)["items"]:
        name = item["kind"] + "/" + item["metadata"]["name"]
        if item["kind"] == "Job":
            if name in state:
                sys.exit("field is immutable: " + name)
            settle(item)
        state[name] = item
elif verb == "delete":
    del state["Job/" + args[2]]
elif verb == "patch":
    job = state["Job/" + args[2]]
    job["spec"] |= json.loads(args[-1])["spec"]
    settle(job)
path.write_text(json.dumps(state))
"""


@pytest.fixture
def cluster(tmp_path):
    tool = tmp_path / "kubectl"
    tool.write_text(f"#!{sys.executable}\n" + KUBECTL.format(folder=str(tmp_path)))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def kubectl(folder):
    return Kubectl(command=str(folder / "kubectl"))


def put(folder, indexes, *, again=False, queue=None):
    def objects(indexes, whole):
        return render(
            sweep="demo",
            config_file="demo.yaml",
            config_text="models: []\n",
            store_url="runs/demo/store.zarr",
            indexes=indexes,
            whole=whole,
            cluster=Cluster(queue=queue),
        )

    submit(
        kubectl(folder),
        "demo",
        objects,
        indexes,
        again=again,
        queue=queue is not None,
        poll=0.01,
    )


def calls(folder):
    text = (folder / "calls").read_text().splitlines()
    return [line for line in text if not line.startswith("get")]


def state(folder):
    return json.loads((folder / "state.json").read_text())


def test_extract_is_made_after_the_plan_is_frozen_and_then_released(cluster):
    put(cluster, range(4))
    assert calls(cluster) == [
        "apply -f -",  # config and volumes
        "apply -f -",  # prepare
        "apply -f -",  # extract, suspended
        "patch job demo-extract",
        "apply -f -",  # bandit
    ]
    view = job_view(state(cluster)["Job/demo-extract"])
    assert (view.state, view.succeeded) == ("complete", {0, 1, 2, 3})


def test_a_failed_prepare_leaves_the_gpus_alone(cluster):
    (cluster / "fails").write_text('{"prepare": {"0": 2}}')
    with pytest.raises(IndexFailed, match="demo-prepare failed: said so"):
        put(cluster, range(4))
    assert "Job/demo-extract" not in state(cluster)


def test_submitting_again_submits_nothing(cluster):
    put(cluster, range(4))
    before = calls(cluster)
    put(cluster, range(4))
    assert calls(cluster) == before


def test_a_grown_plan_submits_only_the_new_indexes(cluster):
    put(cluster, range(4))
    put(cluster, range(7))
    new = state(cluster)["Job/demo-extract-4-6"]
    assert new["spec"]["completions"] == 3
    assert job_view(new).succeeded == {4, 5, 6}
    assert "delete job demo-prepare" in calls(cluster)
    assert "delete job demo-bandit" in calls(cluster)
    assert "delete job demo-extract" not in calls(cluster)


def test_failed_indexes_can_be_submitted_again_and_again(cluster):
    put(cluster, range(4))
    for _ in range(2):
        put(cluster, [1, 3], again=True)
    assert state(cluster)["Job/demo-extract-1-3"]["spec"]["completions"] == 2


def test_an_index_that_succeeded_in_a_later_job_has_succeeded(cluster):
    (cluster / "fails").write_text('{"extract": {"1": 4}}')
    put(cluster, range(4))
    (cluster / "fails").write_text('{"extract": {}}')
    put(cluster, [1], again=True)
    end = follow(kubectl(cluster), "demo", show=lambda now: None, poll=0.01)
    assert job_view(state(cluster)["Job/demo-extract"]).state == "failed"
    assert end.index_states[1] == "succeeded"
    assert (end.failed, end.broken, advice(end, "demo.yaml")) == (frozenset(), [], "")


def test_a_server_that_is_away_for_a_while_ends_neither_release_nor_following(cluster):
    (cluster / "away").write_text('{"patch": 2}')
    put(cluster, range(4))
    (cluster / "away").write_text('{"get": 2}')
    end = follow(kubectl(cluster), "demo", show=lambda now: None, poll=0.01)
    assert end.succeeded == {0, 1, 2, 3}


def test_kueue_releases_the_job_itself(cluster):
    put(cluster, range(4), queue="gpus")
    assert not any(call.startswith("patch") for call in calls(cluster))
    job = state(cluster)["Job/demo-extract"]
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_a_running_job_is_not_replaced(cluster):
    put(cluster, range(4), queue="gpus")
    with pytest.raises(UsageError, match="Job demo-extract is suspended and has some of these"):
        put(cluster, [2], again=True)


def pod(index, *, created, phase="Failed", code=None, reason="Error", conditions=()):
    ended = [{"state": {"terminated": {"exitCode": code, "reason": reason}}}]
    return {
        "metadata": {
            "creationTimestamp": created,
            "labels": {
                "batch.kubernetes.io/job-name": "demo-extract",
                "batch.kubernetes.io/job-completion-index": str(index),
            },
        },
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": ended if code is not None else [],
        },
    }


def test_failed_indexes_come_with_what_to_do(cluster):
    (cluster / "fails").write_text('{"extract": {"0": 4, "2": 137, "3": 75}}')
    pods = [
        pod(0, created="2026-01-01T00:00:00Z", code=4),
        pod(2, created="2026-01-01T00:00:00Z", code=75),
        pod(2, created="2026-01-02T00:00:00Z", code=137, reason="OOMKilled"),
        pod(3, created="2026-01-01T00:00:00Z", code=75),
    ]
    (cluster / "pods").write_text(json.dumps(pods))
    put(cluster, range(4))
    shown = []
    end = follow(kubectl(cluster), "demo", show=shown.append, poll=0.01)
    assert len(shown) == 1
    text = advice(end, "demo.yaml")
    lines = text.splitlines()
    assert lines[0] == "3 indexes failed:"
    assert lines[1].startswith("  0: exit 4: it can't succeed as it is")
    assert lines[2].startswith("  2: out of memory")
    assert lines[3] == "  3: exit 75: it may pass; submit it again"
    assert lines[-1].endswith("launch k8s --config demo.yaml --indexes 0,2-3 --apply")
    assert "demo-extract: failed (said so): 3 failed, 1 succeeded" in summary(end)


def test_the_table_shows_both_views(cluster):
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    pods = [
        pod(0, created="1", phase="Running"),
        pod(1, created="1", phase="Pending", conditions=[unschedulable]),
        pod(2, created="1", code=143, conditions=[evicted]),
    ]
    (cluster / "pods").write_text(json.dumps(pods))
    put(cluster, range(4), queue="gpus")
    now = snapshot(kubectl(cluster), "demo")
    table = index_table(now.index_states, {0: "3/12"}, {0: "org--m/step1", 3: "org--m/main"})
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert rows["0"].split() == ["0", "org--m/step1", "running", "3/12"]
    assert "Insufficient nvidia.com/gpu" in rows["1"]
    assert "evicted (PreemptionByScheduler)" in rows["2"]
    assert rows["3"].split() == ["3", "org--m/main", "waiting", "?"]
    assert "isn't reached" in index_table(now.index_states, {}, {})


def test_no_kubectl_and_no_cluster_are_one_line_each(cluster):
    with pytest.raises(UsageError, match="no kubectl on the PATH"):
        Kubectl(command=str(cluster / "nothing")).items("jobs", "demo")
    tool = cluster / "kubectl"
    tool.write_text("#!/bin/sh\necho 'Unable to connect to the server: i/o timeout' >&2; exit 1\n")
    with pytest.raises(TryAgain, match="kubectl get jobs: Unable to connect"):
        kubectl(cluster).items("jobs", "demo")
    tool.write_text("#!/bin/sh\necho 'Error: jobs is forbidden' >&2; exit 1\n")
    with pytest.raises(UsageError, match="forbidden"):
        kubectl(cluster).items("jobs", "demo")
