"""UCB-E on a low-rank completion of the arm x task table."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.bandit.policies.base import Floats, Policy, Problem


class UCBELRF(Policy):
    """UCB-E-LRF: Zhou et al., "On Speeding Up Language Model Evaluation", ICLR 2025, algorithm 2.

    After a warm-up of random cells, an ensemble of low-rank factorisations, each fitted by
    alternating least squares to a random part of the observed cells, fills in the table. The next
    pull is in the arm with the highest mean of observed and predicted cells plus a bonus for the
    ensemble's disagreement, at the cell on which it disagrees most.

    Args:
        rank, members: of the factorisations and of the ensemble (the paper: 1 and 64; the default
            here is smaller so that a decision stays in milliseconds).
        warm_up: part of the budget spent on random cells (the paper: 5 % of the table).
        bonus: the paper's eta.
    """

    name = "ucb_e_lrf"

    def __init__(
        self,
        problem: Problem,
        *,
        rank: int = 1,
        members: int = 8,
        warm_up: float = 0.25,
        bonus: float = 5.0,
        **common: Any,
    ) -> None:
        super().__init__(problem, **common)
        self.rank, self.members, self.bonus = rank, members, bonus
        arms, tasks = problem.shape
        total = self.budget or arms * tasks // 10
        self._warm_up = max(1, int(warm_up * min(total, arms * tasks)))
        self._order = [int(c) for c in self.rng.permutation(arms * tasks)]
        # The starting points of every fit: drawn once, so that asking draws nothing.
        self._start = self.rng.normal(1.0, 0.1, (members, tasks, rank))
        self._keep = self.rng.random((members, arms, tasks)) < 0.9
        self._filled_at = -1
        self._table: tuple[Floats, Floats] | None = None

    def _fill(self) -> tuple[Floats, Floats]:
        """[arm, task] mean and standard deviation over the ensemble; observed cells are exact."""
        pulled = ~np.isnan(self.observed)
        count = int(pulled.sum())
        if self._table is not None and count == self._filled_at:
            return self._table
        level = np.nansum(self.observed, axis=0) / np.maximum(pulled.sum(axis=0), 1)
        usual = float(level[pulled.any(axis=0)].mean()) if count else 0.0
        level = np.where(pulled.any(axis=0), level, usual)
        spread = float(np.std((self.observed - level)[pulled])) if count > 1 else 1.0
        spread = spread or 1.0
        centred = np.where(pulled, (self.observed - level) / spread, 0.0)
        members = [
            _factorise(centred, pulled & keep, start)
            for keep, start in zip(self._keep, self._start, strict=True)
        ]
        stack = np.array(members)
        mean = np.where(pulled, self.observed, level + spread * stack.mean(axis=0))
        sd = np.where(pulled, 0.0, spread * stack.std(axis=0))
        self._table, self._filled_at = (mean, sd), count
        return self._table

    def _choose(self) -> tuple[int, int, str] | None:
        tasks = self.taken.shape[1]
        while int(self.taken.sum()) < self._warm_up and self._order:
            arm, task = divmod(self._order.pop(), tasks)
            if not self.taken[arm, task]:
                return arm, task, "ucb_e_lrf: warm-up"
        mean, sd = self._fill()
        unsure = np.where(self.taken, 0.0, sd)
        bound = mean.mean(axis=1) + self.bonus * unsure.mean(axis=1)
        bound[self.taken.all(axis=1)] = -np.inf
        arm = int(np.argmax(bound))
        task = int(np.argmax(np.where(self.taken[arm], -1.0, sd[arm])))
        return arm, task, f"ucb_e_lrf: highest bound {bound[arm]:.4f}"

    def believed(self) -> tuple[Floats, Floats]:
        mean, sd = self._fill()
        return mean.mean(axis=1), np.sqrt((sd**2).sum(axis=1)) / sd.shape[1]

    def leader(self) -> int:
        if np.isnan(self.observed).all():
            return self._default
        return int(np.argmax(self.believed()[0]))

    def plane(self) -> Floats:
        return self._fill()[0].copy()


def _factorise(centred: Floats, known: np.ndarray[Any, Any], start: Floats) -> Floats:
    """[arm, task] product of factors by three rounds of ridge-regularised least squares."""
    weight = known.astype(float)
    values = centred * weight
    task_TR = start
    rank = start.shape[1]
    ridge = 0.1 * np.eye(rank)
    for _ in range(3):
        gram = np.einsum("at,tr,ts->ars", weight, task_TR, task_TR, optimize=True) + ridge
        arm_AR = np.linalg.solve(gram, (values @ task_TR)[..., None])[..., 0]
        gram = np.einsum("at,ar,as->trs", weight, arm_AR, arm_AR, optimize=True) + ridge
        task_TR = np.linalg.solve(gram, (values.T @ arm_AR)[..., None])[..., 0]
    return np.asarray(arm_AR @ task_TR.T)
