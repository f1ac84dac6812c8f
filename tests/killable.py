"""batchsweep's commands in processes that can be killed, and the bytes that they left."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py


class Commands:
    """batchsweep's commands, each in a process of its own that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def run(self, config: Path, *arguments: str, kill_after: float | None = None) -> int:
        """The exit status; -9 if the process was killed, that many seconds after its start."""
        assert self._server.stdin is not None and self._server.stdout is not None
        line = json.dumps([str(self._output), *arguments, "--config", str(config)])
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        if kill_after is not None:
            select.select([self._server.stdout], [], [], kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return int(self._server.stdout.readline())

    def succeed(self, config: Path, *arguments: str) -> float:
        """Run to the end; how long it took."""
        start = time.monotonic()
        assert self.run(config, *arguments) == 0, f"{arguments}: {self.output}"
        return time.monotonic() - start

    @property
    def output(self) -> str:
        return self._output.read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


def stored(store: Path) -> dict[str, bytes]:
    """The bytes of every array of the corpus, the embeddings and the metrics, and of documents.

    Of an HDF5 file, its arrays: where they lie is no promise.
    """
    roots = [store / name for name in ("corpus", "checkpoints", "metrics")]
    found = {}
    for path in (p for root in roots for p in sorted(root.rglob("*")) if p.is_file()):
        name = path.relative_to(store).as_posix()
        if path.suffix != ".h5":
            found[name] = path.read_bytes()
            continue
        with h5py.File(path) as file:
            arrays: list[tuple[str, h5py.Dataset]] = []
            file.visititems(lambda n, item, to=arrays: to.append((n, item)))
            for inside, item in arrays:
                if isinstance(item, h5py.Dataset):
                    value = item[()]
                    body = value if isinstance(value, bytes) else value.tobytes()
                    found[f"{name}/{inside}"] = body
    return found
