"""From a text to its row of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreError, shortened
from batchsweep.store import Store
from batchsweep.store.corpus import digest_of

Rows = npt.NDArray[np.int64]


Prefix = str | Mapping[Any, str]


#: Texts that are looked up, tokenised and written at once.
CHUNK = 4096


def prefix_of(prefix: Prefix, prompt_type: str | None) -> str:
    """What stands before a text of this prompt type (``query``, ``document`` or None)."""
    return prefix if isinstance(prefix, str) else prefix.get(prompt_type or "", "")


class TextIndex:
    """Text -> corpus row, by digest."""

    def __init__(self, digests: npt.NDArray[np.uint8], prefix: Prefix, where: str) -> None:
        self.prefix = prefix
        self._where = where
        halves = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
        self._order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._halves = halves[self._order]

    @classmethod
    def of(cls, store: Store) -> TextIndex:
        """The index of a store's corpus.

        Raises:
            StoreError: the store has no corpus.
        """
        corpus = store.require_corpus()
        return cls(corpus.digests(), corpus.attributes.get("prefix", ""), store.url)

    def rows(self, texts: Sequence[str], *, task: str) -> Rows:
        """The corpus row of each text.

        Raises:
            StoreError: a text is not in the corpus; names the task and the remedy.
        """
        if not texts:
            return np.empty(0, np.int64)
        digests = np.frombuffer(b"".join(map(digest_of, texts)), np.uint8)
        wanted = digests.view(">u8").astype(np.uint64).reshape(-1, 2)
        place = np.searchsorted(self._halves[:, 0], wanted[:, 0])
        found = self._matches(place, wanted)
        # Digests that agree in their first half are a chance in 10^7 for a million texts.
        for i in np.flatnonzero(~found):
            while place[i] < len(self._halves) and self._halves[place[i], 0] == wanted[i, 0]:
                if self._halves[place[i], 1] == wanted[i, 1]:
                    found[i] = True
                    break
                place[i] += 1
        if not found.all():
            missing = texts[int(np.flatnonzero(~found)[0])]
            raise StoreError(
                f"{self._where}: task '{task}' asks for {int((~found).sum())} texts that are not "
                f"in the corpus, such as {shortened(missing)!r}; add the task to the config and "
                "run 'batchsweep prepare' with a new store.path"
            )
        return self._order[place].astype(np.int64, copy=False)

    def _matches(
        self, place: npt.NDArray[np.intp], wanted: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.bool_]:
        inside = place < len(self._halves)
        found = np.zeros(len(place), bool)
        found[inside] = (self._halves[place[inside]] == wanted[inside]).all(axis=1)
        return found
