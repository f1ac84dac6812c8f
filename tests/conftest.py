"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Commands
from hub_server import HubServer
from hypothesis import settings

# One thread for each test process, as for all that it starts: what BLAS and OpenMP do here is so
# small that threads mostly wait for each other, which takes up to thirty times the processor time.
# numpy reads it when it is imported, which nothing above does.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# A kubectl that ends in a tenth of a second needs no garbage collection, a quarter of its time.
os.environ.setdefault("GOGC", "off")

# The same examples in every run: a red run is one that anybody can repeat.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


#: Files, folders and tests that take more than a second and a half of a processor each, or many
#: times a part of that: whole jobs, stock mteb beside ours, processes, many searches. The longest
#: stand first, and are begun first: what is begun last is short, so that all processes end
#: together. `make test-fast` leaves them out, and what their own files mark as slow.
SLOW = (
    "demo/",
    "score/test_scorer.py",
    "jobs/test_run_sweep.py",
    "pipeline/test_kill_campaign.py",
    "bandit/test_subsets.py",
    "jobs/test_cluster_sweep.py",
    "jobs/test_launch.py",
    "pipeline/",
    "jobs/test_cluster_search.py",
    "store/test_integrity.py",
    "export/",
    "score/",
    "bandit/policies/",
    "forward/test_gpu.py",
    "test_bare_machine.py",
    "test_forks.py",
    "cli/test_imports.py",
    "cli/test_cli.py::test_replay_prints_a_summary_and_draws_it",
    "plan/test_plan.py::test_a_second_plan_of_published_tasks_imports_no_mteb",
    "plan/test_plan.py::test_the_published_tasks_are_the_size_that_was_measured",
    "store/test_hdf5.py::test_five_indexes_at_once",
    "store/test_hdf5.py::test_a_store_opens_while_others_begin_groups",
    "bandit/test_loop.py::test_a_budget_in_seconds_is_spent_on_what_tells_most_per_second",
    "bandit/test_replay.py::test_only_the_targets_tasks_count",
    "corpus/test_corpus.py::test_every_text_that_encode_gets_is_there_once",
    "corpus/test_corpus.py::test_memory_does_not_grow_with_the_texts",
    "checkpoints/test_audit.py::test_transformers_reads_a_branch",
    "tasks/test_resolve.py::test_the_32_tasks_are_english_and_test_only",
    "jobs/test_submit.py",
    "test_numerics.py::test_bytes_do_not_depend_on_threads_or_on_what_the_process_did",
    "plan/test_plan.py::test_the_table_says_what_a_decision_needs",
    "bandit/test_expected.py::test_the_budget_bounds_what_is_expected",
    "bandit/test_expected.py::test_the_command_shows_it_where_it_is_asked_to",
    "compare/test_attribution.py::test_each_convention_has_its_share_and_they_add_up",
    "jobs/test_slurm_search.py::test_a_search_goes_from_wave_to_wave_until_it_has_its_answer",
    "store/test_fuzz.py",
    "jobs/test_real_kubectl.py",
    "bandit/test_ledger.py::test_kill_9_while_appending",
    "plan/test_plan.py::test_a_cap_bounds_every_task",
    "store/test_convert.py::test_to_an_object_store",
)
#: Files of many short tests that take long together, and are begun next.
LONG = (
    "store/test_conformance.py",
    "store/test_hdf5.py",
    "cli/test_cli.py",
    "bandit/test_imported.py",
    "bandit/test_loop.py",
    "bandit/test_waves.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-cluster",
        metavar="IMAGE",
        help="run the sweeps of tests/jobs/test_cluster_sweep.py in KUBECONFIG's cluster, which "
        "can pull this image of batchsweep",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by its place in ``SLOW``, and put the longest files first."""
    first: dict[Path, int] = {}
    places = (*SLOW, *LONG)
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        place = next((n for n, long in enumerate(places) if name.startswith(long)), len(places))
        first[item.path] = min(place, first.get(item.path, len(places)))
        if place < len(SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: first[item.path])


@pytest.fixture(scope="session", autouse=True)
def no_syncs() -> Iterator[None]:
    """No test loses power, which is all that a sync is for; thousands wait for the disk.

    A descriptor that can't be synced is still an error. Processes that are started sync.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """batchsweep's commands as processes, without the seconds that each would import.

    Tests of what a process is when it starts (its imports, its streams) start a real one.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    server = Commands(shared, tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def forked(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command starts in this test, it starts as such a fork, too."""
    monkeypatch.setattr(sys, "executable", commands.python)


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
