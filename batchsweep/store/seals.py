"""Seals: what says that a block is whole, of which group and from which bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from batchsweep.store.format import Format
from batchsweep.store.spec import GroupSpec


def seal_of(key: str, spec: GroupSpec, block: int, checksums: Iterable[bytes]) -> bytes:
    """The 64 bytes that seal a block: the spec's digest, then one of its chunks and its place."""
    return spec.digest + _content_digest(checksums, f"{key}#{block}")


def is_sealed_by(
    seal: bytes, key: str, spec: GroupSpec, block: int, checksums: Sequence[bytes]
) -> bool:
    """Whether a seal is that of these chunks at this place."""
    # Older versions sealed without the place.
    of_old = spec.digest + _content_digest(checksums, "")
    return seal in (seal_of(key, spec, block, checksums), of_old)


def _content_digest(checksums: Iterable[bytes], place: str) -> bytes:
    return hashlib.sha256(b"".join(checksums) + place.encode()).digest()


def sealed_blocks(fmt: Format, key: str, spec: GroupSpec) -> frozenset[int]:
    """Blocks whose seal is of this spec and whose bytes are there."""
    seals = fmt.seals(key, spec)
    of_this = {block for block, seal in seals.items() if seal.startswith(spec.digest)}
    return frozenset(of_this - fmt.missing(key, spec))


def listed(numbers: list[int]) -> str:
    """Numbers of blocks, for messages."""
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} ... ({len(numbers)} in all)"
