"""Vectors brought to length 1, or with what they have in common removed, when they are read.

``unit`` is v / |v|: cosine similarities stay, classifiers and clusterings see other distances.
Texts' embeddings of one layer share a large vector and a few directions, which cosine similarity
then mostly measures. Mu & Viswanath, "All-but-the-Top: Simple and Effective Postprocessing for Word
Representations" (ICLR 2018), remove them:

- ``center``: v - m, with m [hidden] the mean of a set of vectors;
- ``all_but_the_top``: (v - m) - sum over k <= K of u_k (u_k . (v - m)), with u_1 ... u_K [hidden]
  the first principal components of that set, and K = hidden / 100 (rounded, at least 1), as the
  paper proposes.

The set are the texts of the task that is scored (queries, documents, training texts), each counted
once and no labels used: the unlabelled texts of the target, as in "(target)" of Li et al., "On the
Sentence Embeddings from Pre-trained Language Models" (EMNLP 2020). Of a task with more than
:data:`SAMPLE` texts it is a seeded sample of so many, whatever a pull takes of the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt

from batchsweep.arm import STORED, Arm, split_transform
from batchsweep.config import models
from batchsweep.errors import UsageError
from batchsweep.store import GroupReader, Store

Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

#: The transforms by name.
TRANSFORMS: tuple[str, ...] = tuple(name for name in get_args(models.Transform) if name != STORED)
#: Texts that the statistics are taken from, at most, and the seed of the draw.
SAMPLE, SEED = 4096, 0


class Unit:
    """v -> v / |v|; zero stays zero."""

    def __call__(self, vectors: Float32) -> Float32:
        """Of vectors [text, hidden]; new ones."""
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


@dataclass(frozen=True, eq=False)
class Transform:
    """v -> (v - mean), less its part along the components.

    Attributes:
        mean: float32 [hidden].
        components: float32 [K, hidden], orthonormal; none of them for ``center``.
    """

    mean: Float32
    components: Float32

    @classmethod
    def of(cls, name: str, vectors: Float32) -> Self:
        """From a set of vectors [text, hidden]; takes 12 bytes a value while it computes.

        Args:
            name: ``center`` or ``all_but_the_top``.
            vectors: half as many texts as there are components to remove, or fewer, have fewer
                removed: half as many as there are texts.
        """
        texts, hidden = vectors.shape
        mean = vectors.mean(axis=0, dtype=np.float64)
        count = 0 if name == "center" else min(max(1, round(hidden / 100)), texts // 2)
        centred = vectors - mean
        return cls(mean.astype(np.float32), _components(centred, count).astype(np.float32))

    def __call__(self, vectors: Float32) -> Float32:
        """Of vectors [text, hidden]; new ones."""
        centred: Float32 = vectors - self.mean
        if len(self.components):
            centred -= (centred @ self.components.T) @ self.components
        return centred


def _components(centred: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """The first principal components, [count, hidden], by the smaller of both Gram matrices."""
    from scipy.linalg import eigh

    texts, hidden = centred.shape
    if not count:
        return np.empty((0, hidden))
    few = texts < hidden
    gram = centred @ centred.T if few else centred.T @ centred
    _, vectors = eigh(gram, subset_by_index=[len(gram) - count, len(gram) - 1])
    found = vectors.T @ centred if few else vectors.T
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    # Equal texts have no directions to remove.
    return np.asarray(np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 1e-12))


def parts_of(pooling: str) -> tuple[str, str | None]:
    """``mean+center`` as (``mean``, ``center``); (``mean``, None) of vectors as stored.

    Raises:
        UsageError: no such transform.
    """
    stored, transform = split_transform(pooling)
    if transform and transform not in TRANSFORMS:
        raise UsageError(f"no transform '{transform}' (of '{pooling}'); valid: {_valid(stored)}")
    return stored, transform or None


def has_statistics(pooling: str) -> bool:
    """Whether it is a pooling with a transform that takes statistics from texts.

    Raises:
        UsageError: no such transform.
    """
    return parts_of(pooling)[1] not in (None, "unit")


def _valid(stored: str) -> str:
    return ", ".join([stored, *(f"{stored}+{name}" for name in TRANSFORMS)])


def origin_of(pooling: str) -> dict[str, Any]:
    """What decides a transform beside the vectors, for the origin of a score."""
    return {"transform": {"texts": SAMPLE, "seed": SEED}} if has_statistics(pooling) else {}


class ArmReader:
    """An arm's vectors, as stored or transformed."""

    def __init__(self, reader: GroupReader, arm: Arm, task_rows: Rows | None) -> None:
        """``arm``: its pooling named; ``task_rows``: rows of the statistics, if it has any.

        Raises:
            UsageError: no such transform.
            StoreError: no such pooling or layer.
        """
        assert arm.pooling is not None
        self._reader, self._layer = reader, arm.layer
        self._pooling, name = parts_of(arm.pooling)
        #: Of the statistics; None: vectors are as stored.
        self.transform: Transform | Unit | None = Unit() if name == "unit" else None
        if name is not None and name != "unit":
            assert task_rows is not None
            if len(task_rows) > SAMPLE:
                drawn = np.random.default_rng(SEED).choice(task_rows, SAMPLE, replace=False)
                task_rows = np.sort(drawn)
            self.transform = Transform.of(name, reader.read(self._pooling, self._layer, task_rows))

    @classmethod
    def of(cls, store: Store, reader: GroupReader, arm: Arm, task: str) -> Self:
        """For one task of the store's corpus.

        Raises:
            UsageError: no such transform.
            StoreError: no such pooling, layer, or task.
        """
        if not has_statistics(str(arm.pooling)):
            return cls(reader, arm, None)
        return cls(reader, arm, store.require_corpus().rows_of(task))

    @property
    def hidden(self) -> int:
        """Numbers in a vector."""
        return self._reader.hidden

    def read(self, rows: npt.ArrayLike | None = None) -> Float32:
        """Vectors [text, hidden] of corpus rows; all by default.

        Raises:
            StoreError: no such row, or its block isn't sealed yet.
            StoreCorrupt: bytes are damaged or missing.
        """
        vectors = self._reader.read(self._pooling, self._layer, rows)
        return vectors if self.transform is None else self.transform(vectors)
