"""Workers on rented machines: their script, and the jobs of SkyPilot and of Hugging Face."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_server import Fault, repo_from_directory
from tiny import make_suite, write_config

from batchsweep.checkpoints.audit import audit
from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.jobs.elsewhere import Elsewhere
from batchsweep.plan.frozen import freeze
from batchsweep.plan.plan import make_plan
from batchsweep.store import create_store

REVISIONS = ("step0", "step1", "step2", "main")
BUCKET = "s3://bucket/sweep/store.zarr"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", REVISIONS, hidden=16)


@pytest.fixture
def config(tmp_path, monkeypatch, hub, suite):
    """A sweep of a suite on the Hub; where its store is may be said anew."""
    hub.repos["me/tiny"] = repo_from_directory(suite)
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return placed(BUCKET)


def placed(url, **sections):
    sections = {"models": ["me/tiny"], "tasks": ["STS12"], **sections}
    sections |= {"revisions": list(REVISIONS), "store": {"path": url}}
    return str(write_config(Path("my_sweep.yaml"), **sections))


@pytest.fixture
def worker(tmp_path, monkeypatch, config):
    """The script, with a batchsweep and a sleep that write down how they were called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "batchsweep").write_text(
        "#!/bin/sh\n"
        'printf "%s\\n" "$*" >> calls\n'
        'if [ -e hold ]; then trap "exit 143" TERM; : > ready; '
        "while :; do /bin/sleep 0.05; done; fi\n"
        'code=$(head -n 1 codes); sed -i 1d codes; exit "${code:-0}"\n'
    )
    (tools / "sleep").write_text('#!/bin/sh\necho "sleep $1" >> calls\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    sweep = Elsewhere(Path(config), load(Path(config)), (0, 1, 2, 3))

    def start(*codes):
        Path("codes").write_text("".join(f"{code}\n" for code in codes))
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "t")}
        (tmp_path / "t").mkdir()
        words = ["sh", "-c", sweep.script(), "extract", "--index", "3"]
        return subprocess.Popen(words, env={**environment, **sweep.environment})

    return start


def called():
    return [c.partition(" ")[0] for c in Path("calls").read_text().splitlines()]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 143])
def test_what_is_settled_is_not_repeated(worker, code):
    assert worker(code).wait() == code
    assert called() == ["extract"]


def test_a_passing_fault_is_retried_as_everywhere(worker):
    assert worker(75, 137, 0).wait() == 0
    assert Path("calls").read_text().splitlines()[1::2] == ["sleep 10", "sleep 20"]


def test_retries_come_to_an_end_with_the_last_exit_code(worker):
    assert worker(75, 75, 75, 137).wait() == 137
    assert called() == ["extract", "sleep"] * 3 + ["extract"]


def test_the_worker_gets_the_config_and_its_index(worker, config):
    assert worker(0).wait() == 0
    (call,) = Path("calls").read_text().splitlines()
    assert (
        call == f"extract --config {Path('t/my_sweep.yaml').resolve()} --log-format json --index 3"
    )
    assert Path("t/my_sweep.yaml").read_text() == Path(config).read_text()


def test_a_worker_that_is_told_to_stop_seals_its_block(worker):
    Path("hold").touch()
    process = worker(0)
    end = time.monotonic() + 30
    while not Path("ready").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert called() == ["extract"]


def launched(where, config, *more):
    return main(["launch", where, "--config", config, "--image", "ghcr.io/me/b:1", *more])


@pytest.mark.parametrize("where", ["skypilot", "hf-jobs"])
def test_what_a_rented_machine_has_not_is_told(where, config, suite, capsys):
    assert launched(where, placed("runs/store.zarr")) == 2
    assert "need a URL such as s3://" in capsys.readouterr().err
    assert launched(where, placed(BUCKET, models=[str(suite)])) == 2
    assert "is on this machine only" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["skypilot", "hf-jobs"])
def test_what_is_not_prepared_is_not_submitted(where, config, s3_url, capsys):
    assert launched(where, placed(s3_url), "--apply") == 2
    said = capsys.readouterr().err
    assert f"nothing is prepared at {s3_url}; run 'batchsweep prepare --config" in said


def test_a_task_of_skypilot(config, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert launched("skypilot", config, "--indexes", "1,3", "--spot") == 0
    text = capsys.readouterr().out
    first = text.splitlines()[0]
    assert first.removeprefix("# ").split() == [
        *("sky", "jobs", "launch", "--yes", "--detach-run", "--num-jobs", "2"),
        *("--secret", "AWS_ACCESS_KEY_ID", "THIS_FILE"),
    ]
    task = yaml.safe_load(text)
    assert task["name"] == "my-sweep-extract"
    assert task["resources"] == {
        "accelerators": "A100:1",
        "image_id": "docker:ghcr.io/me/b:1",
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143]},
    }
    assert task["envs"] == {"AWS_REGION": "eu-west-1"}
    assert task["secrets"] == {"AWS_ACCESS_KEY_ID": None}
    assert "--indexes 1,3" in task["run"]


@pytest.fixture(scope="module")
def skypilot(tmp_path_factory):
    """The Python of an environment that has SkyPilot."""
    folder = tmp_path_factory.mktemp("skypilot")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    packages = Path(__file__).parents[1] / "skypilot_packages.txt"
    done = subprocess.run(
        [python, "-m", "pip", "install", *options, "-r", packages], capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        pytest.skip(f"SkyPilot can't be installed: not tested: what it makes of tasks: {said[-1]}")
    return python


@pytest.mark.installs
def test_skypilot_accepts_the_task(config, capsys, monkeypatch, skypilot):
    def read(text):
        code = "import sky, sys; print(sky.Task.from_yaml_str(sys.stdin.read()).name)"
        return subprocess.run(
            [skypilot, "-c", code], input=text, capture_output=True, text=True, cwd=skypilot.parent
        )

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert launched("skypilot", config, "--indexes", "1,3", "--spot") == 0
    text = capsys.readouterr().out
    assert read(text).stdout.split()[-1:] == ["my-sweep-extract"], read(text).stderr
    wrong = text.replace("max_restarts_on_errors: 0", "max_restarts_on_errors: often")
    assert wrong != text and read(wrong).returncode != 0


def frozen(url):
    """A config with a store that holds a plan."""
    config = placed(url)
    values = load(Path(config))
    freeze(make_plan(values, audit(values)), create_store(url), values)
    return config


def test_a_task_is_submitted_with_sky(config, s3_url, tmp_path, monkeypatch, capsys):
    tool = tmp_path / "sky"
    tool.write_text(
        '#!/bin/sh\necho "$@" > arguments\nfor file; do :; done; cp "$file" task.yaml\n'
    )
    tool.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    config = frozen(s3_url)
    assert launched("skypilot", config, "--apply") == 2
    assert "no sky on the PATH" in capsys.readouterr().err
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    assert launched("skypilot", config, "--apply") == 0
    assert "submitted 4 indexes: 0-3" in capsys.readouterr().out
    assert "jobs launch --yes --detach-run --num-jobs 4" in Path("arguments").read_text()
    assert "--indexes 0-3" in yaml.safe_load(Path("task.yaml").read_text())["run"]
    tool.write_text("#!/bin/sh\necho no credentials >&2; exit 1\n")
    assert launched("skypilot", config, "--apply") == 75
    assert "sky jobs launch: no credentials" in capsys.readouterr().err


def test_jobs_of_hugging_face_are_submitted(config, hub, s3_url, monkeypatch, capsys):
    """What is printed asks of the Hub, through its own command, what ``--apply`` asks."""
    config = frozen(s3_url)
    more = ["--flavor", "l4x1", "--indexes", "1,3"]
    assert launched("hf-jobs", config, *more, "--apply") == 2
    assert "the Hub wants a token" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert launched("hf-jobs", config, *more, "--apply") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["index 1", "index 3"]
    applied, hub.jobs[:] = list(hub.jobs), []
    first = applied[0]
    assert first["command"][3:] == ["extract", "--index", "1"]
    assert first["dockerImage"] == "ghcr.io/me/b:1"
    assert (first["flavor"], first["timeoutSeconds"]) == ("l4x1", 12 * 3600)
    assert first["environment"] == {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    assert Path(config).read_text() in first["command"][2]
    assert set(first["secrets"]) == {"HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert launched("hf-jobs", config, *more) == 0
    script = capsys.readouterr().out
    assert "hf_secret" not in script and "test" not in script.split("--secrets")[1]
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script],
        env={
            **os.environ,
            **hub.environ(Path("home").resolve()),
            "PATH": tools,
            "HF_TOKEN": "hf_secret",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [{**job, "labels": None} for job in hub.jobs] == [
        {**job, "labels": None} for job in applied
    ]
    assert [job["labels"]["name"] for job in hub.jobs] == [
        "my-sweep-extract-1",
        "my-sweep-extract-3",
    ]


def test_jobs_that_the_hub_refuses_are_told_with_what_is_left(
    config, hub, s3_url, monkeypatch, capsys
):
    config = frozen(s3_url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults.append(Fault("status", r"POST .*/api/jobs", status=402, says="no credit", times=9))
    assert launched("hf-jobs", config, "--apply") == 2
    assert "submitted: 0, then '--indexes 0-3 --apply'" in capsys.readouterr().err


def test_a_name_of_a_config_runs_nothing_there(tmp_path, config):
    name = "$(: > pwned)`: > pwned`'\"; : > pwned; \nx.yaml"
    (tmp_path / name).write_text(f"name: sweep\n{Path(config).read_text()}")
    given = Elsewhere(Path(name), load(Path(config)), (0,))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "batchsweep").write_text('#!/bin/sh\nprintf "%s\\0" "$@" > arguments\n')
    (tools / "batchsweep").chmod(0o755)
    (tmp_path / "t").mkdir()
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "t")}
    subprocess.run(["sh", "-c", given.script(), "extract"], env=environment, check=True)
    assert not (tmp_path / "pwned").exists()
    assert [p.name for p in (tmp_path / "t").iterdir()] == [name]
    assert str(tmp_path / "t" / name) in (tmp_path / "arguments").read_text().split("\0")


def test_a_task_is_printed_where_the_store_is_not_reached(config, capsys, monkeypatch):
    """Its credentials may be there only. To submit, the store has to be seen."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    given = ["launch", "skypilot", "--config", config, "--image", "me/x:1"]
    assert main(given) == 0
    assert "--indexes 0-3" in capsys.readouterr().out
    assert main([*given, "--apply"]) == 75
