"""The report page: what it says of a store, and that nothing in it depends on time or place."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from batchsweep.bandit.loop import StoreLedger, run
from batchsweep.bandit.policies import Problem
from batchsweep.checkpoints.audit import Skipped
from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import BanditConfig, RewardsConfig
from batchsweep.errors import UsageError
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.report.findings import read
from batchsweep.report.page import render, write
from batchsweep.report.svg import Limits, heat_map
from batchsweep.report.view import View
from batchsweep.score.record import Score
from batchsweep.store import Store, create_store

TASKS = ("Similar", "Sorted")
STEPS = (0, 8, 64)
SHAPE = Shape(
    **{
        name: 4 if name == "num_layers" else 8
        for name in Shape.__dataclass_fields__
        if Shape.__dataclass_fields__[name].default is not None
    }
)


def score_of(step: int, layer: int, task: str) -> float:
    """The truth of the sweep below: late checkpoints and layer 3 are best."""
    return 0.2 + 0.08 * STEPS.index(step) - 0.03 * abs(layer - 3) + (task == "Sorted") * 0.1


def plan_of(model: str = "tests/tiny", **more: Any) -> Plan:
    entries = tuple(
        PlanEntry(
            i,
            Checkpoint(model, f"step{step}", "c0ffee", step, aliases=("main",) if i == 2 else ()),
            (1, 2, 3, 4),
            SHAPE,
        )
        for i, step in enumerate(STEPS)
    )
    return Plan(entries, ("mean",), {}, **more)


def store_of(path: Path, plan: Plan) -> Store:
    store = create_store(path)
    store.write_json("plan.json", plan.to_json())
    return store


def search(store: Store, plan: Plan, **bandit: Any) -> None:
    """A real search of the store's arms; its pulls leave records as scoring does."""
    facts = {f"{e.key}#{n}": (e.checkpoint, n) for e in plan.entries for n in e.layers}

    def score(arm: str, task: str) -> Score:
        checkpoint, layer = facts[arm]
        value = score_of(checkpoint.step or 0, layer, task)
        record = {
            "main_score": value,
            "seconds": 0.5,
            "task": task,
            "model": checkpoint.model,
            "revision": checkpoint.revision,
            "step": checkpoint.step,
            "layer": layer,
            "pooling": "mean",
            "mteb_version": "2.26.24",
            "dataset_revision": "c0ffee",
            "cap": None,
        }
        store.write_json(f"scores/{arm.replace('#', '/')}-mean/{task}.json", record)
        return Score(value, 0.5)

    problem = Problem(
        arms=tuple(facts),
        tasks=TASKS,
        model=tuple(c.model for c, _ in facts.values()),
        step=np.array([c.step for c, _ in facts.values()], dtype=float),
        depth=np.array([n / 4 for _, n in facts.values()]),
    )
    config = BanditConfig(**bandit)
    outcome = run(
        problem, score, config, RewardsConfig(), ledger=StoreLedger(store, "one"), quiet=True
    )
    store.write_json("bandit/one/answer.json", outcome.to_json())


class Balance(HTMLParser):
    """Complains of an element that is closed wrongly or not at all."""

    VOID = frozenset({"meta", "rect", "path", "line", "circle", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures = 0
        self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "svg" and dict(attrs).get("role") == "img":
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
        assert f"<h3>{task} " in html


def test_page_is_well_formed_and_pictures_have_names(searched: Store) -> None:
    parser = Balance()
    parser.feed(render(read(searched), title="a sweep"))
    assert parser.open == []
    # Plane, pulls, two tasks, three colour scales, trajectory.
    assert parser.figures == 8 and parser.unnamed == 0


def test_same_store_gives_same_bytes_wherever_it_is_written(
    searched: Store, tmp_path: Path
) -> None:
    first = [p.read_bytes() for p in write(searched, tmp_path / "one", title="x")]
    again = [p.read_bytes() for p in write(searched, tmp_path / "two", title="x")]
    assert first == again
    assert not list((tmp_path / "one").glob(".*")), "nothing temporary stays"


def test_page_needs_nothing_from_elsewhere(searched: Store, tmp_path: Path) -> None:
    html = render(read(searched), title="a sweep")
    assert not re.search(r"https?://|src=|@import|<link|<script", html)
    assert str(tmp_path) not in html


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
    assert findings.counted_AT[arm, task] == 0
    view = View(findings)
    assert view.measured_tasks(arm) == 2
    assert view.mean_A[arm] == pytest.approx(score_of(8, 2, "Similar") / 2)


def test_predicted_cells_are_hatched_and_measured_ones_are_not(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="toptwo_gp", budget={"pulls": 12}, stop_at_regret=0)
    view = View(read(store))
    assert view.measured_AT.sum() == 12
    assert np.isfinite(view.plane_AT).all(), "the policy believes something of every cell"
    np.testing.assert_allclose(
        view.plane_AT[view.measured_AT], view.findings.score_AT[view.measured_AT]
    )
    html = render(view.findings, title="x")
    unmeasured = int((~view.measured_AT.all(axis=1)).sum()) + int((~view.measured_AT).sum())
    assert html.count('fill="url(#hatch)"') == unmeasured
    assert html.count("(predicted)") == unmeasured
    assert html.count("<title>pull ") == 12


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
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "&lt;i&gt;$title" in html


def test_aliases_and_skipped_checkpoints_are_told(tmp_path: Path) -> None:
    names = [f for f in Skipped.__dataclass_fields__]
    skipped = Skipped(**dict.fromkeys(names, "step9") | {"model": "tests/tiny"})
    html = render(read(store_of(tmp_path / "s.zarr", plan_of(skipped=(skipped,)))), title="x")
    assert "<li>" in html and "step9" in html
    assert "same weights as" in html and ">main<" in html


def test_a_plane_of_all_pythia_checkpoints_stays_on_the_page() -> None:
    plane = np.linspace(0, 1, 24 * 154).reshape(24, 154)
    svg = heat_map(
        plane,
        layers=range(1, 25),
        columns=[str(n) for n in range(154)],
        limits=Limits.of(plane),
        label="all",
    )
    width = float(re.search(r'viewBox="0 0 (\S+)', svg)[1])  # type: ignore[index]
    assert width < 900
    assert svg.count("<g>") == 24 * 154
    assert ">153</text>" in svg, "the last checkpoint is named"


def test_colours_reach_both_ends_and_survive_a_flat_plane() -> None:
    limits = Limits.of(np.array([0.1, np.nan, 0.5]))
    assert limits.colour(0.1) == (68, 1, 84) and limits.colour(0.5) == (253, 231, 37)
    assert Limits(0.3, 0.3).colour(0.3) == Limits(0.0, 1.0).colour(0.5)
    assert Limits.of(np.array([np.nan])) == Limits(0.0, 1.0)
