"""Pulls that are made once: taken from the ledger, or scored and written down before they count."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from typing import Any

from batchsweep.bandit.ledger import Ledger, Record
from batchsweep.bandit.policies import Pull
from batchsweep.errors import StoreMismatch

logger = logging.getLogger(__name__)

#: (arm, task) -> (main score, seconds, result). Of the result, if it is a mapping, two entries are
#: read: ``halves``, the scores of the two subsets that the score is the mean of, from which the
#: noise is measured; and ``noise``, its standard deviation, where that is known.
#: A score that is not finite (a constant embedding has no correlation) counts as 0.
ScoreFn = Callable[[str, str], tuple[float, float, Any]]


class Pulls:
    """Makes the pulls of one run.

    Args:
        ledger: what was pulled before, and where new pulls go.
        header: what decides the pulls; a new ledger gets it, an old one must have it.
        score_fn: scores a cell.
        full_fn: the same on a whole task, where ``score_fn`` scores subsets.
        executor: where the pulls of a batch run; None: here, one by one.

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
    ) -> None:
        self._ledger, self._executor = ledger, executor
        self._score_fn, self._full_fn = score_fn, full_fn
        header = json.loads(json.dumps(header))
        records = ledger.records()
        old = next((r for r in records if r["kind"] == "header"), None)
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
        self._known = {
            (r["arm"], r["task"], r.get("full", False)): r for r in records if r["kind"] != "header"
        }
        if self._known:
            logger.info("going on from %d pulls in the ledger", len(self._known))

    def records(self, pulls: list[Pull], kind: str, *, full: bool = False) -> list[Record]:
        """Records of the pulls, in their order; each is in the ledger by then."""
        done: dict[Pull, Record] = {}
        fresh: list[Pull] = []
        for pull in pulls:
            record = self._known.get((pull.arm, pull.task, full))
            if record is None:
                fresh.append(pull)
            else:
                done[pull] = record
        for pull, (score, seconds, more) in self._scored(fresh, full=full):
            record = {
                "kind": kind,
                "arm": pull.arm,
                "task": pull.task,
                "score": score if math.isfinite(score) else 0.0,
                "seconds": seconds,
                "reason": pull.reason,
                **more,
            }
            if full:
                record["full"] = True
            if not math.isfinite(score):
                logger.warning("%s on %s: score is %s; counts as 0", pull.arm, pull.task, score)
                record["undefined"] = True
            self._ledger.append(record)
            done[pull] = record
        return [done[p] for p in pulls]

    def _scored(
        self, pulls: list[Pull], *, full: bool
    ) -> Iterator[tuple[Pull, tuple[float, float, Record]]]:
        score = self._full_fn if full else self._score_fn
        if self._executor is None or len(pulls) < 2:
            for pull in pulls:
                yield pull, _plain(score(pull.arm, pull.task))
            return
        futures = {self._executor.submit(score, p.arm, p.task): p for p in pulls}
        for future in as_completed(futures):
            yield futures[future], _plain(future.result())


def _plain(result: tuple[float, float, Any]) -> tuple[float, float, Record]:
    """(score, seconds, what else the ledger keeps)."""
    score, seconds, rest = result
    more: Record = {}
    if isinstance(rest, Mapping):
        if rest.get("halves"):
            more["halves"] = [
                None if x is None or not math.isfinite(x) else float(x) for x in rest["halves"]
            ]
        elif rest.get("noise"):
            more["noise"] = float(rest["noise"])
    return float(score), float(seconds), more
