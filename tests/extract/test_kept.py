"""Where a block takes minutes, a stop or a kill loses what came after the last write."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_data import KEY, spec, states, stored
from tiny import make_suite, make_tasks, write_config

from batchsweep.cli.main import main
from batchsweep.config import load
from batchsweep.errors import Terminated
from batchsweep.extract import kept
from batchsweep.extract.extract import extract
from batchsweep.forward import forward
from batchsweep.plan.frozen import load_plan
from batchsweep.plan.timings import RECORD_SECONDS, timings
from batchsweep.signals import StopRequest
from batchsweep.store import create_store, open_store


class Killed(BaseException):
    """Stands for kill -9: nothing that is done at an end is done."""


class Slow:
    """A model whose batches take a second each, on a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.kill_after = self.stop_after = 10**9
        self.batches = 0
        self.each = 1.0
        self.stop = StopRequest(grace=0)
        true = forward.reduced_states

        def throttled(*args: object, **more: object) -> Iterator[object]:
            for batch in true(*args, **more):  # type: ignore[arg-type]
                self.batches += 1
                self.seconds += self.each
                if self.batches > self.kill_after:
                    raise Killed
                if self.batches == self.stop_after:
                    self.stop.receive(15, None)
                yield batch

        monkeypatch.setattr(forward, "reduced_states", throttled)
        monkeypatch.setattr("time.monotonic", lambda: self.seconds)

    def again(self) -> None:
        """From here on nobody kills or stops it."""
        self.batches, self.kill_after, self.stop_after = 0, 10**9, 10**9
        self.stop = StopRequest(grace=0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite") / "tiny", ("main",))


def prepared(folder: Path, suite: Path, block_texts: int = 4096) -> str:
    """A sweep whose one block is some 60 batches."""
    folder.mkdir()
    path = write_config(
        folder / "sweep.yaml",
        models=[str(suite)],
        revisions=["main"],
        tasks=make_tasks(folder / "tasks", n=100),
        embedding={"batch_tokens": 30, "device": "cpu"},
        metrics={"enabled": False},
        store={"path": str(folder / "store"), "block_texts": block_texts},
    )
    assert main(["prepare", "--config", str(path)]) == 0
    return str(path)


def run(config: str, stop: StopRequest) -> None:
    sweep = load(config)
    store = open_store(sweep.store_url)
    extract(store, sweep, load_plan(store).entries[0], stop=stop)


def whole(tmp_path: Path, suite: Path, slow: Slow) -> tuple[int, dict[str, bytes]]:
    """How many batches a run takes that nobody stops, and what it writes."""
    config = prepared(tmp_path / "whole", suite)
    slow.batches = 0
    run(config, slow.stop)
    return slow.batches, stored(Path(load(config).store_url))


def stopped(tmp_path: Path, suite: Path, slow: Slow) -> str:
    """A sweep that SIGTERM stopped after nine batches of its block."""
    config = prepared(tmp_path / "stopped", suite)
    slow.batches, slow.stop_after = 0, 9
    with pytest.raises(Terminated):
        run(config, slow.stop)
    return config


def test_a_kill_loses_no_more_than_what_came_after_the_last_write(
    tmp_path: Path, suite: Path, slow: Slow
) -> None:
    batches, wanted = whole(tmp_path, suite, slow)
    assert batches > 50
    config = prepared(tmp_path / "killed", suite)
    store = Path(load(config).store_url)
    slow.batches, slow.kill_after = 0, 47
    with pytest.raises(Killed):
        run(config, slow.stop)
    assert len(list((store / "documents/kept").rglob("0"))) == 1
    slow.again()
    run(config, slow.stop)
    lost = slow.batches + 47 - batches
    assert 0 <= lost < kept.KEEP_SECONDS + 1 <= 30, "a batch takes a second of this clock"
    assert stored(store) == wanted
    assert not [p for p in (store / "documents/kept").rglob("*") if p.is_file()]


def test_a_kill_between_a_seal_and_what_was_kept_leaves_nothing_for_good(
    tmp_path: Path, suite: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow.each = 20.0
    config = prepared(tmp_path / "killed", suite, block_texts=64)
    store = Path(load(config).store_url)

    def killed(self: object, block: int) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kept.Kept, "drop", killed)
        run(config, slow.stop)
    left = [p for p in (store / "documents/kept").rglob("*") if p.is_file()]
    assert left
    run(config, slow.stop)
    assert not [p for p in (store / "documents/kept").rglob("*") if p.is_file()]


def test_the_time_of_a_kill_is_on_record(tmp_path: Path, suite: Path, slow: Slow) -> None:
    """It was paid for. A batch takes a second of this clock, a block some twenty."""
    config = prepared(tmp_path / "killed", suite, block_texts=64)
    store = open_store(load(config).store_url)
    before, slow.batches, slow.kill_after = slow.seconds, 0, 85
    with pytest.raises(Killed):
        run(config, slow.stop)
    (first,) = timings(store).values()
    assert first.runs == 1 and first.tokens > 0
    # What is not written down yet is less than RECORD_SECONDS and a block.
    assert RECORD_SECONDS <= first.seconds <= slow.seconds - before
    slow.again()
    run(config, slow.stop)
    (both,) = timings(store).values()
    assert both.runs == 2 and both.tokens > first.tokens
    assert both.seconds == first.seconds + slow.batches


def test_sigterm_loses_nothing_that_was_computed(
    tmp_path: Path, suite: Path, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    batches, wanted = whole(tmp_path, suite, slow)
    config = stopped(tmp_path, suite, slow)
    assert slow.batches == 9 and "of its texts are kept" in caplog.text
    slow.again()
    run(config, slow.stop)
    assert slow.batches == batches - 9
    assert stored(Path(load(config).store_url)) == wanted


@pytest.mark.parametrize("harm", ["cut", "flipped", "batch_tokens", "empty"])
def test_what_is_kept_of_something_else_is_computed_again(
    harm: str, tmp_path: Path, suite: Path, slow: Slow
) -> None:
    batches, wanted = whole(tmp_path, suite, slow)
    config = stopped(tmp_path, suite, slow)
    (file,) = (Path(load(config).store_url) / "documents/kept").rglob("0")
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        content[-3] ^= 1
    del content[{"cut": -4, "empty": 0}.get(harm, len(content)) :]
    file.write_bytes(content)
    if harm == "batch_tokens":
        changed = json.loads(Path(config).read_text())
        changed["embedding"]["batch_tokens"] = 31
        Path(config).write_text(json.dumps(changed))
    slow.again()
    run(config, slow.stop)
    if harm == "batch_tokens":
        assert slow.batches > batches - 9
        return
    assert slow.batches == batches
    assert stored(Path(load(config).store_url)) == wanted


def test_a_batch_that_takes_too_long_is_said_with_the_size_that_would_not(
    tmp_path: Path, suite: Path, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    config = prepared(tmp_path / "sweep", suite)
    slow.each = 60.0
    run(config, slow.stop)
    assert "a batch takes 1 min 00 s here, and a kill loses as much; " in caplog.text
    assert "embedding.batch_tokens: 14 would make it 30 s" in caplog.text


def test_that_every_batch_takes_too_long_is_said_once_an_index(
    tmp_path: Path, suite: Path, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    config = prepared(tmp_path / "sweep", suite, block_texts=64)
    slow.each = 60.0
    run(config, slow.stop)
    assert caplog.text.count("and a kill loses as much") == 1


def test_what_is_kept_is_copied_once(tmp_path: Path) -> None:
    """Where a block is kept, it is what memory is full of."""
    of = spec(texts=4096, block_texts=4096, layers=tuple(range(1, 25)), hidden=32)
    block = states(of)
    store = create_store(str(tmp_path / "store"))
    writer = kept.Kept(store, KEY, of, batch_tokens=64)
    done = np.arange(of.texts) % 5 > 0
    copied = sum(array[:, done].nbytes for array in block.values())
    tracemalloc.start()
    writer.keep(0, block, done, now=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.1 * copied

    found = {pooling: np.zeros_like(array) for pooling, array in block.items()}
    assert (kept.Kept(store, KEY, of, batch_tokens=64).begin(0, found) == done).all()
    for pooling, array in found.items():
        assert (array == block[pooling] * done[None, :, None]).all()
