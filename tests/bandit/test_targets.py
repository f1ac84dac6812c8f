"""The benchmark of policies: what it says of a difference that is chance, and of one that isn't."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("targets")


def rows(targets: ModuleType, mean: dict[str, float], seeds: int = 60) -> pd.DataFrame:
    """Runs of all policies on one problem whose regrets are exponential around their means."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "case": "x",
            "part": 0.02,
            "seed": seed,
            "policy": policy,
            "regret": mean.get(policy, 1.0) * rng.exponential(),
        }
        for seed in range(seeds)
        for policy in ("toptwo_gp", *targets.OTHERS)
    )


def test_the_luckiest_of_equals_is_no_better(targets: ModuleType) -> None:
    found = targets.against(rows(targets, {}), "toptwo_gp").iloc[0]
    assert found["excess"] > targets.BEHIND
    assert abs(found["fair"]) < found["excess"]
    assert abs(found["fair"]) < 2 * found["error"]
    assert not targets.surely_behind(pd.DataFrame([found])).any()


def test_of_a_few_seeds_no_error_is_stated(targets: ModuleType) -> None:
    found = targets.against(rows(targets, {"halving": 0.1}, seeds=2), "toptwo_gp")
    assert np.isnan(found["error"].iloc[0])
    assert not targets.surely_behind(found).any()


def test_one_that_is_better_is_told(targets: ModuleType) -> None:
    found = targets.against(rows(targets, {"halving": 0.1}), "toptwo_gp")
    assert found["which"].tolist() == ["halving"]
    assert found["fair"].iloc[0] == pytest.approx(found["excess"].iloc[0])
    assert targets.surely_behind(found).all()


def test_all_policies_stand_side_by_side_at_the_parts_that_all_problems_have(
    targets: ModuleType, tmp_path: Path
) -> None:
    target_figures = importlib.import_module("target_figures")
    one = rows(targets, {"halving": 0.1}, seeds=4)
    every = pd.concat([one, one.assign(part=0.1), one.assign(case="y", regret=0.5)])
    figures = target_figures.compared(every)
    best = figures["rows"][0]
    assert (best["policy"], best["first_2"], best["of_2"]) == ("halving", 2, 2)
    assert not any(key.endswith("_10") for key in best)
    target_figures.picture(every, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
