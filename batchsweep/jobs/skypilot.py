"""The extract job as SkyPilot's managed jobs, one a checkpoint, each on a machine of its own.

https://docs.skypilot.co/en/latest/examples/managed-jobs.html
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from batchsweep.config import load
from batchsweep.errors import Terminated, TryAgain, UsageError
from batchsweep.jobs.elsewhere import Elsewhere, elsewhere
from batchsweep.jobs.index import format_indexes
from batchsweep.jobs.kubernetes import sweep_name, to_yaml


def task(sweep: Elsewhere, *, image: str, accelerators: str, spot: bool) -> dict[str, Any]:
    """A task of SkyPilot: what it calls the n-th job's rank is the n-th of the indexes.

    Args:
        image: with root as its user, which SkyPilot needs.
        accelerators: such as ``A100:1``.
        spot: on machines that may be taken away.
    """
    return {
        "name": f"{sweep_name(sweep.config.name)}-extract",
        "resources": {
            "accelerators": accelerators,
            "image_id": f"docker:{image}",
            "use_spot": spot,
            # A machine that is lost is replaced, and so is one that was told to stop; what the
            # worker's other exit codes mean is settled by the script.
            "job_recovery": {
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": [Terminated.exit_code],
            },
        },
        **({"envs": sweep.environment} if sweep.environment else {}),
        **({"secrets": dict.fromkeys(sweep.secrets)} if sweep.secrets else {}),
        "run": sweep.script(f"--indexes {format_indexes(sweep.indexes)}"),
    }


def _command(sweep: Elsewhere, file: str) -> list[str]:
    secrets = [word for name in sweep.secrets for word in ("--secret", name)]
    count = ["--num-jobs", str(len(sweep.indexes))]
    return ["sky", "jobs", "launch", "--yes", "--detach-run", *count, *secrets, file]


def skypilot(
    config_file: Path,
    *,
    indexes: str | None,
    image: str,
    accelerators: str,
    spot: bool,
    apply: bool,
) -> str:
    """The task file, or what ``sky jobs launch`` says of it.

    Raises:
        UsageError: the sweep can't run there, or there is no ``sky``.
        TryAgain: SkyPilot didn't take it.
    """
    sweep = elsewhere(config_file, load(config_file), indexes, submit=apply)
    if not sweep.indexes:
        return "all indexes are sealed"
    text = to_yaml([task(sweep, image=image, accelerators=accelerators, spot=spot)])
    if not apply:
        return f"# {shlex.join(_command(sweep, 'THIS_FILE'))}\n{text}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "extract.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run(_command(sweep, str(path)), capture_output=True, text=True)
        except FileNotFoundError:
            raise UsageError(
                "no sky on the PATH; install SkyPilot, or print the task without --apply"
            ) from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise TryAgain(f"sky jobs launch: {said[-1] if said else f'exit {done.returncode}'}")
    return f"submitted {len(sweep.indexes)} indexes: {format_indexes(sweep.indexes)}"
