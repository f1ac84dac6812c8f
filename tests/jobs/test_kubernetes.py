"""Kubernetes objects: valid for every version, and right where schemas don't look."""

import subprocess
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from command_line import parsed
from kubernetes_server import NO_KUBECTL

from batchsweep import errors
from batchsweep.checkpoints.audit import nominal
from batchsweep.config import load
from batchsweep.demo import REVISIONS
from batchsweep.demo.suite import SIZES
from batchsweep.errors import UsageError
from batchsweep.jobs import IMAGE
from batchsweep.jobs.chosen import chosen_indexes
from batchsweep.jobs.cluster import Cluster, toleration
from batchsweep.jobs.cluster_launch import cluster_sweep
from batchsweep.jobs.kubernetes import (
    GRACE,
    extract_name,
    render,
    sweep_name,
    to_yaml,
)
from batchsweep.plan.plan import make_plan

ROOT = Path(__file__).parents[2]
FULL = ROOT / "configs" / "mteb_layersweep.yaml"

CLUSTERS = {
    "base": Cluster(gpu=None),
    "gpu": Cluster(gpu="nvidia.com/gpu"),
    "kueue": Cluster(gpu="nvidia.com/gpu", queue="batchsweep"),
}


def full_plan():
    config = load(FULL)
    return config, make_plan(config, nominal(config))


def rendered(cluster=CLUSTERS["gpu"], *, config_path=FULL, indexes=None, store_url=None):
    config = load(config_path)
    plan = make_plan(config, nominal(config))
    chosen = chosen_indexes(indexes, plan)
    sweep = cluster_sweep(config, config_path, cluster)
    sweep = replace(sweep, store_url=store_url or config.store_url)
    return render(sweep, chosen, whole=len(chosen) == len(plan.entries))


def jobs(objects):
    return {
        o["metadata"]["labels"]["app.kubernetes.io/component"]: o
        for o in objects
        if o["kind"] == "Job"
    }


def pods(objects):
    return [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Job"]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def versions():
    """Kubernetes 1.28, the first with per-index retries, to the newest that has a schema."""
    newest = int(kubernetes_validate.latest_version().split(".")[1])
    return [f"1.{minor}" for minor in range(28, newest + 1)]


@pytest.mark.parametrize("version", versions())
def test_objects_fit_the_schema(version):
    for item in rendered(CLUSTERS["kueue"]) + rendered(indexes="3,7-9"):
        if version == "1.28" and item["kind"] == "Job":
            # This version's schema alone calls the list required in every rule; its API server
            # takes rules without it, and a newer one may refuse an empty list beside exit codes.
            for rule in item["spec"]["podFailurePolicy"]["rules"]:
                rule.setdefault("onPodConditions", [])
        kubernetes_validate.validate(item, version, strict=True)


def test_the_schema_check_notices_a_wrong_field():
    extract = jobs(rendered())["extract"]
    extract["spec"]["backoffLimitPerIndexes"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(extract, versions()[-1], strict=True)


def by_identity(objects):
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


@pytest.mark.parametrize("name", CLUSTERS)
def test_kustomize_gives_what_launch_renders(name):
    if NO_KUBECTL:
        pytest.skip(NO_KUBECTL)
    folder = ROOT / "k8s" / ("base" if name == "base" else f"overlays/{name}")
    built = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    plain = rendered(CLUSTERS[name])
    # What was submitted without launch k8s remembers none of its options.
    del plain[0]["metadata"]["annotations"]
    assert by_identity(yaml.safe_load_all(built.stdout)) == by_identity(plain)


def test_the_base_is_what_launch_writes():
    """`make k8s` brings it up to date."""
    without_config = [o for o in rendered(CLUSTERS["base"]) if o["kind"] != "ConfigMap"]
    assert (ROOT / "k8s" / "base" / "sweep.yaml").read_text() == to_yaml(without_config)


DEMO = Cluster(gpu=None, parallelism=2, storage="5Gi", cache="1Gi", workdir="/runs")


def demo_objects():
    path = ROOT / "configs" / "demo.yaml"
    sweep = cluster_sweep(load(path), path, DEMO)
    return render(sweep, range(len(SIZES) * len(REVISIONS)), whole=False)


def test_the_demos_overlay_is_what_launch_writes():
    """`make k8s` brings it up to date."""
    written = (ROOT / "k8s" / "overlays" / "cpu-demo" / "sweep.yaml").read_text()
    assert written.rstrip("\n") == to_yaml(demo_objects()).rstrip("\n")


def test_the_demos_overlay_trains_the_suite_before_prepare():
    if NO_KUBECTL:
        pytest.skip(NO_KUBECTL)
    folder = ROOT / "k8s" / "overlays" / "cpu-demo"
    built = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    objects = list(yaml.safe_load_all(built.stdout))
    for item in objects:
        kubernetes_validate.validate(item, versions()[-1], strict=True)
    prepare = jobs(objects)["prepare"]["spec"]["template"]["spec"]
    (suite,) = prepare["initContainers"]
    command, options = parsed(suite["args"])
    # The demo's folder is where the other containers' relative paths start.
    assert (command, options["make_only"]) == ("demo", True)
    assert str(options["out"]) == suite["workingDir"]
    assert suite["workingDir"] == prepare["containers"][0]["workingDir"] == "/runs"
    assert suite["securityContext"] == prepare["containers"][0]["securityContext"]
    # All that differs from the rendered sweep is this container and the sizes.
    for pod in pods(objects):
        pod["containers"][0].pop("resources")
    del prepare["initContainers"]
    plain = demo_objects()
    for pod in pods(plain):
        pod["containers"][0].pop("resources")
    assert by_identity(objects) == by_identity(plain)


def test_yaml_reads_back_as_the_objects():
    objects = rendered()
    assert list(yaml.safe_load_all(to_yaml(objects))) == objects


def test_completions_are_the_plans_indexes():
    _, plan = full_plan()
    extract = jobs(rendered())["extract"]["spec"]
    assert extract["completions"] == len(plan.entries) == 24
    assert extract["parallelism"] <= extract["completions"]
    assert 0 < extract["maxFailedIndexes"] < extract["completions"]


def test_failure_policy_has_the_exit_codes_of_errors():
    def actions(component):
        policy = jobs(rendered())[component]["spec"]["podFailurePolicy"]
        return {
            code: rule["action"]
            for rule in policy["rules"]
            for code in rule.get("onExitCodes", {}).get("values", [])
        }

    assert actions("extract") == {
        errors.UsageError.exit_code: "FailJob",
        errors.ConfigError.exit_code: "FailJob",
        errors.IndexFailed.exit_code: "FailIndex",
        errors.StoreError.exit_code: "FailIndex",
        errors.StoreCorrupt.exit_code: "FailIndex",
        errors.Terminated.exit_code: "Ignore",
        errors.TryAgain.exit_code: "Count",
    }
    # FailIndex needs an Indexed Job with backoffLimitPerIndex; elsewhere the API refuses it.
    for component in ("prepare", "bandit"):
        assert "FailIndex" not in actions(component).values()
        assert actions(component)[errors.StoreError.exit_code] == "FailJob"


def test_every_exit_code_of_errors_has_a_rule():
    def all_classes(cls):
        return [cls, *(c for sub in cls.__subclasses__() for c in all_classes(sub))]

    codes = {c.exit_code for c in all_classes(errors.BatchsweepError)} - {1}
    rules = jobs(rendered())["extract"]["spec"]["podFailurePolicy"]["rules"]
    assert codes == {c for r in rules for c in r.get("onExitCodes", {}).get("values", [])}


def test_failure_policy_is_what_the_api_takes():
    """What the schema can't say: enums, order, limits (from the API's validation)."""
    for job in jobs(rendered()).values():
        spec = job["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["podReplacementPolicy"] == "Failed"
        names = {c["name"] for c in containers(spec["template"]["spec"])}
        rules = spec["podFailurePolicy"]["rules"]
        assert len(rules) <= 20
        for rule in rules:
            assert rule["action"] in {"FailJob", "FailIndex", "Ignore", "Count"}
            assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
            if "onExitCodes" in rule:
                codes = rule["onExitCodes"]
                assert codes["operator"] in {"In", "NotIn"}
                assert codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
                assert codes.get("containerName") in {None, *names}
        assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_pods_meet_the_restricted_standard():
    for pod in pods(rendered(CLUSTERS["kueue"])):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        allowed = {"configMap", "persistentVolumeClaim", "emptyDir"}
        assert all(set(v) - {"name"} <= allowed for v in pod["volumes"])
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_names_that_objects_refer_to_exist():
    objects = rendered()
    there = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for pod in pods(objects):
        volumes = {v["name"] for v in pod["volumes"]}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in there
        for container in containers(pod):
            assert {m["name"] for m in container["volumeMounts"]} == volumes


def test_every_containers_arguments_are_a_command_line_of_this_version():
    for indexes in (None, "2,5"):
        objects = rendered(indexes=indexes)
        config_map = next(o for o in objects if o["kind"] == "ConfigMap")
        for pod in pods(objects):
            for container in containers(pod):
                _, options = parsed(container["args"])
                mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
                folder, name = str(options["config"]).rsplit("/", 1)
                assert folder == mounts["config"] and name in config_map["data"]


def test_kubernetes_waits_longer_than_the_process_needs_to_seal():
    pod = jobs(rendered())["extract"]["spec"]["template"]["spec"]
    _, options = parsed(pod["containers"][0]["args"])
    assert options["grace"] == GRACE
    assert pod["terminationGracePeriodSeconds"] > options["grace"]


def test_extract_holds_no_gpu_before_the_plan_and_the_others_never():
    by_component = jobs(rendered())
    assert by_component["extract"]["spec"]["suspend"] is True
    for component, job in by_component.items():
        asked = [
            c["resources"]["limits"].get("nvidia.com/gpu")
            for c in containers(job["spec"]["template"]["spec"])
        ]
        assert asked == ([1] if component == "extract" else [None] * len(asked))


def test_a_part_of_the_plan_is_a_job_of_its_own():
    extract = jobs(rendered(indexes="3,7-9"))["extract"]
    assert extract["metadata"]["name"] == "mteb-layersweep-extract-3-7-9"
    assert extract["metadata"]["annotations"]["batchsweep/indexes"] == "3,7-9"
    assert extract["spec"]["completions"] == 4
    args = extract["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--indexes") + 1] == "3,7-9"


def test_names_of_pods_fit_a_dns_label():
    many = range(0, 400, 3)
    sweep = sweep_name("a" * 32)
    assert len(f"{extract_name(sweep, many, whole=False)}-{len(many) - 1}") <= 63
    with pytest.raises(UsageError, match="1 to 32"):
        sweep_name("a" * 33)


def test_a_store_at_a_url_needs_no_volume():
    objects = rendered(store_url="s3://bucket/store.zarr")
    claims = [o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"]
    assert claims == ["mteb-layersweep-cache"]
    for pod in pods(objects):
        assert {"name": "runs", "emptyDir": {}} in pod["volumes"]


def test_a_store_beside_the_volume_is_refused():
    with pytest.raises(UsageError, match="below runs/"):
        rendered(store_url="/data/store.zarr")


def test_cluster_options_arrive():
    cluster = Cluster(
        image="registry/batchsweep:1",
        namespace="sweeps",
        parallelism=3,
        gpu="amd.com/gpu",
        gpu_type="MI300X",
        storage_class="nfs",
        bandit_after=5,
    )
    objects = rendered(cluster)
    assert {o["metadata"]["namespace"] for o in objects} == {"sweeps"}
    extract = jobs(objects)["extract"]["spec"]
    assert extract["parallelism"] == 3
    assert extract["template"]["spec"]["nodeSelector"] == {"amd.com/gpu.product": "MI300X"}
    assert all(c["image"] == "registry/batchsweep:1" for p in pods(objects) for c in containers(p))
    claims = [o for o in objects if o["kind"] == "PersistentVolumeClaim"]
    assert {c["spec"]["storageClassName"] for c in claims} == {"nfs"}
    assert {c["imagePullPolicy"] for p in pods(objects) for c in containers(p)} == {"IfNotPresent"}
    wait = jobs(objects)["bandit"]["spec"]["template"]["spec"]["initContainers"][0]["args"]
    assert wait[-2:] == ["--wait", "5"]


def test_options_of_pods_and_objects_arrive_and_fit_the_schema():
    cluster = Cluster(
        cpu={"extract": "8"},
        memory={"bandit": "64Gi"},
        image_pull_secrets=["registry"],
        priority_class="research",
        service_account="sweeps",
        tolerations=[toleration("spot=true:NoSchedule")],
        node_selector={"pool": "a100"},
        labels={"team": "embeddings", "app.kubernetes.io/name": "other"},
        annotations={"owner": "me"},
        queue="gpus",
        metrics_port=9100,
    )
    objects = rendered(cluster)
    for item in objects:
        kubernetes_validate.validate(item, versions()[-1], strict=True)
        assert item["metadata"]["labels"]["team"] == "embeddings"
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "batchsweep"
        assert item["metadata"]["annotations"]["owner"] == "me"
    by_component = jobs(objects)
    for job in by_component.values():
        template = job["spec"]["template"]
        assert template["metadata"]["labels"]["team"] == "embeddings"
        pod = template["spec"]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("research", "sweeps")
        assert pod["nodeSelector"] == {"pool": "a100"}
        assert toleration("spot=true:NoSchedule") in pod["tolerations"]
    extract, bandit = (
        by_component[c]["spec"]["template"]["spec"]["containers"][0]["resources"]
        for c in ("extract", "bandit")
    )
    assert extract["requests"] == {"cpu": "8", "memory": "16Gi"}
    assert extract["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert bandit["requests"] == {"cpu": "4", "memory": "64Gi"}
    (container,) = by_component["extract"]["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9100}]
    assert parsed(container["args"])[1]["metrics_port"] == 9100
    annotations = by_component["extract"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9100"
    annotations = by_component["extract"]["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/job-min-parallelism"] == "1"


def test_a_patch_is_laid_over_the_objects_it_names():
    patch = {
        "kind": "Job",
        "metadata": {"name": "*-extract*"},
        "spec": {
            "managedBy": "kueue.x-k8s.io/multikueue",
            "template": {
                "spec": {"containers": [{"name": "extract", "env": [{"name": "X", "value": "1"}]}]}
            },
        },
    }
    by_component = jobs(rendered(Cluster(patches=[patch])))
    extract = by_component["extract"]["spec"]
    assert extract["managedBy"] == "kueue.x-k8s.io/multikueue"
    (container,) = extract["template"]["spec"]["containers"]
    assert [e["name"] for e in container["env"]] == ["HF_TOKEN", "X"]
    assert container["args"][0] == "extract"
    assert "managedBy" not in by_component["bandit"]["spec"]


def test_the_image_is_the_packages():
    import tomllib

    from batchsweep import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f'org.opencontainers.image.version="{__version__}"' in dockerfile
    assert f'org.opencontainers.image.description="{project["description"]}"' in dockerfile
    assert "USER 10001:10001" in dockerfile
    assert __version__ == IMAGE.partition(":")[2]


def test_the_dockerfile_has_no_fault_that_hadolint_knows():
    import sys

    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
