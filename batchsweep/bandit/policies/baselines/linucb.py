"""LinUCB: linear models of the reward on the features of an arm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchsweep.bandit.policies.base import Floats, Policy, Problem
from batchsweep.bandit.policies.features import log_step, standardise


class LinUCB(Policy):
    """One linear model shared by all arms on standardised features.

    Li et al., "A Contextual-Bandit Approach to Personalized News Article Recommendation", WWW 2010,
    algorithm 1, with one parameter vector. Features: log step, relative depth, their squares and
    product, the model, and every label-free metric. A pull is a random free task of the arm with
    the highest bound; the task's level is taken out.
    """

    name = "linucb"

    def __init__(self, problem: Problem, *, alpha: float = 1.0, **common: Any) -> None:
        super().__init__(problem, **common)
        self.alpha = alpha
        step, depth = log_step(problem), problem.depth
        columns = [step, depth, step**2, depth**2, step * depth]
        columns += [problem.of_model(m).astype(float) for m in problem.models[1:]]
        columns += [np.where(np.isfinite(c), c, np.nan) for c in problem.metrics.values()]
        standard = [standardise(c) for c in columns]
        self._x: Floats = np.column_stack([np.ones(len(problem.arms)), *standard])

    def _solve(self) -> tuple[Floats, Floats]:
        """[arm] predicted reward and its standard deviation by ridge regression."""
        pulled = ~np.isnan(self.observed)
        count = pulled.sum(axis=1).astype(float)
        level = np.nansum(self.observed, axis=0) / np.maximum(pulled.sum(axis=0), 1)
        centred = np.where(pulled, self.observed - level, 0.0)
        gram = (self._x * count[:, None]).T @ self._x + np.eye(self._x.shape[1])
        theta = np.linalg.solve(gram, self._x.T @ centred.sum(axis=1))
        noise = float(np.sqrt((centred[pulled] ** 2).mean())) if pulled.any() else 1.0
        width = np.sqrt(np.einsum("af,fg,ag->a", self._x, np.linalg.inv(gram), self._x))
        base = level[pulled.any(axis=0)].mean() if pulled.any() else 0.0
        return base + self._x @ theta, (noise or 1.0) * width

    def believed(self) -> tuple[Floats, Floats]:
        return self._solve()

    def leader(self) -> int:
        return self._default if np.isnan(self.observed).all() else int(np.argmax(self._solve()[0]))

    def _choose(self) -> tuple[int, int, str] | None:
        mean, sd = self._solve()
        # Cells under way widen nothing yet; spread a batch by what is already asked of each arm.
        asked = (self.taken & np.isnan(self.observed)).sum(axis=1)
        bound = mean + self.alpha * sd / np.sqrt(1 + asked)
        bound[self.taken.all(axis=1)] = -np.inf
        arm = int(np.argmax(bound))
        task = int(self.rng.choice(self._free_tasks(arm)))
        return arm, task, f"linucb: highest bound {bound[arm]:.4f}"


class LinUCBDisjoint(Policy):
    """LinUCB as first used for this search, kept to reproduce it.

    Li et al., 2010, algorithm 1, with disjoint models: every arm has its own parameters on (at most
    four) label-free metrics, a pull is a whole arm, and an arm that was scored is removed. An arm's
    own model thus never sees a reward before the arm is gone, so the order is by the width of the
    bound alone: the features' norm.
    """

    name = "linucb_disjoint"

    def __init__(self, problem: Problem, *, alpha: float = 1.0, **common: Any) -> None:
        super().__init__(problem, **common)
        self.alpha = alpha
        columns = [np.nan_to_num(c) for c in list(problem.metrics.values())[:4]]
        if not columns:
            columns = [log_step(problem), problem.depth]
        context: Floats = np.column_stack(columns)
        # theta = 0 and A = I until the arm's only reward: bound = alpha * |x|.
        bound = self.alpha * np.linalg.norm(context, axis=1)
        tie = self.rng.permutation(len(problem.arms))
        self._bound = bound
        self._order: NDArray[np.int64] = np.lexsort((tie, -bound))

    def _choose(self) -> tuple[int, int, str] | None:
        for arm in self._order:
            free = self._free_tasks(int(arm))
            if len(free):
                reason = f"linucb_disjoint: bound {self._bound[arm]:.4f}"
                return int(arm), int(free[0]), reason
        return None

    def leader(self) -> int:
        whole = np.flatnonzero(~np.isnan(self.observed).any(axis=1))
        if not len(whole):
            return super().leader()
        return int(whole[np.argmax(self.observed[whole].mean(axis=1))])
