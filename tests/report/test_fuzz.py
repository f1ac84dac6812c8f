"""Whatever scores, ledger and answer say, there is a report, or one line with its exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hostile import bounded, changed, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_store import plan_of, search, store_of

import batchsweep
from batchsweep.report.findings import read
from batchsweep.report.page import render
from batchsweep.score.records import misplaced
from batchsweep.store import Store, documents


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    plan = plan_of()
    made = store_of(tmp_path_factory.mktemp("fuzz") / "s", plan)
    search(made, plan, budget={"pulls": 8})
    return made


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "30")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_reports(store: Store, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["scores/", "bandit/one/answer", "bandit/one/pulls/"]))
    names = [name for name in store.documents() if name.startswith(kind)]
    path = Path(store.url) / "documents" / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    value = json.loads(whole)
    del value["crc32c"]
    new = data.draw(changed(value))
    path.write_text(json.dumps(documents.with_checksum(new) if isinstance(new, dict) else new))
    try:
        with bounded():
            refused(lambda: render(read(store), title="x"))
            refused(lambda: batchsweep.open(store.url).scores)
            refused(lambda: misplaced(store))
    finally:
        path.write_bytes(whole)


def test_names_of_a_stranger_are_text_in_the_report(store: Store) -> None:
    """They were put into the page as they were: a script in one ran."""
    path, script = "bandit/one/answer.json", "</script><script>alert(1)</script>"
    answer = store.read_json(path)
    try:
        said = {**answer, "reward": script, "stopped": script, "budget_pulls": None}
        store.write_json(path, said)
        html = render(read(store), title=script)
        assert "<script>alert" not in html and "&lt;script&gt;alert(1)" in html
        store.write_json(path, {**answer, "budget_pulls": script})
        error = refused(lambda: read(store))
        assert error is not None and "answer.json is no answer of a search (budget_pulls" in str(
            error
        )
        for arm in ("x", "a/b#\u00b2", f"a/b#{'9' * 5000}"):
            store.write_json(path, {**answer, "best": {**answer["best"], "arm": arm}})
            error = refused(lambda: read(store))
            assert error is not None and "is not an arm" in str(error)
    finally:
        store.write_json(path, answer)
