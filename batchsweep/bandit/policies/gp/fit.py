"""Hyperparameters of the Gaussian process from observed cells."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from batchsweep.bandit.policies.base import Floats, Ints
from batchsweep.bandit.policies.gp.kernel import (
    LOG_SD,
    NAMES,
    OFFSET_SD,
    TASK_LOG_SD,
    Hyper,
    Kernel,
)

#: Steps of a fit; it ends before when a step gains next to nothing.
STEPS = 20
GAIN = 0.02


class Fit:
    """Maximum a posteriori hyperparameters.

    Args:
        kernel: of the arms.
        hyper: where to start.
        arm, task: [cell] what was observed.
        unit: [cell] rewards in units of their task's spread, centred.
        extra: [cell] variance of the noise in the same units, squared.
    """

    def __init__(
        self, kernel: Kernel, hyper: Hyper, arm: Ints, task: Ints, unit: Floats, extra: Floats
    ) -> None:
        # Cells in order of their arms: what belongs to one arm can be added up in one go.
        order = np.argsort(arm, kind="stable")
        self._task, self._unit, self._extra = task[order], unit[order], extra[order]
        arms, self._first, self._of = np.unique(arm[order], return_index=True, return_inverse=True)
        self._pieces = kernel.pieces(arms)
        self._slope = kernel.mean[arm[order]]
        # Cells of one task: the only pairs that know of the task's own surface.
        self._i, self._j = np.nonzero(self._task[:, None] == self._task[None, :])
        self._tasks = len(hyper.loading)
        self._prior = Hyper.prior(self._tasks).flat()
        self._width = np.concatenate(
            [[LOG_SD[n] for n in NAMES], np.full(2 * self._tasks, TASK_LOG_SD)]
        )
        self._x = (hyper.flat() - self._prior) / self._width

    @property
    def hyper(self) -> Hyper:
        """The hyperparameters as far as :meth:`run` has come."""
        return Hyper.unflat(self._prior + self._width * self._x, self._tasks)

    def run(self) -> None:
        """Go to the likeliest hyperparameters, within the bounds of STEPS and GAIN.

        By L-BFGS-B (Byrd, Lu, Nocedal & Zhu, SIAM J. Scientific Computing 16, 1995).
        """
        start, _ = self.objective(self._x)
        tolerance = GAIN / max(abs(start), 1.0)
        found = minimize(
            self.objective,
            self._x,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS, "ftol": tolerance},
        )
        self._x = found.x

    def objective(self, x: Floats) -> tuple[float, Floats]:
        """Negative log posterior and its gradient, in prior standard deviations from the prior.

        The marginal likelihood is Rasmussen & Williams (2006), eq. 5.8 and 5.9.
        """
        hyper = Hyper.unflat(self._prior + self._width * x, self._tasks)
        of, task, i, j = self._of, self._task, self._i, self._j
        n, arms = len(of), len(self._first)
        load, ratio = np.exp(hyper.loading)[task], np.exp(hyper.residual)[task]
        shared, own, by, own_by = self._pieces.covariance(hyper)
        gram = shared[of[:, None], of[None, :]]
        gram *= load[:, None]
        gram *= load[None, :]
        shared_part = gram.copy()
        own_load = load * ratio
        own_outer = own_load[i] * own_load[j]
        own_part = own_outer * own[of[i], of[j]]
        gram[i, j] += own_part + OFFSET_SD**2
        gram[np.diag_indices(n)] += self._extra
        factor, failed = dpotrf(gram, lower=1, clean=1, overwrite_a=1)
        if failed:
            return np.inf, np.zeros_like(x)
        resid = self._unit - load * self._slope
        alpha = cho_solve((factor, True), resid, check_finite=False)
        value = 0.5 * resid @ alpha + np.log(np.diag(factor)).sum()
        inverse, _ = dpotri(factor, lower=1)
        # Both triangles at once: the upper one is zero.
        grad_k = inverse + inverse.T
        grad_k[np.diag_indices(n)] *= 0.5
        grad_k -= np.outer(alpha, alpha)
        grad_k *= 0.5
        own_k = grad_k[i, j]
        per_shared = 2 * np.einsum("ij,ij->i", grad_k, shared_part)
        per_own = 2 * np.bincount(i, own_k * own_part, n)
        grad_k *= load[:, None]
        grad_k *= load[None, :]
        by_arm = np.add.reduceat(np.add.reduceat(grad_k, self._first, 0), self._first, 1)
        own_by_arm = np.bincount(of[i] * arms + of[j], own_k * own_outer, arms * arms)
        own_by_arm = own_by_arm.reshape(arms, arms)
        grad = np.zeros_like(x)
        for k, name in enumerate(NAMES):
            if name in by:
                grad[k] += np.vdot(by_arm, by[name])
            if name in own_by:
                grad[k] += np.vdot(own_by_arm, own_by[name])
        per_load = per_shared + per_own - alpha * load * self._slope
        start = len(NAMES)
        grad[start : start + self._tasks] = np.bincount(task, per_load, self._tasks)
        grad[start + self._tasks :] = np.bincount(task, per_own, self._tasks)
        return float(value + 0.5 * x @ x), self._width * grad + x
