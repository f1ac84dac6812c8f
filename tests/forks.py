"""batchsweep's commands in processes that can be killed."""

import contextlib
import fcntl
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any


class Process:
    """One command's process; what it says goes to a file."""

    def __init__(self, connection: socket.socket, output: Path) -> None:
        self.output = output
        self.pid: Future[int] = Future()
        self.exit: Future[int] = Future()
        threading.Thread(target=self._read, args=[connection], daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, connection.makefile() as answers:
            for future in (self.pid, self.exit):
                line = answers.readline()
                if not line:
                    future.set_exception(EOFError("the server of forks has gone"))
                    return
                future.set_result(int(line))

    @property
    def ended(self) -> bool:
        return self.exit.done()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not self.exit.done():
                os.kill(self.pid.result(), number)

    def end(self, *, kill: bool = False, timeout: float = 240) -> tuple[int, str]:
        """Wait for its end, perhaps kill -9 first: its exit status and what it said."""
        if kill:
            self.signal(signal.SIGKILL)
        return self.exit.result(timeout), self.output.read_text()


class Commands:
    """batchsweep's commands, each in a process of its own that can be killed.

    A process is a fork of one that has imported what commands import (``fork_server``): it has its
    own pid, signals and memory, as one that was started has, without the seconds of imports. So
    are those that it starts itself.

    Args:
        shared: a folder that all test processes of one run have; the first starts the server.
        own: a folder for what commands say.
    """

    def __init__(self, shared: Path, own: Path) -> None:
        self._folder = own
        self._output = own / "output"
        self._counter = itertools.count()
        with (shared / "forks").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            # Of the kernel's own names for sockets (a zero byte first): a path may be too long.
            self._name = file.read() or f"batchsweep-{uuid.uuid4().hex}"
            if file.tell() == 0:
                file.write(self._name)
            self._connection = self._keep_alive()
        #: In the place of ``sys.executable``: ``python -m batchsweep`` is a fork, too.
        self.python = str(own / "python")
        here = Path(__file__).parent
        words = [sys.executable, "-I", "-S", str(here / "forked_python.py"), self._name]
        Path(self.python).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$0" "$@"\n')
        Path(self.python).chmod(0o755)

    def _keep_alive(self) -> socket.socket:
        """A connection that the server lives for; a server, if there is none."""
        with contextlib.suppress(OSError):
            connection = self._connected()
            connection.sendall(b"null\n")
            if connection.recv(2) == b"0\n":
                return connection
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py"), self._name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        connection = self._connected()
        connection.sendall(b"null\n")
        assert connection.recv(2) == b"0\n"
        return connection

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"\0{self._name}")
        return connection

    def start(
        self,
        arguments: Sequence[str | Path],
        output: Path | None = None,
        *,
        errors: Path | int | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        settings: Mapping[str, object] | None = None,
        before: str = "",
    ) -> Process:
        """Start a command, as ``subprocess.Popen`` does.

        Args:
            arguments: without the program's name.
            output: what it says goes there.
            errors: where standard error goes, if not to the same file: a path, or an open file's
                number.
            environment: the whole of it, if not this process's.
            folder: where it works, if not here.
            settings: module attributes (``module.NAME``) that are others than in the code.
            before: Python that the process runs first.
        """
        output = output or self._folder / f"output-{next(self._counter)}"
        request = {
            "arguments": list(map(str, arguments)),
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
            "settings": {"sys.executable": self.python, **(settings or {})},
            "before": before,
        }
        connection = self._connected()
        closefd = not isinstance(errors, int)
        with output.open("w") as out, open(errors or output, "a", closefd=closefd) as err:
            descriptors = [out.fileno(), err.fileno() if errors else out.fileno()]
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [line], descriptors)
            connection.sendall(line[sent:])
        return Process(connection, output)

    def completed(
        self, arguments: Sequence[str | Path], timeout: float = 240, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, as ``subprocess.run`` does with ``capture_output``."""
        errors = self._folder / f"errors-{next(self._counter)}"
        process = self.start(arguments, errors=errors, **more)
        code, said = process.end(timeout=timeout)
        return subprocess.CompletedProcess(list(arguments), code, said, errors.read_text())

    def run(self, config: Path, *arguments: str, kill_after: float = 600) -> int:
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
        """The server ends with its last user, and what still runs for one with that one."""
        self._connection.close()


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Look until something is there, and hand it over."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def working_in(folder: Path) -> list[int]:
    """Processes whose working folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found
