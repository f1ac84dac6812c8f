"""Score records: whose they are, the one reader, and the table beside them."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import KEY, fill, local_tasks, store_of

import batchsweep
from batchsweep.arm import Arm
from batchsweep.errors import StoreCorrupt, StoreError, StoreMismatch
from batchsweep.score.export import export, table
from batchsweep.score.record import path_of
from batchsweep.score.records import (
    TABLE,
    TABLE_NOTE,
    misplaced,
    read_record,
    records,
    score_rows,
)
from batchsweep.score.scorer import Scorer
from batchsweep.store import Store, open_store, repair, verify
from batchsweep.tasks.evaluators import Halves

OTHER = "tests--live/main"


@pytest.fixture
def tasks() -> list[Any]:
    return local_tasks("sts", "pairs")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight scores that no test changes."""
    path = tmp_path_factory.mktemp("scored") / "x.zarr"
    tasks = local_tasks("sts", "pairs")
    store = store_of(path, tasks, keys=(KEY, OTHER))
    scorer = Scorer(store, tasks)
    for key in (KEY, OTHER):
        for layer in (1, 2):
            for name in ("sts", "pairs"):
                scorer.score(f"{key}#{layer}", name)
    return path


@pytest.fixture
def store(scored: Path, tmp_path: Path) -> Store:
    return open_store(shutil.copytree(scored, tmp_path / "x.zarr"))


def swap(store: Store, one: str, other: str) -> None:
    """Swap two documents as a stray ``mv`` does: their checksums stay right."""
    root = Path(store.url) / "documents"
    os.rename(root / one, root / "aside")
    os.rename(root / other, root / one)
    os.rename(root / "aside", root / other)


def at(layer: int = 1, task: str = "sts", key: str = KEY) -> str:
    return path_of(Arm(key, layer, "mean"), task)


SWAPPED = {
    "layers": (at(1), at(2), "on sts, not of its own"),
    "tasks": (at(1), at(1, "pairs"), "on (sts|pairs), not of its own"),
    "checkpoints": (at(1), at(1, key=OTHER), "tests--live/(step8|main)#1#mean on sts"),
}


@pytest.mark.parametrize("what", SWAPPED)
@pytest.mark.parametrize("table_is_there", [True, False])
def test_swapped_records_are_refused_by_every_reader(
    store: Store, tasks: list[Any], what: str, table_is_there: bool, tmp_path: Path
) -> None:
    if table_is_there:
        assert len(score_rows(store)) == 8
    one, other, said = SWAPPED[what]
    swap(store, one, other)
    for reader in (
        lambda: Scorer(store, tasks).score(f"{KEY}#1", "sts"),
        lambda: list(records(store)),
        lambda: score_rows(store),
        lambda: table(store),
        lambda: export(store, tmp_path / "out"),
        lambda: batchsweep.open(store.url).scores,
    ):
        with pytest.raises(StoreMismatch, match=f"scores/.*{said}.*verify --repair") as caught:
            reader()
        assert caught.value.exit_code == 4
    faults = misplaced(store)
    assert sorted(fault.path for fault in faults) == sorted([one, other])
    repair(store, faults)
    assert len(score_rows(store)) == 6 and misplaced(store) == []


def test_a_record_of_a_subset_is_held_to_its_place_too(store: Store, tasks: list[Any]) -> None:
    scorer, halves = Scorer(store, tasks), Halves(60, seed=1)
    for layer in (1, 2):
        scorer.score(f"{KEY}#{layer}", "sts", halves)
    one, other = store.list_json("subsets")
    swap(store, one, other)
    with pytest.raises(StoreMismatch, match=r"subsets/60-1/.* is the score of .*#2#mean on sts"):
        Scorer(store, tasks).score(f"{KEY}#1", "sts", halves)
    assert [fault.path for fault in misplaced(store)] == [one, other]


def test_a_record_of_other_vectors_is_refused(store: Store, tasks: list[Any]) -> None:
    assert len(score_rows(store)) == 8
    store.backend.drop_group(KEY)
    assert len(score_rows(store)) == 8  # Their vectors are gone, and no others came instead.
    fill(store, dtype="float16", keys=(KEY,))
    for reader in (score_rows, lambda s: list(records(s))):
        with pytest.raises(StoreMismatch, match=r"computed from other vectors .* than tests--live"):
            reader(store)
    assert len(misplaced(store)) == 4
    # The scorer scores these again, which is the remedy too.
    for layer in (1, 2):
        for name in ("sts", "pairs"):
            Scorer(store, tasks).score(f"{KEY}#{layer}", name)
    assert len(score_rows(store)) == 8 and not misplaced(store)


def test_a_document_that_is_no_record_is_refused(store: Store) -> None:
    store.write_json("scores/a.json", {"score": 0.5})
    with pytest.raises(StoreCorrupt, match=r"scores/a\.json is no record of a score"):
        score_rows(store)
    assert [fault.path for fault in misplaced(store)] == ["scores/a.json"]


def test_a_record_without_key_and_origin_is_still_read(store: Store) -> None:
    document = store.read_json(at())
    assert document is not None
    for name in ("key", "origin", "commit", "mteb_version"):
        document.pop(name, None)
    store.write_json(at(), document)
    record = read_record(store, at())
    assert record is not None and record.group is None and record.arm == Arm(KEY, 1, "mean")
    assert len(score_rows(store)) == 8


def test_arms_scored_by_unlike_means_are_told(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(score_rows(store)) == 8 and not caplog.text
    for path in (at(), at(2)):
        document = store.read_json(path)
        assert document is not None
        store.write_json(path, {**document, "mteb_version": "1.0"})
    assert len(score_rows(store)) == 8
    assert "another mteb, data revision or cap than others" in caplog.text
    assert "on 1 tasks: sts;" in caplog.text


# The table


def without_reading(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the records that are read from here on."""
    read: list[str] = []
    plain = type(store).read_json

    def counting(self: Store, path: str) -> Any:
        if path.startswith("scores/"):
            read.append(path)
        return plain(self, path)

    monkeypatch.setattr(type(store), "read_json", counting)
    return read


def test_the_table_saves_reading_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score_rows(store)
    asked = without_reading(store, monkeypatch)
    again = score_rows(open_store(store.url))
    assert asked == [] and again.equals(first)
    assert len(first) == 8 and first["score"].notna().all() and (first["seconds"] > 0).all()


def test_only_what_changed_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    score_rows(store)
    document = store.read_json(at())
    assert document is not None
    document["main_score"] = None
    store.write_json(at(), document)
    asked = without_reading(store, monkeypatch)
    rows = score_rows(store).set_index("path")
    assert asked == [at()] and math.isnan(rows["score"][at()])
    store.delete_json(at(2))
    assert at(2) not in set(score_rows(store)["path"]) and asked == [at()]


def test_the_table_is_never_trusted_over_the_records(store: Store) -> None:
    """Bytes changed in place, with size and time of modification as before: seen all the same."""
    right = score_rows(store).set_index("path")["score"]
    one = Path(store.url) / "documents" / at()
    before, times = one.read_bytes(), one.stat()
    changed = before.replace(b'"layer": 1', b'"layer": 2')
    assert len(changed) == len(before) and changed != before
    with one.open("r+b") as file:
        file.write(changed)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreCorrupt, match="crc32c differs"):
        score_rows(store)
    one.write_bytes(before)
    assert score_rows(store).set_index("path")["score"].equals(right)


@pytest.mark.parametrize("damage", ["flipped", "cut", "note", "gone", "version"])
def test_a_damaged_table_is_made_anew(store: Store, damage: str) -> None:
    right = score_rows(store)
    root = Path(store.url) / "documents"
    file, note = root / TABLE, root / TABLE_NOTE
    sound = file.read_bytes()
    content = bytearray(sound)
    if damage == "flipped":
        # A score in it: the table itself would say another number.
        at_score = content.index(np.float64(right["score"].iloc[0]).tobytes())
        content[at_score + 6] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "note":
        note.write_text("{")
    elif damage == "gone":
        file.unlink()
    else:
        store.write_json(TABLE_NOTE, {**store.read_json(TABLE_NOTE), "version": 0})
    assert score_rows(store).equals(right)
    assert file.read_bytes() == sound
    assert verify(store) == []


def test_a_store_that_cannot_be_written_is_read_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, path: str, content: bytes) -> None:
        raise StoreError(f"{path}: read-only file system")

    monkeypatch.setattr(type(store), "write_bytes", refuse)
    assert len(score_rows(store)) == 8


def test_links_among_the_records_hide_nothing_and_lead_nowhere(
    store: Store, tmp_path: Path
) -> None:
    folder = Path(store.url) / "documents/scores" / KEY
    (folder / "1-mean" / "a.json").symlink_to("nowhere")  # Before the others, as names go.
    (folder / "loop").symlink_to(Path(store.url) / "documents/scores")
    assert len(score_rows(store)) == 8
    (tmp_path / "outside").mkdir()
    shutil.rmtree(Path(store.url) / "documents/tables")
    (Path(store.url) / "documents/tables").symlink_to(tmp_path / "outside")
    again = open_store(store.url)
    with pytest.raises(StoreCorrupt, match=r"tables/scores\.json lies outside the store"):
        again.read_json(TABLE_NOTE)
    assert len(score_rows(again)) == 8  # The table is derived: one that can't be read isn't there.
    assert not list((tmp_path / "outside").iterdir())


def test_no_scores_no_table(tmp_path: Path, tasks: list[Any]) -> None:
    store = store_of(tmp_path / "x.zarr", tasks)
    assert score_rows(store).empty and store.read_json(TABLE_NOTE) is None
