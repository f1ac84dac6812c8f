"""The plan: arms, freezing, growing, costs, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from batchsweep.checkpoints.audit import audit, nominal
from batchsweep.checkpoints.schedules import schedule
from batchsweep.checkpoints.shape import Shape, is_pythia, known_shape, shape_of
from batchsweep.cli.main import main
from batchsweep.cli.plan_table import plan_table
from batchsweep.config import parse
from batchsweep.corpus.size import CorpusSize, TaskSize, corpus_size
from batchsweep.errors import (
    ConfigError,
    IndexFailed,
    StoreCorrupt,
    StoreMismatch,
    TryAgain,
    UsageError,
)
from batchsweep.plan.estimate import estimate
from batchsweep.plan.frozen import PLAN_PATH, freeze, frozen_plan, load_plan
from batchsweep.plan.plan import Plan, make_plan
from batchsweep.plan.space import check_space, space
from batchsweep.plan.timings import Timing
from batchsweep.store import create_store

PYTHIAS = [f"EleutherAI/pythia-{size}" for size in ("14m", "70m", "410m")]
MILLION = CorpusSize((TaskSize("a", 600_000, 36e6), TaskSize("b", 400_000, 24e6)), 10**6, 2e7, True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


def config(**sections):
    document = {"models": PYTHIAS, "revisions": {"strategy": "sparse"}, "tasks": ["STS12"]}
    return parse(json.dumps({**document, **sections}), source="test.yaml")


def make_suite(root: Path, weights: dict[str, str], *, layers=4, hidden=32, ffn=128) -> str:
    """A directory of revisions with the given weights: revision -> content."""
    for revision, content in weights.items():
        folder = root / revision
        folder.mkdir(parents=True, exist_ok=True)
        shape = {"num_hidden_layers": layers, "hidden_size": hidden, "vocab_size": 99}
        (folder / "config.json").write_text(json.dumps({**shape, "intermediate_size": ffn}))
        (folder / "model.safetensors").write_text(content)
        (folder / "tokenizer.json").write_text("{}")
    return str(root)


@pytest.fixture
def suite(tmp_path):
    weights = {f"step{n}": f"weights {n}" for n in (0, 1, 2, 4, 8)}
    return make_suite(tmp_path / "xs", {**weights, "main": "weights 8"})


def local(suite, *revisions, **sections):
    return config(models=[suite], revisions=list(revisions), **sections)


def planned(wanted):
    return make_plan(wanted, audit(wanted))


# Arms


def test_the_arms_of_the_full_sweep_without_network(hub):
    plan = make_plan(config(), nominal(config()))
    assert hub.requests == []
    assert list(plan.arms_per_model().values()) == [48, 48, 192]
    assert len(plan.arms()) == len(set(plan.arms())) == 288
    assert len(plan.entries) == 24
    assert plan.arms()[0] == "EleutherAI--pythia-14m/step1000#1"
    assert plan.arms()[-1] == "EleutherAI--pythia-410m/main#24"


@pytest.mark.parametrize(
    ("revisions", "arms"),
    [
        ([f"step{s}" for s in range(1000, 31_000, 1000)], 1080),
        ({"strategy": "uniform"}, 1044),
        ({"strategy": "all"}, 5544),
    ],
)
def test_the_arms_of_thirty_and_of_all_checkpoints(revisions, arms):
    wanted = config(revisions=revisions)
    assert len(make_plan(wanted, nominal(wanted)).arms()) == arms


def test_poolings_are_arms_of_their_own():
    wanted = config(embedding={"pooling": ["mean", "last"]})
    arms = make_plan(wanted, nominal(wanted)).arms()
    assert len(arms) == 576 and arms[1] == "EleutherAI--pythia-14m/step1000#1#last"


def test_transforms_are_arms_of_their_own_and_change_no_plan():
    wanted = config(embedding={"transforms": ["stored", "center"]})
    plan = make_plan(wanted, nominal(wanted))
    assert plan.to_json() == make_plan(config(), nominal(config())).to_json()
    arms = plan.arms(wanted.embedding.transforms)
    key = "EleutherAI--pythia-14m/step1000"
    assert len(arms) == 576 and arms[:2] == [f"{key}#1", f"{key}#1#mean+center"]
    assert list(plan.arms_per_model(wanted.embedding.transforms).values()) == [96, 96, 384]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (1, 2, 3, 4)),
        ([0, 4, 2, 2], (0, 2, 4)),
        ({"every": 3}, (1, 4)),
        ({"every": 9}, (4,)),
    ],
)
def test_layers(suite, layers, expected):
    assert planned(local(suite, "main", embedding={"layers": layers})).entries[0].layers == expected


@pytest.mark.parametrize("layers", [[5], [-1], []])
def test_a_layer_that_is_not_there_is_refused(suite, layers):
    wanted = local(suite, "main", embedding={"layers": layers})
    with pytest.raises(ConfigError, match=r"valid: 0 \(the embedding output\) to 4"):
        planned(wanted)


def test_main_and_the_last_step_of_pythia_are_one_index_even_before_an_audit():
    wanted = config(models=PYTHIAS[:1], revisions=["step143000", "step1000", "main"])
    plan = make_plan(wanted, nominal(wanted))
    assert [e.checkpoint.names for e in plan.entries] == [("step1000",), ("main", "step143000")]


def test_a_models_own_revisions_and_schedules():
    models = [PYTHIAS[0], {"name": PYTHIAS[1], "revisions": ["step-512"]}]
    wanted = config(models=models, revisions={"strategy": "uniform", "interval": 5000})
    plan = make_plan(wanted, nominal(wanted))
    assert len(plan.entries) == 30
    assert plan.entries[-1].key == "EleutherAI--pythia-70m/step512"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("EleutherAI/pythia-410m-deduped", 24),
        ("EleutherAI/pythia-14m-seed3", 6),
        ("EleutherAI/pythia-160m-data-seed1", 12),
        ("EleutherAI/pythia-12b", 36),
        ("EleutherAI/pythia-2.8b-deduped-v0", 32),
        ("EleutherAI/pythia-99m", None),
        ("someone/pythia-14m", None),
        ("EleutherAI/gpt-neox-20b", None),
    ],
)
def test_the_known_models(name, layers):
    shape = known_shape(name)
    assert (shape.num_layers if shape else None) == layers
    assert is_pythia(name) == (layers is not None)


def test_shapes_by_other_names():
    assert shape_of({"n_layer": 12, "n_embd": 768}, where="gpt2") == Shape(12, 768, 3072, 50_000)
    nested = {"text_config": {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 9}}
    assert shape_of(nested, where="x").ffn == 9
    with pytest.raises(ConfigError, match=r"x: config\.json has no num_hidden_layers"):
        shape_of({"num_hidden_layers": "12"}, where="x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": True}, "has no num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers of 8; at most 4095 of 131072 can"),
        ({"hidden_size": 10**12}, "says 2 layers of 1000000000000; at most"),
        ({"hidden_size": -8}, "has no num_hidden_layers and hidden_size"),
    ],
    ids=str,
)
def test_shapes_that_no_model_has(change, says):
    with pytest.raises(ConfigError, match=says):
        shape_of({"num_hidden_layers": 2, "hidden_size": 8, "text_config": 7, **change}, where="x")


# Local suites


def test_a_local_suite(suite):
    plan = planned(local(suite, "step-0", "step2", "step8", "main", "step99"))
    rows = [(e.index, e.key, e.checkpoint.step, e.checkpoint.aliases) for e in plan.entries]
    assert rows == [(0, "xs/step0", 0, ()), (1, "xs/step2", 2, ()), (2, "xs/main", 8, ("step8",))]
    assert [s.revision for s in plan.skipped] == ["step99"]
    assert plan.find(suite, "step8") is plan.find(suite, "main") is plan.entries[2]
    assert plan.find(suite, "step4") is None
    assert plan.entries[0].checkpoint.load_revision == "step0"


def test_a_schedule_over_a_local_suite(suite):
    plan = planned(config(models=[suite], revisions={"strategy": "all"}))
    assert [e.checkpoint.revision for e in plan.entries] == [f"step{n}" for n in (0, 1, 2, 4, 8)]


def test_a_plain_model_directory_has_main_only(suite):
    plan = planned(local(f"{suite}/step4", "main", "step1"))
    assert [e.key for e in plan.entries] == ["step4/main"]
    assert [s.reason for s in plan.skipped] == ["missing"]


def test_directories_as_separate_repos(tmp_path):
    for n in (1, 2):
        make_suite(tmp_path, {f"run-step{n}": f"weights {n}"})
    plan = planned(config(models=[f"{tmp_path}/run-{{revision}}"], revisions=["step1", "step2"]))
    assert [(e.key, e.checkpoint.step) for e in plan.entries] == [
        ("run/step1", 1),
        ("run/step2", 2),
    ]
    assert plan.entries[1].checkpoint.load_model == f"{tmp_path}/run-step2"


def test_changed_weights_of_a_local_suite_are_seen(suite):
    wanted = local(suite, "step1", "step2")
    before = planned(wanted)
    Path(suite, "step1", "model.safetensors").write_text("weights X")  # The same length.
    after = planned(wanted)
    digests = [[e.checkpoint.weights_digest for e in p.entries] for p in (before, after)]
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


def test_a_directory_without_models(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has neither a config\.json nor sub-directories"):
        planned(local(str(tmp_path / "empty"), "main"))


@pytest.mark.parametrize("name", ["./no/such/dir", "/no/such", "a/b/c", "no such", "a/b c"])
def test_a_name_that_is_neither_directory_nor_hub_id(name):
    with pytest.raises(ConfigError, match="no such directory, and not a Hub id"):
        planned(local(name, "main"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_config_json_is_named(suite, content):
    path = Path(suite, "step1", "config.json")
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"step1.*config\.json"):
        planned(local(suite, "step1"))


# Frozen


def test_freezing_and_loading(suite, tmp_path):
    wanted = local(suite, "step0", "step1", "main", "step7")
    plan = planned(wanted)
    store = create_store(tmp_path / "store.zarr")
    with pytest.raises(UsageError, match="run 'batchsweep prepare' first"):
        load_plan(store)
    assert freeze(plan, store, wanted) == plan
    assert load_plan(store) == frozen_plan(store, wanted) == plan
    assert load_plan(store).digest == plan.digest
    document = store.read_json(PLAN_PATH)
    entry = document["entries"][2]
    assert entry["key"] == "xs/main" and len(entry["weights_digest"]) == 64
    assert len(entry["checkpoint"]["commit"]) == 40
    assert document["skipped"][0]["revision"] == "step7"
    # Frozen twice: the same bytes.
    assert freeze(planned(wanted), store, wanted) == plan


def test_a_plan_that_was_not_audited_is_not_frozen(tmp_path):
    wanted = config()
    with pytest.raises(ValueError, match="audit"):
        freeze(make_plan(wanted, nominal(wanted)), create_store(tmp_path / "s"), wanted)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"embedding": {"pooling": "last"}}, "embedding.pooling is now without mean and with last"),
        ({"embedding": {"layers": [1]}}, 'embedding.layers was all and is now [1]'),
        ({"embedding": {"max_length": 64}}, "embedding.max_length was 512 and is now 64"),
        ({"store": {"dtype": "float32"}}, "store.dtype was float16 and is now float32"),
        ({"store": {"block_texts": 8}}, "store.block_texts was 256 and is now 8"),
        ({"tasks": ["STS12", "STS13"]}, "tasks is now with STS13"),
        ({"corpus": {"max_texts_per_task": 9}}, "corpus.max_texts_per_task was null and is now 9"),
    ],
)  # fmt: skip
def test_a_config_that_changed_is_refused_with_the_difference(suite, tmp_path, sections, says):
    wanted = local(suite, "step0")
    store = create_store(tmp_path / "store.zarr")
    freeze(planned(wanted), store, wanted)
    changed = local(suite, "step0", **sections)
    for attempt in (
        lambda: frozen_plan(store, changed),
        lambda: freeze(planned(changed), store, changed),
    ):
        with pytest.raises(StoreMismatch) as error:
            attempt()
        assert says in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"embedding": {"device": "cuda", "batch_tokens": 7}},
        {"bandit": {"budget": 3}},
        {"rewards": {"scale": "raw"}},
        {"name": "other"},
    ],
)
def test_what_decides_no_index_may_change(suite, tmp_path, sections):
    wanted = local(suite, "step0")
    store = create_store(tmp_path / "store.zarr")
    plan = freeze(planned(wanted), store, wanted)
    assert frozen_plan(store, local(suite, "step0", **sections)) == plan


def test_scoring_may_take_other_tasks_and_revisions(suite, tmp_path):
    wanted = local(suite, "step0", "step1", tasks=["STS12", "STS13"])
    store = create_store(tmp_path / "store.zarr")
    plan = freeze(planned(wanted), store, wanted)
    other = local(suite, "step0", tasks=["STS13"])
    assert frozen_plan(store, other, scoring=True) == plan
    with pytest.raises(StoreMismatch, match="tasks is now without STS12"):
        frozen_plan(store, other)
    raw = local(suite, "step0", embedding={"layer_output": "raw"})
    with pytest.raises(StoreMismatch, match=r"embedding\.layer_output was final_norm"):
        frozen_plan(store, raw, scoring=True)


def test_revisions_that_the_config_leaves_out_stay_and_are_named(suite, tmp_path, caplog):
    wanted = local(suite, "step0", "step1")
    store = create_store(tmp_path / "store.zarr")
    plan = freeze(planned(wanted), store, wanted)
    assert freeze(planned(wanted), store, wanted) == plan and not caplog.messages
    fewer = local(suite, "step0")
    assert freeze(planned(fewer), store, fewer).entries == plan.entries
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"the config doesn't ask for {plan.entry(1).key} any more" in said


def test_new_revisions_wait_for_prepare(suite, tmp_path):
    wanted = local(suite, "step0")
    store = create_store(tmp_path / "store.zarr")
    freeze(planned(wanted), store, wanted)
    with pytest.raises(UsageError, match="revisions is now with step1; run 'batchsweep prepare'"):
        frozen_plan(store, local(suite, "step0", "step1"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("entries"),
        lambda d: d["entries"].clear(),
        lambda d: d["entries"].pop(0),
        lambda d: d["entries"][0]["checkpoint"].pop("commit") and d["entries"][0].pop("shape"),
        lambda d: d["entries"][0].update(layers="x"),
        lambda d: d.update(skipped=3),
        lambda d: d["entries"][0]["checkpoint"].update(step=10**400),
        lambda d: d["entries"][0]["checkpoint"].update(step=-1),
    ],
)
def test_a_damaged_plan_is_said(suite, tmp_path, damage):
    wanted = local(suite, "step0", "step1")
    store = create_store(tmp_path / "store.zarr")
    document = freeze(planned(wanted), store, wanted).to_json()
    damage(document)
    store.write_json(PLAN_PATH, document)
    with pytest.raises(StoreCorrupt, match=r"plan\.json is damaged"):
        load_plan(store)


def test_a_newer_plan_is_refused(suite, tmp_path):
    wanted = local(suite, "step0")
    store = create_store(tmp_path / "store.zarr")
    store.write_json(PLAN_PATH, {**planned(wanted).to_json(), "version": 2})
    with pytest.raises(StoreMismatch, match="upgrade batchsweep"):
        load_plan(store)


def test_an_index_outside_the_plan(suite):
    plan = planned(local(suite, "step0", "step1"))
    assert plan.entry(1).key == "xs/step1"
    with pytest.raises(IndexFailed, match="2 indexes, 0 to 1; set the job's completions to 2"):
        plan.entry(2)


# Growing


def test_growing_appends_and_keeps(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    first = local(suite, "step1", "main")
    freeze(planned(first), store, first)
    second_suite = make_suite(tmp_path / "s", {"step1": "other 1", "main": "other 2"})
    models = [second_suite, suite]
    second = config(models=models, revisions=["step0", "step1", "step2", "main"])
    plan = freeze(planned(second), store, second)
    assert [e.key for e in plan.entries] == [
        "xs/step1", "xs/main",  # where they were
        "s/step1", "s/main", "xs/step0", "xs/step2",
    ]  # fmt: skip
    assert [e.index for e in plan.entries] == list(range(6))
    assert plan == load_plan(store) == frozen_plan(store, second)


def test_a_new_name_of_weights_that_have_an_index_becomes_an_alias(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    first = local(suite, "step8")
    before = freeze(planned(first), store, first)
    assert before.entries[0].checkpoint.names == ("step8", "main")
    shutil.copytree(Path(suite, "step8"), Path(suite, "step16"))
    second = local(suite, "step4", "step8", "step16", "main")
    plan = freeze(planned(second), store, second)
    assert [e.key for e in plan.entries] == ["xs/step8", "xs/step4"]
    assert set(plan.entries[0].checkpoint.names) == {"step8", "main", "step16"}
    assert plan.duplicates[0].revisions


def test_revisions_that_the_config_drops_keep_their_indexes(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    first = local(suite, "step0", "step1")
    freeze(planned(first), store, first)
    second = local(suite, "step2")
    plan = freeze(planned(second), store, second)
    assert [e.key for e in plan.entries] == ["xs/step0", "xs/step1", "xs/step2"]


def test_a_missing_revision_that_appears_is_no_longer_skipped(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    wanted = local(suite, "step0", "step16")
    assert len(freeze(planned(wanted), store, wanted).skipped) == 1
    make_suite(Path(suite), {"step16": "weights 16"})
    plan = freeze(planned(wanted), store, wanted)
    assert plan.skipped == () and plan.entries[1].key == "xs/step16"


def test_a_model_can_not_be_removed(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    other = make_suite(tmp_path / "s", {"main": "m"})
    both = config(models=[suite, other], revisions=["main"])
    freeze(planned(both), store, both)
    with pytest.raises(StoreMismatch, match="a plan only grows: put it back"):
        freeze(planned(local(suite, "main")), store, local(suite, "main"))


def test_local_weights_that_changed_since_are_refused(suite, tmp_path):
    store = create_store(tmp_path / "store.zarr")
    wanted = local(suite, "step0")
    freeze(planned(wanted), store, wanted)
    Path(suite, "step0", "model.safetensors").write_text("new")
    with pytest.raises(StoreMismatch, match="the weights changed since the plan was frozen"):
        freeze(planned(wanted), store, wanted)


# Costs


def test_storage_is_layers_times_texts_times_width():
    wanted = config(models=PYTHIAS[2:], revisions=["main"])
    plan = make_plan(wanted, nominal(wanted))
    costs = estimate(plan, wanted, MILLION)
    assert costs.entries[0].store_bytes == 24 * 10**6 * 1024 * 2
    int8 = config(models=PYTHIAS[2:], revisions=["main"], store={"dtype": "int8"})
    assert estimate(plan, int8, MILLION).entries[0].store_bytes == 24 * 10**6 * (1024 + 4)
    # Kaplan et al.: about 2 FLOPs a parameter of the blocks (302 M) and token.
    assert costs.flops == pytest.approx(2 * 302e6 * 2e7, rel=0.01)


def test_the_published_tasks_are_the_size_that_was_measured():
    # Measured on the data sets: 1.41 M unique texts; a checkpoint of 410m takes 64.5 GiB.
    wanted = config(tasks=["layer_by_layer_32"])
    size = corpus_size(wanted)
    assert not size.exact and len(size.tasks) == 32 and not size.unknown
    assert size.texts == pytest.approx(1.41e6, rel=0.03)
    costs = estimate(make_plan(wanted, nominal(wanted)), wanted, size)
    by_width = {e.key: e.store_bytes / 2**30 for e in costs.entries}
    for model, gib in (("14m", 2.0), ("70m", 8.1), ("410m", 64.5)):
        assert by_width[f"EleutherAI--pythia-{model}/main"] == pytest.approx(gib, rel=0.03)
    assert (costs.exhaustive_pulls, costs.budget_pulls) == (9216, 3200)
    fast = next(s for s in costs.savings if "fast" in s.change)
    assert fast.store_bytes < costs.store_bytes / 2
    assert {s.change.split(":")[0] for s in costs.savings} == {
        "tasks", "corpus.max_texts_per_task", "embedding.layers", "store.dtype",
    }  # fmt: skip


def test_a_cap_bounds_every_task():
    assert MILLION.capped(1000).texts == 2000
    assert MILLION.capped(1000).tokens == pytest.approx(40_000)
    assert MILLION.capped(500_000).texts == 900_000
    wanted = config(tasks=["STS12"], corpus={"max_texts_per_task": 100})
    assert corpus_size(wanted).texts == 100


@pytest.mark.parametrize(
    ("bandit", "pulls", "words"),
    [
        ({"budget": 10}, 20, "10 x 2 tasks"),
        ({"budget": 10**6}, 576, "1e+06 x 2 tasks"),
        ({"budget": {"pulls": 7}}, 7, "7 pulls"),
        ({"budget": {"seconds": 90}}, None, "90 s"),
    ],
)
def test_what_the_budget_buys(bandit, pulls, words):
    wanted = config(bandit=bandit)
    costs = estimate(make_plan(wanted, nominal(wanted)), wanted, MILLION)
    assert (costs.budget_pulls, costs.budget) == (pulls, words)
    assert costs.exhaustive_pulls == 576


def test_an_unknown_gpu_lists_the_known():
    wanted = config()
    with pytest.raises(UsageError, match=r"unknown GPU 'h900'; valid: .*h100"):
        estimate(make_plan(wanted, nominal(wanted)), wanted, MILLION, gpu="h900")


def test_a_faster_gpu_is_no_slower():
    wanted = config(models=["EleutherAI/pythia-12b"])
    plan = make_plan(wanted, nominal(wanted))
    hours = [estimate(plan, wanted, MILLION, gpu=g).gpu_seconds for g in ("t4", "a100", "H100")]
    assert hours == sorted(hours, reverse=True) and hours[0] > 3 * hours[2]


def test_a_start_is_of_the_device_and_of_the_weights():
    wanted = config(models=[PYTHIAS[0], "EleutherAI/pythia-12b"], revisions=["main"])
    plan = make_plan(wanted, nominal(wanted))
    starts = {
        device: [e.start_seconds for e in estimate(plan, wanted, MILLION, gpu=device).entries]
        for device in ("cpu", "t4", "h100")
    }
    assert 1 < starts["cpu"][0] < 10 and starts["t4"] == starts["h100"]
    for small, large in starts.values():
        assert large - small > 30  # 12e9 parameters are read and checked, wherever.
    assert starts["cpu"][0] < starts["h100"][0] < 20


def test_what_the_store_recorded_is_what_time_is_taken_from():
    wanted = config(models=[PYTHIAS[0]], revisions=["step1000", "main"])
    plan = make_plan(wanted, nominal(wanted))
    first, _ = plan.entries
    # A quarter of an index in two processes, on whatever device it was.
    measured = {
        first.key: Timing(2, start_seconds=6.0, tokens=int(MILLION.tokens) // 4, seconds=500.0),
        "gone/main": Timing(1, start_seconds=900.0, tokens=7, seconds=900.0),
    }
    for gpu in (None, "t4", "cpu"):
        costs = estimate(plan, wanted, MILLION, gpu=gpu, measured=measured)
        assert [e.gpu_seconds for e in costs.entries] == pytest.approx([2003.0] * 2, rel=1e-3)
        assert [e.start_seconds for e in costs.entries] == [3.0, 3.0]
        text = plan_table(plan, costs)
        assert "as the store recorded it" in " ".join(text.split()) and "on one t4" not in text


def test_what_was_recorded_on_a_busy_machine_is_the_most_and_says_so():
    wanted = config(models=[PYTHIAS[0]], revisions=["step1000", "step2000", "main"])
    plan = make_plan(wanted, nominal(wanted))
    quarter = int(MILLION.tokens) // 4
    first, second, third = (entry.key for entry in plan.entries)
    calm = {first: Timing(1, 3.0, quarter, 500.0), third: Timing(1, 3.0, 1, 500.0)}
    costs = estimate(plan, wanted, MILLION, measured=calm)
    text = " ".join(plan_table(plan, costs).split())
    assert costs.least_seconds == costs.gpu_seconds
    assert "recorded it of 2 of 3 indexes: 3 s to start" in text and "The least" not in text

    # The second one had a core for a fifth of its time.
    busy = {first: calm[first], second: Timing(1, 5.0, quarter, 2500.0, 2.0, 2000.0)}
    costs = estimate(plan, wanted, MILLION, measured=busy)
    assert costs.gpu_seconds == pytest.approx(3 * (4 + 6000), rel=1e-3)
    assert costs.least_seconds == pytest.approx(3 * (3 + 2000), rel=1e-3)
    text = " ".join(plan_table(plan, costs).split())
    assert "1 h 40 min to 5 h 00 min on one as recorded" in text
    assert "of 2 of 3 indexes, whose paces differ by a factor of 5.0: 4 s to start" in text
    assert "The least is with the cores to itself" in text


@pytest.fixture
def free(tmp_path, monkeypatch):
    """Sets how many bytes every disk has left."""
    usage = shutil.disk_usage(tmp_path)

    def set_to(size):
        monkeypatch.setattr(
            "batchsweep.plan.space.shutil.disk_usage", lambda path: usage._replace(free=size)
        )

    return set_to


def space_in(path, **sections):
    """The space that a sweep has with its store there, and its plan, config and costs."""
    wanted = config(store={"path": str(path), **sections.pop("store", {})}, **sections)
    plan = make_plan(wanted, nominal(wanted))
    costs = estimate(plan, wanted, MILLION)
    return space(plan, wanted, costs), plan, costs


def test_a_sweep_too_large_for_the_disk_is_refused_with_both_numbers(tmp_path, free):
    free(10 * 2**30)
    path = tmp_path / "not" / "yet" / "store.zarr"
    with pytest.raises(
        UsageError, match=r"needs 424 GiB for .*, and 10 GiB are free on /"
    ) as error:
        check_space(space_in(path)[0])
    assert "corpus: {max_texts_per_task" in str(error.value)
    check_space(space_in("s3://bucket/store.zarr")[0])
    free(10**15)
    check_space(space_in(tmp_path / "store.zarr")[0])


@pytest.mark.parametrize(
    ("gibibytes", "changes"),
    [
        (500, ()),
        (230, ("store: {dtype: int8}",)),
        (20, ("corpus: {max_texts_per_task: 20000}",)),
        (10, ("store: {dtype: int8}", "corpus: {max_texts_per_task: 20000}")),
        (0.0001, ()),
    ],
)
def test_what_would_fit_is_said_and_does(tmp_path, free, gibibytes, changes):
    free(int(gibibytes * 2**30))
    found, plan, costs = space_in(tmp_path / "store.zarr")
    assert found.changes == changes
    shown = " ".join(plan_table(plan, costs, found).split())
    assert "are free on" in shown
    assert ("would: " + "; ".join(changes) in shown) == bool(changes)
    assert ("does not fit" in shown) == (not found.fits)
    if changes:
        sections = {k: v for line in changes for k, v in yaml.safe_load(line).items()}
        sections["store"] = {**sections.get("store", {}), "path": str(tmp_path / "store.zarr")}
        smaller = config(**sections)
        cap = smaller.corpus.max_texts_per_task
        size = MILLION if cap is None else MILLION.capped(cap)
        again = make_plan(smaller, nominal(smaller))
        assert estimate(again, smaller, size).store_bytes <= found.free


def test_a_second_plan_of_published_tasks_imports_no_mteb(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"models": PYTHIAS, "tasks": ["STS12", "layer_by_layer_32"]}))
    code = (
        "import sys; from batchsweep.cli.main import main;"
        f"assert main(['plan', '--json', '--config', {str(path)!r}]) == 0;"
        "print(*{'mteb', 'torch', 'datasets', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    environ = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert "mteb" in runs[0][-1] and runs[1][-1] == ""
    first, second = (json.loads("\n".join(lines[:-1])) for lines in runs)
    assert (first["plan"], first["costs"]) == (second["plan"], second["costs"])


def test_the_table_says_what_a_decision_needs():
    wanted = config(tasks=["layer_by_layer_32"])
    plan = make_plan(wanted, nominal(wanted))
    text = plan_table(plan, estimate(plan, wanted, corpus_size(wanted)))
    for fact in ("192", "288", "24: 0 to 23", "3,200 (35%) of 9,216", "64.9 GiB", "h100", "16-23"):
        assert fact in text, fact
    assert "Not audited" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_table_names_what_was_skipped_and_merged(suite):
    wanted = local(suite, "step0", "step9", "main")
    shutil.copytree(Path(suite, "main"), Path(suite, "step5"))
    wanted = local(suite, "step0", "step5", "step9", "main")
    plan = planned(wanted)
    text = plan_table(plan, estimate(plan, wanted, MILLION))
    assert "step9: missing" in text
    assert "1 revision serves the weights of main: step5" in text


# The command


def test_plan_has_no_side_effect(tmp_path, monkeypatch, capsys, suite):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"models": [suite], "revisions": ["main"], "tasks": ["STS12"]}))
    before = sorted(p for p in tmp_path.rglob("*") if "hf" not in p.parts)
    assert main(["plan", "--config", str(path)]) == 0
    assert "indexes   1: 0 to 0" in capsys.readouterr().out
    assert sorted(p for p in tmp_path.rglob("*") if "hf" not in p.parts) == before


def test_plan_as_json(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"models": PYTHIAS, "revisions": "main", "tasks": ["STS12"]}))
    assert main(["plan", "--config", str(path), "--gpu", "a100", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["plan"]["entries"]) == 3 and document["costs"]["gpu"] == "a100"
    assert document["costs"]["store_bytes"] > 0
    assert document["disk"]["free"] > 0 and document["disk"]["url"].endswith("store.zarr")


def test_plan_shows_the_frozen_plan(tmp_path, capsys, suite):
    path = tmp_path / "c.yaml"
    sections = {
        "models": [suite],
        "revisions": ["step0", "step8", "step99"],
        "tasks": ["STS12"],
        "store": {"path": str(tmp_path / "store.zarr")},
    }
    path.write_text(json.dumps(sections))
    wanted = parse(path.read_text(), source=str(path))
    freeze(planned(wanted), create_store(tmp_path / "store.zarr"), wanted)
    assert main(["plan", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Not audited" not in out and "step99: missing" in out


def test_a_model_that_must_be_asked_needs_the_hub(monkeypatch):
    from huggingface_hub import constants

    from batchsweep.checkpoints.hub import Hub

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(TryAgain):
        nominal(config(models=["org/model"]), hub=Hub(attempts=1))


def test_strict_names_the_unavailable(suite):
    with pytest.raises(IndexFailed, match="step99: missing"):
        audit(local(suite, "step0", "step99"), strict=True)


def test_every_schedule_of_the_issue_plans(tmp_path):
    for strategy, count in {"uniform": 29, "log": 20, "dense": 143}.items():
        wanted = config(models=PYTHIAS[:1], revisions={"strategy": strategy})
        assert len(make_plan(wanted, nominal(wanted)).entries) == count == len(schedule(strategy))


def test_a_plan_survives_json(suite):
    plan = planned(local(suite, "step0", "main", "step77"))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), source="x") == plan
