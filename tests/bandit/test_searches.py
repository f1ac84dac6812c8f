"""Which of a store's searches a config means."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_store import plan_of, search, store_of

from batchsweep.bandit.searches import answers, search_of
from batchsweep.config import BanditConfig, Config, RewardsConfig
from batchsweep.errors import StoreCorrupt, UsageError
from batchsweep.store import Store


def config_of(**bandit: object) -> Config:
    return Config.model_validate({"models": ["tests/tiny"], "tasks": ["STS12"], "bandit": bandit})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three searches; the one that ended last has the first name."""
    plan = plan_of()
    store = store_of(tmp_path / "store.zarr", plan)
    for name, end, bandit in (
        ("random-b", "2026-01-01T00:00:00+00:00", {"policy": "random", "budget": 3}),
        ("random-c", "2026-01-02T00:00:00+00:00", {"policy": "random", "budget": 4}),
        ("exhaustive-a", "2026-01-03T00:00:00+00:00", {"policy": "exhaustive"}),
    ):
        search(store, plan, name, **bandit)
        answer = store.read_json(f"bandit/{name}/answer.json")
        store.write_json(f"bandit/{name}/answer.json", {**(answer or {}), "finished": end})
    return store


def test_the_search_is_the_configs_own_else_the_last_that_ended(store: Store) -> None:
    assert list(answers(store)) == ["random-b", "random-c", "exhaustive-a"]
    assert search_of(store, config_of(policy="random", budget=3)) == "random-b"
    assert search_of(store, config_of(policy="random", budget=4)) == "random-c"
    assert search_of(store, config_of(policy="random", budget=5)) == "exhaustive-a"
    raw = config_of(policy="random", budget=3)
    other = raw.model_copy(update={"rewards": RewardsConfig(scale="z")})
    assert search_of(store, other) == "exhaustive-a", "another reward is another search"
    assert raw.bandit == BanditConfig(policy="random", budget=3)


def test_a_budget_in_pulls_names_its_own_search_too(store: Store) -> None:
    search(store, plan_of(), "random-a", policy="random", budget={"pulls": 4})
    assert search_of(store, config_of(policy="random", budget={"pulls": 4})) == "random-a"
    assert search_of(store, config_of(policy="random", budget={"pulls": 5})) == "exhaustive-a"


def test_a_search_by_name_and_names_that_are_not_there(store: Store, tmp_path: Path) -> None:
    config = config_of(policy="random", budget=3)
    assert search_of(store, config, "random-c") == "random-c"
    with pytest.raises(UsageError, match="no search 'other' has an answer; there are: random-b, "):
        search_of(store, config, "other")
    empty = store_of(tmp_path / "empty.zarr", plan_of())
    assert search_of(empty, config) is None
    with pytest.raises(UsageError, match="none yet; run 'batchsweep bandit'"):
        search_of(empty, config, "random-c")


def test_a_document_that_is_no_answer_is_refused_by_all_readers(store: Store) -> None:
    answer = store.read_json("bandit/random-b/answer.json")
    for wrong in ({"best": 3}, {**(answer or {}), "finished": 5}):
        store.write_json("bandit/random-b/answer.json", wrong)
        with pytest.raises(StoreCorrupt, match=r"random-b/answer\.json is no answer of a search"):
            search_of(store, config_of(policy="random", budget=3))
