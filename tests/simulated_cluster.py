"""What stands behind the tests' API server: a Job controller, and nodes that run true pods.

The controller follows Kubernetes' rules for Jobs: indexes, ``podFailurePolicy``, retries and
delays, ``maxFailedIndexes``, replacement of what has failed and not of what is still ending.
A node mounts a pod's volumes into a folder of its own and runs its containers one after the other
there, with the manifest's command, arguments, environment and working folder; paths that begin
with a mount are mapped. batchsweep runs in a fork that has imported everything (``fork_server``),
with the image's entry point and environment as the Dockerfile sets them.
https://kubernetes.io/docs/concepts/workloads/controllers/job/
"""

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from batchsweep.jobs.index import format_indexes

DOCKERFILE = Path(__file__).parents[1] / "Dockerfile"
ENDED = ("Succeeded", "Failed")


class Nodes:
    """Runs pods.

    Args:
        cluster: the API server.
        commands: runs batchsweep (:class:`forks.Commands`).
        folder: holds the volumes (``volumes/CLAIM``) and a folder for each pod.
    """

    def __init__(self, cluster, commands, folder):
        self.cluster, self.commands, self.folder = cluster, commands, folder
        text = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
        self.entry_point = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
        self.workdir = re.findall(r"^WORKDIR (.*)$", text, re.M)[-1]
        block = re.search(r"^ENV ((?:.*\\\n)*.*)$", text, re.M)[1]
        self.environment = dict(re.findall(r"(\w+)=([^\s\\]+)", block))
        self.processes = {}  # pod's uid -> what runs, if anything does
        self.stopped = set()

    def runs(self, pod):
        return pod["metadata"]["uid"] in self.processes

    def process_of(self, job, index):
        """What runs for an index of a Job."""
        with self.cluster.lock:
            for key, pod in self.cluster.objects.items():
                labels = pod["metadata"].get("labels", {})
                mine = labels.get("batch.kubernetes.io/job-name") == job
                if key[0] == "pods" and mine and _position(pod) == index and self.runs(pod):
                    return self.processes[pod["metadata"]["uid"]]
        raise LookupError((job, index))

    def run(self, pod):
        self.processes[pod["metadata"]["uid"]] = None
        threading.Thread(target=self._run, args=[pod], daemon=True).start()

    def stop(self, pod, grace):
        """SIGTERM, and SIGKILL when the time is over."""
        uid = pod["metadata"]["uid"]
        self.stopped.add(uid)

        def send(number):
            process = self.processes.get(uid)
            if process is not None:
                process.signal(number)

        send(signal.SIGTERM if grace else signal.SIGKILL)
        timer = threading.Timer(grace, send, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def log(self, pod, container=None):
        name = container or pod["spec"]["containers"][0]["name"]
        path = self._folder(pod) / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def _folder(self, pod):
        return self.folder / "pods" / pod["metadata"]["name"]

    def _run(self, pod):
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        self._mount(pod)
        code = 0
        for container in spec.get("initContainers", []):
            code = self._container(pod, container, "Pending", "initContainerStatuses")
            if code:
                break
        if not code:
            for container in spec["containers"]:
                code = self._container(pod, container, "Running", "containerStatuses")
        key = ("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        with self.cluster.lock:
            del self.processes[uid]
            pod["status"]["phase"] = "Failed" if code else "Succeeded"
            self.cluster.keep(key, pod)
            jobs = [("jobs", key[1], o["name"]) for o in pod["metadata"].get("ownerReferences", [])]
            for job in jobs:
                if job in self.cluster.objects:
                    self.cluster.keep(job, self.cluster.objects[job])
            if uid in self.stopped:
                self.cluster.remove(key)

    def _mount(self, pod):
        root = self._folder(pod) / "root"
        root.mkdir(parents=True)
        sources = {}
        for volume in pod["spec"]["volumes"]:
            source = self._folder(pod) / volume["name"]
            if "persistentVolumeClaim" in volume:
                source = self.folder / "volumes" / volume["persistentVolumeClaim"]["claimName"]
            source.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                self._config_map(pod, volume["configMap"]["name"], source)
            sources[volume["name"]] = source
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for mount in container.get("volumeMounts", []):
                place = root / mount["mountPath"].lstrip("/")
                if not place.exists():
                    place.symlink_to(sources[mount["name"]])

    def _config_map(self, pod, name, folder):
        item = self.cluster.get("configmaps", name, pod["metadata"]["namespace"])
        for file, text in item.get("data", {}).items():
            (folder / file).write_text(text)
        for file, text in item.get("binaryData", {}).items():
            (folder / file).write_bytes(base64.b64decode(text))

    def _container(self, pod, container, phase, statuses):
        """Run it to its end; its exit code."""
        uid, name = pod["metadata"]["uid"], container["name"]
        output = self._folder(pod) / f"{name}.log"
        with self.cluster.lock:
            if uid in self.stopped:
                return 137
            process = self._start(pod, container, output)
            self.processes[uid] = process
        # Stopped before it was there to be told.
        process.pid.result()
        self._state(pod, phase, statuses, container, {"running": {}})
        code = process.exit.result()
        code = code if code >= 0 else 128 - code
        ended = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        self._state(pod, phase, statuses, container, ended)
        return code

    def _state(self, pod, phase, statuses, container, state):
        with self.cluster.lock:
            found = pod["status"].setdefault(statuses, [])
            found[:] = [s for s in found if s["name"] != container["name"]]
            found.append({"name": container["name"], "image": container["image"], "state": state})
            pod["status"]["phase"] = phase
            metadata = pod["metadata"]
            self.cluster.keep(("pods", metadata["namespace"], metadata["name"]), pod)

    def _start(self, pod, container, output):
        root = self._folder(pod) / "root"
        mounts = [m["mountPath"] for m in container.get("volumeMounts", [])]
        words = re.compile(rf"(?<![\w./-])(?=(?:{'|'.join(mounts)})(?:/|\b))") if mounts else None

        def mapped(text):
            return words.sub(str(root), text) if words else text

        environment = {**self.environment}
        for entry in container.get("env", []):
            if "value" in entry:
                environment[entry["name"]] = entry["value"]
        environment = {k: mapped(v) for k, v in environment.items() if k != "PATH"}
        environment |= {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        folder = root / container.get("workingDir", self.workdir).lstrip("/")
        command = container.get("command", self.entry_point)
        arguments = [mapped(a) for a in [*command, *container.get("args", [])]]
        if command == self.entry_point:
            return self.commands.start(
                arguments[1:],
                output,
                environment=environment,
                folder=folder,
                settings={"batchsweep.extract.status.POLL_SECONDS": 0.2},
            )
        return _Other(arguments, output, environment, folder)


class _Other:
    """A command that isn't batchsweep, with the face of ``forks.Process``."""

    def __init__(self, arguments, output, environment, folder):
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                arguments, stdout=file, stderr=file, env=environment, cwd=folder
            )
        self.pid: Future[int] = Future()
        self.exit = self
        self.pid.set_result(self._process.pid)

    def result(self):
        return self._process.wait()

    def signal(self, number):
        self._process.send_signal(number)


class Controller:
    """Kubernetes' rules for Jobs; ``clock`` is how long one of its seconds takes."""

    def __init__(self, cluster, clock=0.002):
        self.cluster, self.clock = cluster, clock
        self._jobs = {}  # uid -> _Progress
        cluster.react = self.sync

    def sync(self, job):
        uid, spec = job["metadata"]["uid"], job["spec"]
        progress = self._jobs.setdefault(uid, _Progress(spec))
        if progress.busy or "deletionTimestamp" in job["metadata"]:
            return
        progress.busy = True  # What follows makes and changes pods, which leads here again.
        try:
            self._sync(job, spec, progress)
        finally:
            progress.busy = False

    def _sync(self, job, spec, progress):
        pods = self.cluster.owned(job)
        for pod in pods:
            if pod["status"]["phase"] in ENDED and pod["metadata"]["uid"] not in progress.counted:
                progress.count(pod, self.clock)
        active = [pod for pod in pods if pod["status"]["phase"] not in ENDED]
        if progress.verdict or spec.get("suspend"):
            for pod in active:
                if "deletionTimestamp" not in pod["metadata"]:
                    self.cluster.delete(_key(pod))
            active = [pod for pod in self.cluster.owned(job) if pod in active]
        else:
            active += self._create(job, spec, progress, active)
        job["status"] = progress.status(len(active))

    def _create(self, job, spec, progress, active):
        taken = {_position(pod) for pod in active}
        made: list[Any] = []
        for position in progress.open:
            if len(active) + len(made) >= spec.get("parallelism", 1):
                break
            if position in taken:
                continue
            wait = progress.not_before.get(position, 0) - time.monotonic()
            if wait > 0:
                timer = threading.Timer(wait + 0.001, self._again, [_key(job)])
                timer.daemon = True
                timer.start()
                continue
            made.append(
                self.cluster.create("pods", job["metadata"]["namespace"], _pod(job, position))
            )
        return made

    def _again(self, key):
        with self.cluster.lock:
            if key in self.cluster.objects:
                self.cluster.keep(key, self.cluster.objects[key])


class _Progress:
    """How far a Job is."""

    def __init__(self, spec):
        self.spec = spec
        self.indexed = spec.get("completionMode") == "Indexed"
        self.limit = spec["backoffLimitPerIndex"] if self.indexed else spec["backoffLimit"]
        self.positions = range(spec.get("completions", 1))
        self.busy = False
        self.counted = set()
        self.succeeded, self.failed = set(), set()
        self.failures, self.ends = {}, {}
        self.not_before = {}
        self.verdict = None  # Reason and message of a Job that has failed.

    @property
    def open(self):
        return [p for p in self.positions if p not in self.succeeded | self.failed]

    def count(self, pod, clock):
        """Take note of an ended pod."""
        self.counted.add(pod["metadata"]["uid"])
        position = _position(pod)
        if pod["status"]["phase"] == "Succeeded":
            self.succeeded.add(position)
            return
        action, why = self._action(pod)
        self.ends[position] = self.ends.get(position, 0) + 1
        delay = min(10 * 2 ** (self.ends[position] - 1), 360)
        self.not_before[position] = time.monotonic() + delay * clock
        if action == "FailJob":
            self.verdict = ("PodFailurePolicy", why)
        elif action == "Count":
            self.failures[position] = self.failures.get(position, 0) + 1
        if action == "FailIndex" or self.failures.get(position, 0) > self.limit:
            self.failed.add(position)
            if not self.indexed:
                text = "Job has reached the specified backoff limit"
                self.verdict = ("BackoffLimitExceeded", text)
        if self.indexed and len(self.failed) > self.spec["maxFailedIndexes"]:
            text = "Job has exceeded the specified maximal number of failed indexes"
            self.verdict = self.verdict or ("MaxFailedIndexesExceeded", text)

    def _action(self, pod):
        codes = [
            (s["name"], s["state"]["terminated"]["exitCode"])
            for kind in ("initContainerStatuses", "containerStatuses")
            for s in pod["status"].get(kind, [])
            if s["state"].get("terminated", {}).get("exitCode")
        ]
        conditions = pod["status"].get("conditions", [])
        for number, rule in enumerate(self.spec["podFailurePolicy"]["rules"]):
            for wanted in rule.get("onPodConditions", []):
                if any(c["type"] == wanted["type"] for c in conditions):
                    return rule["action"], ""
            for name, code in codes:
                if code in rule.get("onExitCodes", {}).get("values", []):
                    pod_name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                    return rule["action"], (
                        f"Container {name} for pod {pod_name} failed with exit code {code} "
                        f"matching {rule['action']} rule at index {number}"
                    )
        return "Count", ""

    def status(self, active):
        conditions = []
        if self.verdict is None and not self.open:
            if self.failed:
                self.verdict = ("FailedIndexes", "Job has failed indexes")
            else:
                conditions = [{"type": "Complete", "status": "True"}]
        if self.verdict is not None:
            # Failed only when the last pod is gone.
            kind = "FailureTarget" if active else "Failed"
            reason, message = self.verdict
            conditions = [{"type": kind, "status": "True", "reason": reason, "message": message}]
        status = {
            "active": active,
            "succeeded": len(self.succeeded),
            "failed": sum(self.ends.values()),
            "conditions": conditions,
        }
        if self.indexed:
            status["completedIndexes"] = format_indexes(self.succeeded)
            status["failedIndexes"] = format_indexes(self.failed)
        return status


def _key(item):
    kind = {"Job": "jobs", "Pod": "pods"}[item["kind"]]
    return kind, item["metadata"]["namespace"], item["metadata"]["name"]


def _position(pod):
    return int(pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", 0))


def _pod(job, position):
    """A pod of the Job's template, as the controller makes it."""
    template = json.loads(json.dumps(job["spec"]["template"]))
    metadata = job["metadata"]
    labels = {
        **template["metadata"]["labels"],
        "batch.kubernetes.io/job-name": metadata["name"],
        "batch.kubernetes.io/controller-uid": metadata["uid"],
    }
    name = f"{metadata['name']}-{position}-{uuid.uuid4().hex[:5]}"
    if job["spec"].get("completionMode") == "Indexed":
        labels["batch.kubernetes.io/job-completion-index"] = str(position)
        for container in template["spec"]["containers"]:
            index = {"name": "JOB_COMPLETION_INDEX", "value": str(position)}
            container["env"] = [*container.get("env", []), index]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
    owner |= {"name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": template["metadata"].get("annotations", {}),
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }
