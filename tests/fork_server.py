"""Runs batchsweep's commands in forks of a process that has imported everything: no start-up time.

Says "ready", then reads requests, one JSON object a line: ``id``, ``arguments``, the file that the
``output`` goes to, and perhaps a whole ``environment``, a ``folder`` to work in and ``settings``
(module attributes). Answers with JSON lines: a request's ``id`` with the fork's ``pid``, and later
with its ``exit`` status (minus the signal that killed it).
"""

import importlib
import json
import os
import select
import sys
import traceback
from typing import Any

from batchsweep.cli.main import main

# Everything that commands import when they run. Nothing is computed here, so that no library has
# started threads yet: a fork would lack them.
MODULES = (
    "batchsweep.extract.extract",
    "batchsweep.plan.prepare",
    "batchsweep.bandit.search",
    "batchsweep.score.scorer",
    "batchsweep.forward.forward",
    "batchsweep.forward.metrics",
    "batchsweep.jobs.cluster_launch",
)
LIBRARIES = ("torch", "transformers", "mteb", "datasets", "sklearn.cluster", "h5py", "zarr")


def child(request: dict[str, Any]) -> int:
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    try:
        if request.get("folder") is not None:
            os.chdir(request["folder"])
        if request.get("environment") is not None:
            os.environ.clear()
            os.environ.update(request["environment"])
        for name, value in request.get("settings", {}).items():
            module, _, attribute = name.rpartition(".")
            setattr(importlib.import_module(module), attribute, value)
        return main(request["arguments"])
    except BaseException:  # noqa: BLE001 - a fork must never go on in the server's loop.
        traceback.print_exc()
        return 99


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def start(line: str) -> tuple[int, int]:
    """A fork's process and its request's id."""
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = child(request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    say(id=request["id"], pid=pid)
    return pid, request["id"]


def serve() -> None:
    for name in (*LIBRARIES, *MODULES):
        importlib.import_module(name)
    print("ready", flush=True)
    running: dict[int, int] = {}
    unread, open_ = b"", True
    while open_ or running:
        ready, _, _ = select.select([0] if open_ else [], [], [], 0.01 if running else None)
        if ready:
            chunk = os.read(0, 1 << 16)
            open_ = bool(chunk)
            *lines, unread = (unread + chunk).split(b"\n")
            running.update(start(line.decode()) for line in lines)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                say(id=running.pop(pid), exit=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
