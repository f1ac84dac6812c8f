"""The extract job as Hugging Face Jobs, one a checkpoint.

https://huggingface.co/docs/huggingface_hub/guides/jobs
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from batchsweep.config import load
from batchsweep.errors import TryAgain, UsageError
from batchsweep.jobs.elsewhere import Elsewhere, elsewhere
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubernetes import sweep_name


def command(sweep: Elsewhere, index: int | str) -> list[str]:
    """What a job's container runs."""
    return ["sh", "-c", sweep.script(), "extract", "--index", str(index)]


def hf_jobs(
    config_file: Path,
    *,
    indexes: str | None,
    image: str,
    flavor: str,
    timeout: str,
    apply: bool,
) -> str:
    """A shell script that submits the jobs, or with ``apply`` what was submitted.

    Raises:
        UsageError: the sweep can't run there, or the Hub refuses it.
        TryAgain: the Hub isn't reached.
    """
    sweep = elsewhere(config_file, load(config_file), indexes, submit=apply)
    if not sweep.indexes:
        return "all indexes are sealed"
    name = f"{sweep_name(sweep.config.name)}-extract"
    if not apply:
        return _script(sweep, name, image=image, flavor=flavor, timeout=timeout)
    lines = _submitted(sweep, name, image=image, flavor=flavor, timeout=timeout)
    return "\n".join(lines)


def _script(sweep: Elsewhere, name: str, *, image: str, flavor: str, timeout: str) -> str:
    options = ["--detach", "--flavor", flavor, "--timeout", timeout]
    for key, value in sweep.environment.items():
        options += ["--env", f"{key}={value}"]
    for key in sweep.secrets:
        options += ["--secrets", key]
    *words, _ = command(sweep, "$index")
    listed = " ".join(map(str, sweep.indexes))
    return (
        f"for index in {listed}; do\n"
        f'  hf jobs run {shlex.join(options)} --name {name}-"$index" -- {shlex.quote(image)} '
        f'{shlex.join(words)} "$index"\ndone'
    )


def _submitted(sweep: Elsewhere, name: str, *, image: str, flavor: str, timeout: str) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip

    api = HfApi()
    lines: list[str] = []
    try:
        space = api.whoami()["name"]
        for index in sweep.indexes:
            job = api.run_job(
                image=image,
                command=command(sweep, index),
                env=sweep.environment,
                secrets={key: os.environ[key] for key in sweep.secrets},
                flavor=flavor,
                timeout=timeout,
                name=f"{name}-{index}",
                namespace=space,
            )
            lines.append(f"index {index}: {job.url}")
    except LocalTokenNotFoundError:
        raise UsageError("the Hub wants a token: set HF_TOKEN, or run 'hf auth login'") from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        rest = format_indexes(sweep.indexes[len(lines) :])
        said = " ".join(str(error).split())
        text = f"{said}; submitted: {len(lines)}, then '--indexes {rest} --apply'"
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        raise (UsageError if refused else TryAgain)(text) from None
    return lines
