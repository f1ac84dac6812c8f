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
from batchsweep.errors import UsageError
from batchsweep.plan.plan import Plan
from batchsweep.score.dataset import (
    arm_dataset,
    cube,
    extracted,
    metric_names,
    plan_of,
    with_metrics,
)
from batchsweep.score.transforms import ArmReader, has_statistics
from batchsweep.store import Corpus, GroupReader, Store, open_store
from batchsweep.store.pairs import ready_tasks

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Float32 = npt.NDArray[np.float32]

#: Columns that name an arm, in the table of arms.
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

    def to_xarray(self) -> xr.Dataset:
        """All that is known of every arm, in one data set over ``arm`` and ``task``.

        Arms are those of the plan, extracted or not; coordinates ``key``, ``model``, ``revision``,
        ``step`` (NaN where unknown), ``layer``, ``pooling``, ``complete``. Variables ``score`` and
        ``seconds`` [arm, task] (NaN where not measured; an undefined score is NaN with its
        seconds), ``ready`` [arm, task] (whether its vectors are there), and each label-free metric
        [arm]. Reports and tables are made of the same object.

        Example:
            >>> data = sweep.to_xarray()
            >>> data["score"].where(data["model"] == "demo-small", drop=True).mean("task")
            >>> data.drop_vars("arm").set_index(arm=["model", "revision", "layer"]).unstack("arm")
        """
        return self._with_metrics.copy(deep=True)

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row an arm of every checkpoint that is complete or has a task :attr:`ready`.

        Columns: ``arm`` (as in reports), ``key``, ``model``, ``revision``, ``step`` (missing where
        unknown), ``layer``, ``pooling``, ``score`` (mean over the tasks if all of them have been
        scored, else NaN), and each label-free metric.
        """
        import pandas as pd

        data = extracted(self._with_metrics)
        columns = {name: data[name].values for name in _ARM_COLUMNS}
        mean = data["score"].sel(task=self.tasks).sum("task", skipna=False) / (
            len(self.tasks) or np.nan
        )
        metrics = {name: data[name].values for name in metric_names(data)}
        frame = pd.DataFrame({**columns, "score": mean.values, **metrics})
        frame = frame.astype({"step": "Int64"})
        order = frame.sort_values(["model", "step", "revision", "pooling", "layer"], kind="stable")
        return order.reset_index(drop=True)

    @property
    def ready(self) -> pd.DataFrame:
        """Which pairs can be scored: bool, a row a checkpoint (by key) and a column a task.

        A checkpoint may be extracted for some tasks only; the vectors of these can be read.
        Checkpoints of the plan that nobody has begun are there too.
        """
        import pandas as pd

        planned = [entry.key for entry in self._plan.entries] if self._plan else []
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
        corpus = self._corpus_there
        return corpus.texts(None if task is None else corpus.rows_of(task))

    def embeddings(self, arm: str, task: str | None = None) -> Embeddings:
        """The vectors of an arm, [text, hidden]; of one task's texts, if one is named.

        Nothing is read until the result is indexed or turned into an array:
        ``sweep.embeddings(arm)[:100]`` or ``np.asarray(sweep.embeddings(arm))``.

        Args:
            arm: as in :attr:`arms`, or with the model's own name: ``EleutherAI/pythia-14m/main#3``;
                another name of the checkpoint's weights will do, too. With a transform
                (``...#3#mean+center``) a task is needed, whose texts it takes its statistics from.
            task: one of :attr:`tasks`.

        Raises:
            UsageError: no such arm (names some) or transform, or a transform without a task.
            StoreError: no such task.
        """
        found = self._arm(arm)
        assert found.pooling is not None
        if task is None and has_statistics(found.pooling):
            raise UsageError(
                f"arm '{arm}': a transform takes its statistics from a task's texts; name the task"
            )
        rows = None
        if task is not None:
            rows = self._corpus_there.rows_of(task)
        return Embeddings(self._reader(found.key), found, rows)

    @cached_property
    def scores(self) -> xr.DataArray:
        """Main scores, [model, step, layer, task] (and ``pooling``, if there are several).

        NaN where an arm was not scored on a task, or its score is undefined. ``step`` has the
        coordinate ``revision``; a revision whose step isn't known comes last, with step -1, and of
        several revisions of one model with the same step each has its own place.
        """
        return cube(extracted(self._data), "score")

    @cached_property
    def metrics(self) -> xr.Dataset:
        """Label-free metrics, [model, step, layer] each; dimensions as in :attr:`scores`."""
        import xarray as xr

        data = extracted(self._with_metrics)
        # The metrics are those of the layer, whatever the pooling.
        layers = list(zip(data["key"].values, data["layer"].values, strict=True))
        first = {of: i for i, of in reversed(list(enumerate(layers)))}
        data = data.isel(arm=sorted(first.values()))
        return xr.Dataset({name: cube(data, name) for name in metric_names(data)})

    def cka(
        self, arm: str, other: str, task: str | None = None, *, sample: int = 2000, seed: int = 0
    ) -> float:
        """Linear CKA of two arms' vectors of the same texts: 1 if equal up to rotation and scale.

        Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), eq. 6,
        with the unbiased estimator of HSIC of Song et al., "Feature Selection via Dependence
        Maximization" (2012), eq. 5, so that few texts don't make arms look alike.

        Args:
            arm: of any checkpoint and hidden size.
            other: likewise.
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

    @property
    def _corpus_there(self) -> Corpus:
        """The corpus, where one is needed.

        Raises:
            StoreError: there is none.
        """
        return self._corpus or self.store.require_corpus()

    @cached_property
    def _ready_tasks(self) -> dict[str, tuple[str, ...]]:
        return ready_tasks(self.store)

    @cached_property
    def _plan(self) -> Plan | None:
        return plan_of(self.store)

    @cached_property
    def _data(self) -> xr.Dataset:
        return arm_dataset(self.store)

    @cached_property
    def _with_metrics(self) -> xr.Dataset:
        return with_metrics(self._data, self.store)

    def _arm(self, text: str) -> Arm:
        """The arm that is meant, its pooling named."""
        data = extracted(self._data)
        given, _, rest = text.partition("#")
        key = self._keys.get(given, given)
        layer, _, named = rest.partition("#")
        pooling, plus, transform = named.partition("+")
        columns = (data[name].values.tolist() for name in ("key", "layer", "pooling"))
        meant = [
            Arm(key, number, f"{stored}{plus}{transform}")
            for of, number, stored in zip(*columns, strict=True)
            if (of, str(number)) == (key, layer) and "+" not in stored and pooling in ("", stored)
        ]
        if len(meant) == 1:
            return meant[0]
        names = data["arm"].values.tolist()
        if meant:
            several = ", ".join(f"{text}#{arm.pooling}" for arm in meant)
            raise UsageError(f"{self.store.url}: arm '{text}': which pooling? {several}")
        some = ", ".join(sorted(names)[:3]) or "none yet"
        raise UsageError(f"{self.store.url}: no arm '{text}' in {len(names)} arms (such as {some})")

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Other names of a checkpoint -> its key: the model's own name, and aliases."""
        found: dict[str, str] = {}
        columns = (self._data[name].values.tolist() for name in ("key", "model", "revision"))
        for key, model, revision in dict.fromkeys(zip(*columns, strict=True)):
            found.setdefault(f"{model}/{revision}", key)
        for entry in self._plan.entries if self._plan else ():
            for name in entry.checkpoint.names:
                found.setdefault(f"{entry.checkpoint.model}/{name}", entry.key)
                found.setdefault(f"{entry.key.split('/')[0]}/{name}", entry.key)
        return found

    def _reader(self, key: str) -> GroupReader:
        if key not in self._readers:
            self._readers[key] = self.store.reader(key)
        return self._readers[key]


class Embeddings:
    """An arm's vectors, read when they are indexed; float32 [text, hidden]."""

    dtype = np.dtype(np.float32)

    def __init__(self, reader: GroupReader, arm: Arm, rows: npt.NDArray[np.int64] | None) -> None:
        self._reader = reader
        self._arm = arm
        self._rows = rows
        texts = reader.texts if rows is None else len(rows)
        self.shape: tuple[int, int] = (texts, reader.hidden)

    def __repr__(self) -> str:
        where = f"{self._arm.key}, layer {self._arm.layer}, {self._arm.pooling}"
        return f"<Embeddings {self.shape[0]} x {self.shape[1]} of {where}>"

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def _vectors(self) -> ArmReader:
        return ArmReader(self._reader, self._arm, self._rows)

    def __getitem__(self, index: int | slice | npt.ArrayLike) -> Float32:
        """Rows by number, slice or array, as in numpy; only their chunks are read."""
        wanted = np.arange(len(self))[
            index if isinstance(index, int | slice) else np.asarray(index)
        ]
        rows = np.atleast_1d(wanted if self._rows is None else self._rows[wanted])
        vectors = self._vectors.read(rows)
        return vectors if np.ndim(wanted) else vectors[0]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the vectors must be read: they can't be had without a copy")
        return self[:].astype(dtype or np.float32, copy=False)


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
