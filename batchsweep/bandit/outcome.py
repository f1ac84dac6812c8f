"""What a run of the bandit found, and its form in ``answer.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from batchsweep.bandit.budget import Budget
from batchsweep.bandit.ledger import Observation
from batchsweep.bandit.policies import Answer, Problem
from batchsweep.bandit.rewards import Floats, Scale

#: Change when the pulls of a policy change: a ledger of another version is not resumed.
VERSION = 2


#: Why a search ended: the budget is spent, it is sure enough, or nothing is left to ask.
Stopped = Literal["budget", "regret", "exhausted"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found and what it spent.

    Attributes:
        answer: the best arm, in units of the reward.
        reward: one line that says what the reward is.
        scale: per-task centre and spread of the rewards.
        plane: [arm, task] believed main scores; measured ones where measured.
        observations: every pull in the order observed.
        budget: what might be spent, and what was.
        texts_per_pull: what a pull scored of a task; None: all of it.
        noise: [task] measured standard deviation of a pull; 0 where whole tasks were scored.
        checked: arms that were scored in full after a search on subsets.
        stopped: ``budget``, ``regret`` (sure enough) or ``exhausted`` (nothing left to ask).
    """

    problem: Problem
    answer: Answer
    reward: str
    scale: Scale
    plane: Floats
    observations: tuple[Observation, ...]
    budget: Budget
    stopped: Stopped
    texts_per_pull: int | None
    noise: Floats
    checked: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``answer.json``; the per-arm columns are in the problem's order."""
        answer = self.answer
        return {
            "version": VERSION,
            "reward": self.reward,
            "best": {
                "arm": answer.arm,
                "mean": answer.mean,
                "interval": [_finite(x) for x in answer.interval],
                "p_best": answer.p_best,
                "expected_regret": answer.expected_regret,
                "basis": answer.basis,
            },
            "runners_up": [asdict(c) for c in answer.runners_up],
            "pulls": self.budget.spent_pulls,
            "exhaustive_pulls": int(np.prod(self.problem.shape)),
            "seconds": self.budget.spent_seconds,
            "budget_pulls": self.budget.pulls,
            "budget_seconds": self.budget.seconds,
            "budget_left": self.budget.left,
            "stopped": self.stopped,
            **self._subsets(),
            "scale": {
                "kind": self.scale.kind,
                "layers": self.scale.layers,
                "tasks": list(self.problem.tasks),
                "centre": self.scale.centre.tolist(),
                "spread": self.scale.spread.tolist(),
            },
            "arms": [
                {"arm": arm, "mean": mean, "sd": _finite(sd), "pulled": n}
                for arm, mean, sd, n in zip(
                    self.problem.arms,
                    answer.mean_of.tolist(),
                    answer.sd_of.tolist(),
                    answer.pulled.tolist(),
                    strict=True,
                )
            ],
            "plane": [[_finite(value) for value in row] for row in self.plane.tolist()],
        }

    def _subsets(self) -> dict[str, Any]:
        if self.texts_per_pull is None:
            return {}
        return {
            "subsets": {
                "texts_per_pull": self.texts_per_pull,
                "noise": self.noise.tolist(),
                "checked_in_full": list(self.checked),
            }
        }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
