"""What a store knows of every arm, as one xarray data set: the report, ``batchsweep.open`` and
exports stand on it, and nobody else reads scores and metrics arm by arm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.arm import STORED, Arm, split_transform, transformed
from batchsweep.errors import UsageError
from batchsweep.plan.frozen import load_plan
from batchsweep.plan.plan import Plan
from batchsweep.score.records import score_rows
from batchsweep.score.transforms import TRANSFORMS
from batchsweep.store import GroupReader, Store
from batchsweep.store.pairs import ready_tasks

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class _Checkpoint:
    """What names a checkpoint's arms."""

    key: str
    model: str
    revision: str
    step: int | None
    layers: tuple[int, ...]
    poolings: tuple[str, ...]


def arm_dataset(store: Store, also: Collection[str] = ()) -> xr.Dataset:
    """Scores of every arm, those of the plan first; reads no embeddings and no metrics.

    Arms of a transform (``mean+center``) are there once any arm was scored with it, or if it is
    among ``also``.

    Dimensions ``arm`` (as in reports) and ``task`` (in the corpus's order, then any that only
    scores know). Coordinates of an arm: ``key``, ``model``, ``revision``, ``step`` (NaN where
    unknown), ``layer``, ``pooling``, and ``complete``, whether its checkpoint is extracted to the
    end. Variables:

    - ``score`` [arm, task]: main score; NaN where not measured, or measured and undefined;
    - ``seconds`` [arm, task]: what scoring took; NaN where not measured;
    - ``ready`` [arm, task]: whether the vectors of the task's texts are there.

    Raises:
        StoreMismatch: a score record is another's.
        StoreCorrupt: a document is damaged.
    """
    import xarray as xr

    ready = ready_tasks(store)
    found = list(_checkpoints(store, ready))
    corpus = store.corpus()
    known = [] if corpus is None else list(corpus.tasks())
    rows = score_rows(store)
    used = {split_transform(name)[1] for name in {*rows["pooling"], *also}}
    transforms = [STORED, *(name for name in TRANSFORMS if name in used)]
    cells = [
        (c, layer, pooling)
        for c in found
        for layer in c.layers
        for pooling in transformed(c.poolings, transforms)
    ]
    names = [str(Arm.spelled(c.key, layer, pooling, c.poolings)) for c, layer, pooling in cells]
    tasks = [*known, *sorted(set(rows["task"]) - set(known))]
    arm_of = {(c.key, layer, pooling): i for i, (c, layer, pooling) in enumerate(cells)}
    score_AT = np.full((len(cells), len(tasks)), np.nan)
    seconds_AT = score_AT.copy()
    task_of = {task: i for i, task in enumerate(tasks)}
    where = zip(rows["key"], rows["layer"], rows["pooling"], strict=True)
    arm_R = np.array([arm_of.get(cell, -1) for cell in where], dtype=np.int64)
    task_R = np.array([task_of[task] for task in rows["task"]], dtype=np.int64)
    there = arm_R >= 0
    score_AT[arm_R[there], task_R[there]] = rows["score"].to_numpy()[there]
    seconds_AT[arm_R[there], task_R[there]] = rows["seconds"].to_numpy()[there]
    ready_of = {key: np.array([t in of for t in tasks], bool) for key, of in ready.items()}
    none = np.zeros(len(tasks), bool)
    ready_AT = [ready_of.get(c.key, none) for c, _, _ in cells]
    complete = {key: store.reader(key).complete for key in ready}
    columns: dict[str, Any] = {
        "key": np.array([c.key for c, _, _ in cells], dtype=str),
        "model": np.array([c.model for c, _, _ in cells], dtype=str),
        "revision": np.array([c.revision for c, _, _ in cells], dtype=str),
        "step": np.array([math.nan if c.step is None else c.step for c, _, _ in cells], float),
        "layer": np.array([layer for _, layer, _ in cells], dtype=np.int64),
        "pooling": np.array([pooling for _, _, pooling in cells], dtype=str),
        "complete": np.array([complete.get(c.key, False) for c, _, _ in cells], dtype=bool),
    }
    return xr.Dataset(
        {
            "score": (("arm", "task"), score_AT),
            "seconds": (("arm", "task"), seconds_AT),
            "ready": (("arm", "task"), np.reshape(ready_AT, score_AT.shape).astype(bool)),
        },
        coords={
            "arm": np.array(names, dtype=str),
            "task": np.array(tasks, dtype=str),
            **{name: ("arm", column) for name, column in columns.items()},
        },
    )


def with_metrics(data: xr.Dataset, store: Store) -> xr.Dataset:
    """The same, with each label-free metric as a variable [arm]; NaN where not measured."""
    # The metrics are those of the layer, whatever the pooling.
    places: dict[tuple[str, int], list[int]] = {}
    for i, of in enumerate(zip(data["key"].values, data["layer"].values, strict=True)):
        places.setdefault(of, []).append(i)
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(data["key"].values[_extracted(data)].tolist()):
        reader = store.reader(key)
        for name, values_L in reader.metrics().items():
            column = columns.setdefault(name, np.full(data.sizes["arm"], np.nan))
            for layer, value in zip(reader.layers, values_L, strict=True):
                column[places.get((key, layer), [])] = value
    return data.assign({name: ("arm", column) for name, column in columns.items()})


def extracted(data: xr.Dataset) -> xr.Dataset:
    """The arms that can be read: of complete checkpoints, and of those with a task ready."""
    return data.isel(arm=np.flatnonzero(_extracted(data)))


def _extracted(data: xr.Dataset) -> Any:
    return data["complete"].values | data["ready"].values.any(axis=1)


def metric_names(data: xr.Dataset) -> list[str]:
    """The label-free metrics of a data set that :func:`with_metrics` gave."""
    return [str(name) for name in data.data_vars if name not in ("score", "seconds", "ready")]


def cube(data: xr.Dataset, variable: str) -> xr.DataArray:
    """A variable over model, step and layer; then pooling, if there are several, and task.

    NaN where there is no such arm. ``step`` has the coordinate ``revision``. A revision of unknown
    step has a place of its own, after the others, with step -1; of several revisions of one model
    with the same step each has its own.
    """
    import xarray as xr

    places = _steps(data)
    axis = sorted(set(places), key=lambda place: (place[0] < 0, place))
    revisions: dict[tuple[int, str], str] = {}
    for place, revision in zip(places, data["revision"].values.tolist(), strict=True):
        revisions.setdefault(place, revision)
    models: list[Any] = list(dict.fromkeys(data["model"].values.tolist()))
    poolings: list[Any] = list(dict.fromkeys(data["pooling"].values.tolist()))
    layers = sorted(set(data["layer"].values.tolist()))
    axes: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "model": (models, data["model"].values.tolist()),
        "step": (axis, places),
        "layer": (layers, data["layer"].values.tolist()),
    }
    if len(poolings) > 1:
        axes["pooling"] = (poolings, data["pooling"].values.tolist())
    codes = []
    for values, of_arm in axes.values():
        number = {value: i for i, value in enumerate(values)}
        codes.append(np.array([number[value] for value in of_arm], dtype=np.int64))
    values_A = data[variable].values
    filled = np.full([*(len(values) for values, _ in axes.values()), *values_A.shape[1:]], np.nan)
    filled[tuple(codes)] = values_A
    coordinates: dict[str, Any] = {name: list(values) for name, (values, _) in axes.items()}
    coordinates["step"] = [step for step, _ in axis]
    if "task" in data[variable].dims:
        coordinates["task"] = data["task"].values
    array = xr.DataArray(filled, coords=coordinates, dims=list(coordinates), name=variable)
    return array.assign_coords(revision=("step", [revisions[place] for place in axis]))


def _steps(data: xr.Dataset) -> list[tuple[int, str]]:
    """[arm] its place on the axis of steps."""
    first: dict[tuple[str, float], str] = {}
    places = []
    columns = (data[name].values.tolist() for name in ("model", "revision", "step"))
    for model, revision, step in zip(*columns, strict=True):
        if math.isnan(step):
            places.append((-1, revision))
        else:
            own = first.setdefault((model, step), revision) != revision
            places.append((int(step), revision if own else ""))
    return places


def _checkpoints(store: Store, groups: Mapping[str, Any]) -> Iterator[_Checkpoint]:
    """Those of the plan, then those that have a group all the same."""
    plan = plan_of(store)
    planned = set()
    if plan is not None:
        for e in plan.entries:
            planned.add(e.key)
            c = e.checkpoint
            yield _Checkpoint(e.key, c.model, c.revision, c.step, e.layers, plan.poolings)
    for key in groups:
        if key not in planned:
            yield _of_group(store.reader(key))


def plan_of(store: Store) -> Plan | None:
    """The frozen plan; None if there is none."""
    try:
        return load_plan(store)
    except UsageError:
        return None


def _of_group(reader: GroupReader) -> _Checkpoint:
    model, revision = reader.key.split("/")
    says = reader.provenance
    return _Checkpoint(
        reader.key,
        says.get("model", model),
        says.get("revision", revision),
        says.get("step"),
        reader.layers,
        reader.poolings,
    )
