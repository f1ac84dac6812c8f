"""Revision names, steps, schedules, and lists of revisions in config files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from batchsweep.checkpoints.checkpoint import Checkpoint, normalise_revision, step_of, steps_in
from batchsweep.checkpoints.hub import RemoteFile
from batchsweep.checkpoints.revisions_file import (
    render_revisions,
    replace_revisions,
    write_revisions,
)
from batchsweep.checkpoints.schedules import schedule, schedule_among
from batchsweep.checkpoints.sources import listing_of
from batchsweep.checkpoints.weight_files import WeightFile, missing_shards, weight_names
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import ConfigError, Unavailable
from batchsweep.forward.loading import fetch

ROOT = Path(__file__).parents[2]


# Names and steps


@pytest.mark.parametrize(
    ("written", "real"),
    [
        ("step-1000", "step1000"),
        ("step1000", "step1000"),
        (" main ", "main"),
        ("ckpt-5", "ckpt-5"),
        ("step-1000-tokens2B", "step-1000-tokens2B"),
    ],
)
def test_hyphenated_steps_are_understood(written, real):
    assert normalise_revision(written) == real


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step0", 0),
        ("step143000", 143_000),
        ("main", None),
        ("stage1-step101000-tokens424B", 101_000),
        ("step738020-unsharded", 738_020),
        ("ckpt_356", 356),
        ("checkpoint-500", 500),
        ("global_step1000", 1000),
        ("iter_0000500", 500),
        ("seed_0-step_20k", 20_000),
        ("step_20k", 20_000),
        ("stage2-ingredient1-step1000-tokens5B", 1000),
        ("ext1000", 1000),
        ("decay100", 100),
        ("0000020000", 20_000),
        ("240b_tokens", 240_000_000_000),
        ("step-001000-2BT", 1000),
        ("step69369-seed-default", 69_369),
        ("seed-large-aux-3", None),
        ("step1.5", None),
        ("footstep3x", None),
        ("v1.0", None),
        ("a" * 40, None),
    ],
)
def test_steps_in_the_names_of_published_suites(revision, step):
    assert step_of(revision) == step


def test_stages_stand_behind_one_another():
    olmo = [
        "main",
        "stage2-ingredient1-step1000-tokens5B",
        "stage1-step150-tokens1B",
        "stage2-ingredient3-step11931-tokens50B",
        "stage1-step928646-tokens3896B",
    ]
    assert steps_in(olmo) == {
        "stage1-step150-tokens1B": 150,
        "stage1-step928646-tokens3896B": 928_646,
        "stage2-ingredient1-step1000-tokens5B": 929_646,
        "stage2-ingredient3-step11931-tokens50B": 940_577,
    }
    ettin = ["decay100", "step500", "ext1000", "ext200"]
    assert steps_in(ettin) == {"step500": 500, "ext200": 700, "ext1000": 1500, "decay100": 1600}
    counted_on = {"stage1-step-40000": 40_000, "stage2-step-80000": 80_000}
    assert steps_in(counted_on) == counted_on
    assert steps_in(olmo, r"stage2.*step(\d+)") == {olmo[1]: 1000, olmo[3]: 11_931}


def test_a_pattern_of_ones_own():
    assert step_of("tokens-3B", r"tokens-(\d+)B") == 3
    assert step_of("stage2-step5-x", r"stage1-step(\d+)") is None
    assert step_of("at_2M", r"at_(\d+M)") == 2_000_000
    # A branch may be called anything.
    for name in ("step" + "9" * 5000, "step" + "9" * 19, "step999999999999999999k"):
        assert step_of(name) is None and step_of(name, r"step(\d+k?)") is None


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "no regular expression"),
        (r"step\d+", "has no group"),
        (r"(step\d+)", "finds 'step7' in 'step7'"),
        (r"step7(x)?", "finds '' in 'step7'"),
    ],
)
def test_a_pattern_that_finds_no_step_is_refused(pattern, says):
    with pytest.raises(ConfigError) as error:
        step_of("step7", pattern)
    assert says in str(error.value)


# Schedules


def test_sparse_is_the_published_list():
    assert schedule("sparse") == [
        *(f"step{s}" for s in (1000, 2000, 5000, 10_000, 20_000, 40_000, 80_000)),
        "main",
    ]


def test_the_sizes_of_the_schedules():
    sizes = {s: len(schedule(s)) for s in ("sparse", "uniform", "log", "dense", "all")}
    assert sizes == {"sparse": 8, "uniform": 29, "log": 20, "dense": 143, "all": 154}
    uniform = schedule("uniform", 5000)
    assert uniform == [*(f"step{s}" for s in range(5000, 145_000, 5000)), "main"]
    assert schedule("log")[:7] == [
        *(f"step{s}" for s in range(1000, 6000, 1000)),
        "step10000",
        "step20000",
    ]


@pytest.mark.parametrize("strategy", ["sparse", "uniform", "log", "dense", "all"])
def test_every_schedule_is_made_of_published_branches_in_order(strategy):
    published = {f"step{s}" for s in [0, *(2**n for n in range(10)), *range(1000, 144_000, 1000)]}
    assert len(published) == 154
    names = schedule(strategy)
    assert set(names) <= published | {"main"}
    steps = [step_of(n) if n != "main" else 143_000 for n in names]
    assert steps == sorted(set(steps)) and steps[-1] == 143_000


@given(st.integers(1, 143).map(lambda n: 1000 * n), st.sampled_from(["uniform", "dense"]))
def test_any_interval_ends_with_the_final_weights_once(interval, strategy):
    names = schedule(strategy, interval)
    assert ("main" in names) != ("step143000" in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("strategy", "interval", "says"),
    [
        ("every", None, "valid: sparse, uniform, log, dense, all"),
        ("sparse", 1000, "has no interval; uniform and dense have one"),
        ("uniform", 1500, "give a multiple of 1000"),
        ("uniform", 0, "must be above 0"),
        ("dense", -1000, "must be above 0"),
        ("uniform", 200_000, "training ends at step 143000"),
    ],
)
def test_a_schedule_that_no_branch_can_follow_is_refused(strategy, interval, says):
    with pytest.raises(ConfigError) as error:
        schedule(strategy, interval)
    assert says in str(error.value)


def test_schedules_on_another_suite():
    ckpts = {f"ckpt_{n:03d}": n for n in range(360)}
    sparse = schedule_among(ckpts, "sparse")
    assert sparse[0] == "ckpt_003" and sparse[-1] == "ckpt_359" and len(sparse) == 8
    assert schedule_among(ckpts, "uniform", 100) == [
        "ckpt_100", "ckpt_200", "ckpt_300", "ckpt_359",
    ]  # fmt: skip
    assert len(schedule_among(ckpts, "uniform")) == 29
    assert len(schedule_among(ckpts, "dense")) == 359
    assert schedule_among(ckpts, "all") == list(ckpts)
    with pytest.raises(ConfigError, match="give the model a step_pattern"):
        schedule_among({}, "sparse")


@given(
    st.dictionaries(st.text("abc", min_size=1), st.integers(0, 10**6), min_size=1),
    st.sampled_from(["sparse", "uniform", "log", "dense", "all"]),
)
def test_a_schedule_of_any_suite_has_its_last_step_and_no_name_twice(available, strategy):
    names = schedule_among(available, strategy)
    assert max(available.values()) == available[names[-1]]
    assert len(set(names)) == len(names) and set(names) <= set(available)


# Weight files


def test_the_best_format_comes_first():
    names = ["pytorch_model.bin", "model.safetensors", "optimizer.bin", "training_args.bin"]
    assert weight_names(names) == {
        ".safetensors": ["model.safetensors"],
        ".bin": ["pytorch_model.bin"],
    }
    assert weight_names(["config.json", "model.safetensors.index.json"]) == {}


def test_shards_that_are_not_there_are_counted():
    assert missing_shards(["model-00001-of-00003.safetensors"]) == 2
    assert missing_shards([f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]) == 0
    assert missing_shards(["model.safetensors"]) == 0


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], []),
        (["model-1-of-2.safetensors", "model-2-of-2.safetensors"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["modelling-00001-of-00001.safetensors", "old/model-1-of-1.safetensors"], []),
        (["model-00001-of-00002.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
    ],
)
def test_the_audit_and_the_loader_take_the_same_files(tmp_path, names, weights):
    content = dict.fromkeys([*names, "config.json"], RemoteFile("0" * 64, 1))
    listing = listing_of(content, "0" * 40)
    expected = names if weights is None else weights
    assert [file.name for file in listing.loaded] == expected
    for name in content:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if expected:
        assert fetch(str(tmp_path), "main") == tmp_path
    else:
        with pytest.raises(Unavailable, match="no model"):
            fetch(str(tmp_path), "main")


def test_keys_are_safe_paths():
    assert (
        Checkpoint("EleutherAI/pythia-410m", "step1000").key == "EleutherAI--pythia-410m/step1000"
    )
    assert Checkpoint("/data/my suite/xs/", "step 1", local=True).key == "xs/step-1"
    assert Checkpoint("org/m", "refs/pr/3").key == "org--m/refs--pr--3"
    assert Checkpoint("../..", "..", local=True).key == "model/model"


def test_a_checkpoint_survives_json():
    one = Checkpoint("m", "r", "c", 3, (WeightFile("w", "ab", 7),), ("x",), local=True)
    assert Checkpoint.from_json(json.loads(json.dumps(one.to_json()))) == one


# Lists as text, and in config files


def test_formats():
    names = ["step1000", "main"]
    assert render_revisions(names, "yaml") == "revisions:\n  - step1000\n  - main\n"
    assert json.loads(render_revisions(names, "json")) == names
    assert render_revisions(names, "lines") == "step1000\nmain\n"
    assert render_revisions(names, "k8s", models=3) == "completions: 6\n"
    with pytest.raises(ConfigError, match="valid: yaml, json, lines, k8s"):
        render_revisions(names, "toml")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_yaml_gives_any_name_back(names):
    assert yaml.safe_load(render_revisions(names, "yaml"))["revisions"] == names


CONFIG = """\
# The sweep of my thesis.
models:
  - EleutherAI/pythia-14m   # small
revisions:   # eight of them
  # early
  - step1000
  - step-2000   # hyphenated

# What is scored.
tasks: [STS12]
bandit: {budget: 100}   # enough
"""


def test_the_list_is_replaced_in_place_and_comments_stay():
    new = replace_revisions(CONFIG, ["step5000", "main"], source="c.yaml")
    assert (
        new
        == """\
# The sweep of my thesis.
models:
  - EleutherAI/pythia-14m   # small
# eight of them
# early
# hyphenated
revisions:
  - step5000
  - main

# What is scored.
tasks: [STS12]
bandit: {budget: 100}   # enough
"""
    )
    # Again: nothing changes.
    assert replace_revisions(new, ["step5000", "main"], source="c.yaml") == new


@pytest.mark.parametrize(
    "text",
    [
        'models: [a]\nrevisions: ["step1", "main"]  # two\ntasks: [b]\n',
        "models: [a]\nrevisions:\n- step1\n- main\ntasks: [b]\n",
        "models: [a]\nrevisions: [step1,\n   main]\ntasks: [b]",
        "models: [a]\nrevisions: {strategy: sparse}\ntasks: [b]\n",
        "models: [a]\nrevisions:\n  strategy: uniform\n  interval: 5000\ntasks: [b]\n",
        "models: [a]\nrevisions: main\ntasks: [b]\n",
        "models: [a]\ntasks: [b]\n",
        "models: [a]\ntasks: [b]",
        "models: [a]\ntasks: [b]\nrevisions: [x]\nrevisions:\n  - y\n",
        "revisions: [x]\nmodels: [a]\ntasks: [b]\nrevisions: [y]",
        "{models: [a], revisions: [x], tasks: [b]}\n",
        "models: [a]\r\nrevisions:\r\n  - x\r\ntasks: [b]\r\n",
        "---\nmodels: [a]\nrevisions: [x]\ntasks: [b]\n...\n",
    ],
)
def test_only_the_revisions_change(text):
    before = yaml.safe_load(text)
    new = replace_revisions(text, ["step7", "null"], source="c.yaml")
    assert yaml.safe_load(new) == {**before, "revisions": ["step7", "null"]}
    assert new.count("revisions") == 1
    assert all(comment in new for comment in ("# two",) if comment in text)
    assert ("\r\n" in text) == ("\r\n" in new)


@pytest.mark.parametrize(
    "text",
    [
        "r: &r [x]\nrevisions: *r\ntasks: [b]\n",
        "revisions: &r [x]\nother: *r\n",
        "[a, b]\n",
        "models: [a\n",
        "{models: [a]}\n",
    ],
)
def test_a_file_that_would_break_stays_as_it_is(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        write_revisions(path, ["step1"])
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_writing_keeps_link_and_permissions(tmp_path):
    real = tmp_path / "real.yaml"
    real.write_text(CONFIG)
    real.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(real)
    write_revisions(link, ["main"])
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert load(real).revisions == ("main",)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        write_revisions(tmp_path / "no.yaml", ["main"])


# The commands


def test_the_published_script_and_the_command_are_one(capsys):
    flags = ["--strategy", "uniform", "--interval", "5000", "--format", "lines"]
    assert main(["checkpoints", *flags]) == 0
    done = subprocess.run(
        [sys.executable, "generate_checkpoint_list.py", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == capsys.readouterr().out
    assert len(done.stdout.split()) == 29


def test_an_appended_list_takes_effect(tmp_path, capsys, caplog):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    assert main(["checkpoints", "--strategy", "sparse"]) == 0
    with path.open("a") as file:
        file.write(capsys.readouterr().out)
    assert load(path).revisions == tuple(schedule("sparse"))


def test_write_and_k8s_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    assert main(["checkpoints", "--strategy", "log", "--write", str(path)]) == 0
    assert load(path).revisions == tuple(schedule("log"))
    capsys.readouterr()
    assert main(["checkpoints", "--format", "k8s", "--config", str(path)]) == 0
    assert capsys.readouterr().out == "completions: 8\n"


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "sparse", "--interval", "5000"],
        ["--strategy", "uniform", "--interval", "7"],
        ["--audit"],
        ["--model", "/no/such/directory", "--strategy", "all"],
        ["--write", "/no/such/file.yaml"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(flags, capsys):
    assert main(["checkpoints", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("batchsweep checkpoints: ")
