"""batchsweep's commands in processes that can be killed, and the bytes that they left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import h5py


class Process:
    """One command's process."""

    def __init__(self) -> None:
        self.pid: Future[int] = Future()
        self.exit: Future[int] = Future()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not self.exit.done():
                os.kill(self.pid.result(), number)


class Commands:
    """batchsweep's commands, each in a process of its own that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        self._processes: list[Process] = []
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            said = json.loads(line)
            process = self._processes[said["id"]]
            if "pid" in said:
                process.pid.set_result(said["pid"])
            else:
                process.exit.set_result(said["exit"])

    def start(self, arguments: Sequence[str], output: Path, **more: Any) -> Process:
        """Start a command; ``more`` is what else the server of forks takes."""
        assert self._server.stdin is not None
        process = Process()
        with self._lock:
            request = {"id": len(self._processes), "arguments": list(arguments), **more}
            self._processes.append(process)
            self._server.stdin.write(json.dumps({**request, "output": str(output)}) + "\n")
            self._server.stdin.flush()
        return process

    def run(self, config: Path, *arguments: str, kill_after: float | None = None) -> int:
        """The exit status; -9 if the process was killed, that many seconds after its start."""
        process = self.start([*arguments, "--config", str(config)], self._output)
        process.pid.result()
        with contextlib.suppress(TimeoutError):
            return process.exit.result(kill_after)
        process.signal(signal.SIGKILL)
        return process.exit.result()

    def succeed(self, config: Path, *arguments: str) -> float:
        """Run to the end; how long it took."""
        start = time.monotonic()
        assert self.run(config, *arguments) == 0, f"{arguments}: {self.output}"
        return time.monotonic() - start

    @property
    def output(self) -> str:
        return self._output.read_text()

    def close(self) -> None:
        for process in self._processes:
            process.signal(signal.SIGKILL)
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
