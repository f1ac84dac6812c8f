"""A sweep whose transforms are switched on after extraction, from the search to what leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny

import batchsweep
from batchsweep.bandit.score_table import read_scores
from batchsweep.cli.main import main
from batchsweep.store import open_store

KEY = "suite/main"


def test_from_the_search_to_the_replay(tmp_path: Path, capsys) -> None:
    suite = tiny.make_suite(tmp_path / "suite")
    tasks = tiny.make_tasks(tmp_path / "tasks")
    plain = tiny.write_sweep(tmp_path, "sweep", suite, tasks=tasks, revisions=["step0", "main"])
    assert main(["prepare", "--config", str(plain)]) == 0
    assert main(["extract", "--config", str(plain), "--all"]) == 0
    before = (tmp_path / "sweep" / "store.zarr" / "documents" / "plan.json").read_bytes()
    sections = json.loads(plain.read_text())
    wanted = tiny.write_config(
        plain, **{**sections, "embedding": {"transforms": ["stored", "center", "all_but_the_top"]}}
    )
    config = ["--config", str(wanted)]
    assert main(["bandit", *config, "--policy", "exhaustive"]) == 0
    assert (tmp_path / "sweep" / "store.zarr" / "documents" / "plan.json").read_bytes() == before

    store = open_store(tmp_path / "sweep" / "store.zarr")
    names = [f"{KEY}#1", f"{KEY}#1#mean+center", f"{KEY}#1#mean+all_but_the_top"]
    data = batchsweep.open(store.url).to_xarray()
    assert data.sizes["arm"] == 2 * 2 * 3 and set(names) <= set(data["arm"].values.tolist())
    assert np.isfinite(data["score"].values).all()
    [path] = [p for p in store.list_json("bandit") if p.endswith("answer.json")]
    assert {arm["arm"] for arm in store.read_json(path)["arms"]} == set(data["arm"].values.tolist())

    page = tmp_path / "report" / "report.html"
    assert main(["report", *config, "--out", str(page.parent)]) == 0
    assert "mean+center" in page.read_text()
    assert main(["export", *config, "--out", str(tmp_path / "out")]) == 0
    kept = "results/local__suite/main/experiments/layer_1__pooling_mean__transform_center"
    assert (tmp_path / "out" / "mteb" / kept / "TinySTS.json").is_file()
    tables = [read_scores(tmp_path / "out" / "mteb"), read_scores(store.url)]
    for table in tables:
        assert table.scores.shape == (12, 2)
    # mteb rounds to six decimals.
    one, other = (np.sort(table.scores, 0) for table in tables)
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert any(arm.endswith("#1#mean+center") for arm in tables[0].problem.arms)

    # Without them it is the search that it was.
    tiny.write_config(plain, **sections)
    capsys.readouterr()
    assert main(["bandit", "--config", str(plain), "--policy", "exhaustive"]) == 0
    assert "+" not in capsys.readouterr().out.split("report")[0]
