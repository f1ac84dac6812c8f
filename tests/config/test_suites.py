"""Short names of published suites, and a user's own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from batchsweep.checkpoints.checkpoint import PLACEHOLDER
from batchsweep.checkpoints.schedules import schedule, schedule_among
from batchsweep.cli.main import main
from batchsweep.config import Config
from batchsweep.config.load import parse
from batchsweep.config.suites import published
from batchsweep.errors import ConfigError
from batchsweep.plan.plan import deciding

MINE = """
mine:
  title: My own runs
  source: https://example.org/paper
  checked: all of it
  revisions: step1 and on
  tokens_per_step: 1024
  step_pattern: 'at(\\d+)'
  models: {small: me/small, "s{1-2}": "me/s{1-2}"}
"""


def config_of(models: str, more: str = "") -> Config:
    return parse(f"models: {models}\ntasks: [STS12]\n{more}", source="sweep.yaml")


def test_every_suite_has_a_source_and_ids_that_the_hub_could_have() -> None:
    for name, suite in published().items():
        assert suite.source.startswith("https://"), name
        assert all(fault.source.startswith("https://") for fault in suite.faults), name
        for short, model in suite.ids().items():
            assert re.fullmatch(r"[\w.-]+/[\w.{}-]+", model), (name, short)
            assert "{" not in model.replace(PLACEHOLDER, ""), (name, short)
    assert published()["polypythias"].ids()["70m-seed9"] == "EleutherAI/pythia-70m-seed9"
    assert len(published()["polypythias"].ids()) == 5 * 9 + 2 * 3


def test_short_names_are_hub_ids_and_bring_what_is_known_of_them() -> None:
    config = config_of("[pythia/14m, {name: smollm3/3b, revisions: [main]}, EleutherAI/pythia-70m]")
    assert [m.name for m in config.models] == [
        "EleutherAI/pythia-14m", "HuggingFaceTB/SmolLM3-3B-checkpoints", "EleutherAI/pythia-70m",
    ]  # fmt: skip
    assert [m.tokens_per_step for m in config.models] == [2097152, 2359296, None]
    assert config.models[1].revisions == ("main",)
    assert config_of("pythia/1.4b").models[0].name == "EleutherAI/pythia-1.4b"


def test_a_directory_of_that_name_stands_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pythia" / "14m").mkdir(parents=True)
    assert config_of("[pythia/14m]").models[0].name == "pythia/14m"


def test_an_unknown_model_of_a_suite_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"suite 'olmo2' has 1b, 7b, 13b, 32b"):
        config_of("[olmo2/3b]")


def test_a_users_own_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    config = config_of("[mine/small, mine/s2, pythia/14m]", f"suites: {path}")
    assert [m.name for m in config.models] == ["me/small", "me/s2", "EleutherAI/pythia-14m"]
    assert config.models[0].step_pattern == r"at(\d+)"
    assert main(["suites", "--suites", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["mine"]["models"] == {"small": "me/small", "s1": "me/s1", "s2": "me/s2"}
    path.write_text(MINE.replace("title: My own runs", "titel: My own runs"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: mine\.title: Field required"):
        config_of("[mine/small]", f"suites: {path}")
    with pytest.raises(ConfigError, match="can't be read"):
        config_of("[mine/small]", f"suites: {tmp_path / 'absent.yaml'}")


def test_the_command_lists_suites_and_what_is_known_of_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["suites"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in published())
    assert main(["suites", "pythia"]) == 0
    out = capsys.readouterr().out
    assert "https://github.com/EleutherAI/pythia/issues/205" in out
    assert "tokens a step: 2,097,152" in out and "pythia/2.8b-deduped" in out
    assert main(["suites", "nobody"]) == 2
    assert "valid: pythia, polypythias" in capsys.readouterr().err


def test_points_are_spread_evenly_and_end_with_the_last() -> None:
    twelve = schedule("log", points=12)
    assert len(twelve) == 12 and twelve[0] == "step0" and twelve[-1] == "step143000"
    steps = [int(name[4:]) for name in twelve]
    assert steps == sorted(steps) and steps[6] < 2000, "half of them in the first per cent"
    assert schedule("uniform", points=3) == ["step0", "step71000", "step143000"]
    own = {f"ckpt_{i}": i for i in range(360)}
    four = schedule_among(own, "uniform", points=4)
    assert four == ["ckpt_0", "ckpt_120", "ckpt_239", "ckpt_359"]
    with pytest.raises(ConfigError, match="uniform and log have a number of points"):
        schedule("dense", points=4)
    with pytest.raises(ConfigError, match="no interval beside it"):
        schedule("uniform", 5000, points=4)


def test_frozen_plans_of_before_stay_what_they_are() -> None:
    config = config_of("[pythia/14m]", "revisions: {strategy: sparse}")
    value = deciding(config)
    assert value["revisions"] == {"strategy": "sparse", "interval": None}
    assert "tokens_per_step" not in value["models"][0]
    assert deciding(config_of("[EleutherAI/pythia-14m]", "revisions: {strategy: sparse}")) == value


@pytest.mark.parametrize(
    ("short", "says"),
    [
        ("s{1-999999999}", "to 1000 models"),
        ("s{5-1}", "from the smaller number"),
        ("s{1-" + "9" * 900 + "}", "no such|has s"),
    ],
)
def test_a_range_without_end_fills_no_memory(tmp_path: Path, short: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(MINE.replace("s{1-2}", short, 1))
    with pytest.raises(ConfigError, match=says):
        config_of("[mine/none]", f"suites: {tmp_path / 'mine.yaml'}")


def test_suites_that_are_no_file_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ConfigError, match="no regular file"):
            config_of("[mine/none]", f"suites: {path}")


def test_a_name_that_no_file_can_have_is_no_file() -> None:
    with pytest.raises(ConfigError):
        config_of(f"[pythia/{'x' * 5000}]")
