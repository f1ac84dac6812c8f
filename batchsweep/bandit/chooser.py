"""Which pairs (checkpoint, task) a wave asks for.

Which checkpoints is decided by one draw of the whole posterior each (Thompson sampling for batches:
Kandasamy et al., "Parallelised Bayesian Optimisation via Thompson Sampling", AISTATS 2018): the
next best points by expected improvement would be neighbours of one another. How many tasks of a
checkpoint is decided as a forager decides when to leave a patch: until the next task tells less for
its price than the visit so far has, the way there included (Charnov, "Optimal Foraging: The
Marginal Value Theorem", Theoretical Population Biology 9, 1976).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.special import ndtr

from batchsweep.bandit.costs import PairCosts
from batchsweep.bandit.policies.base import Bools, Floats, Ints, Problem
from batchsweep.bandit.policies.gp.posterior import Posterior

#: Arms that may be the best, and draws that are looked at, for one wave.
FINALISTS = 200
DRAWS = 200
#: The first wave: steps as parts of the last one, for the model of the default arm. Of the other
#: models the last step.
FIRST_STEPS = (1.0, 1 / 2, 1 / 16)
#: And of each checkpoint the cheapest tasks: this part of them, three at least, or more while they
#: are next to no work: together at most this part of a checkpoint's.
FIRST_TASKS = 1 / 4
FIRST_SHARE = 0.05

SQRT_2PI = float(np.sqrt(2 * np.pi))

#: [checkpoint, task] pairs that will be there -> whether the budget takes them.
Fits = Callable[[Bools], bool]


@dataclass(frozen=True)
class Visit:
    """One index of a wave: a checkpoint, the tasks to extract there, and why."""

    key: str
    tasks: tuple[str, ...]
    reason: str


@runtime_checkable
class Believer(Protocol):
    """What of a policy the chooser needs: a Gaussian process over all arms."""

    posterior: Posterior

    def believed(self) -> tuple[Floats, Floats]: ...


class Chooser:
    """Chooses pairs by what they tell about the best arm for what they cost.

    Args:
        problem: all arms of the plan, extracted or not.
        width: checkpoints a wave: as many as there are workers.
    """

    def __init__(
        self, problem: Problem, costs: PairCosts, *, width: int = 4, seed: int = 0
    ) -> None:
        self.problem, self.costs, self.width, self.seed = problem, costs, width, seed

    @property
    def costs(self) -> PairCosts:
        """Of the problem's pairs; may be set to better known ones."""
        return self._costs

    @costs.setter
    def costs(self, costs: PairCosts) -> None:
        self._costs, self._price = costs, costs.pair

    def first(self, there: Bools, fits: Fits) -> list[Visit]:
        """A few checkpoints spread over log time, on cheap tasks."""
        wave, visits = there.copy(), []
        for row in self._first_rows():
            price = self._price[row]
            order = self._cheapest(price)
            share = np.cumsum(price[order]) / price.sum()
            count = max(3, round(FIRST_TASKS * len(order)), int((share <= FIRST_SHARE).sum()))
            if tasks := self._affordable(row, order[:count], wave, fits):
                reason = "first: checkpoints spread over training, on cheap tasks"
                visits.append(self._visit(row, tasks, reason))
        return visits

    def next(self, policy: Believer, there: Bools, number: int, fits: Fits) -> list[Visit]:
        """The pairs worth most for their price, on at most ``width`` checkpoints.

        Args:
            policy: what is believed of all arms.
            there: [checkpoint, task] pairs that are extracted.
        """
        mean, sd = policy.believed()
        leader = int(np.argmax(mean))
        arms, draws = _draws(policy.posterior, mean, sd, leader, [self.seed, number])
        scratch = copy.deepcopy(policy.posterior)
        wave = there.copy()
        visits: dict[int, Visit] = {}
        spent: set[int] = set()  # checkpoints of which the budget takes nothing more
        names = self.problem.arms
        for draw in draws:
            if len(visits) == self.width or len(arms) < 2:
                break
            order = np.argsort(-draw, kind="stable")
            best = int(arms[order[0]])
            other = leader if best != leader else int(arms[order[1]])
            for arm in (best, other):
                row = int(self.costs.of[arm])
                if row in visits:
                    break
                if row in spent:
                    continue
                tasks = self._worth(scratch, {best: 1.0, other: -1.0}, arm, wave, fits)
                if tasks:
                    reason = f"{names[best]} may be better than {names[other]}"
                    visits[row] = self._visit(row, tasks, reason)
                    break
                spent.add(row)
        return list(visits.values())

    def finals(
        self, policy: Believer, there: Bools, fits: Fits, most: int | None = None
    ) -> list[Visit]:
        """What the checkpoints of the front and of its rival lack, as far as the budget goes.

        The rival is the best of the other checkpoints' arms. Both are read on the same tasks, the
        cheapest first, ``most`` each.
        """
        mean, _ = policy.believed()
        front = int(np.argmax(mean))
        others = np.where(self.costs.of == self.costs.of[front], -np.inf, mean)
        arms = {int(self.costs.of[arm]): arm for arm in (int(np.argmax(others)), front)}
        rows = sorted(arms, key=lambda row: arms[row] != front)
        wave = there.copy()
        tasks: dict[int, list[int]] = {row: [] for row in rows}
        for task in self._cheapest(self._price[rows].sum(axis=0)):
            for row in rows:
                if len(tasks[row]) != most:
                    tasks[row] += self._affordable(row, [task], wave, fits)
        names = self.problem.arms
        return [
            self._visit(row, tasks[row], f"finalist: {names[arms[row]]}")
            for row in rows
            if tasks[row]
        ]

    def rest(self, arms: list[int], there: Bools, fits: Fits, reason: str) -> list[Visit]:
        """All that the checkpoints of these arms lack, as far as the budget goes."""
        wave, visits = there.copy(), []
        for arm in arms:
            row = int(self.costs.of[arm])
            if tasks := self._affordable(row, self._cheapest(self._price[row]), wave, fits):
                visits.append(self._visit(row, tasks, f"{reason}: {self.problem.arms[arm]}"))
        return visits

    def _cheapest(self, price: Floats) -> list[int]:
        """Tasks, the cheapest first; of equals those that chance puts first: no kind is preferred.

        Args:
            price: [task]
        """
        order = np.random.default_rng(self.seed).permutation(len(price))
        return [int(task) for task in order[np.argsort(price[order], kind="stable")]]

    def _first_rows(self) -> list[int]:
        problem = self.problem
        main = problem.model[problem.default_arm()]
        rows: list[int] = []
        for model in sorted(problem.models, key=lambda m: m != main):
            mine = np.flatnonzero(problem.of_model(model))
            last = float(problem.step[mine].max())
            for part in FIRST_STEPS if model == main else FIRST_STEPS[:1]:
                nearest = mine[np.argmin(np.abs(problem.step[mine] - part * last))]
                rows.append(int(self.costs.of[nearest]))
        return list(dict.fromkeys(rows))

    def _affordable(self, row: int, order: list[int], wave: Bools, fits: Fits) -> list[int]:
        """Those of the tasks that aren't there and that the budget takes, added to ``wave``."""
        tasks = []
        for task in order:
            if not wave[row, task] and self._room(row, task, wave, fits):
                wave[row, task] = True
                tasks.append(task)
        return tasks

    def _room(self, row: int, task: int, wave: Bools, fits: Fits) -> bool:
        """Whether the budget takes this pair beside the wave's."""
        wave[row, task] = True
        takes = fits(wave)
        wave[row, task] = False
        return takes

    def _worth(
        self, scratch: Posterior, contrast: dict[int, float], arm: int, wave: Bools, fits: Fits
    ) -> list[int]:
        """Tasks of the arm's checkpoint, as long as one is worth more than the visit so far.

        They are added to ``wave``, and to ``scratch`` as pending: what later visits are worth is
        what they tell beside these.
        """
        row = int(self.costs.of[arm])
        gained, spent = 0.0, float(self.costs.opening(np.asarray(wave.any(axis=1)))[row])
        picked: list[int] = []
        missing = np.flatnonzero(~wave[row]).tolist()
        # What is too much now is too much later; a model of thousands of cells isn't asked for it.
        while missing := [task for task in missing if self._room(row, task, wave, fits)]:
            told = scratch.gains(contrast, np.array([arm]))[0, missing] ** 2
            told /= scratch.cell_variance(np.full(len(missing), arm), np.array(missing))
            price = self._price[row, missing]
            k = int(np.argmax(told / price))
            if picked and told[k] / price[k] < gained / spent:
                break
            task = missing.pop(k)
            gained, spent = gained + float(told[k]), spent + float(price[k])
            scratch.observe(arm, task, None)
            wave[row, task] = True
            picked.append(task)
        return picked

    def _visit(self, row: int, tasks: list[int], reason: str) -> Visit:
        names = tuple(self.problem.tasks[task] for task in sorted(tasks))
        return Visit(self.costs.checkpoints[row], names, reason)


def improvement(posterior: Posterior, mean: Floats, sd: Floats, leader: int) -> Floats:
    """[arm] expected amount by which each arm is better than the leader.

    Args:
        posterior: whose correlations count.
        mean, sd: [arm] what is believed; sd may be larger than the posterior's own.
    """
    scale = sd / np.sqrt(np.maximum(posterior.var, 1e-18))
    covariance = posterior.covariance_row(leader) * scale * scale[leader]
    spread = np.sqrt(np.maximum(sd**2 + sd[leader] ** 2 - 2 * covariance, 1e-18))
    gap = mean - mean[leader]
    out = gap * ndtr(gap / spread) + spread * np.exp(-0.5 * (gap / spread) ** 2) / SQRT_2PI
    out[leader] = 0.0
    return np.asarray(np.maximum(out, 0.0))


def _draws(
    posterior: Posterior, mean: Floats, sd: Floats, leader: int, seed: list[int]
) -> tuple[Ints, Floats]:
    """(arms that may be the best, joint draws [draw, arm] of their rewards)."""
    better = improvement(posterior, mean, sd, leader)
    order = np.argsort(-better, kind="stable")[: FINALISTS - 1]
    order = order[better[order] > 1e-3 * better[order[0]]]
    arms = np.array([leader, *(i for i in order.tolist() if i != leader)], dtype=np.int64)
    scale = (sd / np.sqrt(np.maximum(posterior.var, 1e-18)))[arms]
    value, vector = np.linalg.eigh(posterior.covariance(arms, arms) * np.outer(scale, scale))
    normal = np.random.default_rng(seed).normal(size=(DRAWS, len(arms)))
    return arms, mean[arms] + normal @ (vector * np.sqrt(np.maximum(value, 0.0))).T
