"""A sweep in a cluster from end to end: the real kubectl, true workers, and what goes wrong there.

What is printed to be typed is typed as it stands.

The cluster is simulated (:mod:`simulated_cluster`), or with ``--real-cluster IMAGE`` the one of
``KUBECONFIG``, in a namespace of its own. One sweep goes through all scenarios, each a fixture that
follows the one before it; tests look at what they left.
"""

import base64
import io
import json
import os
import re
import shlex
import signal
import subprocess
import tarfile
import uuid
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forks import until
from kubernetes_server import Cluster, needs_kubectl
from simulated_cluster import Controller, Nodes
from tiny import make_suite, make_tasks, write_config

from batchsweep.jobs.index import parse_indexes
from batchsweep.store import open_store

pytestmark = needs_kubectl

REVISIONS = ("step0", "step1", "step2", "step4", "step8", "step16")
JOB = "sweep-extract-0-4"
#: What index 3 writes to, in the folder that the workers start in.
BROKEN = "runs/sweep/store.zarr/checkpoints/suite/step4"


class Place:
    """A cluster, and a user's folder with a config."""

    def __init__(self, folder, commands, *, image, simulated):
        self.folder, self.commands = folder, commands
        self.image, self.simulated = image, simulated
        self.namespace = f"batchsweep-{uuid.uuid4().hex[:8]}"
        self.launches = 0
        self.cluster: Any = None
        self.volume: Any = None
        self.sections: dict[str, Any] = {}

    def kubectl(self, *words, stdin=None):
        command = ["kubectl", "--namespace", self.namespace, *words]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def items(self, kind):
        return json.loads(self.kubectl("get", kind, "-o", "json"))["items"]

    def job(self, name):
        return next((j for j in self.items("jobs") if j["metadata"]["name"] == name), None)

    def pods_of(self, job, index):
        labels = {
            "batch.kubernetes.io/job-name": job,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        found = [
            p
            for p in self.items("pods")
            if labels.items() <= p["metadata"].get("labels", {}).items()
        ]
        return sorted(found, key=lambda p: p["metadata"]["creationTimestamp"])

    def start(self, *words):
        """Start ``batchsweep``, as the user types it; a terminal's process and its output."""
        self.launches += 1
        output = self.folder / f"output-{self.launches}"
        seconds = 0.3 if self.simulated else 2.0
        process = self.commands.start(
            words,
            output,
            folder=self.folder,
            environment={**os.environ, "HF_HUB_OFFLINE": "1"},
            settings={"batchsweep.jobs.kubectl.POLL_SECONDS": seconds},
        )
        return process, output

    def run(self, *words):
        """Run it to its end; exit code and what was said."""
        process, output = self.start(*words)
        code = process.exit.result(600)
        return SimpleNamespace(code=code, said=output.read_text())

    def launch(self, *more):
        config = ["launch", "k8s", "--config", "sweep.yaml", "--namespace", self.namespace]
        return self.run(*config, *more)

    def pod(self, name, **container):
        """Run a pod on the sweep's volume to its end."""
        mounts = [{"name": n, "mountPath": f"/{n}"} for n in ("runs", "made", "configs")]
        claim = {"name": "runs", "persistentVolumeClaim": {"claimName": "sweep-runs"}}
        maps = {"made": "made", "configs": "sweep-config"}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "volumes": [
                    claim,
                    *({"name": n, "configMap": {"name": m}} for n, m in maps.items()),
                ],
                "containers": [
                    {"name": "main", "image": self.image, "workingDir": "/runs", **container}
                    | {"volumeMounts": mounts}
                ],
            },
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))
        self.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=300s"
        )
        return self.kubectl("logs", name)

    def log(self, pod):
        return self.kubectl("logs", pod["metadata"]["name"])

    @contextmanager
    def half_way(self, *indexes):
        """The names of pods that are in the middle of their indexes' blocks (and held there)."""
        held: dict[Any, Any] = {}

        def hold():
            for index in set(indexes) - set(held):
                group = self.volume / REVISIONS[index].join(BROKEN.split("step4"))
                if len(list(group.glob("mean/c.*"))) > 2:
                    held[index] = self.cluster.nodes.process_of(JOB, index)
                    held[index].signal(signal.SIGSTOP)
            return len(held) == len(indexes)

        def running(index):
            pods = [p for p in self.pods_of(JOB, index) if p["status"]["phase"] == "Running"]
            return pods and pods[-1]["metadata"]["name"]

        if self.simulated:
            self.until(hold)
        yield [self.until(partial(running, index)) for index in indexes]
        for process in held.values():
            process.signal(signal.SIGCONT)

    def until(self, what):
        return until(what, seconds=300)


@pytest.fixture(scope="module")
def place(request, tmp_path_factory, commands):
    """An empty cluster and the folder of a sweep."""
    folder = tmp_path_factory.mktemp("user")
    image = request.config.getoption("--real-cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if image is None:
            cluster = Cluster()
            Controller(cluster)
            cluster.nodes = Nodes(cluster, commands, tmp_path_factory.mktemp("nodes"))
            cluster.start()
            cluster.kubeconfig(folder / "kubeconfig")
            patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
            patch.setenv("KUBECACHEDIR", str(folder / "kube-cache"))
        made = Place(folder, commands, image=image or "batchsweep:0", simulated=image is None)
        made.cluster = cluster if image is None else None
        made.volume = cluster.nodes.folder / "volumes" / "sweep-runs" if image is None else None
        make_suite(folder / "suite", REVISIONS, hidden=16)
        tasks = [
            {**t, "path": f"tasks/{Path(t['path']).name}"} for t in make_tasks(folder / "tasks")
        ]
        made.sections = {
            "models": ["suite"],
            "tasks": tasks,
            "store": {"path": "runs/sweep/store.zarr", "block_texts": 1},
            "metrics": {"sample": 16},
            "bandit": {"budget": {"pulls": 8}, "policy": "random"},
        }
        write_config(folder / "sweep.yaml", revisions=list(REVISIONS[:5]), **made.sections)
        if image is not None:
            subprocess.run(["kubectl", "create", "namespace", made.namespace], check=True)
        try:
            yield made
        finally:
            if image is not None:
                subprocess.run(["kubectl", "delete", "namespace", made.namespace], check=True)
            else:
                cluster.react, cluster.nodes = lambda job: None, None
                cluster.stop()


@pytest.fixture(scope="module")
def volume(place):
    """The sweep's volumes as they are printed, the suite and tasks on them."""
    printed = place.launch("--image", place.image, "--workdir", "/runs", *SMALL)
    assert printed.code == 0, printed.said
    for what in ("runs", "cache", "config"):
        label = f"app.kubernetes.io/component={what}"
        place.kubectl("apply", "-f", "-", "-l", label, stdin=printed.said)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add("suite")
        archive.add("tasks")
    data = {"made.tar": base64.b64encode(buffer.getvalue()).decode()}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}}
    place.kubectl("create", "-f", "-", stdin=json.dumps({**body, "binaryData": data}))
    place.pod("unpack", command=["sh", "-c", "tar -xf /made/made.tar"])


#: What a small cluster has.
SMALL = (
    *("--gpu", "none", "--parallel", "2", "--storage", "1Gi", "--cache", "1Gi"),
    *("--cpu", "500m", "--memory", "1Gi", "--cpu", "prepare=500m", "--memory", "prepare=1Gi"),
    *("--cpu", "bandit=500m", "--memory", "bandit=1Gi"),
)


def printed(what, said):
    """The words of a command that is printed after this, without the program."""
    (line,) = [line for line in said.splitlines() if line.startswith(f"{what}: ")]
    return shlex.split(line)[2:]


def patch_of(place, name, arguments, **files):
    """A patch file: other arguments for extract, and more files in its ConfigMap."""
    pod = {"containers": [{"name": "extract", "args": arguments}]}
    job = {"kind": "Job", "metadata": {"name": "*-extract*"}, "spec": {"template": {"spec": pod}}}
    documents = [job, {"kind": "ConfigMap", "data": files}] if files else [job]
    (place.folder / name).write_text("\n---\n".join(map(json.dumps, documents)))
    return ["--patch", name]


@pytest.fixture(scope="module")
def stopped(place, volume):
    """Extract is started with an option that it hasn't."""
    patch = patch_of(place, "usage.yaml", ["extract", "--no-such-option"])
    first = ["--image", place.image, "--workdir", "/runs", *SMALL]
    return place.launch("--apply", *first, *patch)


def test_exit_2_stops_all(place, stopped):
    assert stopped.code == 3, stopped.said
    job = place.job("sweep-extract")
    (failed,) = [c for c in job["status"]["conditions"] if c["type"] == "Failed"]
    assert failed["reason"] == "PodFailurePolicy"
    assert "exit code 2" in stopped.said
    assert not job["status"].get("completedIndexes")
    assert "5 indexes were given up: 0-4" in stopped.said
    # Two at a time: the third never started.
    assert not place.pods_of("sweep-extract", 2)


@pytest.fixture(scope="module")
def exceeded(place, stopped):
    """The workers get another config than the one that was frozen."""
    other = {**place.sections, "revisions": list(REVISIONS[:5]), "embedding": {"pooling": ["last"]}}
    patch = patch_of(
        place,
        "other.yaml",
        ["extract", "--config", "/configs/changed.yaml"],
        **{"changed.yaml": json.dumps(other)},
    )
    return place.run(*printed("again", stopped.said), "--parallel", "1", *patch)


def test_more_failed_indexes_than_the_job_may_have(place, exceeded):
    assert exceeded.code == 3, exceeded.said
    job = place.job(JOB)
    (failed,) = [c for c in job["status"]["conditions"] if c["type"] == "Failed"]
    assert failed["reason"] == "MaxFailedIndexesExceeded"
    assert job["spec"]["maxFailedIndexes"] == 1
    assert parse_indexes(job["status"]["failedIndexes"]) == (0, 1)
    assert "0: exit 4: it can't succeed as it is" in exceeded.said
    assert "3 indexes were given up: 2-4" in exceeded.said
    assert not place.pods_of(JOB, 2)


@pytest.fixture(scope="module")
def disturbed(place, exceeded):
    """Index 3 finds rubbish where its group should be, and pods don't live undisturbed.

    The terminal is closed while the plan is waited for, and for good while indexes are followed;
    the server goes away while they are followed from the next one.
    """
    (place.folder / "nothing.yaml").write_text("")
    again = printed("again", exceeded.said)
    first, output = place.start(*again, "--parallel", "2", "--patch", "nothing.yaml")

    def said(text):
        return output.exists() and text in output.read_text()

    place.until(lambda: said("waiting for Job sweep-prepare"))
    first.signal(signal.SIGHUP)
    place.until(lambda: said("submitted 5 indexes"))
    with place.half_way(0, 1) as (deleted, killed):
        place.pod("break", command=["sh", "-c", f"mkdir {BROKEN} && echo no > {BROKEN}/zarr.json"])
        place.kubectl("delete", "pod", deleted, "--wait=false")
        place.kubectl("delete", "pod", killed, "--grace-period=0", "--force", "--wait=false")
    place.until(lambda: said(f"{JOB}: "))  # It follows; until then a closed terminal is nothing.
    first.signal(signal.SIGHUP)
    submit = ["launch", "k8s", "--config", "sweep.yaml", "--namespace", place.namespace, "--apply"]
    second, output = place.start(*submit)
    with place.half_way(2) as (evicted,):
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}}
        at = f"/api/v1/namespaces/{place.namespace}/pods/{evicted}/eviction"
        place.kubectl("create", "--raw", at, "-f", "-", stdin=json.dumps(eviction))
    if place.cluster is not None:
        place.cluster.stop()
        place.until(lambda: said("trying again"))
        place.cluster.start()
    codes = (first.exit.result(300), second.exit.result(600))
    gone = (deleted, killed, evicted)
    return SimpleNamespace(codes=codes, gone=gone, said=output.read_text())


def test_a_closed_terminal_and_one_that_is_opened_again(place, disturbed):
    assert disturbed.codes == (-signal.SIGHUP, 3), disturbed.said
    if place.simulated:
        assert "connection refused" in disturbed.said or "was refused" in disturbed.said


def test_pods_that_are_deleted_killed_and_evicted_are_replaced_and_go_on(place, disturbed):
    job = place.job(JOB)
    assert set(parse_indexes(job["status"]["completedIndexes"])) == {0, 1, 2, 4}
    for index, gone in enumerate(disturbed.gone):
        (last,) = place.pods_of(JOB, index)[-1:]
        assert last["metadata"]["name"] != gone
        if place.simulated:
            sealed = re.search(r"(\d+) of (\d+) blocks are sealed", place.log(last))
            assert 0 < int(sealed[1]) < int(sealed[2])


@pytest.fixture(scope="module")
def repaired(place, disturbed):
    """What is printed about index 3 is typed, once the rubbish is away."""
    logs = place.kubectl(*printed("logs", disturbed.said))
    place.pod("mend", command=["sh", "-c", f"rm -r {BROKEN}"])
    again = printed("again", disturbed.said)
    return SimpleNamespace(logs=logs, again=again, done=place.run(*again))


def test_an_index_that_failed_is_repaired(place, disturbed, repaired):
    assert "3: exit 4: it can't succeed as it is" in disturbed.said
    assert "zarr.json" in repaired.logs
    assert repaired.again[-3:] == ["--indexes", "3", "--apply"]
    assert repaired.done.code == 0, repaired.done.said
    status = place.launch("--status")
    assert status.code == 0
    assert "indexes failed" not in status.said
    rows = [line.split() for line in status.said.splitlines() if re.match(r" *\d+ ", line)]
    assert [row[2] for row in rows] == ["succeeded"] * 5


def test_the_sweep_grows(place, repaired):
    write_config(place.folder / "sweep.yaml", revisions=list(REVISIONS), **place.sections)
    grown = place.launch("--apply")
    assert grown.code == 0, grown.said
    assert place.job("sweep-extract-5")["spec"]["completions"] == 1
    assert "no faults" in place.pod("verify", args=["verify", "--config", "/configs/sweep.yaml"])
    if place.simulated:
        groups = open_store(str(place.volume / "runs" / "sweep" / "store.zarr")).status()
        assert [group.complete for group in groups] == [True] * 6
        assert sorted(path.name for path in place.volume.iterdir()) == ["runs", "suite", "tasks"]
