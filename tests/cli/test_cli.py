"""The command line: help, exit codes and the one-line errors."""

import itertools
import subprocess
import sys
import time

import pytest

from batchsweep.cli import main as cli
from batchsweep.errors import UsageError
from batchsweep.jobs.index import index_from_environment


def run(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "batchsweep", *args], capture_output=True, text=True, **kwargs
    )


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from batchsweep.cli.main import build_parser; build_parser().format_help();"
        "heavy = {'torch', 'mteb', 'zarr', 'numpy', 'pydantic', 'yaml'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_answers_at_once():
    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 0
    # 0.3 s is promised on an idle machine (measured: 0.04 s); a busy CI gets slack.
    assert time.monotonic() - start < 3


def _commands():
    actions = cli.build_parser()._subparsers._group_actions
    return sorted(actions[0].choices)


@pytest.mark.parametrize("command", _commands())
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"batchsweep {command}" in capsys.readouterr().out.split("example:")[1]


def test_a_wrong_config_exits_2_with_one_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("models: [a/b]\ntasks: [STS12]\nembeding: {}\n")
    done = run("plan", "--config", str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{path}:3: embeding: unknown key" in done.stderr


def test_wrong_usage_exits_2():
    assert run("extract", "--config", "x", "--index", "-1").returncode == 2
    assert run("extract").returncode == 2
    assert run("nonsense").returncode == 2


@pytest.mark.parametrize(
    ("environ", "index"),
    [
        ({"JOB_COMPLETION_INDEX": "0"}, 0),
        ({"SLURM_ARRAY_TASK_ID": "12"}, 12),
        ({"JOB_COMPLETION_INDEX": "3", "SLURM_ARRAY_TASK_ID": "3"}, 3),
    ],
)
def test_index_from_environment(environ, index):
    assert index_from_environment(environ) == index


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "give --index N or --all"),
        ({"JOB_COMPLETION_INDEX": ""}, "give --index N or --all"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "must be a whole number from 0"),
        ({"JOB_COMPLETION_INDEX": "two"}, "must be a whole number from 0"),
        (
            {"JOB_COMPLETION_INDEX": "1", "SLURM_ARRAY_TASK_ID": "2"},
            "JOB_COMPLETION_INDEX=1 but SLURM_ARRAY_TASK_ID=2",
        ),
    ],
)
def test_no_usable_index_says_what_to_set(environ, says):
    with pytest.raises(UsageError, match=says):
        index_from_environment(environ)


def test_help_names_the_policies_that_there_are():
    from batchsweep.bandit.policies import POLICIES
    from batchsweep.bandit.policy_names import POLICY_NAMES

    assert tuple(POLICIES) == POLICY_NAMES


def test_replay_prints_a_summary_and_draws_it(tmp_path, capsys):
    cells = itertools.product((1, 2, 4, 8), (1, 2, 3), "AB")
    rows = ["revision,step,layer,task,score"]
    rows += [f"step{n},{n},{layer},{task},{0.1 * layer + 0.01 * n}" for n, layer, task in cells]
    (tmp_path / "scores.csv").write_text("\n".join(rows) + "\n")
    argv = ["replay", "--scores", str(tmp_path / "scores.csv"), "--policy", "random,heuristic"]
    argv += ["--pulls", "24", "--seeds", "0:2", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    assert "heuristic" in capsys.readouterr().out
    assert (tmp_path / "out" / "replay.png").stat().st_size > 10_000
    assert cli.main([*argv, "--seeds", "2:1"]) == 2
    assert "give a range such as 0:40" in capsys.readouterr().err
