"""The indexed job on one machine, with real processes that stand in for extractions."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchsweep.errors import BatchsweepError, IndexFailed, Terminated, UsageError
from batchsweep.jobs.local import LocalLauncher, visible_gpus, worker_environment
from batchsweep.jobs.runner import IndexedJob, run_once
from batchsweep.signals import StopRequest

# Appends a line a start, then does what the plan file says for this index and attempt.
WORKER = """\
import json, os, signal, sys, time
index = sys.argv[sys.argv.index("--index") + 1]
with open(f"starts-{index}", "a") as file:
    file.write(json.dumps({"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "at": time.time()}))
    file.write("\\n")
attempt = len(open(f"starts-{index}").readlines())
todo = json.load(open("plan.json")).get(index, [0])
code = todo[min(attempt, len(todo)) - 1]
print(f"attempt {attempt} of {index}", flush=True)
if code == "sleep":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    open(f"ready-{index}", "w").close()
    time.sleep(60)
if code == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"ready-{index}", "w").close()
    time.sleep(60)
if code == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
open(f"end-{index}", "w").write(str(time.time()))
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path


def run(folder, plan, *, indexes=(0, 1, 2, 3), parallel=2, gpus=(), stop=None, **options):
    import json

    (folder / "plan.json").write_text(json.dumps({str(k): v for k, v in plan.items()}))
    launcher = LocalLauncher(
        ["extract"], parallel=parallel, gpus=gpus, command=[sys.executable, "worker.py"]
    )
    job = IndexedJob(
        launcher,
        indexes,
        parallel,
        folder / "logs",
        delay=lambda retry: 0.01,
        **options,
    )
    job.run(stop or StopRequest(5))


def starts(folder, index):
    path = folder / f"starts-{index}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_every_index_runs_once_and_its_log_is_kept(folder, capfd):
    run(folder, {})
    assert [starts(folder, i) for i in range(4)] == [1, 1, 1, 1]
    assert (folder / "logs" / "extract-2.log").read_text() == "attempt 1 of 2\n"
    assert "[2] attempt 1 of 2\n" in capfd.readouterr().err


def test_a_passing_fault_is_retried(folder):
    run(folder, {1: [75, 75, 0], 2: ["killed", 0]})
    assert [starts(folder, i) for i in range(4)] == [1, 3, 2, 1]
    assert len((folder / "logs" / "extract-1.log").read_text().splitlines()) == 3


def test_retries_end(folder):
    with pytest.raises(IndexFailed, match=r"1 of 4 indexes failed: 1 \(exit 75\).*--indexes 1 "):
        run(folder, {1: [75]}, retries=2)
    assert starts(folder, 1) == 3


def test_a_stopped_index_goes_on_without_being_counted(folder):
    run(folder, {1: [143, 143, 143, 143, 143, 0]}, retries=1)
    assert starts(folder, 1) == 6


def test_an_index_that_cannot_succeed_leaves_the_others(folder):
    with pytest.raises(IndexFailed, match=r"1 of 4 indexes failed: 0 \(exit 4\)"):
        run(folder, {0: [4]})
    assert [starts(folder, i) for i in range(4)] == [1, 1, 1, 1]


def test_a_wrong_config_stops_the_whole_job(folder):
    with pytest.raises(UsageError, match="index 0 exited 2"):
        run(folder, {0: [2]}, parallel=1)
    assert [starts(folder, i) for i in range(4)] == [1, 0, 0, 0]


def test_too_many_failed_indexes_stop_the_rest(folder):
    with pytest.raises(IndexFailed, match="2 more were not tried"):
        run(folder, {0: [3], 1: [3]}, parallel=1)
    assert starts(folder, 2) == starts(folder, 3) == 0


def ready(folder, index, timeout=10):
    until = time.monotonic() + timeout
    while not (folder / f"ready-{index}").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_stop_reaches_the_workers_and_the_same_call_goes_on(folder):
    stop = StopRequest(5)

    def ask():
        ready(folder, 1)
        stop.receive(signal.SIGINT, None)

    threading.Thread(target=ask).start()
    start = time.monotonic()
    with pytest.raises(Terminated, match="1 of 4 indexes done; the same command goes on"):
        run(folder, {1: ["sleep", 0]}, stop=stop, parallel=1)
    assert time.monotonic() - start < 10
    assert starts(folder, 2) == 0
    run(folder, {1: ["sleep", 0]}, parallel=1)
    assert [starts(folder, i) for i in range(4)] == [2, 2, 1, 1]


def test_a_worker_that_does_not_stop_is_killed_after_the_grace_period(folder):
    stop = StopRequest(0.3)

    def ask():
        ready(folder, 0)
        stop.receive(signal.SIGTERM, None)

    threading.Thread(target=ask).start()
    start = time.monotonic()
    with pytest.raises(Terminated):
        run(folder, {0: ["deaf"]}, indexes=[0], stop=stop)
    assert time.monotonic() - start < 5


def test_a_waiting_retry_holds_no_slot(folder):
    """One slot: index 1 runs while index 0 waits for its retry."""
    import json

    (folder / "plan.json").write_text(json.dumps({"0": [75, 0]}))
    launcher = LocalLauncher(
        ["extract"], parallel=1, gpus=(), command=[sys.executable, "worker.py"]
    )
    IndexedJob(launcher, [0, 1], 1, folder / "logs", delay=lambda retry: 0.5).run(StopRequest(5))
    assert float(Path("end-1").read_text()) < float(Path("end-0").read_text())


def test_each_slot_has_its_own_gpu(folder):
    import json

    run(folder, {}, gpus=("4", "7"))
    used = [json.loads(Path(f"starts-{i}").read_text())["gpu"] for i in range(4)]
    assert set(used) == {"4", "7"}
    assert {used[0], used[1]} == {"4", "7"}


def test_gpus_come_from_the_environment_or_the_driver(tmp_path):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 5"}, tmp_path) == ("2", "5")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert visible_gpus({}, tmp_path / "none") == ()
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == ("0", "1")


def test_workers_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    added = worker_environment({}, slot=0, parallel=cores, gpus=())
    assert added == {"OMP_NUM_THREADS": "1"}
    assert worker_environment({"OMP_NUM_THREADS": "3"}, slot=0, parallel=1, gpus=()) == {}


def test_one_command_run_once_passes_its_exit_code_on(folder):
    launcher = LocalLauncher((), parallel=1, gpus=(), command=[sys.executable, "-c"])
    log = folder / "logs" / "prepare.log"
    run_once(launcher.run(["print('fine')"]), what="prepare", log=log, stop=StopRequest(5))
    assert log.read_text() == "fine\n"
    with pytest.raises(BatchsweepError, match="prepare exited 4") as failed:
        run_once(
            launcher.run(["raise SystemExit(4)"]), what="prepare", log=log, stop=StopRequest(5)
        )
    assert failed.value.exit_code == 4


class Gone(io.StringIO):
    """A stream that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError


def test_a_log_that_cannot_be_written_stops_nobody(folder, caplog, monkeypatch):
    """A disk that fills up, and a terminal that is gone."""
    (folder / "logs").mkdir()
    (folder / "logs" / "extract-0.log").symlink_to("/dev/full")
    (folder / "logs" / "extract-1.log").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Gone())
        run(folder, {}, indexes=(0, 1, 2))
    assert len(list(folder.glob("end-*"))) == 3
    assert "extract-0.log: can't be written: No space left on device" in caplog.text
    assert "extract-1.log: can't be written: Is a directory" in caplog.text
    assert (folder / "logs" / "extract-2.log").read_text() == "attempt 1 of 2\n"


def test_a_worker_that_cannot_be_followed_is_a_passing_fault(folder, caplog):
    class Lost:
        def start(self, index, slot):
            return self

        def lines(self):
            raise ConnectionError("the engine has gone")

    job = IndexedJob(Lost(), [7], 1, folder / "logs", retries=2, delay=lambda n: 0.0)
    with pytest.raises(IndexFailed, match=r"7 \(exit 75\)"):
        job.run(StopRequest(1))
    assert caplog.text.count("can't be followed: ConnectionError: the engine has gone") == 3


def test_the_table_says_where_every_index_is(folder, monkeypatch):
    """On a terminal the live table shows checkpoint, state, blocks and last exit."""
    code = (
        "import sys, json; from pathlib import Path\n"
        "from batchsweep.jobs.local import LocalLauncher\n"
        "from batchsweep.jobs.runner import IndexedJob\n"
        "from batchsweep.signals import StopRequest\n"
        "launcher = LocalLauncher(['extract'], parallel=1, gpus=(),"
        " command=[sys.executable, 'worker.py'])\n"
        "IndexedJob(launcher, [0, 1], 1, Path('logs'), names={0: 'org--model/step1'},"
        " sealed=lambda: {0: '3/12'}, delay=lambda n: 0.01, title='wave 2: [two] pairs')"
        ".run(StopRequest(5))\n"
    )
    (folder / "plan.json").write_text('{"1": [75, 0]}')
    import pty

    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=other_end,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(other_end)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    text = shown.decode()
    for part in (
        "wave 2: [two] pairs",
        "org--model/step1",
        "3/12",
        "[1] attempt 2 of 1",
        "running on 0",
        "75",
    ):
        assert part in text
