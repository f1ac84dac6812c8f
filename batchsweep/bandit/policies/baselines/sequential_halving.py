"""Sequential halving."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.bandit.policies.base import Ints, Policy, Problem


class SequentialHalving(Policy):
    """Karnin, Koren & Somekh, "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013.

    Rounds share the budget equally; each round pulls all surviving arms on the same next tasks and
    drops the worse half. Where the budget doesn't allow one pull of every arm in the first round, a
    random part of the arms (the default arm among them) takes part. Pulls of one round only depend
    on the rounds before it, so they parallelise.
    """

    name = "sequential_halving"

    def __init__(self, problem: Problem, **common: Any) -> None:
        super().__init__(problem, **common)
        arms, tasks = problem.shape
        budget = min(self.budget or arms * tasks // 10, arms * tasks)
        self._tasks = self.rng.permutation(tasks)
        self._alive = self._enter(budget)
        self._depth = 0  # tasks that all survivors were asked on
        self._queue: list[tuple[int, int]] = []
        self._waiting: set[tuple[int, int]] = set()
        self._start_round()

    def _enter(self, budget: int) -> Ints:
        """The arms of the first round; settles what a round may cost."""
        self._per_round, entrants = _fit(self.problem.shape[0], budget)
        chosen = self.rng.permutation(self.problem.shape[0])
        first = np.concatenate([[self._default], chosen[chosen != self._default]])
        return np.sort(first[:entrants]).astype(np.int64)

    def _round_tasks(self) -> int:
        """On how many further tasks the survivors of a round are pulled."""
        return max(1, self._per_round // len(self._alive))

    def _start_round(self) -> None:
        tasks = len(self._tasks)
        until = min(tasks, self._depth + self._round_tasks())
        cells = [(int(a), int(t)) for t in self._tasks[self._depth : until] for a in self._alive]
        self._depth = until
        self._queue = [c for c in cells if not self.taken[c]][::-1]
        self._waiting = {c for c in cells if np.isnan(self.observed[c])}

    def _choose(self) -> tuple[int, int, str] | None:
        while True:
            while self._queue:
                arm, task = self._queue.pop()
                if not self.taken[arm, task]:  # it may have been observed from outside
                    return arm, task, f"{self.name}: {len(self._alive)} arms left"
            if self._waiting:  # the rest of the round is out being scored
                return None
            if len(self._alive) == 1 and self._depth >= len(self._tasks):
                return None
            if len(self._alive) > 1:
                mean, _ = self.believed()
                keep = (len(self._alive) + 1) // 2
                order = np.argsort(-mean[self._alive], kind="stable")
                self._alive = np.sort(self._alive[order[:keep]])
            self._start_round()

    def _learn(
        self, arm: int, task: int, score: float, seconds: float | None, noise: float
    ) -> None:
        self._waiting.discard((arm, task))

    def leader(self) -> int:
        # Dropped arms are out on little evidence; only one that was scored in full competes.
        pulled = ~np.isnan(self.observed)
        eligible = pulled.all(axis=1)
        eligible[self._alive] |= pulled[self._alive].any(axis=1)
        if not eligible.any():
            return super().leader()
        mean, _ = self.believed()
        return int(np.argmax(np.where(eligible, mean, -np.inf)))


class Halving(SequentialHalving):
    """Halving of whole checkpoints: few random tasks on all layers of some, the better half stays.

    Every round pulls the survivors on the same few further tasks, so that half of the budget goes
    to the first one. The checkpoint of the default arm takes part, and others drawn at random as
    far as the budget goes; of the last one, as many layers as are left, evenly over its depth.
    """

    name = "halving"
    #: Tasks of a round; fewer where less than two checkpoints could take part.
    MOST_TASKS = 4

    def _enter(self, budget: int) -> Ints:
        arms, tasks = self.problem.shape
        names = list(zip(self.problem.model, self.problem.step.tolist(), strict=True))
        groups = {n: [i for i, m in enumerate(names) if m == n] for n in dict.fromkeys(names)}
        own = groups.pop(names[self._default])
        others = list(groups.values())
        order = [own, *(others[int(i)] for i in self.rng.permutation(len(others)))]
        wanted = min(arms, sum(len(group) for group in order[:2]))
        # Rounds of n, n/2, n/4, ... arms cost about twice the first.
        self._repeat = int(np.clip(budget // (2 * wanted), 1, min(self.MOST_TASKS, tasks)))
        room = int(np.clip(budget // (2 * self._repeat), 1, arms))
        chosen = [self._default]
        for group in order:
            layers = sorted((a for a in group if a != self._default), key=self._depth_of)
            left = room - len(chosen)
            if len(layers) > left:
                layers = [layers[(2 * k + 1) * len(layers) // (2 * left)] for k in range(left)]
            chosen += layers
        return np.sort(np.array(chosen, dtype=np.int64))

    def _depth_of(self, arm: int) -> float:
        return float(self.problem.depth[arm])

    def _round_tasks(self) -> int:
        return self._repeat


def _fit(arms: int, budget: int) -> tuple[int, int]:
    """Pulls per round, and how many arms can take part in the first round."""
    entrants = arms
    while True:
        rounds = max(1, int(np.ceil(np.log2(max(entrants, 2)))))
        per_round = max(1, budget // rounds)
        if per_round >= entrants:
            return per_round, entrants
        entrants = per_round
