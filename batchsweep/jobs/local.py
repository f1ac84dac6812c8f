"""Workers as processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environ: Mapping[str, str], nvidia: Path = NVIDIA_GPUS) -> tuple[str, ...]:
    """Names of the GPUs that may be used, as ``CUDA_VISIBLE_DEVICES`` writes them.

    That variable decides where it is set; else all that the driver knows count. No CUDA library
    is loaded for it: a CUDA context here would cost memory on every GPU.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip())
    count = len(list(nvidia.iterdir())) if nvidia.is_dir() else 0
    return tuple(str(i) for i in range(count))


def worker_environment(
    environ: Mapping[str, str], *, slot: int, parallel: int, gpus: Sequence[str]
) -> dict[str, str]:
    """What a worker's environment adds: its GPU, and its share of the cores."""
    added: dict[str, str] = {}
    if gpus:
        added["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if "OMP_NUM_THREADS" not in environ:
        added["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // parallel))
    return added


@dataclass
class LocalLauncher:
    """Starts ``python -m batchsweep extract`` for an index."""

    arguments: Sequence[str]
    """``extract`` and its options, without the index."""
    _: KW_ONLY
    parallel: int
    gpus: Sequence[str]
    command: Sequence[str] = field(default_factory=lambda: (sys.executable, "-m", "batchsweep"))
    more: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """What an index's own call has beside them, such as ``--tasks``."""

    def start(self, index: int, slot: int) -> LocalWorker:
        arguments = [*self.arguments, "--index", str(index), *self.more.get(index, ())]
        return self.run(arguments, self.environment(slot))

    def environment(self, slot: int) -> dict[str, str]:
        """What the environment of the slot's worker adds."""
        return worker_environment(os.environ, slot=slot, parallel=self.parallel, gpus=self.gpus)

    def run(self, arguments: Sequence[str], added: Mapping[str, str] | None = None) -> LocalWorker:
        """Start any command; ``added`` goes into its environment."""
        return LocalWorker(
            subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(added or {})},
                # Ctrl-C in the terminal is for the launcher, which then stops its workers: a
                # worker that got both would take the second signal as "leave at once".
                start_new_session=True,
            )
        )


class LocalWorker:
    """A process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def wait(self) -> int:
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
