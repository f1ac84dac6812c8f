"""Stands in for the ``python`` of ``python -m batchsweep``: the command is a fork of the server.

    python -I -S tests/forked_python.py NAME PYTHON -m batchsweep ARGUMENT...

It takes signals and ends as the command does; killed, it takes the command along. PYTHON is what
the command starts others with: this again. Any other use of python is left to python.
"""

import contextlib
import json
import os
import signal
import socket
import sys

SETTINGS = "FORKED_PYTHON_SETTINGS"


def main(server: str, python: str, arguments: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{server}")
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        # Those of the fork that starts this.
        "settings": {"sys.executable": python, **json.loads(os.environ.get(SETTINGS, "{}"))},
    }
    # Taken before there is a command that they are for.
    waiting = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [1, 2])
    answers = connection.makefile()
    pid = int(answers.readline())

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in waiting:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, waiting)
    status = int(answers.readline())
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler.
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    server, python, *given = sys.argv[1:]
    if given[:2] != ["-m", "batchsweep"]:
        os.execv(sys.executable, [sys.executable, *given])
    sys.exit(main(server, python, given[2:]))
