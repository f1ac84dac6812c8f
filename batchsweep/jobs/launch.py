"""``batchsweep launch``: the indexed job on one machine, or as a script for Slurm."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchsweep.config import Config, load
from batchsweep.errors import UsageError
from batchsweep.jobs.chosen import chosen_indexes, elsewhere_indexes, names, sealed_blocks
from batchsweep.jobs.follow_worker import Worker
from batchsweep.jobs.kubernetes import sweep_name
from batchsweep.jobs.local import LocalLauncher, LocalWorker, visible_gpus
from batchsweep.jobs.runner import IndexedJob, run_once
from batchsweep.jobs.slurm import array_script
from batchsweep.log import log_format
from batchsweep.plan.frozen import load_plan
from batchsweep.progress import duration
from batchsweep.signals import stop_on_signals

if TYPE_CHECKING:
    from batchsweep.jobs.docker import DockerLauncher

logger = logging.getLogger(__name__)


def logs_folder(config: Config) -> Path:
    """Where workers' logs are kept: beside a local store, else in the run's folder here."""
    return config.run_folder / "logs"


def local(config_file: Path, *, indexes: str | None, parallel: int | None, grace: float) -> str:
    """Prepare, then extract, as processes of this machine; the value is what to say at the end.

    Raises:
        UsageError: ``indexes`` or ``parallel`` can't be.
        BatchsweepError: what the workers ended with.
    """
    config = load(config_file)
    workers = at_once(parallel, visible_gpus(os.environ))
    launcher = local_launcher(config_file, workers=workers, grace=grace)

    def prepare() -> LocalWorker:
        return launcher.run(["prepare", *_config_arguments(config_file)])

    return _on_one_machine(config, config_file, launcher, prepare, indexes, grace)


def docker(
    config_file: Path,
    *,
    image: str,
    network: str | None,
    indexes: str | None,
    parallel: int | None,
    grace: float,
) -> str:
    """Like :func:`local`, in a container per index."""
    from batchsweep.jobs.docker import DockerWorker

    config = load(config_file)
    workers = at_once(parallel, visible_gpus(os.environ))
    launcher = docker_launcher(
        config, config_file, image=image, network=network, workers=workers, grace=grace
    )

    def prepare() -> DockerWorker:
        return launcher.run(["prepare", *_config_arguments(config_file.resolve())], "prepare")

    return _on_one_machine(config, config_file, launcher, prepare, indexes, grace)


def local_launcher(config_file: Path, *, workers: int, grace: float) -> LocalLauncher:
    """Starts ``extract`` for an index, as a process."""
    return LocalLauncher(
        ["extract", *_config_arguments(config_file), "--grace", str(grace)],
        parallel=workers,
        gpus=visible_gpus(os.environ),
    )


def docker_launcher(
    config: Config,
    config_file: Path,
    *,
    image: str,
    network: str | None,
    workers: int,
    grace: float,
) -> DockerLauncher:
    """Starts ``extract`` for an index, in a container of the image."""
    from batchsweep.jobs.docker import DockerLauncher, connect, mounts

    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    absolute = config_file.resolve()
    return DockerLauncher(
        connect(),
        ["extract", *_config_arguments(absolute), "--grace", str(grace)],
        name=config.name,
        image=image,
        mounts=mounts(config, absolute, cache=cache),
        cache=cache,
        parallel=workers,
        gpus=visible_gpus(os.environ),
        network=network,
    )


def _config_arguments(config_file: Path) -> list[str]:
    return ["--config", str(config_file), "--log-format", log_format()]


def at_once(asked: int | None, gpus: Sequence[str] = (), *, without_gpu: int = 1) -> int:
    """How many indexes run at once: as asked, else one per GPU, or so many where there is none.

    Raises:
        UsageError: ``asked`` is less than 1.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"--parallel must be at least 1, not {asked}")
    return asked or len(gpus) or without_gpu


def _on_one_machine(
    config: Config,
    config_file: Path,
    launcher: LocalLauncher | DockerLauncher,
    prepare: Callable[[], Worker],
    indexes: str | None,
    grace: float,
) -> str:
    """Prepare, then all indexes; what both launchers of one machine do."""
    from batchsweep.store import open_store

    logs = logs_folder(config)
    start = time.monotonic()
    with stop_on_signals(grace) as stop:
        run_once(prepare(), what="prepare", log=logs / "prepare.log", stop=stop)
        plan = load_plan(open_store(config.store_url))
        chosen = chosen_indexes(indexes, plan)
        IndexedJob(
            launcher,
            chosen,
            launcher.parallel,
            logs,
            names=names(plan),
            sealed=lambda: sealed_blocks(config, plan),
        ).run(stop)
    return (
        f"{len(chosen)} indexes done in {duration(time.monotonic() - start)}; logs in {logs}/\n"
        f"next: {shlex.join(['batchsweep', 'bandit', '--config', str(config_file)])}"
    )


def slurm(config_file: Path, *, indexes: str | None, parallel: int, gpu: bool) -> str:
    """An array script for ``sbatch``."""
    config = load(config_file)
    chosen, _ = elsewhere_indexes(indexes, config)
    return array_script(
        sweep=sweep_name(config.name),
        config_path=str(config_file),
        indexes=chosen,
        parallel=at_once(parallel),
        gpu=gpu,
    )
