"""The names of the policies, for the config and ``--help``, which must not wait for their code."""

from __future__ import annotations

from typing import Literal, get_args

PolicyName = Literal[
    "toptwo_gp",
    "gp_ucb",
    "thompson",
    "sequential_halving",
    "halving",
    "ucb_e",
    "ucb_e_lrf",
    "ucb",
    "linucb",
    "linucb_disjoint",
    "random",
    "exhaustive",
    "heuristic",
]

#: In the order of :data:`batchsweep.bandit.policies.POLICIES`.
POLICY_NAMES: tuple[str, ...] = get_args(PolicyName)

#: Those that believe something of arms that were not scored, and so can ask for pairs.
WITH_A_MODEL: frozenset[PolicyName] = frozenset({"toptwo_gp", "gp_ucb", "thompson"})
