"""The report page: what it says of a store, and that nothing in it depends on time or place."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from report_store import SHAPE, TASKS, given, plan_of, score_of, search, store_of

from batchsweep.bandit.ledger import Observation
from batchsweep.checkpoints.audited import Skipped
from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.errors import UsageError
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.plan.timings import Timing, add_timing
from batchsweep.report.explore import scripts
from batchsweep.report.findings import ArmFacts, Findings, Search, read
from batchsweep.report.page import render, write
from batchsweep.report.view import View
from batchsweep.store import Store, create_store


class Balance(HTMLParser):
    """Complains of an element that is closed wrongly or not at all."""

    VOID = frozenset({"meta", "rect", "path", "line", "circle", "link", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures = 0
        self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div" and dict(attrs).get("role") == "img":
            self.figures += 1
            self.unnamed += not dict(attrs).get("aria-label")
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in self.VOID:
            self.open.pop()
        assert self.open.pop() == tag, f"</{tag}> closes something else"


@pytest.fixture
def searched(tmp_path: Path) -> Store:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="exhaustive", budget=12)
    return store


def test_page_names_the_best_arm_and_what_it_beats(searched: Store) -> None:
    html = render(read(searched), title="a sweep")
    assert "tiny step64, layer 3" in html
    truth = np.mean([score_of(64, 3, t) for t in TASKS])
    default = np.mean([score_of(64, 4, t) for t in TASKS])
    assert f"{truth:.3f}" in html and f"best is +{truth - default:.3f}" in html
    assert "24" in html and "of 24 (100%)" in html
    for task in TASKS:
        assert f'<td class="name">{task}</td>' in html


def test_page_is_well_formed_and_pictures_have_names(searched: Store) -> None:
    parser = Balance()
    parser.feed(render(read(searched), title="a sweep"))
    assert parser.open == []
    # The plane (its name follows what it shows), two curves, the tasks, the search.
    assert parser.figures == 5 and parser.unnamed == 1


def test_same_store_gives_same_bytes_wherever_it_is_written(
    searched: Store, tmp_path: Path
) -> None:
    first = [p.read_bytes() for p in write(searched, tmp_path / "one", title="x")]
    again = [p.read_bytes() for p in write(searched, tmp_path / "two", title="x")]
    assert first == again
    assert not list((tmp_path / "one").glob(".*")), "nothing temporary stays"


def test_page_needs_nothing_from_elsewhere(searched: Store, tmp_path: Path) -> None:
    html = render(read(searched), title="a sweep")
    own = html.replace(scripts()[0], "")
    assert not re.search(r"https?://|src=|@import|<link|url\(", own)
    assert "default-src 'none'" in own, "the browser itself refuses to fetch anything"
    assert str(tmp_path) not in html


def test_the_page_says_what_extraction_took(searched: Store) -> None:
    assert "extraction took" not in render(read(searched), title="a sweep")
    key = read(searched).plan.entries[1].key
    add_timing(searched, key, Timing(1, start_seconds=20, tokens=70_000, seconds=280))
    html = render(read(searched), title="a sweep")
    assert "<dt>extraction took</dt><dd>5 min 00 s <small>70,000 tokens</small>" in html
    assert html.count("<td>5 min 00 s</td>") == 1


def test_a_damaged_timing_does_not_stop_the_page(searched: Store, caplog) -> None:
    key = read(searched).plan.entries[1].key
    searched.write_json(f"timings/{key}.json", {"runs": "many"})
    assert "extraction took" not in render(read(searched), title="a sweep")
    (said,) = caplog.messages
    assert f"timings/{key}.json says no timing" in said and "remove it" in said


def test_imported_cells_are_measured_and_name_their_source(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    arm = f"{plan.entries[0].key}#1"
    cells = [given(arm, task, 0.1 + i / 8, f"/there/{task}.json") for i, task in enumerate(TASKS)]
    search(store, plan, imported=cells, policy="random", budget={"pulls": 3})
    findings = read(store)
    view = View(findings)
    assert not findings.measured_AT[0].any() and view.measured_AT[0].all()
    np.testing.assert_allclose(view.plane_AT[0], [0.1, 0.225])
    assert view.measured_AT.sum() == 3 + 2 and view.complete_A[0]
    html = render(findings, title="a sweep")
    assert "there before, from /there; they cost nothing" in html and "random" in html
    sent = data_of(html)
    assert sent["measured"][:, 0].all()
    assert sent["search"]["reasons"][0] == "imported from /there/Similar.json"


def test_tables_hold_every_pull(searched: Store, tmp_path: Path) -> None:
    _, csv, parquet = write(searched, tmp_path / "out", title="x")
    frame = pd.read_csv(csv)
    assert len(frame) == 3 * 4 * 2
    row = frame.query("step == 8 and layer == 2 and task == 'Sorted'").iloc[0]
    assert row["score"] == pytest.approx(score_of(8, 2, "Sorted"))
    assert row["model"] == "tests/tiny" and row["pooling"] == "mean" and row["seconds"] == 0.5
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), frame, check_dtype=False)


def test_an_undefined_score_is_measured_shown_as_none_and_counts_as_zero(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="exhaustive", budget=12)
    path = "scores/tests--tiny/step8/2-mean/Sorted.json"
    record = store.read_json(path)
    assert record is not None
    store.write_json(path, {**record, "main_score": None})
    findings = read(store)
    arm = findings.index("tests--tiny/step8#2")
    task = findings.tasks.index("Sorted")
    assert np.isnan(findings.score_AT[arm, task]) and findings.measured_AT[arm, task]
    view = View(findings)
    assert view.plane_AT[arm, task] == 0
    assert view.measured_tasks(arm) == 2
    assert view.mean_A[arm] == pytest.approx(score_of(8, 2, "Similar") / 2)


def data_of(html: str) -> dict[str, Any]:
    """The data in a page, unpacked: plane and measured are [task, arm]."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    data = json.loads(found[1])
    shape = (len(data["tasks"]), len(data["arms"]["name"]))
    plane = np.frombuffer(base64.b64decode(data["plane"]), "<i2").reshape(shape)
    bits = np.frombuffer(base64.b64decode(data["measured"]), np.uint8)
    return {
        **data,
        "plane": np.where(plane == data["none"], np.nan, plane * data["unit"]),
        "measured": np.unpackbits(bits, count=plane.size, bitorder="little").reshape(shape) == 1,
    }


def test_the_pages_data_tell_measured_cells_from_predicted_ones(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="toptwo_gp", budget={"pulls": 12}, stop_at_regret=0)
    view = View(read(store))
    assert view.measured_AT.sum() == 12
    assert np.isfinite(view.plane_AT).all(), "the policy believes something of every cell"
    np.testing.assert_allclose(
        view.plane_AT[view.measured_AT], view.findings.score_AT[view.measured_AT]
    )
    data = data_of(render(view.findings, title="x"))
    np.testing.assert_array_equal(data["measured"], view.measured_AT.T)
    np.testing.assert_allclose(data["plane"], view.plane_AT.T, atol=0.6e-4)
    assert len(data["search"]["arm"]) == len(data["search"]["reasons"]) == 12
    assert data["best"] == view.best and data["last_layers"] == [
        view.findings.last_layer("tests/tiny")
    ]


def test_a_headline_tells_a_predicted_mean_from_a_measured_one(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="toptwo_gp", budget={"pulls": 12}, stop_at_regret=0)
    findings = read(store)
    best, default = View(findings).best, findings.last_layer("tests/tiny")
    assert best is not None and best != default
    seconds = findings.data["seconds"].values
    seconds[[best, default]] = 1.0
    assert "predicted</" not in render(findings, title="x")
    seconds[default, 0] = np.nan
    assert render(findings, title="x").count("; 1 of 2 tasks predicted") == 1


def test_a_page_of_thousands_of_arms_and_pulls_stays_below_three_megabytes(tmp_path: Path) -> None:
    steps, layers, tasks = 154, 12, [f"Task{i}" for i in range(32)]
    checkpoints = [
        PlanEntry(i, Checkpoint(m, f"step{s}", "c0ffee", s), tuple(range(1, layers + 1)), SHAPE)
        for i, (m, s) in enumerate(
            (m, s) for m in ("a/14m", "a/70m", "a/160m") for s in range(steps)
        )
    ]
    arms = tuple(ArmFacts(f"{e.key}#{n}", e, n, "mean") for e in checkpoints for n in e.layers)
    assert len(arms) == 5544
    score_AT = np.random.default_rng(0).uniform(0, 1, (len(arms), 32))
    pulls = tuple(
        Observation(
            "search", arms[i % len(arms)].arm, tasks[i % 32], 0.5, 1.0,
            "to tell the front from the runner-up",
        )
        for i in range(20_000)
    )  # fmt: skip
    answer = {
        "best": {"arm": arms[0].arm, "mean": 0.5, "interval": [0.4, 0.6], "p_best": 0.5},
        "scale": {"tasks": tasks, "kind": "raw"}, "pulls": 20_000, "exhaustive_pulls": 177_408,
        "seconds": 1.0, "stopped": "budget", "reward": "mean of main scores",
        "arms": [{"arm": a.arm, "mean": 0.5, "sd": 0.1, "pulled": 4} for a in arms],
        "plane": score_AT.tolist(),
    }  # fmt: skip
    seconds_AT = np.where(score_AT > 0.9, 1.0, np.nan)
    data = xr.Dataset(
        {"score": (("arm", "task"), score_AT), "seconds": (("arm", "task"), seconds_AT)},
        coords={"arm": [a.arm for a in arms], "task": tasks},
    )
    plan = Plan(tuple(checkpoints), ("mean",), {})
    found = Findings(plan, arms, data, (Search("one", {}, pulls, answer),))
    assert len(render(found, title="all").encode()) < 3e6


def test_page_before_any_search_says_what_to_run(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store.zarr", plan_of())
    paths = write(store, tmp_path / "out", title="x")
    html = paths[0].read_text()
    assert "No answer yet" in html and "batchsweep bandit" in html
    assert "0 of " in html and "not extracted yet" in html
    assert list(pd.read_csv(paths[1]).columns[:7]) == [
        "model", "revision", "step", "layer", "pooling", "task", "score",
    ]  # fmt: skip


def test_no_plan_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batchsweep prepare"):
        write(create_store(tmp_path / "store.zarr"), tmp_path / "out", title="x")


def test_names_from_outside_can_not_break_the_page(tmp_path: Path) -> None:
    plan = plan_of(model="evil/<script>alert(1)&$body")
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="exhaustive", budget=12)
    html = render(read(store), title="<i>$title")
    assert "<script>alert" not in html and "&lt;script&gt;" in html
    assert html.count("<script") == 3, "data, charts, our own"
    assert data_of(html)["models"][0]["name"] == "evil/<script>alert(1)&$body"
    assert "&lt;i&gt;$title" in html


def test_aliases_and_skipped_checkpoints_are_told(tmp_path: Path) -> None:
    names = [f for f in Skipped.__dataclass_fields__]
    given: dict[str, Any] = dict.fromkeys(names, "step9")
    skipped = Skipped(**{**given, "model": "tests/tiny", "reason": "missing"})
    html = render(read(store_of(tmp_path / "s.zarr", plan_of(skipped=(skipped,)))), title="x")
    assert "<li>" in html and "step9" in html
    assert "same weights as" in html and ">main<" in html


def test_the_charts_are_the_released_library(tmp_path: Path) -> None:
    library = scripts()[0]
    digest = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"
    assert hashlib.sha256(library.encode()).hexdigest() == digest, (
        "echarts 6.1.0, dist/echarts.min.js"
    )
    assert "</script" not in library + scripts()[1]
