"""The posterior of the multi-task Gaussian process, updated pull by pull.

Only a few hundred cells are ever observed, so everything lives in the space of observations: a
Cholesky factor that grows by a row per pull, and beside it the whitened covariance of every arm's
reward with the observations. One pull costs O(observations x arms).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.lapack import dtrtrs

from batchsweep.bandit.policies.base import Bools, Floats, Ints, Problem
from batchsweep.bandit.policies.gp.fit import Fit
from batchsweep.bandit.policies.gp.kernel import OFFSET_SD, Hyper, Kernel
from batchsweep.bandit.policies.gp.strangers import strangers

#: Added to every observation's variance, in squared units of a task's spread.
JITTER = 1e-5
#: Observations that the hyperparameters are fitted to at most, evenly from the first to the last.
FIT_CELLS = 280
#: Arms whose covariances with the observations are computed at a time.
PIECE = 512
#: Observations whose part of an arm's covariances is kept once there are so many.
BLOCK = 64


class Posterior:
    """Posterior over [arm] rewards (means over tasks) given observed and pending cells.

    A pending cell shrinks variances but moves no mean, so that a batch spreads (Ginsbourger, Le
    Riche & Carraro, "Kriging is well-suited to parallelize optimization", 2010, with the mean as
    the lie).

    Attributes:
        mean, var: [arm] posterior of the reward over all tasks, in its own units.
    """

    mean: Floats
    var: Floats

    def __init__(self, problem: Problem) -> None:
        arms, tasks = problem.shape
        self.kernel = Kernel(problem)
        self.hyper = Hyper.prior(tasks)
        self.centre: Floats = np.zeros(tasks)
        self.spread: Floats = np.ones(tasks)
        #: [task] standard deviation of a task's own level around its centre, in its spread.
        self.offset: Floats = np.full(tasks, OFFSET_SD)
        self.n = 0
        self._arms, self._tasks = arms, tasks
        self._grow(256)
        self._pending: dict[tuple[int, int], int] = {}
        self._row_of: dict[int, int] = {}
        #: Of arms that were asked for: (so many whole blocks counted, the row). A leader's is asked
        #: for at each pull, and from scratch it is a product of all observations with all arms.
        self._covariance_rows: dict[int, tuple[int, Floats]] = {}
        self._shared_rows: Floats = np.zeros((64, arms))
        self._own_rows: Floats = np.zeros((64, arms))
        self.rebuild()

    # -- data ----------------------------------------------------------------------------------

    def _grow(self, size: int) -> None:
        def grown(old: Any, *shape: int, dtype: type = float) -> Any:
            new: Any = np.zeros(shape, dtype=dtype)
            if old is not None:
                new[tuple(slice(k) for k in old.shape)] = old
            return new

        get = self.__dict__.get
        self._arm: Ints = grown(get("_arm"), size, dtype=np.int64)
        self._task: Ints = grown(get("_task"), size, dtype=np.int64)
        self._reward: Floats = grown(get("_reward"), size)
        self._noise: Floats = grown(get("_noise"), size)
        self._observed: Bools = grown(get("_observed"), size, dtype=bool)
        self._resid: Floats = grown(get("_resid"), size)
        self._z: Floats = grown(get("_z"), size)
        self._chol: Floats = grown(get("_chol"), size, size)
        self._white: Floats = grown(get("_white"), size, self._arms)

    def observe(self, arm: int, task: int, reward: float | None, noise: float = 0.0) -> float:
        """Add a cell; ``reward`` None makes it pending. A pending cell may be observed later.

        Returns:
            Its distance from what was predicted, in predicted standard deviations; 0 if pending.
        """
        at = self._pending.pop((arm, task), None)
        if at is not None and reward is not None:
            self._reward[at], self._observed[at] = reward, True
            if noise != self._noise[at] and at == self.n - 1:
                self.var = self.var + self._white[at] ** 2
                self._noise[at] = noise
                self._covariance_rows.clear()
                self._append(at)
            elif noise != self._noise[at]:
                self._noise[at] = noise
                self.rebuild()
            elif at == self.n - 1:
                self._resid[at] = self._residual(at)
                self._tell(at)
            else:
                self._resid[at] = self._residual(at)
                self._whiten()
            return float(self._z[at])
        if self.n == len(self._arm):
            self._grow(2 * self.n)
        i = self.n
        self._arm[i], self._task[i] = arm, task
        self._reward[i] = 0.0 if reward is None else reward
        self._noise[i], self._observed[i] = noise, reward is not None
        if reward is None:
            self._pending[arm, task] = i
        self._append(i)
        return float(self._z[i])

    @property
    def pending(self) -> int:
        """How many cells were asked for and have no score yet."""
        return len(self._pending)

    @property
    def observed(self) -> int:
        """How many cells were observed."""
        return self.n - self.pending

    def cells(self) -> tuple[Ints, Ints, Floats, Floats]:
        """Told (arms, tasks, rewards, standard deviations of their noise)."""
        n, observed = self.n, self._observed[: self.n]
        cells = self._arm[:n][observed], self._task[:n][observed]
        return *cells, self._reward[:n][observed], self._noise[:n][observed]

    # -- covariances ---------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Recompute everything after a change of hyperparameters, centres or spreads."""
        self.kernel.set(self.hyper)
        self.load: Floats = np.exp(self.hyper.loading)
        #: [task] standard deviation factor of a task's own surface.
        self.own: Floats = self.load * np.exp(self.hyper.residual)
        self.weight: Floats = self.spread / self._tasks
        self.total = float(self.weight @ self.load)
        self._own_weight = self.weight * self.own**2
        self._own_total = float((self.weight**2) @ (self.own**2))
        self._cell = self.kernel.var["own_cell"]
        shared, own = self.kernel.diagonal()
        self.shared_diagonal, self.own_diagonal = shared, own
        offsets = float((self.weight * self.offset) @ (self.weight * self.offset))
        prior_mean = float(self.weight @ (self.centre / self.spread))
        self._prior_mean: Floats = prior_mean + self.total * self.kernel.mean
        self._prior_var: Floats = (
            self.total**2 * shared + self._own_total * (own + self._cell) + offsets
        )
        self._offsets = offsets
        self.mean, self.var = self._prior_mean.copy(), self._prior_var.copy()
        self._row_of.clear()
        self._covariance_rows.clear()
        n = self.n
        if not n:
            return
        arm, task = self._arm[:n], self._task[:n]
        self._cache_all(list(dict.fromkeys(arm.tolist())))
        rows = np.array([self._row_of[a] for a in arm.tolist()])
        shared_nn, own_nn = self._shared_rows[rows][:, arm], self._own_rows[rows][:, arm]
        own_nn = own_nn + self._cell * (arm[:, None] == arm[None, :])
        gram = (self.load[task][:, None] * self.load[task][None, :]) * shared_nn
        same = task[:, None] == task[None, :]
        gram += same * ((self.own**2)[task][:, None] * own_nn + (self.offset**2)[task][:, None])
        gram[np.diag_indices(n)] += JITTER + (self._noise[:n] / self.spread[task]) ** 2
        factor = cholesky(gram, lower=True, check_finite=False)
        self._chol[:n, :n] = factor
        # In pieces that stay in a core's cache.
        for start in range(0, self._arms, PIECE):
            piece = slice(start, start + PIECE)
            cross = self._cross(rows, arm, task, piece)
            white = solve_triangular(factor, cross, lower=True, check_finite=False)
            self._white[:n, piece] = white
            self.var[piece] -= np.einsum("ij,ij->j", white, white)
        self._resid[:n] = [self._residual(i) for i in range(n)]
        self._whiten()

    def _cache(self, arm: int) -> int:
        """Row number of the arm's covariances with all arms."""
        if arm not in self._row_of:
            self._cache_all([arm])
        return self._row_of[arm]

    def _cache_all(self, arms: list[int]) -> None:
        first = len(self._row_of)
        last = first + len(arms)
        while last > len(self._shared_rows):
            more = np.zeros_like(self._shared_rows)
            self._shared_rows = np.vstack([self._shared_rows, more])
            self._own_rows = np.vstack([self._own_rows, more])
        for start in range(0, self._arms, PIECE):
            piece = np.arange(start, min(start + PIECE, self._arms))
            shared, own = self.kernel.between(np.array(arms), piece)
            self._shared_rows[first:last, piece[0] : piece[-1] + 1] = shared
            self._own_rows[first:last, piece[0] : piece[-1] + 1] = own
        self._row_of.update(zip(arms, range(first, last), strict=True))

    def _cross(self, rows: Ints, arm: Ints, task: Ints, piece: slice = slice(None)) -> Floats:
        """[observation, arm of the piece] prior covariance of observations with arms' rewards."""
        cross = self._shared_rows[:, piece][rows]
        cross *= (self.total * self.load[task])[:, None]
        own = self._own_weight[task]
        cross += own[:, None] * self._own_rows[:, piece][rows]
        cross += (self.offset**2 * self.weight)[task][:, None]
        first, last, _ = piece.indices(self._arms)
        mine = (arm >= first) & (arm < last)
        cross[mine, arm[mine] - first] += own[mine] * self._cell
        return cross

    def _residual(self, i: int) -> float:
        if not self._observed[i]:
            return 0.0
        a, t = self._arm[i], self._task[i]
        unit = (self._reward[i] - self.centre[t]) / self.spread[t]
        return float(unit - self.load[t] * self.kernel.mean[a])

    def _append(self, i: int) -> None:
        a, t = int(self._arm[i]), int(self._task[i])
        row = self._cache(a)
        self.n = i + 1
        arm, task = self._arm[:i], self._task[:i]
        k = self.load[t] * self.load[task] * self._shared_rows[row][arm]
        same = task == t
        k[same] += self.own[t] ** 2 * self._own_rows[row][arm[same]] + self.offset[t] ** 2
        k[same & (arm == a)] += self.own[t] ** 2 * self._cell
        diagonal = self.load[t] ** 2 * self.shared_diagonal[a] + self.offset[t] ** 2 + JITTER
        diagonal += self.own[t] ** 2 * (self.own_diagonal[a] + self._cell)
        diagonal += (self._noise[i] / self.spread[t]) ** 2
        solved = self._solve(i, k)
        last = np.sqrt(max(diagonal - solved @ solved, JITTER))
        self._chol[i, :i], self._chol[i, i] = solved, last
        cross = self._cross(np.array([row]), np.array([a]), np.array([t]))[0]
        white = (cross - solved @ self._white[:i]) / last
        self._white[i] = white
        self.var = self.var - white**2
        self._resid[i] = self._residual(i)
        self._z[i] = 0.0
        if self._observed[i]:
            self._tell(i)

    def _tell(self, i: int) -> None:
        """Move the means by the last observation, which was pending or is new."""
        gap = self._resid[i] - self._chol[i, :i] @ self._z[:i]
        self._z[i] = gap / self._chol[i, i]
        self.mean = self.mean + self._z[i] * self._white[i]

    def _whiten(self) -> None:
        """Whitened residuals and the mean, from scratch: a pending cell keeps its lie of 0."""
        n = self.n
        if self._observed[:n].all():
            self._z[:n] = self._solve(n, self._resid[:n])
        else:
            for i in range(n):
                gap = self._resid[i] - self._chol[i, :i] @ self._z[:i]
                self._z[i] = gap / self._chol[i, i] if self._observed[i] else 0.0
        self.mean = self._prior_mean + self._z[:n] @ self._white[:n]

    def _solve(self, n: int, right: Floats, *, back: bool = False) -> Floats:
        """The first ``n`` observations' factor L, solved: L^-1 right, or L^-T right if ``back``.

        As scipy's ``solve_triangular`` to the last bit, which would copy those rows of L for each.

        Raises:
            LinAlgError: L is singular.
        """
        if not n:
            return right.copy()
        solved, failed = dtrtrs(self._chol[:n].T, right, trans=0 if back else 1)
        if failed:
            raise LinAlgError(f"the factor's diagonal is zero at {failed}")
        return np.asarray(solved)

    # -- questions -----------------------------------------------------------------------------

    def covariance(self, i: Ints, j: Ints) -> Floats:
        """[i, j] posterior covariance of the rewards of arms."""
        shared, own = self.kernel.between(i, j)
        prior = self.total**2 * shared + self._own_total * own + self._offsets
        prior += self._own_total * self._cell * (i[:, None] == j[None, :])
        n = self.n
        return np.asarray(prior - self._white[:n, i].T @ self._white[:n, j])

    def covariance_row(self, arm: int) -> Floats:
        """[arm] posterior covariance of one arm's reward with every arm's.

        Block by block of the observations, so that its last bits don't depend on when it was asked
        for before: a search that is gone on with hasn't asked all that it had.
        """
        whole = self.n // BLOCK
        counted, known = self._covariance_rows.get(arm, (0, None))
        if known is None:
            row = self._cache(arm)
            prior = self.total**2 * self._shared_rows[row] + self._own_total * self._own_rows[row]
            known = prior + self._offsets
            known[arm] += self._own_total * self._cell
        for k in range(counted, whole):
            known = known - self._explained(arm, slice(k * BLOCK, (k + 1) * BLOCK))
        self._covariance_rows[arm] = whole, known
        return known - self._explained(arm, slice(whole * BLOCK, self.n))

    def _explained(self, arm: int, cells: slice) -> Floats:
        """[arm] what these observations tell of one arm's reward and every arm's alike."""
        return np.asarray(self._white[cells, arm] @ self._white[cells])

    def gains(self, contrast: dict[int, float], arms: Ints) -> Floats:
        """[len(arms), task] posterior covariance of a contrast of rewards with each cell.

        ``contrast`` holds arm -> coefficient. In units of reward x the task's spread.
        """
        n = self.n
        out = np.zeros((len(arms), self._tasks))
        shared_d, own_d = np.zeros(len(arms)), np.zeros(len(arms))
        for arm, c in contrast.items():
            row = self._cache(arm)
            shared_d += c * self._shared_rows[row][arms]
            own_d += c * (self._own_rows[row][arms] + self._cell * (arms == arm))
        out += self.total * shared_d[:, None] * self.load[None, :]
        out += own_d[:, None] * self._own_weight[None, :]
        out += sum(contrast.values()) * (self.offset**2 * self.weight)[None, :]
        if n:
            white = np.asarray(sum(c * self._white[:n, a] for a, c in contrast.items()))
            back = self._solve(n, white, back=True)
            out -= self._spill(back, arms)
        return out

    def _spill(self, back: Floats, arms: Ints) -> Floats:
        """[len(arms), task] sum over observations of back x covariance with each cell.

        In the order of the observed arms, whatever else is cached: what was asked in between has
        no part in the last bits.
        """
        n = self.n
        seen, at = np.unique(self._arm[:n], return_inverse=True)
        task = self._task[:n]
        per_arm = np.bincount(at, back * self.load[task], len(seen))
        per_cell = np.zeros((len(seen), self._tasks))
        np.add.at(per_cell, (at, task), back)
        rows = np.ix_(np.array([self._row_of[a] for a in seen.tolist()]), arms)
        shared = per_arm @ self._shared_rows[rows]
        own = self._own_rows[rows].T @ per_cell
        place = np.minimum(np.searchsorted(seen, arms), len(seen) - 1)
        mine = seen[place] == arms
        own[mine] += self._cell * per_cell[place[mine]]
        out = shared[:, None] * self.load[None, :] + own * self.own[None, :] ** 2
        return np.asarray(out + (self.offset**2 * per_cell.sum(axis=0))[None, :])

    def cell_variance(self, arm: Ints, task: Ints) -> Floats:
        """[cell] posterior variance of cells, noise-free, in squared units of the task's spread."""
        prior = self.load[task] ** 2 * self.shared_diagonal[arm] + self.offset[task] ** 2
        prior = prior + self.own[task] ** 2 * (self.own_diagonal[arm] + self._cell)
        n = self.n
        if not n:
            return np.asarray(prior)
        rows = np.array([self._cache(int(a)) for a in arm])
        seen, on = self._arm[:n], self._task[:n]
        k = self.load[task][:, None] * self.load[on][None, :] * self._shared_rows[rows][:, seen]
        same = task[:, None] == on[None, :]
        own = self._own_rows[rows][:, seen] + self._cell * (arm[:, None] == seen[None, :])
        k += same * ((self.own[task] ** 2)[:, None] * own + (self.offset[task] ** 2)[:, None])
        white = self._solve(n, k.T)
        return np.asarray(np.maximum(prior - (white**2).sum(axis=0), JITTER))

    def plane(self) -> Floats:
        """[arm, task] posterior mean of every cell, in units of the reward."""
        unit = self.kernel.mean[:, None] * self.load[None, :]
        if self.n:
            n = self.n
            weights = self._solve(n, self._z[:n], back=True)
            unit = unit + self._spill(weights, np.arange(self._arms))
        return np.asarray(self.centre + self.spread * unit)

    # -- hyperparameters -----------------------------------------------------------------------

    def prepare_fit(self, centre: Floats, spread: Floats) -> Fit:
        """A fit to the observed cells, with these [task] centres and spreads."""
        arm, task, reward, noise = self.cells()
        if len(arm) > FIT_CELLS:
            keep = np.unique(np.linspace(0, len(arm) - 1, FIT_CELLS).astype(np.int64))
            arm, task, reward, noise = arm[keep], task[keep], reward[keep], noise[keep]
        unit = (reward - centre[task]) / spread[task]
        extra = JITTER + (noise / spread[task]) ** 2
        return Fit(self.kernel, self.hyper, arm, task, unit, extra)

    def fit(self, centre: Floats, spread: Floats) -> None:
        """Fit the hyperparameters to the observed cells, and go on with them and these units."""
        smooth = self._smooth()
        self.kernel.profile = smooth - smooth[self.cells()[0]].mean()
        fit = self.prepare_fit(centre, spread)
        fit.run()
        self.hyper, self.centre, self.spread = fit.hyper, centre, spread
        # Nothing is known of the level of a task without cells but how far levels differ.
        known = np.isin(np.arange(self._tasks), self._task[: self.n][self._observed[: self.n]])
        differ = float(centre[known].std()) if known.any() else 0.0
        self.offset = np.where(known, OFFSET_SD, np.maximum(OFFSET_SD, differ / spread))
        self.kernel.stranger[:] = 0.0
        self.rebuild()
        n = self.n
        cells = self._chol[:n, :n], self._resid[:n], self._arm[:n], self.load[self._task[:n]]
        if (variance := strangers(*cells, arms=self._arms)).any():
            self.kernel.stranger = variance
            self.rebuild()

    def _smooth(self) -> Floats:
        """[arm] posterior mean of the part of the shared surface that neighbours tell.

        Without the terms that an arm or its layer has to itself: what a task makes of the surface
        would else explain them away, task by task.
        """
        n = self.n
        back = self._solve(n, self._z[:n], back=True)
        seen, at = np.unique(self._arm[:n], return_inverse=True)
        weight = np.bincount(at, back * self.load[self._task[:n]])
        smooth = self.kernel.mean.copy()
        for start in range(0, self._arms, PIECE):
            piece = np.arange(start, min(start + PIECE, self._arms))
            smooth[piece] += weight @ self.kernel.smooth(seen, piece)
        return smooth
