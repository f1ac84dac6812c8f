"""The report's section on the search: what it was run with, and what its pulls were for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from batchsweep.bandit.ledger import IMPORTED
from batchsweep.report.findings import Search
from batchsweep.report.view import View

#: What pulls of a kind are for.
_WORDS = {
    "imported": "there before, from {where}; they cost nothing",
    "reference": "baseline layers, which the rewards are scaled by",
    "search": "the search",
    "check": "final check of the top arms",
}


def search_section(view: View) -> dict[str, Any] | None:
    """What the page says of one search; None if there is none with an answer."""
    if view.search is None or not view.answer:
        return None
    search, answer = view.search, view.answer
    kinds = [pull.kind for pull in search.pulls if not pull.full]
    return {
        "policy": str(search.header.get("policy", "?")),
        "seed": str(search.header.get("seed", "?")),
        "pulls": sum(pull.kind != "imported" for pull in search.pulls),
        "budget": answer.get("budget_pulls"),
        "exhaustive": answer["exhaustive_pulls"],
        "kinds": [
            (k, kinds.count(k), words.format(where=_origin(search)))
            for k, words in _WORDS.items()
            if k in kinds
        ],
        "subsets": _subsets(view),
        "others": [s.name for s in view.findings.searches if s is not search],
    }


def _origin(search: Search) -> str:
    """The folder that all imported pulls are from."""
    files = [p.reason.removeprefix(IMPORTED) for p in search.pulls if p.kind == "imported"]
    try:
        return os.path.commonpath([Path(file).parent for file in files]) or "results of mteb"
    except ValueError:
        return "results of mteb"


def _subsets(view: View) -> str:
    """What a pull scored, where that was not whole tasks."""
    subsets = view.answer.get("subsets")
    if subsets is None:
        return ""
    texts, checked = subsets["texts_per_pull"], len(subsets["checked_in_full"])
    noise = [x for x in subsets["noise"] if x > 0]
    said = (
        f"A pull on a larger task scored two seeded subsets of together {texts:,} texts, the same "
        "for every arm; only scores of whole tasks count as measured on this page. "
    )
    if noise:
        said += f"Measured noise of a pull: median {100 * float(np.median(noise)):.2f} points. "
    if not checked:
        return said + "Nothing was scored on whole tasks. "
    return said + (
        f"The {checked} top arms were then scored on whole tasks, which decided; these pulls have "
        "no dots. "
    )
