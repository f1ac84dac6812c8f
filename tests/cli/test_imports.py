"""Which libraries a command loads: seconds of start-up, once for every index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main

#: What only preparing, scoring, analysis and pictures need.
HEAVY = {
    "datasets", "h5py", "matplotlib", "mteb", "numcodecs", "obstore", "pandas", "polars", "pyarrow",
    "scipy", "sklearn", "sympy", "torch", "torch._dynamo", "transformers", "xarray",
}  # fmt: skip
#: Prints them after a command that went well.
LOADED = (
    "import sys; from batchsweep.cli.main import main; code = main(sys.argv[2:]);"
    "print(*sorted(set(sys.argv[1].split()) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one checkpoint that is prepared."""
    folder = tmp_path_factory.mktemp("imports")
    path = write_config(
        folder / "sweep.yaml",
        models=[str(make_suite(folder / "tiny", ("step0",)))],
        revisions=["step0"],
        tasks=make_tasks(folder / "tasks"),
        store={"path": str(folder / "store.zarr")},
        metrics={"sample": 16},
    )
    assert main(["prepare", "--config", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("command", "may_load"),
    [
        ("plan", ""),
        ("extract --index 0", "torch"),
        ("status", ""),
        ("report", "matplotlib pandas pyarrow scipy xarray"),
    ],
)
def test_a_command_loads_no_more_than_it_needs(command: str, may_load: str, config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, " ".join(HEAVY), *command.split(), "--config", str(config)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()[-1].split()) <= set(may_load.split())
