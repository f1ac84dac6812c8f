"""Runs batchsweep's commands in forks of a process that has imported everything: no start-up time.

Says "ready", then reads one JSON list of arguments a line, and answers with the fork's process id,
then with its exit status (minus the signal that killed it). A fork's output goes to the file that
is named first.
"""

import importlib
import json
import os
import sys
import traceback

from batchsweep.cli.main import main

# Everything that commands import when they run. Nothing is computed here, so that no library has
# started threads yet: a fork would lack them.
MODULES = (
    "batchsweep.extract.extract",
    "batchsweep.plan.prepare",
    "batchsweep.bandit.search",
    "batchsweep.score.scorer",
)
LIBRARIES = ("torch", "transformers", "mteb", "datasets", "sklearn.cluster", "h5py", "zarr")


def child(output: str, arguments: list[str]) -> int:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    try:
        return main(arguments)
    except BaseException:  # noqa: BLE001 - a fork must never go on in the server's loop.
        traceback.print_exc()
        return 99


def serve() -> None:
    for name in (*LIBRARIES, *MODULES):
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = child(output, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
