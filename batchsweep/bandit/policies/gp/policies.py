"""Policies on the multi-task Gaussian process: top-two (the default), GP-UCB and Thompson."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.bandit.policies.base import Problem
from batchsweep.bandit.policies.gp.policy import GPPolicy

#: While the answer is still the default arm, one pull in so many is spent on the leader against it.
GUARD_PULLS = 2


class TopTwoGP(GPPolicy):
    """Leader against its strongest challenger, on the cell that tells them apart.

    The leader is the arm with the highest posterior mean; the challenger the one with the highest
    expected improvement over it, with their correlation (Qin, Klabjan & Russo, "Improving the
    Expected Improvement Algorithm", NeurIPS 2017); the cell the one that most reduces the variance
    of their difference (the knowledge-gradient idea for correlated beliefs: Frazier, Powell &
    Dayanik, INFORMS J. Computing 21, 2009).
    """

    name = "toptwo_gp"

    def _contrast(self) -> tuple[dict[int, float], str]:
        leader = self._front()
        if self.posterior.n % GUARD_PULLS == 0 and self.leader() != leader:
            both = [leader, self._default]
            if not self.taken[both].all():
                return {leader: -1.0, self._default: 1.0}, (
                    f"toptwo_gp: the leader {self.problem.arms[leader]} against the default arm"
                )
        improvement = self._improvement(leader, learnable=True)
        challenger = int(np.argmax(improvement))
        if challenger == leader:
            return {leader: 1.0}, "toptwo_gp: the only arm"
        names = self.problem.arms
        return {leader: -1.0, challenger: 1.0}, (
            f"toptwo_gp: {names[challenger]} against the leader {names[leader]}, "
            f"expected improvement {improvement[challenger]:.2g}"
        )


class GPUCB(GPPolicy):
    """The arm with the highest upper confidence bound.

    Srinivas, Krause, Kakade & Seeger, "Gaussian Process Optimization in the Bandit Setting", ICML
    2010, algorithm 1, with a constant ``beta``.
    """

    name = "gp_ucb"

    def __init__(self, problem: Problem, *, beta: float = 4.0, **common: Any) -> None:
        super().__init__(problem, **common)
        self.beta = beta

    def _contrast(self) -> tuple[dict[int, float], str]:
        mean, sd = self.believed()
        bound = mean + np.sqrt(self.beta) * sd
        bound[self.taken.all(axis=1)] = -np.inf
        arm = int(np.argmax(bound))
        return {arm: 1.0}, f"gp_ucb: highest bound {bound[arm]:.4f}"


class Thompson(GPPolicy):
    """The arm that is best in one draw from the posterior.

    Thompson, "On the Likelihood that One Unknown Probability Exceeds Another", Biometrika 25, 1933;
    for Gaussian processes: Russo & Van Roy, "Learning to Optimize via Posterior Sampling", 2014.
    """

    name = "thompson"

    def _contrast(self) -> tuple[dict[int, float], str]:
        finalists, draws = self._draws(self._front())
        draw = draws[int(self.rng.integers(len(draws)))]
        draw = np.where(self.taken[finalists].all(axis=1), -np.inf, draw)
        arm = int(finalists[np.argmax(draw)])
        return {arm: 1.0}, f"thompson: best in a posterior draw, {draw.max():.4f}"
