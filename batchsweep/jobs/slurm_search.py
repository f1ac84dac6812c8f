"""``launch slurm --search``: a search whose waves are job arrays, and that is a job itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.waves import Wave
from batchsweep.config import load
from batchsweep.errors import UsageError
from batchsweep.jobs.kubernetes import sweep_name
from batchsweep.jobs.launch import at_once
from batchsweep.jobs.run_sweep import RemoteWaves, check_policy, run_sweep
from batchsweep.jobs.slurm import array_script, sbatch, search_script
from batchsweep.jobs.spending import CostLimit
from batchsweep.plan.plan import Plan
from batchsweep.plan.speed import CPU, DEFAULT_GPU
from batchsweep.store import Store


def _words(name: str, options: str) -> list[str]:
    """Options of ``sbatch`` as a shell reads them."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"--{name} {options}: {str(error).lower()}; close every quote") from None


class Submitted(Exception):
    """A wave and the search after it are Slurm's now: this part of the search is over."""


@dataclass(frozen=True)
class SlurmSearch:
    """A search's steps, each from one wave to the next.

    Attributes:
        config_file: as the nodes see it.
        parallel: tasks of an array at once, and so checkpoints a wave.
        gpu: ask for one GPU a task.
        extract_options, search_options: of ``sbatch``, for the waves and for the search itself.
        limit: no wave is asked for that would pass it.
    """

    config_file: Path
    parallel: int = 8
    gpu: bool = True
    extract_options: str = ""
    search_options: str = ""
    limit: CostLimit | None = None

    def script(self, tried: int | None = None) -> str:
        """What is to be submitted.

        Args:
            tried: the wave that was extracted as far as it goes.
        """
        check_policy(load(self.config_file))
        limit = self.limit
        given = {
            "extract-options": self.extract_options,
            "search-options": self.search_options,
        }
        for name, value in given.items():
            _words(name, value)
        if limit is not None:
            given |= {"max-cost": str(limit.most), "gpu-price": str(limit.price)}
        options = [
            *("--parallel", str(at_once(self.parallel)), "--gpu", "gpu" if self.gpu else "none"),
            *(f"--{name}={value}" for name, value in given.items() if value),
        ]
        return search_script(
            sweep=self._sweep, config_path=str(self.config_file), options=options, tried=tried
        )

    def step(self, tried: int | None) -> tuple[Store, Plan, str, Outcome]:
        """Search until it is over.

        Args:
            tried: the wave that was extracted as far as it goes.

        Raises:
            Submitted: it needs pairs; a job of its own goes on when they are there.
            UsageError: Slurm refused a job.
        """

        def tried_already(wave: Wave) -> bool:
            return wave.document == tried

        def submit(wave: Wave, left: Mapping[int, tuple[str, ...]]) -> None:
            assert wave.document is not None
            if tried_already(wave):
                return  # What of it failed is missing, and the search goes on with the rest.
            script = array_script(
                sweep=self._sweep,
                config_path=str(self.config_file),
                indexes=range(len(wave.visits)),
                parallel=self.parallel,
                gpu=self.gpu,
                wave=wave.document,
            )
            array = sbatch(script, *_words("extract-options", self.extract_options))
            after = f"--dependency=afterany:{array}"
            again = self.script(wave.document)
            try:
                search = sbatch(again, after, *_words("search-options", self.search_options))
            except UsageError as error:
                raise UsageError(
                    f"{error}; job {array} extracts wave {wave.document}, and nobody searches on "
                    "after it: submit the search's script again once it has ended"
                ) from None
            raise Submitted(
                f"wave {wave.document}: job {array} extracts {len(wave.visits)} checkpoints, and "
                f"job {search} searches on after it"
            )

        device = DEFAULT_GPU if self.gpu else CPU
        remote = RemoteWaves(submit, tried_already, device, at_once(self.parallel))
        return run_sweep(self.config_file, remote=remote, limit=self.limit)

    @property
    def _sweep(self) -> str:
        return sweep_name(load(self.config_file).name)
