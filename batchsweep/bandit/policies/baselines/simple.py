"""Policies that learn nothing from what they see: everything, chance, and the default guess."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.bandit.policies.base import Policy, Problem


class Exhaustive(Policy):
    """Every arm on every task, in the order of the problem: the truth that others are held to."""

    name = "exhaustive"

    def _choose(self) -> tuple[int, int, str] | None:
        arm, task = np.unravel_index(np.argmin(self.taken), self.taken.shape)
        return int(arm), int(task), "exhaustive: next cell"


class Random(Policy):
    """Cells drawn uniformly without replacement."""

    name = "random"

    def __init__(self, problem: Problem, **common: Any) -> None:
        super().__init__(problem, **common)
        self._order = self.rng.permutation(self.taken.size)
        self._next = 0

    def _choose(self) -> tuple[int, int, str] | None:
        while self._next < len(self._order):
            arm, task = divmod(int(self._order[self._next]), self.taken.shape[1])
            self._next += 1
            if not self.taken[arm, task]:
                return arm, task, "random: drawn by chance"
        return None


class Heuristic(Policy):
    """The last checkpoint at 70 % depth, and no pulls at all.

    Where published layer-by-layer results peak most often: Skean et al., "Layer by Layer:
    Uncovering Hidden Representations in Language Models", ICML 2025.
    """

    name = "heuristic"
    pulls = False

    def _choose(self) -> tuple[int, int, str] | None:
        return None

    def leader(self) -> int:
        return self._default
