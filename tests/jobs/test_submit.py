"""Submitting and following, through kubectl, in a cluster that ends what is released at once."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from instant_cluster import instant_cluster, pod
from kubernetes_server import needs_kubectl

from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs.advice import advice, index_table, summary
from batchsweep.jobs.cluster import Cluster
from batchsweep.jobs.kubectl import Commands, Kubectl
from batchsweep.jobs.kubernetes import render
from batchsweep.jobs.kubernetes_objects import ClusterSweep
from batchsweep.jobs.snapshot import job_view, snapshot
from batchsweep.jobs.submit import Watch, submit
from batchsweep.jobs.submit import follow as follow_watch

COMMANDS = Commands("demo.yaml", None)


pytestmark = needs_kubectl


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with instant_cluster(tmp_path, monkeypatch) as made:
        yield made


def kubectl(patience=0.0):
    return Kubectl(poll=0.01, patience=patience)


def watch(**options):
    return Watch(kubectl(patience=60), "demo", COMMANDS, **{"tell": print, **options})


def follow(**options):
    return follow_watch(watch(**options))


def put(indexes, *, again=False, queue=None, resized=(), changed=False, cluster=None, **options):
    options_of_now = cluster or Cluster(queue=queue)
    text, store = "models: []\n", "runs/demo/store.zarr"
    submit(
        watch(**options),
        partial(render, ClusterSweep("demo", "demo.yaml", text, store, options_of_now)),
        indexes,
        again=again,
        queue=queue is not None,
        resized=resized,
        changed=changed,
    )


def test_extract_is_made_after_the_plan_is_frozen_and_then_released(cluster):
    put(range(4))
    assert cluster.writes() == [
        ("POST", "configmaps", "demo-config"),
        ("POST", "persistentvolumeclaims", "demo-runs"),
        ("POST", "persistentvolumeclaims", "demo-cache"),
        ("POST", "jobs", "demo-prepare"),
        ("POST", "jobs", "demo-extract"),  # Suspended.
        ("PATCH", "jobs", "demo-extract"),
        ("POST", "jobs", "demo-bandit"),
    ]
    view = job_view(cluster.get("jobs", "demo-extract"))
    assert (view.state, set(view.succeeded)) == ("complete", {0, 1, 2, 3})


def test_a_failed_prepare_leaves_the_gpus_alone(cluster):
    cluster.fails = {"prepare": {0}}
    with pytest.raises(IndexFailed, match="demo-prepare failed: said so"):
        put(range(4))
    assert ("jobs", "default", "demo-extract") not in cluster.objects


def test_submitting_again_submits_nothing(cluster):
    put(range(4))
    before = cluster.writes()
    put(range(4))
    assert cluster.writes() == before


def test_a_grown_plan_submits_only_the_new_indexes(cluster):
    put(range(4))
    put(range(7))
    new = cluster.get("jobs", "demo-extract-4-6")
    assert new["spec"]["completions"] == 3
    assert job_view(new).succeeded == {4, 5, 6}
    deleted = [name for method, _, name in cluster.writes() if method == "DELETE"]
    assert deleted == ["demo-prepare", "demo-bandit"]


def test_failed_indexes_can_be_submitted_again_and_again(cluster):
    put(range(4))
    for _ in range(2):
        put([1, 3], again=True)
    assert cluster.get("jobs", "demo-extract-1-3")["spec"]["completions"] == 2


def test_an_index_that_succeeded_in_a_later_job_has_succeeded(cluster):
    cluster.fails = {"extract": {1}}
    put(range(4))
    cluster.fails = {}
    put([1], again=True)
    end = follow()
    assert job_view(cluster.get("jobs", "demo-extract")).state == "failed"
    assert end.index_states[1] == "succeeded"
    assert (end.failed, end.broken, advice(end, "demo", COMMANDS)) == (frozenset(), [], "")


def test_a_server_that_is_away_for_a_while_ends_neither_release_nor_following(cluster):
    cluster.away = {"PATCH": 2}
    put(range(4))
    cluster.away = {"GET": 2}
    end = follow()
    assert end.succeeded == {0, 1, 2, 3}


def test_kueue_releases_the_job_itself(cluster):
    put(range(4), queue="gpus")
    assert not any(method == "PATCH" for method, _, _ in cluster.writes())
    job = cluster.get("jobs", "demo-extract")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_options_given_anew_reach_a_job_that_waits(cluster):
    put(range(4), queue="gpus")
    more = Cluster(queue="gpus", memory={"extract": "64Gi"}, node_selector={"pool": "a"})
    put(range(4), queue="gpus", cluster=replace(more, parallelism=2), changed=True)
    spec = cluster.get("jobs", "demo-extract")["spec"]
    assert (spec["suspend"], spec["parallelism"], spec["completions"]) == (True, 2, 4)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "64Gi"
    assert pod["nodeSelector"] == {"pool": "a"}
    assert [r for r in cluster.writes() if r[0] == "PATCH"][-1] == ("PATCH", "jobs", "demo-extract")


def test_a_waiting_job_that_cannot_be_changed_is_told_with_what_to_do(cluster):
    put(range(4), queue="gpus")
    cluster.suspended_change = False
    more = Cluster(queue="gpus", memory={"extract": "64Gi"})
    told = r"immutable.*; delete it first: 'kubectl delete job demo-"
    with pytest.raises(UsageError, match=told):
        put(range(4), queue="gpus", cluster=more, changed=True)


def test_a_running_job_is_not_replaced(cluster):
    put(range(4), queue="gpus")
    with pytest.raises(UsageError, match="Job demo-extract is suspended and has some of these"):
        put([2], again=True)


def test_failed_indexes_come_with_what_to_do(cluster):
    cluster.fails = {"extract": {0, 2, 3}}
    pods = [
        pod(0, created="2026-01-01T00:00:00Z", phase="Failed", code=4),
        pod(2, created="2026-01-01T00:00:00Z", phase="Failed", code=75),
        pod(2, created="2026-01-02T00:00:00Z", phase="Failed", code=137, reason="OOMKilled"),
        pod(3, created="2026-01-01T00:00:00Z", phase="Failed", code=75),
    ]
    cluster.show("pods", pods, "demo")
    put(range(4))
    shown: list[Any] = []
    end = follow(show=shown.append)
    assert len(shown) == 1
    text = advice(end, "demo", COMMANDS)
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
        pod(2, created="1", phase="Failed", code=143, conditions=[evicted]),
    ]
    cluster.show("pods", pods, "demo")
    put(range(4), queue="gpus")
    now = snapshot(kubectl(), "demo")
    table = index_table(now.index_states, {0: "3/12"}, {0: "org--m/step1", 3: "org--m/main"})
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert rows["0"].split() == ["0", "org--m/step1", "running", "3/12"]
    assert "Insufficient nvidia.com/gpu" in rows["1"]
    assert "evicted (PreemptionByScheduler)" in rows["2"]
    assert rows["3"].split() == ["3", "org--m/main", "waiting", "?"]
    assert "isn't reached" in index_table(now.index_states, {}, {})


def test_a_call_that_was_cut_off_before_the_release_is_finished_by_the_next(cluster):
    put(range(4), queue="gpus")  # Which leaves the Job suspended.
    put(range(4))
    assert job_view(cluster.get("jobs", "demo-extract")).state == "complete"
    del cluster.objects["jobs", "default", "demo-bandit"]
    put(range(4))
    assert ("jobs", "default", "demo-bandit") in cluster.objects


def test_volumes_that_are_there_stay_unless_their_size_is_given(cluster):
    def sizes():
        return {
            o["metadata"]["name"]: o["spec"]["resources"]["requests"]["storage"]
            for o in cluster.objects.values()
            if o["kind"] == "PersistentVolumeClaim"
        }

    put(range(4), cluster=Cluster(storage="1Ti", cache="200Gi"))
    put(range(5), cluster=Cluster(storage="9Ti", cache="9Ti"), resized={"cache"})
    assert sizes() == {"demo-runs": "1Ti", "demo-cache": "9Ti"}


def test_an_index_that_is_sealed_has_succeeded(cluster):
    cluster.fails = {"extract": {1}}
    put(range(4))
    assert follow().failed == {1}
    end = follow(sealed=lambda: frozenset({1}))
    assert (end.failed, end.broken, end.index_states[1]) == (frozenset(), [], "succeeded")


def test_lines_stand_in_the_order_of_the_work(cluster):
    put(range(4))
    for index in (10, 2):
        put([index], again=True)
    lines = summary(snapshot(kubectl(), "demo")).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "demo-prepare",
        "demo-extract",
        "demo-extract-2",
        "demo-extract-10",
        "demo-bandit",
    ]


IMAGE_MISSING = {
    "image": "batchsweep:9",
    "name": "prepare",
    "state": {"waiting": {"reason": "ErrImagePull", "message": "batchsweep:9: not found"}},
}


def test_a_pod_that_cannot_start_is_told_at_once_and_given_up(cluster, caplog, capsys):
    cluster.hold = {"prepare"}
    waiting = pod(job="demo-prepare", containerStatuses=[IMAGE_MISSING])
    cluster.show("pods", [waiting], "demo")
    with caplog.at_level(logging.WARNING), pytest.raises(IndexFailed, match="not found"):
        put(range(4), lasting=0.1)
    told = [r.getMessage() for r in caplog.records if "can't start" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("prepare can't start: ErrImagePull: batchsweep:9: not found -- push")
    assert capsys.readouterr().out.splitlines() == [
        "then: kubectl delete job demo-prepare",
        "again: batchsweep launch k8s --config demo.yaml --apply",
    ]


def test_what_may_pass_is_told_and_waited_for(cluster, caplog):
    cluster.hold = {"bandit"}
    put(range(4))
    full = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient cpu."}
    cluster.show("pods", [pod(job="demo-bandit", conditions=[full])], "demo")
    looks = []

    def show(now):
        looks.append(now)
        if len(looks) == 3:
            job = cluster.get("jobs", "demo-bandit")
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}

    with caplog.at_level(logging.WARNING):
        end = follow(show=show, lasting=0)
    assert end.troubles == ()
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("bandit can't start: 0/3 nodes: Insufficient cpu.")
