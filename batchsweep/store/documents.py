"""JSON as bytes that depend on the value alone, with a checksum inside.

Chunks carry a crc32c; so do documents: an object has a member ``crc32c`` over its other members.
"""

from __future__ import annotations

import json
from operator import ne
from typing import Any

import google_crc32c

CHECKSUM = "crc32c"

#: A document has no more bytes than this.
MAX_BYTES = 128 << 20


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its checksum: crc32c, in hex, of its canonical JSON without this member."""
    rest = {k: v for k, v in value.items() if k != CHECKSUM}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, CHECKSUM: f"{google_crc32c.value(canonical.encode()):08x}"}


def checked(value: Any) -> Any:
    """The value without its checksum.

    An object without one (written by hand, say) passes.

    Raises:
        ValueError: the checksum differs, or its name is damaged.
    """
    if not isinstance(value, dict):
        return value
    if CHECKSUM not in value:
        if any(len(k) == len(CHECKSUM) and sum(map(ne, k, CHECKSUM)) == 1 for k in value):
            raise ValueError("its crc32c has another name")
        return value
    if with_checksum(value)[CHECKSUM] != value[CHECKSUM]:
        raise ValueError("its crc32c differs")
    return {k: v for k, v in value.items() if k != CHECKSUM}


def encode(value: Any) -> bytes:
    """The document's bytes: sorted keys, one line a value."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False)
    return (text + "\n").encode()


def encode_checked(value: Any) -> bytes:
    """The same, with a checksum where the value is an object."""
    return encode(with_checksum(value) if isinstance(value, dict) else value)


def decode_checked(stored: bytes) -> Any:
    """The value of a document.

    Raises:
        ValueError: it isn't JSON, or its checksum differs.
    """
    return checked(parse(stored))


def parse(stored: bytes) -> Any:
    """The value of JSON that may come from anybody.

    Raises:
        ValueError: it isn't JSON, or is too large or too deep for a document of a store.
    """
    if len(stored) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(stored)
    except RecursionError:
        raise ValueError("nested too deeply") from None
