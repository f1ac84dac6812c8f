"""Runs batchsweep's commands in forks of a process that has imported everything: no start-up time.

    python tests/fork_server.py NAME

Says "ready" and listens at the socket of that name, which is the kernel's and no file. A connection
asks for one process with a line of JSON (``arguments``, the whole ``environment``, the ``folder``
to work in, ``settings``: module attributes that are there already, and perhaps ``before``: Python
that it runs first) and brings two open files for standard output and standard error. It is answered
with the fork's pid and, when the fork has ended, with its exit status (minus the signal that killed
it), a line each. A connection that is closed before kills its fork; one that asks for ``null`` is
answered with 0 and only keeps the server alive, which ends with its last connection.

What a library reads from the environment when it is imported was read here: say it in ``settings``.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import traceback
from typing import Any

from forked_python import SETTINGS

from batchsweep.cli.main import main

# Everything that commands import when they run. Nothing is computed here, so that no library has
# started threads for it yet: a fork would lack them. (Those of jemalloc and polars, which start
# with their import, are their allocators' own: each fork starts them anew or does without.)
MODULES = (
    "batchsweep.extract.extract",
    "batchsweep.plan.prepare",
    "batchsweep.bandit.search",
    "batchsweep.score.scorer",
    "batchsweep.forward.forward",
    "batchsweep.forward.metrics",
    "batchsweep.jobs.cluster_launch",
    "batchsweep.jobs.local",
)
LIBRARIES = ("torch", "transformers", "mteb", "datasets", "sklearn.cluster", "h5py", "zarr")


def child(request: dict[str, Any], standard: list[int]) -> int:
    """Be the command; its exit status."""
    try:
        # What a client sends to a server is not for a command to read.
        for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *standard]):
            os.dup2(descriptor, number)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored.
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.environ[SETTINGS] = json.dumps(request["settings"])  # For what it starts.
        for name, value in request["settings"].items():
            where, _, attribute = name.rpartition(".")
            there = pkgutil.resolve_name(where)
            getattr(there, attribute)  # A setting that nobody reads would be a lie.
            setattr(there, attribute, value)
        exec(request.get("before", ""), {})
        return main(request["arguments"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:  # noqa: BLE001 - a fork must never go on in the server's loop.
        traceback.print_exc()
        return 99


class Server:
    def __init__(self, name: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{name}")
        self._listener.listen(64)
        #: Connection -> the pid and pidfd of its fork, or nothing.
        self._open: dict[socket.socket, tuple[int, int] | None] = {}

    def accept(self) -> None:
        connection, _ = self._listener.accept()
        line, standard, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        while not line.endswith(b"\n"):
            if not (more := connection.recv(1 << 20)):
                connection.close()
                return
            line += more
        request = json.loads(line)
        self._open[connection] = self._fork(request, standard) if request else None
        for descriptor in standard:
            os.close(descriptor)
        fork = self._open[connection]
        # One that has gone meanwhile is seen at its end of the connection.
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % (fork[0] if fork else 0))

    def _fork(self, request: dict[str, Any], standard: list[int]) -> tuple[int, int]:
        if (pid := os.fork()) == 0:
            # Its own end of these would keep them open for those who wait for the end of others.
            self._listener.close()
            for connection in self._open:
                connection.close()
            status = child(request, standard)
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        return pid, os.pidfd_open(pid)

    def ended(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        del self._open[connection]
        connection.close()

    def left(self, connection: socket.socket) -> None:
        """The client has gone, and its fork goes with it."""
        fork = self._open[connection]
        if fork is None:
            del self._open[connection]
            connection.close()
        else:
            os.kill(fork[0], signal.SIGKILL)
            self.ended(connection, *fork)

    def serve(self) -> None:
        while True:
            forks = {fork[1]: c for c, fork in self._open.items() if fork}
            wait = None if self._open else 60  # For the first one.
            all_of_them: list[Any] = [self._listener, *self._open, *forks]
            ready, _, _ = select.select(all_of_them, [], [], wait)
            for one in ready:
                if one is self._listener:
                    self.accept()
                elif isinstance(one, int):
                    if fork := self._open.get(forks[one]):
                        self.ended(forks[one], *fork)
                elif one in self._open:
                    self.left(one)
            if not self._open:
                return


if __name__ == "__main__":
    for name in (*LIBRARIES, *MODULES):
        importlib.import_module(name)
    vars(os)["fsync"] = os.fstat  # As in the tests' own processes (conftest.py).
    # What is imported is not looked through, and so not copied, in each fork.
    gc.collect()
    gc.freeze()
    server = Server(sys.argv[1])
    print("ready", flush=True)
    server.serve()
