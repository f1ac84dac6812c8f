"""The YAML file: what is accepted, and the one line that says what is wrong with the rest."""

import logging
from pathlib import Path

import pytest

from batchsweep import config
from batchsweep.errors import ConfigError, UsageError
from batchsweep.jobs.cluster import Cluster
from batchsweep.jobs.elsewhere import elsewhere
from batchsweep.jobs.kubernetes import check_store
from batchsweep.plan.space import disk_of

MINIMAL = "models: [org/model]\ntasks: [STS12]\n"


def parse(text):
    return config.parse(text, source="sweep.yaml")


def test_minimal_config_has_the_documented_defaults():
    sweep = parse(MINIMAL)
    assert [m.name for m in sweep.models] == ["org/model"]
    assert sweep.revisions == ("main",)
    assert sweep.embedding.layer_output == "final_norm"
    assert sweep.embedding.pooling == ("mean",)
    assert sweep.store.dtype == "float16"
    assert sweep.bandit.budget == 100
    assert sweep.store_url == "runs/sweep/store.zarr"


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ("{bytes: 20GiB}", "20 GiB"),
        ("{bytes: 500 MB, checkpoints: 10}", "0.466 GiB, 10 checkpoints"),
        ("{gpu_hours: 5, pulls: 400}", "400 pulls, 5 GPU hours"),
    ],
)
def test_a_budget_may_limit_what_is_extracted(budget, text):
    bandit = parse(MINIMAL + f"bandit: {{budget: {budget}}}\n").bandit
    assert bandit.budget_text(32) == text
    assert bandit.budget_for(288, 32) == (400 if "pulls" in text else 288 * 32, None)


def test_default_name_and_store_come_from_the_file(tmp_path):
    path = tmp_path / "my_sweep.yaml"
    path.write_text(MINIMAL + "store: {format: hdf5}\n")
    assert config.load(path).store_url == "runs/my_sweep/store-hdf5"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("runs/x/store.zarr", Path("runs/x/store.zarr")),
        ("file:///shared/x/store.zarr", Path("/shared/x/store.zarr")),
        ("s3://bucket/store.zarr", None),
    ],
)
def test_whether_a_store_is_on_this_machine_is_the_same_everywhere(
    url, path, tmp_path, monkeypatch
):
    monkeypatch.setattr("batchsweep.jobs.elsewhere.elsewhere_indexes", lambda *_: ((0,), False))
    sweep = parse(MINIMAL + f"store: {{path: '{url}'}}\n")
    assert config.local_path(url) == path
    assert sweep.run_folder == (Path("runs/sweep") if path is None else path.parent)
    assert (disk_of(sweep) is None) == (path is None)
    try:
        elsewhere(tmp_path / "sweep.yaml", sweep, "0", submit=False)
    except UsageError as error:
        assert path is not None and "is a folder of this machine" in str(error)
    else:
        assert path is None
    try:
        check_store(url, Cluster(workdir="/"))
    except UsageError as error:
        assert path is not None and f"would be {path} in the cluster" in str(error)
    else:
        assert path in (None, Path("runs/x/store.zarr"))


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path):
    config.load(path)


def test_full_default_is_the_published_sweep():
    sweep = config.load("configs/mteb_layersweep.yaml")
    assert [m.name for m in sweep.models] == [
        f"EleutherAI/pythia-{s}" for s in ("14m", "70m", "410m")
    ]
    assert sweep.revisions == (
        *(f"step{n}" for n in (1000, 2000, 5000, 10000, 20000, 40000, 80000)),
        "main",
    )
    assert sweep.tasks == ("layer_by_layer_32",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            MINIMAL + "embeding: {}\n",
            "sweep.yaml:3: embeding: unknown key; did you mean 'embedding'?",
        ),
        (
            MINIMAL + "embedding:\n  pooling: men\n",
            "sweep.yaml:4: embedding.pooling: should be 'mean', 'last', 'first', 'max' or "
            "'weighted_mean'; got 'men'",
        ),
        (
            MINIMAL + "embedding:\n  dtype: auto\n  poolng: mean\n",
            "sweep.yaml:5: embedding.poolng: unknown key; did you mean 'pooling'? Valid keys:",
        ),
        (
            MINIMAL + "revisions: {strategy: spars}\n",
            "sweep.yaml:3: revisions.strategy: should be 'sparse', 'uniform', 'log', 'dense' or "
            "'all'; got 'spars'",
        ),
        (
            MINIMAL + "bandit: {budget: {pul: 3}}\n",
            "sweep.yaml:3: bandit.budget.pul: unknown key; did",
        ),
        (
            MINIMAL + "bandit: {budget: {bytes: 20 gigs}}\n",
            "budget.bytes: should be a number of bytes",
        ),
        (MINIMAL + "bandit: {budget: {}}\n", "give one of pulls, seconds, gpu_hours"),
        (
            MINIMAL + "bandit: {budget: {pulls: 3, seconds: 4}}\n",
            "give exactly one of 'pulls' and 'seconds'",
        ),
        (
            MINIMAL + "bandit: {budget: -1}\n",
            "sweep.yaml:3: bandit.budget: should be greater than 0",
        ),
        (
            "models: [{nme: a}]\ntasks: [x]\n",
            "sweep.yaml:1: models.0.nme: unknown key; did you mean 'name'",
        ),
        ("models: a/b\n", "sweep.yaml:1: (top level): missing key 'tasks'"),
        ("models: a/b\ntasks: []\n", "sweep.yaml:2: tasks: "),
        (
            MINIMAL + "revisions: [step1, 12]\n",
            "sweep.yaml:3: revisions.1: should be a valid string; got 12",
        ),
        ("models: a: b\n", "sweep.yaml:1: not valid YAML"),
        ("- models\n", "sweep.yaml:1: a config is a mapping of keys"),
        ("", "sweep.yaml:1: a config is a mapping of keys"),
        (
            MINIMAL + "tasks: [STS13]\n",
            "sweep.yaml:3: key 'tasks' is there twice (first on line 2)",
        ),
        (
            MINIMAL + "store: {path: a, path: b}\n",
            "sweep.yaml:3: key 'path' is there twice (first on line 3)",
        ),
        (MINIMAL + "name: a b\n", "sweep.yaml:3: name: "),
    ],
)
def test_a_wrong_config_is_one_line_with_the_place_and_the_choices(text, says):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_repeated_revisions_take_the_last_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        sweep = parse(MINIMAL + "revisions: [step1]\nrevisions:\n- step2\n- main\n")
    assert sweep.revisions == ("step2", "main")
    assert "sweep.yaml:4: 'revisions' is there more than once (first on line 3)" in caplog.text


def test_missing_file_names_the_closest(tmp_path):
    (tmp_path / "quick.yaml").write_text(MINIMAL)
    with pytest.raises(
        ConfigError, match=r"quik\.yaml: no such config file; did you mean .*quick\.yaml\?"
    ):
        config.load(tmp_path / "quik.yaml")


def test_digest_moves_with_what_decides_the_bytes_and_only_with_that():
    base = parse(MINIMAL).embedding_digest
    same = [
        "bandit: {seed: 7}\n",
        "embedding: {device: cpu}\n",
        "store: {path: elsewhere}\n",
        "embedding: {pooling: [mean]}\n",
        "embedding: {transforms: [stored, center]}\n",
    ]
    other = [
        "embedding: {pooling: last}\n",
        "embedding: {layers: [1]}\n",
        "embedding: {prefix: 'query: '}\n",
        "store: {dtype: float32}\n",
        "store: {block_texts: 8}\n",
    ]
    assert {parse(MINIMAL + text).embedding_digest for text in same} == {base}
    digests = {parse(MINIMAL + text).embedding_digest for text in other}
    assert len(digests) == len(other)
    assert base not in digests
