"""What scoring one arm on one task gives: one frozen value, from the scorer to the ledger."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """The score of one cell, whoever gives it: MTEB's evaluators, a table, a test.

    Attributes:
        main_score: the main score; NaN where it is undefined (a constant embedding has no
            correlation). Of a pull on a subset, the mean of both halves.
        seconds: what scoring took, reading the vectors included.
        halves: of a pull on a subset, the score of each half, from which the noise is measured.
        noise: the standard deviation of ``main_score``, where that is known beforehand.
    """

    main_score: float
    seconds: float
    halves: tuple[float, float] | None = None
    noise: float = 0.0
