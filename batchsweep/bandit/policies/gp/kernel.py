"""The prior of the multi-task Gaussian process: what arms and tasks have to do with each other.

In units of a task's own spread, the reward of arm ``a`` on task ``t`` is

    offset_t + loading_t * (shared(a) + residual_t * own_t(a))

``shared`` is one surface for all tasks (tasks rank arms much alike), ``own_t`` is a smaller surface
of the task's own, a response of its own to the shared surface as it was believed at the last fit
(so that what isn't known of a loading counts in what is stated), and a term per cell. The shared
surface is a sum over the things that a layer of a checkpoint may owe its quality to: training step,
depth, both together, the layer as such (at any step), the checkpoint as such (at any layer), the
label-free metrics, and the arm itself.
Kernels are Matern-5/2 (Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006,
eq. 4.17); one surface with a task covariance is the intrinsic model of coregionalisation (Bonilla,
Chai & Williams, "Multi-task Gaussian Process Prediction", NeurIPS 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchsweep.bandit.policies.base import USUAL_DEPTH, Floats, Ints, Problem
from batchsweep.bandit.policies.features import log_step, rank_normalise

#: Natural logs of the prior medians: standard deviations in units of the spread of the baseline
#: checkpoint's layers, and length scales on 0..1 axes.
MEDIANS = {
    "step": 2.0,
    "depth": 1.0,
    "both": 0.8,
    "layer": 0.15,
    "checkpoint": 0.15,
    "arm": 0.1,
    "metrics": 0.05,
    "step_length": 0.35,
    "depth_length": 0.35,
    "own_depth": 0.5,
    "own_both": 0.4,
    "own_cell": 0.2,
}
NAMES = tuple(MEDIANS)
#: Standard deviation of the log of each of them: little for the cells' own term, whose likeliest
#: value is too small where every task has a few cells and parameters of its own.
LOG_SD = {**dict.fromkeys(MEDIANS, 0.7), "own_cell": 0.3, "arm": 1.5}
#: Standard deviation of the log of a task's loading and residual.
TASK_LOG_SD = 0.5
#: Of a task's response to the shared surface, beyond its loading: the loading that fits the cells
#: near the top, where most of them are, needn't hold for all of a task's rise through training.
RESPONSE_SD = 0.5
#: Correlation of the smooth surfaces of two models.
BETWEEN_MODELS = 0.6
#: Standard deviation of a model's own level, and of a task's offset.
MODEL_SD = 2.0
OFFSET_SD = 3.0
#: Prior slopes, mean and standard deviation: later is better, and so is 70 % depth.
LATER = 4.0
OFF_DEPTH = -6.0

SQRT5 = 5**0.5


def _matern(distance: Floats, log_length: float) -> tuple[Floats, Floats]:
    """Matern-5/2 and its derivative by the log of the length scale."""
    r = SQRT5 * distance / np.exp(log_length)
    decay = np.exp(-r)
    return (1 + r + r * r / 3) * decay, r * r * (1 + r) / 3 * decay


@dataclass(frozen=True, eq=False)
class Hyper:
    """Hyperparameters: ``log`` in the order of NAMES, log loadings and residuals per task."""

    log: Floats
    loading: Floats
    residual: Floats

    @staticmethod
    def prior(tasks: int) -> Hyper:
        """The medians of their priors."""
        log = np.log(np.array([MEDIANS[n] for n in NAMES]))
        return Hyper(log, np.zeros(tasks), np.zeros(tasks))

    def flat(self) -> Floats:
        """All of them in one row, as the optimiser moves them."""
        return np.concatenate([self.log, self.loading, self.residual])

    @staticmethod
    def unflat(flat: Floats, tasks: int) -> Hyper:
        """What :meth:`flat` made a row of."""
        k = len(NAMES)
        return Hyper(flat[:k], flat[k : k + tasks], flat[k + tasks :])


class Kernel:
    """Covariances between arms, from tables over the distinct steps and depths."""

    def __init__(self, problem: Problem) -> None:
        step = log_step(problem)
        steps, self._step = np.unique(np.round(step, 9), return_inverse=True)
        depths, self._depth = np.unique(np.round(problem.depth, 9), return_inverse=True)
        models = {m: i for i, m in enumerate(problem.models)}
        self._model = np.array([models[m] for m in problem.model])
        self._step_gap = np.abs(steps[:, None] - steps[None, :])
        self._depth_gap = np.abs(depths[:, None] - depths[None, :])
        self.slope: Floats = np.column_stack(
            [LATER * (step - 1), OFF_DEPTH * (problem.depth - USUAL_DEPTH) ** 2]
        )
        #: [arm] prior mean of the shared surface.
        self.mean: Floats = self.slope.sum(axis=1)
        columns = [rank_normalise(c) for c in problem.metrics.values()]
        columns = [c for c in columns if np.ptp(c) > 0]
        self.metrics: Floats = (
            np.column_stack(columns) / np.sqrt(len(columns))
            if columns
            else np.zeros((len(step), 0))
        )
        self._square: Floats = (self.metrics**2).sum(axis=1)
        #: [arm] shared surface as believed, around the cells that were observed.
        self.profile: Floats = self.mean.copy()
        #: [arm] additional variance of its own term: of arms that their neighbours tell nothing of.
        self.stranger: Floats = np.zeros(len(step))

    def set(self, hyper: Hyper) -> None:
        """Compute the tables for these hyperparameters."""
        self.log = dict(zip(NAMES, hyper.log.tolist(), strict=True))
        self.var = {n: float(np.exp(2 * v)) for n, v in self.log.items()}
        self._kstep, _ = _matern(self._step_gap, self.log["step_length"])
        self._kdepth, _ = _matern(self._depth_gap, self.log["depth_length"])

    def _masks(self, i: Ints, j: Ints) -> tuple[Floats, Floats, Floats, Floats]:
        model = self._model[i][:, None] == self._model[j][None, :]
        depth = self._depth[i][:, None] == self._depth[j][None, :]
        step = self._step[i][:, None] == self._step[j][None, :]
        layer, checkpoint = model & depth, model & step
        return (
            model.astype(float),
            layer.astype(float),
            checkpoint.astype(float),
            (layer & step).astype(float),
        )

    def _metric_kernel(self, i: Ints, j: Ints) -> Floats:
        """Linear plus squared exponential in the rank-normalised metrics."""
        dot = self.metrics[i] @ self.metrics[j].T
        gap = self._square[i][:, None] + self._square[j][None, :] - 2 * dot
        return np.asarray(3 * dot + np.exp(-2 * gap))

    def between(self, i: Ints, j: Ints) -> tuple[Floats, Floats]:
        """(shared, own) covariances [i, j] of arms; ``own`` without the cell's own term."""
        var = self.var
        model, layer, checkpoint, arm = self._masks(i, j)
        related, kdepth, both, shared = self._smooth(i, j, model)
        shared += var["layer"] * layer + var["checkpoint"] * checkpoint
        shared += (var["arm"] + self.stranger[i])[:, None] * arm
        own = related * (var["own_depth"] * kdepth + var["own_both"] * both)
        own += RESPONSE_SD**2 * np.outer(self.profile[i], self.profile[j])
        return shared, own

    def smooth(self, i: Ints, j: Ints) -> Floats:
        """[i, j] covariances of the part of the shared surface that neighbours tell."""
        model = (self._model[i][:, None] == self._model[j][None, :]).astype(float)
        return self._smooth(i, j, model)[-1]

    def _smooth(self, i: Ints, j: Ints, model: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """[i, j] relation of the models, kernels of depth and of both, and their covariance."""
        var = self.var
        related = BETWEEN_MODELS + (1 - BETWEEN_MODELS) * model
        kstep = self._kstep[self._step[i][:, None], self._step[j][None, :]]
        kdepth = self._kdepth[self._depth[i][:, None], self._depth[j][None, :]]
        both = kstep * kdepth
        shared = related * (var["step"] * kstep + var["depth"] * kdepth + var["both"] * both)
        shared += self.slope[i] @ self.slope[j].T
        shared += MODEL_SD**2 * model
        if self.metrics.shape[1]:
            shared += var["metrics"] * self._metric_kernel(i, j)
        return related, kdepth, both, shared

    def diagonal(self) -> tuple[Floats, Floats]:
        """[arm] variance of the shared surface, and of an own one without its cells' term."""
        var = self.var
        shared = (self.slope**2).sum(axis=1) + MODEL_SD**2
        shared += sum(var[n] for n in ("step", "depth", "both", "layer", "checkpoint", "arm"))
        shared += self.stranger
        if self.metrics.shape[1]:
            shared += var["metrics"] * (3 * (self.metrics**2).sum(axis=1) + 1)
        return shared, var["own_depth"] + var["own_both"] + RESPONSE_SD**2 * self.profile**2

    def pieces(self, i: Ints) -> Pieces:
        """All that the likelihood of observations at arms ``i`` needs, without amplitudes."""
        model, layer, checkpoint, arm = self._masks(i, i)
        related = BETWEEN_MODELS + (1 - BETWEEN_MODELS) * model
        fixed = self.slope[i] @ self.slope[i].T + MODEL_SD**2 * model
        fixed += self.stranger[i][:, None] * arm
        metric = self._metric_kernel(i, i) if self.metrics.shape[1] else None
        rows, columns = np.ix_(self._step[i], self._step[i]), np.ix_(self._depth[i], self._depth[i])
        return Pieces(
            related,
            layer,
            checkpoint,
            arm,
            fixed,
            RESPONSE_SD**2 * np.outer(self.profile[i], self.profile[i]),
            metric,
            self._step_gap[rows],
            self._depth_gap[columns],
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """[n, n] ingredients of the covariance of n observations."""

    related: Floats
    layer: Floats
    checkpoint: Floats
    arm: Floats
    fixed: Floats
    own_fixed: Floats
    metric: Floats | None
    step_gap: Floats
    depth_gap: Floats

    def covariance(
        self, hyper: Hyper
    ) -> tuple[Floats, Floats, dict[str, Floats], dict[str, Floats]]:
        """(shared, own with cell term, d shared / d log, d own / d log), all [n, n]."""
        log = dict(zip(NAMES, hyper.log.tolist(), strict=True))
        var = {n: float(np.exp(2 * v)) for n, v in log.items()}
        kstep, dstep = _matern(self.step_gap, log["step_length"])
        kdepth, ddepth = _matern(self.depth_gap, log["depth_length"])
        step, depth = self.related * kstep, self.related * kdepth
        both = step * kdepth
        by = {
            "step": 2 * var["step"] * step,
            "depth": 2 * var["depth"] * depth,
            "both": 2 * var["both"] * both,
            "layer": 2 * var["layer"] * self.layer,
            "checkpoint": 2 * var["checkpoint"] * self.checkpoint,
            "arm": 2 * var["arm"] * self.arm,
        }
        if self.metric is not None:
            by["metrics"] = 2 * var["metrics"] * self.metric
        shared = self.fixed + 0.5 * sum(by.values())
        own_by = {
            "own_depth": 2 * var["own_depth"] * depth,
            "own_both": 2 * var["own_both"] * both,
            "own_cell": 2 * var["own_cell"] * self.arm,
        }
        own = self.own_fixed + 0.5 * sum(own_by.values())
        both_by_step, both_by_depth = depth * dstep, step * ddepth
        by_depth = self.related * ddepth
        by["step_length"] = var["step"] * self.related * dstep + var["both"] * both_by_step
        by["depth_length"] = var["depth"] * by_depth + var["both"] * both_by_depth
        own_by["step_length"] = var["own_both"] * both_by_step
        own_by["depth_length"] = var["own_depth"] * by_depth + var["own_both"] * both_by_depth
        return shared, own, by, own_by
