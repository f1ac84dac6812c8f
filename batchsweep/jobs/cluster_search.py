"""``launch k8s --search``: a search whose waves are Indexed Jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.waves import Wave
from batchsweep.config import Config, load, local_path
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.jobs import kubernetes_search
from batchsweep.jobs.advice import advice, log_changes, summary
from batchsweep.jobs.cluster import Cluster, remembered_options, resized_claims
from batchsweep.jobs.cluster_launch import cluster_sweep
from batchsweep.jobs.in_cluster import InCluster
from batchsweep.jobs.kubectl import OUTAGE_SECONDS, Commands, Kubectl
from batchsweep.jobs.kubernetes import sweep_name, to_yaml
from batchsweep.jobs.kubernetes_objects import Object
from batchsweep.jobs.run_sweep import RemoteWaves, check_policy, run_sweep
from batchsweep.jobs.snapshot import JobView, Snapshot, snapshot
from batchsweep.jobs.spending import CostLimit, gpu_named
from batchsweep.jobs.submit import Watch, replace_ended, without_claims
from batchsweep.plan.plan import Plan
from batchsweep.plan.speed import CPU, DEFAULT_GPU
from batchsweep.store import Store

logger = logging.getLogger(__name__)


class WaveJobs:
    """Has waves extracted, each by an Indexed Job."""

    def __init__(self, watch: Watch, template: Object) -> None:
        self._watch, self._template = watch, template

    def extract(self, wave: Wave, left: Mapping[int, tuple[str, ...]]) -> None:
        """Submit a wave's Job, or follow the one that is there, to its end.

        What of it failed is missing in the store then: the search goes on with the rest.

        Raises:
            UsageError: the Job can't succeed as it is.
            IndexFailed: its pods can't start.
        """
        jobs = self._jobs()
        attempt = 1
        while True:
            job = self._job(wave, attempt)
            name = job["metadata"]["name"]
            there = jobs.get(name)
            if there is None:
                self._watch.kubectl.apply([job])
                logger.info("submitted Job %s: %d checkpoints", name, len(wave.visits))
                break
            if not there.ended:
                logger.info("Job %s is there; following it", name)
                break
            attempt += 1  # Cut short, and what it brought was not all.
        self._wait(name)

    def begun(self, wave: Wave) -> bool:
        """Whether a Job of the wave runs."""
        jobs = self._jobs()
        attempt = 1
        while (job := jobs.get(self._job(wave, attempt)["metadata"]["name"])) is not None:
            if not job.ended:
                return True
            attempt += 1
        return False

    def _jobs(self) -> dict[str, JobView]:
        return {job.name: job for job in snapshot(self._watch.kubectl, self._watch.sweep).jobs}

    def _job(self, wave: Wave, attempt: int) -> Object:
        assert wave.document is not None
        return kubernetes_search.wave_job(self._template, wave.document, attempt, len(wave.visits))

    def _wait(self, name: str) -> None:
        def mine(now: Snapshot) -> JobView | None:
            return next((job for job in now.jobs if job.name == name), None)

        def over(now: Snapshot) -> bool:
            job = mine(now)
            return job is None or job.ended

        job = mine(self._watch.until(over))
        if job is None:
            raise UsageError(f"Job {name} was deleted; the same command submits it again")
        if job.state == "failed":
            if "FailJob" in job.reason:
                raise UsageError(
                    f"Job {name} failed: {job.reason}; see "
                    f"'{self._watch.commands.kubectl('logs', f'job/{name}', '--tail=-1')}'"
                )
            logger.warning("Job %s: %s; the search goes on with what is there", name, job.reason)


def print_objects(config_file: Path, given: Mapping[str, Any]) -> str:
    """The objects of a search that runs in the cluster, to be read or applied by hand."""
    config = load(config_file)
    check_policy(config)
    sweep = cluster_sweep(config, config_file, Cluster.of({}, given))
    objects, _ = kubernetes_search.render(sweep, driver=True)
    return to_yaml(objects)


def drive(
    config_file: Path, template_file: Path, limit: CostLimit | None
) -> tuple[Store, Plan, str, Outcome]:
    """The search, in its own pod: it may make Jobs and nothing else."""
    config = load(config_file)
    try:
        template: Object = json.loads(template_file.read_text(encoding="utf-8"))
        workers = int(template["spec"]["parallelism"])
        container = template["spec"]["template"]["spec"]["containers"][0]
        asked = container["resources"]["limits"]
        nodes = template["spec"]["template"]["spec"].get("nodeSelector", {})
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"--wave-job {template_file} is no Job's template: {error}") from None
    watch = Watch(
        InCluster(), sweep_name(config.name), Commands(str(config_file), None), tell=print
    )
    jobs = WaveJobs(watch, template)
    gpu = next(iter(asked.keys() - {"cpu", "memory"}), None)
    device = _device(gpu, nodes.get(f"{gpu}.product"))
    return run_sweep(
        config_file, remote=RemoteWaves(jobs.extract, jobs.begun, device, workers), limit=limit
    )


def _device(gpu: str | None, product: str | None) -> str:
    """What costs are estimated for: the resource of a GPU, and the label of the nodes' GPUs."""
    return CPU if gpu is None else gpu_named(product) or DEFAULT_GPU


def search_from_here(
    config_file: Path, given: Mapping[str, Any], *, tell: Callable[[str], None]
) -> tuple[Store, Plan, str, Outcome]:
    """Prepare and search here, extract there; the store is in reach of both.

    Raises:
        UsageError: the store is on a volume of the cluster's.
    """
    config = load(config_file)
    if local_path(config.store_url) is not None:
        raise UsageError(
            f"store.path '{config.store_url}' is on a volume that only the cluster sees: let the "
            "search run there too (--driver), or take a store at a URL such as s3://bucket/x.zarr"
        )
    watch, cluster, template = _applied(config, config_file, given, driver=False, tell=tell)
    jobs = WaveJobs(watch, template)
    device = _device(cluster.gpu, cluster.gpu_type)
    remote = RemoteWaves(jobs.extract, jobs.begun, device, cluster.parallelism)
    return run_sweep(config_file, remote=remote, limit=cluster.limit)


def search_there(
    config_file: Path, given: Mapping[str, Any], *, tell: Callable[[str], None]
) -> str:
    """Submit the search as a Job that submits its waves, and follow it; Ctrl-C leaves it running.

    Called again, it follows the one that runs, or submits one that goes on from there.

    Raises:
        IndexFailed: it failed; what to do about it has been told.
    """
    config = load(config_file)
    watch, _, _ = _applied(config, config_file, given, driver=True, tell=tell)
    name = f"{watch.sweep}-search"

    def over(now: Snapshot) -> bool:
        return any(job.name == name and job.ended for job in now.jobs)

    end = watch.until(over)
    job = next(job for job in end.jobs if job.name == name)
    logs = watch.commands.kubectl("logs", f"job/{name}")
    if job.state == "failed":
        tell(advice(end, watch.sweep, watch.commands))
        raise IndexFailed(f"Job {name} failed: {job.reason}; see '{logs}'")
    return f"{summary(end)}\nthe answer: {logs}"


def _applied(
    config: Config,
    config_file: Path,
    given: Mapping[str, Any],
    *,
    driver: bool,
    tell: Callable[[str], None],
) -> tuple[Watch, Cluster, Object]:
    """The sweep with its objects in the cluster; options that aren't given are as before."""
    name, namespace = sweep_name(config.name), given.get("namespace")
    kubectl = Kubectl(namespace, patience=OUTAGE_SECONDS)
    cluster = Cluster.of(remembered_options(kubectl.items("configmaps", name)), given)
    # What the search would refuse is refused before anything is submitted.
    check_policy(config)
    _ = cluster.limit
    sweep = cluster_sweep(config, config_file, cluster)
    objects, template = kubernetes_search.render(sweep, driver=driver)
    commands = Commands(str(config_file), namespace)
    watch = Watch(kubectl, name, commands, tell=tell, show=log_changes())
    kubectl.apply(without_claims(objects, kubectl.claims(name), resized_claims(given)))
    jobs = {job.name: job for job in snapshot(kubectl, name).jobs}
    for item in objects:
        if item["kind"] == "Job":
            replace_ended(kubectl, jobs, item)
    return watch, cluster, template
