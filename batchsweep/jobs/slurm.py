"""A Slurm array script with the same rules per exit code as everywhere else."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from batchsweep.jobs.exit_rules import RETRIES, RULES, Action
from batchsweep.jobs.index import format_indexes

#: Seconds before the time limit at which Slurm warns the script, which stops the worker.
GRACE = 120

_ACTIONS: dict[Action, str] = {
    "fail job": 'scancel "$SLURM_ARRAY_JOB_ID"',
    "fail index": ":",
    "go on": "requeue",
    "retry": "retry",
}

_SCRIPT = """\
#!/bin/bash
# The extract job of {config}. In the order of the work:
#   prepare=$(sbatch --parsable --job-name={sweep}-prepare --wrap {prepare})
#   extract=$(sbatch --parsable --dependency=afterok:$prepare THIS_FILE)
#   sbatch --dependency=afterany:$extract --job-name={sweep}-bandit --wrap {bandit}
# Options of sbatch's command line (--partition, --time, --mem ...) go before those below.
#SBATCH --job-name={sweep}-extract
#SBATCH --array={indexes}%{parallel}
{gpu}#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{grace}
#SBATCH --output={sweep}-extract-%a.log

# Retries so far, beside the log: preemption and time limits are not counted.
retries={sweep}-extract-$SLURM_ARRAY_TASK_ID.retries

requeue() {{
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
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
{extract} &
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
    *, sweep: str, config_path: str, indexes: Sequence[int], parallel: int, gpu: bool
) -> str:
    """The script for ``sbatch``.

    Args:
        sweep: the sweep's name, for jobs and logs.
        config_path: as the nodes see it.
        indexes: of the plan.
        parallel: tasks of the array at once.
        gpu: ask for one GPU a task.
    """

    def command(name: str, *more: str) -> str:
        return shlex.join(["batchsweep", name, "--config", config_path, *more])

    cases = "\n".join(
        f"  {'|'.join(map(str, sorted(rule.exit_codes)))}) {_ACTIONS[rule.action]} ;;  # {rule.why}"
        for rule in RULES
    )
    return _SCRIPT.format(
        config=config_path,
        sweep=sweep,
        prepare=shlex.quote(command("prepare")),
        bandit=shlex.quote(command("bandit")),
        extract=command("extract", "--grace", str(GRACE)),
        indexes=format_indexes(indexes),
        parallel=min(parallel, len(indexes)),
        gpu="#SBATCH --gpus=1\n" if gpu else "",
        grace=GRACE,
        max_retries=RETRIES,
        cases=cases,
    )
