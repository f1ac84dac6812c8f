"""``status --wait`` ends: with what was waited for, or with why it can't come any more."""

import shutil
from typing import Any

import pytest
from tiny import make_suite, make_tasks, write_config

from batchsweep import config
from batchsweep.cli.main import main
from batchsweep.errors import IndexFailed, StoreCorrupt, StoreMismatch, TryAgain, UsageError
from batchsweep.extract import status
from batchsweep.store import open_store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a suite of two checkpoints, and the store that ``prepare`` made."""
    folder = tmp_path_factory.mktemp("waiting")
    suite = make_suite(folder / "tiny", ("step0", "main"))
    sections = {
        "models": [str(suite)],
        "revisions": ["step0", "main"],
        "tasks": make_tasks(folder / "tasks", n=8),
        "metrics": {"sample": 8},
    }
    write_config(folder / "sweep.yaml", **sections, store={"path": str(folder / "store")})
    assert main(["prepare", "--config", str(folder / "sweep.yaml")]) == 0
    return folder, sections


@pytest.fixture
def sweep(prepared, tmp_path):
    """Writes a config of a copy of the store; keyword arguments are further sections."""
    folder, sections = prepared
    shutil.copytree(folder / "store", tmp_path / "store")

    def write(**more):
        place = {"path": str(tmp_path / "store"), **more.pop("store", {})}
        path = write_config(tmp_path / "sweep.yaml", **sections, **more, store=place)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing is slept between two looks."""
    monkeypatch.setattr(status, "POLL_SECONDS", 0)


def waits(path, wanted="all"):
    status.wait(config.load(path), wanted)


def test_a_damaged_plan_ends_it(sweep, tmp_path):
    path = sweep()
    (tmp_path / "store/documents/plan.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"plan\.json"):
        waits(path)


def test_a_plan_of_another_config_ends_it(sweep):
    with pytest.raises(StoreMismatch, match=r"embedding\.pooling"):
        waits(sweep(embedding={"pooling": "last"}))


def test_nothing_sealed_and_none_to_come_ends_it_with_the_first_reason(sweep, tmp_path):
    path = sweep()
    store = open_store(tmp_path / "store")
    note = {"state": "failed", "tasks": None, "message": "NaN in layer 1"}
    store.write_json("outcomes/tiny/step0.json", note)
    store.write_json("outcomes/tiny/main.json", {**note, "state": "skipped"})
    with pytest.raises(IndexFailed, match=r"1 failed, 1 skipped.*step0.*NaN in layer 1"):
        waits(path)
    assert main(["extract", "--config", path, "--index", "1"]) == 0
    waits(path)  # What is there can be searched.


def test_an_index_that_ends_as_wrong_usage_ends_it_until_it_is_run_again(sweep):
    no_such_card = sweep(embedding={"device": "cuda:99"})
    extract = ["extract", "--config", no_such_card, "--index", "0"]
    assert main(extract) == 2
    with pytest.raises(UsageError, match=r"2 waiting, and no index can go on: index 0 .*cuda:99"):
        waits(no_such_card)
    assert main(["prepare", "--config", sweep()]) == 0
    assert main([*extract[:2], sweep(embedding={"device": "cuda:99"}), *extract[3:]]) == 2
    path = sweep()
    assert main(["extract", "--config", path, "--index", "0"]) == 0
    waits(path, "1")


def test_what_may_come_is_waited_for(sweep, prepared, tmp_path, monkeypatch):
    path = sweep()
    folder, _ = prepared
    plan = (tmp_path / "store/documents/plan.json").read_bytes()
    steps = [
        lambda: shutil.rmtree(tmp_path / "store"),
        lambda: shutil.copytree(folder / "store", tmp_path / "store"),
        lambda: (tmp_path / "store/documents/plan.json").unlink(),
        # Half a moment's damage, as another program's copy leaves it.
        lambda: (tmp_path / "store/documents/plan.json").write_bytes(plan[:9]),
        lambda: (tmp_path / "store/documents/plan.json").write_bytes(plan),
        lambda: main(["extract", "--config", path, "--all"]),
    ]
    monkeypatch.setattr(status, "POLL_SECONDS", 7)
    monkeypatch.setattr("time.sleep", lambda seconds: seconds == 7 and steps.pop(0)())
    waits(path)
    assert not steps


def test_a_note_that_is_none_is_damage(sweep, tmp_path):
    path = sweep()
    store = open_store(tmp_path / "store")
    damaged: list[Any] = [
        [],
        {"state": "sealed", "message": "x"},
        {"state": "failed", "message": 1},
    ]
    for note in damaged:
        store.write_json("outcomes/tiny/main.json", note)
        assert main(["status", "--config", path]) == 4


def test_a_place_out_of_reach_is_asked_again(sweep, monkeypatch):
    path = sweep()
    left = [TryAgain("no route"), StoreCorrupt("torn"), StoreCorrupt("torn")]
    monkeypatch.setattr("batchsweep.extract.status.open_store", lambda url: _raise(left.pop(0)))
    with pytest.raises(StoreCorrupt, match="torn"):
        waits(path)
    assert not left


def _raise(error):
    raise error
