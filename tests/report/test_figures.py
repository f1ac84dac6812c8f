"""The plane as figures for a paper."""

from __future__ import annotations

from pathlib import Path

from report_store import plan_of, search, store_of

from batchsweep.report.figures import write_figures
from batchsweep.report.findings import read


def test_figures_are_vectors_with_text_a_caption_and_the_same_bytes_again(tmp_path: Path) -> None:
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    search(store, plan, policy="toptwo_gp", budget={"pulls": 12}, stop_at_regret=0)
    findings = read(store)
    paths = write_figures(findings, tmp_path / "one")
    assert [p.name for p in paths] == [
        f"plane-tiny.{kind}" for kind in ("svg", "pdf", "png", "txt")
    ]
    svg = paths[0].read_text()
    assert ">mean main score<" in svg and ">64<" in svg and "url(#h" in svg
    assert paths[1].read_bytes().startswith(b"%PDF") and paths[2].read_bytes()[1:4] == b"PNG"
    caption = paths[3].read_text()
    assert "over 2 tasks of every layer of every checkpoint of tests/tiny (mean pooling)" in caption
    assert "the hatched ones are predicted" in caption and "12 of 24" in caption
    assert "Outlined: the best arm, tiny step64, layer 3" in caption
    again = write_figures(findings, tmp_path / "two")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_before_any_score_there_is_no_figure(tmp_path: Path) -> None:
    assert write_figures(read(store_of(tmp_path / "s.zarr", plan_of())), tmp_path / "out") == []
