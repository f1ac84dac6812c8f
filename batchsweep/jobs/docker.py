"""Workers as containers of this machine's engine.

Paths are the same inside and outside: the config, the store, local models and tasks, and the model
cache are mounted where they are, so that a config that works here works in the container. Nothing
else of the machine is there, the root is read-only, and files belong to the caller.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from batchsweep.config import Config, LocalTask, local_path
from batchsweep.errors import TryAgain, UsageError
from batchsweep.jobs.local import worker_environment

logger = logging.getLogger(__name__)

#: Passed on from the caller's environment, where set: the Hub's and the object store's access.
PASSED_ON = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "OMP_NUM_THREADS",
)


def mounts(config: Config, config_path: Path, *, cache: Path) -> dict[str, dict[str, str]]:
    """The host folders that a worker needs, in the engine's form.

    The store's folder and the cache are writable, all else is read-only.
    """
    readable = [config_path.resolve().parent]
    readable += [Path(m.name) for m in config.models if Path(m.name).exists()]
    readable += [t.path for t in config.tasks if isinstance(t, LocalTask)]
    found = {str(path.resolve()): {"bind": str(path.resolve()), "mode": "ro"} for path in readable}
    store = local_path(config.store_url)
    for path in [cache] if store is None else [cache, store.parent]:
        # Made here, or the engine makes it and it is root's.
        path.mkdir(parents=True, exist_ok=True)
        found[str(path.resolve())] = {"bind": str(path.resolve()), "mode": "rw"}
    return found


def connect() -> Any:
    """A client of this machine's engine.

    Raises:
        UsageError: no engine answers.
    """
    import docker

    try:
        # No read timeout: a worker may be silent for as long as a block takes.
        client = docker.from_env(timeout=None)
        client.ping()
    except docker.errors.DockerException as error:
        raise UsageError(
            f"no container engine answers ({error}); start it, set DOCKER_HOST, "
            "or use 'batchsweep launch local'"
        ) from None
    return client


@dataclass
class DockerLauncher:
    """Starts one container per index, pinned to its slot's GPU."""

    client: Any
    arguments: Sequence[str]
    """``extract`` and its options, without the index."""
    _: KW_ONLY
    name: str
    """The sweep's; containers are called after it."""
    image: str
    mounts: Mapping[str, Mapping[str, str]]
    cache: Path
    parallel: int
    gpus: Sequence[str]
    network: str | None = None
    more: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """What an index's own call has beside ``arguments``, such as ``--tasks``."""

    def start(self, index: int, slot: int) -> DockerWorker:
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        name = f"batchsweep-{self.name}-{index}"
        arguments = [*self.arguments, "--index", str(index), *self.more.get(index, ())]
        return self._worker(name, arguments, gpu=gpu, slot=slot)

    def run(self, arguments: Sequence[str], what: str) -> DockerWorker:
        """Start another command (``prepare``) in the same surroundings, without a GPU."""
        return self._worker(f"batchsweep-{self.name}-{what}", arguments, gpu=None, slot=0)

    def _worker(
        self, name: str, arguments: Sequence[str], *, gpu: str | None, slot: int
    ) -> DockerWorker:
        import docker

        running = self._running(name)
        if running is not None:
            logger.info("container %s is already running; following it", name)
            there = running.attrs["Config"]["Cmd"]
            return DockerWorker(running, same=there == list(arguments))
        environment = {key: os.environ[key] for key in PASSED_ON if os.environ.get(key)}
        environment |= worker_environment(os.environ, slot=slot, parallel=self.parallel, gpus=())
        environment["HF_HOME"] = str(self.cache.resolve())
        # prepare puts all texts in order there: on a disk, as /tmp is memory.
        environment["TMPDIR"] = str(self.cache.resolve())
        requests = (
            [docker.types.DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])]
            if gpu is not None
            else []
        )
        try:
            container = self.client.containers.run(
                self.image,
                list(arguments),
                name=name,
                detach=True,
                user=f"{os.getuid()}:{os.getgid()}",
                working_dir=str(Path.cwd()),
                environment=environment,
                volumes={host: dict(mount) for host, mount in self.mounts.items()},
                read_only=True,
                tmpfs={"/tmp": ""},
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                device_requests=requests,
                **({"network_mode": self.network} if self.network else {}),
            )
        except docker.errors.ImageNotFound:
            raise UsageError(
                f"there is no image '{self.image}' here; build it with 'docker build -t "
                f"{self.image} .' in batchsweep's folder, or name another with --image"
            ) from None
        except docker.errors.APIError as error:
            raise TryAgain(f"the engine refused {name}: {error.explanation or error}") from None
        return DockerWorker(container)

    def _running(self, name: str) -> Any | None:
        """A container that a killed launcher left running; an ended one is removed."""
        import docker

        try:
            container = self.client.containers.get(name)
        except docker.errors.NotFound:
            return None
        if container.status == "running":
            return container
        container.remove(force=True)
        return None


class DockerWorker:
    """A container.

    Args:
        same: it does what is wanted. Another call's has other tasks, say: what is wanted is to be
            tried again once it has ended, for it holds the index.
    """

    def __init__(self, container: Any, *, same: bool = True) -> None:
        self._container, self._same = container, same

    def lines(self) -> Iterator[str]:
        rest = b""
        for chunk in self._container.logs(stream=True, follow=True):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")
        if rest:
            yield rest.decode("utf-8", "replace")

    def wait(self) -> int:
        code = int(self._container.wait()["StatusCode"])
        self._container.remove(force=True)
        return code if self._same or code else TryAgain.exit_code

    def stop(self) -> None:
        self._signal("SIGTERM")

    def kill(self) -> None:
        self._signal("SIGKILL")

    def _signal(self, name: str) -> None:
        import docker

        try:
            self._container.kill(name)
        except (docker.errors.NotFound, docker.errors.APIError) as error:
            # It ended by itself in the meantime.
            logger.debug("%s to %s: %s", name, self._container.name, error)
