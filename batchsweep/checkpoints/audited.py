"""What an audit found: checkpoints that can be used, and what of the others is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.same_weights import Duplicates, SharedFiles
from batchsweep.checkpoints.shape import Shape


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that the config asks for and that can't be had."""

    model: str
    revision: str
    reason: Literal["missing", "no weights", "incomplete"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}: {self.reason} ({self.detail})"


@dataclass(frozen=True)
class Audit:
    """What the config's checkpoints are. Indexes are made from it in this order."""

    checkpoints: tuple[Checkpoint, ...]
    """Usable ones, one for each set of identical weights."""
    shapes: Mapping[str, Shape]
    """By checkpoint key."""
    tokenizers: Mapping[str, str]
    """By checkpoint key; empty where the Hub was not asked."""
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    shared: tuple[SharedFiles, ...] = ()
    asked: bool = True
    """False: Hub models are taken at their word (:func:`batchsweep.checkpoints.audit.nominal`)."""
    requests: int = 0
    """Requests that it took."""

    @property
    def missing(self) -> tuple[Skipped, ...]:
        return tuple(s for s in self.skipped if s.reason == "missing")

    @property
    def weightless(self) -> tuple[Skipped, ...]:
        """Revisions that are there, but hold no weights that can be loaded."""
        return tuple(s for s in self.skipped if s.reason != "missing")

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each: skipped checkpoints, identical weights, shared files."""
        return warning_lines(self.skipped, self.duplicates, self.shared)


def warning_lines(
    skipped: Sequence[Skipped], duplicates: Sequence[Duplicates], shared: Sequence[SharedFiles]
) -> tuple[str, ...]:
    """One line each, in this order."""
    return (*(f"skipped: {s}" for s in skipped), *map(str, duplicates), *map(str, shared))
