"""An exported arm, loaded by other people's libraries, against the store that it is from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mteb
import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES, random_model
from hub_server import Repo
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from batchsweep.arm import Arm
from batchsweep.cli.main import main
from batchsweep.config.load import load
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.export.embedder import export_model
from batchsweep.forward.pooling import POOLINGS
from batchsweep.store import open_store
from batchsweep.tasks.resolve import resolve


def sweep(folder: Path, architecture: str = "gpt_neox", **embedding) -> Path:
    """The config of a sweep over one small model, extracted in float32."""
    random_model(architecture).save_pretrained(folder / "model" / "main")
    tiny.make_tokenizer(folder / "model" / "main")
    config = tiny.write_config(
        folder / "sweep.yaml",
        models=[str(folder / "model")],
        tasks=tiny.make_tasks(folder / "tasks", n=24),
        embedding={"max_length": 12, **embedding},
        store={"path": str(folder / "store.zarr"), "dtype": "float32"},
        metrics={"enabled": False},
    )
    assert main(["prepare", "--config", str(config)]) == 0
    assert main(["extract", "--config", str(config), "--all"]) == 0
    return config


def exported(config: Path, arm: str, out: Path) -> Path:
    loaded = load(config)
    written = export_model(open_store(loaded.store_url), loaded, Arm.parse(arm), out)
    assert written.texts > 20
    assert written.difference < 1e-5
    return out


def test_every_architecture_pooling_by_pooling_gives_the_stores_vectors(tmp_path, subtests):
    for architecture in ARCHITECTURES:
        folder = tmp_path / architecture
        config = sweep(folder, architecture, pooling=list(POOLINGS), layers=[1, 2, 3])
        store = open_store(folder / "store.zarr")
        reader, texts = store.reader("model/main"), store.corpus().texts()
        for layer, pooling in zip((1, 2, 3, 1, 2), POOLINGS, strict=True):
            with subtests.test(architecture=architecture, layer=layer, pooling=pooling):
                out = exported(config, f"model/main#{layer}#{pooling}", folder / f"{pooling}")
                vectors = SentenceTransformer(str(out), device="cpu").encode(texts)
                stored = reader.read(pooling, layer, np.arange(len(texts)))
                np.testing.assert_allclose(vectors, stored, rtol=1e-4, atol=2e-5)


def test_plain_transformers_loads_the_cut_model_with_its_final_norm(tmp_path):
    config = sweep(tmp_path)
    out = exported(config, "model/main#2", tmp_path / "best")
    model, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == len(model.layers) == 2
    whole = AutoModel.from_pretrained(tmp_path / "model" / "main").eval()
    ids = tokenizer("the old cat sees a bird", return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = whole.final_layer_norm(whole(ids, output_hidden_states=True).hidden_states[2])
        torch.testing.assert_close(model(ids).last_hidden_state, expected)


def test_mteb_scores_the_folder_and_its_upload_as_the_sweep_did(tmp_path, hub):
    config = sweep(tmp_path, prefix="the old ", pooling=["weighted_mean"], pool_prefix=False)
    assert main(["bandit", "--config", str(config), "--policy", "exhaustive"]) == 0
    out = exported(config, "model/main#2", tmp_path / "best")
    live = []
    uploaded = {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    hub.repos["me/best"] = Repo({"main": uploaded})
    # The upload as ``mteb run -m me/best`` gets it.
    for model in (SentenceTransformer(str(out)), mteb.get_model("me/best", "main")):
        # Anew: mteb's clustering goes on where the random numbers of the last time ended.
        tasks = resolve(load(config).tasks)
        results = mteb.evaluate(model, tasks, cache=None, co2_tracker=False)
        live.append({r.task_name: r.get_score() for r in results.task_results})
    assert any("me/best/resolve" in request for request in hub.requests)
    table = tmp_path / "scores"
    assert main(["export", "--config", str(config), "--out", str(table)]) == 0
    import pandas as pd

    scores = pd.read_csv(table / "scores.csv").query("layer == 2").set_index("task").score
    for of_model in live:
        assert set(of_model) == {"TinySTS", "TinyClustering"}
        for task, score in of_model.items():
            assert math.isclose(score, scores[task], abs_tol=1e-6), task
    card = (out / "README.md").read_text()
    assert f"| TinySTS | {scores['TinySTS']:.6f} | all |" in card
    assert "prefix: 'the old '" in card


def test_prefixes_by_prompt_type_become_prompts(tmp_path):
    config = sweep(tmp_path, prefix={"query": "the ", "document": "a "})
    out = exported(config, "model/main#1", tmp_path / "best")
    model = SentenceTransformer(str(out), device="cpu")
    assert model.prompts == {"query": "the ", "document": "a "}
    assert model.default_prompt_name is None


def test_float16_and_int8_stores_are_close_to_within_their_steps(tmp_path):
    for dtype, limit in (("float16", 1e-3), ("int8", 2e-2)):
        folder = tmp_path / dtype
        config = sweep(folder)
        text = json.loads(config.read_text())
        text["store"] = {"path": str(folder / "other.zarr"), "dtype": dtype}
        config.write_text(json.dumps(text))
        assert main(["prepare", "--config", str(config)]) == 0
        assert main(["extract", "--config", str(config), "--all"]) == 0
        loaded = load(config)
        store = open_store(loaded.store_url)
        written = export_model(store, loaded, Arm("model/main", 2), folder / "best")
        assert 0 < written.difference < limit


def test_what_a_model_of_transformers_cannot_say_is_refused(tmp_path):
    config = sweep(tmp_path, layer_output="raw")
    with pytest.raises(UsageError, match="without the final norm"):
        exported(config, "model/main#2", tmp_path / "best")
    assert not (tmp_path / "best").exists()
    bert = sweep(tmp_path / "bert", "bert", layer_output="raw")
    exported(bert, "model/main#2", tmp_path / "best")


def test_the_last_layers_hidden_states_are_final_normed_and_can_be_exported(tmp_path):
    config = sweep(tmp_path, layer_output="hidden_states")
    exported(config, "model/main#3", tmp_path / "best")
    with pytest.raises(UsageError, match="layer 2"):
        exported(config, "model/main#2", tmp_path / "other")


def test_an_arm_that_is_not_there_a_full_folder_and_another_config_are_refused(tmp_path):
    config = sweep(tmp_path, pooling=["mean", "last"])
    for arm in ("model/main#9#mean", "other/main#1#mean"):
        with pytest.raises(UsageError, match="there are such as model/main#1#mean"):
            exported(config, arm, tmp_path / "best")
    with pytest.raises(UsageError, match="say which pooling, such as model/main#1#mean"):
        exported(config, "model/main#1", tmp_path / "best")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        exported(config, "model/main#1#mean", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_the_best_arm_of_a_store_that_is_filled_in_part_is_exported_by_a_command(tmp_path, capsys):
    random_model("gpt_neox").save_pretrained(tmp_path / "model" / "main")
    tiny.make_tokenizer(tmp_path / "model" / "main")
    config = tiny.write_config(
        tmp_path / "sweep.yaml",
        models=[str(tmp_path / "model")],
        tasks=tiny.make_tasks(tmp_path / "tasks", n=40),
        store={"path": str(tmp_path / "store.zarr"), "dtype": "float32", "block_texts": 16},
        rewards={"target": "sts"},
    )
    given = ["--config", str(config)]
    assert main(["prepare", *given]) == 0
    out = ["export", *given, "--model", str(tmp_path / "best")]
    assert main([*out, "--arm", "model/main#1"]) == 4
    assert "no task of model/main is extracted" in capsys.readouterr().err
    assert main(["extract", *given, "--all", "--tasks", "TinySTS"]) == 0
    assert main(out) == 2
    assert "no search has an answer yet" in capsys.readouterr().err
    assert main(["export", *given, "--arm", "model/main#1"]) == 2
    assert "give --model DIR too" in capsys.readouterr().err
    assert main(["bandit", *given, "--policy", "exhaustive"]) == 0
    best = capsys.readouterr().out.split("best arm: ")[1].split()[0]
    assert main(out) == 0
    assert f"{best}#mean; vectors of 64 texts are the store's" in capsys.readouterr().out
    card = (tmp_path / "best" / "README.md").read_text()
    assert "## How sure" in card and "6 cells scored: the best arm" not in card
    assert "3 of 3 cells scored: the best arm" in card
    assert main(["report", *given, "--figures", "--out", str(tmp_path / "report")]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.html", "plane-model.svg", "plane-model.pdf", "plane-model.txt"} <= names


def test_weights_that_changed_since_are_refused_and_nothing_is_written(tmp_path):
    config = sweep(tmp_path)
    file = tmp_path / "model" / "main" / "model.safetensors"
    weights = load_file(file)
    weights["layers.0.mlp.dense_h_to_4h.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(IndexFailed):
        exported(config, "model/main#2", tmp_path / "best")
    assert not (tmp_path / "best").exists()
    assert not list(tmp_path.glob(".best*"))


def test_vectors_that_are_not_the_stores_are_refused_and_nothing_is_written(tmp_path, monkeypatch):
    config = sweep(tmp_path)
    monkeypatch.setattr("batchsweep.export.embedder.MODES", {"mean": "lasttoken"})
    with pytest.raises(IndexFailed, match="differs from the store's"):
        exported(config, "model/main#2", tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_transform_is_a_layer_with_the_statistics_of_one_task(tmp_path):
    config = sweep(tmp_path, layers=[2])
    transforms = ["stored", "unit", "center", "all_but_the_top"]
    sections = json.loads(config.read_text())
    sections["embedding"]["transforms"] = transforms
    tiny.write_config(config, **sections)
    assert main(["bandit", "--config", str(config), "--policy", "exhaustive"]) == 0
    [task] = [t for t in resolve(load(config).tasks) if t.metadata.name == "TinySTS"]
    scores = open_store(tmp_path / "store.zarr").read_json
    for name in transforms[1:]:
        arm, out = f"model/main#2#mean+{name}", tmp_path / name
        common = ["export", "--config", str(config), "--arm", arm, "--model", str(out)]
        assert main([*common, *([] if name == "unit" else ["--texts-of", "TinySTS"])]) == 0
        result = mteb.evaluate(SentenceTransformer(str(out)), task, cache=None, co2_tracker=False)
        record = scores(f"scores/model/main/2-mean+{name}/TinySTS.json")
        assert result[0].get_score() == pytest.approx(record["main_score"], abs=1e-6)
        card = (out / "README.md").read_text()
        assert ("texts of TinySTS" in card) == (
            name != "unit"
        ) and f"| pooling | `mean+{name}`" in card


def test_a_transform_without_its_task_is_refused(tmp_path):
    config = load(sweep(tmp_path, layers=[1]))
    store = open_store(config.store_url)
    centred = Arm.parse("model/main#1#mean+center")
    with pytest.raises(UsageError, match="say of which task with --texts-of TASK"):
        export_model(store, config, centred, tmp_path / "x")
    with pytest.raises(UsageError, match="--texts-of is for a transform with statistics"):
        export_model(store, config, Arm.parse("model/main#1"), tmp_path / "x", texts_of="TinySTS")
    with pytest.raises(UsageError, match="no transform 'top'"):
        export_model(store, config, Arm.parse("model/main#1#mean+top"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
