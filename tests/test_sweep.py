"""`batchsweep.open`: what is in a store, as pandas, numpy and xarray."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from store_data import TASKS, TEXTS, block, spec, states, write_corpus

import batchsweep
from batchsweep.arm import Arm
from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.errors import StoreError, UsageError
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.score.record import path_of
from batchsweep.store import Store, create_store

KEYS = {"org--a/step1": 1, "org--a/step8": 8, "org--b/step8": 8, "org--b/main": None}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four complete checkpoints of two models, and one that isn't complete."""
    path = tmp_path_factory.mktemp("analysis") / "s.zarr"
    store = create_store(path)
    write_corpus(store)
    for seed, (key, step) in enumerate([*KEYS.items(), ("org--b/step9", 9)]):
        model, revision = key.split("/")
        of = spec(
            dtype="float32",
            poolings=("mean",),
            provenance={"model": model.replace("--", "/"), "revision": revision, "step": step},
        )
        with store.writer(key, of) as writer:
            values = states(of, seed)
            writer.write_block(0, block(values, of.block_rows(0)))
            if key not in KEYS:
                continue
            for number in (1, 2):
                writer.write_block(number, block(values, of.block_rows(number)))
            writer.write_metrics({"entropy": np.arange(3) + seed})
            writer.finish()
        for layer in of.layers:
            for number, task in enumerate(["STSBenchmark", "Bank/77:en", "empty"]):
                if (layer, number) == (4, 2):
                    continue
                record = {
                    "main_score": None if (layer, number, step) == (1, 0, 1) else layer + number,
                    "seconds": 1.0,
                    "task": task,
                    **{n: of.provenance[n] for n in ("model", "revision", "step")},
                    "layer": layer,
                    "pooling": "mean",
                }
                store.write_json(path_of(Arm(key, layer, "mean"), task), record)
    return path


def test_arms(url: Path) -> None:
    arms = batchsweep.open(url).arms
    assert list(arms["arm"][:4]) == [f"org--a/step1#{n}" for n in (1, 2, 4)] + ["org--a/step8#1"]
    assert len(arms) == 12 and set(arms["key"]) == set(KEYS)
    assert arms["step"].isna().sum() == 3 and arms["model"].iloc[0] == "org/a"
    # The mean of layer + 0, 1, 2; NaN where a task is missing or its score undefined.
    scored = arms.set_index("arm")["score"]
    assert scored["org--a/step8#2"] == 3 and np.isnan(scored["org--a/step8#4"])
    assert np.isnan(scored["org--a/step1#1"])
    assert arms.set_index("arm")["entropy"]["org--b/step8#2"] == 3


SHAPE = Shape(4, 16, 64, 100)


def write_plan(
    store: Store, *checkpoints: Checkpoint, poolings: tuple[str, ...] = ("mean",)
) -> None:
    entries = [PlanEntry(i, c, (1, 2, 4), SHAPE) for i, c in enumerate(checkpoints)]
    store.write_json("plan.json", Plan(tuple(entries), poolings, {}).to_json())


def test_what_is_ready(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr")
    write_corpus(store)
    of = spec(poolings=("mean",))
    values = states(of)
    for key, blocks in {"m/some": (0, 1), "m/none": (1,)}.items():
        with store.writer(key, of) as writer:
            for number in blocks:
                writer.write_block(number, block(values, of.block_rows(number)))
    write_plan(store, Checkpoint("m", "none"), Checkpoint("m", "waiting"))
    sweep = batchsweep.open(tmp_path / "s.zarr")
    assert sweep.ready.index.tolist() == ["m/none", "m/waiting", "m/some"]
    assert sweep.ready.columns.tolist() == list(TASKS)
    assert sweep.ready.to_numpy().tolist() == [[False] * 3, [False] * 3, [False, True, False]]
    # Its arms are there, with the vectors of the task that is ready.
    assert sweep.arms["arm"].tolist() == [f"m/some#{n}" for n in (1, 2, 4)]
    vectors = sweep.embeddings("m/some#2", task="Bank/77:en")[:]
    np.testing.assert_allclose(vectors, values["mean"][1][5:120], rtol=1e-3, atol=1e-3)
    with pytest.raises(StoreError, match="blocks 2 aren't there yet"):
        sweep.embeddings("m/some#2", task="STSBenchmark")[:]


def test_scores_and_metrics_are_cubes(url: Path) -> None:
    sweep = batchsweep.open(url)
    scores = sweep.scores
    assert scores.dims == ("model", "step", "layer", "task") and scores.shape == (2, 3, 3, 3)
    assert scores["step"].values.tolist() == [1, 8, -1]
    assert scores["revision"].values.tolist() == ["step1", "step8", "main"]
    assert scores["task"].values.tolist() == list(TASKS)
    assert float(scores.sel(model="org/b", step=8, layer=2, task="Bank/77:en")) == 3
    main = scores.sel(model="org/b").isel(step=scores["revision"] == "main").squeeze("step")
    assert float(main.sel(layer=1, task="empty")) == 3
    assert np.isnan(scores.sel(model="org/b", step=1)).all()
    entropy = sweep.metrics["entropy"]
    assert entropy.dims == ("model", "step", "layer")
    assert entropy.sel(model="org/a", step=8).values.tolist() == [1, 2, 3]


def test_one_data_set_of_everything(url: Path) -> None:
    sweep = batchsweep.open(url)
    data = sweep.to_xarray()
    assert data.sizes == {"arm": 15, "task": 3}
    assert set(data.data_vars) == {"score", "seconds", "ready", "entropy"}
    at = data.sel(arm="org--b/step8#2")
    assert (at["key"], at["model"], at["revision"]) == ("org--b/step8", "org/b", "step8")
    assert (at["layer"], at["step"], at["pooling"]) == (2, 8, "mean")
    assert at["score"].values.tolist() == [2, 3, 4] and float(at["entropy"]) == 3
    # Undefined is not the same as not measured.
    undefined = data.sel(arm="org--a/step1#1", task="STSBenchmark")
    assert np.isnan(undefined["score"]) and undefined["seconds"] == 1
    absent = data.sel(arm="org--a/step8#4", task="empty")
    assert np.isnan(absent["score"]) and np.isnan(absent["seconds"])
    # A checkpoint that is not complete is there, and says so.
    begun = data.sel(arm="org--b/step9#1")
    assert not begun["complete"] and np.isnan(begun["entropy"]) and not begun["ready"].all()
    assert "org--b/step9#1" not in set(sweep.arms["arm"])
    # What the tables and cubes say is what it says.
    arms = sweep.arms.set_index("arm")["score"]
    for arm in arms.index:
        np.testing.assert_array_equal(
            data["score"].sel(arm=arm).mean("task", skipna=False), arms[arm]
        )
    tidy = data.drop_vars("arm").isel(arm=data["step"].values > 0)
    cube = tidy.set_index(arm=["model", "step", "layer"]).unstack("arm")["score"]
    known = sweep.scores.sel(step=[1, 8]).transpose(*cube.dims)
    both = cube.sel(step=[1, 8]).fillna(-1), known.fillna(-1)
    np.testing.assert_array_equal(both[0].values, both[1].values)
    data["score"][:] = 0  # A copy: what the sweep knows stays.
    assert float(sweep.to_xarray()["score"].max()) == 5


def test_revisions_of_one_step_have_places_of_their_own(tmp_path: Path) -> None:
    """DataDecide: one step, several seeds. None may cover another's scores."""
    store = create_store(tmp_path / "s")
    for value, revision in enumerate(["step8-seed-a", "step8-seed-b", "step9-seed-a"]):
        of = spec(
            poolings=("mean",),
            provenance={"model": "org/m", "revision": revision, "step": int(revision[4])},
        )
        with store.writer(f"org--m/{revision}", of) as writer:
            for number in range(of.blocks):
                writer.write_block(number, block(states(of), of.block_rows(number)))
            writer.finish()
        where = path_of(Arm(f"org--m/{revision}", 1, "mean"), "T")
        record = {"main_score": value, "seconds": 1.0, "task": "T", "layer": 1, "pooling": "mean"}
        store.write_json(where, {**record, "model": "org/m", "revision": revision, "step": 8})
    scores = batchsweep.open(tmp_path / "s").scores
    assert scores["step"].values.tolist() == [8, 8, 9]
    assert scores["revision"].values.tolist() == ["step8-seed-a", "step8-seed-b", "step9-seed-a"]
    assert scores.sel(model="org/m", layer=1, task="T").values.tolist() == [0, 1, 2]


def test_arms_by_the_models_own_name_and_by_aliases(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s")
    of = dataclasses.replace(spec(), texts=100)
    with store.writer("org--m/step8", of) as writer:
        writer.write_block(0, states(of))
        writer.finish()
    first, second = of.poolings
    wanted = batchsweep.open(store.url).embeddings(f"org--m/step8#4#{second}")[:]
    write_plan(store, Checkpoint("org/m", "step8", aliases=("main",)), poolings=of.poolings)
    sweep = batchsweep.open(store.url)
    for name in ("org/m/step8", "org--m/step8", "org/m/main", "org--m/main"):
        np.testing.assert_array_equal(sweep.embeddings(f"{name}#4#{second}")[:], wanted)
    with pytest.raises(UsageError, match=f"which pooling. org/m/main#4#{first}, org/m/main#4#"):
        sweep.embeddings("org/m/main#4")
    for wrong in ("org/m/step9#4#mean", "org/m/main#3#mean", "org/m/main#4#none", "m"):
        with pytest.raises(UsageError, match=f"no arm '{wrong}' in 6 arms"):
            sweep.embeddings(wrong)


def test_embeddings_are_read_when_asked(url: Path) -> None:
    sweep = batchsweep.open(url)
    values = states(spec(poolings=("mean",)), 1)["mean"][1]
    vectors = sweep.embeddings("org--a/step8#2")
    assert vectors.shape == (250, 16) and len(vectors) == 250
    np.testing.assert_array_equal(np.asarray(vectors), values)
    np.testing.assert_array_equal(vectors[7], values[7])
    np.testing.assert_array_equal(vectors[-3:], values[-3:])
    np.testing.assert_array_equal(vectors[[9, 2]], values[[9, 2]])
    task = sweep.embeddings("org--a/step8#2", task="STSBenchmark")
    np.testing.assert_array_equal(task[:], values[TASKS["STSBenchmark"]])
    assert sweep.texts("STSBenchmark") == [TEXTS[row] for row in TASKS["STSBenchmark"]]
    with pytest.raises(UsageError, match=r"no arm 'x#1' in 12 arms \(such as org--a/step1#1"):
        sweep.embeddings("x#1")
    with pytest.raises(StoreError, match="no task 'x'; valid: STSBenchmark"):
        sweep.embeddings("org--a/step8#2", task="x")


def test_cka(tmp_path: Path) -> None:
    """1 for a rotation, 0 for chance, and the value of the definition in between."""
    store = create_store(tmp_path / "s")
    rng = np.random.default_rng(0)
    of = spec(dtype="float32", layers=(1, 2, 3, 4), poolings=("mean",), provenance={})
    x = rng.standard_normal((250, 16)).astype(np.float32) * np.arange(1, 17)
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    noise = rng.standard_normal((250, 16)).astype(np.float32) * 10
    stack = np.stack([x, 3 * x @ rotation + 5, noise, x + noise]).astype(np.float32)
    with store.writer("m/main", of) as writer:
        for number in range(3):
            writer.write_block(number, {"mean": stack[:, of.block_rows(number)]})
        writer.finish()
    sweep = batchsweep.open(tmp_path / "s")
    assert sweep.cka("m/main#1", "m/main#2") == pytest.approx(1, abs=1e-5)
    assert abs(sweep.cka("m/main#1", "m/main#3")) < 0.05
    # In feature space: ||X'Y||^2 / (||X'X|| ||Y'Y||), centred; the bias is small at 250 texts.
    a, b = (v - v.mean(0) for v in stack[[0, 3]].astype(float))
    plain = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert sweep.cka("m/main#1", "m/main#4") == pytest.approx(plain, abs=0.03)
    table = sweep.cka_table([f"m/main#{n}" for n in range(1, 5)], sample=100)
    np.testing.assert_allclose(table, table.T)
    np.testing.assert_allclose(np.diag(table), 1)
    assert table.iloc[0, 3] == pytest.approx(plain, abs=0.1)


def test_several_poolings_are_named_in_arms(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s")
    of = dataclasses.replace(spec(), texts=100)
    with store.writer("m/main", of) as writer:
        writer.write_block(0, states(of))
        writer.finish()
    sweep = batchsweep.open(tmp_path / "s")
    assert list(sweep.arms["arm"][:2]) == ["m/main#1#last", "m/main#2#last"]
    assert sweep.scores.sizes["task"] == 0 and "tasks" in repr(sweep)
    np.testing.assert_allclose(
        sweep.embeddings("m/main#4#mean")[:], states(of)["mean"][2], rtol=1e-3
    )


def test_an_empty_store(tmp_path: Path) -> None:
    create_store(tmp_path / "s")
    sweep = batchsweep.open(tmp_path / "s")
    assert sweep.arms.empty and sweep.tasks == [] and "0 arms" in repr(sweep)
    with pytest.raises(StoreError, match="no corpus"):
        sweep.texts()


def test_texts_are_strings_by_zarr_alone(url: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs/guides/offline.md").read_text(encoding="utf-8")
    [recipe] = [c for c in re.findall(r"```python\n(.*?)```", guide, re.S) if "zarr.open" in c]
    names: dict[str, object] = {}
    exec(recipe.replace("runs/demo/store.zarr", str(url)), names)
    assert names["texts"] == TEXTS == batchsweep.open(url).texts()


def test_the_notebook_runs(url: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    notebook = Path(__file__).parents[1] / "configs" / "explore_store.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = cell["source"].replace("runs/demo/store.zarr", str(url))
            exec(compile(source, str(notebook), "exec"), names)
    assert names["vectors"].shape == (4, 16)  # type: ignore[attr-defined]
