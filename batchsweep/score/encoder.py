# mypy: disallow-subclassing-any=False
"""A stored layer as an MTEB encoder: ``mteb.evaluate(StoreEncoder(store, key, layer), task)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from batchsweep.arm import Arm, names_for_mteb, split_transform
from batchsweep.corpus.lookup import TextIndex, prefix_of
from batchsweep.score.transforms import ArmReader

if TYPE_CHECKING:
    from batchsweep.store import Store


def model_meta(key: str, layer: int, pooling: str, max_texts: int | None = None) -> ModelMeta:
    """mteb's description of an arm: the checkpoint is the model, layer and pooling an experiment.

    Args:
        layer, pooling: of the arm; a transform of the pooling (``mean+center``) is a part of the
            experiment's name, too.
        max_texts: texts that its tasks were capped at: a part of the experiment's name, so that
            nobody takes such scores for those of whole tasks.
    """
    name, revision = names_for_mteb(key)
    stored, transform = split_transform(pooling)
    experiment: dict[str, int | str] = {"layer": layer, "pooling": stored}
    if transform:
        experiment["transform"] = transform
    if max_texts is not None:
        experiment["max_texts"] = max_texts
    overwrites = {"name": name, "revision": revision, "experiment_kwargs": experiment}
    return ModelMeta.create_empty(overwrites=overwrites)


class StoreEncoder(AbsEncoder):
    """Answers ``encode`` with the stored vectors of one layer of one checkpoint.

    Texts are looked up by the digest of what ``encode`` receives (with the configured prefix in
    front), so that any mteb task whose texts are in the store can be evaluated.

    Example:
        >>> store = open_store("runs/quick/store.zarr")
        >>> encoder = StoreEncoder(store, "EleutherAI--pythia-14m/main", layer=4)
        >>> mteb.evaluate(encoder, mteb.get_task("BIOSSES"), co2_tracker=False)
    """

    def __init__(self, store: Store, key: str, layer: int, pooling: str = "mean") -> None:
        """``key``: one of ``store.keys()``; ``layer`` and ``pooling``: stored for it, the pooling
        as it is or transformed (``mean+center``) for tasks of the corpus.

        Raises:
            StoreError: no corpus, or no such checkpoint.
            UsageError: no such transform.
        """
        self._index = TextIndex.of(store)
        self._store = store
        self._arm = Arm(key, layer, pooling)
        self._readers: dict[str, ArmReader] = {}
        self._reader = store.reader(key)
        self.mteb_model_meta = model_meta(key, layer, pooling)

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any
    ) -> npt.NDArray[np.float32]:
        """Vectors [text, hidden] of the texts of ``inputs``.

        Raises:
            StoreError: a text is not in the store; names the task and the remedy.
        """
        prefix = prefix_of(self._index.prefix, None if prompt_type is None else prompt_type.value)
        texts = [prefix + text for text in inputs.dataset[:]["text"]]
        rows = self._index.rows(texts, task=task_metadata.name)
        different, which = np.unique(rows, return_inverse=True)
        name = task_metadata.name
        if name not in self._readers:
            self._readers[name] = ArmReader.of(self._store, self._reader, self._arm, name)
        return self._readers[name].read(different)[which]
