"""The command line of ``batchsweep launch``; light, because every ``--help`` imports it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

AddCommand = Callable[..., argparse.ArgumentParser]


def add_launch(commands: Any, add: AddCommand, help_class: type[argparse.HelpFormatter]) -> None:
    """Add ``launch`` with its four places; ``add`` is the command line's maker of subcommands."""
    launch = commands.add_parser(
        "launch",
        help="run the indexed job: local, docker, k8s or slurm",
        description="Run the indexed job of a sweep: one worker per index, retries by exit code.",
        epilog="example:\n"
        "  batchsweep launch local --config configs/quick.yaml\n"
        "  batchsweep launch docker --help",
        formatter_class=help_class,
    )
    places = launch.add_subparsers(metavar="PLACE", dest="place", required=True)

    local = add(
        places,
        "local",
        "run all indexes on this machine, as processes",
        details="Prepares, then extracts: as many indexes at once as there are GPUs, each on its\n"
        "own. Ctrl-C stops cleanly; the same command goes on from there.",
        example="  batchsweep launch local --config configs/quick.yaml --parallel 2",
    )
    _one_machine(local)

    docker = add(
        places,
        "docker",
        "run all indexes on this machine, as containers",
        details="Like 'launch local', in a container per index: read-only, no privileges,\n"
        "with the config, the store, local models and the model cache mounted where they are.",
        example="  batchsweep launch docker --config configs/quick.yaml --image batchsweep",
    )
    _one_machine(docker)
    docker.add_argument("--image", default="batchsweep", help="default: batchsweep")
    docker.add_argument(
        "--network", metavar="NAME", help="the containers' network, such as none or host"
    )

    k8s = add(
        places,
        "k8s",
        "print the sweep's Kubernetes objects, or submit and follow it",
        details="Prints YAML. With --apply, kubectl submits it in order (prepare; extract when\n"
        "the plan is frozen; bandit) and follows it; it submits only indexes that no Job has yet.",
        example="  batchsweep launch k8s --config configs/mteb_layersweep.yaml > sweep.yaml\n"
        "  batchsweep launch k8s --config configs/mteb_layersweep.yaml --apply\n"
        "  batchsweep launch k8s --config configs/mteb_layersweep.yaml --status",
    )
    _indexes(k8s)
    what = k8s.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="submit with kubectl, then follow")
    what.add_argument("--status", action="store_true", help="show what the cluster and store say")
    k8s.add_argument("--image", default="batchsweep:latest", help="default: batchsweep:latest")
    k8s.add_argument("--namespace", metavar="NAME", help="default: kubectl's own")
    k8s.add_argument("--parallel", type=int, default=8, metavar="N", help="GPUs (default: 8)")
    k8s.add_argument(
        "--gpu", default="nvidia.com/gpu", metavar="RESOURCE", help="or none (nvidia.com/gpu)"
    )
    k8s.add_argument("--gpu-type", metavar="NAME", help="only nodes whose <gpu>.product is this")
    k8s.add_argument("--storage-class", metavar="NAME", help="of ReadWriteMany volumes")
    k8s.add_argument("--storage", default="1Ti", metavar="SIZE", help="store's volume (1Ti)")
    k8s.add_argument("--cache", default="200Gi", metavar="SIZE", help="model cache's (200Gi)")
    k8s.add_argument(
        "--workdir", default="/", choices=("/", "/runs"), help="where relative paths start (/)"
    )
    k8s.add_argument("--queue", metavar="NAME", help="Kueue's LocalQueue for the extract Job")
    k8s.add_argument(
        "--bandit-after", type=int, metavar="N", help="sealed indexes it waits for (default: all)"
    )

    slurm = add(
        places,
        "slurm",
        "print an array script for sbatch",
        example="  batchsweep launch slurm --config configs/quick.yaml > extract.sbatch",
    )
    _indexes(slurm)
    slurm.add_argument("--parallel", type=int, default=8, metavar="N", help="at once (default: 8)")
    slurm.add_argument("--gpu", default="gpu", metavar="gpu|none", help="default: one GPU a task")
    for parser in (local, docker, k8s, slurm):
        parser.set_defaults(command="launch")


def _one_machine(parser: argparse.ArgumentParser) -> None:
    _indexes(parser)
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="indexes at once (default: one per GPU, else 1)"
    )
    parser.add_argument(
        "--grace", type=float, default=25.0, metavar="SECONDS", help="to seal on Ctrl-C (25)"
    )


def _indexes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--indexes", metavar="LIST", help="only these, such as 0,4-6")
