"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from hypothesis import settings

# One thread for each test process, as for all that it starts: what BLAS and OpenMP do here is so
# small that threads mostly wait for each other, which takes up to thirty times the processor time.
# numpy reads it when it is imported, which nothing above does.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# The same examples in every run: a red run is one that anybody can repeat.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


#: Files and folders of whole jobs, of stock mteb beside ours, and of many searches: more than half
#: of all the processor time, so `make test-fast` leaves them out.
SLOW = (
    "bandit/policies/test_gp.py",
    "bandit/policies/test_policies.py",
    "bandit/test_subsets.py",
    "cli/test_imports.py",
    "demo/",
    "export/",
    "jobs/test_cluster_search.py",
    "jobs/test_cluster_sweep.py",
    "jobs/test_launch.py",
    "jobs/test_search.py",
    "pipeline/",
    "score/test_scorer.py",
    "store/test_integrity.py",
    "test_bare_machine.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-cluster",
        metavar="IMAGE",
        help="run the sweeps of tests/jobs/test_cluster_sweep.py in KUBECONFIG's cluster, which "
        "can pull this image of batchsweep",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by the place that it has in ``SLOW``."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real server on loopback that speaks S3; its endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place on that server; the environment is as its users set it."""
    import boto3

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    environment = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(boto3.client("s3", endpoint_url=s3_server)) as client:
        client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/store.zarr"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback that this process's clients use, with an empty cache.

    Processes started by a test get there with ``env={**os.environ, **hub.environ(home)}``.
    """
    with HubServer() as server:
        server.use(monkeypatch, tmp_path / "hf")
        yield server
