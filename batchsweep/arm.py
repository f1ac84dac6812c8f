"""An arm: (checkpoint, layer[, pooling]), and how it is spelled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from batchsweep.errors import UsageError


@dataclass(frozen=True)
class Arm:
    """A checkpoint's layer and pooling.

    The pooling is an array's (``mean``), or that with a transform (``mean+center``). It may be left
    out where it is the only array's.
    """

    key: str
    layer: int
    pooling: str | None = None

    @classmethod
    def spelled(cls, key: str, layer: int, pooling: str, stored: Sequence[str]) -> Arm:
        """As names of arms have it: without the pooling if it is the only one ``stored``."""
        return cls(key, layer, None if [pooling] == list(stored) else pooling)

    def __str__(self) -> str:
        """``<checkpoint key>#<layer>[#<pooling>]``, which :meth:`parse` reads."""
        return f"{self.key}#{self.layer}" + (f"#{self.pooling}" if self.pooling else "")

    @classmethod
    def parse(cls, text: str) -> Arm:
        """From ``<checkpoint key>#<layer>[#<pooling>]``.

        Raises:
            UsageError: it is not of this form.
        """
        parts = text.split("#")
        if len(parts) not in (2, 3) or not re.fullmatch("[0-9]{1,6}", parts[1]):
            raise UsageError(
                f"'{text[:200]}' is not an arm; an arm is like EleutherAI--pythia-14m/step1000#3"
            )
        return cls(parts[0], int(parts[1]), parts[2] if len(parts) == 3 else None)


#: Among transforms: vectors as they are stored.
STORED = "stored"


def transformed(poolings: Sequence[str], transforms: Sequence[str]) -> list[str]:
    """``mean``, ``mean+center``, ...: each pooling with each of the transforms."""
    return [p if t == STORED else f"{p}+{t}" for p in poolings for t in transforms]


def split_transform(pooling: str) -> tuple[str, str]:
    """``mean+center`` as (``mean``, ``center``); (``mean``, empty) of vectors as stored."""
    stored, _, transform = pooling.partition("+")
    return stored, transform


def names_for_mteb(key: str) -> tuple[str, str]:
    """A checkpoint as mteb names models: (``EleutherAI/pythia-14m``, ``step1000``)."""
    model, revision = key.split("/")
    owner, _, name = model.rpartition("--")
    return f"{owner or 'local'}/{name}", revision
