"""A search that submits its waves and itself, with a stand-in for sbatch that the test plays."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_line import parsed
from tiny import make_suite, make_tasks, write_config

from batchsweep.bandit.stored_waves import wave_of
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.jobs.slurm import search_script
from batchsweep.store import open_store
from batchsweep.store.pairs import ready_tasks

REVISIONS = ("step0", "step10", "step1000", "main")


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with an ``sbatch`` that keeps each script and what it was called with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "sbatch"
    tool.write_text(
        "#!/bin/sh\n"
        "n=$(($(cat count 2>/dev/null || echo 0) + 1)); echo $n > count\n"
        'cat > "job-$n"; printf "%s\\n" "$*" > "job-$n.options"\n'
        "[ ! -e full ] || { echo 'sbatch: error: QOSMaxSubmitJobLimit' >&2; exit 1; }\n"
        'echo "$n;cluster"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def config(slurm, suite):
    path = write_config(
        Path("sweep.yaml"),
        models=[str(suite)],
        revisions=list(REVISIONS),
        tasks=make_tasks(slurm / "tasks"),
        store={"path": "runs/sweep/store.zarr"},
        bandit={"budget": {"pulls": 16}},
    )
    return str(path)


def command_in(script: str) -> list[str]:
    """What the script runs."""
    line = next(text for text in script.splitlines() if text.startswith("batchsweep "))
    return shlex.split(line.removesuffix(" &"))[1:]


def extract_wave(script: str, monkeypatch, fails: set[int]) -> int:
    """Play Slurm for an array: its tasks one after the other; how many there are."""
    (last,) = re.findall(r"#SBATCH --array=0(?:-(\d+))?%\d+", script)
    count = int(last or 0) + 1
    for position in set(range(count)) - fails:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(position))
        assert main(command_in(script)) == 0
    return count


@pytest.mark.parametrize("fails", [set(), {0}])
def test_a_search_goes_from_wave_to_wave_until_it_has_its_answer(
    config, slurm, monkeypatch, capsys, fails
) -> None:
    options = ["--gpu", "none", "--parallel", "2", "--extract-options", "--partition=gpu --qos=low"]
    assert main(["launch", "slurm", "--config", config, "--search", *options]) == 0
    script, searches, job = capsys.readouterr().out, 0, 0
    while True:
        searches += 1
        assert main(command_in(script)) == 0
        said = capsys.readouterr().out
        if "best arm:" in said:
            break
        # An array on its way, and the search after it: nothing waits in between.
        job += 2
        array, script = (Path(f"job-{n}").read_text() for n in (job - 1, job))
        assert (
            Path(f"job-{job - 1}.options").read_text() == "--parsable --partition=gpu --qos=low\n"
        )
        assert Path(f"job-{job}.options").read_text() == (
            f"--parsable --dependency=afterany:{job - 1}\n"
        )
        store = open_store(load(config).store_url)
        visits = wave_of(store, searches).visits
        assert f"job {job - 1} extracts {len(visits)} checkpoints" in said
        assert extract_wave(array, monkeypatch, fails) == len(visits)
        fails = set()
        monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert searches > 1
    assert 0 < sum(map(len, ready_tasks(store).values())) <= 8
    # Submitted again: the answer is there, and no job is needed.
    assert main(command_in(script)) == 0
    assert "best arm:" in capsys.readouterr().out
    assert int(Path("count").read_text()) == job


def test_a_queue_that_takes_no_job_is_told_and_the_wave_is_asked_for_again(
    config, slurm, capsys
) -> None:
    (slurm / "full").touch()
    command = ["launch", "slurm", "--config", config, "--search", "--step", "--gpu", "none"]
    assert main(command) == 2
    assert "QOSMaxSubmitJobLimit" in capsys.readouterr().err
    (slurm / "full").unlink()
    assert main(command) == 0
    assert "wave 1: job 2" in capsys.readouterr().out


def test_a_wave_that_nobody_searches_after_is_told(config, slurm, capsys) -> None:
    tool = slurm / "bin" / "sbatch"
    text = tool.read_text()
    tool.write_text(text.replace("[ ! -e full ]", "[ $n != 2 ]"))
    command = ["launch", "slurm", "--config", config, "--search", "--step", "--gpu", "none"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "QOSMaxSubmitJobLimit; job 1 extracts wave 1, and nobody searches on after it" in said
    tool.write_text("#!/bin/sh\necho hello\n")
    assert main(command) == 2
    assert "sbatch --parsable named no job, but said 'hello'" in capsys.readouterr().err
    tool.write_text(text)
    assert main(command) == 0


def test_a_wave_asked_for_before_is_submitted_only_if_it_may_be_paid(config, slurm, capsys) -> None:
    (slurm / "full").touch()
    command = ["launch", "slurm", "--config", config, "--search", "--step", "--gpu", "none"]
    assert main(command) == 2
    (slurm / "full").unlink()
    capsys.readouterr()
    assert main([*command, "--max-cost", "0", "--gpu-price", "2"]) == 2
    said = capsys.readouterr().err
    assert "--max-cost: 0.00 of 0 paid, at 2 a GPU hour, and wave 1 isn't extracted" in said
    assert int(Path("count").read_text()) == 1
    assert main([*command, "--max-cost", "9", "--gpu-price", "2"]) == 0


def test_what_a_search_may_cost_goes_from_step_to_step(config, slurm, capsys) -> None:
    search = ["launch", "slurm", "--config", config, "--gpu", "none", "--search"]
    limit = ["--max-cost", "100", "--gpu-price", "2"]
    assert main([*search, *limit]) == 0
    assert main(command_in(capsys.readouterr().out)) == 0
    _, found = parsed(command_in(Path("job-2").read_text()))
    assert (found["max_cost"], found["gpu_price"]) == (100.0, 2.0)
    assert main([*search[:-1], *limit]) == 2
    assert "give --search with it" in capsys.readouterr().err


def test_the_script_is_one_that_slurm_and_bash_read(tmp_path) -> None:
    script = search_script(
        sweep="demo", config_path="my sweep.yaml", options=["--parallel", "4"], tried=3
    )
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --job-name=demo-search" in options
    assert not any("--array" in line or "--gpus" in line for line in options)
    _, found = parsed(command_in(script))
    assert (str(found["config"]), found["tried"], found["step"]) == ("my sweep.yaml", 3, True)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("code", "calls"), [(0, ""), (2, ""), (75, "requeue 82\n")])
def test_a_search_that_may_pass_is_requeued(tmp_path, code, calls) -> None:
    (tmp_path / "bin").mkdir()
    for name, does in (("scontrol", 'echo "$@" >> calls'), ("batchsweep", f"exit {code}")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = search_script(sweep="demo", config_path="x.yaml", options=[])
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "82"}
    done = subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == code
    path = tmp_path / "calls"
    assert (path.read_text() if path.exists() else "") == calls


def test_indexes_make_no_sense_for_a_search(config, capsys) -> None:
    command = ["launch", "slurm", "--config", config, "--search", "--indexes", "0"]
    assert main(command) == 2
    assert "--search and --indexes exclude each other" in capsys.readouterr().err


def test_options_that_no_shell_reads_are_refused_before_anything_runs(slurm, capsys):
    config = str(write_config(Path("sweep.yaml"), models=["tiny"], tasks=["STS12"]))
    for name in ("--extract-options", "--search-options"):
        assert main(["launch", "slurm", "--config", config, "--search", name, "'open"]) == 2
        assert f"{name} 'open: no closing quotation; close every quote" in capsys.readouterr().err
