"""The image in a real engine: the demo's pipeline under all the restrictions that are promised."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import yaml

from batchsweep.demo import tasks as demo_tasks
from batchsweep.demo.suite import SIZES, Training, build
from batchsweep.store import open_store

pytestmark = pytest.mark.containers

#: Somebody who has no passwd entry in the image.
UID = 12345
REVISIONS = ["step0", "main"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo's suite, trained for a moment, and its tasks: readable, and not the user's."""
    folder = tmp_path_factory.mktemp("made")
    folder.chmod(0o755)
    (folder / "tasks").mkdir()
    build(folder / "suite", Training(steps=8))
    demo_tasks.write(folder / "tasks")
    for path in folder.rglob("*"):
        # safetensors makes its files for their owner alone.
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


class Place:
    """The user's folders, and how commands run in containers there."""

    def __init__(self, engine, image, made, folder):
        self.engine = engine
        self.image = image
        self.made = made
        self.folder = folder
        for name in ("configs", "runs", "cache"):
            (folder / name).mkdir()
        for name in ("runs", "cache"):
            os.chown(folder / name, UID, UID) if os.getuid() == 0 else None

    def config(self, *, models=1, **sections):
        types = {name: kind for name, (kind, _) in demo_tasks.TASKS.items()}
        values = {
            "name": "boxed",
            "models": [f"/made/suite/{name}" for name in list(SIZES)[:models]],
            "revisions": REVISIONS,
            "tasks": [
                {
                    "name": name,
                    "type": kind,
                    "path": str(demo_tasks.task_path(Path("/made/tasks"), name)),
                }
                for name, kind in types.items()
            ],
            "bandit": {"budget": {"pulls": 12}, "policy": "sequential_halving"},
            **sections,
        }
        (self.folder / "configs" / "boxed.yaml").write_text(yaml.safe_dump(values))

    def start(self, *arguments, **environment):
        """A container with the least that is possible: what the README's example allows."""
        user = UID if os.getuid() == 0 else os.getuid()
        return self.engine.containers.run(
            self.image,
            [*arguments, "--config", "/configs/boxed.yaml"],
            detach=True,
            user=f"{user}:{user}",
            read_only=True,
            tmpfs={"/tmp": ""},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            network_mode="none",
            environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
            volumes={
                str(self.folder / "configs"): {"bind": "/configs", "mode": "ro"},
                str(self.folder / "runs"): {"bind": "/runs", "mode": "rw"},
                str(self.folder / "cache"): {"bind": "/cache", "mode": "rw"},
                str(self.made): {"bind": "/made", "mode": "ro"},
            },
        )

    def run(self, *arguments, **environment):
        container = self.start(*arguments, **environment)
        try:
            code = container.wait()["StatusCode"]
            output = container.logs().decode()
        finally:
            container.remove(force=True)
        assert code == 0, output
        return output

    @property
    def store(self):
        return self.folder / "runs" / "boxed" / "store.zarr"

    def owners(self):
        return {path.stat().st_uid for path in (self.folder / "runs").rglob("*")}


@pytest.fixture
def place(engine, image, made, tmp_path):
    tmp_path.chmod(0o755)
    return Place(engine, image, made, tmp_path)


def test_the_image_is_small_safe_and_labelled(engine, image):
    found = engine.images.get(image)
    config = found.attrs["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["batchsweep"]
    assert config["Labels"]["org.opencontainers.image.title"] == "batchsweep"
    cpu = not engine.containers.run(
        image, ["-c", "import torch; print(torch.version.cuda or '')"], entrypoint="python",
        remove=True,
    ).strip()  # fmt: skip
    # Measured: 2.0 GB (torch for CPUs is 0.6 of them); CUDA's runtime adds several.
    assert found.attrs["Size"] < (2.4e9 if cpu else 10e9)
    look = (
        "command -v gcc cc make; "
        "find /root/.cache /build /dist /run/secrets -mindepth 1 2>/dev/null; true"
    )
    left = engine.containers.run(image, ["-c", look], entrypoint="sh", remove=True, user="0")
    assert left == b""


def files(engine, image):
    """{path: (mode, owner, group, target of a link, SHA-256)} of all that is in an image."""
    container = engine.containers.create(image)
    read, write = os.pipe()

    def export():
        with os.fdopen(write, "wb") as output:
            for piece in container.export():
                output.write(piece)

    try:
        thread = threading.Thread(target=export)
        thread.start()
        found = {}
        with os.fdopen(read, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for m in members:
                digest = ""
                if m.isreg():
                    data = members.extractfile(m)
                    assert isinstance(data, io.BufferedReader)
                    digest = hashlib.file_digest(data, "sha256").hexdigest()
                found[m.name] = (m.mode, m.uid, m.gid, m.linkname, digest)
            # Zeros after the archive's end: who writes them must not be left alone.
            while stream.read(1 << 20):
                pass
        thread.join()
        return found
    finally:
        container.remove(force=True)


def test_two_builds_give_the_same_files(engine, build, image):
    """All bytes, modes and owners; only the times of files are those of the build."""
    again = build(f"{image}-again", "--no-cache")
    try:
        first, second = files(engine, image), files(engine, again)
    finally:
        engine.images.remove(again, force=True)
    assert any("batchsweep/store" in name and name.endswith(".pyc") for name in first)
    different = {n for n in first.keys() | second.keys() if first.get(n) != second.get(n)}
    assert not different, sorted(different)[:20]


def test_the_pipeline_runs_with_nothing_but_its_mounts(place):
    place.config()
    place.run("prepare")
    for index in range(len(REVISIONS)):
        place.run("extract", JOB_COMPLETION_INDEX=str(index))
    rows = json.loads(place.run("status", "--json"))
    assert [row["state"] for row in rows] == ["sealed"] * len(REVISIONS)
    assert "demo-neox-xs" in place.run("bandit")
    place.run("report")
    assert list(place.store.parent.rglob("*.html"))
    if os.getuid() == 0:
        assert place.owners() == {UID}
    assert [p.name for p in (place.folder / "configs").iterdir()] == ["boxed.yaml"]


def test_sigterm_in_mid_extract_exits_143_and_the_same_command_resumes(place):
    place.config(store={"block_texts": 16})
    place.run("prepare")
    container = place.start("extract", "--index", "1")
    until = time.monotonic() + 120
    while not list(place.store.glob("checkpoints/*/*/mean/c.*")):
        container.reload()
        assert container.status != "exited" and time.monotonic() < until, container.logs()
        time.sleep(0.01)
    container.stop(timeout=30)
    code = container.wait()["StatusCode"]
    output = container.logs().decode()
    container.remove()
    assert code == 143, output
    (half,) = open_store(place.store).status()
    assert 0 < half.sealed < half.blocks
    assert f"{half.sealed} of {half.blocks} blocks are sealed" in place.run(
        "extract", "--index", "1"
    )
    (whole,) = open_store(place.store).status()
    assert whole.complete


def test_weights_that_only_their_owner_may_read_are_one_line(place):
    if os.getuid() != 0:
        pytest.skip("only root can make a file that is another user's")
    place.config()
    weights = place.made / "suite" / next(iter(SIZES)) / "main" / "model.safetensors"
    weights.chmod(0o600)
    container = place.start("prepare")
    code = container.wait()["StatusCode"]
    output = container.logs().decode()
    container.remove()
    weights.chmod(0o644)
    assert code == 2
    assert "model.safetensors: this user may not read it; let it be read" in output
    assert output.count("\n") == 1


def test_a_stop_is_heard_by_every_command(place):
    """As process 1, a command without a handler would sit out the whole grace period."""
    place.config()
    container = place.start("status", "--wait", "all")
    until = time.monotonic() + 60
    while b"waiting for" not in container.logs():
        assert time.monotonic() < until, container.logs()
        time.sleep(0.1)
    start = time.monotonic()
    container.stop(timeout=60)
    code = container.wait()["StatusCode"]
    container.remove()
    assert code == 143
    assert time.monotonic() - start < 20


def test_launch_docker_runs_the_indexed_job(place, made, monkeypatch):
    """From the host, with the host's paths; as whoever runs the tests."""
    place.config()
    text = (place.folder / "configs" / "boxed.yaml").read_text()
    config = place.folder / "configs" / "host.yaml"
    config.write_text(text.replace("/made/", f"{made}/"))
    environment = {**os.environ, "HF_HOME": str(place.folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "batchsweep", "launch", "docker"),
            *("--config", str(config), "--image", place.image, "--network", "none"),
            *("--parallel", "2"),
        ],
        cwd=place.folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 indexes done in" in done.stdout
    assert [s.complete for s in open_store(place.store).status()] == [True, True]
    made_by = {p.stat().st_uid for p in place.store.rglob("*")}
    assert made_by == {os.getuid()}
    names = [c.name for c in place.engine.containers.list(all=True)]
    assert not [name for name in names if name.startswith("batchsweep-boxed")]
