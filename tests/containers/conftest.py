"""A real container engine, a base image and the project's image, from what the machine has.

As root on Debian the engine's packages are installed and the daemon is started (and stopped again);
elsewhere a running engine is used. Where neither can be had, the tests skip and say why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["docker.io", "debootstrap", "iptables", "ca-certificates"]
BASE = "batchsweep-test-base"
IMAGE = "batchsweep-test"
#: What the image is made from (.dockerignore lets nothing else in).
SOURCES = [
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
]


def skip(reason: str) -> None:
    pytest.skip(f"CONTAINER TESTS NOT RUN: {reason}")


def on_debian_as_root() -> bool:
    return os.getuid() == 0 and Path("/etc/debian_version").exists()


def answers() -> bool:
    try:
        return bool(docker.from_env().ping())
    except docker.errors.DockerException:
        return False


def run(*command: str | Path, **options) -> str:
    """A command's output; a failure shows its last lines."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{command[0]} exited {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def install_packages() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-q", env=environment)
    run("apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES, env=environment)


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[docker.DockerClient]:
    """A client of the engine that runs, or of one that runs as long as the tests."""
    if answers():
        yield docker.from_env(timeout=None)
        return
    if not on_debian_as_root():
        skip("no container engine answers, and this isn't root on Debian, to install one")
    if not all(map(shutil.which, ["dockerd", "debootstrap", "iptables"])):
        try:
            install_packages()
        except AssertionError as error:
            skip(f"no engine is there, and none can be installed: {error}")
    log = tmp_path_factory.mktemp("dockerd") / "log"
    with log.open("w") as output:
        daemon = subprocess.Popen(
            ["dockerd"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 60
        while not answers():
            if daemon.poll() is not None or time.monotonic() > until:
                skip(f"dockerd doesn't run here: {log.read_text().splitlines()[-1:]}")
            time.sleep(0.5)
        client = docker.from_env(timeout=None)
        yield client
        # What earlier builds of the image left behind would fill a machine that is kept.
        client.images.prune({"dangling": True})
    finally:
        daemon.terminate()
        daemon.wait(30)


def buildkit_client() -> str:
    """The first docker command on the PATH that can build with BuildKit.

    Clients from version 23 on need the buildx plugin for it; older ones have it built in.
    """
    for folder in os.get_exec_path():
        client = shutil.which("docker", path=folder)
        if client is None:
            continue
        version = subprocess.run([client, "--version"], capture_output=True, text=True).stdout
        major = re.search(r"version (\d+)", version)
        plugin = subprocess.run([client, "buildx", "version"], capture_output=True)
        if plugin.returncode == 0 or (major and int(major[1]) < 23):
            return client
    skip("no docker command that can build with BuildKit")
    raise AssertionError


@pytest.fixture(scope="session")
def base_image(engine, tmp_path_factory) -> str | None:
    """A Debian with Python, by debootstrap from the machine's own package source.

    None where that isn't possible: the Dockerfile's default is pulled then.
    """
    if not on_debian_as_root():
        return None
    if shutil.which("debootstrap") is None:
        install_packages()
    system = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    name = f"{BASE}:{system['VERSION_CODENAME']}"
    if engine.images.list(name):
        return name
    sources = [*Path("/etc/apt").glob("sources.list.d/*.sources"), Path("/etc/apt/sources.list")]
    texts = "\n".join(path.read_text() for path in sources if path.exists())
    mirror = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) +(\S+)", texts, re.MULTILINE)
    if mirror is None:
        return None
    folder = tmp_path_factory.mktemp("base") / "root"
    include = "--include=python3,python3-pip,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", include, system["VERSION_CODENAME"], folder, mirror[1])
    tar = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
    run(buildkit_client(), "import", "-", name, stdin=tar.stdout)
    assert tar.wait() == 0
    shutil.rmtree(folder)
    return name


def pip_setting(name: str) -> str:
    """What pip is set to, by its environment or its files; empty if it isn't."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    found = re.search(rf"^[^=]*\.{name}='(.*)'$", listed, re.MULTILINE)
    return found[1] if found else ""


def cpu_wheels() -> list[Path]:
    """CPU wheels of torch in the folders that pip looks into: they save the CUDA packages."""
    folders = [Path(f.removeprefix("file://")) for f in pip_setting("find-links").split()]
    return [wheel for f in folders if f.is_dir() for wheel in f.glob("torch-*+cpu-*.whl")]


@pytest.fixture(scope="session")
def build(engine, base_image, tmp_path_factory) -> Callable[..., str]:
    """Builds the project's image under a name, from what git would give a user."""
    context = tmp_path_factory.mktemp("context")
    for name in SOURCES:
        shutil.copy(ROOT / name, context / name)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "batchsweep", context / "batchsweep", ignore=ignore)
    arguments = ["--build-arg", f"BASE_IMAGE={base_image}"] if base_image else []
    wheels = cpu_wheels()
    if wheels:
        (context / "wheels").mkdir()
        for wheel in wheels:
            shutil.copy(wheel, context / "wheels")
        arguments += ["--build-arg", "VARIANT=cpu"]
    certificate = pip_setting("cert")
    if certificate and Path(certificate).is_file():
        arguments += ["--secret", f"id=ca,src={certificate}"]

    def build(name: str, *more: str) -> str:
        start = time.monotonic()
        run(
            buildkit_client(), "build", "--progress=plain", "-t", name, *arguments, *more, context,
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
        )  # fmt: skip
        print(f"built {name} in {time.monotonic() - start:.0f} s")
        return name

    return build


@pytest.fixture(scope="session")
def image(build) -> str:
    return build(IMAGE)
