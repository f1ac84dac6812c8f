"""The report's section on the search: its pulls in their order, and what they scored."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from batchsweep.report import svg
from batchsweep.report.view import View


def search_section(view: View) -> str:
    """The report's section on one search; empty if there is none with an answer."""
    if view.search is None or not view.answer:
        return ""
    search, answer, scale = view.search, view.answer, view.answer["scale"]
    column = {t: i for i, t in enumerate(scale["tasks"])}
    dots, best = [], []
    scores: dict[str, dict[str, float]] = {}
    top = math.nan
    for pull in search.pulls:
        if pull.full:
            continue  # A whole task is another scale than the subsets that were pulled before.
        i = column[pull.task]
        reward = (pull.score - scale["centre"][i]) / scale["spread"][i]
        arm = scores.setdefault(pull.arm, {})
        arm[pull.task] = reward
        if len(arm) == len(column):
            mean = sum(arm.values()) / len(arm)
            top = mean if math.isnan(top) else max(top, mean)
        name = view.name(view.findings.index(pull.arm))
        said = f"{name} on {pull.task}: {pull.score:.4f}. {pull.reason}"
        dots.append(svg.Dot(reward, pull.kind, said))
        best.append(top)
    kinds = {kind: sum(d.kind == kind for d in dots) for kind in ("reference", "search", "check")}
    words = {
        "reference": "baseline layers, which the rewards are scaled by",
        "search": "the search",
        "check": "final check of the top arms",
    }
    keys = ", ".join(
        f"<span class='key {kind}'></span>{n} {words[kind]}" for kind, n in kinds.items() if n
    )
    unit = "reward (standard deviations)" if scale["kind"] == "z" else "main score"
    policy = search.header.get("policy", "?")
    picture = svg.trajectory(
        dots,
        best,
        total=answer["exhaustive_pulls"],
        label=f"{len(dots)} pulls in their order and the best arm so far",
        value_name=unit,
    )
    budget = answer.get("budget_pulls")
    of_budget = f" of a budget of {budget}" if budget is not None else ""
    others = [s.name for s in view.findings.searches if s is not search]
    more = f"<p class='soft'>Other searches in this store: {escape(', '.join(others))}.</p>"
    return (
        "<h2>The search</h2>"
        f"<p>Policy <code>{escape(str(policy))}</code>, seed {search.header.get('seed', '?')}: "
        f"{len(search.pulls)} pulls{of_budget}; exhaustive would be "
        f"{answer['exhaustive_pulls']}. {_subsets(view)}"
        f"Each dot is one arm on one task: {keys}; <span class='key line'></span> mean of the best "
        "arm so far that is scored on all tasks.</p>"
        f"<figure>{picture}</figure>" + (more if others else "")
    )


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
