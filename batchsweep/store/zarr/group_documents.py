"""The Zarr documents of a group: what follows from its spec alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchsweep.store.format import SEAL_BYTES
from batchsweep.store.spec import GroupSpec
from batchsweep.store.values import Array, stored_dtype
from batchsweep.store.zarr import v3

#: The chunk of one seal.
SEAL_CHUNK = (1, SEAL_BYTES)


def array_documents(spec: GroupSpec) -> dict[str, bytes]:
    """``zarr.json`` of each array of a group, by name."""
    coordinates = group_coordinates(spec)
    arrays = {
        name: v3.array(values.shape, values.dtype, values.shape, dimensions=dimensions)
        for name, (values, dimensions) in coordinates.items()
    }
    for name in spec.arrays:
        chunk = chunk_shape(spec, name)
        # The convention by which xarray takes an array for a coordinate.
        attributes = {"coordinates": "step"} if "step" in coordinates else {}
        if spec.dtype == "int8" and name in spec.poolings:
            attributes["scale"] = f"{name}_scale"
        arrays[name] = v3.array(
            (len(spec.layers), spec.texts, *chunk[2:]),
            stored_dtype(spec.dtype, name),
            chunk,
            shard=(len(spec.layers), *chunk[1:]),
            dimensions=("layer", "text", "hidden")[: len(chunk)],
            compression=spec.compression,
            attributes=attributes,
        )
    # With a copy of the group's attributes, from which repair restores them.
    arrays["seals"] = v3.array(
        (spec.blocks, SEAL_BYTES),
        np.dtype("u1"),
        SEAL_CHUNK,
        dimensions=("block", "byte"),
        attributes=spec.to_json(),
    )
    return arrays


def group_members(spec: GroupSpec, metrics: dict[str, Any]) -> dict[str, bytes]:
    """``zarr.json`` of all nodes of a complete group, by path."""
    members = array_documents(spec)
    if metrics:
        members["metrics"] = v3.group(metrics)
        arrays = metric_arrays(spec, metrics["names"])
        members |= {f"metrics/{name}": stored for name, stored in arrays.items()}
    return members


def wanted_metadata(
    folder: str, spec: GroupSpec, attributes: dict[str, Any], metrics: dict[str, Any]
) -> tuple[dict[str, bytes], dict[str, Array]]:
    """What a group must say beside its blocks, by path: documents, and the values of coordinates.

    Args:
        folder: the group's.
        spec: its own.
        attributes: of the group as they are.
        metrics: attributes of its metrics; empty where there are none.
    """
    wanted = {f"{folder}/{n}/zarr.json": s for n, s in array_documents(spec).items()}
    for group in ("checkpoints", folder.rsplit("/", 1)[0]):
        wanted[f"{group}/zarr.json"] = v3.group({})
    chunks = {f"{folder}/{n}": values for n, (values, _) in group_coordinates(spec).items()}
    complete = attributes.get("complete") is True
    members = group_members(spec, metrics) if complete else None
    wanted[f"{folder}/zarr.json"] = v3.group(attributes, members)
    if metrics:
        chunks[f"{folder}/metrics/layer"] = chunks[f"{folder}/layer"]
        arrays = metric_arrays(spec, metrics["names"])
        wanted |= {f"{folder}/metrics/{n}/zarr.json": s for n, s in arrays.items()}
        wanted[f"{folder}/metrics/zarr.json"] = v3.group(metrics, arrays)
    return wanted, chunks


def metric_arrays(spec: GroupSpec, names: list[str]) -> dict[str, bytes]:
    """``zarr.json`` of each metric and of the layers' numbers, by name."""
    shape = (len(spec.layers),)
    types = {"layer": np.dtype("i8"), **dict.fromkeys(names, np.dtype("f8"))}
    return {n: v3.array(shape, t, shape, dimensions=("layer",)) for n, t in types.items()}


def group_coordinates(spec: GroupSpec) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """xarray's coordinates: the layers' numbers, the corpus rows, and the step where known."""
    coordinates: dict[str, tuple[Array, tuple[str, ...]]] = {
        "layer": (np.asarray(spec.layers, np.int64), ("layer",)),
        "text": (np.arange(spec.texts, dtype=np.int32), ("text",)),
    }
    step = spec.provenance.get("step")
    if isinstance(step, int):
        coordinates["step"] = (np.asarray(step, np.int64), ())
    return coordinates


def chunk_shape(spec: GroupSpec, name: str) -> tuple[int, ...]:
    """The chunk [layer, text, hidden] of a pooling's array, or [layer, text] of its scales."""
    return (1, spec.chunk_texts, spec.hidden) if name in spec.poolings else (1, spec.chunk_texts)


def chunk_bytes(spec: GroupSpec, name: str) -> int:
    """Stored size of a chunk that isn't compressed."""
    values = int(np.prod(chunk_shape(spec, name)))
    return values * stored_dtype(spec.dtype, name).itemsize + v3.CRC_BYTES


def shard_key(spec: GroupSpec, name: str, block: int) -> str:
    """The file name of a block's shard."""
    return v3.chunk_key(0, block, *([0] if name in spec.poolings else []))
