"""Two configs, one convention changed at a time: what is attributed adds up, and is what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from batchsweep.cli.main import main
from batchsweep.compare.attribution import compare, conventions
from batchsweep.config.load import load
from batchsweep.errors import UsageError
from batchsweep.store import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare")
    tiny.make_suite(out / "suite", ("main",), layers=3)
    tiny.make_tasks(out / "tasks")
    return out


def config(folder: Path, name: str, **embedding: object) -> Path:
    sections = {"models": [str(folder / "suite")], "tasks": tiny.make_tasks(folder / "tasks")}
    return tiny.write_config(
        folder / f"{name}.yaml",
        **sections,
        embedding={"layers": [1, 2], **embedding},
        store={"path": str(folder / f"{name}.zarr"), "dtype": "float32"},
        metrics={"enabled": False},
    )


def test_each_convention_has_its_share_and_they_add_up(folder: Path, capsys) -> None:
    a = config(folder, "a")
    b = config(
        folder, "b", layers=[2, 3], layer_output="hidden_states", max_length=4, transforms="unit"
    )
    out = folder / "out"
    assert main(["compare", "--config", str(a), "--config", str(b), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "embedding.max_length: 512 -> 4" in " ".join(said.split())
    assert "means over 2 arms and 2 tasks" in said

    frame = pd.read_csv(out / "compare.csv")
    names = list(dict.fromkeys(frame["convention"]))
    assert [name.split(":")[0] for name in names] == [
        "embedding.layers",
        "embedding.layer_output",
        "embedding.max_length",
        "embedding.transforms",
    ]
    np.testing.assert_allclose(frame["difference"], frame["after"] - frame["before"], atol=1e-12)

    # The ends are what each config scores by itself.
    for name, column, rows in (("a", "before", names[0]), ("b", "after", names[-1])):
        alone = str(folder / f"{name}.yaml")
        for command in (["prepare"], ["extract", "--all"], ["bandit", "--policy", "exhaustive"]):
            assert main([command[0], "--config", alone, *command[1:]]) == 0
        store = open_store(folder / f"{name}.zarr")
        scores = sorted(store.read_json(p)["main_score"] for p in store.list_json("scores"))
        shown = frame[frame["convention"] == rows][column]
        np.testing.assert_allclose(sorted(shown), scores, atol=1e-12)
    total = frame.groupby("convention")["difference"].sum().sum()
    ends = frame[frame["convention"] == names[-1]]["after"].sum()
    assert total == pytest.approx(ends - frame[frame["convention"] == names[0]]["before"].sum())

    # Layer 3 is the last: hidden_states norms it as final_norm does, and not layer 2.
    norm = frame[frame["convention"] == names[1]].set_index("arm")["difference"]
    assert (norm.loc["suite/main#3"] == 0).all() and (norm.loc["suite/main#2"] != 0).any()
    # Cosine similarities don't see lengths.
    unit = frame[frame["convention"] == names[-1]].set_index("task")["difference"]
    np.testing.assert_allclose(unit.loc["TinySTS"], 0, atol=1e-6)
    # The first convention changed alone is the first one changed in turn.
    first = frame[frame["convention"] == names[0]]
    np.testing.assert_array_equal(first["difference"], first["alone"])

    # What is there is kept: transforms have no store of their own, and nothing is extracted again.
    stores = sorted(p.name for p in out.glob("*.zarr"))
    assert len(stores) == 6
    before = {p: p.stat().st_mtime_ns for s in stores for p in (out / s).rglob("c/**/*")}
    compare(load(a), load(b), out)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    a, same = config(folder, "a"), config(folder, "same")
    with pytest.raises(UsageError, match="there is nothing to compare"):
        conventions(load(a), load(same))
    with pytest.raises(UsageError, match="unequally many arms"):
        compare(load(a), load(config(folder, "more", pooling=["mean", "last"])), tmp_path / "out")
    text = a.read_text().replace("TinySTS", "OtherSTS")
    (folder / "other.yaml").write_text(text)
    with pytest.raises(UsageError, match="the configs differ in 'tasks'"):
        conventions(load(a), load(folder / "other.yaml"))
    assert main(["compare", "--config", str(a)]) == 2
    assert "give two files to compare, not 1" in capsys.readouterr().err


def test_the_studys_two_configs_differ_in_four_conventions() -> None:
    found = conventions(load("configs/layer_by_layer.yaml"), load("configs/checkpoint_search.yaml"))
    assert [convention.key for convention in found] == [
        "embedding.layers",
        "embedding.layer_output",
        "embedding.max_length",
        "embedding.transforms",
    ]
