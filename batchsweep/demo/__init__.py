"""The embedded default: the whole job on a miniature suite that is trained on the spot.

``run`` makes what a user brings (models, tasks, a config), then runs the very commands that a user
runs, as processes of their own. Offline; a second run reuses all that is there.

What is in the folder::

    demo.json     which version of the demo made it
    demo.yaml     the config
    suite/        the models, a folder for each revision    (batchsweep.demo.suite)
    tasks/        six tasks as JSONL                        (batchsweep.demo.tasks)
    store.zarr/   what the commands fill
    logs/         what each index said, wave after wave
    report/       the HTML page, CSV and Parquet
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from batchsweep.errors import BatchsweepError, TryAgain, UsageError
from batchsweep.progress import duration
from batchsweep.store.places.local import take_lock

logger = logging.getLogger(__name__)

__all__ = ["config_text", "make", "run"]

#: What the demo makes in its folder, and may therefore replace.
OWN = ("demo.yaml", "suite", "tasks", "store.zarr", "logs", "report")
#: How names begin of what is not whole yet.
PARTIAL = ".partial-"
#: Revisions that the demo sweeps, of the seventeen that the suite has.
REVISIONS = ("step0", "step32", "step80", "step160", "step240", "step320", "step480", "main")
#: Indexes at a time.
AT_A_TIME = 2
#: How often a command that said "try again" is run again, and after how many seconds.
TRIES, PAUSE = 30, 1.0


def run(out: Path) -> str:
    """Run the demo in the folder ``out``; give the closing summary, several lines.

    Raises:
        UsageError: ``out`` holds something else than a demo.
        TryAgain: another demo runs there.
        BatchsweepError: a command failed; its exit code is passed on.
    """
    start = time.monotonic()
    with own_folder(out):
        _make_all(out)
        logger.info("$ cd %s", shlex.quote(str(out)))
        run_command(out, "plan")
        # The whole job: prepare, waves of indexes as processes of their own, search, report.
        run_command(out, "run", "--parallel", str(AT_A_TIME))
        run_command(out, "status")
        from batchsweep.demo.summary import summary

        return summary(out, seconds=time.monotonic() - start)


def make(out: Path) -> str:
    """Make suite, tasks and config, and run nothing: what a cluster needs before ``prepare``.

    Raises:
        UsageError, TryAgain: as :func:`run`.
    """
    with own_folder(out):
        _make_all(out)
    return f"{out}/: suite, tasks and demo.yaml"


def _make_all(out: Path) -> None:
    _make("suite", out, make_suite)
    _make("tasks", out, _make_tasks)
    _write_whole(out / "demo.yaml", config_text())


def config_text() -> str:
    """The demo's config. Its paths are relative to the demo's folder, where its commands run, so
    that the folder may be moved; ``configs/demo.yaml`` is a copy of this text."""
    from batchsweep.demo.suite import SIZES
    from batchsweep.demo.tasks import TASKS, task_path

    models = "\n".join(f"  - suite/{name}" for name in SIZES)
    tasks = "\n".join(
        f"  - {{name: {name}, type: {kind}, path: {task_path(Path('tasks'), name)}}}"
        for name, (kind, _) in TASKS.items()
    )
    return f"""\
# What `batchsweep demo` runs, from inside its folder, which it fills with the suite and the tasks:
#   cd runs/demo && batchsweep status --config demo.yaml
models:                       # folders of revisions; on the Hub they would be branches
{models}
revisions: [{", ".join(REVISIONS)}]

tasks:                        # of our own, as files
{tasks}

store:
  path: store.zarr
  block_texts: 32             # small, as the tasks are: one can be extracted without the others
bandit:
  budget: 20                  # whole-arm evaluations: 20 x 6 pulls of the 80 x 6
"""


# The folder


@contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """``out`` as a demo's folder of this version, for this process alone."""
    marker = out / "demo.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give --out a folder")
    strangers = sorted(p.name for p in out.iterdir() if p.name in OWN) if out.is_dir() else []
    if strangers and not marker.exists():
        raise UsageError(
            f"{out} has {', '.join(strangers)} but no demo.json, so the demo did not make it; "
            "give --out another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            take_lock(lock, str(out))
        except BlockingIOError:
            raise TryAgain(f"another demo runs in {out}; wait for it, or use --out") from None
        digest = _digest()
        made_by = json.loads(marker.read_text()).get("digest") if marker.exists() else None
        if made_by != digest:
            if made_by is not None:
                logger.info("%s is of another version of the demo: making it anew", out)
            for name in OWN:
                _remove(out / name)
            _write_whole(marker, json.dumps({"digest": digest}) + "\n")
        for leftover in out.glob(f"{PARTIAL}*"):
            _remove(leftover)
        yield


def _digest() -> str:
    """sha256 (hex) of all that decides the suite and the tasks: this package's own files."""
    digest = hashlib.sha256()
    for name in ("language.py", "lexicon.yaml", "suite.py", "tasks.py"):
        digest.update((files(__package__) / name).read_bytes())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        # Renamed first: a removal that is cut short must not leave half a store behind.
        if not path.name.startswith(PARTIAL):
            path = path.rename(Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(PARTIAL + path.name)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _make(name: str, out: Path, make: Callable[[Path], None]) -> None:
    """``out/name``, made whole or not at all."""
    if (out / name).exists():
        logger.info("%s is there", out / name)
        return
    temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out))
    temporary.chmod(0o755)
    make(temporary)
    temporary.rename(out / name)


def make_suite(folder: Path) -> None:
    """Train the demo's models into a folder, saying how long that takes."""
    from batchsweep.demo import suite

    names = " and ".join(suite.SIZES)
    logger.info("training %s for %d steps (about a minute)", names, suite.Training().steps)
    start = time.monotonic()
    suite.build(folder)
    logger.info("trained in %s", duration(time.monotonic() - start))


def _make_tasks(folder: Path) -> None:
    from batchsweep.demo import tasks

    tasks.write(folder)


# The commands


def run_command(out: Path, *arguments: str) -> None:
    """Run a command of a user's in ``out``, again for as long as it says "try again".

    Raises:
        BatchsweepError: it has failed, with its exit code.
    """
    options = [*arguments, "--config", "demo.yaml"]
    shown = f"batchsweep {shlex.join(options)}"
    logger.info("$ %s", shown)
    code = TryAgain.exit_code
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        code = _exit_code(out, options)
        if code != TryAgain.exit_code:
            break
    if code:
        error = BatchsweepError(
            f"'{shown}' ended with exit code {code}; what it said is above. Run the demo again to "
            "go on from there"
        )
        error.exit_code = code if code > 0 else 128 - code
        raise error


def _exit_code(out: Path, arguments: Sequence[str]) -> int:
    # This very package, installed or not, although the folder is another.
    here = str(Path(__file__).parents[2])
    python_path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "batchsweep", *arguments],
        cwd=out,
        # One thread each: two processes of two threads on two cores are slower than of one.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path},
        # Ctrl-C is for the demo, which stops its command once: a second signal means "at once".
        start_new_session=True,
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
