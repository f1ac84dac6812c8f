"""What a policy is: ask for pulls, observe their scores, answer with the best arm.

A policy is arithmetic. It reads and writes nothing, knows arms and tasks by opaque names and a few
named features, and is deterministic: the same seed and the same observations give the same asks
and the same answer. :mod:`batchsweep.bandit.loop` is the loop around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from batchsweep.errors import UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Relative depth at which published layer-by-layer results peak most often (Skean et al., 2025).
USUAL_DEPTH = 0.7
#: Two-sided normal quantile of the 95 % intervals.
Z95 = 1.959964


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to choose from.

    Args:
        arms: opaque names, distinct.
        tasks: task names, distinct.
        model: [arm] the model that each arm belongs to.
        step: [arm] training step; NaN where unknown (taken as one after the last that is known).
        depth: [arm] layer / number of layers, 0 to 1.
        metrics: label-free metric name -> [arm]; NaN where not measured.
        baseline: [arm] whether the arm is a layer of the baseline checkpoint; default: the
            arms of the last step of every model.

    Raises:
        UsageError: no arms or tasks, a repeated name, or a length that doesn't fit.
    """

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    model: tuple[str, ...]
    step: Floats
    depth: Floats
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    baseline: Bools | None = None

    def __post_init__(self) -> None:
        if not self.arms or not self.tasks:
            raise UsageError("a bandit needs at least one arm and one task: is the plan empty?")
        for what, names in (("arm", self.arms), ("task", self.tasks)):
            if len(set(names)) != len(names):
                repeated = next(n for n in names if names.count(n) > 1)
                raise UsageError(f"{what} '{repeated}' is there twice; names must be distinct")
        columns = {"model": self.model, "step": self.step, "depth": self.depth, **self.metrics}
        for name, column in columns.items():
            if len(column) != len(self.arms):
                raise UsageError(f"{name} has {len(column)} values for {len(self.arms)} arms")
        step = np.array(self.step, dtype=np.float64)
        unknown = ~np.isfinite(step)
        if unknown.all():
            step[:] = 0.0
        elif unknown.any():
            step[unknown] = step[~unknown].max() + 1
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "depth", np.array(self.depth, dtype=np.float64))
        metrics = {k: np.array(v, dtype=np.float64) for k, v in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        last = self.is_last() if self.baseline is None else np.array(self.baseline, dtype=bool)
        if not last.any():
            raise UsageError("no arm belongs to the baseline checkpoint; check rewards.baseline")
        object.__setattr__(self, "baseline", last)

    @property
    def shape(self) -> tuple[int, int]:
        """(arms, tasks)."""
        return len(self.arms), len(self.tasks)

    @property
    def models(self) -> tuple[str, ...]:
        """Distinct models in order of first appearance."""
        return tuple(dict.fromkeys(self.model))

    def of_model(self, model: str) -> Bools:
        """[arm] whether the arm belongs to the model."""
        return np.array([m == model for m in self.model], dtype=bool)

    def is_last(self) -> Bools:
        """[arm] whether the arm belongs to the last step of its own model."""
        last = np.zeros(len(self.arms), dtype=bool)
        for model in self.models:
            mine = self.of_model(model)
            last |= mine & (self.step == self.step[mine].max())
        return last

    def default_arm(self) -> int:
        """The arm one would guess without scoring any: last checkpoint, 70 % depth.

        Of several models the one with most layers (the last listed of equals) is taken, in its
        first pooling.
        """
        sizes = {m: len(np.unique(self.depth[self.of_model(m)])) for m in self.models}
        model = max(reversed(self.models), key=lambda m: sizes[m])
        model = next(m for m in self.models if m.partition("#")[0] == model.partition("#")[0])
        mine = np.flatnonzero(self.of_model(model) & self.is_last())
        return int(mine[np.argmin(np.abs(self.depth[mine] - USUAL_DEPTH))])


@dataclass(frozen=True)
class Pull:
    """Score this arm on this task, because of ``reason``."""

    arm: str
    task: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """An arm with what is believed of it: ``interval`` holds 95 %, in units of the reward."""

    arm: str
    mean: float
    interval: tuple[float, float]
    p_best: float | None


@dataclass(frozen=True, eq=False)
class Answer:
    """The best arm and how sure that is.

    Attributes:
        arm, mean, interval, p_best: the best arm; ``p_best`` is None where the policy has no
            model that could state it.
        expected_regret: how much better the truly best arm is expected to be; None without a model.
        runners_up: the other arms that can't be told apart from it (better with a probability of
            2.5 % or more), likeliest first.
        mean_of, sd_of: [arm] what is believed of every arm: the predicted time-layer plane.
        pulled: [arm] number of tasks that were really scored.
        basis: one sentence on what these numbers rest on.
    """

    arm: str
    mean: float
    interval: tuple[float, float]
    p_best: float | None
    expected_regret: float | None
    runners_up: tuple[Candidate, ...]
    mean_of: Floats
    sd_of: Floats
    pulled: Ints
    basis: str


class Policy(ABC):
    """Ask/tell. A cell (arm, task) is pulled at most once.

    Args:
        problem: the arms and tasks.
        seed: the only source of chance.
        budget: the number of pulls that may be spent, None if unknown (a budget in seconds).
    """

    name: ClassVar[str]
    #: Whether the policy wants any scores at all; the loop scores nothing for one that doesn't.
    pulls: ClassVar[bool] = True

    def __init__(self, problem: Problem, *, seed: int = 0, budget: int | None = None) -> None:
        self.problem = problem
        self.budget = budget
        self.rng = np.random.default_rng(seed)
        arms, tasks = problem.shape
        self._arm_index = {a: i for i, a in enumerate(problem.arms)}
        self._task_index = {t: i for i, t in enumerate(problem.tasks)}
        self._default = problem.default_arm()
        self._exact = True  # no score was observed with noise
        #: [arm] those that may be the answer; None: all.
        self.answerable: Bools | None = None
        #: [arm, task] rewards observed so far, NaN elsewhere.
        self.observed = np.full((arms, tasks), np.nan)
        #: [arm, task] cells that were asked or observed, or can't be scored: not to be asked.
        self.taken = np.zeros((arms, tasks), dtype=bool)
        self._shut = np.zeros((arms, tasks), dtype=bool)

    # -- ask / observe ----------------------------------------------------------------------------

    def ask(self, n: int = 1) -> list[Pull]:
        """Up to ``n`` distinct pulls that were not asked before; an empty list means none is left.

        Pulls of one call may be scored at the same time.
        """
        pulls: list[Pull] = []
        while len(pulls) < n and not self.taken.all():
            choice = self._choose()
            if choice is None:
                break
            arm, task, reason = choice
            self.taken[arm, task] = True
            pulls.append(Pull(self.problem.arms[arm], self.problem.tasks[task], reason))
        return pulls

    def restrict(self, cells: Bools) -> None:
        """Only ask for these cells [arm, task] until told otherwise: the others can't be scored.

        What is believed, and how sure it is, still counts all arms.
        """
        self.taken &= ~self._shut
        self._shut = ~cells & ~self.taken
        self.taken |= self._shut

    def observe(
        self, arm: str, task: str, score: float, seconds: float | None = None, noise: float = 0.0
    ) -> None:
        """The reward of one cell.

        Args:
            seconds: what the pull cost; lets a policy learn the cost of each task.
            noise: standard deviation of ``score``, for a pull on a subset of a task.

        Raises:
            UsageError: an unknown arm or task, a cell observed before, or a score that is not
                finite.
        """
        if arm not in self._arm_index or task not in self._task_index:
            what, name = ("arm", arm) if arm not in self._arm_index else ("task", task)
            raise UsageError(f"no {what} '{name}' in this problem")
        a, t = self._arm_index[arm], self._task_index[task]
        if not np.isfinite(score):
            raise UsageError(f"score of {arm} on {task} is {score}; only finite scores count")
        if not np.isnan(self.observed[a, t]):
            raise UsageError(f"{arm} on {task} was observed before; a cell counts once")
        self.observed[a, t] = score
        self.taken[a, t] = True
        self._exact &= noise == 0
        self._learn(a, t, float(score), seconds, noise)

    @abstractmethod
    def _choose(self) -> tuple[int, int, str] | None:
        """The next (arm, task, reason) among cells that are not taken, or None."""

    # A policy that keeps no state of its own beyond `observed` has nothing to add here.
    def _learn(  # noqa: B027
        self, arm: int, task: int, score: float, seconds: float | None, noise: float
    ) -> None:
        """What a policy keeps beyond :attr:`observed`."""

    # -- what is believed ----------------------------------------------------------------------

    def believed(self) -> tuple[Floats, Floats]:
        """[arm] mean and standard deviation of every arm's reward over all tasks.

        The default knows no structure: the mean of an arm's observed cells after the tasks' own
        levels are taken out, shrunk by one pull's worth towards the mean arm; infinite sd where
        nothing was observed.
        """
        pulled = ~np.isnan(self.observed)
        count = pulled.sum(axis=1)
        per_task = pulled.sum(axis=0)
        if not pulled.any():
            return np.zeros(len(count)), np.full(len(count), np.inf)
        level = np.where(
            per_task > 0, np.nansum(self.observed, axis=0) / np.maximum(per_task, 1), 0.0
        )
        centred = np.where(pulled, self.observed - level, 0.0)
        tasks = self.observed.shape[1]
        # A fully scored arm is known: no shrinking, no uncertainty.
        mean = centred.sum(axis=1) / np.where(count < tasks, count + 1, tasks)
        within = np.sqrt((centred**2).sum() / max(int(count.sum()) - 1, 1))
        unseen = 1 - count / tasks
        with np.errstate(divide="ignore"):
            sd = np.where(count > 0, within * np.sqrt(unseen / np.maximum(count, 1)), np.inf)
        return level[per_task > 0].mean() + mean, sd

    def leader(self) -> int:
        """Index of the arm that is believed best; the default arm as long as nothing is known."""
        mean, sd = self.believed()
        known = np.isfinite(sd)
        if not known.any():
            return self._default
        return int(np.argmax(np.where(known, mean, -np.inf)))

    def leaders(self, n: int) -> list[int]:
        """Indices of the ``n`` arms that are believed best, best first."""
        mean, sd = self.believed()
        first = self.leader()
        order = np.argsort(-np.where(np.isfinite(sd), mean, -np.inf), kind="stable")
        others = order[(order != first) & np.isfinite(sd[order])]
        if self.answerable is not None:
            others = others[self.answerable[others]]
        return [first, *others[: max(n - 1, 0)].tolist()][:n]

    def plane(self) -> Floats:
        """[arm, task] believed reward of every cell: as observed, else arm plus task level."""
        mean, sd = self.believed()
        pulled = ~np.isnan(self.observed)
        arm = np.where(np.isfinite(sd), mean, mean[np.isfinite(sd)].mean() if pulled.any() else 0.0)
        per_task = pulled.sum(axis=0)
        level = np.where(
            per_task > 0, np.nansum(self.observed, axis=0) / np.maximum(per_task, 1), 0.0
        )
        offset = level - (level[per_task > 0].mean() if pulled.any() else 0.0)
        return np.where(pulled, self.observed, arm[:, None] + offset[None, :])

    def sure(self, regret: float) -> bool:
        """Whether the expected regret is known to be below ``regret``: time to stop."""
        return False

    def best(self) -> Answer:
        """The best arm as far as is known now. Changes nothing and may be asked at any time."""
        mean, sd = self.believed()
        arm = self.leader()
        complete = self._exact and not np.isnan(self.observed).any()
        if complete:
            basis = "every arm was scored on every task"
        elif np.isnan(self.observed).all():
            basis = "a guess: nothing was scored"
        else:
            basis = "means of the scored cells; no model of the cells that were not scored"
        close = [
            i
            for i in self.leaders(9)[1:]
            if not complete and mean[i] + Z95 * sd[i] >= mean[arm] - Z95 * sd[arm]
        ]
        return Answer(
            arm=self.problem.arms[arm],
            mean=float(mean[arm]),
            interval=_interval(mean[arm], sd[arm]),
            p_best=1.0 if complete else None,
            expected_regret=0.0 if complete else None,
            runners_up=tuple(
                Candidate(
                    self.problem.arms[i], float(mean[i]), _interval(mean[i], sd[i]), p_best=None
                )
                for i in close
            ),
            mean_of=mean,
            sd_of=sd,
            pulled=(~np.isnan(self.observed)).sum(axis=1),
            basis=basis,
        )

    # -- for subclasses ------------------------------------------------------------------------

    def _free_tasks(self, arm: int) -> Ints:
        return np.flatnonzero(~self.taken[arm])

    def _open_arms(self) -> Ints:
        """Arms with at least one cell that is not taken."""
        return np.flatnonzero(~self.taken.all(axis=1))


def _interval(mean: float, sd: float) -> tuple[float, float]:
    return float(mean - Z95 * sd), float(mean + Z95 * sd)
