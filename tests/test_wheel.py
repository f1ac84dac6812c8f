"""The wheel has the same bytes wherever and whenever it is built from the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def built(folder: Path, *, touched: int, seed: str) -> Path:
    """Build the wheel from a copy of the sources, whose files have another time."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "batchsweep",
        source / "batchsweep",
        ignore=shutil.ignore_patterns("__pycache__"),
        copy_function=shutil.copyfile,
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for path in source.rglob("*"):
        os.utime(path, (touched, touched))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": seed}
    run = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    first = built(tmp_path / "a", touched=1_600_000_000, seed="1")
    second = built(tmp_path / "elsewhere", touched=1_750_000_000, seed="2")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    names = zipfile.ZipFile(first).namelist()
    assert "batchsweep/store/FORMAT.md" in names and "batchsweep/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]
