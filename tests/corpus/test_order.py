"""The order of the corpus's rows, and the file in which texts wait for it."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsweep.corpus.order import ordered
from batchsweep.corpus.spool import Spool
from batchsweep.errors import UsageError
from batchsweep.forward.batching import make_batches

texts = st.integers(1, 40)


@given(texts.flatmap(lambda n: st.tuples(
    st.lists(st.sets(st.integers(0, n - 1)), min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=n, max_size=n),
)))  # fmt: skip
def test_every_row_once_and_every_run_together(drawn) -> None:
    sets, lengths = drawn
    tasks = [np.array(sorted(rows), np.int64) for rows in sets]
    order = ordered(tasks, lengths)
    assert sorted(order) == list(range(len(lengths)))
    asked_by = [tuple(row in rows for rows in sets) for row in order.tolist()]
    runs = [who for who, before in zip(asked_by, [None, *asked_by], strict=False) if who != before]
    assert len(runs) == len(set(runs))
    for who in runs:
        mine = [lengths[row] for row, w in zip(order, asked_by, strict=True) if w == who]
        top = mine.index(max(mine))
        assert mine[: top + 1] == sorted(mine[: top + 1])
        assert mine[top:] == sorted(mine[top:], reverse=True)
    # The first task's rows are one run, and those of two are one each.
    for place in range(min(len(sets), 2)):
        inside = [n for n, who in enumerate(asked_by) if who[place]]
        assert not inside or inside[-1] - inside[0] == len(inside) - 1


def test_blocks_hold_texts_of_one_length() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(rng.lognormal(2.6, 0.5, 5000)), 1, 100).astype(int)
    order = ordered([np.arange(2000), np.arange(2000, 5000)], lengths)

    def batches(rows) -> int:
        blocks = (lengths[rows[n : n + 256]] for n in range(0, 5000, 256))
        return sum(len(make_batches(block, 16384)) for block in blocks)

    assert batches(order) < batches(np.arange(5000)) / 4


def test_records_come_back_in_any_order() -> None:
    records = [b"", b"a", "ü☃".encode(), bytes(range(256))]
    with Spool() as spool:
        spool.append(records[:1])
        spool.append([])
        spool.append(records[1:])
        assert spool.read([3, 0, 2, 2]) == [records[3], b"", records[2], records[2]]
        spool.append([b"later"])
        assert spool.read([4, 1]) == [b"later", b"a"]


def test_a_full_temporary_folder_is_named(monkeypatch) -> None:
    full = Path("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: full.open("wb", buffering))
    with Spool() as spool, pytest.raises(UsageError, match=r"No space left.*set TMPDIR"):
        spool.append([b"text"])
