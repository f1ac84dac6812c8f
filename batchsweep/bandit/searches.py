"""The searches that a store has answers of, and which of them a config means."""

from __future__ import annotations

from typing import Any

from batchsweep.bandit.answer_document import checked_answer
from batchsweep.bandit.identity import search_settings
from batchsweep.bandit.ledger import read_header
from batchsweep.config import Config
from batchsweep.errors import UsageError
from batchsweep.store import Store


def answers(store: Store) -> dict[str, dict[str, Any]]:
    """Name -> ``answer.json`` of each search that has one; the one that ended last stands last.

    Raises:
        StoreCorrupt: one is damaged, or no answer.
    """
    there = {}
    for path in store.list_json("bandit"):
        answer = store.read_json(path) if path.endswith("/answer.json") else None
        if answer is not None:
            where = f"{store.url}: {path}"
            there[path.split("/")[1]] = checked_answer(answer, where=where)
    # Answers of older versions don't say when.
    return dict(sorted(there.items(), key=lambda item: (item[1].get("finished", ""), item[0])))


def search_of(store: Store, config: Config, name: str | None = None) -> str | None:
    """The search of this name, else the config's own, else the one that ended last.

    Args:
        config: a search is its own if policy, budget, seed, rewards and the like are the same.
        name: a folder below ``bandit/``; None: by the config.

    Returns:
        Its name; None if no search has an answer.

    Raises:
        UsageError: no search of that name has an answer; names those that have.
    """
    there = answers(store)
    if name is not None:
        if name not in there:
            known = ", ".join(there) or "none yet; run 'batchsweep bandit'"
            raise UsageError(f"{store.url}: no search '{name}' has an answer; there are: {known}")
        return name
    settings = search_settings(config.bandit, config.rewards)
    own = [
        n for n in there if n.startswith(f"{config.bandit.policy}-") and _has(store, n, settings)
    ]
    return next(reversed(own or list(there)), None)


def _has(store: Store, name: str, settings: dict[str, Any]) -> bool:
    header = read_header(store, name) or {}
    return all(header.get(key) == value for key, value in settings.items())
