"""The ledger on a store: appends of constant cost, segments, kills in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from json_store import FolderStore
from scoring import KEY, fill, local_tasks, store_of

from batchsweep.bandit import ledger
from batchsweep.bandit.ledger import (
    Observation,
    StoreLedger,
    header_of,
    observations,
    read_header,
)
from batchsweep.bandit.policies import Pull
from batchsweep.bandit.search import check_vectors
from batchsweep.errors import StoreError, StoreMismatch
from batchsweep.score.record import Score
from batchsweep.score.scorer import Scorer
from batchsweep.store import create_store, open_store


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SEGMENT", 10)


class Counted(FolderStore):
    """Counts what is asked of it, and may die before the n-th change."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.changes, self.dies_at = 0, dies_at

    def _change(self) -> None:
        if self.changes == self.dies_at:
            raise KeyboardInterrupt
        self.changes += 1

    def read_json(self, path):
        self.asked.append(f"read {path}")
        return super().read_json(path)

    def write_json(self, path, value):
        self._change()
        self.asked.append(f"write {path}")
        super().write_json(path, value)

    def delete_json(self, path):
        self._change()
        super().delete_json(path)


def entries(n: int) -> list[dict]:
    return [{"kind": "header", "seed": 1}] + [
        Observation.of(Pull(f"m/main#{i}", "T", "why"), Score(i / 7, 1.0), "search").to_json()
        for i in range(1, n)
    ]


def filled(store: FolderStore, n: int) -> list[dict]:
    there, wanted = StoreLedger(store, "r"), entries(n)
    for record in wanted[len(there.records()) :]:
        there.append(record)
    return wanted


def test_segments_keep_documents_few_and_appends_read_nothing():
    store = Counted()
    wanted = filled(store, 47)
    assert sum(a.startswith("read") for a in store.asked) == 0
    assert sum(a.startswith("write") for a in store.asked) == 47 + 4
    assert len(store.files) == 4 + 7
    store.asked.clear()
    assert StoreLedger(store, "r").records() == wanted
    assert len(store.asked) == 4 + 7
    assert header_of(wanted) == wanted[0] and len(list(observations(wanted))) == 46


@pytest.mark.parametrize("entries_there", [1, 9, 25])
def test_what_a_search_was_run_with_is_read_without_its_pulls(entries_there):
    store = Counted()
    wanted = filled(store, entries_there)
    store.asked.clear()
    assert read_header(store, "r") == wanted[0] and len(store.asked) <= 2
    assert read_header(store, "other") is None


@pytest.mark.parametrize("dies_at", range(70))
def test_a_kill_at_any_change_loses_the_pull_being_written_at_most(dies_at):
    store = Counted(dies_at)
    wanted = entries(27)
    written = 0
    there = StoreLedger(store, "r")
    with pytest.raises(KeyboardInterrupt):
        for record in wanted:
            there.append(record)
            written += 1
        raise KeyboardInterrupt  # It made fewer changes.
    store.dies_at = None
    left = StoreLedger(store, "r").records()
    assert left == wanted[: len(left)] and len(left) in (written, written + 1)
    assert filled(store, 27) == StoreLedger(store, "r").records() == wanted
    assert len(store.files) == 2 + 7


def test_a_dropped_segment_is_made_again():
    store = Counted()
    wanted = filled(store, 35)
    del store.files["bandit/r/pulls/segments/000001.json"]
    there = StoreLedger(store, "r")
    assert len(there.records()) == 25
    for record in wanted[10:20]:
        there.append(record)
    assert StoreLedger(store, "r").records() == wanted
    assert "bandit/r/pulls/segments/000001.json" in store.files


def test_a_ledger_of_single_documents_is_read_and_then_joined():
    store = FolderStore()
    wanted = entries(36)
    for number, record in enumerate(wanted[:35]):
        store.write_json(f"bandit/r/pulls/{number:06d}.json", record)
    there = StoreLedger(store, "r")
    assert there.records() == wanted[:35] and len(store.files) == 35
    there.append(wanted[35])
    assert StoreLedger(store, "r").records() == wanted and len(store.files) == 3 + 6


def test_a_search_that_joins_while_it_is_read_loses_no_pull():
    class Joining(FolderStore):
        """A writer joins a segment between the listing and the reading."""

        writer: StoreLedger | None = None

        def read_jsons(self, paths):
            if self.writer is not None:
                writer, self.writer = self.writer, None
                writer.append(entries(10)[9])
            return super().read_jsons(paths)

    store = Joining()
    writer = StoreLedger(store, "r")
    for record in entries(9):
        writer.append(record)
    store.writer = writer
    assert StoreLedger(store, "r").records() == entries(10)


def test_an_entry_that_is_no_pull_is_refused():
    with pytest.raises(StoreError, match=r"an entry that is no pull: \['kind', 'what'\]"):
        list(observations([{"kind": "search", "what": 1}]))


def test_observations_survive_the_ledger():
    pull = Pull("m/main#1", "T", "why")
    nan = float("nan")
    for score, full in [
        (Score(0.5, 2.0), True),
        (Score(nan, 2.0), False),
        (Score(0.4, 1.0, halves=(0.3, 0.5)), False),
        (Score(nan, 1.0, halves=(0.3, nan)), False),
        (Score(0.4, 1.0, noise=0.01), False),
    ]:
        one = Observation.of(pull, score, "check", full=full)
        assert Observation.from_json(one.to_json()) == one
        assert one.undefined == (one.score == 0)


def test_pulls_of_other_vectors_are_not_gone_on_from(tmp_path: Path) -> None:
    """A checkpoint that was extracted anew, otherwise: its old scores count no more."""
    tasks = local_tasks("sts")
    store = store_of(tmp_path / "x.zarr", tasks)
    there = StoreLedger(store, "a search")
    there.append({"kind": "header"})
    for layer in (1, 2):
        score = Scorer(store, tasks).score(f"{KEY}#{layer}", "sts")
        pull = Pull(f"{KEY}#{layer}", "sts", "why")
        there.append(Observation.of(pull, score, "search").to_json())
    of_old = Observation.of(Pull("gone/main#1", "sts", "why"), Score(0.5, 1.0), "search")
    there.append(of_old.to_json())  # An older version's, which doesn't say.
    check_vectors(store, "a search", there)
    store.backend.drop_group(KEY)
    fill(store, dtype="float16")
    said = rf"bandit/a search has pulls that were scored on other vectors .* than {KEY} has now"
    with pytest.raises(StoreMismatch, match=said) as caught:
        check_vectors(store, "a search", StoreLedger(store, "a search"))
    assert caught.value.exit_code == 4


KILLED = """
import sys
from batchsweep.bandit import ledger
from batchsweep.store import open_store
ledger.SEGMENT = 10
there = ledger.StoreLedger(open_store(sys.argv[1]), "r")
number = len(there.records())
while True:
    there.append({"kind": "search", "number": number, "text": "x" * 3000})
    number += 1
    print(number, flush=True)
"""


def test_kill_9_while_appending(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr")
    said = 0
    for seen in (1, 9, 12, 21):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "s.zarr")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(seen):
                said = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split())])
        numbers = [record["number"] for record in StoreLedger(store, "r").records()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) in (said, said + 1)
    assert open_store(tmp_path / "s.zarr").documents()


@pytest.mark.parametrize("value", [{}, [], {"pulls": []}, {"pulls": [7]}, {"pulls": [{}]}, 3])
def test_a_beginning_that_is_none_is_damage(value) -> None:
    for path in ("bandit/r/pulls/segments/000000.json", "bandit/r/pulls/000000.json"):
        store = FolderStore()
        store.write_json(path, value)
        with pytest.raises(StoreError, match="doesn't begin as a ledger does"):
            read_header(store, "r")
