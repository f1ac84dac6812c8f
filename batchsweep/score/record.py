"""What scoring one arm on one task gives: one frozen value, from the scorer to the ledger."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from batchsweep.arm import Arm
from batchsweep.errors import StoreCorrupt, StoreMismatch


@dataclass(frozen=True)
class Score:
    """The score of one cell, whoever gives it: MTEB's evaluators, a table, a test.

    Attributes:
        main_score: the main score; NaN where it is undefined (a constant embedding has no
            correlation). Of a pull on a subset, the mean of both halves.
        seconds: what scoring took, reading the vectors included.
        halves: of a pull on a subset, the score of each half, from which the noise is measured.
        noise: the standard deviation of ``main_score``, where that is known beforehand.
        group: spec digest (hex) of the vectors that it was computed from; None: it doesn't say.
    """

    main_score: float
    seconds: float
    halves: tuple[float, float] | None = None
    noise: float = 0.0
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRecord(Score):
    """A score with whose it is: what the store keeps below ``scores/`` and ``subsets/``.

    Attributes:
        key, layer, pooling: the arm.
        task: the task's name.
        model, revision, step, commit: of the checkpoint; None where unknown.
        origin: all that decides the score: these vectors, the task's data and its revision, cap,
            mteb; empty in a record that doesn't say.
        document: the whole record as the store keeps it, mteb's full result included: plain JSON
            values, null for nan.
    """

    key: str
    layer: int
    pooling: str
    task: str
    model: str | None
    revision: str | None
    step: int | None
    commit: str | None
    origin: Mapping[str, Any]
    document: dict[str, Any]

    @property
    def arm(self) -> Arm:
        """The arm, its pooling named."""
        return Arm(self.key, self.layer, self.pooling)

    @property
    def max_texts(self) -> int | None:
        """Texts that the task was capped at; None: it was whole."""
        found: int | None = _max_texts(self.document)
        return found

    @classmethod
    def at(cls, path: str, document: Any, *, where: str) -> Self:
        """The record that a document is, which must be the one that belongs at ``path``.

        Raises:
            StoreMismatch: it is another arm's or task's.
            StoreCorrupt: it is no record.
        """
        place = _PLACE.fullmatch(path)
        try:
            if place is None or not isinstance(document, dict):
                raise ValueError("no arm and task have that path")
            origin = document.get("origin") or {}
            _check_types(document, origin)
            halves = None
            if "halves" in document:
                one, two = map(_number, document["halves"])
                halves = (one, two)
            record = cls(
                main_score=_number(document["main_score"]),
                seconds=float(document["seconds"]),
                halves=halves,
                # Written by hand, or by tools that don't know it, records may lack the key.
                key=str(document.get("key", place["key"])),
                layer=int(document["layer"]),
                pooling=str(document["pooling"]),
                task=str(document["task"]),
                model=document.get("model"),
                revision=document.get("revision"),
                step=document.get("step"),
                commit=document.get("commit"),
                group=origin.get("group"),
                origin=origin,
                document=document,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreCorrupt(
                f"{where}: {path} is no record of a score ({error!r}); {REMEDY}"
            ) from None
        if path_of(record.arm, record.task, place["folder"]) != path:
            raise StoreMismatch(
                f"{where}: {path} is the score of {record.arm} on {record.task}, not of its own "
                f"arm and task; {REMEDY}"
            )
        return record


def _check_types(document: dict[str, Any], origin: dict[str, Any]) -> None:
    """Refuse members of another type than tables have for them."""
    names = ("model", "revision", "commit", "mteb_version", "dataset_revision")
    for name, text in [*((n, document.get(n)) for n in names), ("group", origin.get("group"))]:
        if not isinstance(text, str | None):
            raise ValueError(f"{name} isn't text")
    most = ("max_texts_per_task", _max_texts(document))
    for name, number in (("step", document.get("step")), most):
        if number is not None and (type(number) is not int or abs(number) >= 2**53):
            raise ValueError(f"{name} isn't a whole number")


#: What to do about a record that isn't the one that belongs at its place.
REMEDY = "run 'batchsweep verify --repair', which removes it, then 'batchsweep bandit'"

_PLACE = re.compile(
    r"(?P<folder>scores|subsets/[^/]+)/(?P<key>[^/]+/[^/]+)/(?P<layer>\d+)-[^/]+/[^/]+\.json"
)


def path_of(arm: Arm, task: str, folder: str = "scores") -> str:
    """Where the record of an arm (its pooling named) and a task belongs."""
    return f"{folder}/{arm.key}/{arm.layer}-{arm.pooling}/{quote(task, safe='')}.json"


def _max_texts(document: dict[str, Any]) -> Any:
    return (document.get("cap") or {}).get("max_texts_per_task")


def _number(value: float | None) -> float:
    """JSON has no nan."""
    return math.nan if value is None else float(value)
