"""A worker on a rented machine that has the image and nothing else: SkyPilot's, Hugging Face's.

The config comes in the script, the store is at a URL, models come from the Hub. Retries are
made there, by the same rules as everywhere else: a service's own count of restarts would repeat
what can't succeed.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from batchsweep.config import Config, LocalTask, local_path
from batchsweep.errors import NoStore, UsageError
from batchsweep.jobs.chosen import elsewhere_indexes, sealed_indexes
from batchsweep.jobs.exit_rules import RETRIES, Action, retry_delay, shell_cases
from batchsweep.plan.frozen import load_plan
from batchsweep.store import open_store

#: Passed on from the caller's environment, where set: the store's place, and what only the owner
#: of Hub and store may read.
OPEN = ("AWS_REGION", "AWS_ENDPOINT_URL")
SECRETS = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

_ACTIONS: dict[Action, str] = {
    "fail job": "exit $code",
    "fail index": "exit $code",
    "go on": "exit $code",
    "retry": "retry",
}

# SkyPilot enters the image by ssh, where the image's own PATH is not set.
_SCRIPT = """\
PATH=/opt/batchsweep/bin:$PATH
printf '%s' {text} > {config}
worker=
told=
stop() {{
  told=1
  [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null
}}
trap stop TERM INT
retries=0
retry() {{
  retries=$((retries + 1))
  [ -z "$told" ] || exit $code
  case $retries in
{delays}
    *) exit $code ;;
  esac
}}
while :; do
  {extract} "$@" &
  worker=$!
  [ -z "$told" ] || stop
  wait "$worker"
  code=$?
  # A signal ends "wait" early; the exit code comes from the one that outlives the worker.
  while kill -0 "$worker" 2>/dev/null; do wait "$worker"; code=$?; done
  worker=
  case $code in
    0) exit 0 ;;
{cases}
    *) retry ;;
  esac
  [ -z "$told" ] || exit 143
done
"""


@dataclass(frozen=True)
class Elsewhere:
    """What a rented machine is given for each index of a sweep."""

    config_file: Path
    config: Config
    indexes: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that anybody may read."""
        return {name: os.environ[name] for name in OPEN if os.environ.get(name)}

    @property
    def secrets(self) -> list[str]:
        """Names of the variables that are set here and are given there as secrets."""
        return [name for name in SECRETS if os.environ.get(name)]

    def script(self, *more: str) -> str:
        """A shell script that extracts the index that its arguments or its environment name."""
        delays = [f"    {n}) sleep {retry_delay(n):g} & wait $! ;;" for n in range(1, RETRIES + 1)]
        config = f'"${{TMPDIR:-/tmp}}"/{shlex.quote(self.config_file.name)}'
        words = ["batchsweep extract", f"--config {config}", "--log-format json", *more]
        return _SCRIPT.format(
            text=shlex.quote(self.config_file.read_text(encoding="utf-8")),
            config=config,
            delays="\n".join(delays),
            extract=" ".join(words),
            cases=shell_cases(_ACTIONS, indent="    "),
        )


def elsewhere(config_file: Path, config: Config, indexes: str | None, *, submit: bool) -> Elsewhere:
    """What to run elsewhere; to be submitted, it is what the store lacks, or what was asked for.

    Raises:
        UsageError: the config names what is only on this machine, or nothing is prepared.
    """
    if local_path(config.store_url) is not None:
        raise UsageError(
            f"store.path '{config.store_url}' is a folder of this machine: rented ones need a URL "
            "such as s3://bucket/store.zarr"
        )
    here = [m.name for m in config.models if Path(m.name).exists()]
    here += [str(t.path) for t in config.tasks if isinstance(t, LocalTask)]
    if here:
        raise UsageError(
            f"{here[0]} is on this machine only: rented ones get models and tasks from the Hub"
        )
    chosen, _ = elsewhere_indexes(indexes, config)
    if submit:
        try:
            load_plan(open_store(config.store_url))
        except NoStore:
            raise UsageError(
                f"nothing is prepared at {config.store_url}; run 'batchsweep prepare --config "
                f"{config_file}' first"
            ) from None
        sealed = sealed_indexes(config) if indexes is None else frozenset()
        chosen = tuple(i for i in chosen if i not in sealed)
    return Elsewhere(config_file, config, chosen)
