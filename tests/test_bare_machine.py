"""The GPU tests and benchmark on a machine that has little more than torch and transformers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
#: As if only what is not in its first argument were installed: the imports of the tests, then the
#: benchmark with the other arguments.
BARE = """
import json
import runpy
import sys

hidden = frozenset(json.loads(sys.argv[1]))

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)
import pytest

collect = ["--collect-only", "-q", "--noconftest", "-p", "no:cacheprovider", "-m", "gpu"]
assert pytest.main([*collect, "tests/forward/test_gpu.py"]) == 0
sys.path.insert(0, "tests/benchmarks")
sys.argv = ["gpu.py", *sys.argv[2:]]
runpy.run_path("tests/benchmarks/gpu.py", run_name="__main__")
assert not hidden & {name.partition(".")[0] for name in sys.modules}
"""


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def carried() -> set[str]:
    """The packages that travel."""
    lines = (ROOT / "tests" / "gpu_packages.txt").read_text().splitlines()
    return {normal(line) for line in lines if line and not line.startswith("#")}


def with_requirements(*names: str) -> set[str]:
    """These packages and what they can't be installed without."""
    found: set[str] = set()
    todo = list(map(normal, names))
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or [])
            todo += [normal(n.name) for n in needs if not n.marker or n.marker.evaluate()]
    return found


def test_the_benchmark_and_the_imports_of_the_tests_need_no_other_package(tmp_path: Path) -> None:
    there = with_requirements("torch", "transformers") | carried() | {"batchsweep"}
    installed = packages_distributions()
    hidden = [n for n, owners in installed.items() if there.isdisjoint(map(normal, owners))]
    assert {"mteb", "datasets", "sklearn", "pandas", "pyarrow", "zarr", "h5py", "scipy"} <= {
        *hidden
    }
    result = tmp_path / "bench.json"
    arguments = "--device cpu --shapes 14m --dtypes float32 --seconds 1".split()
    done = subprocess.run(
        [sys.executable, "-c", BARE, json.dumps(hidden), *arguments, "--json", str(result)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["card"] == "CPU"
    (cell,) = found["cells"]
    assert cell["repeats"] and cell["copies_seconds"] is None
    speeds = {row["what"]: row["tokens_per_second"] for row in cell["rows"]}
    assert speeds.keys() == {"extract", "states", "loop, eager", "loop, sdpa"}
    assert min(speeds.values()) > 0
    assert "sentence_transformers isn't installed" in found["left_out"]


def test_what_travels_is_pinned_and_small() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert carried() <= {normal(pin.partition("==")[0]) for pin in pins}
    files = [file for name in carried() for file in distribution(name).files or []]
    assert sum(file.size or 0 for file in files) < 64 << 20
