"""Laying ``--patch`` over a sweep's objects, the way ``kubectl patch`` does by default.

Mappings are merged, null takes a key away, lists of named things (containers, volumes, env) are
merged by name and mounts by path; any other list is replaced.
https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from batchsweep.errors import UsageError

#: By what the elements of a list are told apart.
_MERGE_KEYS = ("name", "mountPath")


def patched(objects: Sequence[dict[str, Any]], patch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects, those changed that the patch names.

    Args:
        patch: its ``kind`` must fit, and its ``metadata.name`` if there is one, which may have
            ``*`` (``*-extract*``: the extract Jobs of whichever indexes).

    Raises:
        UsageError: it fits no object, so it is mistyped.
    """
    name = patch.get("metadata", {}).get("name", "*")

    def fits(item: Mapping[str, Any]) -> bool:
        return item["kind"] == patch["kind"] and fnmatchcase(item["metadata"]["name"], name)

    if not any(fits(item) for item in objects):
        there = ", ".join(f"{o['kind']} {o['metadata']['name']}" for o in objects)
        raise UsageError(f"--patch: there is no {patch['kind']} {name}; there are {there}")
    metadata = {k: v for k, v in patch.get("metadata", {}).items() if k != "name"}
    change = {k: v for k, v in patch.items() if k not in ("apiVersion", "kind", "metadata")}
    change |= {"metadata": metadata} if metadata else {}
    return [_merged(item, change) if fits(item) else item for item in objects]


def _merged(there: Any, change: Any) -> Any:
    if isinstance(there, dict) and isinstance(change, Mapping):
        kept = {k: v for k, v in there.items() if k not in change}
        return {
            k: _merged(there.get(k), change[k]) if k in change else kept[k]
            for k in [*there, *(k for k in change if k not in there)]
            if k in kept or change[k] is not None
        }
    if isinstance(there, list) and isinstance(change, list):
        for key in _MERGE_KEYS:
            if change and all(isinstance(x, dict) and key in x for x in [*there, *change]):
                return _merged_by(key, there, change)
    if isinstance(change, Mapping):
        return _merged({}, change)
    return change


def _merged_by(key: str, there: list[Any], change: list[Any]) -> list[Any]:
    new = {x[key]: x for x in change}
    return [
        *(_merged(x, new.pop(x[key])) if x[key] in new else x for x in there),
        *new.values(),
    ]
