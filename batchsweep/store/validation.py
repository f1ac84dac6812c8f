"""What a document of a store may say: the types, names and sizes that FORMAT.md allows.

A store may come from anybody. What it says is looked at here, once, when it is opened; behind this
a name is one part of a path, and a size is one that memory and disks have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from batchsweep.errors import StoreCorrupt, StoreMismatch

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

#: Texts, layers, hidden size and blocks that a group may have: far above what there is, and low
#: enough that tables of them fit in memory.
MAX_TEXTS = 1 << 27
MAX_LAYERS = 1 << 12
MAX_HIDDEN = 1 << 17
MAX_BLOCKS = 1 << 17
#: Bytes of one layer of one block.
MAX_CHUNK_BYTES = 1 << 31
#: Poolings and metrics of a group; tasks of a corpus.
MAX_NAMES = 64
MAX_TASKS = 1 << 14

_NAME_BYTES = 255


def is_name(text: str) -> bool:
    """Whether a text is one part of a path, and can be printed.

    Hidden names are nobody's; ``__`` is Zarr's own.
    """
    if not text.isprintable() or text.startswith((".", "__")) or set(text) & set("/\\"):
        return False
    return 0 < len(text.encode()) <= _NAME_BYTES


def is_key(text: str) -> bool:
    """Whether a text is a checkpoint's key: ``<model>/<revision>``."""
    parts = text.split("/")
    return len(parts) == 2 and all(map(is_name, parts))


def name_fault(
    names: Collection[str], *, reserved: Collection[str] = (), most: int = MAX_NAMES
) -> str | None:
    """What is wrong with a list of names that are to lie side by side; None if nothing is."""
    if len(names) > most:
        return f"there are {len(names)} names, at most {most} are allowed"
    if len(set(names)) != len(names):
        return f"{len(names)} names are not distinct"
    bad = (name for name in names if not is_name(name) or name in reserved)
    return next((f"{name[:40]!r} can't be a name in a store" for name in bad), None)


def parsed(kind: Callable[..., T], value: Any) -> T:
    """A document's value as a dataclass, every member of exactly its declared type.

    Raises:
        ValueError: a member is missing or of another type; one line, names it.
    """
    from pydantic import ValidationError

    try:
        # Through JSON: there, strict takes a list for a tuple, but no true for a number.
        found: T = _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def check_version(version: object, newest: int, *, where: str, what: str) -> None:
    """Refuse a version that a document claims and this code doesn't read.

    Raises:
        StoreMismatch: it is newer.
        StoreCorrupt: it is no version.
    """
    if type(version) is not int or version < 1:
        raise StoreCorrupt(
            f"{where}: {what} {version!r:.40} isn't one; versions count from 1 (to {newest})"
        )
    if version > newest:
        raise StoreMismatch(
            f"{where}: {what} {version} is newer than this batchsweep "
            f"(version {newest}); upgrade batchsweep"
        )
