"""The command line: parse, dispatch, turn an exception into an exit code.

A command is a file of this folder and a line of ``COMMANDS``. Nothing heavy is imported to print
help: what a command needs, it imports when it runs.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from batchsweep import __version__
from batchsweep.cli import (
    bandit,
    checkpoints,
    compare,
    convert,
    demo,
    export,
    extract,
    launch,
    plan,
    prepare,
    replay,
    report,
    run,
    status,
    suites,
    verify,
)
from batchsweep.cli.command import add, group
from batchsweep.errors import BatchsweepError, Terminated, UsageError
from batchsweep.log import debugging, log_format, set_up_logging
from batchsweep.table import visible

logger = logging.getLogger(__name__)

EXIT_CODES = """\
exit codes:
  0    done (a checkpoint that is unavailable is skipped with a warning: also 0)
  2    wrong usage or config            3    this index can never succeed
  4    store mismatch or corruption     75   try again (network, busy index)
  143  stopped by SIGTERM, open block sealed; the same command resumes"""

DESCRIPTION = """\
Which (model, training checkpoint, layer) gives the best text embeddings?

One forward pass per text and checkpoint writes the pooled states of all
layers to a store (extract: GPU, an indexed job); a bandit then searches the
store under a budget (bandit: CPU).

  batchsweep demo                                  all of it in minutes, offline
  batchsweep plan    --config configs/quick.yaml   what a sweep costs, beforehand
  batchsweep run     --config configs/quick.yaml   all of what follows, and only what is needed

  batchsweep prepare --config configs/quick.yaml   corpus and plan into the store
  batchsweep extract --config configs/quick.yaml --all
  batchsweep bandit  --config configs/quick.yaml   the best arm
  batchsweep report  --config configs/quick.yaml   pictures and tables of it"""

#: In the order of the help page.
COMMANDS = (
    suites.command,
    checkpoints.command,
    plan.command,
    run.command,
    prepare.command,
    extract.command,
    status.command,
    bandit.command,
    report.command,
    compare.command,
    export.command,
    verify.command,
    convert.command,
    replay.command,
    demo.command,
)

#: What says that a folder of the user's (``--out``, a cache) can't be used; the store has its own
#: errors.
UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


def command_line() -> TyperGroup:
    """The whole command line, ready to parse arguments."""
    app = group(DESCRIPTION, epilog=EXIT_CODES)
    app.callback()(_batchsweep)
    for function in COMMANDS:
        add(app, function)
    app.add_typer(launch.app)  # A command with commands of its own.
    tree = get_command(app)
    assert isinstance(tree, TyperGroup)
    return tree


def _show_version(asked: bool) -> None:
    if asked:
        print(f"batchsweep {__version__}")
        raise typer.Exit


def _batchsweep(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """What may stand before a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the value is the process's exit code (see ``errors``)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _set_up()
    tree = command_line()
    name = " ".join(["batchsweep", *(word for word in arguments[:1] if word in tree.commands)])
    try:
        code = _run(tree, arguments)
        # Here and not when Python ends, where a reader that has left would be an error.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except typer.TyperException as error:  # Of the command line itself.
        message = " ".join(error.format_message().split()).replace("Value error, ", "")
        _say(name, f"{message} ('{name} --help' says more)")
        return UsageError.exit_code
    except SystemExit as stop:
        if stop.code == Terminated.exit_code:
            _say(name, "stopped by SIGTERM; the same command goes on from here")
        raise
    except KeyboardInterrupt:
        _say(name, "interrupted; run it again to go on")
        return 130
    except Exception as error:
        code, said = _failed(error)
        if said is not None:
            if debugging():
                raise
            _say(name, said)
        return code


def _set_up() -> None:
    """Streams, log, environment and signals, for whichever command."""
    _open_what_is_closed()
    set_up_logging()
    # Quiet libraries: their bars and advice are not this tool's output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # A name that the output's encoding lacks is shown by its escapes instead of being an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # As process 1 of a container, SIGTERM is ignored unless someone handles it. What is written is
    # safe at any moment; extract takes the signal itself, to seal its open block.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def _failed(error: Exception) -> tuple[int, str | None]:
    """The exit code that an error means, and what is said of it, if anything is."""
    if isinstance(error, BatchsweepError):
        return error.exit_code, str(error)
    if isinstance(error, BrokenPipeError) and _reader_left():
        # Of our output (head, less): not an error of ours, and nothing more is to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, None
    if unusable := _unusable(error):
        return UsageError.exit_code, unusable
    bug = f"a bug: {type(error).__name__}: {error}"
    return 1, f"{bug}; please report it with what --debug prints"


def _unusable(error: Exception) -> str:
    """What to say of a folder of the user's that can't be used; empty for any other error."""
    if not isinstance(error, OSError):
        return ""
    place = str(error.filename or "output")
    # Libraries make caches there; /proc, say, lets nobody make a folder.
    at_home = place.startswith(str(Path.home()))
    if error.errno not in UNUSABLE and not (at_home and error.errno == errno.ENOENT):
        return ""
    remedy = "set HOME to" if at_home else "name"
    return f"{place}: {error.strerror}; {remedy} a place that can be written"


def _open_what_is_closed() -> None:
    """Give each standard stream that is closed (``>&-``) the null device.

    The next file that is opened, a store's, would have its number, and get what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number: this one.
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _run(tree: TyperGroup, arguments: list[str]) -> int:
    """The exit code of a command line that is understood; 0 for its help page."""
    try:
        with tree.make_context("batchsweep", arguments) as context:
            tree.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(Terminated.exit_code)


def _say(name: str, message: str) -> None:
    """The one line that a failed command ends with, in the form that its log has."""
    if log_format() == "json":
        logger.error("%s: %s", name, message)
        return
    with suppress(BrokenPipeError):  # Nobody reads it any more; the exit code still says it.
        print(f"{name}: {visible(message)}", file=sys.stderr)


def _reader_left() -> bool:
    """Whether it is standard output's pipe that broke, and no other one (a worker's, a socket)."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, io.UnsupportedOperation):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
