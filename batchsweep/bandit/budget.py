"""The budget of a search: what may be spent, and what has been."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Budget:
    """Pulls or seconds that may be spent: exactly one of the two is set.

    Attributes:
        pulls, seconds: what may be spent; None: not limited by it.
        spent_pulls, spent_seconds: what has been spent.
    """

    pulls: int | None
    seconds: float | None
    spent_pulls: int = 0
    spent_seconds: float = 0.0

    def bill(self, seconds: float) -> None:
        """One more pull was made, or taken from the ledger, which costs the same."""
        self.spent_pulls += 1
        self.spent_seconds += seconds

    def room(self, at_once: int) -> int:
        """Pulls that may still be made; of a budget in seconds, which no one can foresee:
        ``at_once`` as long as some are left."""
        if self.pulls is not None:
            return self.pulls - self.spent_pulls
        assert self.seconds is not None
        return at_once if self.spent_seconds < self.seconds else 0

    @property
    def left(self) -> float:
        """Part of the budget that is not spent, 0 to 1."""
        if self.pulls is not None:
            return max(0.0, 1 - self.spent_pulls / self.pulls)
        assert self.seconds is not None
        return max(0.0, 1 - self.spent_seconds / self.seconds)
