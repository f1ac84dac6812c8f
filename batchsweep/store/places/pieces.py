"""The pieces of a stretch that a place reads at once."""

from __future__ import annotations

from collections.abc import Iterator


def pieces_of(stored: bytes, length: int, piece: int, tail: int) -> Iterator[memoryview[int]]:
    """``length`` bytes in pieces of ``piece``, then ``tail`` bytes on their own.

    Of a stretch that ends too early, the pieces that are whole.
    """
    view = memoryview(stored)
    ends = [*range(piece, length, piece), length, *([length + tail] if tail else [])]
    for first, end in zip([0, *ends], ends, strict=False):
        if end > len(view):
            return
        yield view[first:end]
