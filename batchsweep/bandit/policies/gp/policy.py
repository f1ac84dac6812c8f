"""What the policies on the multi-task Gaussian process share: the opening, fits, the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

from batchsweep.bandit.policies.base import (
    Answer,
    Candidate,
    Floats,
    Ints,
    Policy,
    Problem,
    _interval,
)
from batchsweep.bandit.policies.gp.posterior import Posterior

#: Cells per task on arms drawn by chance in the opening.
OPENING_ROUNDS = 2
#: Largest part of the budget that the opening may take, and where nothing tells of an arm but its
#: own cells.
OPENING_SHARE = 0.3
OPENING_SHARE_ALONE = 0.5
#: With so many pulls an arm or more, and where nothing tells of an arm but its own cells, one pull
#: in so many after the opening looks at an arm that nobody looked at: the model can't tell of one
#: that stands out from its neighbours. With fewer pulls most of such arms would be missed.
LOOKS_FROM = 2
LOOK_PULLS = 4
#: The first fit of the hyperparameters, and how much the number of observed cells grows till the
#: next.
LEAST_CELLS = 4
REFIT_GROWTH = 1.15
#: Of a task's squared deviations, the part that is signal whatever the measured noise.
LEAST_SIGNAL = 0.04
#: Cells that count for a task's spread being that of all tasks together, and for that one being
#: USUAL_SPREAD: layers of a checkpoint differ by two to four points on most tasks.
USUAL_CELLS = 8.0
PRIOR_CELLS = 4.0
USUAL_SPREAD = 0.03
#: Arms that may hold the best, in joint draws of the posterior.
FINALISTS = 100
DRAWS = 2000
#: Arms and cells that are looked at closely when the next cell is chosen.
NEAR_ARMS = 12
NEAR_CELLS = 16
#: Cells per task before an early stop: young fits are too sure of themselves.
LEAST_ROUNDS = 6
#: Hyperparameters are fitted, not known, so that posterior variances come out too small: they are
#: multiplied by the mean squared surprise of the latest cells and of DOUBT_CELLS that count DOUBT
#: each, however many cells there are. A surprise is a cell's distance from its prediction of the
#: moment before, in stated standard deviations (Dawid's prequential view, JRSS A 147, 1984). Each
#: cell's weight falls by DOUBT_MEMORY with every later one, so that a fit long gone has no say, and
#: no surprise counts more than the largest: one spike says nothing of all other cells.
DOUBT = 4.0
DOUBT_CELLS = 20
DOUBT_MEMORY = 0.97
LARGEST_SURPRISE = 4.0
#: Probability that the best arm is one that the model is wrong about, while nothing is scored, and
#: as much again that it is one that nothing tells of: they fall with the part of the cells that is
#: scored, and with the part of the arms that was looked at. Chosen on surfaces, checked on tables.
MISFIT = 0.05
#: The answer leaves the default arm once another one's posterior mean is higher by this many
#: standard deviations of their difference: a guess from published experience isn't given up on a
#: hunch.
GUARD = 0.5

#: An arm can't be told apart from the answer if it is better with this probability or more.
TOLD_APART = 0.025

SQRT_2PI = float(np.sqrt(2 * np.pi))


class GPPolicy(Policy):
    """A policy on the Gaussian process; which contrast to learn next is its own."""

    def __init__(self, problem: Problem, **common: Any) -> None:
        super().__init__(problem, **common)
        self.posterior = Posterior(problem)
        self._fitted_at = 0  # observed cells then
        tasks = problem.shape[1]
        self._log_cost = np.zeros(tasks)
        self._cost_count = np.zeros(tasks)
        self._noise = np.zeros(tasks)  # of the last pull: the best guess for the next
        self._surprise, self._surprises = 0.0, 0.0
        #: Whether every arm is a model of its own, so that nothing tells of it but its own cells.
        self._alone = len(problem.models) == len(problem.arms)
        self._opening = self._open()

    # -- opening -------------------------------------------------------------------------------

    def _open(self) -> list[tuple[int, int]]:
        """The first cells, last first: every task on the default arm, then on arms by chance.

        The default arm is what others are compared with on each task. Of all others a random
        sample is honest: it shows how far scores lie from where the prior looks for the best, and
        what each task makes of that, wherever it is. Where every arm is a model of its own, nothing
        tells of an arm but its own cells: one task on all of them, then another.
        """
        arms, tasks = self.problem.shape
        order = self.rng.permutation(tasks).tolist()
        drawn = self.rng.permutation(arms).tolist()
        cells = [(self._default, task) for task in order]
        share = OPENING_SHARE
        # Costs aren't known yet: as little as can be where they are billed.
        if self._alone:
            cells = [(arm, t) for t in order for arm in (self._default, *drawn)]
            share = OPENING_SHARE_ALONE
        elif self.budget is not None:
            cells += [(drawn[k % arms], t) for k, t in enumerate(OPENING_ROUNDS * order)]
        cells = list(dict.fromkeys(cells))
        budget = arms * tasks if self.budget is None else self.budget
        return cells[: max(1, int(share * budget))][::-1]

    def _scales(self) -> tuple[Floats, Floats]:
        """[task] centre and spread of what was observed; spreads are shrunk to all tasks' together.

        By USUAL_CELLS: what few cells of a task say of its spread depends on which arms they are
        of, and a task whose spread is taken for small is neither counted nor looked at again.
        """
        _, task, reward, noise = self.posterior.cells()
        tasks = self.problem.shape[1]
        count = np.bincount(task, minlength=tasks)
        total = np.bincount(task, reward, tasks)
        centre = np.where(count > 0, total / np.maximum(count, 1), float(reward.mean()))
        squares = np.bincount(task, (reward - centre[task]) ** 2, tasks)
        # Less what measured noise adds to them; a little is always left.
        added = np.bincount(task, noise**2, tasks) * (1 - 1 / np.maximum(count, 1))
        squares = np.maximum(squares - added, LEAST_SIGNAL * squares)
        freedom = np.maximum(count - 1, 0)
        usual = squares.sum() + PRIOR_CELLS * USUAL_SPREAD**2
        usual = usual / (int(freedom.sum()) + PRIOR_CELLS)
        return centre, np.sqrt((squares + USUAL_CELLS * usual) / (freedom + USUAL_CELLS))

    # -- ask / observe ----------------------------------------------------------------------------

    def _learn(
        self, arm: int, task: int, score: float, seconds: float | None, noise: float
    ) -> None:
        surprise = self.posterior.observe(arm, task, score, noise)
        if self._fitted_at:
            counted = min(abs(surprise), LARGEST_SURPRISE)
            self._surprise = DOUBT_MEMORY * self._surprise + counted**2
            self._surprises = DOUBT_MEMORY * self._surprises + 1
        self._noise[task] = noise
        if seconds is not None and seconds > 0:
            self._log_cost[task] += np.log(seconds)
            self._cost_count[task] += 1

    def _refresh(self) -> None:
        """Fit the hyperparameters again once there are so many more cells."""
        observed = self.posterior.observed
        young = observed < max(LEAST_CELLS, REFIT_GROWTH * self._fitted_at)
        if not self.posterior.pending and not young:
            self.posterior.fit(*self._scales())
            self._fitted_at = observed

    def _choose(self) -> tuple[int, int, str] | None:
        while self._opening:
            arm, task = self._opening.pop()
            if self._shut[arm, task] and len(free := np.flatnonzero(~self.taken[:, task])):
                arm = int(self.rng.choice(free))
            if not self.taken[arm, task]:
                self._pend(arm, task)
                return arm, task, "opening: the default arm, and others by chance"
        self._refresh()
        if (look := self._look()) is not None:
            arm, task = look
            reason = f"{self.name}: nobody looked at {self.problem.arms[arm]}"
        else:
            contrast, reason = self._contrast()
            arm, task = self._cell_for(contrast)
        self._pend(arm, task)
        return arm, task, reason

    def _look(self) -> tuple[int, int] | None:
        """A cell of an arm that nobody looked at, drawn by chance, if it is the turn of one."""
        enough = self.budget is not None and self.budget >= LOOKS_FROM * self.problem.shape[0]
        if not (enough or self._alone) or self.posterior.n % LOOK_PULLS != 1:
            return None
        unseen = (~self.taken | self._shut).all(axis=1) & ~self._shut.all(axis=1)
        if not unseen.any():
            return None
        arm = int(self.rng.choice(np.flatnonzero(unseen)))
        told = self.posterior.gains({arm: 1.0}, np.array([arm]))[0] ** 2
        tasks = self._free_tasks(arm)
        told = told[tasks] / self.posterior.cell_variance(np.full(len(tasks), arm), tasks)
        return arm, int(tasks[np.argmax(told / self._cost()[tasks])])

    def _pend(self, arm: int, task: int) -> None:
        self.posterior.observe(arm, task, None, self._noise[task])

    def _contrast(self) -> tuple[dict[int, float], str]:
        """Arms with coefficients whose sum should be known better, and why."""
        raise NotImplementedError

    def _cell_for(self, contrast: dict[int, float]) -> tuple[int, int]:
        """The free cell that most reduces the variance of the contrast, per second if billed so."""
        posterior = self.posterior
        near = self._near(contrast)
        gain = posterior.gains(contrast, near) ** 2
        rough = posterior.load**2 * (posterior.var[near] / posterior.total**2)[:, None]
        rough = rough + posterior.own**2 * (
            posterior.own_diagonal[near][:, None] + posterior.kernel.var["own_cell"]
        )
        worth = gain / rough / self._cost()
        worth[self.taken[near]] = -1.0
        flat = np.argsort(-worth, axis=None, kind="stable")[:NEAR_CELLS]
        flat = flat[worth.flat[flat] >= 0]
        if not len(flat):
            open_arms = self._open_arms()
            arm = int(open_arms[np.argmax(posterior.mean[open_arms])])
            return arm, int(self._free_tasks(arm)[0])
        row, task = np.unravel_index(flat, worth.shape)
        exact = gain[row, task] / posterior.cell_variance(near[row], task) / self._cost()[task]
        k = int(np.argmax(exact))
        return int(near[row[k]]), int(task[k])

    def _near(self, contrast: dict[int, float]) -> Ints:
        """Arms whose reward says most about the contrast, its own arms first."""
        posterior = self.posterior
        covariance = sum(c * posterior.covariance_row(a) for a, c in contrast.items())
        power = np.asarray(covariance) ** 2 / np.maximum(posterior.var, 1e-12)
        power[self.taken.all(axis=1)] = -1.0
        order = np.argsort(-power, kind="stable")[:NEAR_ARMS]
        mine = np.array(list(contrast), dtype=np.int64)
        return np.array(list(dict.fromkeys([*mine.tolist(), *order.tolist()])), dtype=np.int64)

    def _cost(self) -> Floats:
        """[task] expected seconds of a pull; all equal unless the budget is in seconds."""
        if self.budget is not None or not self._cost_count.any():
            return np.ones(len(self._log_cost))
        usual = self._log_cost.sum() / self._cost_count.sum()
        return np.asarray(np.exp((self._log_cost + usual) / (self._cost_count + 1)))

    # -- beliefs -------------------------------------------------------------------------------

    def believed(self) -> tuple[Floats, Floats]:
        return self.posterior.mean, np.sqrt(np.maximum(self._doubt() * self.posterior.var, 0.0))

    def leader(self) -> int:
        """The arm with the highest posterior mean, once likely better than the default arm."""
        front = self._front()
        if self.answerable is not None and not self.answerable[self._default]:
            return front
        gap = self.posterior.mean[front] - self.posterior.mean[self._default]
        # Before the first fit the scale of everything is a guess, but for what is wholly scored.
        known = self._fitted_at > 0 or self.posterior.observed == self.observed.size
        if gap <= 0 or not known:
            return self._default
        pair = np.array([front, self._default])
        cov = self._doubt() * self.posterior.covariance(pair, pair)
        sd = np.sqrt(max(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1], 0.0))
        return front if gap >= GUARD * sd else self._default

    def _doubt(self) -> float:
        squares = DOUBT_CELLS * DOUBT + self._surprise
        return max(1.0, squares / (DOUBT_CELLS + self._surprises))

    def _front(self) -> int:
        mean = self.posterior.mean
        if self.answerable is not None:
            mean = np.where(self.answerable, mean, -np.inf)
        return int(np.argmax(mean))

    def plane(self) -> Floats:
        return np.where(np.isnan(self.observed), self.posterior.plane(), self.observed)

    def _improvement(self, leader: int, *, learnable: bool = False) -> Floats:
        """[arm] expected amount by which the arm is better than the leader.

        With ``learnable``, only by what pulls can still tell: not by noise that stays when both
        arms are scored in full.
        """
        posterior = self.posterior
        gap = posterior.mean - posterior.mean[leader]
        var = posterior.var + posterior.var[leader] - 2 * posterior.covariance_row(leader)
        var = np.maximum(self._doubt() * var, 1e-18)
        stays = 2 * float((self._noise**2).mean()) / len(self._noise)
        if learnable and stays > 0:
            free = (~self.taken).sum(axis=1)
            var = var * var / (var + stays) * (free + free[leader]) / (2 * len(self._noise))
        sd = np.sqrt(np.maximum(var, 1e-18))
        ratio = gap / sd
        out = gap * ndtr(ratio) + sd * np.exp(-0.5 * ratio**2) / SQRT_2PI
        out[leader] = 0.0
        return np.asarray(np.maximum(out, 0.0))

    def _draws(self, leader: int) -> tuple[Ints, Floats]:
        """(finalists, joint posterior draws [draw, finalist] of their rewards)."""
        improvement = self._improvement(leader)
        order = np.argsort(-improvement, kind="stable")[: FINALISTS - 1]
        # What hardly ever beats the leader can't change a statement, only slow it.
        order = order[improvement[order] > 1e-3 * improvement[order[0]]]
        finalists = np.array([leader, *(i for i in order.tolist() if i != leader)])
        cov = self._doubt() * self.posterior.covariance(finalists, finalists)
        value, vector = np.linalg.eigh(cov)
        # The same normal numbers every time: what is stated moves with the data alone.
        normal = np.random.default_rng(0).normal(size=(DRAWS, len(finalists)))
        root = vector * np.sqrt(np.maximum(value, 0.0))
        return finalists, self.posterior.mean[finalists] + normal @ root.T

    def sure(self, regret: float) -> bool:
        observed = self.posterior.observed
        if not self._fitted_at or observed < min(
            LEAST_ROUNDS * self.problem.shape[1], self.observed.size
        ):
            return False
        leader = self.leader()
        # The largest of these is a lower bound, and quick; what is stated is what decides.
        if self._improvement(leader).max() > regret:
            return False
        _, draws = self._draws(leader)
        return bool((draws.max(axis=1) - draws[:, 0]).mean() <= regret)

    def best(self) -> Answer:
        mean, sd = self.believed()
        leader = self.leader()
        finalists, draws = self._draws(leader)
        p_best = np.bincount(draws.argmax(axis=1), minlength=len(finalists)) / len(draws)
        unknown = np.isnan(self.observed)
        misfit = MISFIT * float(unknown.mean() + unknown.all(axis=1).mean())
        p_best = (1 - misfit) * p_best + misfit / len(self.problem.arms)
        # The model's front first, if the answer is still the default arm.
        front = finalists == self._front()
        better = (draws > draws[:, :1]).mean(axis=0) >= TOLD_APART
        order = [k for k in np.lexsort((-p_best, ~front)).tolist() if k and better[k]]
        observed = self.posterior.observed
        # Before the first fit the scale of everything is a guess: no probabilities are stated.
        fitted = self._fitted_at > 0
        cells = self.observed.size
        basis = f"model-based: a Gaussian process over {observed} scored cells of {cells}; "
        return Answer(
            arm=self.problem.arms[leader],
            mean=float(mean[leader]),
            interval=_interval(mean[leader], sd[leader]),
            p_best=float(p_best[0]) if fitted else None,
            expected_regret=(float((draws.max(axis=1) - draws[:, 0]).mean()) if fitted else None),
            runners_up=tuple(
                Candidate(
                    self.problem.arms[i],
                    float(mean[i]),
                    _interval(mean[i], sd[i]),
                    float(p_best[k]),
                )
                for k, i in ((k, int(finalists[k])) for k in order)
            )
            if fitted
            else (),
            mean_of=mean.copy(),
            sd_of=sd,
            pulled=(~np.isnan(self.observed)).sum(axis=1),
            basis=basis + "the others are predicted, not measured",
        )
