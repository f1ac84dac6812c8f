"""Slurm scripts with the same rules per exit code as everywhere else."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from batchsweep.errors import UsageError, shortened
from batchsweep.jobs.exit_rules import RETRIES, Action, shell_cases
from batchsweep.jobs.index import format_indexes
from batchsweep.table import visible

#: Seconds before the time limit at which Slurm warns the script, which stops the worker.
GRACE = 120

_ACTIONS: dict[Action, str] = {
    "fail job": 'scancel "$SLURM_ARRAY_JOB_ID"',
    "fail index": ":",
    "go on": "requeue",
    "retry": "retry",
}

_ARRAY = """\
#!/bin/bash
# The extract job of {config}. In the order of the work:
#   prepare=$(sbatch --parsable --job-name={sweep}-prepare --wrap {prepare})
#   extract=$(sbatch --parsable --dependency=afterok:$prepare THIS_FILE)
#   sbatch --dependency=afterany:$extract --job-name={sweep}-bandit --wrap {bandit}
# Options of sbatch's command line (--partition, --time, --mem ...) go before those below.
"""

_WAVE = """\
#!/bin/bash
# Wave {wave} of the search of {config}: a checkpoint a task of the array.
"""

_SEARCH = """\
#!/bin/bash
# The search of {config}, on a CPU. When it needs pairs it submits an array that extracts them, and
# itself again for when that has ended; so nothing waits, and no GPU is held while it thinks.
#   sbatch{more} THIS_FILE
# Submitted again after it was cut short, it goes on from what the store has.
"""

_OPTIONS = """\
#SBATCH --job-name={name}
{array}{gpu}#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{grace}
#SBATCH --output={log}.log

# Retries so far, beside the log: preemption and time limits are not counted.
retries={retries}.retries

requeue() {{
  scontrol requeue "{job}"
}}

retry() {{
  local n
  n=$(($(cat "$retries" 2>/dev/null || echo 0) + 1))
  if [ "$n" -le {max_retries} ]; then
    echo "$n" > "$retries"
    requeue
  fi
}}

# The time limit is near (USR1), or Slurm preempts (TERM): seal the open block and leave.
worker=
told=
stop() {{
  told=1
  [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null
}}
trap stop USR1 TERM
{command} &
worker=$!
[ -z "$told" ] || stop
# A trapped signal ends "wait" early; the worker's exit code comes from the one that outlives it.
wait "$worker"
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
wait "$worker"
code=$?

case $code in
  0) rm -f "$retries" ;;
{cases}
  *) retry ;;
esac
exit $code
"""


def array_script(
    *,
    sweep: str,
    config_path: str,
    indexes: Sequence[int],
    parallel: int,
    gpu: bool,
    wave: int | None = None,
) -> str:
    """The script for ``sbatch``.

    Args:
        sweep: the sweep's name, for jobs and logs.
        config_path: as the nodes see it.
        indexes: of the plan; or, of a wave, the positions of its checkpoints.
        parallel: tasks of the array at once.
        gpu: ask for one GPU a task.
        wave: extract this wave of a search.
    """
    name = f"{sweep}-extract" if wave is None else f"{sweep}-wave-{wave}"
    head = _ARRAY.format(
        config=visible(config_path),
        sweep=sweep,
        prepare=visible(shlex.quote(_command("prepare", config_path))),
        bandit=visible(shlex.quote(_command("bandit", config_path))),
    )
    more = () if wave is None else ("--wave", str(wave))
    return _script(
        head if wave is None else _WAVE.format(config=visible(config_path), wave=wave),
        name=name,
        each="SLURM_ARRAY_TASK_ID",
        command=_command("extract", config_path, "--grace", str(GRACE), *more),
        array=f"#SBATCH --array={format_indexes(indexes)}%{min(parallel, len(indexes))}\n",
        gpu=gpu,
    )


def search_script(
    *, sweep: str, config_path: str, options: Sequence[str], tried: int | None = None
) -> str:
    """The script of a search that submits its waves and itself.

    Args:
        sweep, config_path: as for :func:`array_script`.
        options: of ``launch slurm``, for the waves.
        tried: the wave that was extracted as far as it goes.
    """
    more = () if tried is None else ("--tried", str(tried))
    words = ["batchsweep", "launch", "slurm", "--config", config_path, "--search", "--step"]
    return _script(
        _SEARCH.format(config=visible(config_path), more=" --partition=..."),
        name=f"{sweep}-search",
        each=None,
        command=shlex.join([*words, *options, *more]),
        array="",
        gpu=False,
    )


def sbatch(script: str, *options: str) -> str:
    """Submit a script; the job's number.

    Raises:
        UsageError: there is no Slurm here, or it refused the script.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *options], input=script, capture_output=True, text=True
        )
    except OSError as error:
        raise UsageError(
            f"no sbatch on the PATH that runs ({error.strerror}); the search's script is for a "
            "machine of the Slurm cluster"
        ) from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise UsageError(f"sbatch refused {' '.join(options) or 'the script'}: {said}")
    number = done.stdout.strip().split(";")[0]
    if not number.isdigit():
        raise UsageError(f"sbatch --parsable named no job, but said {shortened(number)!r}")
    return number


def _command(name: str, config_path: str, *more: str) -> str:
    return shlex.join(["batchsweep", name, "--config", config_path, *more])


def _script(head: str, *, name: str, each: str | None, command: str, array: str, gpu: bool) -> str:
    """``each``: the variable that tells the tasks of an array apart."""
    actions = _ACTIONS if each else {**_ACTIONS, "fail job": ":"}
    return head + _OPTIONS.format(
        name=name,
        command=command,
        array=array,
        gpu="#SBATCH --gpus=1\n" if gpu else "",
        grace=GRACE,
        log=f"{name}-%a" if each else name,
        retries=f"{name}-${each}" if each else name,
        job=f"${{SLURM_ARRAY_JOB_ID}}_${each}" if each else "$SLURM_JOB_ID",
        max_retries=RETRIES,
        cases=shell_cases(actions, indent="  "),
    )
