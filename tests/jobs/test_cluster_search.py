"""A search whose waves are Jobs of a cluster: real kubectl, an API server of the tests' own."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from command_line import parsed
from forks import Process, until
from kubernetes_server import Cluster, Refused, needs_kubectl
from tiny import make_suite, make_tasks, write_config

from batchsweep.bandit.stored_waves import wave_of
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import IndexFailed, Terminated, UsageError
from batchsweep.extract.extract import extract
from batchsweep.jobs import cluster_search, in_cluster, kubectl
from batchsweep.plan.frozen import frozen_plan
from batchsweep.signals import StopRequest
from batchsweep.store import open_store
from batchsweep.store.pairs import ready_tasks

pytestmark = needs_kubectl

REVISIONS = ("step0", "step10", "step1000", "main")


class Controller:
    """The cluster's part: extracts what a wave asks for; ``fails``: positions of the next."""

    def __init__(self) -> None:
        self.config = ""
        self.fails: set[int] = set()
        self.condemns = False
        self.waves: list[str] = []

    def __call__(self, job) -> None:
        if job["spec"].get("suspend") or "status" in job or "-wave-" not in job["metadata"]["name"]:
            return
        self.waves.append(job["metadata"]["name"])
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command, options = parsed(container["args"])
        assert command == "extract"
        config = load(self.config)
        store = open_store(config.store_url)
        visits = wave_of(store, options["wave"]).visits
        assert job["spec"]["completions"] == len(visits) >= job["spec"]["parallelism"]
        bad, self.fails = self.fails, set()
        if self.condemns:
            message = "Container extract failed with exit code 2 matching FailJob rule at index 1"
            condition = {"type": "Failed", "status": "True", "message": message}
            job["status"] = {"conditions": [condition]}
            return
        plan = frozen_plan(store, config)
        for position, visit in enumerate(visits):
            if position in bad:
                continue
            entry = plan.entry_of(visit.key)
            try:
                extract(store, config, entry, tasks=list(visit.tasks), stop=StopRequest(1))
            except IndexFailed:
                bad.add(position)
        kind = "Failed" if bad else "Complete"
        job["status"] = {
            "conditions": [{"type": kind, "status": "True", "message": "1 index failed"}],
            "failedIndexes": ",".join(map(str, sorted(bad))),
        }


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS)


@pytest.fixture
def controller():
    return Controller()


@pytest.fixture
def cluster(tmp_path, monkeypatch, controller):
    made = Cluster(controller)
    made.start()
    made.kubeconfig(tmp_path / "kubeconfig", namespace="team")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "kube-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(kubectl, "POLL_SECONDS", 0.2)
    yield made
    made.stop()


@pytest.fixture
def config(tmp_path, monkeypatch, suite, controller, s3_url):
    """Writes a config; the default store is at a URL that this machine and the "cluster" see."""
    monkeypatch.chdir(tmp_path)

    def write(store: str = s3_url, name: str = "sweep", **sections) -> str:
        defaults = {"models": [str(suite)], "bandit": {"budget": {"pulls": 16}}}
        path = write_config(
            Path(f"{name}.yaml"),
            revisions=list(REVISIONS),
            tasks=make_tasks(tmp_path / "tasks"),
            store={"path": store},
            **{**defaults, **sections},
        )
        controller.config = str(path)
        return str(path)

    return write


@pytest.fixture
def account(tmp_path) -> Path:
    """The service account of a pod."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "namespace").write_text("team")
    (folder / "token").write_text("secret\n")
    return folder


def launched(path: str, *more: str) -> list[str]:
    return ["launch", "k8s", "--config", path, "--search", "--gpu", "none", *more]


def test_each_wave_is_an_indexed_job_and_the_answer_is_printed(
    config, cluster, controller, capsys
) -> None:
    path = config()
    assert main(launched(path, "--apply", "--parallel", "2", "--label", "team=x")) == 0
    said = capsys.readouterr()
    assert "best arm:" in said.out and "extracted:" in said.out
    waves = open_store(load(path).store_url).list_json("waves")
    assert controller.waves == [f"sweep-wave-{n}" for n in range(1, len(waves) + 1)]
    job = cluster.get("jobs", "sweep-wave-1", "team")
    assert job["spec"]["completionMode"] == "Indexed" and job["metadata"]["labels"]["team"] == "x"
    assert "maxFailedIndexes" not in job["spec"]
    # It is called again: nothing is left to ask for, and the answer is the same.
    assert main(launched(path, "--apply")) == 0
    assert len(controller.waves) == len(waves)
    assert capsys.readouterr().out.splitlines()[0] == said.out.splitlines()[0]
    # No service account and no role where nobody asked for a driver.
    assert not {"serviceaccounts", "roles", "rolebindings"} & {
        kind for kind, _, _ in cluster.objects
    }


def test_a_wave_that_fails_in_part_is_searched_with_what_is_there(
    config, cluster, controller, capsys
) -> None:
    controller.fails = {0}
    path = config()
    assert main(launched(path, "--apply", "--parallel", "2")) == 0
    said = capsys.readouterr()
    assert "the search goes on with what is there" in said.err
    assert "best arm:" in said.out
    assert ready_tasks(open_store(load(path).store_url))


def test_a_job_that_can_never_succeed_ends_the_search_and_is_tried_again_when_called_again(
    config, cluster, controller, capsys
) -> None:
    controller.condemns = True
    path = config()
    assert main(launched(path, "--apply")) == 2
    assert "exit code 2 matching FailJob rule" in capsys.readouterr().err
    controller.condemns = False
    assert main(launched(path, "--apply")) == 0
    assert controller.waves[:2] == ["sweep-wave-1", "sweep-wave-1-2"]


def test_a_store_on_a_volume_is_searched_where_it_is(config, cluster, capsys) -> None:
    path = config("runs/sweep/store.zarr")
    assert main(launched(path, "--apply")) == 2
    assert "--driver" in capsys.readouterr().err
    assert main(launched(path)) == 2
    assert main(["launch", "k8s", "--config", path, "--driver"]) == 2
    assert main(launched(path, "--indexes", "0")) == 2
    assert cluster.objects == {}


def test_a_policy_that_can_not_ask_is_refused(config, cluster, capsys) -> None:
    assert main(launched(config(bandit={"policy": "halving"}), "--apply")) == 2
    assert "launch without --search" in capsys.readouterr().err


def test_the_driver_may_make_jobs_and_look_at_them_and_nothing_else(
    config, cluster, capsys
) -> None:
    assert main(launched(config("runs/sweep/store.zarr"), "--driver")) == 0
    objects = {o["kind"]: o for o in yaml.safe_load_all(capsys.readouterr().out)}
    assert objects["Role"]["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list"]}
    ]
    assert objects["RoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "sweep-search"}
    ]
    pod = objects["Job"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "sweep-search" and pod["automountServiceAccountToken"]
    assert not any("nvidia" in key for key in pod["containers"][0]["resources"]["limits"])
    parsed(pod["containers"][0]["args"])
    # A wave's own pods have no token.
    template = json.loads(objects["ConfigMap"]["data"]["wave-job.json"])
    assert template["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_what_a_search_may_cost_holds_here_and_in_its_pod(
    config, cluster, controller, capsys
) -> None:
    path = config()
    assert main(launched(path, "--apply", "--max-cost", "5")) == 2
    assert "--max-cost needs --gpu-price" in capsys.readouterr().err
    assert not any(method in ("POST", "PATCH") for method, *_ in cluster.requests)
    limit = ["--max-cost", "0", "--gpu-price", "2"]
    assert main(launched(path, "--apply", *limit)) == 2
    assert "allow not even the first wave" in capsys.readouterr().err
    assert controller.waves == []
    # It is remembered, and what is given anew replaces it.
    assert main(launched(path, "--apply", "--max-cost", "100")) == 0
    assert " of 100 paid, at 2 a GPU hour" in capsys.readouterr().err
    assert main(launched(path, "--driver", *limit)) == 0
    objects = {o["kind"]: o for o in yaml.safe_load_all(capsys.readouterr().out)}
    _, found = parsed(objects["Job"]["spec"]["template"]["spec"]["containers"][0]["args"])
    assert (found["max_cost"], found["gpu_price"]) == (0.0, 2.0)
    assert main(launched(path, "--driver", "--max-cost", "5")) == 2
    assert "--max-cost needs --gpu-price" in capsys.readouterr().err


def test_the_search_in_its_pod_submits_its_waves_and_asks_for_nothing_else(
    config, cluster, controller, account, tmp_path, monkeypatch, capsys
) -> None:
    path = config()

    def react(job) -> None:
        controller(job)
        if job["metadata"]["name"] == "sweep-search":
            complete = {"type": "Complete", "status": "True"}
            job["status"] = {"conditions": [complete]}

    cluster.react = react
    assert main(launched(path, "--driver", "--apply", "--parallel", "2")) == 0
    assert "sweep-search: complete" in capsys.readouterr().out
    template = tmp_path / "wave-job.json"
    template.write_text(cluster.get("configmaps", "sweep-config", "team")["data"]["wave-job.json"])
    monkeypatch.setattr(
        cluster_search, "InCluster", lambda: in_cluster.InCluster(account, cluster.url)
    )
    cluster.requests.clear()
    command = ["launch", "k8s", "--config", path, "--search", "--wave-job", str(template)]
    assert main(command) == 0
    assert "best arm:" in capsys.readouterr().out
    assert controller.waves
    assert {request[:2] for request in cluster.requests} == {("GET", "jobs"), ("POST", "jobs")}


#: What makes a process a driver whose account and server are the test's.
DRIVER = """
from pathlib import Path
from batchsweep.jobs import cluster_search, in_cluster, kubectl

kubectl.POLL_SECONDS = {poll}
cluster_search.InCluster = lambda: in_cluster.InCluster(Path({account!r}), {url!r})
"""


@pytest.fixture
def driver(cluster, account, commands, tmp_path):
    """Starts the search of a config as its own pod does."""
    running: list[Process] = []

    def start(path: str, poll: float = 0.2) -> Process:
        objects = cluster_search.print_objects(Path(path), {"gpu": None, "parallelism": 2})
        (made,) = (o for o in yaml.safe_load_all(objects) if o["kind"] == "ConfigMap")
        template = tmp_path / f"{Path(path).stem}-wave-job.json"
        template.write_text(made["data"]["wave-job.json"])
        command = ["launch", "k8s", "--config", path, "--search", "--wave-job", template]
        before = DRIVER.format(poll=poll, account=str(account), url=cluster.url)
        running.append(commands.start(command, before=before))
        return running[-1]

    yield start
    for process in running:
        process.end(kill=True)


def test_a_driver_that_is_evicted_leaves_its_wave_and_the_next_one_goes_on_with_it(
    config, cluster, controller, driver
) -> None:
    path = config()
    cluster.react = lambda job: None

    def jobs() -> list[dict]:
        with cluster.lock:
            return [item for key, item in cluster.objects.items() if key[0] == "jobs"]

    # It waits for its wave, and would look again in an hour.
    first = driver(path, poll=3600)
    until(lambda: jobs() or first.ended, seconds=300)
    first.signal(signal.SIGTERM)
    code, said = first.end()
    assert code == Terminated.exit_code, said
    # The wave's Job goes on without it.
    (job,) = jobs()
    assert job["metadata"]["name"] == "sweep-wave-1" and not job.get("status")
    assert ("DELETE", "jobs") not in {request[:2] for request in cluster.requests}
    cluster.requests.clear()
    second = driver(path)
    until(lambda: cluster.requests or second.ended, seconds=300)
    with cluster.lock:
        cluster.react = controller
        controller(cluster.objects["jobs", "team", "sweep-wave-1"])
    code, said = second.end()
    assert code == 0 and "best arm:" in said, said
    assert "Job sweep-wave-1 is there; following it" in said
    waves = open_store(load(path).store_url).list_json("waves")
    assert controller.waves == [f"sweep-wave-{n}" for n in range(1, len(waves) + 1)]


def test_drivers_at_one_moment_make_the_waves_of_two_searches_and_no_wave_twice(
    config, controller, driver
) -> None:
    one = config()
    other = config(name="other", bandit={"budget": {"pulls": 16}, "seed": 1})
    assert main(["prepare", "--config", one]) == 0
    processes = [driver(path) for path in (one, other, one)]
    codes, said = zip(*(process.end(timeout=400) for process in processes), strict=True)
    # Of the same search the second one waits for nobody: it says that another searches here.
    assert codes[1] == 0 and sorted([codes[0], codes[2]]) in ([0, 75], [0, 0]), said
    assert all("best arm:" in one for one, code in zip(said, codes, strict=True) if not code)
    store = open_store(load(one).store_url)
    waves = {path: store.read_json(path) for path in store.list_json("waves")}
    assert len({wave["search"] for wave in waves.values()}) == 2
    numbers = sorted(int(name.rpartition("-")[2]) for name in controller.waves)
    assert numbers == list(range(1, len(waves) + 1))


def test_a_checkpoint_that_is_gone_in_mid_search_is_searched_without(
    config, cluster, controller, tmp_path, capsys
) -> None:
    own = make_suite(tmp_path / "own", REVISIONS)
    path = config(models=[str(own)])
    assert main(["prepare", "--config", path]) == 0
    # The last checkpoint is always asked for.
    (own / "main" / "model.safetensors").unlink()
    assert main(launched(path, "--apply", "--parallel", "2")) == 0
    said = capsys.readouterr()
    assert "the search goes on without own/main" in said.err
    assert "best arm:" in said.out and " main," not in said.out.splitlines()[0]
    assert not ready_tasks(open_store(load(path).store_url)).get("own/main")


def test_outside_of_a_pod_the_driver_says_so(tmp_path) -> None:
    with pytest.raises(UsageError, match="for the search's own pod"):
        in_cluster.InCluster(tmp_path)


def test_a_request_made_twice_is_no_failure_and_a_refused_one_is_told(cluster, tmp_path) -> None:
    (tmp_path / "namespace").write_text("team")
    (tmp_path / "token").write_text("secret")
    api = in_cluster.InCluster(tmp_path, cluster.url)
    job = {"metadata": {"name": "x", "labels": {}}, "spec": {"suspend": True}}
    api.apply([job])
    api.apply([job])

    def refuse(job) -> None:
        raise Refused(403, "Forbidden", "jobs is forbidden")

    cluster.react = refuse
    with pytest.raises(UsageError, match="answers 403 to Jobs: jobs is forbidden"):
        api.apply([{**job, "metadata": {"name": "y", "labels": {}}}])
