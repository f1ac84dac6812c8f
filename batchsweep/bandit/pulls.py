"""Pulls that are made once: taken from the ledger, or scored and written down before they count."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed

from batchsweep.bandit.ledger import Kind, Ledger, Observation, Record, header_of, observations
from batchsweep.bandit.policies import Pull
from batchsweep.errors import StoreMismatch
from batchsweep.score.record import Score

logger = logging.getLogger(__name__)

#: (arm, task) -> what it scored. An undefined score counts as 0.
ScoreFn = Callable[[str, str], Score]


class Pulls:
    """Makes the pulls of one run.

    Args:
        ledger: what was pulled before, and where new pulls go.
        header: what decides the pulls; a new ledger gets it, an old one must have it.
        full_fn: the same on a whole task, where ``score_fn`` scores subsets.
        executor: where the pulls of a batch run; None: here, one by one.
        imported: pulls that are there already; a ledger that lacks them gets them first.

    Raises:
        StoreMismatch: the ledger belongs to another run; names what differs.
    """

    def __init__(
        self,
        ledger: Ledger,
        header: Record,
        score_fn: ScoreFn,
        full_fn: ScoreFn,
        executor: Executor | None,
        imported: Sequence[Observation] = (),
    ) -> None:
        self._ledger, self._executor = ledger, executor
        self._score_fn, self._full_fn = score_fn, full_fn
        header = json.loads(json.dumps(header))
        records = ledger.records()
        old = header_of(records)
        if old is None:
            # None yet, or one that was damaged and dropped: scores are the same without it.
            ledger.append({"kind": "header", **header})
            old = header
        for key, value in header.items():
            if old.get(key) != value:
                raise StoreMismatch(
                    f"the bandit's ledger was made with {key} {old.get(key)}, not {value}; "
                    "give this run another name, or the old settings to go on with it"
                )
        #: By cell, and whether it was scored in full after a search on subsets.
        self._known = {(o.arm, o.task, o.full): o for o in observations(records)}
        made = sum(one.kind != "imported" for one in self._known.values())
        if made:
            logger.info("going on from %d pulls in the ledger", made)
        for one in imported:
            if (one.arm, one.task, one.full) not in self._known:
                self._ledger.append(one.to_json())
                self._known[one.arm, one.task, one.full] = one

    def make(self, pulls: list[Pull], kind: Kind, *, full: bool = False) -> list[Observation]:
        """The pulls with their scores, in their order; each is in the ledger by then."""
        known = [self._known.get((pull.arm, pull.task, full)) for pull in pulls]
        fresh = [pull for pull, there in zip(pulls, known, strict=True) if there is None]
        made: dict[Pull, Observation] = {}
        for pull, score in self._scored(fresh, full=full):
            made[pull] = observation = Observation.of(pull, score, kind, full=full)
            if observation.undefined:
                logger.warning(
                    "%s on %s: score is %s; counts as 0", pull.arm, pull.task, score.main_score
                )
            self._ledger.append(observation.to_json())
        return [there or made[pull] for pull, there in zip(pulls, known, strict=True)]

    def _scored(self, pulls: list[Pull], *, full: bool) -> Iterator[tuple[Pull, Score]]:
        score = self._full_fn if full else self._score_fn
        if self._executor is None or len(pulls) < 2:
            for pull in pulls:
                yield pull, score(pull.arm, pull.task)
            return
        futures = {self._executor.submit(score, p.arm, p.task): p for p in pulls}
        for future in as_completed(futures):
            yield futures[future], future.result()
