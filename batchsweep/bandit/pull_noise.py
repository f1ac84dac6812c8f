"""How noisy pulls on subsets are, measured by the two halves that each pull is made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

#: The variance of the median task counts as much as so many arms of this one.
PRIOR_ARMS = 2


class SplitHalvesNoise:
    """The standard deviation of a pull's score, from the arms observed so far.

    The two halves are drawn independently of each other, so that their mean is off by half of
    what they differ by: Var(mean) = Var(difference) / 4. What all arms have in common, because all
    see the same examples, is no noise: it moves the whole task, and is taken out as the mean
    difference over arms. What is left is how much the examples suit one arm better than another.

    A task's first arms have no spread to show. There the median task's variance stands in, and
    before any task has two arms the plain square of the difference, which is too large by what
    arms have in common. Depends on the order in which pulls are observed, and on nothing else.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        self._differences: dict[str, list[float]] = {task: [] for task in tasks}

    def observe(self, task: str, halves: Sequence[float | None] | None) -> float:
        """Take in a pull; its noise, in units of the score. 0 for a task that was scored whole.

        Args:
            halves: the scores of the two, None for one that is not finite.
        """
        if halves is None:
            return 0.0
        one, two = halves
        if one is not None and two is not None:
            self._differences[task].append(one - two)
        return self.of(task)

    def of(self, task: str) -> float:
        """The noise of a pull on the task, as far as is known."""
        mine, arms = _squares(self._differences[task])
        pooled = [_squares(d) for d in self._differences.values()]
        variances = [squares / arms for squares, arms in pooled if arms]
        if variances:
            usual = statistics.median(variances)
        else:
            observed = [x for d in self._differences.values() for x in d]
            usual = sum(x * x for x in observed) / len(observed) if observed else 0.0
        variance = (mine + PRIOR_ARMS * usual) / (arms + PRIOR_ARMS)
        return math.sqrt(variance) / 2


def _squares(differences: list[float]) -> tuple[float, int]:
    """Sum of squares around the mean, and its degrees of freedom."""
    if len(differences) < 2:
        return 0.0, 0
    mean = sum(differences) / len(differences)
    return sum((x - mean) ** 2 for x in differences), len(differences) - 1
