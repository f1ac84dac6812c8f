"""Whatever a config or a task file says, it is taken, or refused in one line with exit code 2."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import bounded, changed, damaged, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchsweep.config import LocalTask, load
from batchsweep.tasks.resolve import resolve

CONFIGS = Path(__file__).parents[2] / "configs"
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "sound.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS["sts"]))
        # mteb takes seconds to be imported.
        resolve([LocalTask(name="mine", type="sts", path=Path(made) / "sound.jsonl")])
        yield Path(made)


def taken(path: Path) -> None:
    with bounded():
        error = refused(lambda: load(path))
    assert error is None or (error.exit_code == 2 and str(path) in str(error)), error


@fuzzed
@given(data=st.data())
def test_configs_of_any_values(folder: Path, data: st.DataObject) -> None:
    sound = yaml.safe_load((CONFIGS / "mteb_layersweep.yaml").read_text())
    sound["tasks"] = [{"name": "mine", "type": "sts", "path": "x.jsonl"}, "STS12"]
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(data.draw(changed(sound))), errors="surrogatepass")
    taken(path)


@fuzzed
@given(data=st.data())
def test_configs_of_any_bytes(folder: Path, data: st.DataObject) -> None:
    path = folder / "sweep.yaml"
    path.write_bytes(data.draw(damaged((CONFIGS / "quick.yaml").read_bytes())))
    taken(path)


def _task(path: Path, kind: Any) -> None:
    with bounded():
        error = refused(lambda: resolve([LocalTask(name="mine", type=kind, path=path)]))
    assert error is None or (error.exit_code == 2 and str(path) in str(error)), error


ROWS: dict[str, list[dict[str, Any]]] = {
    "sts": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 4} for i in range(4)],
    "clustering": [{"text": f"a {i}", "label": f"x{i % 2}"} for i in range(4)],
    "reranking": [{"query": f"q {i}", "positive": ["a"], "negative": ["b"]} for i in range(3)],
}


@fuzzed
@given(data=st.data())
def test_task_files(folder: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(ROWS)))
    rows = ROWS[kind]
    if data.draw(st.booleans()):
        changed_rows = data.draw(changed(rows))
        rows = changed_rows if isinstance(changed_rows, list) else [changed_rows]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / "x.jsonl"
    path.write_bytes(data.draw(damaged(body)) if data.draw(st.booleans()) else body)
    _task(path, kind)


@fuzzed
@given(data=st.data())
def test_damaged_parquet(folder: Path, data: st.DataObject) -> None:
    import pandas as pd

    path = folder / "x.parquet"
    pd.DataFrame(ROWS["sts"]).to_parquet(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    _task(path, "sts")
