"""The array script, run by bash with a stand-in for Slurm's commands and for batchsweep."""

import functools
import os
import re
import shlex
import signal
import subprocess
import time

import pytest
from command_line import parsed

from batchsweep.jobs.exit_rules import RETRIES
from batchsweep.jobs.slurm import GRACE, array_script, search_script


@pytest.fixture
def cluster(tmp_path):
    """A folder with the script, and commands that write down how they were called."""
    script = array_script(
        sweep="demo",
        config_path="configs/my sweep.yaml",
        indexes=(0, 1, 2, 5),
        parallel=2,
        gpu=True,
    )
    (tmp_path / "extract.sbatch").write_text(script)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("scontrol", "scancel"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> calls\n')
    (tools / "batchsweep").write_text(
        "#!/bin/sh\n"
        'printf "%s\\n" "$*" >> worker-arguments\n'
        'if [ -e sleep ]; then trap "exit 143" TERM; : > ready; '
        "while :; do sleep 0.05; done; fi\n"
        'exit "$(cat code)"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tmp_path


def start(folder, code=0):
    (folder / "code").write_text(str(code))
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_JOB_ID": "82",
    }
    return subprocess.Popen(["bash", "extract.sbatch"], cwd=folder, env=environment)


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


REQUEUE = "scontrol requeue 77_5"


@pytest.mark.parametrize(
    ("code", "called"),
    [(0, []), (2, ["scancel 77"]), (3, []), (4, []), (75, [REQUEUE]), (143, [REQUEUE])],
)
def test_each_exit_code_does_what_the_table_says(cluster, code, called):
    assert start(cluster, code).wait() == code
    assert calls(cluster) == called


def test_retries_are_counted_and_end(cluster):
    for _ in range(RETRIES + 1):
        start(cluster, 1).wait()
    assert calls(cluster) == [REQUEUE] * RETRIES


def test_preemptions_are_not_counted(cluster):
    for _ in range(RETRIES + 1):
        start(cluster, 143).wait()
    start(cluster, 75).wait()
    assert len(calls(cluster)) == RETRIES + 2


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_warning_before_the_time_limit_reaches_the_worker(cluster, number):
    (cluster / "sleep").touch()
    process = start(cluster)
    until = time.monotonic() + 10
    while not (cluster / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(10) == 143
    assert calls(cluster) == [REQUEUE]


def test_the_worker_gets_a_command_line_of_this_version(cluster):
    start(cluster).wait()
    script = (cluster / "extract.sbatch").read_text()
    line = next(text for text in script.splitlines() if text.startswith("batchsweep extract"))
    _, options = parsed(shlex.split(line.removesuffix(" &"))[1:])
    assert str(options["config"]) == "configs/my sweep.yaml"
    assert options["grace"] == GRACE
    expected = f"extract --config configs/my sweep.yaml --grace {GRACE}\n"
    assert (cluster / "worker-arguments").read_text() == expected


def test_the_options_that_slurm_reads():
    script = array_script(
        sweep="demo", config_path="x.yaml", indexes=(0, 1, 2, 5), parallel=8, gpu=False
    )
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --array=0-2,5%4" in options
    assert f"#SBATCH --signal=B:USR1@{GRACE}" in options
    assert not any("--gpus" in line for line in options)
    # sbatch stops reading options at the first command.
    first_command = next(
        n for n, text in enumerate(script.splitlines()) if text and not text.startswith("#")
    )
    assert all("#SBATCH" not in text for text in script.splitlines()[first_command:])


def test_a_name_of_a_file_is_never_a_line_of_the_script(tmp_path):
    """A newline in it ended the comment that names the config, and what followed was run."""
    path = "x\n: > pwned\n#SBATCH --partition=theirs\n$(: > pwned)`: > pwned`'\".yaml"
    array = functools.partial(
        array_script, sweep="demo", config_path=path, indexes=(0,), parallel=1, gpu=False
    )
    options = [f"--extract-options={path}"]
    for script in (
        array(),
        array(wave=1),
        search_script(sweep="demo", config_path=path, options=options),
    ):
        head = script[: script.index("\nretries=")]
        assert "--partition=theirs" not in re.findall(r"(?m)^#SBATCH (.*)", head)
        (tmp_path / "script").write_text(script)
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        (tools / "batchsweep").write_text('#!/bin/sh\nprintf "%s\\0" "$@" > arguments\n')
        (tools / "batchsweep").chmod(0o755)
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0"}
        subprocess.run(["bash", "script"], cwd=tmp_path, env=environment, check=True)
        assert path in (tmp_path / "arguments").read_text().split("\0")
        assert not (tmp_path / "pwned").exists()
