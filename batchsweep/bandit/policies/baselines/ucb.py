"""Upper confidence bounds on every arm by itself, without structure between arms."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.bandit.policies.base import Floats, Policy, Problem


class _IndexPolicy(Policy):
    """Pull a random free task of the arm with the highest index."""

    def __init__(self, problem: Problem, **common: Any) -> None:
        super().__init__(problem, **common)
        # Arms without any pull come first, in a seeded order, not by position.
        self._order = self.rng.permutation(problem.shape[0])

    def _index(self) -> Floats:
        """[arm] the optimistic value; every arm has at least one pull (asked or observed)."""
        raise NotImplementedError

    def _choose(self) -> tuple[int, int, str] | None:
        # A pull under way counts as made: otherwise a batch would collapse onto one arm.
        fresh = self._order[~self.taken[self._order].any(axis=1)]
        if len(fresh):
            arm, reason = int(fresh[0]), "first pull of this arm"
        else:
            index = self._index()
            index[self.taken.all(axis=1)] = -np.inf
            arm = int(np.argmax(index))
            reason = f"highest bound {index[arm]:.4f}"
        return arm, int(self.rng.choice(self._free_tasks(arm))), f"{self.name}: {reason}"

    def _spread(self) -> float:
        """Standard deviation of a single observed cell around its task's level."""
        pulled = ~np.isnan(self.observed)
        if pulled.sum() < 2:
            return 1.0
        level = np.nansum(self.observed, axis=0) / np.maximum(pulled.sum(axis=0), 1)
        return float(np.std((self.observed - level)[pulled])) or 1.0


class UCB(_IndexPolicy):
    """UCB1 over arms, each pull on a random task: Auer, Cesa-Bianchi & Fischer, "Finite-time
    Analysis of the Multiarmed Bandit Problem", Machine Learning 47, 2002, figure 1."""

    name = "ucb"

    def __init__(self, problem: Problem, *, width: float = 1.0, **common: Any) -> None:
        super().__init__(problem, **common)
        self.width = width

    def _index(self) -> Floats:
        mean, _ = self.believed()
        count = self.taken.sum(axis=1)
        total = max(int(count.sum()), 2)
        bonus = np.sqrt(2 * np.log(total) / np.maximum(count, 1))
        return np.asarray(mean + self.width * self._spread() * bonus)


class UCBE(_IndexPolicy):
    """UCB-E: fixed-budget best-arm identification with a constant exploration term.

    Audibert, Bubeck & Munos, "Best Arm Identification in Multi-Armed Bandits", COLT 2010, figure
    2; used on (method, example) cells by Zhou et al., "On Speeding Up Language Model Evaluation",
    ICLR 2025, algorithm 1. ``exploration`` is their ``a``; 1 is the value of that paper.
    """

    name = "ucb_e"

    def __init__(self, problem: Problem, *, exploration: float = 1.0, **common: Any) -> None:
        super().__init__(problem, **common)
        self.exploration = exploration

    def _index(self) -> Floats:
        mean, _ = self.believed()
        count = self.taken.sum(axis=1)
        return np.asarray(mean + self._spread() * np.sqrt(self.exploration / np.maximum(count, 1)))
