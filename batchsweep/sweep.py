"""A store, reopened in Python: arms, embeddings, scores and metrics as pandas, numpy and xarray.

Example:
    >>> import batchsweep
    >>> sweep = batchsweep.open("runs/demo/store.zarr")
    >>> sweep.arms.sort_values("score").tail()
    >>> sweep.scores.mean("task").sel(model="demo-small").plot()
    >>> sweep.cka("demo-small/step64#2", "demo-small/main#2")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchsweep.arm import Arm
from batchsweep.errors import StoreError, UsageError
from batchsweep.plan.plan import PLAN_PATH
from batchsweep.score.records import score_rows
from batchsweep.store import Corpus, GroupReader, Store, open_store
from batchsweep.store.pairs import ready_tasks

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Float32 = npt.NDArray[np.float32]

#: Columns that name an arm, in the table of arms and as dimensions of the cubes.
_ARM_COLUMNS = ("arm", "key", "model", "revision", "step", "layer", "pooling")


def open(url: str | Path) -> Sweep:
    """Open a store for analysis; nothing but small documents is read until it is asked for.

    Raises:
        StoreError: there is no store.
    """
    return Sweep(open_store(url))


class Sweep:
    """What is in a store, as tables and arrays."""

    def __init__(self, store: Store) -> None:
        #: The store itself, for documents and for reading in other ways.
        self.store = store
        self._readers: dict[str, GroupReader] = {}

    def __repr__(self) -> str:
        return f"<Sweep of {len(self.arms)} arms, {len(self.tasks)} tasks in {self.store.url}>"

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row an arm of every checkpoint that is complete or has a task :attr:`ready`.

        Columns: ``arm`` (as in reports), ``key``, ``model``, ``revision``, ``step`` (missing where
        unknown), ``layer``, ``pooling``, ``score`` (mean over the tasks if all of them have been
        scored, else NaN), and each label-free metric.
        """
        import pandas as pd

        rows = []
        for key, tasks in self._ready_tasks.items():
            reader = self._reader(key)
            if not (tasks or reader.complete):
                continue
            metrics = reader.metrics()
            for pooling in reader.poolings:
                for position, layer in enumerate(reader.layers):
                    named = pooling if len(reader.poolings) > 1 else None
                    row = {
                        "arm": str(Arm(key, layer, named)),
                        "key": key,
                        "model": reader.provenance.get("model", key.split("/")[0]),
                        "revision": reader.provenance.get("revision", key.split("/")[1]),
                        "step": reader.provenance.get("step"),
                        "layer": layer,
                        "pooling": pooling,
                    }
                    rows.append({**row, **{n: v[position] for n, v in metrics.items()}})
        frame = pd.DataFrame(rows, columns=None if rows else list(_ARM_COLUMNS))
        frame = frame.astype({"step": "Int64"})
        scored = self._score_rows
        wide = scored.pivot_table(index=["key", "layer", "pooling"], columns="task", values="score")
        wide = wide.reindex(columns=self.tasks)
        means = wide.mean(axis=1, skipna=False)
        index = pd.MultiIndex.from_frame(frame[["key", "layer", "pooling"]])
        frame.insert(len(_ARM_COLUMNS), "score", means.reindex(index).to_numpy(dtype=float))
        order = frame.sort_values(["model", "step", "revision", "pooling", "layer"], kind="stable")
        return order.reset_index(drop=True)

    @property
    def ready(self) -> pd.DataFrame:
        """Which pairs can be scored: bool, a row a checkpoint (by key) and a column a task.

        A checkpoint may be extracted for some tasks only; the vectors of these can be read.
        Checkpoints of the plan that nobody has begun are there too.
        """
        import pandas as pd

        plan = self.store.read_json(PLAN_PATH) or {"entries": []}
        planned = [entry["key"] for entry in plan["entries"]]
        keys = list(dict.fromkeys([*planned, *self._ready_tasks]))
        rows = [[task in self._ready_tasks.get(key, ()) for task in self.tasks] for key in keys]
        return pd.DataFrame(rows, pd.Index(keys, name="key"), self.tasks, dtype=bool)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks of the corpus."""
        return [] if self._corpus is None else self._corpus.tasks()

    def texts(self, task: str | None = None) -> list[str]:
        """Texts of a task (or all), in the order of :meth:`embeddings`'s rows.

        Raises:
            StoreError: no such task.
        """
        if self._corpus is None:
            raise StoreError(f"{self.store.url}: no corpus; run 'batchsweep prepare'")
        return self._corpus.texts(None if task is None else self._corpus.rows_of(task))

    def embeddings(self, arm: str, task: str | None = None) -> Embeddings:
        """The vectors of an arm, [text, hidden]; of one task's texts, if one is named.

        Nothing is read until the result is indexed or turned into an array:
        ``sweep.embeddings(arm)[:100]`` or ``np.asarray(sweep.embeddings(arm))``.

        Raises:
            UsageError: no such arm; names some.
            StoreError: no such task.
        """
        found = self.arms.loc[self.arms["arm"] == arm]
        if found.empty:
            some = ", ".join(self.arms["arm"].head(3)) or "none yet"
            raise UsageError(
                f"{self.store.url}: no arm '{arm}' in {len(self.arms)} arms (such as {some})"
            )
        row = found.iloc[0]
        rows = None
        if task is not None:
            if self._corpus is None:
                raise StoreError(f"{self.store.url}: no corpus; run 'batchsweep prepare'")
            rows = self._corpus.rows_of(task)
        return Embeddings(self._reader(row["key"]), row["pooling"], int(row["layer"]), rows)

    @cached_property
    def scores(self) -> xr.DataArray:
        """Main scores, [model, step, layer, task] (and ``pooling``, if there are several).

        NaN where an arm was not scored on a task, or its score is undefined. ``step`` has the
        coordinate ``revision``; a revision whose step isn't known comes last, with step -1.
        """
        rows = self._score_rows
        tasks = [*self.tasks, *sorted(set(rows["task"]) - set(self.tasks))]
        return self._cube(rows, "score", {"task": tasks})

    @cached_property
    def metrics(self) -> xr.Dataset:
        """Label-free metrics, [model, step, layer] each; dimensions as in :attr:`scores`."""
        import xarray as xr

        names = [c for c in self.arms.columns if c not in (*_ARM_COLUMNS, "score")]
        # The metrics are those of the layer, whatever the pooling.
        rows = self.arms.drop_duplicates(["key", "layer"])
        return xr.Dataset({n: self._cube(rows.assign(pooling=""), n, {}) for n in names})

    def cka(
        self, arm: str, other: str, task: str | None = None, *, sample: int = 2000, seed: int = 0
    ) -> float:
        """Linear CKA of two arms' vectors of the same texts: 1 if equal up to rotation and scale.

        Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), eq. 6,
        with the unbiased estimator of HSIC of Song et al., "Feature Selection via Dependence
        Maximization" (2012), eq. 5, so that few texts don't make arms look alike.

        Args:
            arm, other: arms, of any checkpoints and hidden sizes.
            task: of which task the texts are; all by default.
            sample: texts used, drawn with ``seed``; more are more exact, and take n^2 memory.
            seed: of the sample.

        Raises:
            UsageError: no such arm, or fewer than four texts.
        """
        return float(self.cka_table([arm, other], task, sample=sample, seed=seed).iloc[0, 1])

    def cka_table(
        self,
        arms: Sequence[str],
        task: str | None = None,
        *,
        sample: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """:meth:`cka` of all pairs, as a symmetric table; each arm is read once."""
        import pandas as pd

        grams = []
        for arm in arms:
            vectors = self.embeddings(arm, task)
            texts = len(vectors)
            if texts < 4:
                raise UsageError(f"CKA needs four texts or more, there are {texts}")
            rows = np.random.default_rng(seed).permutation(texts)[:sample]
            grams.append(_gram(vectors[np.sort(rows)]))
        table = np.array([[_hsic(a, b) for b in grams] for a in grams])
        scale = np.sqrt(np.clip(np.diag(table), 0, None))
        with np.errstate(invalid="ignore", divide="ignore"):
            table = table / np.outer(scale, scale)
        return pd.DataFrame(table, index=list(arms), columns=list(arms))

    @cached_property
    def _corpus(self) -> Corpus | None:
        return self.store.corpus()

    @cached_property
    def _ready_tasks(self) -> dict[str, tuple[str, ...]]:
        return ready_tasks(self.store)

    @cached_property
    def _score_rows(self) -> pd.DataFrame:
        """One row a score that the store has."""
        return score_rows(self.store)

    def _reader(self, key: str) -> GroupReader:
        if key not in self._readers:
            self._readers[key] = self.store.reader(key)
        return self._readers[key]

    def _cube(self, rows: pd.DataFrame, value: str, more: dict[str, list[str]]) -> xr.DataArray:
        """One value a row, as a cube over model, step and layer, and what ``more`` names."""
        import xarray as xr

        arms = self.arms
        named = zip(arms["step"], arms["revision"], strict=True)
        # Two models may name one step differently; the first name stands for it.
        revisions: dict[tuple[int, str], str] = {}
        for step, revision in named:
            revisions.setdefault(_step(step, revision), revision)
        coordinates: dict[str, list[Any]] = {
            "model": list(dict.fromkeys(arms["model"])),
            "step": sorted(revisions, key=lambda s: (s[0] < 0, s)),
            "layer": sorted(set(arms["layer"])),
        }
        if rows["pooling"].nunique() > 1:
            coordinates["pooling"] = list(dict.fromkeys(arms["pooling"]))
        coordinates |= more
        places = {n: {v: i for i, v in enumerate(vs)} for n, vs in coordinates.items()}
        cube = np.full([len(vs) for vs in coordinates.values()], np.nan)
        for row in rows.itertuples(index=False):
            where = row._asdict()
            where["step"] = _step(where["step"], where["revision"])
            place = [places[name].get(where[name]) for name in coordinates]
            if None not in place:
                cube[tuple(place)] = where[value]
        names = [revisions[place] for place in coordinates["step"]]
        coordinates["step"] = [number for number, _ in coordinates["step"]]
        array = xr.DataArray(cube, coords=coordinates, dims=list(coordinates), name=value)
        return array.assign_coords(revision=("step", names))


class Embeddings:
    """An arm's vectors, read when they are indexed; float32 [text, hidden]."""

    dtype = np.dtype(np.float32)

    def __init__(
        self, reader: GroupReader, pooling: str, layer: int, rows: npt.NDArray[np.int64] | None
    ) -> None:
        self._reader = reader
        self._pooling = pooling
        self._layer = layer
        self._rows = rows
        texts = reader.texts if rows is None else len(rows)
        self.shape: tuple[int, int] = (texts, reader.hidden)

    def __repr__(self) -> str:
        where = f"{self._reader.key}, layer {self._layer}, {self._pooling}"
        return f"<Embeddings {self.shape[0]} x {self.shape[1]} of {where}>"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | npt.ArrayLike) -> Float32:
        """Rows by number, slice or array, as in numpy; only their chunks are read."""
        wanted = np.arange(len(self))[
            index if isinstance(index, int | slice) else np.asarray(index)
        ]
        rows = np.atleast_1d(wanted if self._rows is None else self._rows[wanted])
        vectors = self._reader.read(self._pooling, self._layer, rows)
        return vectors if np.ndim(wanted) else vectors[0]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the vectors must be read: they can't be had without a copy")
        return self[:].astype(dtype or np.float32, copy=False)


def _step(step: Any, revision: str) -> tuple[int, str]:
    """A place on the axis of steps; a revision of unknown step has one of its own, after them."""
    import pandas as pd

    return (-1, revision) if pd.isna(step) else (int(step), "")


def _gram(vectors: Float32) -> npt.NDArray[np.float64]:
    """Linear kernel of centred vectors, [text, text], with the diagonal left out.

    Centring changes nothing in exact arithmetic: it keeps a large common vector from rounding.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    gram: npt.NDArray[np.float64] = centred @ centred.T
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Unbiased HSIC of two kernels with zero diagonals: Song et al. (2012), eq. 5."""
    n = len(a)
    trace = float(np.vdot(a, b))
    means = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * float(a.sum(axis=0) @ b.sum(axis=0))
    return float((trace + means - cross) / (n * (n - 3)))
