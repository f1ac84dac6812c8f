"""``batchsweep launch k8s``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchsweep.cli.options import ConfigFile, Indexes, only_one


def command(
    config: ConfigFile,
    indexes: Indexes = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="submit with kubectl, then follow")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="show what the cluster and store say")
    ] = False,
    image: Annotated[
        str, typer.Option(metavar="NAME", help="the image to run")
    ] = "batchsweep:latest",
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="default: kubectl's own")
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="GPUs")] = 8,
    gpu: Annotated[
        str, typer.Option(metavar="RESOURCE", help="resource name of one GPU, or none")
    ] = "nvidia.com/gpu",
    gpu_type: Annotated[
        str | None, typer.Option(metavar="NAME", help="only nodes whose <gpu>.product is this")
    ] = None,
    storage_class: Annotated[
        str | None, typer.Option(metavar="NAME", help="of ReadWriteMany volumes")
    ] = None,
    storage: Annotated[str, typer.Option(metavar="SIZE", help="store's volume")] = "1Ti",
    cache: Annotated[str, typer.Option(metavar="SIZE", help="model cache's volume")] = "200Gi",
    workdir: Annotated[
        Literal["/", "/runs"], typer.Option(help="where relative paths start")
    ] = "/",
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Kueue's LocalQueue for the extract Job")
    ] = None,
    bandit_after: Annotated[
        int | None,
        typer.Option(metavar="N", help="sealed indexes it waits for (default: all)"),
    ] = None,
) -> None:
    """Print the sweep's Kubernetes objects, or submit and follow it.

    Prints YAML. With --apply, kubectl submits it in order (prepare; extract
    when the plan is frozen; bandit) and follows it; it submits only indexes
    that no Job has yet.

    example:
      batchsweep launch k8s --config configs/mteb_layersweep.yaml > sweep.yaml
      batchsweep launch k8s --config configs/mteb_layersweep.yaml --apply
      batchsweep launch k8s --config configs/mteb_layersweep.yaml --status
    """
    only_one(apply=apply, status=status)
    from batchsweep.jobs import launch
    from batchsweep.jobs.kubernetes import Cluster

    if status:
        print(launch.kubernetes_status(config, namespace=namespace))
        return
    cluster = Cluster(
        image=image,
        namespace=namespace,
        parallelism=launch.at_once(parallel),
        gpu=None if gpu == "none" else gpu,
        gpu_type=gpu_type,
        storage_class=storage_class,
        storage=storage,
        cache=cache,
        queue=queue,
        bandit_after=bandit_after,
        workdir=workdir,
    )
    if apply:
        print(launch.kubernetes_apply(config, cluster, indexes=indexes))
    else:
        print(launch.kubernetes_yaml(config, cluster, indexes=indexes).rstrip("\n"))
