"""Which texts go through the model together: batches with little padding, or with none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

#: Of the tokens in a batch, at most this fraction is padding.
MAX_PADDING = 0.03


def make_batches(
    lengths: npt.ArrayLike, batch_tokens: int, free: int = 0
) -> list[npt.NDArray[np.int64]]:
    """Split texts into batches of similar length.

    Longest first, so that a batch too big for the device fails at the start. The outcome depends
    on nothing but the arguments: a resumed run makes the same batches, and so the same bytes.

    Args:
        lengths: Tokens of each text, int [text].
        batch_tokens: A batch holds at most this many tokens, padding included. A longer text
            makes a batch of its own.
        free: So many tokens of padding a batch may have even beyond :data:`MAX_PADDING`: as many
            as it costs to begin another.

    Returns:
        Positions of the texts of each batch.
    """
    length = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-length, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(length[order[start]]), 1)
        stop = min(len(order), start + max(batch_tokens // longest, 1))
        # Padding of every possible stop: it only grows, as the texts only get shorter.
        taken = np.cumsum(length[order[start:stop]])
        padded = longest * np.arange(1, stop - start + 1)
        allowed = np.maximum(MAX_PADDING * padded, free)
        stop = start + int(np.searchsorted(padded - taken - allowed, 0, side="right"))
        stop = max(stop, start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def pack_batches(lengths: npt.ArrayLike, tokens: int) -> list[npt.NDArray[np.int64]]:
    """Split texts into batches of ``tokens`` tokens, or nearly, for a model that takes no padding.

    Each begins with the longest text that is left, and then takes again and again the longest one
    that still fits. The outcome depends on nothing but the arguments.

    Args:
        lengths: Tokens of each text, int [text].
        tokens: A batch holds at most this many. A longer text makes a batch of its own.

    Returns:
        Positions of the texts of each batch, texts of one length behind each other.
    """
    length = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    left = np.argsort(-length, kind="stable")
    batches = []
    while len(left):
        # Negative, because bisection wants what grows.
        sizes = (-length[left]).tolist()
        taken, at, room = [], 0, tokens
        while at < len(sizes):
            taken.append(at)
            room += sizes[at]
            at = bisect_left(sizes, -room, at + 1)
        batches.append(left[taken])
        left = np.delete(left, taken)
    return batches


def packed_tokens(hidden: int, tokens: int) -> int:
    """Tokens of a batch without padding: enough to be worth its start, few enough for four cores.

    To begin a batch took a layer 0.5 ms of a processor's time, a token of 128 dimensions 6
    microseconds, one of 1,024 dimensions 300. A matrix of 1,024 x 1,024 is multiplied with 256
    rows as fast as with more.

    Args:
        hidden: the model's width.
        tokens: of all texts that there are.
    """
    worthwhile = min(max((1 << 19) // hidden, 256), 2048)
    return max(min(worthwhile, -(-tokens // 4)), 256)


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(texts, tokens of each) of the runs of one length in a batch."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def free_padding(hidden: int) -> int:
    """Tokens of padding that cost no more than a batch by itself, for a model of this width.

    Beginning a batch took a layer 0.3 to 0.5 ms of a processor's time, a token of 128 dimensions 8
    microseconds, and with the width's square more.
    """
    return min((1 << 20) // hidden**2, 256)


def split(
    batch: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_tokens: int
) -> list[npt.NDArray[np.int64]]:
    """Split a batch evenly into as many as it takes for ``batch_tokens``, or into single texts."""
    tokens = len(batch) * int(lengths[batch].max())
    pieces = min(-(-tokens // max(batch_tokens, 1)), len(batch))
    return np.array_split(batch, pieces)


def pad(token_ids: Sequence[npt.ArrayLike], width: int) -> npt.NDArray[np.int64]:
    """Right-pad token ids to int64 [text, width]. The padding repeats a text's last token.

    Right, because then positions count from 0 without further ado, and a causal model's real
    tokens never see the padding. The last token again, because a model surely has it.
    """
    padded = np.zeros((len(token_ids), width), dtype=np.int64)
    for row, ids in zip(padded, token_ids, strict=True):
        values = np.asarray(ids)
        row[: len(values)] = values
        row[len(values) :] = values[-1]
    return padded
