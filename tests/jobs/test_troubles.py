"""Why pods don't start, in Kubernetes' words."""

import json

import pytest
from instant_cluster import pod

from batchsweep.jobs.troubles import troubles


def job(component="extract", *, active=1, ended=False, **spec):
    conditions = [{"type": "Complete", "status": "True"}] if ended else []
    return {
        "kind": "Job",
        "metadata": {
            "name": f"demo-{component}",
            "uid": "job-1",
            "labels": {"app.kubernetes.io/component": component},
        },
        "spec": spec,
        "status": {"active": active, "conditions": conditions},
    }


def event(kind, name, reason, message, uid=""):
    about = {"kind": kind, "name": name, "uid": uid}
    return {"involvedObject": about, "reason": reason, "message": message}


def waiting(reason, message="", *, where="containerStatuses"):
    state = {"waiting": {"reason": reason, "message": message}}
    return {where: [{"name": "extract", "image": "b:1", "state": state}]}


def unscheduled(message):
    return {"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]}


PENDING_CLAIM = {
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "demo-runs"},
    "status": {"phase": "Pending"},
}


@pytest.mark.parametrize(
    ("status", "events", "kind", "words", "remedy"),
    [
        (waiting("ErrImagePull", "b:1: not found"), [], "image", "b:1: not found", "--image"),
        (waiting("InvalidImageName"), [], "image", "InvalidImageName: b:1", "--image"),
        (
            waiting("ImagePullBackOff", "back-off", where="initContainerStatuses"),
            [event("Pod", "demo-extract-0-x", "Failed", "Failed to pull image b:1: 403 Forbidden")],
            "image",
            "403 Forbidden",
            "--image-pull-secret",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "s" not found'),
            [],
            "container",
            'secret "s" not found',
            "--patch",
        ),
        (
            unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            [],
            "node",
            "3 Insufficient nvidia.com/gpu",
            "--gpu-type",
        ),
        (
            unscheduled("0/1 nodes: pod has unbound immediate PersistentVolumeClaims."),
            [],
            "claim",
            "unbound immediate",
            "--storage-class",
        ),
        (
            unscheduled("0/1 nodes: unbound PersistentVolumeClaims."),
            [event("PersistentVolumeClaim", "demo-runs", "ProvisioningFailed", "only RWO " * 9)],
            "claim",
            "volume claim demo-runs: only RWO",
            "ReadWriteMany",
        ),
        (
            {},
            [event("Pod", "demo-extract-0-x", "FailedMount", "mount.nfs: access denied")],
            "claim",
            "mount.nfs: access denied",
            "--storage-class",
        ),
    ],
)
@pytest.mark.parametrize("component", ["prepare", "extract", "bandit"])
def test_a_pod_that_cannot_start(component, status, events, kind, words, remedy):
    name = f"demo-{component}"
    events = json.loads(json.dumps(events).replace("demo-extract", name))
    (trouble,) = troubles([job(component)], [pod(0, job=name, **status)], [PENDING_CLAIM], events)
    assert (trouble.component, trouble.kind) == (component, kind)
    assert words in trouble.words
    assert remedy in str(trouble)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ('pods "x" is forbidden: exceeded quota: team, requested: cpu=4', "quota"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "refused"),
        ('admission webhook "policy.example" denied the request: no owner label', "refused"),
    ],
)
def test_a_pod_that_is_not_even_made(message, kind):
    events = [event("Job", "demo-extract", "FailedCreate", message, uid="job-1")]
    (trouble,) = troubles([job(active=0)], [], [], events)
    assert (trouble.kind, trouble.words) == (kind, message)
    assert trouble.lasting is (kind == "refused")


def test_what_is_past_is_no_trouble():
    message = 'pods "x" is forbidden: exceeded quota'
    events = [event("Job", "demo-extract", "FailedCreate", message, uid="job-1")]
    assert troubles([job(active=1)], [], [], events) == ()
    assert troubles([job(active=0, ended=True)], [], [], events) == ()
    assert troubles([job(active=0, suspend=True)], [], [], events) == ()
    of_another = [event("Job", "demo-extract", "FailedCreate", message, uid="job-0")]
    assert troubles([job(active=0)], [], [], of_another) == ()


def test_out_of_memory_is_told_while_the_job_runs():
    killed = pod(0, phase="Failed", code=137, reason="OOMKilled")
    (trouble,) = troubles([job()], [killed], [], [])
    assert "extract was killed: OOMKilled" in str(trouble)
    assert "raise --memory" in str(trouble)


def test_one_trouble_of_many_pods_is_told_once():
    pods = [pod(i, **waiting("ErrImagePull", f"b:1: not found {'x' * i}")) for i in range(5)]
    (trouble,) = troubles([job()], pods, [], [])
    assert trouble.words.endswith("xxxx")
