"""Forks of commands are processes as others are: output, exit codes, signals, what they start."""

import signal
import subprocess
import sys

import pytest
from forks import until, working_in
from tiny import write_config

from batchsweep import __version__


def test_a_fork_says_and_ends_as_the_command_that_is_started(commands, tmp_path) -> None:
    for arguments in (["--version"], ["plan", "--config", "nowhere.yaml"], ["no-such-command"]):
        fork = commands.completed(arguments, folder=tmp_path)
        plain = subprocess.run(
            [sys.executable, "-m", "batchsweep", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (fork.returncode, fork.stdout, fork.stderr) == (
            plain.returncode,
            plain.stdout,
            plain.stderr,
        )


@pytest.fixture
def waiting(tmp_path) -> list[str]:
    """A command that waits until it is told to stop."""
    config = write_config(
        tmp_path / "c.yaml", models=[str(tmp_path)], tasks=["STS12"], store={"path": "nothing"}
    )
    return ["status", "--wait", "all", "--config", str(config)]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_fork_takes_signals(commands, waiting, tmp_path, number, ends) -> None:
    process = commands.start(waiting, folder=tmp_path)
    until(lambda: "waiting for" in process.output.read_text())
    assert working_in(tmp_path) == [process.pid.result()] and not process.ended
    process.signal(number)
    assert process.end(timeout=60)[0] == ends
    assert working_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_stands_for_python_passes_signals_on(commands, waiting, tmp_path, number) -> None:
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [commands.python, "-m", "batchsweep", *waiting], cwd=tmp_path, stderr=output
        )
    until(lambda: "waiting for" in said.read_text())
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    until(lambda: not working_in(tmp_path))


def test_what_stands_for_python_is_python_otherwise(commands) -> None:
    done = subprocess.run([commands.python, "-c", "print(1)"], capture_output=True, text=True)
    assert done.stdout == "1\n"
    done = subprocess.run(
        [commands.python, "-m", "batchsweep", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"batchsweep {__version__}\n"
