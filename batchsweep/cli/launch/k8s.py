"""``batchsweep launch k8s``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from batchsweep.cli.options import ConfigFile, GpuPrice, Indexes, only_one
from batchsweep.errors import UsageError


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="submit with kubectl, then follow")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="show what the cluster and store say")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="only what the search asks for, as 'run' does")
    ] = False,
    driver: Annotated[
        bool,
        typer.Option("--driver", help="the search runs in the cluster too, and may make Jobs"),
    ] = False,
    wave_job: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what the search's own pod runs", hidden=True),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="default: batchsweep:VERSION, of this version"),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="default: kubectl's own")
    ] = None,
    parallel: Annotated[int | None, typer.Option(metavar="N", help="GPUs (default: 8)")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="RESOURCE", help="resource name of one GPU, or none (default: nvidia.com/gpu)"
        ),
    ] = None,
    gpu_type: Annotated[
        str | None, typer.Option(metavar="NAME", help="only nodes whose <gpu>.product is this")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="of ReadWriteMany volumes")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="SIZE", help="store's volume (default: 1Ti)")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="SIZE", help="model cache's volume (default: 200Gi)")
    ] = None,
    workdir: Annotated[
        Literal["/", "/runs"] | None,
        typer.Option(help="where relative paths start (default: /)"),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kueue's LocalQueue for the extract Job")
    ] = None,
    bandit_after: Annotated[
        int | None,
        typer.Option(metavar="N", help="sealed indexes it waits for (default: all)"),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="submit no index or wave that would pass this"),
    ] = None,
    gpu_price: GpuPrice = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="N", help="extract shows figures to Prometheus there")
    ] = None,
    cpu: Annotated[
        list[str] | None,
        typer.Option(metavar="[JOB=]N", help="cores of extract, or of JOB (repeatable)"),
    ] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="[JOB=]SIZE", help="memory of extract, or of JOB (repeatable)"),
    ] = None,
    image_pull_secret: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="for a private registry (repeatable)")
    ] = None,
    priority_class: Annotated[str | None, typer.Option(metavar="NAME", help="of all pods")] = None,
    service_account: Annotated[str | None, typer.Option(metavar="NAME", help="of all pods")] = None,
    toleration: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE][:EFFECT]", help="a taint to bear (repeatable)"),
    ] = None,
    node_selector: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="only such nodes (repeatable)")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="of all objects (repeatable)")
    ] = None,
    annotation: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="of all objects (repeatable)")
    ] = None,
    patch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML to lay over the objects it names")
    ] = None,
) -> None:
    """Print the sweep's Kubernetes objects, or submit and follow it.

    Prints YAML. With --apply, kubectl submits it in order (prepare; extract
    when the plan is frozen; bandit) and follows it; it submits only indexes
    that no Job has yet, and finishes what a call that was cut off has left.
    The cluster remembers the options: a later call needs only the config
    (and the namespace), and what is given anew replaces what was.

    With --search, each wave that the search asks for is an Indexed Job. The
    search runs here, with the store at a URL, or as a Job of the cluster
    (--driver) that needs nobody, with the right to make Jobs.

    example:
      batchsweep launch k8s --config configs/mteb_layersweep.yaml > sweep.yaml
      batchsweep launch k8s --config configs/mteb_layersweep.yaml --apply
      batchsweep launch k8s --config configs/mteb_layersweep.yaml --status
      batchsweep launch k8s --config configs/mteb_layersweep.yaml --search --driver --apply
    """
    only_one(apply=apply, status=status, wave_job=wave_job)
    only_one(search=search, indexes=indexes)
    only_one(search=search, bandit_after=bandit_after)
    if (driver or wave_job is not None) and not search:
        raise UsageError("--driver runs a search in the cluster: give --search with it")
    from batchsweep.jobs import cluster, cluster_launch
    from batchsweep.jobs.launch import at_once

    if status:
        print(cluster_launch.status(config, namespace=namespace))
        return
    options: dict[str, Any] = {
        "image": image,
        "namespace": namespace,
        "parallelism": None if parallel is None else at_once(parallel),
        "gpu_type": gpu_type,
        "storage_class": storage_class,
        "storage": storage,
        "cache": cache,
        "workdir": workdir,
        "queue": queue,
        "bandit_after": bandit_after,
        "max_cost": max_cost,
        "gpu_price": gpu_price,
        "metrics_port": metrics_port,
        "cpu": cluster.by_job("--cpu", cpu or ()),
        "memory": cluster.by_job("--memory", memory or ()),
        "image_pull_secrets": image_pull_secret,
        "priority_class": priority_class,
        "service_account": service_account,
        "tolerations": [cluster.toleration(text) for text in toleration or ()],
        "node_selector": cluster.pairs("--node-selector", node_selector or ()),
        "labels": cluster.pairs("--label", label or ()),
        "annotations": cluster.pairs("--annotation", annotation or ()),
        "patches": cluster.read_patches(patch) if patch is not None else None,
    }
    given = {name: value for name, value in options.items() if value not in (None, [], {})}
    if patch is not None:
        given["patches"] = options["patches"]  # An empty file takes back what is remembered.
    if gpu is not None:
        given["gpu"] = None if gpu == "none" else gpu
    if search:
        _search(config, given, wave_job=wave_job, driver=driver, apply=apply)
    elif apply:
        print(cluster_launch.apply(config, given, indexes=indexes, tell=print))
    else:
        print(cluster_launch.print_objects(config, given, indexes=indexes).rstrip("\n"))


def _search(
    config: Path, given: dict[str, Any], *, wave_job: Path | None, driver: bool, apply: bool
) -> None:
    """What ``--search`` does: here, there, in its own pod, or on paper."""
    from batchsweep.cli.run import show
    from batchsweep.jobs import cluster_search
    from batchsweep.jobs.spending import CostLimit

    if wave_job is not None:
        limit = CostLimit.of(given.get("max_cost"), given.get("gpu_price"))
        show(config, *cluster_search.drive(config, wave_job, limit))
    elif driver and apply:
        print(cluster_search.search_there(config, given, tell=print))
    elif driver:
        print(cluster_search.print_objects(config, given).rstrip("\n"))
    elif apply:
        show(config, *cluster_search.search_from_here(config, given, tell=print))
    else:
        raise UsageError(
            "--search has nothing to print: its Jobs come wave by wave; give --apply, or --driver "
            "for the objects of a search that runs in the cluster"
        )
