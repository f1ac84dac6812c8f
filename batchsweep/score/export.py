"""The scores of a store for other tools: MTEB's result folders, and one tidy table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchsweep.errors import StoreError, writing
from batchsweep.progress import progress
from batchsweep.score.records import records, score_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from batchsweep.store import Store

#: Columns of the tidy table, one row a pull.
COLUMNS = (
    "model",
    "revision",
    "step",
    "layer",
    "pooling",
    "task",
    "score",
    "seconds",
    "mteb_version",
    "dataset_revision",
    "max_texts",
)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    pulls: int
    table: Path
    """``scores.csv``; ``scores.parquet`` is beside it."""
    results: Path
    """The folder for ``mteb.ResultCache``."""


def counted(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Measured scores, any shape, as the bandit counts them: 0 where undefined (NaN).

    The rule for a score that mteb could not define (a constant embedding), everywhere: tables and
    arrays say NaN, which is not the same as not measured; in the bandit's means, rewards and ledger
    it is 0.
    """
    import numpy as np

    return np.where(np.isnan(scores), 0.0, scores)


def table(store: Store) -> pd.DataFrame:
    """One row a pull, with :data:`COLUMNS`; sorted by checkpoint, layer and task.

    ``score`` is missing where mteb gives not-a-number, ``step`` where none is known, ``max_texts``
    where the task was not capped.
    """
    return score_rows(store)[list(COLUMNS)].sort_values(
        ["model", "step", "revision", "layer", "pooling", "task"], ignore_index=True
    )


def export(store: Store, out: Path) -> Exported:
    """Write all pulls to a folder.

    ``out/scores.csv`` and ``out/scores.parquet`` hold the tidy table. ``out/mteb`` is a folder
    that mteb reads: ``ResultCache("out/mteb").load_results(load_experiments="match_name")``. A
    checkpoint is a model there, and each of its arms an experiment:
    ``results/EleutherAI__pythia-14m/step1000/experiments/layer_3__pooling_mean/STS12.json``. Scores
    of capped tasks are experiments of their own (``...__max_texts_500...``).

    Raises:
        StoreError: the store has no scores, or the folder can't be written.
    """
    from mteb.cache import ResultCache
    from mteb.results import TaskResult

    from batchsweep.score.encoder import model_meta

    frame = table(store)
    if frame.empty:
        raise StoreError(f"{store.url}: no scores yet; run 'batchsweep bandit'")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out / "scores.csv", index=False)
        frame.to_parquet(out / "scores.parquet", index=False)
        cache = ResultCache(out / "mteb")
        with progress("export", total=len(frame), unit="pulls") as bar:
            for record in records(store):
                meta = model_meta(record.key, record.layer, record.pooling, record.max_texts)
                result = TaskResult.from_dict(_with_nan(record.document["result"]))
                cache.save_to_cache(result, meta)
                bar.advance()
    return Exported(len(frame), out / "scores.csv", out / "mteb")


def _with_nan(result: dict[str, Any]) -> dict[str, Any]:
    """The record's result as mteb has it: null scores are nan."""
    scores = {
        split: [
            {
                name: math.nan if value is None and _is_mean(name) else value
                for name, value in subset.items()
            }
            for subset in subsets
        ]
        for split, subsets in result["scores"].items()
    }
    return {**result, "scores": scores}


def _is_mean(name: str) -> bool:
    # Everything that mteb leaves None is text about the evaluation, not a score.
    return name not in ("languages", "hf_subset", "mteb_version")
