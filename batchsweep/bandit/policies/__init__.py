"""Policies: who decides what to score next. All ask/observe, all deterministic per seed."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from batchsweep.bandit.policies.base import Answer, Candidate, Policy, Problem, Pull
from batchsweep.bandit.policies.baselines.linucb import LinUCB, LinUCBDisjoint
from batchsweep.bandit.policies.baselines.sequential_halving import Halving, SequentialHalving
from batchsweep.bandit.policies.baselines.simple import Exhaustive, Heuristic, Random
from batchsweep.bandit.policies.baselines.ucb import UCB, UCBE
from batchsweep.bandit.policies.baselines.ucb_e_lrf import UCBELRF
from batchsweep.bandit.policies.gp.policies import GPUCB, Thompson, TopTwoGP
from batchsweep.errors import UsageError

__all__ = ["POLICIES", "Answer", "Candidate", "Policy", "Problem", "Pull", "make_policy"]

_CLASSES: tuple[type[Policy], ...] = (
    TopTwoGP,
    GPUCB,
    Thompson,
    SequentialHalving,
    Halving,
    UCBE,
    UCBELRF,
    UCB,
    LinUCB,
    LinUCBDisjoint,
    Random,
    Exhaustive,
    Heuristic,
)

#: Name -> policy; the names are the valid values of ``bandit.policy``.
POLICIES: dict[str, type[Policy]] = {c.name: c for c in _CLASSES}


def make_policy(
    name: str, problem: Problem, *, seed: int = 0, budget: int | None = None, **options: Any
) -> Policy:
    """The policy called ``name``.

    Raises:
        UsageError: an unknown name or option; the message lists the valid ones.
    """
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(f"no policy '{name}'; {hint}valid: {', '.join(POLICIES)}")
    cls = POLICIES[name]
    known = {
        p.name
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    } - {"seed", "budget"}
    for option in options:
        if option not in known:
            valid = ", ".join(sorted(known)) or "none"
            raise UsageError(f"policy '{name}' has no option '{option}'; its options: {valid}")
    return cls(problem, seed=seed, budget=budget, **options)
